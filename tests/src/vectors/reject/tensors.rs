//! Attributes, tensors and their extents and matrices (spec: container, 4.2 to 4.5).

use super::{Rejects, bases};
use crate::vectors::case::FailsAt;
use crate::vectors::image::table;
use cmf_format::Result;

pub(super) fn add(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::plain()?;
    // Tensors: a [2, 3], b [2, 2, 1] of matrices 1 and 2, c [3, 2] tied to a, e [0].
    let image = || base.image();
    let t = table::TENSORS;
    out.structure(
        "attribute_segment",
        "an attribute names a segment that there is not",
        image().u32(table::ATTRIBUTES, 0, 16, 5),
    );
    out.structure(
        "attribute_reserved",
        "the reserved field of an attribute is not 0",
        image().u64(table::ATTRIBUTES, 0, 24, 1),
    );
    out.parse(
        "unsupported",
        "attribute_flag",
        "an unknown flag of an attribute",
        image().u32(table::ATTRIBUTES, 0, 20, 0x8000).seal(),
    );

    for (name, number) in [("zero", 0u16), ("unknown", 20)] {
        out.parse(
            "unsupported",
            &format!("tensor_dtype_{name}"),
            "a tensor of an unknown element type",
            image().u16(t, 0, 8, number).seal(),
        );
    }
    out.at(
        FailsAt::Tensor("a"),
        "unsupported",
        "tensor_flag",
        "an unknown flag of a tensor",
        image().u32(t, 0, 12, 2).seal(),
    );
    out.structure("tensor_reserved", "the reserved field of a tensor is not 0", image().u64(t, 0, 40, 1));

    out.parse("limit", "rank", "a tensor of rank 17", {
        base.parts().table(t, |t| t.bytes[10] = 17).build().bytes
    });
    out.structure("first_extent_gap", "extents that no tensor uses, in the middle", image().u32(t, 1, 16, 3));
    out.structure("first_extent_shared", "two tensors share extents", image().u32(t, 2, 16, 0));
    out.structure("extents_beyond_table", "extents that there are not", {
        base.parts().table(table::EXTENTS, |t| t.bytes.truncate(7 * 8)).build()
    });
    out.structure(
        "extents_unused",
        "extents that no tensor uses, at the end",
        base.parts().push(table::EXTENTS, &[0; 8]).build(),
    );
    out.structure("elements", "`elements` is not the product of the extents", image().u64(t, 0, 32, 7));
    let large = (1u64 << 32).to_le_bytes();
    out.structure("elements_overflow", "the product of the extents overflows 64 bits", {
        image().set(table::EXTENTS, 0, 0, &large).set(table::EXTENTS, 1, 0, &large).u64(t, 0, 32, 0)
    });
    out.structure("elements_overflow_before_zero", "the product overflows before an extent of 0 is met", {
        image()
            .set(table::EXTENTS, 2, 0, &large)
            .set(table::EXTENTS, 3, 0, &large)
            .set(table::EXTENTS, 4, 0, &[0; 8])
            .u64(t, 1, 32, 0)
    });

    out.structure(
        "first_matrix_gap",
        "a matrix that no tensor uses, in the middle",
        image().u32(t, 1, 24, 2).u32(t, 1, 28, 1),
    );
    out.structure(
        "tied_to_later",
        "a tied tensor that reaches to a matrix which comes later",
        image().u32(t, 1, 24, 0).u32(t, 1, 28, 2),
    );
    out.structure("matrices_beyond_table", "matrices that there are not", image().u32(t, 1, 28, 3));
    out.structure(
        "matrix_count_overflow",
        "first matrix and count overflow 32 bits",
        image().u32(t, 1, 28, u32::MAX),
    );
    out.structure("matrices_unused", "a matrix that no tensor has, at the end", {
        image()
            .u32(t, 1, 28, 1)
            .set(table::EXTENTS, 2, 0, &1u64.to_le_bytes())
            .u64(t, 1, 32, 2)
            .u32(t, 3, 24, 2)
    });
    out.structure("matrices_of_two_shapes", "a tensor of matrices that differ in shape", {
        image()
            .u64(table::MATRICES, 2, 0, 1)
            .u64(table::MATRICES, 2, 8, 2)
            .u64(table::UNITS, 2, 24, 1)
            .u64(table::NODES, 2, 8, 1)
            .u64(table::NODES, 2, 16, 2)
    });
    out.structure("matrices_hold_more", "the matrices hold more elements than the tensor has", {
        image().set(table::EXTENTS, 0, 0, &1u64.to_le_bytes()).u64(t, 0, 32, 3)
    });
    out.structure("matrices_hold_none", "a tensor without elements that has a matrix", {
        image().set(table::EXTENTS, 5, 0, &0u64.to_le_bytes()).u64(t, 2, 32, 0)
    });
    out.structure("no_matrices", "a tensor with elements that has no matrix", {
        image().set(table::EXTENTS, 7, 0, &1u64.to_le_bytes()).u64(t, 3, 32, 1)
    });
    out.structure(
        "empty_first_matrix",
        "an empty tensor that does not state where new matrices would begin",
        image().u32(t, 3, 24, 0),
    );

    let base = bases::references()?;
    // Archives: base, shard. Tensors: delta, here, shard.
    let image = || base.image();
    out.structure("tensor_archive", "a tensor names an archive that there is not", image().u32(t, 2, 20, 3));
    out.structure("tensor_in_base", "a tensor that is no delta names a base", image().u32(t, 2, 20, 0));
    out.structure("delta_to_shard", "a delta names a shard", image().u32(t, 0, 20, 1));
    out.structure("delta_without_base", "a delta names no archive", image().u32(t, 0, 20, u32::MAX));
    out.structure("shard_with_matrices", "a tensor in a shard has matrices here", image().u32(t, 1, 20, 1));
    out.structure(
        "shard_first_matrix",
        "a tensor in a shard does not state where new matrices would begin",
        image().u32(t, 2, 24, 0),
    );
    Ok(())
}

//! Matrices, transforms, terms, units and the schedule (spec: container, 4.6 to 4.8, 4.13, 4.14).

use super::{Rejects, bases};
use crate::vectors::case::FailsAt;
use crate::vectors::image::table::{self, MATRICES, SCHEDULE, TERMS, TRANSFORMS, UNITS};
use crate::vectors::naive::cycle;
use cmf_format::{DType, Result};

pub(super) fn add(out: &mut Rejects<'_>) -> Result<()> {
    matrices(out)?;
    transforms(out)?;
    terms(out)?;
    units(out)?;
    schedule(out)
}

fn matrices(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::plain()?;
    let image = || base.image();
    out.structure(
        "matrix_reserved",
        "the reserved field of a matrix is not 0",
        image().u64(MATRICES, 0, 40, 1),
    );
    out.structure("matrix_first_term", "terms of two matrices overlap", image().u32(MATRICES, 1, 16, 0));
    out.structure(
        "matrix_term_count",
        "`term_count` is not the sum over the units",
        image().u32(MATRICES, 0, 20, 2),
    );
    out.structure(
        "matrix_first_transform",
        "transforms do not begin where those before end",
        image().u32(MATRICES, 1, 24, 1),
    );
    out.structure(
        "matrix_transform_missing",
        "transforms that there are not",
        image().u16(MATRICES, 0, 28, 1),
    );
    out.structure("matrix_first_unit", "units of two matrices overlap", image().u32(MATRICES, 1, 32, 0));
    out.structure("matrix_unit_missing", "units that there are not", image().u32(MATRICES, 2, 36, 2));
    let record = base.parts().tables.iter().find(|t| t.kind == TERMS).map(|t| t.bytes[..32].to_vec());
    out.structure(
        "terms_unused",
        "a term that no unit has",
        base.parts().push(TERMS, &record.unwrap_or_default()).build(),
    );
    out.structure(
        "transforms_unused",
        "a transform that no matrix has",
        base.parts().push(TRANSFORMS, &[0; 48]).build(),
    );
    out.structure("units_unused", "a unit that no matrix has", base.parts().push(UNITS, &[0; 48]).build());
    Ok(())
}

fn transforms(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::transforms()?;
    // Transforms: permute, sign_hadamard with signs, scale, sign_hadamard with a seed.
    let image = || base.image();
    let t = TRANSFORMS;
    let w = FailsAt::Tensor("w");
    let more = bases::sixteen_transforms()?.parts();
    let record = more.tables.iter().find(|t| t.kind == TRANSFORMS).map(|t| t.bytes[..48].to_vec());
    let more = more.push(TRANSFORMS, &record.unwrap_or_default()).build().u16(MATRICES, 0, 28, 17);
    out.parse("limit", "transforms", "17 transforms on one side", more.seal());
    out.structure(
        "transform_reserved",
        "the reserved field of a transform is not 0",
        image().u64(t, 0, 40, 1),
    );
    out.structure("transform_size", "`size` is not the length of the side", image().u64(t, 3, 8, 8));
    out.structure(
        "transform_unknown_size",
        "`size` is not the length of the side, in a transform of an unknown kind",
        image().u32(t, 3, 0, 4).u64(t, 3, 8, 8),
    );
    out.structure("transform_node_missing", "a node that there is not", image().u32(t, 2, 32, 2));
    out.structure("transform_segment_missing", "a segment that there is not", image().u32(t, 0, 36, 4));
    out.at(
        w,
        "unsupported",
        "transform_kind",
        "a transform of an unknown kind",
        image().u32(t, 3, 0, 4).seal(),
    );
    out.at(
        w,
        "unsupported",
        "transform_flag",
        "an unknown flag of a transform",
        image().u32(t, 3, 4, 1).seal(),
    );
    out.structure("permute_with_block", "a permutation with a block", image().u64(t, 0, 16, 4));
    out.structure("permute_with_seed", "a permutation with a seed", image().u64(t, 0, 24, 1));
    out.structure(
        "permute_without_indices",
        "a permutation without a segment",
        image().u32(t, 0, 36, u32::MAX),
    );
    out.structure("permute_with_node", "a permutation with a node", image().u32(t, 0, 32, 0));
    out.structure(
        "permute_indices_short",
        "a permutation of four with three indices",
        base.parts().segment(0, vec![0; 12], 12, 0).build(),
    );
    out.structure("signs_short", "no bytes of signs for four", base.parts().segment(1, vec![], 0, 0).build());
    out.structure("signs_with_seed", "stored signs and a seed", image().u64(t, 1, 24, 1));
    out.structure("hadamard_block_zero", "a block of 0", image().u64(t, 3, 16, 0));
    out.structure("hadamard_block_three", "a block that is no power of two", image().u64(t, 3, 16, 3));
    out.structure("hadamard_block_large", "a block that does not divide the side", image().u64(t, 3, 16, 8));
    out.structure("hadamard_with_node", "a Hadamard transform with a node", image().u32(t, 3, 32, 0));
    out.structure("scale_without_node", "a scale without factors", image().u32(t, 2, 32, u32::MAX));
    out.structure("scale_shape", "factors of another shape", image().u32(t, 2, 32, 1));
    out.structure("scale_with_segment", "a scale with a segment", image().u32(t, 2, 36, 1));

    for (name, why, at, value) in [
        ("permute_out_of_range", "an index that is not below the length", 4, 4u32),
        ("permute_twice", "an index that comes twice", 4, 3),
    ] {
        let bytes = image().payload(0, at, &value.to_le_bytes()).seal();
        out.at(w, "value", name, why, bytes);
    }
    let padded = image().payload(1, 0, &[0x16]).seal();
    out.at(FailsAt::Verify, "value", "signs_padding", "a bit after the last sign is set", padded);
    Ok(())
}

fn terms(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::levels()?;
    // Two columns; terms of two rows from 0, 2, 0, 2, 2.
    let image = || base.image();
    out.structure("term_reserved", "the reserved field of a term is not 0", image().u64(TERMS, 0, 24, 1));
    out.structure("term_node", "a term names a node that there is not", image().u32(TERMS, 0, 0, 5));
    out.structure("term_level", "a term has another level than its unit", image().u16(TERMS, 0, 4, 1));
    out.structure("term_before_unit", "a term begins before its unit", image().u64(TERMS, 1, 8, 1));
    out.structure("term_after_unit", "a term ends after its unit", image().u64(TERMS, 0, 8, 1));
    out.structure(
        "term_row_overflow",
        "row and rows of a term overflow 64 bits",
        image().u64(TERMS, 1, 8, u64::MAX),
    );
    out.structure("term_columns", "a term passes the last column", image().u64(TERMS, 0, 16, 1));
    out.structure(
        "term_column_overflow",
        "column and columns of a term overflow 64 bits",
        image().u64(TERMS, 0, 16, u64::MAX),
    );
    out.at(
        FailsAt::Tensor("w"),
        "unsupported",
        "term_flag",
        "an unknown flag of a required term",
        image().u16(TERMS, 3, 6, 2).seal(),
    );
    out.structure("term_empty", "a term of a node without rows", {
        let empty = base.parts().segment(0, vec![], 0, 0).build();
        empty.u64(table::NODES, 0, 8, 0)
    });

    // Such a sum must not be taken for 2^64 - 1, which is where this matrix ends.
    let most = u64::MAX;
    let tall = bases::one(&cycle(DType::I8, 2, 1, 0))?.image();
    let tall = tall
        .u64(table::EXTENTS, 0, 0, most)
        .u64(table::TENSORS, 0, 32, most)
        .u64(MATRICES, 0, 0, most)
        .u64(UNITS, 0, 24, most)
        .u64(TERMS, 0, 8, most - 1);
    out.structure(
        "term_row_overflow_largest",
        "row and rows of a term overflow in a matrix of 2^64 - 1 rows",
        tall,
    );
    let wide = bases::one(&cycle(DType::I8, 1, 2, 0))?.image();
    let wide = wide
        .u64(table::EXTENTS, 1, 0, most)
        .u64(table::TENSORS, 0, 32, most)
        .u64(MATRICES, 0, 8, most)
        .u64(TERMS, 0, 16, most - 1);
    out.structure(
        "term_column_overflow_largest",
        "column and columns of a term overflow in a matrix of 2^64 - 1 columns",
        wide,
    );
    Ok(())
}

fn units(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::levels()?;
    // Level and first row: (0, 0), (0, 2), (1, 0), (1, 2), (2, 2).
    let image = || base.image();
    out.structure("unit_reserved", "the reserved field of a unit is not 0", image().u64(UNITS, 0, 40, 1));
    out.parse("unsupported", "unit_flag", "an unknown flag of a unit", image().u16(UNITS, 0, 6, 1).seal());
    out.structure("unit_matrix", "a unit names another matrix", image().u32(UNITS, 0, 0, 1));
    out.structure(
        "unit_first_term",
        "a unit does not begin where the one before ends",
        image().u32(UNITS, 1, 8, 0),
    );
    out.structure(
        "unit_terms_missing",
        "terms that there are not",
        image().u32(UNITS, 4, 12, 2).u32(MATRICES, 0, 20, 6),
    );
    out.structure("unit_rows", "a unit passes the last row", image().u64(UNITS, 1, 24, 3));
    out.structure(
        "unit_rows_overflow",
        "first row and rows overflow 64 bits",
        image().u64(UNITS, 1, 16, u64::MAX),
    );
    out.structure("unit_rows_zero", "a unit of no rows", {
        image().u64(UNITS, 1, 24, 0).u32(UNITS, 1, 12, 0).u32(UNITS, 2, 8, 1)
    });
    out.structure("unit_overlap", "two units of one level overlap", image().u64(UNITS, 0, 24, 3));
    out.structure(
        "unit_backwards",
        "units of one level go backwards",
        image().u64(UNITS, 0, 16, 2).u64(TERMS, 0, 8, 2).u64(UNITS, 1, 16, 0).u64(TERMS, 1, 8, 0),
    );
    out.structure(
        "unit_level_first",
        "the first unit has level 1",
        image().u16(UNITS, 0, 4, 1).u16(TERMS, 0, 4, 1),
    );
    out.structure(
        "unit_level_skipped",
        "level 3 follows level 1",
        image().u16(UNITS, 4, 4, 3).u16(TERMS, 4, 4, 3),
    );
    out.structure("unit_level_falls", "level 0 follows level 1", {
        image()
            .u16(UNITS, 1, 4, 1)
            .u16(TERMS, 1, 4, 1)
            .u64(UNITS, 1, 16, 0)
            .u64(TERMS, 1, 8, 0)
            .u16(UNITS, 2, 4, 0)
            .u16(TERMS, 2, 4, 0)
            .u64(UNITS, 2, 16, 2)
            .u64(TERMS, 2, 8, 2)
    });
    out.structure("unit_refines_none", "a unit of level 1 whose rows no unit of level 0 has", {
        let shorter = base.parts().segment(3, vec![1, 2], 2, 0).build();
        shorter.u64(table::NODES, 3, 8, 1).u64(UNITS, 3, 24, 1).u64(UNITS, 3, 32, 2)
    });
    out.at(
        FailsAt::Verify,
        "structure",
        "unit_resident_bytes",
        "`resident_bytes` is not the sum",
        image().u64(UNITS, 0, 32, 5).seal(),
    );
    Ok(())
}

fn schedule(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::levels()?;
    // Units 0 to 4 in order.
    let image = || base.image();
    out.structure(
        "schedule_reserved",
        "the reserved field of a step is not 0",
        image().u64(SCHEDULE, 0, 24, 1),
    );
    out.parse(
        "unsupported",
        "schedule_flag",
        "an unknown flag of a step",
        image().u32(SCHEDULE, 0, 4, 2).seal(),
    );
    out.structure("schedule_unit", "a step names a unit that there is not", image().u32(SCHEDULE, 4, 0, 5));
    out.structure("schedule_twice", "a unit comes twice", image().u32(SCHEDULE, 1, 0, 0));
    out.structure(
        "schedule_incomplete",
        "a unit is missing",
        base.parts().table(SCHEDULE, |t| t.bytes.truncate(4 * 32)).build(),
    );
    out.structure("schedule_too_long", "a step too many", base.parts().push(SCHEDULE, &[0; 32]).build());
    out.structure(
        "schedule_order",
        "a unit comes before the one that it refines",
        image().u32(SCHEDULE, 3, 0, 4).u32(SCHEDULE, 4, 0, 3),
    );
    out.structure("schedule_bytes_fall", "`cumulative_bytes` falls", image().u64(SCHEDULE, 2, 8, 1));
    for (name, loss) in [("nan", f64::NAN), ("infinite", f64::INFINITY)] {
        let image = image().u32(SCHEDULE, 0, 4, 1).u64(SCHEDULE, 0, 16, loss.to_bits());
        out.structure(&format!("schedule_loss_{name}"), "an expected loss that is no number", image);
    }
    out.structure(
        "schedule_loss_not_stated",
        "an expected loss without the flag that states it",
        image().u64(SCHEDULE, 0, 16, 1f64.to_bits()),
    );
    out.structure(
        "schedule_loss_negative_zero",
        "-0.0 without the flag that states a loss",
        image().u64(SCHEDULE, 0, 16, 1 << 63),
    );
    out.at(
        FailsAt::Verify,
        "structure",
        "schedule_bytes",
        "`cumulative_bytes` is not the sum",
        image().u64(SCHEDULE, 4, 8, 1000).seal(),
    );
    Ok(())
}

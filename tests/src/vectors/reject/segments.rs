//! Segments, nodes, refs and descriptors (spec: container, 4.9 to 4.12, 5.2).

use super::{Rejects, bases};
use crate::vectors::case::FailsAt;
use crate::vectors::image::Parts;
use crate::vectors::image::table::{ATTRIBUTES, DESCRIPTORS, NODES, REFS, SEGMENTS, TERMS};
use crate::vectors::naive::{Grouped, Piece, f32s, grouped};
use cmf_format::Result;

const NONE: u32 = u32::MAX;

pub(super) fn add(out: &mut Rejects<'_>) -> Result<()> {
    segments(out)?;
    chunk_hashes(out)?;
    nodes(out)?;
    hidden(out)
}

fn segments(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::nested()?;
    // Segments of 6 codes in 8 bytes, of 2 codes in 8 bytes, of 2 bytes.
    let image = || base.image();
    let offset = |i: usize| image().segment(i).start as u64;
    out.structure(
        "segment_gap",
        "a segment begins one alignment late",
        image().u64(SEGMENTS, 1, 0, offset(1) + 64),
    );
    out.structure("segment_overlap", "two segments overlap", image().u64(SEGMENTS, 1, 0, offset(0)));
    out.structure(
        "segment_unaligned",
        "a segment does not begin at a multiple of the alignment",
        image().u64(SEGMENTS, 1, 0, offset(1) + 8),
    );
    out.structure(
        "segment_in_directory",
        "the first segment begins in the directory",
        image().u64(SEGMENTS, 0, 0, 256),
    );
    out.structure(
        "segment_beyond_file",
        "the last segment passes the end of the file",
        image().u64(SEGMENTS, 2, 8, 3).u64(SEGMENTS, 2, 16, 3),
    );
    out.structure(
        "segment_overflow",
        "offset and length overflow 64 bits",
        image().u64(SEGMENTS, 2, 8, u64::MAX).u64(SEGMENTS, 2, 16, u64::MAX),
    );
    out.structure(
        "segment_decoded_bytes",
        "a raw segment states another decoded length",
        image().u64(SEGMENTS, 0, 16, 7),
    );
    out.structure(
        "segment_reserved",
        "the reserved field of a segment is not 0",
        image().set(SEGMENTS, 0, 29, &[1]),
    );
    out.structure(
        "segment_first_chunk_hash",
        "a segment of one chunk group states a chaining value",
        image().u32(SEGMENTS, 0, 24, 0),
    );
    let w = FailsAt::Tensor("w");
    out.at(
        w,
        "unsupported",
        "segment_compression",
        "an unknown compression",
        image().set(SEGMENTS, 0, 28, &[2]).seal(),
    );
    out.at(
        w,
        "unsupported",
        "segment_flag",
        "an unknown flag of a segment",
        image().u16(SEGMENTS, 0, 30, 0x80).seal(),
    );
    let plain = bases::plain()?;
    let attribute = FailsAt::Attribute("1.txt");
    out.at(
        attribute,
        "unsupported",
        "attribute_compression",
        "an attribute of unknown compression",
        plain.image().set(SEGMENTS, 0, 28, &[255]).seal(),
    );
    out.at(
        attribute,
        "unsupported",
        "attribute_segment_flag",
        "an attribute whose segment has an unknown flag",
        plain.image().u16(SEGMENTS, 0, 30, 1).seal(),
    );
    Ok(())
}

fn chunk_hashes(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::chunks()?;
    // Segments: 4 chaining values, 1025 bytes, 1026 bytes.
    let image = || base.image();
    let header = |index: u32| image().put(100, &index.to_le_bytes());
    out.structure(
        "chunk_hashes_not_named",
        "`chunk_hash_segment` is NONE, but there are chunk groups",
        header(NONE),
    );
    out.structure("chunk_hashes_not_first", "`chunk_hash_segment` is not 0", header(1));
    out.structure("chunk_hashes_beyond_table", "`chunk_hash_segment` names no segment", header(3));
    let none = bases::nested()?;
    out.structure(
        "chunk_hashes_not_needed",
        "`chunk_hash_segment` is 0, but no segment has two chunk groups",
        none.image().put(100, &[0; 4]),
    );
    out.structure(
        "chunk_hashes_compressed",
        "the segment of chaining values is not raw",
        image().set(SEGMENTS, 0, 28, &[1]),
    );
    out.structure(
        "chunk_hashes_too_few",
        "a chaining value is missing",
        base.parts().segment(0, vec![0; 96], 96, 0).build(),
    );
    out.structure(
        "chunk_hashes_too_many",
        "a chaining value too many",
        base.parts().segment(0, vec![0; 160], 160, 0).build(),
    );
    out.structure(
        "chunk_hashes_with_first",
        "the segment of chaining values states one for itself",
        image().u32(SEGMENTS, 0, 24, 0),
    );
    out.structure(
        "chunk_hashes_not_stated",
        "a segment of two chunk groups states no chaining value",
        image().u32(SEGMENTS, 1, 24, NONE),
    );
    out.structure(
        "chunk_hashes_shared",
        "two segments state the same chaining values",
        image().u32(SEGMENTS, 2, 24, 0),
    );
    out.structure(
        "chunk_hashes_gap",
        "a chaining value that no segment has",
        image().u32(SEGMENTS, 2, 24, 3),
    );
    out.structure(
        "chunk_hashes_as_attribute",
        "an attribute is the segment of chaining values",
        image().u32(ATTRIBUTES, 0, 16, 0),
    );
    let verify = |name: &str, why: &str, bytes: Vec<u8>, out: &mut Rejects<'_>| {
        out.at(FailsAt::Verify, "hash", name, why, bytes);
    };
    let at = image().segment(2).start + 1025;
    verify(
        "chunk_group",
        "the last byte, in the second chunk group, was changed",
        image().put(at, &[0]).bytes,
        out,
    );
    verify(
        "chaining_value",
        "a chaining value was changed, and the hash of their segment with it",
        image().payload(0, 70, &[0]).seal(),
        out,
    );
    verify(
        "chunk_segment_hash",
        "the hash of a segment is not what its chaining values amount to",
        image().set(SEGMENTS, 1, 32, &[0; 32]).seal(),
        out,
    );
    let plain = bases::plain()?;
    let at = plain.image().segment(0).start;
    verify("payload", "a byte of an attribute was changed", plain.image().put(at, b"F").bytes, out);
    verify(
        "segment_hash",
        "a segment states another hash",
        plain.image().set(SEGMENTS, 3, 32, &[0; 32]).seal(),
        out,
    );
    Ok(())
}

fn nodes(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::nested()?;
    // Nodes: dense, scale, grouped. Refs: segment; segment, child 0; segment, child 1.
    let image = || base.image();
    out.structure("node_reserved", "the reserved field of a node is not 0", image().u64(NODES, 0, 40, 1));
    out.structure(
        "node_child_itself",
        "a node is its own child",
        image().set(REFS, 4, 0, &2u32.to_le_bytes()),
    );
    out.structure(
        "node_child_later",
        "a child that comes after its parent",
        image().set(REFS, 2, 0, &2u32.to_le_bytes()),
    );
    out.structure(
        "node_child_missing",
        "a child that there is not",
        image().set(REFS, 4, 0, &3u32.to_le_bytes()),
    );
    out.structure(
        "node_segment_missing",
        "a segment that there is not",
        image().set(REFS, 0, 0, &3u32.to_le_bytes()),
    );
    out.structure("node_refs_shared", "two nodes share refs", image().u32(NODES, 2, 32, 1));
    out.structure("node_refs_gap", "a ref that no node has, in the middle", {
        base.parts()
            .table(REFS, |t| drop(t.bytes.splice(4..4, [0; 4])))
            .build()
            .u32(NODES, 1, 32, 2)
            .u32(NODES, 2, 32, 4)
    });
    out.structure("node_refs_missing", "refs that there are not", image().u16(NODES, 2, 38, 2));
    out.structure(
        "refs_unused",
        "a ref that no node has, at the end",
        base.parts().push(REFS, &[0; 4]).build(),
    );
    out.structure(
        "descriptor_unaligned",
        "a descriptor does not begin at a multiple of 8",
        image().u32(NODES, 2, 24, 44),
    );
    out.structure(
        "descriptor_length",
        "the length of a descriptor is no multiple of 8",
        image().u32(NODES, 2, 28, 30),
    );
    out.structure("descriptor_missing", "a descriptor that passes the end of the table", {
        base.parts().table(DESCRIPTORS, |t| t.bytes.truncate(t.bytes.len() - 8)).build()
    });
    out.structure("descriptor_gap", "descriptor bytes that no node has, in the middle", {
        let gap = base.parts().table(DESCRIPTORS, |t| drop(t.bytes.splice(8..8, [0; 8]))).build();
        gap.u32(NODES, 1, 24, 16).u32(NODES, 2, 24, 48)
    });
    out.structure("descriptor_overlap", "a descriptor that is partly one of before", {
        // The last begins within the second and passes the reach of those before.
        base.parts().table(DESCRIPTORS, |t| t.bytes.truncate(64)).build().u32(NODES, 2, 24, 32)
    });
    out.structure(
        "descriptors_unused",
        "descriptor bytes that no node has, at the end",
        base.parts().push(DESCRIPTORS, &[0; 8]).build(),
    );
    let w = FailsAt::Tensor("w");
    out.at(
        w,
        "unsupported",
        "node_encoding",
        "a required term of an unknown encoding",
        image().u32(NODES, 2, 0, 12).seal(),
    );
    out.at(w, "unsupported", "node_encoding_zero", "encoding id 0", image().u32(NODES, 2, 0, 0).seal());
    out.at(
        w,
        "unsupported",
        "node_version",
        "an unknown version of an encoding",
        image().u16(NODES, 2, 4, 2).seal(),
    );
    out.at(w, "unsupported", "node_flag", "an unknown flag of a node", image().u16(NODES, 2, 6, 0x80).seal());
    out.at(
        w,
        "unsupported",
        "child_encoding",
        "a known encoding above an unknown one",
        image().u32(NODES, 0, 0, 12).seal(),
    );

    let mut piece: Piece = f32s(1, 1, &[1.0]);
    for code in 0..7 {
        let g = Grouped { scale_op: 1, scale: Some(&piece), group: (0, 0), ..Grouped::default() };
        piece = grouped(&g, 1, 1, &[code]);
    }
    // Ref 15 is the child of the last node; a node more makes nine.
    let deep = bases::one(&piece)?.parts();
    let last = |t: &[u8], bytes: usize| t[t.len() - bytes..].to_vec();
    let deeper = deep
        .table(NODES, |t| {
            let mut record = last(&t.bytes, 48);
            record[32..36].copy_from_slice(&15u32.to_le_bytes());
            t.bytes.extend(record);
        })
        .table(REFS, |t| {
            let segment = t.bytes[t.bytes.len() - 8..t.bytes.len() - 4].to_vec();
            t.bytes.extend(segment);
            t.bytes.extend(7u32.to_le_bytes());
        })
        .build()
        .u32(TERMS, 0, 0, 8);
    out.parse("limit", "node_depth", "nodes that nest 9 deep", deeper.seal());

    // The tree of 256 nodes has another table, which has a node more.
    let base = bases::tree()?;
    let refs = base.parts().tables.iter().find(|t| t.kind == REFS).map_or(0, |t| t.bytes.len() / 4);
    let larger = base.image().set(REFS, refs - 1, 0, &2u32.to_le_bytes());
    out.parse(
        "limit",
        "node_tree",
        "a tree of 257 nodes, of which most are one node many times",
        larger.seal(),
    );
    Ok(())
}

fn hidden(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::nested()?;
    out.structure(
        "segment_unused",
        "a segment that nothing refers to",
        base.parts().push_segment(b"hidden").build(),
    );
    let parts: Parts = base.parts().push(DESCRIPTORS, &[1, 0, 0, 0, 0, 0, 0, 0]);
    let mut node = [0; 48];
    node[0] = 1;
    node[4] = 1;
    node[24] = 72;
    node[28] = 8;
    node[32] = 5;
    node[36] = 1;
    // A dense f64 node [1, 1] of the eight bytes of codes.
    node[8] = 1;
    node[16] = 1;
    out.structure(
        "node_unused",
        "a node that nothing refers to",
        parts.push(NODES, &node).push(REFS, &[0; 4]).build(),
    );
    Ok(())
}

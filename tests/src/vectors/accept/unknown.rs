//! What a reader of version 1.0 meets without knowing it, and still reads the rest of.

use crate::vectors::case::{Accept, Files, Matrix, Tensor, Term, Unit};
use crate::vectors::image::{Image, Parts, TableParts, table};
use crate::vectors::naive::{Grouped, Parts as NodeParts, Piece, cycle, f32s, grouped};
use cmf_format::{DType, Result};

const FOLDER: &str = "container";

fn readable() -> Tensor {
    Tensor::exact("readable", cycle(DType::U8, 2, 3, 0))
}

/// A node of encoding 2^31, with two segments, 24 descriptor bytes and a child.
fn future(child: &Piece) -> Piece {
    let descriptor = (0..24).collect();
    let segments = vec![vec![1, 2, 3].into(), vec![].into()];
    let parts =
        NodeParts { encoding: 1 << 31, rows: 2, cols: 3, descriptor, segments, children: vec![child] };
    parts.piece(Vec::new()).unknown(|_| {})
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let base = || f32s(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let child = f32s(1, 1, &[1.0]);
    Accept::new(
        FOLDER,
        "unknown_optional_term",
        "an optional term of an unknown encoding, between two known ones, is left out",
    )
    .tensor(Tensor::sum("w", DType::F32, vec![base().into(), future(&child).optional(), base().into()]))
    .finish(files)?;
    Accept::new(FOLDER, "unknown_required_term", "a required term of an unknown encoding makes its tensor unreadable, at every level; the other is read")
        .tensor(Tensor::sum("w", DType::F32, vec![base().into(), future(&child).into()]))
        .tensor(readable())
        .finish(files)?;

    let unit = |level: u16, terms: Vec<Term>| Unit { level, rows: (0, 2), terms };
    let refined = |last: Term| Matrix {
        rows: 2,
        cols: 3,
        units: vec![
            unit(0, vec![base().into()]),
            unit(1, vec![base().into()]),
            unit(2, vec![last, base().into()]),
        ],
        ..Matrix::default()
    };
    let tensor = |name: &str, last: Term| Tensor::new(name, DType::F32, &[2, 3], vec![refined(last)]);
    Accept::new(
        FOLDER,
        "unknown_level",
        "a term of an unknown encoding in level 2: required, levels 0 and 1 stay readable; optional, it is left out of level 2",
    )
    .tensor(tensor("required", future(&child).into()))
    .tensor(tensor("optional", future(&child).optional()))
    .finish(files)?;

    let dense = base();
    let newer = dense.unknown(|node| node.version = 2);
    let number = dense.unknown(|node| node.descriptor[0] = 20);
    let empty = dense.unknown(|node| {
        node.encoding = 12;
        node.descriptor.clear();
        node.segments.clear();
    });
    let scale = future(&child);
    let above = grouped(&Grouped { bits: 1, scale_op: 0, ..Grouped::default() }, 2, 3, &[0, 1, 0, 1, 0, 1]);
    let above = above.unknown(|node| {
        node.descriptor[2] = 1;
        node.descriptor[8] = 1;
        node.children = vec![scale.node.clone()];
    });
    let mut file = Accept::new(
        FOLDER,
        "unknown_nodes",
        "a newer version of an encoding, a number in a descriptor, an id without descriptor and segments, and a known encoding above an unknown one: each required, and optional",
    );
    for (name, piece) in [("version", newer), ("dtype", number), ("empty", empty), ("child", above)] {
        file = file
            .tensor(Tensor::sum(&format!("{name}.required"), DType::F32, vec![piece.clone().into()]))
            .tensor(Tensor::sum(
                &format!("{name}.optional"),
                DType::F32,
                vec![base().into(), piece.optional()],
            ));
    }
    file.tensor(readable()).finish(files)?;

    Accept::new(FOLDER, "unknown_flags", "every bit that may be ignored is set, and two tensors, a node and a segment have one that must be understood")
        .tensor(readable())
        .tensor(Tensor::exact("tensor_flag", cycle(DType::U8, 1, 3, 3)).unreadable())
        .tensor(Tensor::sum("term_flag", DType::F32, vec![f32s(1, 1, &[5.0]).into()]).unreadable())
        .tensor(Tensor::sum("node_flag", DType::F32, vec![f32s(1, 1, &[6.0]).into()]).unreadable())
        .tensor(Tensor::sum("segment_flag", DType::F32, vec![f32s(1, 1, &[7.0]).into()]).unreadable())
        .tensor(Tensor::sum("compression", DType::F32, vec![f32s(1, 1, &[8.0]).into()]).unreadable())
        .attribute("a.txt", "text/plain", b"a")
        .reference("b.cmf", false, [1; 32], 300)
        .change(|bytes| set_flags(Image { bytes }))
        .finish(files)?;

    let optional = |piece: Piece| Piece { known: false, ..piece }.optional();
    Accept::new(
        FOLDER,
        "unknown_optional_flags",
        "optional terms with an unknown flag, node flag, segment flag and compression are left out",
    )
    .tensor(Tensor::sum("1.term_flag", DType::F32, vec![base().into(), optional(f32s(1, 1, &[5.0]))]))
    .tensor(Tensor::sum("2.node_flag", DType::F32, vec![base().into(), optional(f32s(1, 1, &[6.0]))]))
    .tensor(Tensor::sum("3.segment_flag", DType::F32, vec![base().into(), optional(f32s(1, 1, &[7.0]))]))
    .tensor(Tensor::sum("4.compression", DType::F32, vec![base().into(), optional(f32s(1, 1, &[8.0]))]))
    .change(|bytes| {
        // Node and segment 0 are the base; terms alternate.
        let image = Image { bytes }
            .u16(table::TERMS, 1, 6, 1 << 8 | 1)
            .u16(table::NODES, 2, 6, 1)
            .u16(table::SEGMENTS, 3, 30, 1)
            .set(table::SEGMENTS, 4, 28, &[2]);
        image.seal()
    })
    .finish(files)?;

    Accept::new(FOLDER, "newer_minor", "minor version 9 and a newer edition: a table that may be passed over, longer records, a node, a segment and a string that only they name")
        .tensor(readable())
        .attribute("a.txt", "text/plain", b"a")
        .change(newer_minor)
        .finish(files)
}

fn set_flags(image: Image) -> Vec<u8> {
    let ignored = 0xFFFF_0000u32;
    let image = image.put(56, &[0xFF; 8]);
    let tables: Vec<usize> = (1..=14).map(|kind| image.table_record(kind) + 4).collect();
    let mut image = tables.into_iter().fold(image, |image, at| image.put(at, &(ignored | 1).to_le_bytes()));
    // Tensors by name: compression, node_flag, readable, segment_flag, tensor_flag, term_flag; so
    // are their terms. Nodes and segments come in the same order, segments after the attribute's.
    image = image.u32(table::ATTRIBUTES, 0, 20, ignored).u32(table::ARCHIVES, 0, 44, ignored);
    for i in 0..6 {
        image = image
            .u32(table::TENSORS, i, 12, ignored | if i == 4 { 2 } else { 0 })
            .u16(table::TERMS, i, 6, 0xFE00 | if i == 5 { 1 } else { 0 })
            .u16(table::NODES, i, 6, 0xFF00 | if i == 1 { 1 } else { 0 })
            .u16(table::UNITS, i, 6, 0xFF00)
            .u32(table::SCHEDULE, i, 4, ignored);
    }
    for i in 0..7 {
        image = image.u16(table::SEGMENTS, i, 30, 0xFF00 | if i == 4 { 1 } else { 0 });
    }
    image.set(table::SEGMENTS, 1, 28, &[2]).seal()
}

fn newer_minor(bytes: Vec<u8>) -> Vec<u8> {
    let grown = [
        table::ATTRIBUTES,
        table::ARCHIVES,
        table::TENSORS,
        table::MATRICES,
        table::TRANSFORMS,
        table::TERMS,
        table::NODES,
        table::SEGMENTS,
        table::UNITS,
        table::SCHEDULE,
    ];
    let mut hidden_node = [0; 48];
    hidden_node[0] = 99;
    // A descriptor after the first, a ref after the first.
    hidden_node[24] = 8;
    hidden_node[28] = 8;
    hidden_node[32] = 1;
    hidden_node[36] = 1;
    let parts = Parts::of(&bytes)
        .push_segment(b"named by a table that this reader does not know")
        .push(table::NODES, &hidden_node)
        .push(table::REFS, &2u32.to_le_bytes())
        .push(table::DESCRIPTORS, &[7; 8])
        .push(table::STRINGS, b"zzz");
    let mut parts = grown.into_iter().fold(parts, |parts, kind| parts.grow(kind, 8));
    parts.tables.push(TableParts { kind: 77, flags: 0xFFFF_FFFE, record_bytes: 5, bytes: vec![0xA5; 15] });
    parts.build().put(14, &[9, 0]).put(16, &203_001u32.to_le_bytes()).seal()
}

//! Small valid archives, each with what some rules are about.

use crate::vectors::accept::container;
use crate::vectors::image::{Image, Parts};
use crate::vectors::naive::{Grouped, Map, Piece, cycle, f16s, f32s, grouped};
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, TransformEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, NodeData, Result, SegmentData, WriteOptions};
use std::sync::Arc;

/// An archive that can be changed by offset or taken apart.
#[derive(Clone, Debug)]
pub(super) struct Base(Vec<u8>);

impl Base {
    pub(super) fn image(&self) -> Image {
        Image { bytes: self.0.clone() }
    }

    pub(super) fn parts(&self) -> Parts {
        Parts::of(&self.0)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.clone()
    }
}

fn builder() -> ArchiveBuilder {
    ArchiveBuilder::new(WriteOptions { alignment_bytes: 64, chunk_group_bytes: 65_536 })
}

pub(super) fn tensor(name: &str, dtype: DType, shape: &[u64], matrices: Vec<MatrixEntry>) -> TensorEntry {
    TensorEntry { name: name.into(), dtype, shape: shape.to_vec(), content: Content::Matrices(matrices) }
}

/// A matrix of one term.
pub(super) fn matrix(piece: &Piece) -> MatrixEntry {
    MatrixEntry::from_node(NodeData::clone(&piece.node))
}

/// A tensor `w` of one node.
pub(super) fn one(piece: &Piece) -> Result<Base> {
    let shape = [piece.node.rows, piece.node.cols];
    let mut builder = builder();
    builder.tensor(tensor("w", DType::F32, &shape, vec![matrix(piece)]));
    Ok(Base(builder.to_vec()?))
}

/// A tensor `w` that is the sum of nodes of one size.
pub(super) fn sum(pieces: &[Piece]) -> Result<Base> {
    let nodes: Vec<NodeData> = pieces.iter().map(|p| NodeData::clone(&p.node)).collect();
    let (rows, cols) = nodes.first().map_or((1, 1), |n| (n.rows, n.cols));
    let mut builder = builder();
    builder.tensor(tensor("w", DType::F32, &[rows, cols], vec![MatrixEntry::from_nodes(rows, cols, nodes)]));
    Ok(Base(builder.to_vec()?))
}

/// Tensors `a` [2, 3] and `b` [2, 2, 1] of two matrices, a tied tensor `c`, an empty tensor `e`, and
/// attributes `1.txt` and `2.txt`.
///
/// Segments: the attributes', then those of `a`, `b`, `b`.
pub(super) fn plain() -> Result<Base> {
    let mut builder = builder();
    builder.attribute("1.txt", "text/plain", b"first".to_vec());
    builder.attribute("2.txt", "text/plain", b"second".to_vec());
    let a = || vec![matrix(&cycle(DType::U8, 2, 3, 1))];
    builder.tensor(tensor("a", DType::U8, &[2, 3], a()));
    let b = (0..2).map(|i| matrix(&cycle(DType::U8, 2, 1, 10 + i))).collect();
    builder.tensor(tensor("b", DType::U8, &[2, 2, 1], b));
    builder.tensor(tensor("c", DType::U8, &[3, 2], a()));
    builder.tensor(tensor("e", DType::U8, &[0], vec![]));
    Ok(Base(builder.to_vec()?))
}

/// A tensor `w` [4, 2] in two blocks of two rows and three levels.
///
/// Units and terms: level 0 rows 0 and 2, level 1 rows 0 and 2, level 2 rows 2.
pub(super) fn levels() -> Result<Base> {
    let unit = |level: u16, row_start: u64| UnitEntry {
        level,
        row_start,
        rows: 2,
        terms: vec![TermEntry {
            row_start,
            col_start: 0,
            optional: false,
            node: cycle(DType::I8, 2, 2, usize::from(level) * 20 + row_start as usize).node,
        }],
    };
    let units = vec![unit(0, 0), unit(0, 2), unit(1, 0), unit(1, 2), unit(2, 2)];
    let matrix = MatrixEntry { rows: 4, cols: 2, units, ..MatrixEntry::default() };
    let mut builder = builder();
    builder.tensor(tensor("w", DType::F32, &[4, 2], vec![matrix]));
    Ok(Base(builder.to_vec()?))
}

/// A tensor `here`, a tensor `shard` in `s.cmf`, and a delta `delta` to `b.cmf`.
///
/// Archives: `b.cmf` (base), `s.cmf` (shard), `z.cmf` (unused). Tensors: `delta`, `here`, `shard`.
pub(super) fn references() -> Result<Base> {
    let mut builder = builder();
    builder.shard("s.cmf", [1; 32], 1000).base("b.cmf", [2; 32], 2000).shard("z.cmf", [3; 32], 3000);
    let piece = f32s(1, 2, &[1.0, 2.0]);
    builder.tensor(tensor("here", DType::F32, &[1, 2], vec![matrix(&piece)]));
    let content = Content::Shard("s.cmf".into());
    builder.tensor(TensorEntry { content, ..tensor("shard", DType::F32, &[1, 2], vec![]) });
    let content = Content::Delta("b.cmf".into(), vec![matrix(&f32s(1, 2, &[3.0, 4.0]))]);
    builder.tensor(TensorEntry { content, ..tensor("delta", DType::F32, &[1, 2], vec![]) });
    Ok(Base(builder.to_vec()?))
}

/// A tensor `w` of a grouped node with a grouped scale, whose scale is dense.
///
/// Nodes: the dense one, the scale, the grouped one.
pub(super) fn nested() -> Result<Base> {
    let inner = f16s(1, 1, &[0x3800]);
    let scale = Grouped { bits: 8, scale_op: 1, scale: Some(&inner), group: (0, 0), ..Grouped::default() };
    let scale = grouped(&scale, 2, 1, &[3, 4]);
    let g =
        Grouped { bits: 3, map: Map::Integer(-4), scale_op: 1, scale: Some(&scale), ..Grouped::default() };
    one(&grouped(&g, 2, 3, &[0, 1, 2, 3, 4, 5]))
}

/// A tensor `w` [4, 4] with input transforms `permute` and `sign_hadamard` with stored signs, and
/// output transforms `scale` and `sign_hadamard` with a seed.
///
/// Segments: indices, signs, factors, values. Nodes: factors, values.
pub(super) fn transforms() -> Result<Base> {
    let indices: Vec<u8> = [2u32, 0, 3, 1].iter().flat_map(|i| i.to_le_bytes()).collect();
    let node: Arc<NodeData> = f32s(1, 4, &[1.0, 2.0, 0.5, 4.0]).node;
    let mut entry = matrix(&cycle(DType::I8, 4, 4, 0));
    entry.input_transforms = vec![
        TransformEntry::Permute(SegmentData::from(indices)),
        TransformEntry::StoredSignHadamard { block: 4, signs: SegmentData::from(vec![6, 0, 0, 0]) },
    ];
    entry.output_transforms =
        vec![TransformEntry::Scale(node), TransformEntry::SignHadamard { block: 2, seed: 7 }];
    let mut builder = builder();
    builder.tensor(tensor("w", DType::F32, &[4, 4], vec![entry]));
    Ok(Base(builder.to_vec()?))
}

/// A tensor `u` of a table, `v` of a table that is grouped, and `w` of 256 nodes above the first.
///
/// Nodes: the table of `u`, the scale and the node of `v`, then those of `w`, whose table is its
/// last ref.
pub(super) fn tree() -> Result<Base> {
    let table = f32s(1, 2, &[2.0, 3.0]);
    let scale = f32s(1, 1, &[0.5]);
    let g = Grouped { bits: 1, scale_op: 1, scale: Some(&scale), group: (0, 0), ..Grouped::default() };
    let other = grouped(&g, 1, 2, &[0, 1]);
    let mut builder = builder();
    builder.tensor(tensor("u", DType::F32, &[1, 2], vec![matrix(&table)]));
    builder.tensor(tensor("v", DType::F32, &[1, 2], vec![matrix(&other)]));
    builder.tensor(tensor("w", DType::F32, &[1, 1], vec![matrix(&container::tree(&table))]));
    Ok(Base(builder.to_vec()?))
}

/// A tensor `w` [1, 4] with 16 input transforms.
pub(super) fn sixteen_transforms() -> Result<Base> {
    let mut entry = matrix(&cycle(DType::I8, 1, 4, 0));
    entry.input_transforms = (0..16).map(|seed| TransformEntry::SignHadamard { block: 2, seed }).collect();
    let mut builder = builder();
    builder.tensor(tensor("w", DType::F32, &[1, 4], vec![entry]));
    Ok(Base(builder.to_vec()?))
}

/// Attributes of 1025 and 1026 bytes in chunk groups of 1024.
///
/// Segments: the four chaining values, `long.bin`, `longer.bin`.
pub(super) fn chunks() -> Result<Base> {
    let bytes: Vec<u8> = (0..1026).map(|i| (i % 251) as u8).collect();
    let mut builder = ArchiveBuilder::new(WriteOptions { alignment_bytes: 64, chunk_group_bytes: 1024 });
    builder.attribute("long.bin", "application/octet-stream", bytes[..1025].to_vec());
    builder.attribute("longer.bin", "application/octet-stream", bytes);
    Ok(Base(builder.to_vec()?))
}

//! Small real archives that hold every encoding, level, sharing and record: what the mutation test
//! damages and what the fuzz seeds are made of.

use cmf_format::encoding::{
    codebook, dense, grouped, lossless, low_rank, nested, sign_low_rank, sparse, trellis,
};
use cmf_format::write::{Content, MatrixEntry, StepEntry, TensorEntry, TermEntry, TransformEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, NodeData, Result, SegmentData, WriteOptions};
use std::sync::Arc;

/// Alignment and chunk groups that keep an archive small and still give it both.
pub const SMALL: WriteOptions = WriteOptions { alignment_bytes: 64, chunk_group_bytes: 1024 };

/// Values that differ from place to place, with zeros of both signs among them.
pub fn pattern(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 + 11) % 251) as f32 * 0.125 - 15.0)
        .map(|v| if v == 1.0 { -0.0 } else { v })
        .collect()
}

/// A dense node of [`pattern`] values.
pub fn dense_node(dtype: DType, rows: usize, cols: usize) -> Result<NodeData> {
    dense::pack_values(dtype, rows as u64, cols as u64, &pattern(rows * cols))
}

/// A grouped node of 8-bit integers under one scale, as child of others.
pub fn grouped_node(rows: usize, cols: usize) -> Result<NodeData> {
    let descriptor = grouped::Descriptor {
        bits: 8,
        code_map: grouped::CodeMap::Integer { offset: -128 },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: 0,
    };
    let children = grouped::Children { scale: Some(dense_node(DType::F16, rows, 1)?), ..Default::default() };
    grouped::pack(&descriptor, rows as u64, cols as u64, &codes(8, rows * cols), children)
}

/// Codes of `bits` bits that differ from place to place.
pub fn codes(bits: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 73 + 5) % (1 << bits)) as u8).collect()
}

/// A tensor of matrices.
pub fn tensor(name: &str, dtype: DType, shape: &[u64], matrices: Vec<MatrixEntry>) -> TensorEntry {
    TensorEntry { name: name.into(), dtype, shape: shape.to_vec(), content: Content::Matrices(matrices) }
}

/// A tensor of one node.
pub fn node_tensor(name: &str, node: NodeData) -> TensorEntry {
    let shape = [node.rows, node.cols];
    tensor(name, DType::F32, &shape, vec![MatrixEntry::from_node(node)])
}

fn term(row_start: u64, col_start: u64, node: &Arc<NodeData>) -> TermEntry {
    TermEntry { row_start, col_start, optional: false, node: node.clone() }
}

/// Every sample: its name and its bytes.
///
/// # Errors
/// When a sample does not make a valid archive.
pub fn all() -> Result<Vec<(&'static str, Vec<u8>)>> {
    [
        ("empty", ArchiveBuilder::new(SMALL)),
        ("dense", dense_types()?),
        ("grouped", grouped_maps()?),
        ("sparse", sparse_layouts()?),
        ("low_rank", low_rank_factors()?),
        ("codebook", codebooks()?),
        ("lossless", lossless_types()?),
        ("trellis", trellis_paths()?),
        ("sign_low_rank", sign_planes()?),
        ("nested", nested_levels()?),
        ("levels", levels()?),
        ("records", records()?),
        ("transforms", transforms()?),
        ("chunks", chunks()?),
    ]
    .into_iter()
    .map(|(name, builder)| Ok((name, builder.to_vec()?)))
    .collect()
}

/// A tensor of every element type.
///
/// # Errors
/// None for a correct writer; so for all samples.
pub fn dense_types() -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(SMALL);
    for dtype in DType::ALL {
        let bytes: Vec<u8> = (0..6 * dtype.bytes()).map(|i| (i * 37 % 251) as u8).collect();
        let node = dense::pack(*dtype, 2, 3, bytes)?;
        builder.tensor(tensor(dtype.name(), *dtype, &[2, 3], vec![MatrixEntry::from_node(node)]));
    }
    Ok(builder)
}

/// Code maps, scale and zero operations, tails and nested scales of `grouped`.
///
/// # Errors
/// As [`dense_types`].
pub fn grouped_maps() -> Result<ArchiveBuilder> {
    use grouped::{Children, CodeMap, Descriptor, Minifloat, ScaleOp, ZeroOp, pack};
    let mut builder = ArchiveBuilder::new(SMALL);
    let base = Descriptor {
        bits: 4,
        code_map: CodeMap::Integer { offset: -8 },
        scale_op: ScaleOp::Multiply,
        zero_op: ZeroOp::None,
        group_rows: 1,
        group_cols: 4,
    };
    let codes_of = |d: &Descriptor| codes(d.bits, 5 * 10);
    let scale = || dense_node(DType::F16, 5, 3);
    builder.tensor(node_tensor(
        "int4",
        pack(&base, 5, 10, &codes_of(&base), Children { scale: Some(scale()?), ..Default::default() })?,
    ));
    let nested = Descriptor { bits: 3, zero_op: ZeroOp::Subtract, group_rows: 0, group_cols: 1, ..base };
    let children =
        Children { scale: Some(grouped_node(1, 10)?), zero: Some(grouped_node(1, 10)?), table: None };
    builder.tensor(node_tensor("nested", pack(&nested, 5, 10, &codes_of(&nested), children)?));
    let float = Descriptor {
        code_map: CodeMap::Minifloat(Minifloat::E2M1),
        scale_op: ScaleOp::Divide,
        zero_op: ZeroOp::Add,
        group_rows: 2,
        group_cols: 0,
        ..base
    };
    let children = Children {
        scale: Some(dense::pack_values(DType::F8E8M0, 3, 1, &[0.5, 2.0, 1.0])?),
        zero: Some(dense_node(DType::F32, 1, 1)?),
        table: None,
    };
    builder.tensor(node_tensor("minifloat", pack(&float, 5, 10, &codes_of(&float), children)?));
    let table = Descriptor { bits: 2, code_map: CodeMap::Table, scale_op: ScaleOp::None, ..base };
    let children = Children { table: Some(dense_node(DType::F32, 5, 4)?), ..Default::default() };
    builder.tensor(node_tensor("table", pack(&table, 5, 10, &codes_of(&table), children)?));
    Ok(builder)
}

/// Layouts and operations of `sparse`, blocks that pass the edges, a compressed segment.
///
/// # Errors
/// As [`dense_types`].
pub fn sparse_layouts() -> Result<ArchiveBuilder> {
    use sparse::{Block, Op, Positions};
    let mut builder = ArchiveBuilder::new(SMALL);
    let (rows, cols) = (6, 11);
    let listed = |row: usize, col: usize| (row * 5 + col * 3).is_multiple_of(7);
    let all = pattern(rows * cols);
    for (name, block) in [("one", Block::ONE), ("block", Block { rows: 2, cols: 3 })] {
        let positions = Positions::from_mask(rows, cols, block, listed)?;
        let values = positions.gather(cols, &all);
        let width = block.elements();
        let child = Arc::new(dense::pack_values(DType::F16, values.len() as u64 / width, width, &values)?);
        let csr = sparse::pack_csr(Op::Add, rows as u64, cols as u64, &positions, child.clone())?;
        let bitmap = sparse::pack_bitmap(Op::Replace, rows as u64, cols as u64, &positions, child)?;
        let base = dense_node(DType::F32, rows, cols)?;
        builder.tensor(tensor(
            &format!("csr.{name}"),
            DType::F32,
            &[6, 11],
            vec![MatrixEntry::from_nodes(6, 11, vec![base.clone(), csr])],
        ));
        builder.tensor(tensor(
            &format!("bitmap.{name}"),
            DType::F32,
            &[6, 11],
            vec![MatrixEntry::from_nodes(6, 11, vec![base, bitmap])],
        ));
    }
    let positions: Vec<u16> = [1, 3, 0, 2, 2, 3].repeat(rows);
    let kept = dense_node(DType::F16, rows, 6)?;
    builder.tensor(node_tensor("n_m", sparse::pack_n_m(Op::Add, 6, 11, (2, 4), &positions, kept)?));
    // 300 rows without an entry: offsets that zstd shrinks.
    let positions = Positions::from_mask(300, 4, Block::ONE, |row, col| (row, col) == (200, 2))?;
    let mut packed = sparse::pack_csr(Op::Add, 300, 4, &positions, dense_node(DType::F32, 1, 1)?)?;
    if let Some(offsets) = packed.segments.first_mut() {
        let bytes = offsets.bytes().unwrap_or(&[]).to_vec();
        *offsets = SegmentData::compressed(bytes, 3)?;
    }
    builder.tensor(node_tensor("zstd", packed));
    Ok(builder)
}

/// Dense, grouped and sparse factors of `low_rank`.
///
/// # Errors
/// As [`dense_types`].
pub fn low_rank_factors() -> Result<ArchiveBuilder> {
    use sparse::{Block, Op, Positions};
    let mut builder = ArchiveBuilder::new(SMALL);
    builder.tensor(node_tensor(
        "dense",
        low_rank::pack(dense_node(DType::F16, 2, 5)?, dense_node(DType::BF16, 2, 7)?)?,
    ));
    builder.tensor(node_tensor("grouped", low_rank::pack(grouped_node(3, 5)?, grouped_node(3, 7)?)?));
    let positions = Positions::from_mask(2, 7, Block::ONE, |row, col| row == col)?;
    let b = sparse::pack_csr(Op::Add, 2, 7, &positions, dense_node(DType::F32, 2, 1)?)?;
    builder.tensor(node_tensor("sparse", low_rank::pack(dense_node(DType::F32, 2, 5)?, b)?));
    Ok(builder)
}

/// Additive codebooks, vectors that pass the edges, scales, and codebooks that two nodes share.
///
/// # Errors
/// As [`dense_types`].
pub fn codebooks() -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(SMALL);
    let shared = Arc::new(dense_node(DType::F16, 8, 6)?);
    let descriptor = codebook::Descriptor {
        codebooks: 2,
        bits: 2,
        has_scale: true,
        vector_rows: 2,
        vector_cols: 3,
        scale_cols: 6,
    };
    let codes: Vec<u16> = codes(2, 3 * 4 * 2).into_iter().map(u16::from).collect();
    let scale = Arc::new(dense_node(DType::F16, 3, 2)?);
    let scaled = codebook::pack(&descriptor, 5, 11, &codes, shared.clone(), Some(scale))?;
    builder.tensor(node_tensor("scaled", scaled));
    let plain = codebook::Descriptor { has_scale: false, scale_cols: 0, ..descriptor };
    builder.tensor(node_tensor("plain", codebook::pack(&plain, 6, 12, &codes, shared, None)?));
    Ok(builder)
}

/// Paths along both axes, of the whole axis and shorter, computed and tabled.
///
/// # Errors
/// As [`dense_types`].
pub fn trellis_paths() -> Result<ArchiveBuilder> {
    use trellis::{Axis, Code, Descriptor, pack};
    let mut builder = ArchiveBuilder::new(SMALL);
    let base = Descriptor {
        state_bits: 12,
        step_bits: 2,
        code: Code::BYTE_SUM,
        axis: Axis::Down,
        path_elems: 0,
        scale_rows: 1,
        scale_cols: 0,
    };
    let scale = dense_node(DType::F16, 19, 1)?;
    builder.tensor(node_tensor("down", pack(&base, 19, 5, &codes(2, 95), scale, None)?));
    let along = Descriptor { axis: Axis::Along, step_bits: 3, path_elems: 11, ..base };
    let scale = dense_node(DType::F16, 5, 1)?;
    builder.tensor(node_tensor("along", pack(&along, 5, 19, &codes(3, 95), scale, None)?));
    let tabled = Descriptor { state_bits: 6, code: Code::Table, path_elems: 4, scale_rows: 2, ..base };
    let (scale, table) = (grouped_node(4, 1)?, Arc::new(dense_node(DType::F16, 1, 64)?));
    builder.tensor(node_tensor("table", pack(&tabled, 7, 3, &codes(2, 21), scale, Some(table))?));
    Ok(builder)
}

/// Planes of all widths, compressed and raw, in one frame and in several.
///
/// # Errors
/// As [`dense_types`].
pub fn lossless_types() -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(SMALL);
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16, DType::I8] {
        let bytes: Vec<u8> = (0..120 * dtype.bytes()).map(|i| (i * i % 7) as u8).collect();
        let node = lossless::pack(dtype, 4, 30, &bytes)?;
        builder.tensor(tensor(dtype.name(), dtype, &[4, 30], vec![MatrixEntry::from_node(node)]));
    }
    // As many frames as rows: the frames of single rows, end to end.
    let (mut ends, mut chunks) = (Vec::new(), Vec::<u8>::new());
    for row in 0..3u8 {
        let part = lossless::pack(DType::BF16, 1, 40, &[0x3F, 0x80 | row].repeat(40))?;
        let segment = |i: usize| part.segments.get(i).and_then(SegmentData::bytes).unwrap_or(&[]);
        let base = chunks.len() as u64;
        ends.extend(
            segment(0).as_chunks::<8>().0.iter().flat_map(|e| (base + u64::from_le_bytes(*e)).to_le_bytes()),
        );
        chunks.extend_from_slice(segment(1));
    }
    let descriptor = [&[4, 0, 0, 0, 1, 0, 0, 0], (chunks.len() as u64).to_le_bytes().as_slice()].concat();
    let segments = vec![ends.into(), chunks.into()];
    let none = Vec::<NodeData>::new();
    let node = NodeData::new(lossless::ID, lossless::VERSION, 3, 40, descriptor, segments, none)?;
    builder.tensor(tensor("frames", DType::BF16, &[3, 40], vec![MatrixEntry::from_node(node)]));
    Ok(builder)
}

/// Signs on magnitudes of dense and grouped factors, and a second level of them.
///
/// # Errors
/// As [`dense_types`].
pub fn sign_planes() -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(SMALL);
    let signs = |first: usize| (0..5 * 33).map(|i| (first + i * i) % 7 < 3).collect::<Vec<bool>>();
    let dense =
        sign_low_rank::pack(&signs(0), dense_node(DType::F16, 2, 5)?, dense_node(DType::F16, 2, 33)?)?;
    let grouped = sign_low_rank::pack(&signs(3), grouped_node(3, 5)?, grouped_node(3, 33)?)?;
    let unit = |level: u16, node: NodeData| UnitEntry {
        level,
        row_start: 0,
        rows: 5,
        terms: vec![term(0, 0, &Arc::new(node))],
    };
    let units = vec![unit(0, dense), unit(1, grouped)];
    let matrix = MatrixEntry { rows: 5, cols: 33, units, ..MatrixEntry::default() };
    builder.tensor(tensor("planes", DType::F32, &[5, 33], vec![matrix]));
    Ok(builder)
}

/// Levels of `nested` with tables and integers that share their planes, and one rounded half up.
///
/// # Errors
/// As [`dense_types`].
pub fn nested_levels() -> Result<ArchiveBuilder> {
    use nested::{Level, LevelData, Map, Rounding};
    let mut builder = ArchiveBuilder::new(SMALL);
    let level = |bits: u8, map: Map, group_cols: u32, children: Vec<NodeData>| LevelData {
        level: Level { bits, map, rounding: Rounding::Floor, group_cols },
        children: children.into_iter().map(Arc::new).collect(),
    };
    let levels = [
        level(2, Map::Table, 0, vec![dense_node(DType::F16, 5, 4)?]),
        level(3, Map::Table, 0, vec![dense_node(DType::F16, 5, 8)?]),
        level(5, Map::Integer, 16, vec![grouped_node(5, 3)?, dense_node(DType::F16, 5, 3)?]),
    ];
    let planes = nested::planes(&codes(5, 5 * 33), 33, 5)?;
    let unit = |(node, level): (NodeData, u16)| UnitEntry {
        level,
        row_start: 0,
        rows: 5,
        terms: vec![term(0, 0, &Arc::new(node))],
    };
    let units = nested::pack_levels(5, 33, &planes, &levels)?.into_iter().zip(0..).map(unit).collect();
    let matrix = MatrixEntry { rows: 5, cols: 33, units, ..MatrixEntry::default() };
    builder.tensor(tensor("levels", DType::F32, &[5, 33], vec![matrix]));
    let mut rounded = level(2, Map::Table, 0, vec![dense_node(DType::F16, 1, 4)?]);
    rounded.level.rounding = Rounding::HalfUp;
    builder.tensor(node_tensor("half_up", nested::pack(5, 33, &planes, &rounded, None)?));
    Ok(builder)
}

/// Two levels in two row blocks with terms side by side, an optional term of an unknown encoding,
/// nodes that share a child, tied tensors, experts, and a schedule with losses.
///
/// # Errors
/// As [`dense_types`].
pub fn levels() -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(SMALL);
    let left = Arc::new(grouped_node(4, 5)?);
    let right = Arc::new(dense_node(DType::BF16, 4, 3)?);
    let residual = Arc::new(dense_node(DType::F16, 4, 8)?);
    let unknown = Arc::new(NodeData {
        encoding: 0x00C0_FFEE,
        version: 7,
        rows: 4,
        cols: 8,
        descriptor: vec![1, 2, 3, 4, 5, 6, 7, 8],
        segments: vec![vec![9; 5].into()],
        children: vec![right.clone(), right.clone()],
    });
    let block = |row: u64| [term(row, 0, &left), term(row, 5, &right)].to_vec();
    let optional = |row: u64| TermEntry { optional: true, ..term(row, 0, &unknown) };
    let units = vec![
        UnitEntry { level: 0, row_start: 0, rows: 4, terms: block(0) },
        UnitEntry { level: 0, row_start: 4, rows: 4, terms: block(4) },
        UnitEntry { level: 1, row_start: 0, rows: 4, terms: vec![term(0, 0, &residual)] },
        UnitEntry { level: 1, row_start: 4, rows: 4, terms: vec![term(4, 0, &residual), optional(4)] },
    ];
    let matrix = MatrixEntry { rows: 8, cols: 8, units, ..MatrixEntry::default() };
    for name in ["tied.a", "tied.b"] {
        builder.tensor(tensor(name, DType::F32, &[8, 8], vec![matrix.clone()]));
    }
    let expert = |k: usize| dense::pack_values(DType::F32, 2, 3, &pattern(6 * k + 6)[6 * k..]);
    let experts = (0..3).map(|k| expert(k).map(MatrixEntry::from_node)).collect::<Result<Vec<_>>>()?;
    builder.tensor(tensor("experts", DType::F32, &[3, 2, 3], experts));
    let steps = [
        ("experts", 0, 0),
        ("tied.a", 0, 0),
        ("experts", 2, 0),
        ("tied.a", 0, 2),
        ("tied.a", 0, 1),
        ("tied.a", 0, 3),
        ("experts", 1, 0),
    ];
    builder.schedule(
        (0u8..)
            .zip(steps)
            .map(|(i, (tensor, matrix, unit))| StepEntry {
                unit: (tensor.into(), matrix, unit),
                expected_loss: (i > 2).then_some(1.0 / f64::from(i)),
            })
            .collect(),
    );
    Ok(builder)
}

/// Attributes, shards, deltas, and tensors without elements or extents.
///
/// # Errors
/// As [`dense_types`].
pub fn records() -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(SMALL);
    builder.attribute("config.json", "application/json", b"{\"layers\":2}".to_vec());
    builder.attribute("tokenizer.json", "application/json", SegmentData::compressed(vec![b' '; 400], 3)?);
    builder.shard("part-2.cmf", [2; 32], 1 << 20);
    builder.base("base.cmf", [1; 32], 1 << 30);
    let elsewhere = |name: &str, shape: &[u64], content| TensorEntry {
        name: name.into(),
        dtype: DType::BF16,
        shape: shape.to_vec(),
        content,
    };
    builder.tensor(elsewhere("far", &[1 << 20, 1 << 12], Content::Shard("part-2.cmf".into())));
    let delta = MatrixEntry::from_node(dense_node(DType::F16, 2, 2)?);
    builder.tensor(elsewhere("fine", &[2, 2], Content::Delta("base.cmf".into(), vec![delta])));
    builder.tensor(tensor("none", DType::I64, &[0, 7], vec![]));
    let scalar = MatrixEntry::from_node(dense_node(DType::F32, 1, 1)?);
    builder.tensor(tensor("scalar", DType::F32, &[], vec![scalar]));
    Ok(builder)
}

/// Every kind of transform on both sides of a matrix.
///
/// # Errors
/// As [`dense_types`].
pub fn transforms() -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(SMALL);
    let permutation = |size: u32| -> SegmentData {
        (0..size).map(|i| (i * 5 + 1) % size).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into()
    };
    let matrix = MatrixEntry {
        input_transforms: vec![
            TransformEntry::Permute(permutation(12)),
            TransformEntry::SignHadamard { block: 4, seed: 0x1234_5678_9ABC_DEF0 },
            TransformEntry::Scale(Arc::new(dense_node(DType::F32, 1, 12)?)),
        ],
        output_transforms: vec![
            TransformEntry::StoredSignHadamard { block: 2, signs: vec![0b0001_0110, 0, 0, 0].into() },
            TransformEntry::Permute(permutation(6)),
        ],
        ..MatrixEntry::from_node(dense_node(DType::F16, 6, 12)?)
    };
    builder.tensor(tensor("rotated", DType::F32, &[6, 12], vec![matrix]));
    Ok(builder)
}

/// Segments of several chunk groups.
///
/// # Errors
/// As [`dense_types`].
pub fn chunks() -> Result<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(SMALL);
    builder.tensor(node_tensor("three", dense_node(DType::F16, 33, 40)?));
    builder.tensor(node_tensor("two", dense_node(DType::F16, 1, 513)?));
    builder.tensor(node_tensor("one", dense_node(DType::F16, 1, 512)?));
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cmf_format::{Archive, Limits};

    #[test]
    fn samples_verify() -> Result<()> {
        for (name, bytes) in all()? {
            let archive = Archive::parse(&bytes, &Limits::default())?;
            archive.verify().map_err(|e| e.within(name))?;
        }
        Ok(())
    }
}

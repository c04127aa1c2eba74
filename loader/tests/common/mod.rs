//! An archive with every feature that the loader meets, and helpers to put it in a folder.
#![allow(dead_code, reason = "each test file uses its part of the helpers")]

use cmf_format::encoding::{codebook, dense, grouped, lossless, low_rank, sparse};
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, TransformEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, NodeData, SegmentData, WriteOptions};
use cmf_loader::{Backend, Model, OpenOptions};
use std::path::{Path, PathBuf};

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;
pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

pub(crate) const BACKENDS: [Backend; 3] = [Backend::Mmap, Backend::Pread, Backend::Memory];
/// Those that a file can change under.
pub(crate) const FILES: [Backend; 2] = [Backend::Mmap, Backend::Pread];

pub(crate) fn options(backend: Backend) -> OpenOptions {
    OpenOptions { backend, ..OpenOptions::default() }
}

pub(crate) fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 251) as f32 / 4.0 - 31.0).collect()
}

pub(crate) fn small_groups() -> WriteOptions {
    WriteOptions { chunk_group_bytes: 1024, ..WriteOptions::default() }
}

pub(crate) fn entry(name: &str, dtype: DType, shape: &[u64], matrices: Vec<MatrixEntry>) -> TensorEntry {
    TensorEntry { name: name.into(), dtype, shape: shape.to_vec(), content: Content::Matrices(matrices) }
}

pub(crate) fn dense_entry(name: &str, rows: u64, cols: u64) -> Fallible<TensorEntry> {
    let node = dense::pack_values(DType::F32, rows, cols, &numbers((rows * cols) as usize))?;
    Ok(entry(name, DType::F32, &[rows, cols], vec![MatrixEntry::from_node(node)]))
}

/// Integer codes of `bits` bits in groups of 1 by `group` with the given scales.
pub(crate) fn grouped_node(
    rows: u64,
    cols: u64,
    bits: u8,
    group: u32,
    scale: NodeData,
) -> Fallible<NodeData> {
    let descriptor = grouped::Descriptor {
        bits,
        code_map: grouped::CodeMap::Integer { offset: -(1 << (bits - 1)) },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: group,
    };
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % (1 << bits)) as u8).collect();
    let children = grouped::Children { scale: Some(scale), ..Default::default() };
    Ok(grouped::pack(&descriptor, rows, cols, &codes, children)?)
}

/// 3-bit codes whose scales are 4-bit codes with f16 scales, as in SpQR.
pub(crate) fn grouped_twice(rows: u64, cols: u64) -> Fallible<NodeData> {
    let groups = cols.div_ceil(16);
    let scales = dense::pack_values(DType::F16, rows, 1, &numbers(rows as usize))?;
    let scale = grouped_node(rows, groups, 4, 0, scales)?;
    grouped_node(rows, cols, 3, 16, scale)
}

pub(crate) fn outliers(rows: u64, cols: u64) -> Fallible<NodeData> {
    let row_offsets = (0..=rows as u32).collect();
    let columns = (0..rows as u32).map(|row| row * 5 % cols as u32).collect();
    let positions = sparse::Positions { block: sparse::Block::ONE, row_offsets, columns };
    let values = dense::pack_values(DType::F16, rows, 1, &vec![100.0; rows as usize])?;
    Ok(sparse::pack_csr(sparse::Op::Add, rows, cols, &positions, values)?)
}

pub(crate) fn low_rank_node(rows: u64, cols: u64) -> Fallible<NodeData> {
    let a_t = dense::pack_values(DType::F16, 2, rows, &numbers(2 * rows as usize))?;
    let b = dense::pack_values(DType::BF16, 2, cols, &numbers(2 * cols as usize))?;
    Ok(low_rank::pack(a_t, b)?)
}

pub(crate) fn codebook_node(rows: u64, cols: u64) -> Fallible<NodeData> {
    let descriptor = codebook::Descriptor {
        codebooks: 1,
        bits: 4,
        has_scale: false,
        vector_rows: 1,
        vector_cols: 4,
        scale_cols: 0,
    };
    let entries = dense::pack_values(DType::F16, 16, 4, &numbers(64))?;
    let codes: Vec<u16> = (0..rows * cols.div_ceil(4)).map(|i| (i * 5 % 16) as u16).collect();
    Ok(codebook::pack(&descriptor, rows, cols, &codes, entries, None)?)
}

pub(crate) fn term(row_start: u64, node: NodeData) -> TermEntry {
    TermEntry { row_start, col_start: 0, optional: false, node: node.into() }
}

/// Two levels of two row blocks.
pub(crate) fn levels_matrix() -> Fallible<MatrixEntry> {
    let unit = |level, row_start, nodes: Vec<NodeData>| UnitEntry {
        level,
        row_start,
        rows: 20,
        terms: nodes.into_iter().map(|node| term(row_start, node)).collect(),
    };
    let residual = dense::pack_values(DType::F16, 20, 50, &vec![0.25; 1000])?;
    Ok(MatrixEntry {
        rows: 40,
        cols: 50,
        units: vec![
            unit(0, 0, vec![grouped_twice(20, 50)?, outliers(20, 50)?]),
            unit(0, 20, vec![grouped_twice(20, 50)?]),
            unit(1, 0, vec![residual.clone()]),
            unit(1, 20, vec![residual, low_rank_node(20, 50)?]),
        ],
        ..MatrixEntry::default()
    })
}

/// Dense rows in `blocks` terms of `rows` rows each.
pub(crate) fn dense_blocks(blocks: u64, rows: u64, cols: u64) -> Fallible<MatrixEntry> {
    let count = (rows * cols) as usize;
    let all = numbers(count * blocks as usize);
    let units = all.chunks(count).zip(0..).map(|(values, i)| {
        let node = dense::pack_values(DType::F32, rows, cols, values)?;
        Ok(UnitEntry { level: 0, row_start: i * rows, rows, terms: vec![term(i * rows, node)] })
    });
    let units = units.collect::<Fallible<_>>()?;
    Ok(MatrixEntry { rows: rows * blocks, cols, units, ..MatrixEntry::default() })
}

/// Every encoding and one that is unknown, sums, levels, transforms, row blocks with and without
/// gaps, experts, tied and empty tensors, raw and compressed attributes.
pub(crate) fn sample() -> Fallible<ArchiveBuilder> {
    let mut builder = ArchiveBuilder::new(small_groups());
    builder.attribute("config.json", "application/json", br#"{"a": 1}"#.to_vec());
    builder.attribute("tokenizer.json", "application/json", SegmentData::compressed(vec![b'x'; 9000], 3)?);
    builder.tensor(dense_entry("tied.a", 40, 50)?).tensor(dense_entry("tied.b", 40, 50)?);
    builder.tensor(entry("empty", DType::BF16, &[0, 7], vec![]));
    builder.tensor(entry(
        "scalar",
        DType::I64,
        &[],
        vec![MatrixEntry::from_node(dense::pack(DType::I64, 1, 1, i64::MAX.to_le_bytes().to_vec())?)],
    ));
    builder.tensor(entry("levels", DType::BF16, &[40, 50], vec![levels_matrix()?]));
    // 16 rows of 16 f32 are a multiple of the alignment; 5 rows of 33 are not.
    builder.tensor(entry("blocks.adjacent", DType::F32, &[48, 16], vec![dense_blocks(3, 16, 16)?]));
    builder.tensor(entry("blocks.apart", DType::F32, &[15, 33], vec![dense_blocks(3, 5, 33)?]));
    let experts = [grouped_twice(10, 20)?, codebook_node(10, 20)?, low_rank_node(10, 20)?];
    let experts = experts.into_iter().map(MatrixEntry::from_node).collect();
    builder.tensor(entry("experts", DType::F16, &[3, 10, 20], experts));
    let exact: Vec<u8> = numbers(3000).iter().flat_map(|v| half_of(*v)).collect();
    let node = lossless::pack(DType::BF16, 60, 50, &exact)?;
    builder.tensor(entry("lossless", DType::BF16, &[60, 50], vec![MatrixEntry::from_node(node)]));
    builder.tensor(entry("rotated", DType::F32, &[40, 50], vec![rotated_matrix()?]));
    let mut partly = levels_matrix()?;
    partly.units[0].terms.push(TermEntry { optional: true, ..term(0, unknown_node()) });
    builder.tensor(entry("partly.known", DType::F32, &[40, 50], vec![partly]));
    Ok(builder)
}

/// Transforms of every kind on both sides.
pub(crate) fn rotated_matrix() -> Fallible<MatrixEntry> {
    let scale = |size: u64| -> Fallible<TransformEntry> {
        let factors: Vec<f32> = (0..size).map(|i| 0.5 + i as f32 / 64.0).collect();
        Ok(TransformEntry::Scale(dense::pack_values(DType::F32, 1, size, &factors)?.into()))
    };
    let reversed = |size: u32| {
        TransformEntry::Permute((0..size).rev().flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into())
    };
    let matrix = MatrixEntry::from_node(grouped_twice(40, 50)?);
    Ok(MatrixEntry {
        input_transforms: vec![reversed(50), TransformEntry::SignHadamard { block: 2, seed: 9 }, scale(50)?],
        output_transforms: vec![scale(40)?, TransformEntry::SignHadamard { block: 8, seed: 7 }, reversed(40)],
        ..matrix
    })
}

/// A node of an encoding that no reader knows.
pub(crate) fn unknown_node() -> NodeData {
    NodeData {
        encoding: 60_000,
        version: 1,
        rows: 20,
        cols: 50,
        descriptor: vec![0; 8],
        segments: vec![b"from the future".to_vec().into()],
        children: vec![],
    }
}

/// The high half of `value`: bf16 for values that fit it.
pub(crate) fn half_of(value: f32) -> [u8; 2] {
    let [_, _, low, high] = value.to_le_bytes();
    [low, high]
}

pub(crate) fn write(dir: &Path, name: &str, builder: &ArchiveBuilder) -> Fallible<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, builder.to_vec()?)?;
    Ok(path)
}

/// The sample in a folder of its own.
pub(crate) fn sample_file() -> Fallible<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "sample.cmf", &sample()?)?;
    Ok((dir, path))
}

pub(crate) fn decoded(model: &Model, name: &str, levels: cmf_loader::Levels) -> Fallible<Vec<f32>> {
    let tensor = model.tensor(name).ok_or("no such tensor")?;
    let mut out = vec![0.0; tensor.elements() as usize];
    tensor.decode(levels, &mut out)?;
    Ok(out)
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

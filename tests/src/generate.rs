//! Valid nodes and archives out of arbitrary bytes.

use crate::samples::SMALL;
use arbitrary::{Result, Unstructured};
use cmf_format::encoding::{
    codebook, dense, grouped, lossless, low_rank, nested, sign_low_rank, sparse, trellis,
};
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, TransformEntry, UnitEntry};
use cmf_format::{DType, NodeData, SegmentData, WriteOptions};
use std::sync::Arc;

/// Bytes of the input while there are any, then a sequence that follows from the last of them.
pub fn fill(u: &mut Unstructured<'_>, length: usize) -> Result<Vec<u8>> {
    let mut bytes = u.bytes(length.min(u.len()))?.to_vec();
    let mut state = bytes.iter().fold(0x9E37_79B9u32, |n, b| n.rotate_left(5) ^ u32::from(*b));
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.push((state >> 8) as u8);
    }
    Ok(bytes)
}

fn fits<T>(result: cmf_format::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("a generated node is refused: {error}"),
    }
}

/// A node of `rows` by `cols` with up to `depth` more nodes below it.
///
/// # Errors
/// When the input is not enough.
pub fn node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    let choices = if depth == 0 { 2 } else { 11 };
    match u.int_in_range(0..=choices - 1)? {
        0 => dense_node(u, rows, cols),
        1 => lossless_node(u, rows, cols),
        2 | 3 => grouped_node(u, rows, cols, depth - 1),
        4 => positions_node(u, rows, cols, depth - 1),
        5 => n_m_node(u, rows, cols, depth - 1),
        6 => low_rank_node(u, rows, cols, depth - 1),
        7 => codebook_node(u, rows, cols, depth - 1),
        8 => sign_low_rank_node(u, rows, cols, depth - 1),
        9 => nested_node(u, rows, cols, depth - 1),
        _ => trellis_node(u, rows, cols, depth - 1),
    }
}

/// An element type that has values as f32.
fn dtype(u: &mut Unstructured<'_>) -> Result<DType> {
    let dtype = *u.choose(DType::ALL)?;
    Ok(if dtype == DType::C64 { DType::F32 } else { dtype })
}

fn dense_node(u: &mut Unstructured<'_>, rows: u64, cols: u64) -> Result<NodeData> {
    let dtype = dtype(u)?;
    let bytes = fill(u, (rows * cols) as usize * dtype.bytes())?;
    Ok(fits(dense::pack(dtype, rows, cols, bytes)))
}

fn lossless_node(u: &mut Unstructured<'_>, rows: u64, cols: u64) -> Result<NodeData> {
    let dtype = dtype(u)?;
    // Few different bytes compress; all of them do not.
    let mask = *u.choose(&[0x01, 0x83, 0xFF])?;
    let mut bytes = fill(u, (rows * cols) as usize * dtype.bytes())?;
    bytes.iter_mut().for_each(|b| *b &= mask);
    let rows_per_frame = u.int_in_range(1..=rows.max(1))?;
    if rows_per_frame >= rows {
        return Ok(fits(lossless::pack(dtype, rows, cols, &bytes)));
    }
    // The packer makes frames of many rows. Its planes, frame by frame, make smaller ones.
    let frame = (rows_per_frame * cols) as usize * dtype.bytes();
    let (mut ends, mut chunks) = (Vec::new(), Vec::<u8>::new());
    for elements in bytes.chunks(frame.max(1)) {
        let n = (elements.len() / dtype.bytes()) as u64 / cols.max(1);
        let part = fits(lossless::pack(dtype, n, cols, elements));
        let [part_ends, part_chunks] = part.segments.as_slice() else { continue };
        let base = chunks.len() as u64;
        for end in part_ends.bytes().unwrap_or(&[]).as_chunks::<8>().0 {
            ends.extend((base + u64::from_le_bytes(*end)).to_le_bytes());
        }
        chunks.extend(part_chunks.bytes().unwrap_or(&[]));
    }
    let mut descriptor = vec![0; 16];
    descriptor[..2].copy_from_slice(&(dtype as u16).to_le_bytes());
    descriptor[4..8].copy_from_slice(&(rows_per_frame as u32).to_le_bytes());
    descriptor[8..].copy_from_slice(&(chunks.len() as u64).to_le_bytes());
    let segments: Vec<SegmentData> = vec![ends.into(), chunks.into()];
    let none = Vec::<NodeData>::new();
    Ok(fits(NodeData::new(lossless::ID, lossless::VERSION, rows, cols, descriptor, segments, none)))
}

/// Either extent as it is, or 1 where it can be broadcast.
fn broadcast(u: &mut Unstructured<'_>, extent: u64) -> Result<u64> {
    Ok(if u.ratio(1, 3)? { 1 } else { extent })
}

fn grouped_node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    use grouped::{Children, CodeMap, Descriptor, Minifloat, ScaleOp, Special, ZeroOp};
    let bits = u.int_in_range(1..=8u8)?;
    let code_map = match u.int_in_range(0..=2)? {
        0 => CodeMap::Integer { offset: *u.choose(&[0, -1, -8, -128, 77, i32::MIN, i32::MAX])? },
        1 => {
            let sign_bits = if bits == 1 { 0 } else { u.int_in_range(0..=1)? };
            let exponent_bits = u.int_in_range(1..=bits - sign_bits)?;
            CodeMap::Minifloat(Minifloat {
                sign_bits,
                exponent_bits,
                mantissa_bits: bits - sign_bits - exponent_bits,
                bias: u.int_in_range(-127..=127)?,
                special: *u.choose(&[Special::None, Special::Ieee, Special::AllOnesNan])?,
            })
        }
        _ => CodeMap::Table,
    };
    let descriptor = Descriptor {
        bits,
        code_map,
        scale_op: *u.choose(&[ScaleOp::None, ScaleOp::Multiply, ScaleOp::Divide])?,
        zero_op: *u.choose(&[ZeroOp::None, ZeroOp::Subtract, ZeroOp::Add])?,
        group_rows: *u.choose(&[0, 1, 2, 3, 100])?,
        group_cols: *u.choose(&[0, 1, 2, 5, 8, u32::MAX])?,
    };
    let down = grouped::groups(rows, descriptor.group_rows);
    let across = grouped::groups(cols, descriptor.group_cols);
    let of_groups = |u: &mut Unstructured<'_>, present: bool| {
        let (r, c) = (broadcast(u, down)?, broadcast(u, across)?);
        present.then(|| node(u, r, c, depth)).transpose()
    };
    let children = Children {
        scale: of_groups(u, descriptor.scale_op != ScaleOp::None)?,
        zero: of_groups(u, descriptor.zero_op != ZeroOp::None)?,
        table: match code_map {
            CodeMap::Table => {
                let table_rows = broadcast(u, rows)?;
                Some(node(u, table_rows, 1 << bits, depth)?)
            }
            _ => None,
        },
    };
    let mut codes = fill(u, (rows * cols) as usize)?;
    codes.iter_mut().for_each(|code| *code &= ((1u16 << bits) - 1) as u8);
    Ok(fits(grouped::pack(&descriptor, rows, cols, &codes, children)))
}

fn positions_node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    use sparse::{Block, Op, Positions};
    let op = *u.choose(&[Op::Add, Op::Replace])?;
    let block = Block { rows: u.int_in_range(1..=3)?, cols: u.int_in_range(1..=4)? };
    let density = u.int_in_range(1..=12u8)?;
    let mask = fill(u, (rows * cols) as usize)?;
    let listed = |i: usize, j: usize| mask.get(i * cols as usize + j).is_some_and(|m| m % 12 < density);
    let positions = fits(Positions::from_mask(rows as usize, cols as usize, block, listed));
    let elements = positions.columns.len() as u64 * block.elements();
    let width = *u.choose(&[block.elements(), 1, 7, 32])?;
    let values = node(u, elements.div_ceil(width), width, depth)?;
    Ok(fits(match u.arbitrary()? {
        true => sparse::pack_csr(op, rows, cols, &positions, values),
        false => sparse::pack_bitmap(op, rows, cols, &positions, values),
    }))
}

fn n_m_node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    let op = *u.choose(&[sparse::Op::Add, sparse::Op::Replace])?;
    let m = *u.choose(&[2u16, 3, 4, 8, 16, 300])?;
    let n = u.int_in_range(1..=m.min(5))?;
    let kept = cols.div_ceil(m.into()) * u64::from(n);
    let groups = (rows * cols.div_ceil(m.into())) as usize;
    let mut positions = Vec::new();
    for choice in fill(u, groups)? {
        // n positions that ascend in steps, from a start that leaves room for them.
        let step = 1 + u16::from(choice) % (m / n).max(1);
        let room = m - (n - 1) * step;
        let start = (u16::from(choice) / 7) % room;
        positions.extend((0..n).map(|k| start + k * step));
    }
    let values = node(u, rows, kept, depth)?;
    Ok(fits(sparse::pack_n_m(op, rows, cols, (n, m), &positions, values)))
}

fn low_rank_node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    let rank = u.int_in_range(1..=4)?;
    let a_t = node(u, rank, rows, depth)?;
    let b = node(u, rank, cols, depth)?;
    Ok(fits(low_rank::pack(a_t, b)))
}

fn sign_low_rank_node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    let rank = u.int_in_range(1..=3)?;
    let a_t = node(u, rank, rows, depth)?;
    let b = node(u, rank, cols, depth)?;
    let positive: Vec<bool> = fill(u, (rows * cols) as usize)?.iter().map(|byte| byte & 1 == 1).collect();
    Ok(fits(sign_low_rank::pack(&positive, a_t, b)))
}

fn nested_node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    use nested::{Level, LevelData, Map, Rounding};
    let level = |u: &mut Unstructured<'_>, bits: u8| {
        let map = *u.choose(&[Map::Integer, Map::Table])?;
        let group_cols = if map == Map::Integer { *u.choose(&[0, 1, 3, 8, u32::MAX])? } else { 0 };
        let half_up = bits < 8 && u.ratio(1, 3)?;
        let rounding = if half_up { Rounding::HalfUp } else { Rounding::Floor };
        let children = match map {
            Map::Integer => {
                let across = grouped::groups(cols, group_cols);
                let mut child = || {
                    let (r, c) = (broadcast(u, rows)?, broadcast(u, across)?);
                    node(u, r, c, depth)
                };
                vec![Arc::new(child()?), Arc::new(child()?)]
            }
            Map::Table => {
                let table_rows = broadcast(u, rows)?;
                vec![Arc::new(node(u, table_rows, 1 << bits, depth)?)]
            }
        };
        Ok(LevelData { level: Level { bits, map, rounding, group_cols }, children })
    };
    let bits = u.int_in_range(1..=8)?;
    let own = level(u, bits)?;
    let lower_bits = u.int_in_range(0..=bits - 1)?;
    let lower = if lower_bits > 0 { Some(level(u, lower_bits)?) } else { None };
    let count = own.level.planes();
    let mut codes = fill(u, (rows * cols) as usize)?;
    codes.iter_mut().for_each(|code| *code &= ((1u16 << count) - 1) as u8);
    let planes = fits(nested::planes(&codes, cols as usize, count));
    Ok(fits(nested::pack(rows, cols, &planes, &own, lower.as_ref())))
}

fn codebook_node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    let (vector_rows, vector_cols) = (u.int_in_range(1..=3u32)?, u.int_in_range(1..=4u32)?);
    let descriptor = codebook::Descriptor {
        codebooks: u.int_in_range(1..=3)?,
        bits: *u.choose(&[1, 2, 3, 5])?,
        has_scale: u.arbitrary()?,
        vector_rows,
        vector_cols,
        scale_cols: 0,
    };
    let scale_cols = if descriptor.has_scale { vector_cols * u.int_in_range(0..=2)? } else { 0 };
    let descriptor = codebook::Descriptor { scale_cols, ..descriptor };
    let (down, across) = (rows.div_ceil(vector_rows.into()), cols.div_ceil(vector_cols.into()));
    let entries = u64::from(descriptor.codebooks) << descriptor.bits;
    let codebooks = node(u, entries, u64::from(vector_rows * vector_cols), depth)?;
    let scale = match descriptor.has_scale {
        true => {
            let (r, c) = (broadcast(u, down)?, broadcast(u, grouped::groups(cols, scale_cols))?);
            Some(Arc::new(node(u, r, c, depth)?))
        }
        false => None,
    };
    let codes = fill(u, (down * across) as usize * usize::from(descriptor.codebooks))?;
    let codes: Vec<u16> = codes.iter().map(|c| u16::from(*c) & ((1 << descriptor.bits) - 1)).collect();
    Ok(fits(codebook::pack(&descriptor, rows, cols, &codes, codebooks, scale)))
}

fn trellis_node(u: &mut Unstructured<'_>, rows: u64, cols: u64, depth: u32) -> Result<NodeData> {
    use trellis::{Axis, Code, Descriptor, STATE_BITS, STEP_BITS};
    let descriptor = Descriptor {
        state_bits: u.int_in_range(STATE_BITS)?,
        step_bits: u.int_in_range(STEP_BITS)?,
        code: match u.int_in_range(0..=2)? {
            0 => Code::Table,
            1 => Code::BYTE_SUM,
            _ => Code::ByteSum { multiplier: u.arbitrary()?, addend: u.arbitrary()? },
        },
        axis: *u.choose(&[Axis::Down, Axis::Along])?,
        path_elems: *u.choose(&[0, 1, 2, 3, 7, 16, 100, u32::MAX])?,
        scale_rows: *u.choose(&[0, 1, 2, 100])?,
        scale_cols: *u.choose(&[0, 1, 3, u32::MAX])?,
    };
    // Tables that have to be decoded from other nodes are small.
    let state_bits = if descriptor.code == Code::Table {
        STATE_BITS.start() + descriptor.state_bits % 3
    } else {
        descriptor.state_bits
    };
    let descriptor = Descriptor { state_bits, ..descriptor };
    let (r, c) = (
        broadcast(u, grouped::groups(rows, descriptor.scale_rows))?,
        broadcast(u, grouped::groups(cols, descriptor.scale_cols))?,
    );
    let scale = node(u, r, c, depth)?;
    let table = match descriptor.code {
        Code::Table => Some(Arc::new(node(u, 1, 1 << state_bits, depth)?)),
        Code::ByteSum { .. } => None,
    };
    let mut codes = fill(u, (rows * cols) as usize)?;
    codes.iter_mut().for_each(|code| *code &= (1 << descriptor.step_bits) - 1);
    Ok(fits(trellis::pack(&descriptor, rows, cols, &codes, scale, table)))
}

/// What an archive is built from, in an order that can be changed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Alignment and chunk groups.
    pub options: WriteOptions,
    /// Name, media type and bytes.
    pub attributes: Vec<(String, String, SegmentData)>,
    /// Tensors.
    pub tensors: Vec<TensorEntry>,
}

/// A plan of a few small tensors. Names may be refused by the writer.
///
/// # Errors
/// When the input is not enough.
pub fn plan(u: &mut Unstructured<'_>) -> Result<Plan> {
    let options = WriteOptions {
        alignment_bytes: *u.choose(&[64, 64, 128, 4096])?,
        chunk_group_bytes: *u.choose(&[1024, 65_536])?,
    };
    let mut attributes = Vec::new();
    for i in 0..u.int_in_range(0..=2)? {
        let length = u.int_in_range(0..=300)?;
        let bytes = if u.arbitrary()? { vec![b'a'; length] } else { fill(u, length)? };
        let segment = match u.arbitrary()? {
            true => fits(SegmentData::compressed(bytes, 3)),
            false => bytes.into(),
        };
        attributes.push((format!("attribute-{i}.bin"), "application/octet-stream".into(), segment));
    }
    let mut tensors: Vec<TensorEntry> = Vec::new();
    for i in 0..u.int_in_range(1..=3)? {
        let name = if u.ratio(1, 8)? { u.arbitrary::<&str>()?.to_owned() } else { format!("t.{i}") };
        if let Some(before) = tensors.last().filter(|_| i > 0).cloned()
            && u.ratio(1, 4)?
        {
            tensors.push(TensorEntry { name, ..before });
            continue;
        }
        tensors.push(tensor(u, name)?);
    }
    Ok(Plan { options: if u.ratio(1, 2)? { SMALL } else { options }, attributes, tensors })
}

fn tensor(u: &mut Unstructured<'_>, name: String) -> Result<TensorEntry> {
    let dtype = *u.choose(DType::ALL)?;
    if u.ratio(1, 10)? {
        return Ok(TensorEntry { name, dtype, shape: vec![3, 0], content: Content::Matrices(vec![]) });
    }
    let count = *u.choose(&[1, 1, 1, 2])?;
    let (rows, cols) = (u.int_in_range(1..=9u64)?, u.int_in_range(1..=20u64)?);
    let matrices = (0..count).map(|_| matrix(u, rows, cols)).collect::<Result<Vec<_>>>()?;
    let shape = if count == 1 { vec![rows, cols] } else { vec![count, rows, cols] };
    Ok(TensorEntry { name, dtype, shape, content: Content::Matrices(matrices) })
}

fn matrix(u: &mut Unstructured<'_>, rows: u64, cols: u64) -> Result<MatrixEntry> {
    let cut = u.int_in_range(0..=rows)?;
    let blocks: Vec<(u64, u64)> = [(0, cut), (cut, rows - cut)].into_iter().filter(|b| b.1 > 0).collect();
    let levels = *u.choose(&[1u16, 1, 2, 3])?;
    let mut units = Vec::new();
    for level in 0..levels {
        for (row_start, unit_rows) in &blocks {
            let mut terms = Vec::new();
            for _ in 0..*u.choose(&[1, 1, 2, 0])? {
                terms.push(term(u, *row_start, *unit_rows, cols)?);
            }
            units.push(UnitEntry { level, row_start: *row_start, rows: *unit_rows, terms });
        }
    }
    let mut matrix = MatrixEntry { rows, cols, units, ..MatrixEntry::default() };
    if u.ratio(1, 4)? {
        matrix.input_transforms = transforms(u, cols)?;
        matrix.output_transforms = transforms(u, rows)?;
    }
    Ok(matrix)
}

fn term(u: &mut Unstructured<'_>, row_start: u64, rows: u64, cols: u64) -> Result<TermEntry> {
    let whole = u.ratio(2, 3)?;
    let (r, c) = match whole {
        true => (0, 0),
        false => (u.int_in_range(0..=rows - 1)?, u.int_in_range(0..=cols - 1)?),
    };
    let (height, width) = match whole {
        true => (rows, cols),
        false => (u.int_in_range(1..=rows - r)?, u.int_in_range(1..=cols - c)?),
    };
    let node = if u.ratio(1, 16)? { unknown(u, height, width)? } else { node(u, height, width, 2)? };
    let optional = node.encoding == UNKNOWN || u.ratio(1, 8)?;
    Ok(TermEntry { row_start: row_start + r, col_start: c, optional, node: node.into() })
}

/// An encoding id that no edition has.
pub const UNKNOWN: u32 = 0xFFFF_FF00;

fn unknown(u: &mut Unstructured<'_>, rows: u64, cols: u64) -> Result<NodeData> {
    let child = Arc::new(node(u, rows, cols, 0)?);
    Ok(NodeData {
        encoding: UNKNOWN,
        version: 3,
        rows,
        cols,
        descriptor: fill(u, 16)?,
        segments: vec![fill(u, 5)?.into()],
        children: vec![child.clone(), child],
    })
}

fn transforms(u: &mut Unstructured<'_>, size: u64) -> Result<Vec<TransformEntry>> {
    let mut list = Vec::new();
    let block = 1 << size.trailing_zeros();
    for _ in 0..u.int_in_range(0..=2)? {
        list.push(match u.int_in_range(0..=3)? {
            0 => TransformEntry::Scale(node(u, 1, size, 0)?.into()),
            1 => TransformEntry::SignHadamard { block, seed: u.arbitrary()? },
            2 => {
                let mut signs = fill(u, (size.div_ceil(32) * 4) as usize)?;
                for bit in size as usize..signs.len() * 8 {
                    signs[bit / 8] &= !(1 << (bit % 8));
                }
                TransformEntry::StoredSignHadamard { block, signs: signs.into() }
            }
            _ => {
                let mut order: Vec<u32> = (0..size as u32).collect();
                for (i, choice) in fill(u, size as usize)?.into_iter().enumerate() {
                    order.swap(i, usize::from(choice) % size as usize);
                }
                let bytes: Vec<u8> = order.into_iter().flat_map(u32::to_le_bytes).collect();
                TransformEntry::Permute(bytes.into())
            }
        });
    }
    Ok(list)
}

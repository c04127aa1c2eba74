//! Nodes built by hand from the pages of the spec: their bytes one field and one bit at a time,
//! and their values by the formulas of the section "Decode".
//!
//! Nothing here calls the code that packs or decodes nodes.

use super::number::{element, minifloat};
use cmf_format::{DType, NodeData, SegmentData};
use std::sync::Arc;

/// A node with the values that it must decode to.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What is written.
    pub node: Arc<NodeData>,
    /// Row-major values; empty where there are none.
    pub values: Vec<f32>,
    /// The exact elements, where the node keeps elements.
    pub elements: Option<(DType, Vec<u8>)>,
    /// Of a sparse node: whether it replaces, and which positions it lists.
    pub listed: Option<(bool, Vec<bool>)>,
    /// Whether a reader of version 1.0 knows it.
    pub known: bool,
}

impl Piece {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.node.rows as usize
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.node.cols as usize
    }

    /// Value at (i, j), where an extent of 1 serves every index.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        let i = if self.rows() == 1 { 0 } else { i };
        let j = if self.cols() == 1 { 0 } else { j };
        self.values[i * self.cols() + j]
    }

    /// The same node with something changed that nobody can decode.
    pub fn unknown(&self, change: impl FnOnce(&mut NodeData)) -> Self {
        let mut node = NodeData::clone(&self.node);
        change(&mut node);
        Self { node: Arc::new(node), values: Vec::new(), elements: None, listed: None, known: false }
    }
}

/// The parts of a node as they are written.
#[derive(Debug)]
pub struct Parts<'p> {
    /// Encoding id.
    pub encoding: u32,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Descriptor bytes.
    pub descriptor: Vec<u8>,
    /// Segments.
    pub segments: Vec<SegmentData>,
    /// Children.
    pub children: Vec<&'p Piece>,
}

impl Parts<'_> {
    /// A node of version 1.
    pub fn node(self) -> Arc<NodeData> {
        Arc::new(NodeData {
            encoding: self.encoding,
            version: 1,
            rows: self.rows as u64,
            cols: self.cols as u64,
            descriptor: self.descriptor,
            segments: self.segments,
            children: self.children.iter().map(|c| c.node.clone()).collect(),
        })
    }

    /// A known node with these values.
    pub fn piece(self, values: Vec<f32>) -> Piece {
        let known = self.children.iter().all(|c| c.known);
        Piece { node: self.node(), values, elements: None, listed: None, known }
    }
}

/// Rows of codes as a bit stream: bit k of a row is bit `k mod 8` of byte `k div 8`.
pub fn stream(codes: &[u32], row_codes: usize, bits: usize) -> Vec<u8> {
    let row_bytes = (row_codes * bits).div_ceil(32) * 4;
    let mut out = Vec::new();
    if row_codes == 0 {
        return out;
    }
    for row in codes.chunks(row_codes) {
        let start = out.len();
        out.resize(start + row_bytes, 0u8);
        for (i, code) in row.iter().enumerate() {
            for b in 0..bits {
                let k = i * bits + b;
                out[start + k / 8] |= ((code >> b & 1) as u8) << (k % 8);
            }
        }
    }
    out
}

/// `dense`: element bytes as they are.
pub fn dense(dtype: DType, rows: usize, cols: usize, bytes: &[u8]) -> Piece {
    let mut descriptor = vec![0; 8];
    descriptor[..2].copy_from_slice(&(dtype as u16).to_le_bytes());
    let values = bytes.chunks(dtype.bytes()).filter_map(|b| element(dtype, b)).collect();
    let parts = Parts {
        encoding: 1,
        rows,
        cols,
        descriptor,
        segments: vec![bytes.to_vec().into()],
        children: vec![],
    };
    Piece { elements: Some((dtype, bytes.to_vec())), ..parts.piece(values) }
}

/// A dense f32 node.
pub fn f32s(rows: usize, cols: usize, values: &[f32]) -> Piece {
    dense(DType::F32, rows, cols, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

/// A dense f16 node from bits.
pub fn f16s(rows: usize, cols: usize, bits: &[u16]) -> Piece {
    dense(DType::F16, rows, cols, &bits.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

/// A dense node of bytes that count up from `first` in a cycle of 251.
pub fn cycle(dtype: DType, rows: usize, cols: usize, first: usize) -> Piece {
    let bytes: Vec<u8> = (0..rows * cols * dtype.bytes()).map(|i| ((first + i) % 251) as u8).collect();
    dense(dtype, rows, cols, &bytes)
}

/// The code map of a `grouped` node.
#[derive(Clone, Copy, Debug)]
pub enum Map<'p> {
    /// code + offset.
    Integer(i32),
    /// Sign, exponent and mantissa bits, bias, special: 0 none, 1 IEEE, 2 all ones is NaN.
    Minifloat(u8, u8, u8, i32, u8),
    /// A table child.
    Table(&'p Piece),
}

/// A `grouped` node to be built.
#[derive(Clone, Copy, Debug)]
pub struct Grouped<'p> {
    /// Bits of a code.
    pub bits: u8,
    /// Meaning of a code.
    pub map: Map<'p>,
    /// 0 none, 1 multiply, 2 divide.
    pub scale_op: u8,
    /// Present unless `scale_op` is 0.
    pub scale: Option<&'p Piece>,
    /// 0 none, 1 subtract, 2 add.
    pub zero_op: u8,
    /// Present unless `zero_op` is 0.
    pub zero: Option<&'p Piece>,
    /// Rows and columns of a group; 0 is all.
    pub group: (usize, usize),
}

impl Default for Grouped<'_> {
    fn default() -> Self {
        Self {
            bits: 4,
            map: Map::Integer(0),
            scale_op: 0,
            scale: None,
            zero_op: 0,
            zero: None,
            group: (1, 0),
        }
    }
}

/// `grouped`: codes, one a byte, row-major.
pub fn grouped(g: &Grouped<'_>, rows: usize, cols: usize, codes: &[u8]) -> Piece {
    let (code_map, offset, float) = match g.map {
        Map::Integer(offset) => (0, offset, (0, 0, 0, 0, 0)),
        Map::Minifloat(s, e, m, bias, special) => (1, 0, (s, e, m, bias, special)),
        Map::Table(_) => (2, 0, (0, 0, 0, 0, 0)),
    };
    let mut descriptor = vec![g.bits, code_map, g.scale_op, g.zero_op];
    descriptor.extend((g.group.0 as u32).to_le_bytes());
    descriptor.extend((g.group.1 as u32).to_le_bytes());
    descriptor.extend(offset.to_le_bytes());
    descriptor.extend([float.1, float.2, float.0, float.4]);
    descriptor.extend(float.3.to_le_bytes());
    descriptor.extend([0; 8]);

    let mut values = Vec::new();
    for i in 0..rows {
        for j in 0..cols {
            let (group_row, group_col) = (group_of(i, g.group.0), group_of(j, g.group.1));
            let code = codes[i * cols + j];
            let mut v = match g.map {
                Map::Integer(offset) => {
                    let sum = i64::from(code) + i64::from(offset);
                    super::number::rounded(sum < 0, sum.unsigned_abs().into(), 0)
                }
                Map::Minifloat(_, e, m, bias, special) => special_minifloat(code, e, m, bias, special),
                Map::Table(table) => table.at(i, code.into()),
            };
            let scale = g.scale.map_or(f32::NAN, |s| s.at(group_row, group_col));
            let zero = g.zero.map_or(f32::NAN, |z| z.at(group_row, group_col));
            if g.zero_op == 1 {
                v -= zero;
            }
            match g.scale_op {
                1 => v *= scale,
                2 => v /= scale,
                _ => {}
            }
            if g.zero_op == 2 {
                v += zero;
            }
            values.push(v);
        }
    }
    let wide: Vec<u32> = codes.iter().map(|c| u32::from(*c)).collect();
    let table = match g.map {
        Map::Table(table) => Some(table),
        _ => None,
    };
    Parts {
        encoding: 2,
        rows,
        cols,
        descriptor,
        segments: vec![stream(&wide, cols, g.bits.into()).into()],
        children: [g.scale, g.zero, table].into_iter().flatten().collect(),
    }
    .piece(values)
}

/// The group that an index lies in; a size of 0 is one group of everything.
fn group_of(index: usize, size: usize) -> usize {
    index.checked_div(size).unwrap_or(0)
}

fn special_minifloat(code: u8, exponent_bits: u8, mantissa_bits: u8, bias: i32, special: u8) -> f32 {
    let magnitude_bits = exponent_bits + mantissa_bits;
    let magnitude = u32::from(code) % (1 << magnitude_bits);
    let negative = u32::from(code) >> magnitude_bits == 1;
    let exponent = magnitude >> mantissa_bits;
    let mantissa = magnitude % (1 << mantissa_bits);
    if special == 2 && magnitude == (1 << magnitude_bits) - 1 {
        return f32::NAN;
    }
    if special == 1 && exponent == (1 << exponent_bits) - 1 {
        return match (mantissa, negative) {
            (0, false) => f32::INFINITY,
            (0, true) => -f32::INFINITY,
            _ => f32::NAN,
        };
    }
    minifloat(code.into(), exponent_bits.into(), mantissa_bits.into(), bias)
}

/// `sparse` in the layouts `csr` and `bitmap`.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'p> {
    /// Whether listed positions replace instead of add.
    pub replace: bool,
    /// 16 or 32 for `csr`, 0 for `bitmap`.
    pub index_bits: u8,
    /// Rows and columns of a block.
    pub block: (usize, usize),
    /// Block row and block column of each entry, ascending.
    pub entries: &'p [(usize, usize)],
    /// The values, in rows of any width.
    pub values: &'p Piece,
}

/// `sparse`: blocks by a list or by a bitmap.
pub fn blocks(b: &Blocks<'_>, rows: usize, cols: usize) -> Piece {
    let (down, across) = (rows.div_ceil(b.block.0), cols.div_ceil(b.block.1));
    let mut descriptor = vec![u8::from(b.replace), if b.index_bits == 0 { 2 } else { 1 }, b.index_bits, 0];
    descriptor.extend((b.block.0 as u32).to_le_bytes());
    descriptor.extend((b.block.1 as u32).to_le_bytes());
    descriptor.extend([0; 4]);
    descriptor.extend((b.entries.len() as u64).to_le_bytes());
    let offsets: Vec<u8> = (0..=down)
        .flat_map(|i| (b.entries.iter().filter(|(row, _)| *row < i).count() as u32).to_le_bytes())
        .collect();
    let positions = match b.index_bits {
        0 => {
            let bits: Vec<u32> = (0..down * across)
                .map(|k| u32::from(b.entries.contains(&(k / across, k % across))))
                .collect();
            stream(&bits, across, 1)
        }
        16 => b.entries.iter().flat_map(|(_, col)| (*col as u16).to_le_bytes()).collect(),
        _ => b.entries.iter().flat_map(|(_, col)| (*col as u32).to_le_bytes()).collect(),
    };
    let (mut values, mut listed) = (vec![0.0; rows * cols], vec![false; rows * cols]);
    for (e, (block_row, block_col)) in b.entries.iter().enumerate() {
        for r in 0..b.block.0 {
            for c in 0..b.block.1 {
                let (i, j) = (block_row * b.block.0 + r, block_col * b.block.1 + c);
                if i < rows && j < cols {
                    values[i * cols + j] = b.values.values[(e * b.block.0 + r) * b.block.1 + c];
                    listed[i * cols + j] = true;
                }
            }
        }
    }
    let segments = vec![offsets.into(), positions.into()];
    let parts = Parts { encoding: 3, rows, cols, descriptor, segments, children: vec![b.values] };
    Piece { listed: Some((b.replace, listed)), ..parts.piece(values) }
}

/// `sparse`: `n` of every `m` columns; `positions` row after row and group after group.
pub fn n_of_m(
    replace: bool,
    (n, m): (usize, usize),
    (rows, cols): (usize, usize),
    positions: &[u32],
    values: &Piece,
) -> Piece {
    let kept = cols.div_ceil(m) * n;
    let bits = (0..).find(|bits| 1usize << bits >= m).unwrap_or(0);
    let mut descriptor = vec![u8::from(replace), 3, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    descriptor.extend((n as u16).to_le_bytes());
    descriptor.extend((m as u16).to_le_bytes());
    descriptor.extend(((rows * kept) as u64).to_le_bytes());
    let (mut decoded, mut listed) = (vec![0.0; rows * cols], vec![false; rows * cols]);
    for i in 0..rows {
        for k in 0..kept {
            let j = k / n * m + positions[i * kept + k] as usize;
            if j < cols {
                decoded[i * cols + j] = values.values[i * kept + k];
                listed[i * cols + j] = true;
            }
        }
    }
    let segments = vec![stream(positions, kept, bits).into()];
    let parts = Parts { encoding: 3, rows, cols, descriptor, segments, children: vec![values] };
    Piece { listed: Some((replace, listed)), ..parts.piece(decoded) }
}

/// `low_rank`: factors `[rank, rows]` and `[rank, cols]`.
pub fn low_rank(a_t: &Piece, b: &Piece) -> Piece {
    let (rank, rows, cols) = (a_t.rows(), a_t.cols(), b.cols());
    let mut descriptor = (rank as u32).to_le_bytes().to_vec();
    descriptor.extend([0; 4]);
    let mut values = Vec::new();
    for i in 0..rows {
        for j in 0..cols {
            let mut v = 0.0f32;
            for k in 0..rank {
                let product = a_t.values[k * rows + i] * b.values[k * cols + j];
                v += product;
            }
            values.push(v);
        }
    }
    Parts { encoding: 4, rows, cols, descriptor, segments: vec![], children: vec![a_t, b] }.piece(values)
}

/// `sign_low_rank`: one sign an element, row-major, 1 for positive, and factors as [`low_rank`] has.
pub fn sign_low_rank(signs: &[u32], a_t: &Piece, b: &Piece) -> Piece {
    let magnitude = low_rank(a_t, b);
    let values = magnitude.values.iter().zip(signs).map(|(v, sign)| if *sign == 1 { *v } else { -*v });
    let values = values.collect();
    Parts {
        encoding: 8,
        rows: magnitude.rows(),
        cols: magnitude.cols(),
        descriptor: magnitude.node.descriptor.clone(),
        segments: vec![stream(signs, magnitude.cols(), 1).into()],
        children: vec![a_t, b],
    }
    .piece(values)
}

/// A level of `nested`.
#[derive(Clone, Copy, Debug)]
pub struct NestedLevel<'p> {
    /// Bits of a code.
    pub bits: usize,
    /// Whether codes are rounded half up.
    pub half_up: bool,
    /// What codes mean.
    pub map: NestedMap<'p>,
}

/// What the codes of a level of `nested` mean.
#[derive(Clone, Copy, Debug)]
pub enum NestedMap<'p> {
    /// Scale, zero, and the columns that share them (0 for all).
    Integer(&'p Piece, &'p Piece, usize),
    /// A table for each row or for all.
    Table(&'p Piece),
}

impl NestedLevel<'_> {
    fn value(&self, bits: &[u32], i: usize, j: usize) -> f32 {
        let mut code = bits.iter().take(self.bits).fold(0, |code, bit| code << 1 | bit);
        if self.half_up && code < (1 << self.bits) - 1 {
            code += bits[self.bits];
        }
        match self.map {
            NestedMap::Integer(scale, zero, cols) => {
                let group = group_of(j, cols);
                (code as f32 - zero.at(i, group)) * scale.at(i, group)
            }
            NestedMap::Table(table) => table.at(i, code as usize),
        }
    }

    fn children(&self) -> Vec<&Piece> {
        match self.map {
            NestedMap::Integer(scale, zero, _) => vec![scale, zero],
            NestedMap::Table(table) => vec![table],
        }
    }

    /// Map, rounding, columns of a group.
    fn fields(&self) -> (u8, u8, usize) {
        match self.map {
            NestedMap::Integer(_, _, cols) => (0, self.half_up.into(), cols),
            NestedMap::Table(_) => (1, self.half_up.into(), 0),
        }
    }
}

/// `nested`: codes with as many bits as there are planes, row-major.
pub fn nested(
    level: &NestedLevel<'_>,
    lower: Option<&NestedLevel<'_>>,
    (rows, cols): (usize, usize),
    codes: &[u32],
) -> Piece {
    let planes = level.bits + usize::from(level.half_up);
    let (own, below) = (level.fields(), lower.map_or((0, 0, 0), NestedLevel::fields));
    let lower_bits = lower.map_or(0, |lower| lower.bits);
    let mut descriptor = vec![level.bits as u8, own.0, own.1, lower_bits as u8, below.0, below.1, 0, 0];
    descriptor.extend((own.2 as u32).to_le_bytes());
    descriptor.extend((below.2 as u32).to_le_bytes());
    let plane = |p: usize| codes.iter().map(|code| code >> (planes - 1 - p) & 1).collect::<Vec<u32>>();
    let all: Vec<Vec<u32>> = (0..planes).map(plane).collect();
    let mut values = Vec::new();
    for i in 0..rows {
        for j in 0..cols {
            let bits: Vec<u32> = all.iter().map(|plane| plane[i * cols + j]).collect();
            let own = level.value(&bits, i, j);
            values.push(lower.map_or(own, |lower| own - lower.value(&bits, i, j)));
        }
    }
    let segments = all.iter().map(|plane| stream(plane, cols, 1).into()).collect();
    let children = [Some(level), lower].into_iter().flatten().flat_map(NestedLevel::children).collect();
    Parts { encoding: 9, rows, cols, descriptor, segments, children }.piece(values)
}

/// A `codebook` node to be built.
#[derive(Clone, Copy, Debug)]
pub struct Codebook<'p> {
    /// Number of codebooks.
    pub codebooks: usize,
    /// Bits of a code.
    pub bits: usize,
    /// Rows and columns of a vector.
    pub vector: (usize, usize),
    /// Entries, those of the first codebook first.
    pub entries: &'p Piece,
    /// Scales, and the columns that share one (0 for all).
    pub scale: Option<(&'p Piece, usize)>,
}

/// `codebook`: codes by vector row, vector and codebook.
pub fn codebook(c: &Codebook<'_>, rows: usize, cols: usize, codes: &[u32]) -> Piece {
    let across = cols.div_ceil(c.vector.1);
    let mut descriptor = vec![c.codebooks as u8, c.bits as u8, u8::from(c.scale.is_some()), 0];
    descriptor.extend((c.vector.0 as u32).to_le_bytes());
    descriptor.extend((c.vector.1 as u32).to_le_bytes());
    descriptor.extend((c.scale.map_or(0, |(_, cols)| cols) as u32).to_le_bytes());
    let mut values = Vec::new();
    for i in 0..rows {
        for j in 0..cols {
            let (vector_row, vector_col) = (i / c.vector.0, j / c.vector.1);
            let e = i % c.vector.0 * c.vector.1 + j % c.vector.1;
            let entry = |m: usize| {
                let code = codes[(vector_row * across + vector_col) * c.codebooks + m] as usize;
                c.entries.values[((m << c.bits) + code) * c.vector.0 * c.vector.1 + e]
            };
            let mut v = entry(0);
            for m in 1..c.codebooks {
                v += entry(m);
            }
            if let Some((scale, scale_cols)) = c.scale {
                v *= scale.at(vector_row, group_of(j, scale_cols));
            }
            values.push(v);
        }
    }
    let segments = vec![stream(codes, across * c.codebooks, c.bits).into()];
    let children = [Some(c.entries), c.scale.map(|(s, _)| s)].into_iter().flatten().collect();
    Parts { encoding: 5, rows, cols, descriptor, segments, children }.piece(values)
}

/// A `trellis` node to be built.
#[derive(Clone, Copy, Debug)]
pub struct Trellis<'p> {
    /// Bits of a window.
    pub state_bits: usize,
    /// Bits that a weight adds.
    pub step_bits: usize,
    /// Whether paths run along rows instead of down columns.
    pub along: bool,
    /// Weights of a path; 0 is the whole axis.
    pub path: usize,
    /// Values of the windows.
    pub code: Windows<'p>,
    /// Scales.
    pub scale: &'p Piece,
    /// Rows and columns that share a scale; 0 is all.
    pub group: (usize, usize),
}

/// What a window of a `trellis` node means.
#[derive(Clone, Copy, Debug)]
pub enum Windows<'p> {
    /// A table child.
    Table(&'p Piece),
    /// Multiplier and addend of a byte sum.
    ByteSum(u32, u32),
}

/// `trellis`: codes, row-major.
pub fn trellis(t: &Trellis<'_>, rows: usize, cols: usize, codes: &[u32]) -> Piece {
    let (multiplier, addend) = match t.code {
        Windows::Table(_) => (0, 0),
        Windows::ByteSum(multiplier, addend) => (multiplier, addend),
    };
    let computed = matches!(t.code, Windows::ByteSum(..));
    let mut descriptor = vec![t.state_bits as u8, t.step_bits as u8, u8::from(computed), u8::from(t.along)];
    descriptor.extend([t.path as u32, multiplier, addend].into_iter().flat_map(u32::to_le_bytes));
    descriptor.extend([t.group.0 as u32, t.group.1 as u32].into_iter().flat_map(u32::to_le_bytes));
    descriptor.extend([0; 8]);

    let (elems, lines) = if t.along { (cols, rows) } else { (rows, cols) };
    let longest = if t.path == 0 { elems } else { t.path };
    let (mut words, mut values) = (Vec::new(), vec![0.0; rows * cols]);
    let starts: Vec<usize> = (0..elems).step_by(longest.max(1)).collect();
    let paths: Vec<(usize, usize)> = match t.along {
        true => (0..lines).flat_map(|line| starts.iter().map(move |start| (line, *start))).collect(),
        false => starts.iter().flat_map(|start| (0..lines).map(move |line| (line, *start))).collect(),
    };
    for (line, start) in paths {
        let place = |at: usize| if t.along { line * cols + at } else { at * cols + line };
        let count = longest.min(elems - start);
        let ring: Vec<u32> = (start..start + count)
            .flat_map(|at| (0..t.step_bits).map(move |b| codes[place(at)] >> b & 1))
            .collect();
        for at in 0..count {
            let mut s = 0;
            for i in 0..t.state_bits {
                // Whole turns added, so that nothing is negative.
                let bit = t.step_bits * (at + 1) + ring.len() * t.state_bits - t.state_bits + i;
                s += ring[bit % ring.len()] << i;
            }
            let v = match t.code {
                Windows::Table(table) => table.values[s as usize],
                Windows::ByteSum(multiplier, addend) => {
                    let x = u64::from(s) * u64::from(multiplier) + u64::from(addend);
                    let sum: u64 = (0..4).map(|byte| x >> (8 * byte) & 0xFF).sum();
                    sum as f32 - 510.0
                }
            };
            let to = place(start + at);
            values[to] = v * t.scale.at(group_of(to / cols, t.group.0), group_of(to % cols, t.group.1));
        }
        let own = ring.chunks(32).map(|bits| (0..).zip(bits).map(|(p, bit)| bit << p).sum::<u32>());
        words.push(own.collect::<Vec<u32>>());
    }
    // Down the columns, a word of every column before the next word of any.
    let blocks = words.chunks(if t.along { 1 } else { lines.max(1) });
    let order = blocks.flat_map(|block| {
        let count = block.first().map_or(0, Vec::len);
        (0..count).flat_map(move |w| block.iter().map(move |path| path[w]))
    });
    let segment: Vec<u8> = order.flat_map(u32::to_le_bytes).collect();
    let table = match t.code {
        Windows::Table(table) => Some(table),
        Windows::ByteSum(..) => None,
    };
    let children = [Some(t.scale), table].into_iter().flatten().collect();
    Parts { encoding: 7, rows, cols, descriptor, segments: vec![segment.into()], children }.piece(values)
}

/// Plane bytes of `lossless`: planes of one frame, the most significant first.
pub fn planes(dtype: DType, bytes: &[u8]) -> Vec<Vec<u8>> {
    let width = dtype.bytes();
    (0..width)
        .map(|p| {
            let plane = bytes.chunks(width).map(|element| {
                let bits = element.iter().rev().fold(0u128, |n, b| n << 8 | u128::from(*b));
                // Rotated left by one bit within 8 * width bits.
                let rotated = bits << 1 | bits >> (8 * width - 1);
                (rotated >> (8 * (width - 1 - p))) as u8
            });
            plane.collect()
        })
        .collect()
}

/// `lossless`: `squeeze` may give a shorter zstd frame for the bytes of a chunk.
pub fn lossless(
    dtype: DType,
    (rows, cols): (usize, usize),
    rows_per_frame: usize,
    bytes: &[u8],
    squeeze: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Piece {
    let (mut ends, mut chunks) = (Vec::new(), Vec::new());
    let frame_bytes = rows_per_frame * cols * dtype.bytes();
    if cols > 0 {
        for frame in bytes.chunks(frame_bytes) {
            for plane in planes(dtype, frame) {
                let chunk = squeeze(&plane).filter(|c| c.len() < plane.len());
                chunks.extend(chunk.unwrap_or(plane));
                ends.extend((chunks.len() as u64).to_le_bytes());
            }
        }
    }
    let mut descriptor = (dtype as u16).to_le_bytes().to_vec();
    descriptor.extend([0; 2]);
    descriptor.extend((rows_per_frame as u32).to_le_bytes());
    descriptor.extend((chunks.len() as u64).to_le_bytes());
    let values = bytes.chunks(dtype.bytes()).filter_map(|b| element(dtype, b)).collect();
    let segments = vec![ends.into(), chunks.into()];
    let parts = Parts { encoding: 6, rows, cols, descriptor, segments, children: vec![] };
    Piece { elements: Some((dtype, bytes.to_vec())), ..parts.piece(values) }
}

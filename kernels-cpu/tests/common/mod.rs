//! Matrices of every encoding, and what each test asks of them.

#![allow(dead_code, reason = "each test file uses some of it")]

use cmf_format::archive::{Archive, MatrixView};
use cmf_format::encoding::trellis::{self, Axis, Code};
use cmf_format::encoding::{codebook, dense, grouped, lossless, low_rank, nested, sign_low_rank, sparse};
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, TransformEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, Limits, NodeData};
use cmf_kernels_cpu::{Activations, Isa, Linear, Precision, Scratch};
use std::sync::Arc;

pub(crate) type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Instruction sets of this machine; names those that it lacks.
pub(crate) fn isas() -> Vec<Isa> {
    let (here, missing): (Vec<_>, Vec<_>) = Isa::ALL.into_iter().partition(|isa| isa.is_available());
    eprintln!("instruction sets: {here:?}; SKIPPED, not on this machine: {missing:?}");
    here
}

/// Numbers that look random.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(crate) fn byte(&mut self, below: usize) -> u8 {
        (self.next() % below as u64) as u8
    }

    /// From -1 to 1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize, factor: f32) -> Vec<f32> {
        (0..count).map(|_| self.value() * factor).collect()
    }
}

pub(crate) fn plain(dtype: DType, rows: usize, cols: usize, values: &[f32]) -> Result<NodeData> {
    Ok(dense::pack_values(dtype, rows as u64, cols as u64, values)?)
}

/// What a `grouped` node is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grouped {
    pub(crate) bits: u8,
    pub(crate) map: grouped::CodeMap,
    pub(crate) zero: grouped::ZeroOp,
    pub(crate) group_rows: u32,
    pub(crate) group_cols: u32,
    /// Whether scales and zero points are grouped again.
    pub(crate) twice: bool,
    /// Size of scales.
    pub(crate) scale: f32,
}

impl Grouped {
    pub(crate) fn symmetric(bits: u8, group_cols: u32) -> Self {
        let offset = -(1 << (bits - 1));
        Self {
            bits,
            map: grouped::CodeMap::Integer { offset },
            zero: grouped::ZeroOp::None,
            group_rows: 1,
            group_cols,
            twice: false,
            scale: 0.01,
        }
    }

    pub(crate) fn node(self, rows: usize, cols: usize, numbers: &mut Numbers) -> Result<NodeData> {
        let descriptor = grouped::Descriptor {
            bits: self.bits,
            code_map: self.map,
            scale_op: grouped::ScaleOp::Multiply,
            zero_op: self.zero,
            group_rows: self.group_rows,
            group_cols: self.group_cols,
        };
        let down = grouped::groups(rows as u64, self.group_rows) as usize;
        let across = grouped::groups(cols as u64, self.group_cols) as usize;
        let codes: Vec<u8> = (0..rows * cols).map(|_| numbers.byte(1 << self.bits)).collect();
        let child = |numbers: &mut Numbers, factor: f32| -> Result<NodeData> {
            if self.twice {
                let own = Self { twice: false, scale: factor / 32.0, ..Self::symmetric(6, 16) };
                return own.node(down, across, numbers);
            }
            plain(DType::F16, down, across, &numbers.values(down * across, factor))
        };
        let children = grouped::Children {
            scale: Some(child(numbers, self.scale)?),
            zero: match self.zero {
                grouped::ZeroOp::None => None,
                grouped::ZeroOp::Subtract => Some(child(numbers, (1 << self.bits) as f32)?),
                grouped::ZeroOp::Add => Some(child(numbers, self.scale)?),
            },
            table: match self.map {
                grouped::CodeMap::Table => {
                    Some(plain(DType::F32, 1, 1 << self.bits, &numbers.values(1 << self.bits, 1.0))?)
                }
                _ => None,
            },
        };
        Ok(grouped::pack(&descriptor, rows as u64, cols as u64, &codes, children)?)
    }
}

/// What a `trellis` node is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trellis {
    pub(crate) state_bits: u8,
    pub(crate) step_bits: u8,
    pub(crate) axis: Axis,
    pub(crate) path_elems: u32,
    pub(crate) scale_rows: u32,
    pub(crate) table: DType,
    /// Whether a window with all bits flipped has the negative value, as in trained tables.
    pub(crate) odd: bool,
    /// Whether the 6 newest bits and a linear map of the others tell the value.
    pub(crate) hashed: bool,
}

impl Trellis {
    pub(crate) const PLAIN: Self = Self {
        state_bits: 8,
        step_bits: 2,
        axis: Axis::Down,
        path_elems: 0,
        scale_rows: 1,
        table: DType::I8,
        odd: true,
        hashed: false,
    };

    pub(crate) fn node(self, rows: usize, cols: usize, numbers: &mut Numbers) -> Result<NodeData> {
        let descriptor = trellis::Descriptor {
            state_bits: self.state_bits,
            step_bits: self.step_bits,
            code: if self.table == DType::F64 { Code::BYTE_SUM } else { Code::Table },
            axis: self.axis,
            path_elems: self.path_elems,
            scale_rows: self.scale_rows,
            scale_cols: 0,
        };
        let codes: Vec<u8> = (0..rows * cols).map(|_| numbers.byte(1 << self.step_bits)).collect();
        let down = grouped::groups(rows as u64, self.scale_rows) as usize;
        let scale = plain(DType::F16, down, 1, &numbers.values(down, 0.01))?;
        let entries = 1 << self.state_bits;
        let table = match self.table {
            DType::F64 => None,
            dtype => {
                let mut values: Vec<f32> =
                    (0..entries).map(|_| f32::from(numbers.byte(255) as i8).max(-127.0)).collect();
                for i in 0..entries / 2 * usize::from(self.odd) {
                    values[entries - 1 - i] = -values[i];
                }
                if self.hashed {
                    let older = usize::from(self.state_bits) - 6;
                    let added: Vec<usize> = (0..older).map(|_| numbers.byte(64).into()).collect();
                    let index = |w: usize| {
                        let bits = added.iter().enumerate().filter(|(bit, _)| w >> bit & 1 == 1);
                        bits.fold(w >> older, |index, (_, added)| index ^ added)
                    };
                    let of = values.clone();
                    values = (0..entries).map(|w| of[index(w)]).collect();
                }
                Some(Arc::new(plain(dtype, 1, entries, &values)?))
            }
        };
        Ok(trellis::pack(&descriptor, rows as u64, cols as u64, &codes, scale, table)?)
    }
}

/// `low_rank`, of rank 5.
pub(crate) fn factors(rows: usize, cols: usize) -> Result<NodeData> {
    let (a, b) = two_factors(&mut Numbers(4), rows, cols, 5, DType::F16)?;
    Ok(low_rank::pack(a, b)?)
}

fn two_factors(
    numbers: &mut Numbers,
    rows: usize,
    cols: usize,
    rank: usize,
    dtype: DType,
) -> Result<(NodeData, NodeData)> {
    let a = plain(dtype, rank, rows, &numbers.values(rank * rows, 1.0))?;
    Ok((a, plain(dtype, rank, cols, &numbers.values(rank * cols, 1.0))?))
}

/// `sign_low_rank`, with factors of 8 bits.
pub(crate) fn signs_of_codes(rows: usize, cols: usize, rank: usize) -> Result<NodeData> {
    let mut numbers = Numbers(4);
    let a = Grouped::symmetric(8, 32).node(rank, rows, &mut numbers)?;
    let b = Grouped::symmetric(8, 32).node(rank, cols, &mut numbers)?;
    let positive: Vec<bool> = (0..rows * cols).map(|_| numbers.byte(2) == 1).collect();
    Ok(sign_low_rank::pack(&positive, a, b)?)
}

/// `sign_low_rank`, with factors of f16, or of other elements.
pub(crate) fn signs(rows: usize, cols: usize, rank: usize, dtype: DType) -> Result<NodeData> {
    let mut numbers = Numbers(4);
    let (a, b) = two_factors(&mut numbers, rows, cols, rank, dtype)?;
    let positive: Vec<bool> = (0..rows * cols).map(|_| numbers.byte(2) == 1).collect();
    Ok(sign_low_rank::pack(&positive, a, b)?)
}

/// `nested`, at a level of `bits` bits with a table for each row.
pub(crate) fn planes(rows: usize, cols: usize, bits: u8) -> Result<NodeData> {
    let mut numbers = Numbers(4);
    let codes: Vec<u8> = (0..rows * cols).map(|_| numbers.byte(1 << bits)).collect();
    let planes = nested::planes(&codes, cols, bits)?;
    let table = plain(DType::F16, rows, 1 << bits, &numbers.values(rows << bits, 1.0))?;
    let level = nested::LevelData {
        level: nested::Level {
            bits,
            map: nested::Map::Table,
            rounding: nested::Rounding::Floor,
            group_cols: 0,
        },
        children: vec![table.into()],
    };
    Ok(nested::pack(rows as u64, cols as u64, &planes, &level, None)?)
}

/// `nested`: a node for each level of integers, each over the one before.
pub(crate) fn levels(
    rows: usize,
    cols: usize,
    bits: &[u8],
    rounding: nested::Rounding,
    group_cols: u32,
) -> Result<Vec<NodeData>> {
    let mut numbers = Numbers(4);
    let most = bits.iter().max().map_or(0, |bits| bits + rounding as u8);
    let codes: Vec<u8> = (0..rows * cols).map(|_| numbers.byte(1 << most)).collect();
    let across = grouped::groups(cols as u64, group_cols) as usize;
    let level = |bits: &u8| -> Result<nested::LevelData> {
        let level = nested::Level { bits: *bits, map: nested::Map::Integer, rounding, group_cols };
        let middle = (1 << bits) as f32 / 2.0;
        let scale = plain(DType::F16, rows, across, &numbers.values(rows * across, 0.1 / middle))?;
        let zero = plain(DType::F16, rows, 1, &numbers.values(rows, middle))?;
        Ok(nested::LevelData { level, children: vec![scale.into(), zero.into()] })
    };
    let levels = bits.iter().map(level).collect::<Result<Vec<_>>>()?;
    Ok(nested::pack_levels(rows as u64, cols as u64, &nested::planes(&codes, cols, most)?, &levels)?)
}

/// `nested`: a node for each level with a table for each row, each over the one before.
pub(crate) fn tables(
    rows: usize,
    cols: usize,
    bits: &[u8],
    rounding: nested::Rounding,
) -> Result<Vec<NodeData>> {
    let mut numbers = Numbers(4);
    let most = bits.iter().max().map_or(0, |bits| bits + rounding as u8);
    let codes: Vec<u8> = (0..rows * cols).map(|_| numbers.byte(1 << most)).collect();
    let level = |bits: &u8| -> Result<nested::LevelData> {
        let level = nested::Level { bits: *bits, map: nested::Map::Table, rounding, group_cols: 0 };
        let table = plain(DType::F16, rows, 1 << bits, &numbers.values(rows << bits, 1.0))?;
        Ok(nested::LevelData { level, children: vec![table.into()] })
    };
    let levels = bits.iter().map(level).collect::<Result<Vec<_>>>()?;
    Ok(nested::pack_levels(rows as u64, cols as u64, &nested::planes(&codes, cols, most)?, &levels)?)
}

/// `codebook`: vectors of `width` columns, which need not divide `cols`, by codes of 6 bits.
pub(crate) fn vectors(
    rows: usize,
    cols: usize,
    width: usize,
    codebooks: u8,
    scale_cols: u32,
) -> Result<NodeData> {
    vectors_of(6, rows, cols, width, codebooks, scale_cols)
}

/// As [`vectors`], by codes of `bits` bits.
pub(crate) fn vectors_of(
    bits: u8,
    rows: usize,
    cols: usize,
    width: usize,
    codebooks: u8,
    scale_cols: u32,
) -> Result<NodeData> {
    let mut numbers = Numbers(4);
    let descriptor = codebook::Descriptor {
        bits,
        codebooks,
        vector_rows: 1,
        vector_cols: width as u32,
        has_scale: true,
        scale_cols,
    };
    let count = rows * cols.div_ceil(width) * usize::from(codebooks);
    let codes: Vec<u16> = (0..count).map(|_| (numbers.next() % (1 << bits)) as u16).collect();
    let entries = usize::from(codebooks) << bits;
    let entries = plain(DType::F16, entries, width, &numbers.values(entries * width, 1.0))?;
    let across = grouped::groups(cols as u64, scale_cols) as usize;
    let scale = plain(DType::F16, rows, across, &numbers.values(rows * across, 1.0))?;
    Ok(codebook::pack(&descriptor, rows as u64, cols as u64, &codes, entries, Some(scale.into()))?)
}

/// `lossless`, of values that are distributed as weights are.
pub(crate) fn packed(dtype: DType, rows: usize, cols: usize) -> Result<NodeData> {
    let mut numbers = Numbers(4);
    let values: Vec<f32> = (0..rows * cols).map(|_| numbers.values(6, 0.02).iter().sum()).collect();
    Ok(lossless::pack(dtype, rows as u64, cols as u64, &dtype.encode(&values)?)?)
}

/// How a `sparse` node lists its positions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Listing {
    Csr(sparse::Block),
    Bitmap(sparse::Block),
    Nm(u16, u16),
}

/// What a `sparse` node is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sparse {
    pub(crate) op: sparse::Op,
    pub(crate) listing: Listing,
    /// One of so many elements is listed; of `n_m` its own number.
    pub(crate) one_in: usize,
    /// Type of values, one a row; none are codes of 8 bits in rows of 64.
    pub(crate) values: Option<DType>,
}

impl Sparse {
    pub(crate) const PLAIN: Self = Self {
        op: sparse::Op::Add,
        listing: Listing::Csr(sparse::Block::ONE),
        one_in: 10,
        values: Some(DType::F16),
    };

    pub(crate) fn node(self, rows: usize, cols: usize, numbers: &mut Numbers) -> Result<NodeData> {
        let mut child = |count: usize, height: usize, width: usize| match self.values {
            Some(dtype) => plain(dtype, height, width, &numbers.values(count, 1.0)),
            None => Grouped::symmetric(8, 32).node(height, width, numbers),
        };
        if let Listing::Nm(n, m) = self.listing {
            let kept = cols.div_ceil(m.into()) * usize::from(n);
            let values = child(rows * kept, rows, kept)?;
            // Some of each group, from the left or from the right.
            let listed = |i: usize| {
                let (group, k) = (i / usize::from(n), (i % usize::from(n)) as u16);
                if group * group % 5 < 3 { k } else { m - n + k }
            };
            let positions: Vec<u16> = (0..rows * kept).map(listed).collect();
            return Ok(sparse::pack_n_m(self.op, rows as u64, cols as u64, (n, m), &positions, values)?);
        }
        let (Listing::Csr(block) | Listing::Bitmap(block)) = self.listing else {
            return Err("no block".into());
        };
        let mut of = Numbers(7);
        let mask: Vec<bool> =
            (0..rows * cols).map(|_| of.next().is_multiple_of(self.one_in as u64)).collect();
        let positions = sparse::Positions::from_mask(rows, cols, block, |row, col| mask[row * cols + col])?;
        let count = positions.columns.len() * block.elements() as usize;
        let width = if self.values.is_some() { 1 } else { 64 };
        let values = child(count, count.div_ceil(width), width)?;
        match self.listing {
            Listing::Csr(_) => Ok(sparse::pack_csr(self.op, rows as u64, cols as u64, &positions, values)?),
            _ => Ok(sparse::pack_bitmap(self.op, rows as u64, cols as u64, &positions, values)?),
        }
    }
}

/// A matrix of terms, each at a row and a column, between transforms.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) terms: Vec<(usize, usize, NodeData)>,
    pub(crate) input: Vec<TransformEntry>,
    pub(crate) output: Vec<TransformEntry>,
}

impl Parts {
    pub(crate) fn of(node: NodeData) -> Self {
        Self { terms: vec![(0, 0, node)], ..Self::default() }
    }

    /// The bytes of an archive with the matrix `w`.
    pub(crate) fn archive(self, rows: usize, cols: usize) -> Result<Vec<u8>> {
        let terms = self.terms.into_iter().map(|(row, col, node)| TermEntry {
            row_start: row as u64,
            col_start: col as u64,
            optional: false,
            node: node.into(),
        });
        let unit = UnitEntry { level: 0, row_start: 0, rows: rows as u64, terms: terms.collect() };
        let matrix = MatrixEntry {
            rows: rows as u64,
            cols: cols as u64,
            input_transforms: self.input,
            output_transforms: self.output,
            units: vec![unit],
        };
        let mut builder = ArchiveBuilder::default();
        builder.tensor(TensorEntry {
            name: "w".into(),
            dtype: DType::F32,
            shape: vec![rows as u64, cols as u64],
            content: Content::Matrices(vec![matrix]),
        });
        Ok(builder.to_vec()?)
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Archive<&[u8]>> {
    Ok(Archive::parse(bytes, &Limits::default()).map_err(|e| e.to_string())?)
}

/// The matrix of an archive.
pub(crate) fn view<'a>(archive: &'a Archive<&[u8]>) -> Result<MatrixView<'a>> {
    let matrix = archive.tensor("w").and_then(|w| w.matrices().next()).ok_or("no matrix")?;
    Ok(MatrixView::open(&matrix, u16::MAX)?)
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// y = x Wᵀ by the reference decode, in f64, and Σ |w x|.
pub(crate) fn reference(w: &[f32], cols: usize, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let products = x.chunks_exact(cols).flat_map(|x| {
        w.chunks_exact(cols).map(move |w| {
            let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
        })
    });
    products.unzip()
}

pub(crate) fn multiply(
    linear: &Linear<'_>,
    x: &[f32],
    precision: Precision,
    scratch: &mut Scratch,
) -> Result<Vec<f32>> {
    let mut activations = Activations::new();
    activations.load(x, linear.cols(), linear.view().input_transforms(), precision, linear.isa())?;
    let mut y = vec![f32::NAN; activations.tokens() * linear.rows()];
    linear.multiply(&activations, &mut y, scratch)?;
    Ok(y)
}

/// What [`check`] may expect.
#[derive(Clone, Copy, Default)]
pub(crate) struct Expect {
    /// Terms, transforms: their roundings come on top.
    pub(crate) roundings: usize,
    /// Σ |w| max |x of its 64| / 254 is to be expected of fast products.
    pub(crate) quantises: bool,
}

/// Decodes and multiplies with a matrix on every instruction set.
pub(crate) fn check(parts: Parts, rows: usize, cols: usize, seed: u64, expect: Expect) -> Result {
    let bytes = parts.archive(rows, cols)?;
    let archive = parse(&bytes)?;
    let mut w = vec![0.0; rows * cols];
    view(&archive)?.decode_rows(0..rows, &mut w)?;
    let mut numbers = Numbers(seed);
    let mut scratch = Scratch::new();
    let mut first: Vec<Vec<u32>> = Vec::new();
    // Of fast products by portable code: sums of integers are the same, only their sums are rounded.
    let mut portable: Vec<Vec<f32>> = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let linear = Linear::new(view(&archive)?, isa)?;
        let mut decoded = vec![f32::NAN; rows * cols];
        linear.decode_rows(0..rows, &mut decoded, &mut scratch)?;
        assert_eq!(bits(&decoded), bits(&w), "decoded on {isa:?}");
        let part = rows / 3..rows;
        let mut some = vec![f32::NAN; part.len() * cols];
        linear.decode_rows(part.clone(), &mut some, &mut scratch)?;
        assert_eq!(bits(&some), bits(&w[part.start * cols..]), "rows {part:?} on {isa:?}");
        let ids = [rows - 1, 0, rows / 2].map(|id| id as u32);
        let mut gathered = vec![f32::NAN; 3 * cols];
        linear.gather(&ids, &mut gathered, &mut scratch)?;
        for (id, row) in ids.iter().zip(gathered.chunks_exact(cols)) {
            let start = *id as usize * cols;
            assert_eq!(bits(row), bits(&w[start..start + cols]), "row {id} on {isa:?}");
        }
        numbers.0 = seed;
        let (mut results, mut quantised) = (Vec::new(), Vec::new());
        for tokens in [1, 6] {
            let x = numbers.values(tokens * cols, 3.0);
            let (y, size) = reference(&w, cols, &x);
            for precision in [Precision::Exact, Precision::Fast] {
                let got = multiply(&linear, &x, precision, &mut scratch)?;
                let steps =
                    (cols / 16 + 6 + expect.roundings) as f64 + 64.0 * (expect.roundings > 0) as u8 as f64;
                for (i, ((got, y), size)) in got.iter().zip(&y).zip(&size).enumerate() {
                    let mut bound = steps * 2f64.powi(-23) * size + 1e-30;
                    if precision == Precision::Fast && expect.quantises {
                        let (token, row) = (i / rows, i % rows);
                        let blocks =
                            w[row * cols..(row + 1) * cols].chunks(64).zip(x[token * cols..].chunks(64));
                        bound = 2.0 * bound
                            + blocks
                                .map(|(w, x)| {
                                    let largest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                                    w.iter().map(|w| f64::from(w.abs())).sum::<f64>() * f64::from(largest)
                                        / 253.0
                                })
                                .sum::<f64>();
                    }
                    let error = (f64::from(*got) - y).abs();
                    assert!(
                        error <= bound,
                        "{precision:?} {tokens} tokens on {isa:?}: {i}: {got}, expected {y} ± {bound}"
                    );
                }
                match precision {
                    Precision::Exact => results.push(bits(&got)),
                    Precision::Fast => {
                        let others = portable.get(quantised.len()).into_iter().flatten();
                        for (i, ((got, other), size)) in got.iter().zip(others).zip(&size).enumerate() {
                            let error = f64::from((got - other).abs());
                            let bound = 2.0 * steps * 2f64.powi(-23) * size + 1e-30;
                            assert!(error <= bound, "{tokens} tokens on {isa:?}: {i}: {got}, not {other}");
                        }
                        quantised.push(got);
                    }
                }
            }
        }
        if portable.is_empty() {
            portable = quantised;
        }
        match first.is_empty() {
            true => first = results,
            false => assert_eq!(first, results, "{isa:?} differs from portable code"),
        }
    }
    Ok(())
}

//! `low_rank`: the product of two factors, summed over ascending rank (spec: encodings/low_rank).

use super::{RawNode, Shape, dense, descriptor, extent, require, require_child, require_counts, structure};
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use crate::wire::{U32, record};
use core::ops::Range;
use std::sync::{Arc, OnceLock};

/// Id on disk.
pub const ID: u32 = 4;
/// Name in every layer.
pub const NAME: &str = "low_rank";
/// Version written and read.
pub const VERSION: u16 = 1;

/// Most elements of a factor that a view keeps decoded (16 MiB of f32).
const KEPT_ELEMS: usize = 1 << 22;

/// Most sums that are built at a time (64 KiB).
const TILE_ELEMS: usize = 1 << 14;

record! {
    /// Descriptor as stored.
    DescriptorRecord 8 {
        /// Rows of both factors, at least 1.
        rank: U32,
        /// Zero.
        reserved: U32,
    }
}

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Rows of both factors, at least 1.
    pub rank: u32,
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` for a rank of 0 or factors of other shapes.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        Self::parse_beside(shape, 0)
    }

    /// As [`Descriptor::parse`], for a node that has so many segments beside its factors.
    pub(super) fn parse_beside(shape: &Shape<'_>, segments: usize) -> Result<Self> {
        let record: DescriptorRecord = descriptor(shape.descriptor)?;
        let rank = record.rank.get();
        if rank == 0 {
            return Err(structure("rank", "expected at least 1, found 0"));
        }
        require("reserved", 0, record.reserved.get())?;
        require_counts(shape, segments, 2)?;
        require_child(shape, 0, "a_t", rank.into(), shape.rows)?;
        require_child(shape, 1, "b", rank.into(), shape.cols)?;
        Ok(Self { rank })
    }

    /// The descriptor of a node of these factors.
    pub(super) fn of_factors(a_t: &NodeData) -> Result<Self> {
        let rank = u32::try_from(a_t.rows)
            .map_err(|_| Error::expected(ErrorKind::Structure, "rank", "less than 2^32", a_t.rows))?;
        Ok(Self { rank })
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let record = DescriptorRecord { rank: self.rank.into(), reserved: 0.into() };
        bytemuck::bytes_of(&record).to_vec()
    }
}

/// Builds a node from `a_t` `[rank, rows]` and `b` `[rank, cols]`.
///
/// The factors are stored component after component, so that a prefix of both is a valid factor
/// pair of a smaller rank.
///
/// # Errors
/// `Structure` when the factors have different ranks, or rank 0.
pub fn pack(a_t: impl Into<Arc<NodeData>>, b: impl Into<Arc<NodeData>>) -> Result<NodeData> {
    let (a_t, b): (Arc<NodeData>, Arc<NodeData>) = (a_t.into(), b.into());
    let descriptor = Descriptor::of_factors(&a_t)?.to_bytes();
    let (rows, cols) = (a_t.cols, b.cols);
    NodeData::new(ID, VERSION, rows, cols, descriptor, vec![], vec![a_t, b])
}

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    rank: usize,
    rows: usize,
    cols: usize,
    a_t: Factor<'a>,
    b: Factor<'a>,
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let descriptor = raw.check(Descriptor::parse)?;
        Self::of_factors(descriptor, raw)
    }

    /// The product of the factors of a checked node.
    pub(super) fn of_factors(Descriptor { rank }: Descriptor, raw: RawNode<'a>) -> Result<Self> {
        let mut children = raw.children.into_iter();
        let mut factor = |part: &'static str| match children.next() {
            Some(view) => {
                let keeps = raw.keep.take_values(view.rows().saturating_mul(view.cols()), KEPT_ELEMS);
                Ok(Factor { part, view: Box::new(view), keeps, kept: OnceLock::new() })
            }
            None => Err(structure(part, "is missing")),
        };
        Ok(Self {
            rank: extent("rank", rank.into())?,
            rows: extent("rows", raw.rows)?,
            cols: extent("cols", raw.cols)?,
            a_t: factor("a_t")?,
            b: factor("b")?,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The factor `[rank, rows]`.
    pub fn a_t(&self) -> &super::View<'a> {
        &self.a_t.view
    }

    /// The factor `[rank, cols]`.
    pub fn b(&self) -> &super::View<'a> {
        &self.b.view
    }

    /// Whether no read decodes a factor anew.
    pub(super) fn is_ready(&self) -> bool {
        self.a_t.is_ready() && self.b.is_ready()
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.fill(0.0);
        if out.is_empty() {
            return Ok(());
        }
        // A tile of sums stays in the nearest cache for all of the rank, unless a factor has to be
        // decoded anew each time.
        let tile_rows = match self.is_ready() {
            true => (TILE_ELEMS / self.cols).max(1),
            false => rows.len(),
        };
        let keep = rows.len() > 1;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (start, tile) in rows.step_by(tile_rows).zip(out.chunks_mut(tile_rows * self.cols)) {
            let tile_range = start..start + tile.len() / self.cols;
            for k in 0..self.rank {
                let a = self.a_t.row(k, tile_range.clone(), false, &mut a)?;
                let b = self.b.row(k, 0..self.cols, keep, &mut b)?;
                for (out, a) in tile.chunks_exact_mut(self.cols).zip(a) {
                    for (sum, b) in out.iter_mut().zip(b) {
                        *sum += a * b;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn verify(&self) -> Result<()> {
        for factor in [&self.a_t, &self.b] {
            factor.view.verify().map_err(|e| e.within(factor.part))?;
        }
        Ok(())
    }
}

/// A factor, kept decoded from its first use on where that is not too large.
#[derive(Debug)]
struct Factor<'a> {
    part: &'static str,
    view: Box<super::View<'a>>,
    /// Whether the decoded factor may be kept.
    keeps: bool,
    kept: OnceLock<Result<Vec<f32>>>,
}

impl Factor<'_> {
    fn elements(&self) -> usize {
        self.view.rows().saturating_mul(self.view.cols())
    }

    /// Whether any part of the factor can be read without decoding more than that part each time.
    fn is_ready(&self) -> bool {
        self.keeps || matches!(*self.view, super::View::Dense(_))
    }

    /// Columns `cols` of row `row`; `scratch` holds them where they are not kept. A dense factor
    /// is read where it lies unless `keep` is set.
    fn row<'s>(
        &'s self,
        row: usize,
        cols: Range<usize>,
        keep: bool,
        scratch: &'s mut Vec<f32>,
    ) -> Result<&'s [f32]> {
        let width = self.view.cols();
        match self.view.as_ref() {
            super::View::Dense(dense) if !(keep && self.keeps) && self.kept.get().is_none() => {
                let bytes = dense.dtype().bytes();
                let range = (row * width + cols.start) * bytes..(row * width + cols.end) * bytes;
                scratch.resize(cols.len(), 0.0);
                dense
                    .dtype()
                    .decode(dense.bytes().get(range).unwrap_or(&[]), scratch)
                    .map_err(|e| e.within(dense::NAME).within(self.part))?;
                Ok(scratch)
            }
            view if self.keeps => {
                let kept = self.kept.get_or_init(|| {
                    let mut values = vec![0.0; self.elements()];
                    view.decode_rows(0..view.rows(), &mut values).map_err(|e| e.within(self.part))?;
                    Ok(values)
                });
                let values = kept.as_ref().map_err(Error::clone)?;
                Ok(values.get(row * width + cols.start..row * width + cols.end).unwrap_or(&[]))
            }
            view => {
                scratch.resize(width, 0.0);
                view.decode_rows(row..row + 1, scratch).map_err(|e| e.within(self.part))?;
                Ok(scratch.get(cols).unwrap_or(&[]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::testing::{bits, damages, decoded, dense_f32, pattern, survives};
    use crate::encoding::{grouped, sparse};
    use proptest::prelude::*;

    fn naive(rank: usize, rows: usize, cols: usize, a_t: &[f32], b: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; rows * cols];
        for i in 0..rows {
            for j in 0..cols {
                for k in 0..rank {
                    let product = a_t[k * rows + i] * b[k * cols + j];
                    out[i * cols + j] += product;
                }
            }
        }
        out
    }

    fn grouped_factor(rows: usize, cols: usize) -> Result<NodeData> {
        let descriptor = grouped::Descriptor {
            bits: 8,
            code_map: grouped::CodeMap::Integer { offset: -128 },
            scale_op: grouped::ScaleOp::Multiply,
            zero_op: grouped::ZeroOp::None,
            group_rows: 1,
            group_cols: 0,
        };
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 73 % 256) as u8).collect();
        let scale = Some(dense_f32(rows, 1, &vec![0.37; rows])?);
        let children = grouped::Children { scale, ..Default::default() };
        grouped::pack(&descriptor, rows as u64, cols as u64, &codes, children)
    }

    #[test]
    fn products_sum_in_order_of_rank() -> Result<()> {
        for (rank, rows, cols) in [(1, 1, 1), (2, 3, 5), (5, 300, 70), (17, 2, 40_000), (3, 0, 4), (3, 4, 0)]
        {
            let scaled = |len| pattern(len).iter().map(|v| v * 0.37).collect::<Vec<f32>>();
            let (a_t, b) = (scaled(rank * rows), scaled(rank * cols));
            let node = pack(dense_f32(rank, rows, &a_t)?, dense_f32(rank, cols, &b)?)?;
            assert_eq!(
                bits(&decoded(&node)?),
                bits(&naive(rank, rows, cols, &a_t, &b)),
                "{rank} {rows} {cols}"
            );
        }
        Ok(())
    }

    #[test]
    fn factors_may_have_any_encoding() -> Result<()> {
        for (rank, rows, cols) in [(3, 9, 7), (2, 2_200_000, 2)] {
            let (a_t, b) = (grouped_factor(rank, rows)?, grouped_factor(rank, cols)?);
            let expected = naive(rank, rows, cols, &decoded(&a_t)?, &decoded(&b)?);
            let node = pack(a_t, b)?;
            let view = node.view()?;
            let mut out = vec![0.0; rows * cols];
            view.decode_rows(0..rows, &mut out)?;
            assert_eq!(bits(&out), bits(&expected));
            view.decode_rows(rows - 1..rows, &mut out[..cols])?;
            assert_eq!(bits(&out[..cols]), bits(&expected[(rows - 1) * cols..]));
        }
        Ok(())
    }

    #[test]
    fn rejects_rank_0_and_other_ranks() -> Result<()> {
        for (left, right) in [(0, 0), (2, 3)] {
            let pair = (dense_f32(left, 1, &vec![0.0; left])?, dense_f32(right, 1, &vec![0.0; right])?);
            let error = pack(pair.0, pair.1).err().map(|e| e.kind());
            assert_eq!(error, Some(ErrorKind::Structure));
        }
        Ok(())
    }

    #[test]
    fn error_in_a_factor_names_it() -> Result<()> {
        let positions =
            sparse::Positions { block: sparse::Block::ONE, row_offsets: vec![0, 1], columns: vec![0] };
        let mut b = sparse::pack_csr(sparse::Op::Add, 1, 2, &positions, dense_f32(1, 1, &[1.0])?)?;
        b.segments[1] = vec![9, 0].into();
        let node = pack(dense_f32(1, 1, &[1.0])?, b)?;
        for _ in 0..2 {
            let error = node.view()?.decode_rows(0..1, &mut [0.0; 2]).map_err(|e| e.to_string());
            assert!(error.is_err_and(|e| e.starts_with("low_rank.b.sparse.columns")));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn equals_the_naive_product(
            (rank, rows, cols) in (1usize..6, 0usize..9, 0usize..9),
            values in proptest::collection::vec(any::<f32>(), 100),
        ) {
            let (a_t, b) = (values[..rank * rows].to_vec(), values[50..50 + rank * cols].to_vec());
            let node = pack(dense_f32(rank, rows, &a_t)?, dense_f32(rank, cols, &b)?)?;
            let expected = naive(rank, rows, cols, &a_t, &b);
            let quiet = |values: &[f32]| -> Vec<u32> {
                values.iter().map(|v| if v.is_nan() { 1 } else { v.to_bits() }).collect()
            };
            let mut out = vec![0.0; rows * cols];
            node.view()?.decode_rows(0..rows, &mut out)?;
            prop_assert_eq!(quiet(&out), quiet(&expected));
        }

        #[test]
        fn damage_is_no_panic(damages in damages()) {
            survives(&pack(grouped_factor(2, 3)?, dense_f32(2, 4, &pattern(8))?)?, &damages);
        }
    }
}

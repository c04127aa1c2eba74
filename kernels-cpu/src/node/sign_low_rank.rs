//! `sign_low_rank`: signs with a magnitude that is made in registers; in fast products sums of signed
//! columns by tables.

use super::{Node, Plan as AnyPlan, TILE_ELEMS, Wanted};
use crate::arch;
use crate::error::Result;
use crate::lines::Lines;
use crate::operands::{BLOCK, Input, LANES, SIDE, SIGN_TABLES, Signed};
use cmf_format::encoding::View as AnyView;
use cmf_format::encoding::sign_low_rank::View;

/// Tokens from which on rows are decoded in fast products too.
const MANY_TOKENS: usize = 8;
/// Rows whose sums are made with the tables of a block, before those of the next are.
const PANEL: usize = 512;
/// Rows that are decoded at a time, block by block: not so many that their places are far from each other.
const DECODED: usize = 32;
/// Words of signs from one block to the next: not a power of 2, so that caches hold the lines of all.
const STRIDE: usize = PANEL + 8;

/// What is prepared of a node.
#[derive(Debug)]
pub(crate) struct Plan {
    a_t: Box<AnyPlan>,
    b: Box<AnyPlan>,
    /// Bytes of a row of signs.
    row_bytes: usize,
}

impl Plan {
    /// `None` for no elements.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let magnitude = view.magnitude();
        if view.rows() == 0 || view.cols() == 0 {
            return None;
        }
        Some(Self {
            a_t: Box::new(AnyPlan::new(magnitude.a_t())),
            b: Box::new(AnyPlan::new(magnitude.b())),
            row_bytes: view.cols().div_ceil(32) * 4,
        })
    }

    pub(super) fn decode(&self, view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
        let cols = view.cols();
        self.with_factors(view, wanted, &mut |rows, wanted| {
            let first = wanted.rows.start;
            wanted.parts(DECODED, cols, &mut |Wanted { simd, rows: part, out, .. }| {
                arch::signed(simd, &rows.part(part.start - first..part.end - first), cols, cols, out);
                Ok(())
            })
        })
    }

    pub(super) fn multiply(&self, view: &View<'_>, input: &Input<'_>, wanted: Wanted<'_>) -> Result<()> {
        let by_sums = input.is_quantised() && input.tokens < MANY_TOKENS;
        self.with_factors(view, wanted, &mut |rows, wanted| {
            if by_sums {
                add_sums(&rows, input, wanted);
                return Ok(());
            }
            let width = rows.blocks * BLOCK;
            let tile_rows = (TILE_ELEMS / width).next_multiple_of(SIDE).max(SIDE);
            let first = wanted.rows.start;
            wanted.parts(tile_rows, input.tokens, &mut |Wanted { simd, rows: part, out, work }| {
                let tile = work.sum.sized(part.len() * rows.blocks);
                let rows = rows.part(part.start - first..part.end - first);
                arch::signed(simd, &rows, width, width, tile.as_flattened_mut());
                arch::dot(simd, tile, input, out);
                Ok(())
            })
        })
    }

    /// Hands the rows with their factors to `each`.
    fn with_factors(
        &self,
        view: &View<'_>,
        wanted: Wanted<'_>,
        each: &mut dyn FnMut(Signed<'_>, Wanted<'_>) -> Result<()>,
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let (rank, blocks) = (view.magnitude().rank(), view.cols().div_ceil(BLOCK));
        let (mut a, mut b) = (core::mem::take(&mut work.raw), core::mem::take(&mut work.zeros));
        let mut row = core::mem::take(&mut work.scales);
        let left = a.sized(rows.len().div_ceil(SIDE) * rank * SIDE);
        let right = b.sized(blocks * rank * BLOCK);
        let mut done =
            self.read_left(view, Wanted { simd, rows: rows.clone(), out: &mut *left, work }, &mut row);
        if done.is_ok() {
            done = self.read_right(view, Wanted { simd, rows: 0..rank, out: &mut *right, work }, &mut row);
        }
        if done.is_ok() {
            let signs = rows.start * self.row_bytes..rows.end * self.row_bytes;
            let signed = Signed {
                rank,
                blocks,
                rows: rows.len(),
                a: left.as_chunks().0,
                b: right.as_chunks().0,
                signs: view.signs().get(signs).unwrap_or(&[]),
                row_bytes: self.row_bytes,
            };
            done = each(signed, Wanted { simd, rows, out, work: &mut *work });
        }
        (work.raw, work.zeros, work.scales) = (a, b, row);
        done
    }

    /// Columns `wanted.rows` of `a_t`, in the order of [`Signed::a`].
    fn read_left(&self, view: &View<'_>, wanted: Wanted<'_>, column: &mut Lines<f32>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let (rank, child) = (view.magnitude().rank(), view.magnitude().a_t());
        out.fill(0.0);
        for k in 0..rank {
            let done;
            let values = match child {
                // Elements that lie alone need no others.
                AnyView::Dense(dense) => {
                    let bytes = dense.dtype().bytes();
                    let first = k * dense.cols();
                    let range = (first + rows.start) * bytes..(first + rows.end) * bytes;
                    let values = column.sized(rows.len());
                    done = dense.dtype().decode(dense.bytes().get(range).unwrap_or(&[]), values);
                    values
                }
                _ => {
                    let values = column.sized(view.rows());
                    let node = Node { view: child, plan: &self.a_t };
                    let wanted = Wanted { simd, rows: k..k + 1, out: &mut *values, work: work.below() };
                    done = node.decode(wanted);
                    values.get_mut(rows.clone()).unwrap_or(&mut [])
                }
            };
            done.map_err(|e| e.within("a_t"))?;
            for (values, out) in values.chunks(SIDE).zip(out.chunks_exact_mut(rank * SIDE)) {
                let out = out.get_mut(k * SIDE..).unwrap_or(&mut []);
                out.iter_mut().zip(values).for_each(|(out, value)| *out = *value);
            }
        }
        Ok(())
    }

    /// The rows of `b`, in the order of [`Signed::b`].
    fn read_right(&self, view: &View<'_>, wanted: Wanted<'_>, row: &mut Lines<f32>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let node = Node { view: view.magnitude().b(), plan: &self.b };
        let rank = rows.len();
        for k in rows {
            let values = row.sized(view.cols());
            let wanted = Wanted { simd, rows: k..k + 1, out: &mut *values, work: work.below() };
            node.decode(wanted).map_err(|e| e.within("b"))?;
            for (values, out) in values.chunks(BLOCK).zip(out.chunks_exact_mut(rank * BLOCK)) {
                let out = out.get_mut(k * BLOCK..(k + 1) * BLOCK).unwrap_or(&mut []);
                let (own, padding) = out.split_at_mut(values.len().min(out.len()));
                own.copy_from_slice(values);
                padding.fill(0.0);
            }
        }
        Ok(())
    }
}

/// Adds products by the sums of signed columns: of row i, Σ a[i, k] (Σ ± b[k, j] x[j]).
fn add_sums(rows: &Signed<'_>, input: &Input<'_>, wanted: Wanted<'_>) {
    let Wanted { simd, out, work, .. } = wanted;
    let (cols, tables) = (rows.blocks * BLOCK, SIGN_TABLES * 16);
    let (columns, buffer) = work.lanes.sized(cols + tables + PANEL).split_at_mut(cols);
    let (tables, sums) = buffer.split_at_mut(tables);
    let Some(tables) = tables.as_chunks_mut().0.first_chunk_mut() else { return };
    let signs = work.signs.sized(rows.blocks * STRIDE);
    for (token, first) in
        (0..input.tokens).flat_map(|token| (0..rows.rank).step_by(LANES).map(move |k| (token, k)))
    {
        arch::products(simd, rows, first, input.values(token), columns);
        for start in (0..rows.rows).step_by(PANEL) {
            let part = rows.part(start..rows.rows.min(start + PANEL));
            let sums = sums.get_mut(..part.rows).unwrap_or(&mut []);
            sums.fill([0.0; LANES]);
            for row in 0..part.rows {
                let (words, rest) = part.row_signs(row).as_chunks::<8>();
                let mut of_blocks = signs.get_mut(row..).unwrap_or(&mut []).iter_mut().step_by(STRIDE);
                words.iter().zip(&mut of_blocks).for_each(|(word, out)| *out = u64::from_le_bytes(*word));
                if let (Some(half), Some(out)) = (rest.first_chunk(), of_blocks.next()) {
                    *out = u32::from_le_bytes(*half).into();
                }
            }
            for (columns, signs) in columns.as_chunks::<BLOCK>().0.iter().zip(signs.chunks_exact(STRIDE)) {
                arch::fill_tables(simd, columns, tables);
                arch::sum_signs(simd, signs, tables, sums);
            }
            let out = out.get_mut(start * input.tokens + token..).unwrap_or(&mut []);
            let sides = part.a.chunks_exact(part.rank).zip(sums.chunks(SIDE));
            for ((a, sums), out) in sides.zip(out.chunks_mut(SIDE * input.tokens)) {
                let a = a.get(first..).unwrap_or(&[]);
                for (r, (sums, out)) in sums.iter().zip(out.iter_mut().step_by(input.tokens)).enumerate() {
                    *out += a.iter().zip(sums).map(|(a, sum)| a[r] * sum).sum::<f32>();
                }
            }
        }
    }
}

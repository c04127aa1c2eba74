//! Nodes of any encoding: which kernel multiplies with them.

mod codebook;
mod dense;
mod grouped;
mod low_rank;
mod nested;
mod trellis;

use crate::arch::{self, Simd};
use crate::error::Result;
use crate::operands::{BLOCK, Input};
use crate::work::{Work, sized, sized_with};
use cmf_format::encoding::View;
use core::ops::Range;

/// Values of a decoded tile: with what the decoder reads for it, it stays in the cache of a core.
pub(crate) const TILE_ELEMS: usize = 1 << 15;

/// How a node is worked with: what is prepared once, beside the view.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Elements are converted as they lie.
    Dense,
    Grouped(grouped::Plan),
    Trellis(trellis::Plan),
    LowRank(low_rank::Plan),
    Nested(nested::Plan),
    Codebook(codebook::Plan),
    /// By the reference decode, some rows at a time.
    Reference,
}

impl Plan {
    pub(crate) fn new(view: &View<'_>) -> Self {
        let plan = match view {
            View::Dense(_) => Some(Plan::Dense),
            View::Grouped(view) => grouped::Plan::new(view).map(Plan::Grouped),
            View::Trellis(view) => trellis::Plan::new(view).map(Plan::Trellis),
            View::Nested(view) => nested::Plan::new(view).map(Plan::Nested),
            View::Codebook(view) => codebook::Plan::new(view).map(Plan::Codebook),
            View::LowRank(view) => Some(Plan::LowRank(low_rank::Plan::new(view))),
            _ => None,
        };
        plan.unwrap_or(Plan::Reference)
    }

    /// Whether the rows of a product are made all at once, not some rows by each thread.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Plan::LowRank(_))
    }
}

/// A node, how it is worked with, and on what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'v, 'a> {
    pub(crate) view: &'v View<'a>,
    pub(crate) plan: &'v Plan,
    pub(crate) simd: Simd,
}

impl Node<'_, '_> {
    /// Adds the products of rows `rows` with each token to `out[row * tokens + token]`, `row` counted
    /// from the first of `rows`. `input` has the node's columns.
    pub(crate) fn multiply(
        &self,
        rows: Range<usize>,
        input: &Input<'_>,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let is_fast = !input.quantised.is_empty();
        match (self.plan, self.view) {
            (Plan::Grouped(plan), View::Grouped(view)) => {
                plan.multiply(self.simd, view, rows, input, is_fast, out, work)
            }
            (Plan::Trellis(plan), View::Trellis(view)) => {
                plan.multiply(self.simd, view, rows, input, is_fast, out, work)
            }
            (Plan::Nested(plan), View::Nested(view)) if plan.is_fused(input.tokens) => {
                plan.multiply(self.simd, view, rows, input, is_fast, out, work)
            }
            (Plan::Dense, View::Dense(view)) if let Some(element) = dense::element(view.dtype()) => {
                dense::multiply(self.simd, element, view, rows, input, out);
                Ok(())
            }
            (Plan::LowRank(plan), View::LowRank(view)) => {
                plan.multiply(self.simd, view, rows, input, out, work)
            }
            _ => self.multiply_decoded(rows, input, out, work),
        }
    }

    /// [`Node::multiply`] by way of decoded rows.
    fn multiply_decoded(
        &self,
        rows: Range<usize>,
        input: &Input<'_>,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let simd = self.simd;
        each_tile(self.view.cols(), rows, input, out, work, simd, &mut |rows, out, work| {
            self.decode(rows, out, work)
        })
    }

    /// Decodes rows `rows`, as the reference decode does, to the bit.
    pub(crate) fn decode(&self, rows: Range<usize>, out: &mut [f32], work: &mut Work) -> Result<()> {
        match (self.plan, self.view) {
            (Plan::Dense, View::Dense(view)) => dense::decode(self.simd, view, rows, out),
            (Plan::Grouped(plan), View::Grouped(view)) => plan.decode(self.simd, view, rows, out, work),
            (Plan::Trellis(plan), View::Trellis(view)) => plan.decode(self.simd, view, rows, out, work),
            (Plan::Nested(plan), View::Nested(view)) => plan.decode(self.simd, view, rows, out, work),
            (Plan::Codebook(plan), View::Codebook(view)) => plan.decode(self.simd, view, rows, out, work),
            _ => self.view.decode_rows(rows, out),
        }
    }
}

/// Decodes some rows.
pub(crate) type Decode<'d> = dyn FnMut(Range<usize>, &mut [f32], &mut Work) -> Result<()> + 'd;

/// Adds the products of rows that `decode` makes, a tile of them at a time, to `out`.
pub(crate) fn each_tile(
    cols: usize,
    rows: Range<usize>,
    input: &Input<'_>,
    out: &mut [f32],
    work: &mut Work,
    simd: Simd,
    decode: &mut Decode<'_>,
) -> Result<()> {
    let tile_rows = (TILE_ELEMS / (input.blocks * BLOCK).max(1)).max(4);
    let outs = out.chunks_mut((tile_rows * input.tokens).max(1));
    for (start, out) in rows.clone().step_by(tile_rows).zip(outs) {
        let rows = start..rows.end.min(start + tile_rows);
        let mut tile = core::mem::take(&mut work.sum);
        let padded = sized_with(&mut tile, rows.len() * input.blocks, [0.0; BLOCK]);
        let done = decode_padded(cols, rows, padded, input.blocks, work, decode);
        if done.is_ok() {
            arch::dot(simd, padded, input, out);
        }
        work.sum = tile;
        done?;
    }
    Ok(())
}

/// Decodes rows into rows of `blocks` blocks.
fn decode_padded(
    cols: usize,
    rows: Range<usize>,
    out: &mut [[f32; BLOCK]],
    blocks: usize,
    work: &mut Work,
    decode: &mut Decode<'_>,
) -> Result<()> {
    if cols == blocks * BLOCK {
        return decode(rows, out.as_flattened_mut(), work);
    }
    // Beside the tile, where `decode` may use all other buffers of its own level.
    let mut plain = core::mem::take(&mut work.below().tile);
    let values = sized_with(&mut plain, (rows.len() * cols).div_ceil(BLOCK), [0.0; BLOCK]);
    let values = values.as_flattened_mut().get_mut(..rows.len() * cols).unwrap_or(&mut []);
    let done = decode(rows, values, work);
    for (values, out) in values.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(blocks)) {
        let out = out.as_flattened_mut();
        let (own, padding) = out.split_at_mut(cols.min(out.len()));
        own.copy_from_slice(values);
        padding.fill(0.0);
    }
    work.below().tile = plain;
    done
}

/// Decodes rows of a child, of which a single one may stand for all.
fn read_child(
    simd: Simd,
    view: &View<'_>,
    plan: &Plan,
    rows: Range<usize>,
    group_rows: usize,
    out: &mut Vec<f32>,
    work: &mut Work,
) -> Result<()> {
    let (cols, count) = (view.cols(), rows.len());
    let out = sized(out, count * cols);
    let node = Node { view, plan, simd };
    if group_rows == 1 && view.rows() > 1 {
        return node.decode(rows, out, work);
    }
    let mut last: Option<usize> = None;
    for (place, row) in rows.enumerate() {
        let index = if view.rows() == 1 { 0 } else { row / group_rows };
        if last == Some(index) {
            out.copy_within((place - 1) * cols..place * cols, place * cols);
        } else {
            let out = out.get_mut(place * cols..(place + 1) * cols).unwrap_or(&mut []);
            node.decode(index..index + 1, out, work)?;
        }
        last = Some(index);
    }
    Ok(())
}

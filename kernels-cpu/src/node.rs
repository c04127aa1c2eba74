//! Nodes of any encoding: which kernel multiplies with them.

mod codebook;
mod dense;
mod grouped;
mod lossless;
mod low_rank;
pub(crate) mod nested;
mod sign_low_rank;
mod sparse;
mod trellis;

pub(crate) use self::lossless::Frames;
use crate::arch::{self, Simd};
use crate::error::Result;
use crate::operands::{BLOCK, Input};
use crate::work::Work;
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
    Columns(grouped::Columns),
    Trellis(trellis::Plan),
    LowRank(low_rank::Plan),
    Lossless,
    Nested(nested::Plan),
    Codebook(codebook::Plan),
    Sparse(sparse::Plan),
    SignLowRank(sign_low_rank::Plan),
    /// By the reference decode, some rows at a time.
    Reference,
}

impl Plan {
    pub(crate) fn new(view: &View<'_>) -> Self {
        let plan = match view {
            View::Dense(_) => Some(Plan::Dense),
            View::Grouped(view) => {
                let columns = || grouped::Columns::new(view).map(Plan::Columns);
                grouped::Plan::new(view).map(Plan::Grouped).or_else(columns)
            }
            View::Trellis(view) => trellis::Plan::new(view).map(Plan::Trellis),
            View::Nested(view) => nested::Plan::new(view).map(Plan::Nested),
            View::Codebook(view) => codebook::Plan::new(view).map(Plan::Codebook),
            View::Sparse(view) => sparse::Plan::new(view).map(Plan::Sparse),
            View::SignLowRank(view) => sign_low_rank::Plan::new(view).map(Plan::SignLowRank),
            View::Lossless(_) => Some(Plan::Lossless),
            View::LowRank(view) => Some(Plan::LowRank(low_rank::Plan::new(view))),
        };
        plan.unwrap_or(Plan::Reference)
    }

    /// Whether the rows of a product are made all at once, not some rows by each thread.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Plan::LowRank(_))
    }

    /// Whether products are exact whatever the precision, so that many are made faster of decoded rows of a
    /// sum.
    pub(crate) fn is_always_exact(&self) -> bool {
        matches!(self, Plan::SignLowRank(_) | Plan::Sparse(_) | Plan::Lossless | Plan::Reference)
    }

    /// Rows that are decoded together at least: what is read for a row serves others.
    pub(crate) fn least_rows(&self) -> usize {
        if matches!(self, Plan::SignLowRank(_)) { 32 } else { 4 }
    }
}

/// A node and how it is worked with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'v, 'a> {
    pub(crate) view: &'v View<'a>,
    pub(crate) plan: &'v Plan,
}

/// Rows that a node is asked for: where they go, and what the way there may use.
pub(crate) struct Wanted<'w> {
    pub(crate) simd: Simd,
    pub(crate) rows: Range<usize>,
    /// What belongs to these rows, from the first on.
    pub(crate) out: &'w mut [f32],
    pub(crate) work: &'w mut Work,
}

impl Wanted<'_> {
    /// Hands up to `count` rows at a time to `each`, up to the first error. `out` has `width` values
    /// a row.
    fn parts(self, count: usize, width: usize, each: &mut dyn FnMut(Wanted<'_>) -> Result<()>) -> Result<()> {
        let Self { simd, rows, out, work } = self;
        let outs = out.chunks_mut((count * width).max(1));
        rows.clone().step_by(count).zip(outs).try_for_each(|(start, out)| {
            each(Wanted { simd, rows: start..rows.end.min(start + count), out, work })
        })
    }
}

impl Node<'_, '_> {
    /// Adds the products of the rows with each token to `out[row * tokens + token]`, `row` counted
    /// from the first of the rows. `input` has the node's columns.
    pub(crate) fn multiply(&self, input: &Input<'_>, wanted: Wanted<'_>) -> Result<()> {
        match (self.plan, self.view) {
            (Plan::Grouped(plan), View::Grouped(view)) => plan.multiply(view, input, wanted),
            (Plan::Trellis(plan), View::Trellis(view)) => plan.multiply(view, input, wanted),
            (Plan::Nested(plan), View::Nested(view)) if plan.is_fused(input) => {
                plan.multiply(view, input, wanted)
            }
            (Plan::Dense, View::Dense(view)) if let Some(element) = dense::element(view.dtype()) => {
                dense::multiply(element, view, input, wanted);
                Ok(())
            }
            (Plan::LowRank(plan), View::LowRank(view)) => plan.multiply(view, input, wanted),
            (Plan::Codebook(plan), View::Codebook(view)) if plan.is_by_tables(input) => {
                plan.multiply(view, input, wanted)
            }
            (Plan::Sparse(plan), View::Sparse(view)) => plan.multiply(self.view, view, input, wanted),
            (Plan::SignLowRank(plan), View::SignLowRank(view)) => plan.multiply(view, input, wanted),
            _ => each_tile(self.view.cols(), 4, input, wanted, &mut |wanted| self.decode(wanted)),
        }
    }

    /// Decodes the rows, as the reference decode does, to the bit.
    pub(crate) fn decode(&self, wanted: Wanted<'_>) -> Result<()> {
        match (self.plan, self.view) {
            (Plan::Dense, View::Dense(view)) => dense::decode(view, wanted),
            (Plan::Lossless, View::Lossless(view)) => lossless::decode(view, wanted),
            (Plan::Grouped(plan), View::Grouped(view)) => plan.decode(view, wanted),
            (Plan::Columns(plan), View::Grouped(view)) => plan.decode(view, wanted),
            (Plan::Trellis(plan), View::Trellis(view)) => plan.decode(view, wanted),
            (Plan::Nested(plan), View::Nested(view)) => plan.decode(view, wanted),
            (Plan::Codebook(plan), View::Codebook(view)) => plan.decode(view, wanted),
            (Plan::Sparse(plan), View::Sparse(view)) => plan.decode(self.view, view, wanted),
            (Plan::SignLowRank(plan), View::SignLowRank(view)) => plan.decode(view, wanted),
            _ => self.view.decode_rows(wanted.rows, wanted.out),
        }
    }
}

/// Whether two nodes are the same bytes, as far as that is looked at: of elements, and of codes with scales.
fn is_same(a: &View<'_>, b: &View<'_>) -> bool {
    match (a, b) {
        (View::Dense(a), View::Dense(b)) => {
            (a.dtype(), a.rows(), a.cols()) == (b.dtype(), b.rows(), b.cols())
                && are_same_bytes(a.bytes(), b.bytes())
        }
        (View::Grouped(a), View::Grouped(b)) => {
            let children = |a: Option<&View<'_>>, b: Option<&View<'_>>| match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => is_same(a, b),
                _ => false,
            };
            (a.descriptor(), a.rows(), a.cols()) == (b.descriptor(), b.rows(), b.cols())
                && are_same_bytes(a.codes(), b.codes())
                && children(a.scale(), b.scale())
                && children(a.zero(), b.zero())
                && children(a.table(), b.table())
        }
        _ => false,
    }
}

/// Most often they are not only the same, but in one place.
fn are_same_bytes(a: &[u8], b: &[u8]) -> bool {
    core::ptr::eq(a, b) || a == b
}

/// Decodes some rows.
pub(crate) type Decode<'d> = dyn FnMut(Wanted<'_>) -> Result<()> + 'd;

/// Adds the products of rows that `decode` makes, a tile of them at a time, to `out`. A tile has
/// `least_rows`, or more if these are short.
pub(crate) fn each_tile(
    cols: usize,
    least_rows: usize,
    input: &Input<'_>,
    wanted: Wanted<'_>,
    decode: &mut Decode<'_>,
) -> Result<()> {
    let tile_rows = (TILE_ELEMS / (input.blocks * BLOCK).max(1)).max(least_rows);
    wanted.parts(tile_rows, input.tokens, &mut |Wanted { simd, rows, out, work }| {
        let mut tile = core::mem::take(&mut work.sum);
        let padded = tile.sized(rows.len() * input.blocks);
        let decoded = Wanted { simd, rows, out: padded.as_flattened_mut(), work };
        let done = decode_padded(cols, input.blocks, decoded, decode);
        if done.is_ok() {
            arch::dot(simd, padded, input, out);
        }
        work.sum = tile;
        done
    })
}

/// Decodes rows into rows of `blocks` blocks.
fn decode_padded(cols: usize, blocks: usize, wanted: Wanted<'_>, decode: &mut Decode<'_>) -> Result<()> {
    if cols == blocks * BLOCK {
        return decode(wanted);
    }
    let Wanted { simd, rows, out, work } = wanted;
    let count = rows.len() * cols;
    // Beside the tile, where `decode` may use all other buffers of its own level.
    let mut plain = core::mem::take(&mut work.below().tile);
    let values = plain.sized(count.div_ceil(BLOCK));
    let values = values.as_flattened_mut().get_mut(..count).unwrap_or(&mut []);
    let done = decode(Wanted { simd, rows, out: values, work });
    for (values, out) in values.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(blocks * BLOCK)) {
        let (own, padding) = out.split_at_mut(cols.min(out.len()));
        own.copy_from_slice(values);
        padding.fill(0.0);
    }
    work.below().tile = plain;
    done
}

/// Decodes rows of a child that has one for each `group_rows` of them, or a single one for all.
fn read_child(child: Node<'_, '_>, group_rows: usize, wanted: Wanted<'_>) -> Result<()> {
    let height = child.view.rows();
    if group_rows == 1 && height > 1 {
        return child.decode(wanted);
    }
    let cols = child.view.cols();
    let Wanted { simd, rows, out, work } = wanted;
    let (mut row, mut rest) = (rows.start, out);
    while row < rows.end {
        let index = if height == 1 { 0 } else { row / group_rows };
        let end = if height == 1 { rows.end } else { rows.end.min((index + 1) * group_rows) };
        let (group, next) = rest.split_at_mut(rest.len().min((end - row) * cols));
        let (first, others) = group.split_at_mut(group.len().min(cols));
        child.decode(Wanted { simd, rows: index..index + 1, out: &mut *first, work })?;
        others.chunks_exact_mut(cols.max(1)).for_each(|other| other.copy_from_slice(first));
        (row, rest) = (end, next);
    }
    Ok(())
}

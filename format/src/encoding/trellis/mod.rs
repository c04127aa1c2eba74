//! `trellis`: each weight is a function of the last bits of its path (spec: encodings/trellis).
//!
//! Each weight of a path adds `step_bits` bits to it; its value is a code of the `state_bits` bits
//! that end there, times a scale. So a weight reaches `2^state_bits` values at `step_bits` bits, and
//! any weight can be read without those before it. The bits of a path form a ring, so that the
//! first weights have a past too.
//!
//! The bitshift trellis, the byte-sum code and the ring ("tail biting") are those of QTIP (Tseng et
//! al. 2024, arXiv 2406.11235).

mod descriptor;
mod pack;
#[cfg(test)]
mod tests;
mod values;
mod windows;

pub use descriptor::{Axis, Code, Descriptor, DescriptorRecord, STATE_BITS, STEP_BITS};
pub use pack::pack;
pub use values::code_values;

use super::grouped::GroupRow;
use super::{RawNode, extent, structure, value};
use crate::error::{Error, Result};
use core::ops::Range;
use std::borrow::Cow;
use std::sync::OnceLock;
use values::Values;
use windows::{Along, TILE, pieces};

/// Id on disk.
pub const ID: u32 = 7;
/// Name in every layer.
pub const NAME: &str = "trellis";
/// Version written and read.
pub const VERSION: u16 = 1;

/// Most entries of a table.
const TABLE_ELEMS: usize = 1 << *STATE_BITS.end();

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    descriptor: Descriptor,
    rows: usize,
    cols: usize,
    /// Weights of a path, at least 1 and no more than the axis has, if that has any.
    path_elems: usize,
    /// Words of such a path.
    path_words: usize,
    /// Words of all paths along the axis.
    axis_words: usize,
    paths: Cow<'a, [u8]>,
    scale: Box<super::View<'a>>,
    table: Option<Box<super::View<'a>>>,
    /// Whether the decoded table may be kept.
    keeps: bool,
    kept: OnceLock<Result<Vec<f32>>>,
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let descriptor = raw.check(Descriptor::parse)?;
        let (elems, _) = descriptor.axis_and_lines(raw.rows, raw.cols);
        let path_elems = match descriptor.path_elems {
            0 => elems,
            n => elems.min(n.into()),
        };
        let words = |words: Option<u64>| {
            words
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| structure("paths", "a path is too long for this machine"))
        };
        let mut children = raw.children.into_iter().map(Box::new);
        let scale =
            children.next().ok_or_else(|| structure("child count", "expected the scale, found nothing"))?;
        let table = children.next();
        Ok(Self {
            rows: extent("rows", raw.rows)?,
            cols: extent("cols", raw.cols)?,
            path_elems: extent("path_elems", path_elems.max(1))?,
            path_words: words(descriptor.path_words(path_elems))?,
            axis_words: words(descriptor.axis_words(elems))?,
            paths: raw
                .segments
                .into_iter()
                .next()
                .ok_or_else(|| structure("segment count", "expected 1, found 0"))?,
            keeps: table.as_ref().is_some_and(|t| raw.keep.take_values(t.cols(), TABLE_ELEMS)),
            scale,
            table,
            descriptor,
            kept: OnceLock::new(),
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

    /// Checked descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The little-endian words of the paths, in the order of the descriptor's axis.
    pub fn paths(&self) -> &[u8] {
        &self.paths
    }

    /// Weights of a path that is not the last of its axis, at least 1.
    pub fn path_elems(&self) -> usize {
        self.path_elems
    }

    /// Words of a path that is not the last of its axis. Path `i` of a row, or block `i` of rows,
    /// starts `i` times as far into that row, or `i * cols` times as far into the segment.
    pub fn path_words(&self) -> usize {
        self.path_words
    }

    /// Words of all paths of a row, or of a column.
    pub fn axis_words(&self) -> usize {
        self.axis_words
    }

    /// The scale child.
    pub fn scale(&self) -> &super::View<'a> {
        &self.scale
    }

    /// The table child.
    pub fn table(&self) -> Option<&super::View<'a>> {
        self.table.as_deref()
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        // Without rows nothing bounds the number of columns, and so what is allocated for them.
        if out.is_empty() {
            return Ok(());
        }
        let anew;
        let values = match (self.descriptor.code, &self.table) {
            (Code::ByteSum { multiplier, addend }, _) => Values::ByteSum { multiplier, addend },
            (Code::Table, Some(table)) if self.keeps => {
                Values::Table(self.kept.get_or_init(|| decode_table(table)).as_ref().map_err(Error::clone)?)
            }
            (Code::Table, Some(table)) => {
                anew = decode_table(table)?;
                Values::Table(&anew)
            }
            (Code::Table, None) => return Err(structure("table", "is missing")),
        };
        let mut scale = GroupRow::new(Some(&self.scale));
        let scale_rows = match self.descriptor.scale_rows {
            0 => self.rows.max(1),
            n => n as usize,
        };
        let mut windows = [0; TILE];
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
            match self.descriptor.axis {
                Axis::Down => self.row_across_paths(row, values, &mut windows, out),
                Axis::Along => self.row_of_paths(row, values, &mut windows, out),
            }
            scale.load(row / scale_rows).map_err(|e| e.within("scale"))?;
            multiply(out, self.descriptor.scale_cols, scale.values());
        }
        Ok(())
    }

    /// A row of which each column is a weight of another path.
    fn row_across_paths(&self, row: usize, values: Values<'_>, windows: &mut [u32; TILE], out: &mut [f32]) {
        let (block, t) = (row / self.path_elems, row % self.path_elems);
        let step = u64::from(self.descriptor.step_bits);
        let elems = self.path_elems.min(self.rows - block * self.path_elems);
        let (ring_bits, end) = (elems as u64 * step, (t as u64 + 1) * step);
        let block = self.paths.as_chunks::<4>().0.get(block * self.path_words * self.cols..).unwrap_or(&[]);
        for (tile, out) in out.chunks_mut(TILE).enumerate() {
            let windows = &mut windows[..out.len()];
            windows.fill(0);
            for piece in pieces(ring_bits, end, self.descriptor.state_bits.into()) {
                let words = block.get(piece.word as usize * self.cols + tile * TILE..).unwrap_or(&[]);
                piece.add(words, windows);
            }
            values.map(windows, out);
        }
    }

    /// A row of whole paths.
    fn row_of_paths(&self, row: usize, values: Values<'_>, windows: &mut [u32; TILE], out: &mut [f32]) {
        let step = u32::from(self.descriptor.step_bits);
        let bytes = self.axis_words * 4;
        let mut paths = self.paths.get(row * bytes..(row + 1) * bytes).unwrap_or(&[]);
        for out in out.chunks_mut(self.path_elems) {
            let ring_bits = out.len() as u64 * u64::from(step);
            let mut along = Along::new(paths, ring_bits, self.descriptor.state_bits.into());
            for (tile, out) in out.chunks_mut(TILE).enumerate() {
                let windows = &mut windows[..out.len()];
                let rest = paths.get(tile * (TILE / 8) * step as usize..).unwrap_or(&[]);
                along.next(step, rest, windows);
                values.map(windows, out);
            }
            paths = paths.get(self.path_words * 4..).unwrap_or(&[]);
        }
    }

    pub(super) fn verify(&self) -> Result<()> {
        if !self.padding_is_zero() {
            return Err(value("paths", "padding bits are not zero"));
        }
        self.scale.verify().map_err(|e| e.within("scale"))?;
        match &self.table {
            Some(table) => table.verify().map_err(|e| e.within("table")),
            None => Ok(()),
        }
    }

    /// Whether the bits after the last weight of each path are zero.
    fn padding_is_zero(&self) -> bool {
        let (elems, lines) = self.descriptor.axis_and_lines(self.rows, self.cols);
        let words = self.paths.as_chunks::<4>().0;
        if words.is_empty() {
            return true;
        }
        let step = u64::from(self.descriptor.step_bits);
        let unused = |elems: usize| match elems as u64 * step % 32 {
            0 => 0,
            used => !0u32 << used,
        };
        let (whole, tail) = (unused(self.path_elems), unused(elems % self.path_elems));
        let clear = |words: Option<&[[u8; 4]]>, unused: u32| {
            words.unwrap_or(&[]).iter().all(|word| u32::from_le_bytes(*word) & unused == 0)
        };
        // Runs of words of which the last few end a path each.
        let (run_words, ends) = match self.descriptor.axis {
            Axis::Down => (self.path_words * lines, lines),
            Axis::Along => (self.path_words, 1),
        };
        let axis_words = match self.descriptor.axis {
            Axis::Down => words.len(),
            Axis::Along => self.axis_words,
        };
        words.chunks(axis_words).all(|axis| {
            axis.chunks(run_words).enumerate().all(|(index, run)| {
                let last = run.len().checked_sub(ends).and_then(|start| run.get(start..));
                clear(last, if index < elems / self.path_elems { whole } else { tail })
            })
        })
    }
}

fn decode_table(table: &super::View<'_>) -> Result<Vec<f32>> {
    let mut values = vec![0.0; table.cols()];
    table.decode_rows(0..1, &mut values).map_err(|e| e.within("table"))?;
    Ok(values)
}

/// Multiplies a row by the scales of its groups of `group_cols` columns, or by the only one.
fn multiply(row: &mut [f32], group_cols: u32, scales: &[f32]) {
    let by = |values: &mut [f32], scale: f32| values.iter_mut().for_each(|v| *v *= scale);
    match (scales, group_cols) {
        ([scale], _) => by(row, *scale),
        (_, 1) => row.iter_mut().zip(scales).for_each(|(v, scale)| *v *= scale),
        (_, n) => {
            row.chunks_mut((n as usize).max(1)).zip(scales).for_each(|(group, scale)| by(group, *scale))
        }
    }
}

//! `trellis`: paths down the columns with a table of small integers.

mod table;

use super::{Node, Plan as AnyPlan, Wanted, read_child};
use crate::arch::{self, Simd};
use crate::error::Result;
use crate::operands::{BLOCK, Codes, GRANULES, Input, Map, Words, Zero};
use crate::work::Work;
use cmf_format::encoding::trellis::{Axis, View};
use core::ops::Range;

/// Rows of words that are summed at a time, of one token and of several.
const WORD_ROWS: [usize; 2] = [64, 8];
/// Rows of words that are decoded at a time.
const DECODED_WORD_ROWS: usize = 2;

/// What is prepared of a node.
#[derive(Debug)]
pub(crate) struct Plan {
    table: table::Owned,
    step_bits: usize,
    scale_rows: usize,
    scale: Box<AnyPlan>,
}

/// Some rows of words of a path and the rows of the matrix that are wanted of them.
struct Part<'k> {
    words: Words<'k>,
    /// Rows before the first wanted one.
    skip: usize,
    /// Wanted rows.
    rows: Range<usize>,
}

impl Plan {
    /// `None` for what the kernels do not do: paths along rows, steps of 3 or 4 bits, tables without a
    /// kernel, more than one scale a row.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let descriptor = view.descriptor();
        let state_bits = u32::from(descriptor.state_bits);
        let table = view.table()?;
        let fits = descriptor.axis == Axis::Down && [1, 2].contains(&descriptor.step_bits);
        if !fits || view.scale().cols() != 1 || view.rows() == 0 {
            return None;
        }
        let mut values = vec![0.0; table.cols()];
        table.decode_rows(0..1, &mut values).ok()?;
        Some(Self {
            table: table::Owned::new(state_bits, &values)?,
            step_bits: descriptor.step_bits.into(),
            scale_rows: match descriptor.scale_rows as usize {
                0 => view.rows(),
                n => n,
            },
            scale: Box::new(AnyPlan::new(view.scale())),
        })
    }

    pub(super) fn multiply(&self, view: &View<'_>, input: &Input<'_>, wanted: Wanted<'_>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        if !input.is_quantised() {
            let wanted = Wanted { simd, rows, out, work };
            return self.each_rows_of_words(view, input.tokens, wanted, &mut |codes, out| {
                arch::exact(simd, &codes, input, out);
            });
        }
        let (tokens, height) = (input.tokens, 32 / self.step_bits);
        let (mut panel, mut lanes) = (core::mem::take(&mut work.panel), core::mem::take(&mut work.lanes));
        let mut sums = core::mem::take(&mut work.scales);
        let panel_blocks = height * input.blocks;
        let panel_row = panel.sized(panel_blocks);
        let of_tokens = lanes.sized(tokens * height / 4);
        let first = rows.start;
        let word_rows = WORD_ROWS[usize::from(tokens > 1)];
        let done = self.each_part(simd, view, rows, word_rows, work, &mut |part, scales| {
            let count = part.words.pairs().count() * tokens * height;
            let sums = sums.sized(count);
            arch::trellis_fast(simd, &part.words, input, panel_row, of_tokens, sums);
            let out = out.get_mut((part.rows.start - first) * tokens..).unwrap_or(&mut []);
            if tokens == 1 {
                let sums = sums.get(part.skip..).unwrap_or(&[]);
                out.iter_mut()
                    .zip(sums.iter().zip(scales))
                    .for_each(|(out, (sum, scale))| *out += sum * scale);
                return;
            }
            let mut rows = out.chunks_exact_mut(tokens).zip(scales);
            let mut skip = part.skip;
            for sums in sums.chunks_exact(tokens * height) {
                for ((out, scale), row) in rows.by_ref().take(height - skip).zip(skip..) {
                    let sums = sums.get(row..).unwrap_or(&[]).iter().step_by(height);
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum * scale);
                }
                skip = 0;
            }
        });
        (work.panel, work.lanes, work.scales) = (panel, lanes, sums);
        done
    }

    pub(super) fn decode(&self, view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
        let (simd, cols) = (wanted.simd, view.cols());
        self.each_rows_of_words(view, cols, wanted, &mut |codes, out| {
            arch::decode(simd, &codes, cols, out);
        })
    }

    /// Hands the values of a few rows of words at a time, as codes, to `kernel`, and their part of `out`,
    /// which has `width` values a row.
    fn each_rows_of_words(
        &self,
        view: &View<'_>,
        width: usize,
        wanted: Wanted<'_>,
        kernel: &mut dyn FnMut(Codes<'_>, &mut [f32]),
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let blocks = view.cols().div_ceil(BLOCK);
        let (mut panel, mut spread) = (core::mem::take(&mut work.panel), core::mem::take(&mut work.scales));
        let first = rows.start;
        let done = self.each_part(simd, view, rows, DECODED_WORD_ROWS, work, &mut |part, scales| {
            let panel = panel.sized(part.words.pairs().count() * part.words.rows() * blocks);
            arch::trellis(simd, &part.words, blocks, panel);
            let granules = blocks.next_multiple_of(2) * GRANULES;
            let spread = spread.sized(scales.len() * granules);
            for (out, scale) in spread.chunks_exact_mut(granules.max(1)).zip(scales) {
                out.fill(*scale);
            }
            let codes = Codes {
                bits: 8,
                used_bits: 8,
                bytes: panel.get(part.skip * blocks..).unwrap_or(&[]).as_flattened(),
                row_bytes: blocks * BLOCK,
                rows: scales.len(),
                blocks,
                group_granules: granules,
                map: Map::Signed(-128),
                scales: spread,
                stored: None,
                zeros: &[],
                zero: Zero::None,
            };
            let start = (part.rows.start - first) * width;
            let end = start + part.rows.len() * width;
            kernel(codes, out.get_mut(start..end).unwrap_or(&mut []));
        });
        (work.panel, work.scales) = (panel, spread);
        done
    }

    /// Splits rows into parts of up to `word_rows` rows of words, each of one path, and hands each
    /// with the scales of its rows to `kernel`.
    fn each_part(
        &self,
        simd: Simd,
        view: &View<'_>,
        rows: Range<usize>,
        word_rows: usize,
        work: &mut Work,
        kernel: &mut dyn FnMut(Part<'_>, &[f32]),
    ) -> Result<()> {
        let (cols, elems) = (view.cols(), view.path_elems());
        if rows.is_empty() || cols == 0 {
            return Ok(());
        }
        let (mut raw, mut wrap) = (core::mem::take(&mut work.raw), core::mem::take(&mut work.wrap));
        let scales = raw.sized(rows.len());
        let wanted = Wanted { simd, rows: rows.clone(), out: &mut *scales, work: work.below() };
        let done = read_child(Node { view: view.scale(), plan: &self.scale }, self.scale_rows, wanted);
        let height = 32 / self.step_bits;
        let all = view.paths().as_chunks::<4>().0;
        let mut row = rows.start;
        while row < rows.end && done.is_ok() {
            let (path, in_path) = (row / elems, row % elems);
            let length = elems.min(view.rows() - path * elems);
            let words = (length * self.step_bits).div_ceil(32);
            let start = path * view.path_words() * cols;
            let of_path = all.get(start..start + words * cols).unwrap_or(&[]);
            let first = in_path / height;
            let end = words.min(first + word_rows);
            let last_row = rows.end.min(path * elems + length.min(end * height));
            let before = match first {
                0 => {
                    wrap_around(of_path, cols, length * self.step_bits, wrap.sized(cols));
                    wrap.get(..cols).unwrap_or(&[])
                }
                _ => of_path.get((first - 1) * cols..first * cols).unwrap_or(&[]),
            };
            let part = Part {
                words: Words {
                    before,
                    words: of_path.get(first * cols..end * cols).unwrap_or(&[]),
                    cols,
                    step_bits: self.step_bits,
                    table: self.table.borrow(),
                },
                skip: in_path - first * height,
                rows: row..last_row,
            };
            kernel(part, scales.get(row - rows.start..last_row - rows.start).unwrap_or(&[]));
            row = last_row;
        }
        (work.raw, work.wrap) = (raw, wrap);
        done
    }
}

/// The 32 bits that come before each path of `path_bits` bits, at least 1: those at its end.
fn wrap_around(path: &[[u8; 4]], cols: usize, path_bits: usize, out: &mut [[u8; 4]]) {
    let mut rows = path.rchunks_exact(cols.max(1));
    let (last, second) = (rows.next().unwrap_or(&[]), rows.next());
    let used = match path_bits % 32 {
        0 => 32,
        used => used as u32,
    };
    for (j, (out, last)) in out.iter_mut().zip(last).enumerate() {
        let last = u32::from_le_bytes(*last);
        let second = second.and_then(|row| row.get(j)).map(|word| u32::from_le_bytes(*word));
        let bits = match second {
            _ if used == 32 => last,
            Some(second) => last << (32 - used) | second >> used,
            // A short ring goes round several times.
            None => (0..32).fold(0, |bits, i| {
                let from = used - 1 - i % used;
                bits | (last >> from & 1) << (31 - i)
            }),
        };
        *out = bits.to_le_bytes();
    }
}

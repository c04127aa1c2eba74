//! `codebook`: sums of entries, which are decoded once.

mod tables;

use self::tables::{Entries, Layout, Rows};
use super::{Node, Plan as AnyPlan, Wanted, read_child};
use crate::error::Result;
use crate::operands::{BLOCK, Input};
use cmf_format::encoding::codebook::View;

/// Most values of all entries that are decoded: 256 KiB, which a cache of a core holds.
const MOST_VALUES: usize = 1 << 16;

/// So many rows are worth that many entries of a codebook being multiplied with all activations.
const ROWS_OF_TABLE: usize = 4;
/// Columns of a group, below which there are too many scales to decode those of all rows first.
const LEAST_SCALE_COLS: u32 = 64;

/// What is prepared of a node.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Entry after entry, codebook after codebook.
    entries: Box<[f32]>,
    /// The same for products by tables, where rows are worth them: the first values of all entries of a
    /// codebook, then their second ones, and so on.
    turned: Option<Box<[f32]>>,
    /// Columns of an entry.
    width: usize,
    codebooks: usize,
    bits: usize,
    row_bytes: usize,
    vectors_per_scale: usize,
    scale: Option<Box<AnyPlan>>,
}

impl Plan {
    /// `None` for what the kernels do not do: vectors of several rows, or of other than 4, 8 or 16
    /// columns, and large codebooks.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let descriptor = view.descriptor();
        let (width, codebooks) = (descriptor.vector_cols as usize, usize::from(descriptor.codebooks));
        let bits = usize::from(descriptor.bits);
        let count = view.entries().rows().checked_mul(width)?;
        let fits = descriptor.vector_rows == 1 && [4, 8, 16].contains(&width) && count <= MOST_VALUES;
        if !fits || view.rows() == 0 || view.cols() == 0 {
            return None;
        }
        let mut entries = vec![0.0; count];
        view.entries().decode_rows(0..view.entries().rows(), &mut entries).ok()?;
        let row_bits = view.cols().div_ceil(width).checked_mul(codebooks)?.checked_mul(bits)?;
        let is_worth_tables = tables::BITS.contains(&bits)
            && view.rows() >= (1 << bits) / ROWS_OF_TABLE
            && view
                .scale()
                .is_none_or(|scale| scale.cols() <= 1 || descriptor.scale_cols >= LEAST_SCALE_COLS);
        let turned = is_worth_tables.then(|| {
            let of_books = entries.chunks_exact(width << bits);
            of_books
                .flat_map(|of| (0..width).flat_map(|k| of.iter().skip(k).step_by(width).copied()))
                .collect()
        });
        Some(Self {
            entries: entries.into(),
            turned,
            width,
            codebooks,
            bits,
            row_bytes: row_bits.div_ceil(32) * 4,
            vectors_per_scale: match descriptor.scale_cols as usize {
                0 => usize::MAX,
                cols => (cols / width).max(1),
            },
            scale: view.scale().map(|scale| Box::new(AnyPlan::new(scale))),
        })
    }

    /// Whether products with `input` are best made of tables. The activations of such products are not rounded.
    pub(super) fn is_by_tables(&self, input: &Input<'_>) -> bool {
        input.is_quantised() && self.turned.is_some()
    }

    /// Products by tables.
    pub(super) fn multiply(&self, view: &View<'_>, input: &Input<'_>, wanted: Wanted<'_>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let (mut raw, mut tile) = (core::mem::take(&mut work.raw), core::mem::take(&mut work.tile));
        let (mut scales, mut groups): (&[f32], _) = (&[], 0);
        let mut done = Ok(());
        if let (Some(scale), Some(plan)) = (view.scale(), &self.scale) {
            groups = scale.cols();
            let values = raw.sized(rows.len() * groups);
            let (child, out) = (Node { view: scale, plan }, &mut *values);
            done = read_child(child, 1, Wanted { simd, rows: rows.clone(), out, work: work.below() });
            scales = values;
        }
        if let (Ok(()), Some(turned)) = (&done, &self.turned) {
            let layout =
                Layout { bits: self.bits, codebooks: self.codebooks, width: self.width, cols: view.cols() };
            let rows = Rows {
                codes: view.codes().get(rows.start * self.row_bytes..).unwrap_or(&[]),
                row_bytes: self.row_bytes,
                scales,
                groups,
                vectors_per_scale: self.vectors_per_scale,
            };
            let entries = Entries { plain: &self.entries, turned };
            let tables = tile.sized(layout.values(input.tokens).div_ceil(BLOCK)).as_flattened_mut();
            simd.run(
                #[inline(always)]
                || tables::multiply(layout, entries, rows, input, tables, out),
            );
        }
        (work.raw, work.tile) = (raw, tile);
        done
    }

    pub(super) fn decode(&self, view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let mut raw = core::mem::take(&mut work.raw);
        let mut done = Ok(());
        for (row, out) in rows.zip(out.chunks_exact_mut(view.cols())) {
            let mut scales: &[f32] = &[];
            if let (Some(scale), Some(plan)) = (view.scale(), &self.scale) {
                let (child, out) = (Node { view: scale, plan }, raw.sized(scale.cols()));
                let wanted = Wanted { simd, rows: row..row + 1, out: &mut *out, work: work.below() };
                done = read_child(child, 1, wanted);
                scales = out;
            }
            if done.is_err() {
                break;
            }
            let codes = view.codes().get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[]);
            simd.run(
                #[inline(always)]
                || match self.width {
                    4 => self.decode_row::<4>(codes, scales, out),
                    8 => self.decode_row::<8>(codes, scales, out),
                    _ => self.decode_row::<16>(codes, scales, out),
                },
            );
        }
        work.raw = raw;
        done
    }

    /// Without scales there is nothing to multiply by; a single one is for all columns.
    #[inline(always)]
    fn decode_row<const W: usize>(&self, codes: &[u8], scales: &[f32], out: &mut [f32]) {
        let entries = self.entries.as_chunks::<W>().0;
        let mask = (1u32 << self.bits) - 1;
        let mut at = 0;
        let mut next = || {
            let bytes = codes.get(at / 8..).unwrap_or(&[]);
            let word = match bytes.first_chunk() {
                Some(word) => u32::from_le_bytes(*word),
                None => bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)),
            };
            let code = word >> (at % 8) & mask;
            at += self.bits;
            code as usize
        };
        let per_scale = if scales.len() == 1 { usize::MAX } else { self.vectors_per_scale };
        for (i, out) in out.chunks_mut(per_scale.saturating_mul(W)).enumerate() {
            for out in out.chunks_mut(W) {
                let mut sum = entries.get(next()).copied().unwrap_or([0.0; W]);
                let mut of_book = 1 << self.bits;
                for _ in 1..self.codebooks {
                    let entry = entries.get(of_book + next()).unwrap_or(&[0.0; W]);
                    sum.iter_mut().zip(entry).for_each(|(sum, value)| *sum += value);
                    of_book += 1 << self.bits;
                }
                if let Some(scale) = scales.get(i) {
                    sum.iter_mut().for_each(|value| *value *= scale);
                }
                match out.first_chunk_mut() {
                    Some(out) => *out = sum,
                    None => out.iter_mut().zip(sum).for_each(|(out, value)| *out = value),
                }
            }
        }
    }
}

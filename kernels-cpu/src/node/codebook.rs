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
    /// `None` for what the kernels do not do: vectors of several rows, or of more than 16 columns, and large
    /// codebooks.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let descriptor = view.descriptor();
        let (width, codebooks) = (descriptor.vector_cols as usize, usize::from(descriptor.codebooks));
        let bits = usize::from(descriptor.bits);
        let count = view.entries().rows().checked_mul(width)?;
        let fits = descriptor.vector_rows == 1 && width <= tables::MAX_WIDTH && count <= MOST_VALUES;
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
                || match (self.width, self.codebooks) {
                    (4, 1) => self.decode_row::<4, 1>(codes, scales, out),
                    (8, 1) => self.decode_row::<8, 1>(codes, scales, out),
                    (8, 2) => self.decode_row::<8, 2>(codes, scales, out),
                    (4, _) => self.decode_row::<4, 0>(codes, scales, out),
                    (8, _) => self.decode_row::<8, 0>(codes, scales, out),
                    (16, _) => self.decode_row::<16, 0>(codes, scales, out),
                    _ => self.decode_vectors(codes, scales, out),
                },
            );
        }
        work.raw = raw;
        done
    }

    /// Vectors of `W` columns, sums of `M` entries, or of as many as there are codebooks where that is 0.
    #[inline(always)]
    fn decode_row<const W: usize, const M: usize>(&self, codes: &[u8], scales: &[f32], out: &mut [f32]) {
        let entries = self.entries.as_chunks::<W>().0;
        let (whole, last) = out.as_chunks_mut::<W>();
        let count = whole.len();
        let vector = |i: usize| {
            let mut sum = [0.0; W];
            self.each_entry::<M>(codes, i, |m, index| {
                let entry = entries.get(index).unwrap_or(&[0.0; W]);
                match m {
                    0 => sum = *entry,
                    _ => sum.iter_mut().zip(entry).for_each(|(sum, value)| *sum += value),
                }
            });
            sum
        };
        let per_scale = self.vectors_of_scale(scales);
        for (group, out) in whole.chunks_mut(per_scale).enumerate() {
            let scale = scales.get(group);
            for (i, out) in out.iter_mut().enumerate() {
                *out = vector(group * per_scale + i);
                if let Some(scale) = scale {
                    out.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        if !last.is_empty() {
            let scale = scales.get(count / per_scale);
            for (out, value) in last.iter_mut().zip(vector(count)) {
                *out = scale.map_or(value, |scale| value * scale);
            }
        }
    }

    /// Vectors of any width.
    #[inline(always)]
    fn decode_vectors(&self, codes: &[u8], scales: &[f32], out: &mut [f32]) {
        let per_scale = self.vectors_of_scale(scales);
        for (i, out) in out.chunks_mut(self.width).enumerate() {
            self.each_entry::<0>(codes, i, |m, index| {
                let entry = self.entries.get(index * self.width..(index + 1) * self.width).unwrap_or(&[]);
                match m {
                    0 => out.iter_mut().zip(entry).for_each(|(out, value)| *out = *value),
                    _ => out.iter_mut().zip(entry).for_each(|(out, value)| *out += value),
                }
            });
            if let Some(scale) = scales.get(i / per_scale) {
                out.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }

    /// A single scale is for all columns.
    #[inline(always)]
    fn vectors_of_scale(&self, scales: &[f32]) -> usize {
        if scales.len() == 1 { usize::MAX } else { self.vectors_per_scale }
    }

    /// The codebooks and the entries of all of them that the codes of vector `i` name, of `M` codebooks unless
    /// that is 0.
    #[inline(always)]
    fn each_entry<const M: usize>(&self, codes: &[u8], i: usize, mut each: impl FnMut(usize, usize)) {
        let (codebooks, bits) = (if M == 0 { self.codebooks } else { M }, self.bits);
        let mut at = i * codebooks * bits;
        let mut word = tables::word(codes, at / 8) >> (at % 8);
        for m in 0..codebooks {
            // Seven bits of a word may be those of the vector before.
            if (m + 1) * bits > 57 {
                word = tables::word(codes, at / 8) >> (at % 8);
            }
            each(m, m << bits | word as usize & ((1 << bits) - 1));
            word >>= bits;
            at += bits;
        }
    }
}

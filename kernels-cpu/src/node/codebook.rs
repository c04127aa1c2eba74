//! `codebook`: sums of entries, which are decoded once.

mod tables;

use self::tables::{Entries, Layout, Rows};
use super::{Node, Plan as AnyPlan, Wanted, read_child};
use crate::error::Result;
use crate::operands::{BLOCK, Input};
use cmf_format::encoding::codebook::View;

/// Most values of all entries that are decoded: 256 KiB, which a cache of a core holds.
const MOST_VALUES: usize = 1 << 16;

/// Codes that are unpacked at a time, and most codebooks, so that these are codes of whole vectors by eights.
const AT_ONCE: usize = 256;
const MAX_CODEBOOKS: usize = AT_ONCE / 8;

/// Most entries of all codebooks that are multiplied with activations: their products with 8 vectors of 16 tokens
/// take 4 MiB.
const MOST_ENTRIES: usize = 1 << 13;
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
    /// codebooks or more than 32.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let descriptor = view.descriptor();
        let (width, codebooks) = (descriptor.vector_cols as usize, usize::from(descriptor.codebooks));
        let bits = usize::from(descriptor.bits);
        let count = view.entries().rows().checked_mul(width)?;
        let fits = descriptor.vector_rows == 1 && width <= tables::MAX_WIDTH && count <= MOST_VALUES;
        let fits = fits && codebooks <= MAX_CODEBOOKS;
        if !fits || view.rows() == 0 || view.cols() == 0 {
            return None;
        }
        let mut entries = vec![0.0; count];
        view.entries().decode_rows(0..view.entries().rows(), &mut entries).ok()?;
        let row_bits = view.cols().div_ceil(width).checked_mul(codebooks)?.checked_mul(bits)?;
        let is_worth_tables = tables::BITS.contains(&bits)
            && codebooks << bits <= MOST_ENTRIES
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
                    (4, 1) => self.decode_row(codes, scales, out, |of, out| self.vectors::<4, 1>(of, out)),
                    (8, 1) => self.decode_row(codes, scales, out, |of, out| self.vectors::<8, 1>(of, out)),
                    (8, 2) => self.decode_row(codes, scales, out, |of, out| self.vectors::<8, 2>(of, out)),
                    (3, _) => self.decode_row(codes, scales, out, |of, out| self.vectors::<3, 0>(of, out)),
                    (4, _) => self.decode_row(codes, scales, out, |of, out| self.vectors::<4, 0>(of, out)),
                    (8, _) => self.decode_row(codes, scales, out, |of, out| self.vectors::<8, 0>(of, out)),
                    (16, _) => self.decode_row(codes, scales, out, |of, out| self.vectors::<16, 0>(of, out)),
                    _ => self.decode_row(codes, scales, out, |of, out| self.any_vectors(of, out)),
                },
            );
        }
        work.raw = raw;
        done
    }

    /// Hands the codes of some vectors at a time to `vectors`, with what they are multiplied with.
    #[inline(always)]
    fn decode_row(
        &self,
        codes: &[u8],
        scales: &[f32],
        out: &mut [f32],
        vectors: impl Fn((&[u16], Option<f32>), &mut [f32]),
    ) {
        let Self { width, codebooks, bits, .. } = *self;
        let step = AT_ONCE / codebooks / 8 * 8;
        // A single scale is for all columns.
        let per_scale = if scales.len() == 1 { usize::MAX } else { self.vectors_per_scale };
        let mut unpacked = [0; AT_ONCE];
        let mut first = 0;
        for out in out.chunks_mut((step * width).max(1)) {
            let count = out.len().div_ceil(width);
            let (own, _) = unpacked.split_at_mut((count * codebooks).min(AT_ONCE));
            tables::unpack(codes.get(first * codebooks * bits / 8..).unwrap_or(&[]), bits, own);
            let (mut own, mut rest) = (&*own, out);
            while !rest.is_empty() {
                let of_scale = (per_scale - first % per_scale).min(own.len() / codebooks).max(1);
                let (some, others) = own.split_at((of_scale * codebooks).min(own.len()));
                let (out, beyond) = rest.split_at_mut((of_scale * width).min(rest.len()));
                vectors((some, scales.get(first / per_scale).copied()), out);
                (own, rest, first) = (others, beyond, first + of_scale);
            }
        }
    }

    /// Vectors of `W` columns, sums of `M` entries, or of as many as there are codebooks where that is 0.
    #[inline(always)]
    fn vectors<const W: usize, const M: usize>(
        &self,
        (codes, scale): (&[u16], Option<f32>),
        out: &mut [f32],
    ) {
        let entries = self.entries.as_chunks::<W>().0;
        let (codebooks, bits) = (if M == 0 { self.codebooks } else { M }, self.bits);
        let entry = |m: usize, code: u16| entries.get(m << bits | usize::from(code)).unwrap_or(&[0.0; W]);
        let vector = |codes: &[u16]| {
            let mut codes = codes.iter().enumerate();
            let mut sum = codes.next().map_or([0.0; W], |(m, code)| *entry(m, *code));
            for (m, code) in codes {
                let entry = entry(m, *code);
                sum = core::array::from_fn(|k| sum[k] + entry[k]);
            }
            sum
        };
        let (whole, last) = out.as_chunks_mut::<W>();
        let (of_whole, of_last) = codes.split_at((whole.len() * codebooks).min(codes.len()));
        let each = of_whole.chunks_exact(codebooks.max(1)).zip(whole);
        match scale {
            Some(scale) => each.for_each(|(codes, out)| *out = vector(codes).map(|value| value * scale)),
            None => each.for_each(|(codes, out)| *out = vector(codes)),
        }
        for (out, value) in last.iter_mut().zip(vector(of_last)) {
            *out = scale.map_or(value, |scale| value * scale);
        }
    }

    /// Vectors of any width.
    #[inline(always)]
    fn any_vectors(&self, (codes, scale): (&[u16], Option<f32>), out: &mut [f32]) {
        for (codes, out) in codes.chunks_exact(self.codebooks).zip(out.chunks_mut(self.width)) {
            for (m, code) in codes.iter().enumerate() {
                let start = (m << self.bits | usize::from(*code)) * self.width;
                let entry = self.entries.get(start..start + self.width).unwrap_or(&[]);
                match m {
                    0 => out.iter_mut().zip(entry).for_each(|(out, value)| *out = *value),
                    _ => out.iter_mut().zip(entry).for_each(|(out, value)| *out += value),
                }
            }
            if let Some(scale) = scale {
                out.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }
}

//! `codebook`: sums of entries, which are decoded once.

use super::{Node, Plan as AnyPlan, Wanted, read_child};
use crate::error::Result;
use cmf_format::encoding::codebook::View;

/// Most values of all entries that are decoded: 256 KiB, which a cache of a core holds.
const MOST_VALUES: usize = 1 << 16;

/// What is prepared of a node.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Entry after entry, codebook after codebook.
    entries: Box<[f32]>,
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
        Some(Self {
            entries: entries.into(),
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

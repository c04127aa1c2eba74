//! Codes of 4 bits whose scales and zero points are codes again: 16 groups of 32 columns at a time.

use core::arch::x86_64::*;

use super::memory::*;
use super::*;
use crate::operands::{Codes, Small, Twice};

/// Blocks of 16 groups.
const BLOCKS: usize = 8;

/// Decodes 16 scales or zero points.
struct Decoder<'k> {
    small: Small<'k>,
    bytes: __m128i,
    shifts: __m128i,
    mask: __m128i,
    offset: __m512i,
}

impl<'k> Decoder<'k> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(small: &Small<'k>) -> Self {
        let unpacker = Unpacker::new(small.bits);
        Self {
            small: *small,
            bytes: _mm512_castsi512_si128(unpacker.bytes),
            shifts: _mm512_castsi512_si128(unpacker.shifts),
            mask: _mm512_castsi512_si128(unpacker.mask),
            offset: _mm512_set1_epi32(small.offset.into()),
        }
    }

    /// Values `16 * i` to `16 * i + 15` of row `row`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,f16c")]
    fn sixteen(&self, row: usize, i: usize) -> __m512 {
        let small = &self.small;
        let bytes = small.bytes.get(row * small.row_bytes + i * 2 * small.bits..).unwrap_or(&[]);
        let bytes = match bytes.first_chunk() {
            Some(bytes) => load_16(bytes),
            None => _mm512_castsi512_si128(load_part(bytes, 16)),
        };
        let words = _mm_permutexvar_epi8(self.bytes, bytes);
        let codes = _mm_and_si128(_mm_multishift_epi64_epi8(self.shifts, words), self.mask);
        let codes = _mm512_add_epi32(_mm512_cvtepu8_epi32(codes), self.offset);
        let scale = small.scales.get(row * small.groups + i).copied().unwrap_or_default();
        let scale = _mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(scale).into()));
        _mm512_mul_ps(_mm512_cvtepi32_ps(codes), _mm512_broadcastss_ps(scale))
    }

    /// Values `16 * i` to `16 * i + 3` of rows `row` to `row + 3`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,f16c")]
    fn four_rows(&self, row: usize, i: usize) -> __m512 {
        let small = &self.small;
        let words: [u32; ROWS] = core::array::from_fn(|r| {
            let start = (row + r) * small.row_bytes + i * 2 * small.bits;
            let bytes = small.bytes.get(start..).unwrap_or(&[]);
            match bytes.first_chunk() {
                Some(word) => u32::from_le_bytes(*word),
                None => bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)),
            }
        });
        let scales: [u16; ROWS] = core::array::from_fn(|r| {
            let scale = small.scales.get((row + r) * small.groups + i).copied().unwrap_or_default();
            u16::from_le_bytes(scale)
        });
        let words = _mm_set_epi32(words[3] as i32, words[2] as i32, words[1] as i32, words[0] as i32);
        // Where the codes of the lower word begin, and those of the upper one.
        let shifts = _mm_set1_epi64x(0x0302_0100 * small.bits as i64 * 0x1_0000_0001 + 0x2020_2020_0000_0000);
        let codes = _mm_and_si128(_mm_multishift_epi64_epi8(shifts, words), self.mask);
        let codes = _mm512_add_epi32(_mm512_cvtepu8_epi32(codes), self.offset);
        let scales = scales.iter().rev().fold(0, |all, scale| all << 16 | i64::from(*scale));
        let scales = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi64_si128(scales)));
        _mm512_mul_ps(_mm512_cvtepi32_ps(codes), _mm512_permutexvar_ps(fours(), scales))
    }
}

/// The lane of each four.
#[inline]
#[target_feature(enable = "avx512f")]
fn fours() -> __m512i {
    _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
}

/// Rows that are worked on at a time: they share what is read of the activations, and the loop around.
const ROWS: usize = 4;

/// What the rows of one product have in common.
struct Products<'k> {
    codes: Codes<'k>,
    scale: Decoder<'k>,
    zero: Option<Decoder<'k>>,
    /// Activations of even and of odd columns, for each 128 columns.
    halves: &'k [[[i8; BLOCK]; 2]],
    /// For each of them what offsets take away, and the scales of the activations.
    prepared: &'k [[[f32; 16]; 2]],
    /// Sums of the activations of 16 groups.
    sums: &'k [[f32; 16]],
    /// The lanes of a vector of 16 groups that the groups of each 128 columns lie in, or of a vector
    /// of four groups of four rows those of each row.
    groups: [__m512i; BLOCKS / 2],
}

impl Products<'_> {
    /// Rows `first` to `first + R - 1`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn rows<const R: usize>(&self, first: usize) -> [f32; R] {
        let bytes: [_; R] = core::array::from_fn(|r| self.codes.own_row(first + r).as_chunks::<64>());
        let mut lanes = [_mm512_setzero_ps(); R];
        let pairs = self.halves.chunks(BLOCKS / 2).zip(self.prepared.chunks(BLOCKS / 2));
        for (i, ((halves, prepared), sums)) in pairs.zip(self.sums).enumerate() {
            let mut scales = [_mm512_setzero_ps(); R];
            // The last few groups of four rows are decoded as one vector.
            let is_last = R == ROWS && halves.len() == 1;
            if is_last {
                scales = [self.scale.four_rows(first, i); R];
                if let Some(zero) = &self.zero {
                    let sums = _mm512_castps512_ps128(load_floats(sums));
                    let zeros = _mm512_mul_ps(zero.four_rows(first, i), _mm512_broadcast_f32x4(sums));
                    for (r, lanes) in lanes.iter_mut().enumerate() {
                        *lanes = _mm512_mask_add_ps(*lanes, 15 << (4 * r), *lanes, zeros);
                    }
                }
            }
            for r in 0..if is_last { 0 } else { R } {
                scales[r] = self.scale.sixteen(first + r, i);
                if let Some(zero) = &self.zero {
                    lanes[r] = _mm512_fmadd_ps(zero.sixteen(first + r, i), load_floats(sums), lanes[r]);
                }
            }
            for (j, (halves, prepared)) in halves.iter().zip(prepared).enumerate() {
                for r in 0..R {
                    let (chunks, rest) = bytes[r];
                    let bytes = match chunks.get(i * (BLOCKS / 2) + j) {
                        Some(bytes) => {
                            prefetch(bytes, AHEAD);
                            load_bytes(bytes)
                        }
                        None => load_part(rest, 64),
                    };
                    let group = if is_last { r } else { j };
                    let of_rows = _mm512_permutexvar_ps(self.groups[group], scales[r]);
                    lanes[r] = add_nibbles(bytes, halves, prepared, of_rows, lanes[r]);
                }
            }
        }
        let mut out = [0.0; R];
        for r in 0..R {
            out[r] = sum(lanes[r]);
        }
        out
    }
}

/// Few tokens by such rows. `prepared` has room for a vector for each block and for each 8 of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) fn fast_twice(
    rows: &Twice<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) {
    let codes = &rows.codes;
    let Map::Signed(offset) = codes.map else { return };
    let less = _mm512_set1_epi8(offset.unsigned_abs() as u8 as i8);
    let (of_pairs, sums) = prepared.split_at_mut(codes.stride().min(prepared.len()));
    for token in 0..input.tokens {
        prepare_pairs(less, input, token, of_pairs);
        for (blocks, sums) in input.granule_sums(token).chunks(BLOCKS).zip(&mut *sums) {
            *sums = [0.0; 16];
            let pairs = blocks.as_flattened().as_chunks::<2>().0;
            sums.iter_mut().zip(pairs).for_each(|(sum, [a, b])| *sum = a + b);
        }
        let products = Products {
            codes: *codes,
            scale: Decoder::new(&rows.scale),
            zero: rows.zero.as_ref().map(|zero| Decoder::new(zero)),
            halves: input.pairs(token).0,
            prepared: of_pairs.as_chunks().0,
            sums,
            groups: core::array::from_fn(|i| _mm512_add_epi32(fours(), _mm512_set1_epi32(4 * i as i32))),
        };
        let height = codes.rows.min(out.len() / input.tokens);
        let of_token = out.get_mut(token..).unwrap_or(&mut []);
        let mut outs = of_token.iter_mut().step_by(input.tokens).take(height);
        for first in (0..height).step_by(ROWS) {
            if height - first >= ROWS {
                let found = products.rows::<ROWS>(first);
                found.into_iter().zip(&mut outs).for_each(|(product, out)| *out += product);
            } else {
                for row in first..height {
                    let found = products.rows::<1>(row);
                    found.into_iter().zip(&mut outs).for_each(|(product, out)| *out += product);
                }
            }
        }
    }
}

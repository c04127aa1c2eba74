//! Codes of 4 bits whose scales and zero points are codes again: 16 groups of 32 columns at a time.

use core::arch::x86_64::*;

use super::memory::*;
use super::*;
use crate::operands::{Codes, Small, Twice};

/// Blocks of 16 groups, and pairs of blocks.
const BLOCKS: usize = 8;
const PAIRS: usize = BLOCKS / 2;

/// Rows that are worked on at a time: they share what is read of the activations, and the loop around.
const ROWS: usize = 4;

/// An expression for each of the rows. Written out: vectors in an array that a loop indexes would lie in
/// memory.
macro_rules! each_row {
    ($row:ident => $value:expr) => {
        [
            {
                let $row = 0;
                $value
            },
            {
                let $row = 1;
                $value
            },
            {
                let $row = 2;
                $value
            },
            {
                let $row = 3;
                $value
            },
        ]
    };
}

/// Decodes scales or zero points.
struct Decoder<'k> {
    small: Small<'k>,
    bytes: __m128i,
    shifts: __m128i,
    mask: __m128i,
    offset: __m512i,
    /// Where codes begin in a pair of words of which each has the first of its row.
    shifts_of_words: __m128i,
}

impl<'k> Decoder<'k> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(small: &Small<'k>) -> Self {
        let unpacker = Unpacker::new(small.bits);
        let shifts = 0x0302_0100 * small.bits as i64;
        Self {
            small: *small,
            bytes: _mm512_castsi512_si128(unpacker.bytes),
            shifts: _mm512_castsi512_si128(unpacker.shifts),
            mask: _mm512_castsi512_si128(unpacker.mask),
            offset: _mm512_set1_epi32(small.offset.into()),
            shifts_of_words: _mm_set1_epi64x(shifts | (shifts + 0x2020_2020) << 32),
        }
    }

    /// The bytes of the codes from `16 * i` of row `row` on.
    #[inline(always)]
    fn bytes(&self, row: usize, i: usize) -> &'k [u8] {
        self.small.bytes.get(row * self.small.row_bytes + i * 2 * self.small.bits..).unwrap_or(&[])
    }

    /// The scale of the codes from `16 * i` of row `row` on.
    #[inline(always)]
    fn scale(&self, row: usize, i: usize) -> u16 {
        u16::from_le_bytes(self.small.scales.get(row * self.small.groups + i).copied().unwrap_or_default())
    }

    /// Values `16 * i` to `16 * i + 15` of row `row`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,f16c")]
    fn sixteen(&self, row: usize, i: usize) -> __m512 {
        let bytes = self.bytes(row, i);
        let bytes = match bytes.first_chunk() {
            Some(bytes) => load_16(bytes),
            None => load_end(bytes),
        };
        let words = _mm_permutexvar_epi8(self.bytes, bytes);
        let codes = _mm_and_si128(_mm_multishift_epi64_epi8(self.shifts, words), self.mask);
        let scale = _mm_cvtph_ps(_mm_cvtsi32_si128(self.scale(row, i).into()));
        self.values(codes, _mm512_broadcastss_ps(scale))
    }

    /// Values `16 * i` to `16 * i + 3` of each of four rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,f16c")]
    fn four_each(&self, rows: [usize; ROWS], i: usize) -> __m512 {
        let words = each_row!(r => {
            let bytes = self.bytes(rows[r], i);
            match bytes.first_chunk() {
                Some(word) => i32::from_le_bytes(*word),
                None => bytes.iter().rev().fold(0, |word, byte| word << 8 | i32::from(*byte)),
            }
        });
        let words = _mm_set_epi32(words[3], words[2], words[1], words[0]);
        let codes = _mm_and_si128(_mm_multishift_epi64_epi8(self.shifts_of_words, words), self.mask);
        let scales = each_row!(r => i64::from(self.scale(rows[r], i)) << (16 * r));
        let scales = _mm_cvtph_ps(_mm_cvtsi64_si128(scales[0] | scales[1] | scales[2] | scales[3]));
        self.values(codes, _mm512_permutexvar_ps(fours(), _mm512_castps128_ps512(scales)))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn values(&self, codes: __m128i, scales: __m512) -> __m512 {
        let codes = _mm512_add_epi32(_mm512_cvtepu8_epi32(codes), self.offset);
        _mm512_mul_ps(_mm512_cvtepi32_ps(codes), scales)
    }
}

/// Fewer than 16 bytes, the last of all, and zeros.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_end(bytes: &[u8]) -> __m128i {
    _mm512_castsi512_si128(load_part(bytes, 16))
}

/// The lane of each four.
#[inline]
#[target_feature(enable = "avx512f")]
fn fours() -> __m512i {
    _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
}

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
    groups: [__m512i; PAIRS],
}

impl Products<'_> {
    /// Products of four rows, some of which may be the same.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn rows(&self, rows: [usize; ROWS]) -> [f32; ROWS] {
        let bytes = each_row!(r => self.codes.own_row(rows[r]).as_chunks::<64>());
        let mut lanes = [_mm512_setzero_ps(); ROWS];
        let pairs = self.halves.chunks(PAIRS).zip(self.prepared.chunks(PAIRS));
        for (i, ((halves, prepared), sums)) in pairs.zip(self.sums).enumerate() {
            let sums = load_floats(sums);
            // The last few groups of all rows are decoded at once.
            let is_end = halves.len() == 1;
            let scales = match is_end {
                true => [self.scale.four_each(rows, i); ROWS],
                false => each_row!(r => self.scale.sixteen(rows[r], i)),
            };
            lanes = match &self.zero {
                Some(zero) if is_end => {
                    let sums = _mm512_broadcast_f32x4(_mm512_castps512_ps128(sums));
                    let zeros = _mm512_mul_ps(zero.four_each(rows, i), sums);
                    each_row!(r => _mm512_mask_add_ps(lanes[r], 15 << (4 * r), lanes[r], zeros))
                }
                Some(zero) => each_row!(r => _mm512_fmadd_ps(zero.sixteen(rows[r], i), sums, lanes[r])),
                None => lanes,
            };
            let own = each_row!(r => bytes[r].0.get(i * PAIRS..).unwrap_or(&[]));
            let whole = own[0].iter().zip(own[1]).zip(own[2].iter().zip(own[3]));
            let mut done = 0;
            for (((a, b), (c, d)), (halves, prepared)) in whole.zip(halves.iter().zip(prepared)) {
                let bytes = [a, b, c, d];
                let groups = if is_end { self.groups } else { [self.groups[done % PAIRS]; ROWS] };
                lanes = each_row!(r => {
                    prefetch(bytes[r], AHEAD);
                    let of_rows = _mm512_permutexvar_ps(groups[r], scales[r]);
                    add_nibbles(load_bytes(bytes[r]), halves, prepared, of_rows, lanes[r])
                });
                done += 1;
            }
            if let (Some(halves), Some(prepared)) = (halves.get(done), prepared.get(done)) {
                let groups = if is_end { self.groups } else { [self.groups[done % PAIRS]; ROWS] };
                lanes = each_row!(r => {
                    let of_rows = _mm512_permutexvar_ps(groups[r], scales[r]);
                    add_nibbles(load_part(bytes[r].1, 64), halves, prepared, of_rows, lanes[r])
                });
            }
        }
        sums_of_four(lanes)
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
            // The last row stands in for those that are missing: a row's product does not depend on others.
            let found = products.rows(each_row!(r => (first + r).min(height - 1)));
            found.into_iter().zip(&mut outs).for_each(|(product, out)| *out += product);
        }
    }
}

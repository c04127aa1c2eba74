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

/// Some rows of a matrix: the first one, and how many follow it, of which at most three count.
#[derive(Clone, Copy)]
struct Rows {
    first: usize,
    more: usize,
}

impl Rows {
    /// Where the four rows begin, `stride` apart. The last one stands in for those that are missing.
    #[inline(always)]
    fn starts(self, stride: usize) -> [usize; ROWS] {
        let first = self.first * stride;
        match self.more {
            3.. => [first, first + stride, first + 2 * stride, first + 3 * stride],
            more => four!(r => first + stride * more.min(r)),
        }
    }
}

/// Decodes scales or zero points.
struct Decoder<'k> {
    small: Small<'k>,
    /// Of the codes of 16 groups, and of the last ones, the bytes that are theirs.
    used: [__mmask16; 2],
    bytes: __m128i,
    shifts: __m128i,
    mask: __m128i,
    offset: __m512i,
    /// Where codes begin in a pair of words of which each has the first of its row.
    shifts_of_words: __m128i,
}

impl<'k> Decoder<'k> {
    /// For `rows` rows of `sixteens` times 16 groups, the last of which may be fewer. `None` where not
    /// all of them are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(small: &Small<'k>, rows: usize, sixteens: usize) -> Option<Self> {
        let last = small.row_bytes.checked_sub(sixteens.checked_sub(1)? * 2 * small.bits)?;
        let is_there = small.bytes.len() >= rows.checked_mul(small.row_bytes)?
            && small.scales.len() >= rows.checked_mul(small.groups)?
            && small.groups >= sixteens
            && last > 0;
        let unpacker = Unpacker::new(small.bits);
        let shifts = 0x0302_0100 * small.bits as i64;
        is_there.then(|| Self {
            small: *small,
            used: [2 * small.bits, last.min(2 * small.bits)].map(|count| ((1u32 << count) - 1) as u16),
            bytes: _mm512_castsi512_si128(unpacker.bytes),
            shifts: _mm512_castsi512_si128(unpacker.shifts),
            mask: _mm512_castsi512_si128(unpacker.mask),
            offset: _mm512_set1_epi32(small.offset.into()),
            shifts_of_words: _mm_set1_epi64x(shifts | (shifts + 0x2020_2020) << 32),
        })
    }

    /// Values `16 * i` to `16 * i + 15` of four rows.
    ///
    /// # Safety
    /// The rows are some of those that [`Decoder::new`] was told of, `i` is below its `sixteens`, and
    /// `is_last` says whether it is the last.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,f16c")]
    unsafe fn sixteen(&self, rows: Rows, i: usize, is_last: bool) -> [__m512; ROWS] {
        let used = self.used[usize::from(is_last)];
        let starts = rows.starts(self.small.row_bytes);
        let scales = rows.starts(self.small.groups);
        four!(r => {
            // SAFETY: `new` has seen that all rows are there. The mask has the bytes of 16 codes, which
            // end in the row unless these are the last, and else those up to the end of the row.
            let bytes = unsafe {
                let bytes = self.small.bytes.as_ptr().add(starts[r] + i * 2 * self.small.bits);
                _mm_maskz_loadu_epi8(used, bytes.cast())
            };
            // SAFETY: `new` has seen that all rows have their `groups` scales, more than `i`.
            let scale = unsafe { *self.small.scales.get_unchecked(scales[r] + i) };
            let words = _mm_permutexvar_epi8(self.bytes, bytes);
            let codes = _mm_and_si128(_mm_multishift_epi64_epi8(self.shifts, words), self.mask);
            let scale = _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(scale)));
            self.values(codes, scale)
        })
    }

    /// As [`Decoder::sixteen`] of the last ones, of which there are no more than four: those of all rows are
    /// decoded at once, and four values come four times.
    ///
    /// # Safety
    /// As [`Decoder::sixteen`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,f16c")]
    unsafe fn last_four(&self, rows: Rows, i: usize) -> [__m512; ROWS] {
        let used = self.used[1] & 15;
        let starts = rows.starts(self.small.row_bytes);
        let scales = rows.starts(self.small.groups);
        let [a, b, c, d] = four!(r => {
            // SAFETY: as in `sixteen`, and fewer of the bytes.
            unsafe {
                let bytes = self.small.bytes.as_ptr().add(starts[r] + i * 2 * self.small.bits);
                _mm_maskz_loadu_epi8(used, bytes.cast())
            }
        });
        let words = _mm_unpacklo_epi64(_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let codes = _mm_and_si128(_mm_multishift_epi64_epi8(self.shifts_of_words, words), self.mask);
        let scales = four!(r => {
            // SAFETY: as in `sixteen`.
            let scale = unsafe { *self.small.scales.get_unchecked(scales[r] + i) };
            i64::from(u16::from_le_bytes(scale)) << (16 * r)
        });
        let scales = _mm_cvtph_ps(_mm_cvtsi64_si128(scales[0] | scales[1] | scales[2] | scales[3]));
        let all = self.values(codes, _mm512_permutexvar_ps(fours(), _mm512_castps128_ps512(scales)));
        [
            _mm512_shuffle_f32x4::<0b00_00_00_00>(all, all),
            _mm512_shuffle_f32x4::<0b01_01_01_01>(all, all),
            _mm512_shuffle_f32x4::<0b10_10_10_10>(all, all),
            _mm512_shuffle_f32x4::<0b11_11_11_11>(all, all),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn values(&self, codes: __m128i, scales: __m512) -> __m512 {
        let codes = _mm512_add_epi32(_mm512_cvtepu8_epi32(codes), self.offset);
        _mm512_mul_ps(_mm512_cvtepi32_ps(codes), scales)
    }
}

/// The lane of each four.
#[inline]
#[target_feature(enable = "avx512f")]
fn fours() -> __m512i {
    _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
}

/// What is prepared of the activations of 16 groups.
struct Sixteen<'k> {
    /// Activations of even and of odd columns, for each 128 columns.
    halves: &'k [[[i8; BLOCK]; 2]],
    /// What offsets take away, for each of them.
    taken: &'k [[f32; 16]],
    /// The scale of each group's activations, and their sum.
    scales: &'k [f32; 16],
    sums: &'k [f32; 16],
}

/// What the rows of one product have in common.
struct Products<'k> {
    codes: Codes<'k>,
    scale: Decoder<'k>,
    zero: Option<Decoder<'k>>,
    /// Blocks of 16 groups of a row.
    sixteens: usize,
    /// The lanes of a vector of 16 groups that the groups of each 128 columns lie in.
    groups: [__m512i; PAIRS],
}

impl Products<'_> {
    /// Products of four rows.
    ///
    /// # Safety
    /// The rows are there, of codes, scales and zero points.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn rows<'k>(&self, rows: Rows, sixteens: impl Iterator<Item = Sixteen<'k>>) -> [f32; ROWS] {
        let mut lanes = [_mm512_setzero_ps(); ROWS];
        let starts = rows.starts(self.codes.row_bytes);
        // The next pair of blocks of each row, and the bytes that a row has from there on.
        let mut own = four!(r => self.codes.bytes.as_ptr().wrapping_add(starts[r]));
        let mut left = self.codes.row_bytes;
        // Asked for line after line, while rows are read beside each other: memory is fastest in order.
        let mut ahead = own[0].wrapping_add(AHEAD);
        for (i, Sixteen { halves, taken, scales, sums }) in sixteens.enumerate() {
            let (is_last, is_short) = (i + 1 == self.sixteens, halves.len() == 1);
            // SAFETY: as the caller says; where there is a single pair of blocks it is the last one.
            let decode = |decoder: &Decoder<'_>| unsafe {
                if is_last && is_short {
                    decoder.last_four(rows, i)
                } else {
                    decoder.sixteen(rows, i, is_last)
                }
            };
            if let Some(zero) = &self.zero {
                let (zeros, sums) = (decode(zero), load_floats(sums));
                lanes = four!(r => _mm512_fmadd_ps(zeros[r], sums, lanes[r]));
            }
            let (of_rows, scales) = (decode(&self.scale), load_floats(scales));
            let of_rows = four!(r => _mm512_mul_ps(of_rows[r], scales));
            let pairs = halves.iter().zip(taken).zip(self.groups);
            let (whole, rest) = (pairs.clone().take(left / 64), pairs.skip(left / 64));
            for ((halves, taken), groups) in whole {
                // SAFETY: the caller says that the rows are there, and they have 64 bytes more.
                let bytes = four!(r => unsafe { _mm512_loadu_si512(own[r].cast()) });
                four!(r => _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * r).cast()));
                ahead = ahead.wrapping_add(64 * ROWS);
                lanes = add_pair(bytes, halves, taken, groups, of_rows, lanes);
                own = four!(r => own[r].wrapping_add(64));
                left -= 64;
            }
            for ((halves, taken), groups) in rest.take(1) {
                let used = (1 << left) - 1;
                // SAFETY: the mask has as many bytes as the rows have.
                let bytes = four!(r => unsafe { _mm512_maskz_loadu_epi8(used, own[r].cast()) });
                lanes = add_pair(bytes, halves, taken, groups, of_rows, lanes);
            }
        }
        sums_of_four(lanes)
    }
}

/// Adds the products of a pair of blocks of four rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_pair(
    bytes: [__m512i; ROWS],
    [even, odd]: &[[i8; BLOCK]; 2],
    taken: &[f32; 16],
    groups: __m512i,
    scales: [__m512; ROWS],
    lanes: [__m512; ROWS],
) -> [__m512; ROWS] {
    four!(r => {
        let sums = _mm512_cvtepi32_ps(nibble_sums(bytes[r], even, odd, taken));
        _mm512_fmadd_ps(sums, _mm512_permutexvar_ps(groups, scales[r]), lanes[r])
    })
}

/// Few tokens by such rows; whether that was done. `prepared` has room for a vector for each block and for
/// each 8 of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) fn fast_twice(
    rows: &Twice<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    let codes = &rows.codes;
    let Map::Signed(offset) = codes.map else { return false };
    let less = _mm512_set1_epi8(offset.unsigned_abs() as u8 as i8);
    let height = codes.rows.min(out.len() / input.tokens.max(1));
    let sixteens = codes.blocks.div_ceil(BLOCKS);
    let zero = rows.zero.as_ref().map(|zero| Decoder::new(zero, height, sixteens));
    let (Some(scale), false) = (Decoder::new(&rows.scale, height, sixteens), matches!(zero, Some(None)))
    else {
        return false;
    };
    if height.checked_mul(codes.row_bytes).is_none_or(|bytes| bytes > codes.bytes.len()) {
        return false;
    }
    let products = Products {
        codes: *codes,
        scale,
        zero: zero.flatten(),
        sixteens,
        groups: core::array::from_fn(|i| _mm512_add_epi32(fours(), _mm512_set1_epi32(4 * i as i32))),
    };
    let (taken, prepared) = prepared.split_at_mut((codes.stride() / 2).min(prepared.len()));
    let (scales, sums) = prepared.split_at_mut(sixteens.min(prepared.len()));
    for token in 0..input.tokens {
        let (halves, _) = input.pairs(token);
        for ([even, odd], taken) in halves.iter().zip(&mut *taken) {
            let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), less, load_codes(even));
            let sums = _mm512_dpbusd_epi32(sums, less, load_codes(odd));
            store_floats(_mm512_castsi512_ps(_mm512_sub_epi32(_mm512_setzero_si512(), sums)), taken);
        }
        let blocks = input.granule_sums(token).chunks(BLOCKS).zip(input.scales(token).chunks(BLOCKS));
        for ((blocks, of_blocks), (sums, scales)) in blocks.zip(sums.iter_mut().zip(scales.iter_mut())) {
            (*sums, *scales) = ([0.0; 16], [0.0; 16]);
            let pairs = blocks.as_flattened().as_chunks::<2>().0;
            sums.iter_mut().zip(pairs).for_each(|(sum, [a, b])| *sum = a + b);
            scales.as_chunks_mut::<2>().0.iter_mut().zip(of_blocks).for_each(|(two, one)| *two = [*one; 2]);
        }
        let of_token = out.get_mut(token..).unwrap_or(&mut []);
        let mut outs = of_token.iter_mut().step_by(input.tokens).take(height);
        for first in (0..height).step_by(ROWS) {
            let parts = halves.chunks(PAIRS).zip(taken.chunks(PAIRS)).zip(scales.iter().zip(&*sums));
            let parts =
                parts.map(|((halves, taken), (scales, sums))| Sixteen { halves, taken, scales, sums });
            // SAFETY: `first` is below `height`, for which all was found to be there.
            let found = unsafe { products.rows(Rows { first, more: height - 1 - first }, parts) };
            found.into_iter().zip(&mut outs).for_each(|(product, out)| *out += product);
        }
    }
    true
}

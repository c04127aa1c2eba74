//! Scales of 16 groups of 32 columns at a time, of four rows: values of f16, or codes that have scales again.

use core::arch::x86_64::*;

use super::few::{BLOCKS, ROWS, Rows};
use super::*;
use crate::operands::Small;

/// Asks for `bytes` bytes that come some lines behind value `first`.
#[inline]
#[target_feature(enable = "avx512f")]
fn ask_behind<T>(values: &[T], first: usize, bytes: usize) {
    ask(values.as_ptr().wrapping_add(first).cast::<u8>().wrapping_add(512), bytes);
}

/// Scales of f16.
pub(super) struct Halves<'k> {
    scales: StoredScales<'k>,
    /// A scale counts for 2 to this power groups of 32 columns.
    log: u32,
    spread: __m512i,
    /// Of the scales of 16 groups, and of the last ones, those that are there.
    used: [__mmask16; 2],
}

impl<'k> Halves<'k> {
    /// For `rows` rows of `blocks` blocks. `None` where not all of them are there, or groups have 16 columns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(scales: StoredScales<'k>, rows: usize, blocks: usize) -> Option<Self> {
        let log = scales.granules_log.checked_sub(1)?;
        let before = (16 * blocks.div_ceil(BLOCKS).checked_sub(1)?) >> log;
        let last = scales.groups.checked_sub(before)?;
        let is_there = scales.values.len() >= rows.checked_mul(scales.groups)? && last > 0;
        let most = (16 >> log.min(4)).max(1);
        let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        is_there.then(|| Self {
            scales,
            log,
            spread: _mm512_srlv_epi32(lanes, _mm512_set1_epi32(log as i32)),
            used: [most, last.min(most)].map(|count| ((1u32 << count) - 1) as u16),
        })
    }

    /// The scales of groups `16 * i` to `16 * i + 15` of four rows, 0 for groups that are not there.
    ///
    /// # Safety
    /// The rows are some of those that [`Halves::new`] was told of, `i` is below their number of 8 blocks, and
    /// `is_last` says whether it is the last.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    pub(super) unsafe fn sixteen(&self, rows: Rows, i: usize, is_last: bool) -> [__m512; ROWS] {
        let used = self.used[usize::from(is_last)];
        let starts = rows.starts(self.scales.groups);
        let before = (16 * i) >> self.log;
        ask_behind(
            self.scales.values,
            starts[0] + ROWS * (self.scales.groups + before),
            ROWS * (32 >> self.log),
        );
        four!(r => {
            // SAFETY: `new` has seen that all rows have their `groups` scales, of which these are up to 16:
            // the mask has those that lie before what comes next, and of the last ones those of the row.
            let halves = unsafe {
                let halves = self.scales.values.as_ptr().add(starts[r] + before);
                _mm256_maskz_loadu_epi16(used, halves.cast())
            };
            _mm512_permutexvar_ps(self.spread, _mm512_cvtph_ps(halves))
        })
    }
}

/// Decodes scales or zero points.
pub(super) struct Decoder<'k> {
    small: Small<'k>,
    /// Of the codes of 16 groups, and of the last ones, the bytes that are theirs.
    used: [__mmask16; 2],
    bytes: __m128i,
    shifts: __m128i,
    mask: __m128i,
    offset: __m512i,
    /// Whether the last ones are no more than four.
    is_short: bool,
    /// Where codes begin in a pair of words of which each has the first of its row.
    shifts_of_words: __m128i,
}

impl<'k> Decoder<'k> {
    /// For `rows` rows of `blocks` blocks. `None` where not all of them are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(small: &Small<'k>, rows: usize, blocks: usize) -> Option<Self> {
        let sixteens = blocks.div_ceil(BLOCKS);
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
            is_short: matches!(blocks % BLOCKS, 1 | 2),
            shifts_of_words: _mm_set1_epi64x(shifts | (shifts + 0x2020_2020) << 32),
        })
    }

    /// Values `16 * i` to `16 * i + 15` of four rows.
    ///
    /// # Safety
    /// The rows are some of those that [`Decoder::new`] was told of, `i` is below their number of 8 blocks, and
    /// `is_last` says whether it is the last.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,f16c")]
    pub(super) unsafe fn sixteen(&self, rows: Rows, i: usize, is_last: bool) -> [__m512; ROWS] {
        if is_last && self.is_short {
            // SAFETY: as the caller says.
            return unsafe { self.last_four(rows, i) };
        }
        let used = self.used[usize::from(is_last)];
        let starts = rows.starts(self.small.row_bytes);
        let scales = rows.starts(self.small.groups);
        let step = 2 * self.small.bits;
        ask_behind(self.small.bytes, starts[0] + ROWS * (self.small.row_bytes + i * step), ROWS * step);
        ask_behind(self.small.scales, scales[0] + ROWS * (self.small.groups + i), 1);
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
        let fours = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        let all = self.values(codes, _mm512_permutexvar_ps(fours, _mm512_castps128_ps512(scales)));
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

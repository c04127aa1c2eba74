//! Scales of 16 groups of 32 columns of a row: values of f16, or codes that have scales again.

use core::arch::x86_64::*;

use super::few::BLOCKS;
use super::*;
use crate::operands::Small;

/// Scales of f16.
pub(super) struct Halves<'k> {
    scales: StoredScales<'k>,
    /// A scale counts for 2 to this power groups of 32 columns.
    log: u32,
    /// Of each lane, the scale.
    spread: [u16; 16],
    /// Of the scales of 16 groups, and of the last ones, those that are there.
    used: [__mmask16; 2],
}

impl<'k> Halves<'k> {
    /// For `rows` rows of `blocks` blocks, in lanes of the groups `order`. `None` where not all of them are there,
    /// or groups have 16 columns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(
        scales: StoredScales<'k>,
        rows: usize,
        blocks: usize,
        order: &[usize; 16],
    ) -> Option<Self> {
        let log = scales.granules_log.checked_sub(1)?;
        let before = (16 * blocks.div_ceil(BLOCKS).checked_sub(1)?) >> log;
        let last = scales.groups.checked_sub(before)?;
        let is_there = scales.values.len() >= rows.checked_mul(scales.groups)? && last > 0;
        let most = (16 >> log.min(4)).max(1);
        is_there.then(|| Self {
            scales,
            log,
            spread: order.map(|group| (group >> log.min(4)) as u16),
            used: [most, last.min(most)].map(|count| ((1u32 << count) - 1) as u16),
        })
    }

    /// The scales of groups `16 * i` to `16 * i + 15` of a row, in order, 0 for groups that are not there.
    ///
    /// # Safety
    /// The row is one of those that [`Halves::new`] was told of, `i` is below their number of 8 blocks, and
    /// `is_last` says whether it is the last, at least unless [`Halves::is_whole`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,bmi2,f16c")]
    pub(super) unsafe fn sixteen(&self, row: usize, i: usize, is_last: bool) -> __m512 {
        let used = self.used[usize::from(is_last)];
        let first = row * self.scales.groups + ((16 * i) >> self.log);
        // SAFETY: `new` has seen that all rows have their `groups` scales, of which these are up to 16: the
        // mask has those that lie before what comes next, and of the last ones those of the row.
        // The array has the 16 values that are read.
        let (halves, spread) = unsafe {
            let values = self.scales.values.as_ptr().add(first);
            _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(128).cast());
            let halves = _mm256_maskz_loadu_epi16(used, values.cast());
            (halves, _mm256_loadu_si256(self.spread.as_ptr().cast()))
        };
        _mm512_cvtph_ps(_mm256_permutexvar_epi16(spread, halves))
    }

    /// Whether the last ones are as many as the others.
    pub(super) fn is_whole(&self) -> bool {
        self.used[0] == self.used[1]
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
    order: __m128i,
    offset: __m128i,
}

impl<'k> Decoder<'k> {
    /// For `rows` rows of `blocks` blocks, in lanes of the groups `order`. `None` where not all of them are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(small: &Small<'k>, rows: usize, blocks: usize, order: &[usize; 16]) -> Option<Self> {
        let sixteens = blocks.div_ceil(BLOCKS);
        let last = small.row_bytes.checked_sub(sixteens.checked_sub(1)? * 2 * small.bits)?;
        let is_there = small.bytes.len() >= rows.checked_mul(small.row_bytes)?
            && small.scales.len() >= rows.checked_mul(small.groups)?
            && small.groups >= sixteens
            && last > 0;
        let unpacker = Unpacker::new(small.bits);
        is_there.then(|| Self {
            small: *small,
            used: [2 * small.bits, last.min(2 * small.bits)].map(|count| ((1u32 << count) - 1) as u16),
            bytes: _mm512_castsi512_si128(unpacker.bytes),
            shifts: _mm512_castsi512_si128(unpacker.shifts),
            mask: _mm512_castsi512_si128(unpacker.mask),
            order: load_16(&order.map(|group| group as u8)),
            offset: _mm_set1_epi8(small.offset as i8),
        })
    }

    /// Values `16 * i` to `16 * i + 15` of a row, in order.
    ///
    /// # Safety
    /// The row is one of those that [`Decoder::new`] was told of, `i` is below their number of 8 blocks, and
    /// `is_last` says whether it is the last, at least unless [`Decoder::is_whole`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi2,f16c")]
    pub(super) unsafe fn sixteen(&self, row: usize, i: usize, is_last: bool) -> __m512 {
        let used = self.used[usize::from(is_last)];
        // SAFETY: `new` has seen that all rows are there, with their `groups` scales, more than `i`. The mask
        // has the bytes of 16 codes, which end in the row unless these are the last, and else those up to the
        // end of the row.
        let (bytes, scale) = unsafe {
            let bytes = self.small.bytes.as_ptr().add(row * self.small.row_bytes + i * 2 * self.small.bits);
            let scale = *self.small.scales.get_unchecked(row * self.small.groups + i);
            (_mm_maskz_loadu_epi8(used, bytes.cast()), i16::from_le_bytes(scale))
        };
        let words = _mm_permutexvar_epi8(self.bytes, bytes);
        let codes = _mm_and_si128(_mm_multishift_epi64_epi8(self.shifts, words), self.mask);
        let codes = _mm_add_epi8(_mm_permutexvar_epi8(self.order, codes), self.offset);
        let scale = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(scale.into())));
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale)
    }

    /// Whether the last ones are as many as the others.
    pub(super) fn is_whole(&self) -> bool {
        self.used[0] == self.used[1]
    }
}

//! Vectors of memory: loads and stores of whole and of partial vectors, sums of lanes, transposes.

use core::arch::x86_64::*;

use crate::operands::GRANULES;

/// The first bytes of `bytes`, at most `most` and 64, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_part(bytes: &[u8], most: usize) -> __m512i {
    let count = bytes.len().min(most).min(64);
    let mask = if count == 0 { 0 } else { u64::MAX >> (64 - count) };
    // SAFETY: only bytes whose bit is set are read: the first `count`, which `bytes` has.
    unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) }
}

/// The first 64 bytes of `bytes`, of which the first `most` count.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_some(bytes: &[u8], most: usize) -> __m512i {
    match bytes.first_chunk() {
        Some(bytes) => load_bytes(bytes),
        None => load_part(bytes, most),
    }
}

/// Asks for the cache line `ahead` bytes behind the start of `bytes`, into the second cache: the first has
/// too few places for lines that are on their way, and what comes from memory would wait for them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch(bytes: &[u8], ahead: usize) {
    _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(ahead).cast());
}

/// Asks for lines `APART` bytes apart of what comes `AHEAD` bytes after the `bytes` bytes from `from` on. What is read
/// in order the processor asks for itself, but not beyond the end of a page: it goes on at once where the next page
/// has begun to come.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn ask_ahead<const AHEAD: usize, const APART: usize>(from: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(APART) {
        _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(line + AHEAD).cast());
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_bytes(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array has the 64 bytes that are read.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array has the 32 bytes that are read.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_codes(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: the array has the 64 bytes that are read.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_floats(values: &[f32; 16]) -> __m512 {
    // SAFETY: the array has the 16 values that are read.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Integers in the place of floats.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_words(values: &[f32; 16]) -> __m512i {
    _mm512_castps_si512(load_floats(values))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_words(words: __m512i, out: &mut [u32; 16]) {
    // SAFETY: the array has room for the 16 words that are written.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), words) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_floats(values: __m512, out: &mut [f32; 16]) {
    // SAFETY: the array has room for the 16 values that are written.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_bytes(bytes: __m512i, out: &mut [u8; 64]) {
    // SAFETY: the array has room for the 64 bytes that are written.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes) }
}

/// The first values of `out`, as many as it has and at most 16.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_part(values: __m512, out: &mut [f32]) {
    let count = out.len().min(16);
    let mask = ((1u32 << count) - 1) as u16;
    // SAFETY: only values whose bit is set are written: the first `count`, for which `out` has room.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, values) }
}

/// Four values, each in four lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn spread(values: &[f32; GRANULES]) -> __m512 {
    // SAFETY: the array has the 4 values that are read.
    let four = unsafe { _mm_loadu_ps(values.as_ptr()) };
    let lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(four))
}

/// Eight values, each in two lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn spread_8(values: &[[f32; GRANULES]; 2]) -> __m512 {
    // SAFETY: the array has the 8 values that are read.
    let eight = unsafe { _mm256_loadu_ps(values.as_ptr().cast()) };
    let lanes = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    _mm512_permutexvar_ps(lanes, _mm512_castps256_ps512(eight))
}

/// The sum of lanes, by halves, as [`crate::operands::sum_lanes`] adds them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sum(lanes: __m512) -> f32 {
    let upper =
        _mm512_castpd_ps(_mm512_castpd256_pd512(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes))));
    let eight = _mm512_castps512_ps256(_mm512_add_ps(lanes, upper));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sums_of_four([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    let pairs = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let [ab, cd] = [_mm512_castps_pd(pairs(a, b)), _mm512_castps_pd(pairs(c, d))];
    // In each four lanes the sums of a, b, c and d.
    let fours = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
    );
    let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(fours)));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(fours), upper);
    let sums = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let mut out = [0.0; 4];
    // SAFETY: the array has room for the 4 values that are written.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

/// The transpose of eight vectors of eight quadwords.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: [__m512i; 8]) -> [__m512i; 8] {
    // Pairs of quadwords, then pairs of those, then halves.
    let mut pairs = rows;
    for i in 0..4 {
        pairs[2 * i] = _mm512_unpacklo_epi64(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi64(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = pairs;
    for i in 0..2 {
        for j in 0..2 {
            let (a, b) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
            fours[4 * i + j] = _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b);
            fours[4 * i + 2 + j] = _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b);
        }
    }
    let mut out = fours;
    for j in 0..2 {
        // Rows j and j + 4 from the even lanes, j + 2 and j + 6 from the odd ones.
        let (a, b) = (fours[j], fours[4 + j]);
        out[j] = _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b);
        out[4 + j] = _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b);
        let (a, b) = (fours[2 + j], fours[6 + j]);
        out[2 + j] = _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b);
        out[6 + j] = _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b);
    }
    out
}

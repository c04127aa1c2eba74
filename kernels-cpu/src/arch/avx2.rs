//! Kernels for AVX2: codes of 4 and 8 bits by quantised activations, with `vpmaddubsw`.

use core::arch::x86_64::*;

use crate::operands::{BLOCK, Codes, GRANULE, GRANULES, Input, Map};

/// Tokens that a row is unpacked for at a time.
const TILE: usize = 4;

/// As the portable kernel, for codes of 4 or 8 bits. Gives whether that is what there is.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn fast(codes: &Codes<'_>, input: &Input<'_>, out: &mut [f32]) -> bool {
    let Map::Signed(offset) = codes.map else { return false };
    if ![4, 8].contains(&codes.bits) {
        return false;
    }
    for (row, out) in (0..codes.rows).zip(out.chunks_exact_mut(input.tokens.max(1))) {
        for (token, out) in (0..).step_by(TILE).zip(out.chunks_mut(TILE)) {
            match (codes.bits, out.len()) {
                (4, 1) => multiply::<4, 1>(codes, offset, input, row, token, out),
                (4, _) => multiply::<4, TILE>(codes, offset, input, row, token, out),
                (_, 1) => multiply::<8, 1>(codes, offset, input, row, token, out),
                (_, _) => multiply::<8, TILE>(codes, offset, input, row, token, out),
            }
        }
    }
    true
}

/// A row by up to `T` tokens.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply<const BITS: usize, const T: usize>(
    codes: &Codes<'_>,
    offset: i16,
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) {
    let bytes = codes.own_row(row);
    let less = _mm256_set1_epi8(offset.unsigned_abs() as u8 as i8);
    let tokens: [_; T] = core::array::from_fn(|t| {
        let token = token + t.min(out.len().saturating_sub(1));
        (input.quantised(token), input.scales(token))
    });
    let mut lanes = [_mm256_setzero_ps(); T];
    for (block, scales) in codes.scales(row).iter().enumerate().take(codes.blocks) {
        let from = bytes.get(block * 8 * BITS..).unwrap_or(&[]);
        let mut part = [0; BLOCK];
        let from = match from.get(..8 * BITS) {
            Some(whole) => whole,
            None => {
                part.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                part.get(..8 * BITS).unwrap_or(&[])
            }
        };
        let (first, second) = unpack::<BITS>(from);
        let (first, second) = (_mm256_sub_epi8(first, less), _mm256_sub_epi8(second, less));
        let sizes = (_mm256_abs_epi8(first), _mm256_abs_epi8(second));
        let scales = [each(scales[0], scales[2]), each(scales[1], scales[3])];
        for t in 0..T {
            let (Some(q), Some(scale)) = (tokens[t].0.get(block), tokens[t].1.get(block)) else { return };
            let [a, b, c, d] = granules(q);
            let q = (_mm256_set_m128i(c, a), _mm256_set_m128i(d, b));
            let scale = _mm256_set1_ps(*scale);
            for (i, (size, weight, q)) in
                [(sizes.0, first, q.0), (sizes.1, second, q.1)].into_iter().enumerate()
            {
                // At most 128 * 127 * 2, which 16 bits hold.
                let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(q, weight));
                let sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                lanes[t] = _mm256_fmadd_ps(sums, _mm256_mul_ps(scales[i], scale), lanes[t]);
            }
        }
    }
    for (out, lanes) in out.iter_mut().zip(lanes) {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        *out += _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
}

/// The codes of granules 0 and 2, and of 1 and 3, of a block.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack<const BITS: usize>(bytes: &[u8]) -> (__m256i, __m256i) {
    let parts = bytes.as_chunks::<GRANULE>().0;
    match *parts {
        [a, b] if BITS == 4 => {
            let bytes = _mm256_set_m128i(load(&b), load(&a));
            let low = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15));
            (_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high))
        }
        [a, b, c, d, ..] => (_mm256_set_m128i(load(&c), load(&a)), _mm256_set_m128i(load(&d), load(&b))),
        _ => (_mm256_setzero_si256(), _mm256_setzero_si256()),
    }
}

/// The granules of quantised activations.
#[inline]
#[target_feature(enable = "avx2")]
fn granules(q: &[i8; BLOCK]) -> [__m128i; GRANULES] {
    let mut out = [_mm_setzero_si128(); GRANULES];
    for (out, q) in out.iter_mut().zip(q.as_chunks::<GRANULE>().0) {
        // SAFETY: the array has the 16 bytes that are read.
        *out = unsafe { _mm_loadu_si128(q.as_ptr().cast()) };
    }
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; GRANULE]) -> __m128i {
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Two values, each in four lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn each(first: f32, second: f32) -> __m256 {
    _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first))
}

//! Vectors of memory: loads, stores, transposes and sums of lanes.

use core::arch::aarch64::*;

use crate::operands::GRANULE;

/// 16 lanes.
pub(super) type Lanes = [float32x4_t; 4];

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_16(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_codes(codes: &[i8; 16]) -> int8x16_t {
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { vld1q_s8(codes.as_ptr()) }
}

/// Byte `i` of each of 16 words in vector `i`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_planes(words: &[[u8; 4]; 16]) -> [uint8x16_t; 4] {
    // SAFETY: the array has the 64 bytes that are read.
    let planes = unsafe { vld4q_u8(words.as_ptr().cast()) };
    [planes.0, planes.1, planes.2, planes.3]
}

/// 64 bytes as a table.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_table(bytes: &[u8; 64]) -> uint8x16x4_t {
    let [a, b, c, d] = quarters(bytes);
    uint8x16x4_t(a, b, c, d)
}

/// Four vectors of bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn quarters(bytes: &[u8; 64]) -> [uint8x16_t; 4] {
    let mut out = [vdupq_n_u8(0); 4];
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = load_16(bytes);
    }
    out
}

/// The first 64 bytes of `bytes`; fewer are followed by zeros.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_64(bytes: &[u8]) -> [uint8x16_t; 4] {
    match bytes.first_chunk() {
        Some(bytes) => quarters(bytes),
        None => quarters(&part(bytes)),
    }
}

/// The first 32 bytes of `bytes`; fewer are followed by zeros.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_32(bytes: &[u8]) -> [uint8x16_t; 2] {
    let two = |bytes: &[u8; 32]| {
        let (halves, _) = bytes.as_chunks();
        [load_16(&halves[0]), load_16(&halves[1])]
    };
    match bytes.first_chunk() {
        Some(bytes) => two(bytes),
        None => two(&part(bytes)),
    }
}

/// The first bytes of `bytes`, which has fewer, and zeros.
#[cold]
#[inline(never)]
pub(super) fn part<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut part = [0; N];
    part.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    part
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_16(bytes: uint8x16_t, out: &mut [u8; 16]) {
    // SAFETY: the array has room for the 16 bytes that are written.
    unsafe { vst1q_u8(out.as_mut_ptr(), bytes) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_four(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: the array has the 4 values that are read.
    unsafe { vld1q_f32(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_four(values: float32x4_t, out: &mut [f32; 4]) {
    // SAFETY: the array has room for the 4 values that are written.
    unsafe { vst1q_f32(out.as_mut_ptr(), values) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_lanes(values: &[f32; GRANULE]) -> Lanes {
    let mut out = zero_lanes();
    for (out, values) in out.iter_mut().zip(values.as_chunks().0) {
        *out = load_four(values);
    }
    out
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_lanes(lanes: Lanes, out: &mut [f32; GRANULE]) {
    for (lanes, out) in lanes.into_iter().zip(out.as_chunks_mut().0) {
        store_four(lanes, out);
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn zero_lanes() -> Lanes {
    [vdupq_n_f32(0.0); 4]
}

/// Adds products lane by lane.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn multiply_add(lanes: Lanes, a: Lanes, b: Lanes) -> Lanes {
    core::array::from_fn(|i| vfmaq_f32(lanes[i], a[i], b[i]))
}

/// The sum of lanes, by halves, as [`crate::operands::sum_lanes`] adds them.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sum(lanes: Lanes) -> f32 {
    sum_four(vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3])))
}

/// The sum of four lanes, by halves.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sum_four(lanes: float32x4_t) -> f32 {
    let two = vadd_f32(vget_low_f32(lanes), vget_high_f32(lanes));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sums_of_four(of: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(of[0], of[1]), vpaddq_s32(of[2], of[3]))
}

/// Four vectors of four values as their columns.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn transpose(rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    transpose_words(rows.map(|row| vreinterpretq_s32_f32(row))).map(|column| vreinterpretq_f32_s32(column))
}

/// The transpose of four vectors of four words.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn transpose_words(rows: [int32x4_t; 4]) -> [int32x4_t; 4] {
    let [a, b, c, d] = rows;
    let (first, second) = (vtrn1q_s32(a, b), vtrn2q_s32(a, b));
    let (third, fourth) = (vtrn1q_s32(c, d), vtrn2q_s32(c, d));
    let low = |a, b| vreinterpretq_s32_s64(vtrn1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
    let high = |a, b| vreinterpretq_s32_s64(vtrn2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
    [low(first, third), low(second, fourth), high(first, third), high(second, fourth)]
}

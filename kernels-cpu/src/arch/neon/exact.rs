//! Exact products: 16 lanes, column `j` in lane `j mod 16`, as in portable code.

use core::arch::aarch64::*;

use super::memory::*;
use super::*;
use crate::operands::{Element, Elements, Zero};

/// Maps of codes to values.
const SIGNED: u8 = 0;
const TABLE_16: u8 = 1;
const TABLE_256: u8 = 2;

/// Makes weights of codes.
struct Decoder<'k> {
    unpacker: Unpacker,
    /// Taken off the codes.
    less: uint8x16_t,
    /// Byte `i` of the values of 16 codes in vector `i`.
    planes: [uint8x16_t; 4],
    values: &'k [f32; 256],
}

impl<'k> Decoder<'k> {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(codes: &Codes<'k>) -> (u8, Self) {
        const NONE: &[f32; 256] = &[0.0; 256];
        let (map, less, values) = match codes.map {
            Map::Signed(offset) => (SIGNED, offset.unsigned_abs() as u8, NONE),
            Map::Values(values) if codes.used_bits <= 4 => (TABLE_16, 0, values),
            Map::Values(values) => (TABLE_256, 0, values),
        };
        let mut planes = [vdupq_n_u8(0); 4];
        for (i, plane) in planes.iter_mut().enumerate() {
            let bytes: [u8; 16] = core::array::from_fn(|code| values[code].to_le_bytes()[i]);
            *plane = load_16(&bytes);
        }
        (map, Self { unpacker: Unpacker::new(codes.bits), less: vdupq_n_u8(less), planes, values })
    }

    /// The weights of a granule.
    #[inline]
    #[target_feature(enable = "neon")]
    fn weights<const MAP: u8, const ZERO: u8>(&self, codes: uint8x16_t, scale: f32, zero: f32) -> Lanes {
        let values = match MAP {
            SIGNED => {
                let bytes = vreinterpretq_s8_u8(vsubq_u8(codes, self.less));
                let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
                let words = [
                    vmovl_s16(vget_low_s16(low)),
                    vmovl_high_s16(low),
                    vmovl_s16(vget_low_s16(high)),
                    vmovl_high_s16(high),
                ];
                words.map(|words| vcvtq_f32_s32(words))
            }
            TABLE_16 => {
                let [a, b, c, d] = self.planes.map(|plane| vqtbl1q_u8(plane, codes));
                let lower = [vzip1q_u8(a, b), vzip2q_u8(a, b)].map(|half| vreinterpretq_u16_u8(half));
                let upper = [vzip1q_u8(c, d), vzip2q_u8(c, d)].map(|half| vreinterpretq_u16_u8(half));
                let words = [
                    vzip1q_u16(lower[0], upper[0]),
                    vzip2q_u16(lower[0], upper[0]),
                    vzip1q_u16(lower[1], upper[1]),
                    vzip2q_u16(lower[1], upper[1]),
                ];
                words.map(|words| vreinterpretq_f32_u16(words))
            }
            _ => {
                let mut bytes = [0; 16];
                store_16(codes, &mut bytes);
                load_lanes(&bytes.map(|code| self.values[usize::from(code)]))
            }
        };
        let zero = vdupq_n_f32(zero);
        values.map(|values| match ZERO {
            0 => vmulq_n_f32(values, scale),
            1 => vmulq_n_f32(vsubq_f32(values, zero), scale),
            _ => vaddq_f32(vmulq_n_f32(values, scale), zero),
        })
    }
}

/// Calls a kernel with the map and the use of zero points as constants.
macro_rules! by_meaning {
    ($map:expr, $zero:expr, $kernel:ident($($argument:expr),*)) => {
        match ($map, $zero) {
            (SIGNED, Zero::None) => $kernel::<SIGNED, 0>($($argument),*),
            (SIGNED, Zero::Subtract) => $kernel::<SIGNED, 1>($($argument),*),
            (SIGNED, Zero::Add) => $kernel::<SIGNED, 2>($($argument),*),
            (TABLE_16, Zero::None) => $kernel::<TABLE_16, 0>($($argument),*),
            (TABLE_16, Zero::Subtract) => $kernel::<TABLE_16, 1>($($argument),*),
            (TABLE_16, Zero::Add) => $kernel::<TABLE_16, 2>($($argument),*),
            (_, Zero::None) => $kernel::<TABLE_256, 0>($($argument),*),
            (_, Zero::Subtract) => $kernel::<TABLE_256, 1>($($argument),*),
            (_, Zero::Add) => $kernel::<TABLE_256, 2>($($argument),*),
        }
    };
}

/// As the portable kernel, to the bit.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn exact(codes: &Codes<'_>, input: &Input<'_>, out: &mut [f32]) {
    let (map, decoder) = Decoder::new(codes);
    by_meaning!(map, codes.zero, exact_rows(codes, &decoder, input, out));
}

#[inline]
#[target_feature(enable = "neon")]
fn exact_rows<const MAP: u8, const ZERO: u8>(
    codes: &Codes<'_>,
    decoder: &Decoder<'_>,
    input: &Input<'_>,
    out: &mut [f32],
) {
    for (row, out) in (0..codes.rows).zip(out.chunks_exact_mut(input.tokens.max(1))) {
        for (token, out) in (0..).step_by(TILE).zip(out.chunks_mut(TILE)) {
            match out.len() {
                TILE => exact_tile::<MAP, ZERO, TILE>(codes, decoder, input, row, token, out),
                _ => (token..).zip(out.chunks_mut(1)).for_each(|(token, out)| {
                    exact_tile::<MAP, ZERO, 1>(codes, decoder, input, row, token, out);
                }),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn exact_tile<const MAP: u8, const ZERO: u8, const T: usize>(
    codes: &Codes<'_>,
    decoder: &Decoder<'_>,
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) {
    let (bytes, scales, zeros) = (codes.row(row), codes.scales(row), codes.zeros(row));
    let values: [_; T] = core::array::from_fn(|i| input.values(token + i));
    let mut lanes = [zero_lanes(); T];
    for block in 0..codes.blocks {
        let Some(x) = blocks_of(&values, block) else { return };
        let unpacked = decoder.unpacker.unpack(bytes, block);
        let scales = scales.get(block).unwrap_or(&[0.0; GRANULES]);
        let zeros = if ZERO == 0 { None } else { zeros.get(block) }.unwrap_or(&[0.0; GRANULES]);
        for i in 0..GRANULES {
            let weights = decoder.weights::<MAP, ZERO>(unpacked[i], scales[i], zeros[i]);
            add_granule(&mut lanes, weights, &x, i);
        }
    }
    add_sums(&lanes, out);
}

/// Block `block` of each vector.
#[inline(always)]
fn blocks_of<'v, const T: usize>(
    values: &[&'v [[f32; BLOCK]]; T],
    block: usize,
) -> Option<[&'v [f32; BLOCK]; T]> {
    let mut x = [&[0.0; BLOCK]; T];
    for (x, values) in x.iter_mut().zip(values) {
        *x = values.get(block)?;
    }
    Some(x)
}

/// Adds the products with granule `i` of blocks of tokens.
#[inline]
#[target_feature(enable = "neon")]
fn add_granule<const T: usize>(lanes: &mut [Lanes; T], weights: Lanes, x: &[&[f32; BLOCK]; T], i: usize) {
    for t in 0..T {
        lanes[t] = multiply_add(lanes[t], weights, load_lanes(&x[t].as_chunks().0[i]));
    }
}

/// Adds sums of lanes.
#[inline]
#[target_feature(enable = "neon")]
fn add_sums<const T: usize>(lanes: &[Lanes; T], out: &mut [f32]) {
    for (lanes, out) in lanes.iter().zip(out) {
        *out += sum(*lanes);
    }
}

/// As the portable kernel, to the bit.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn dot(weights: &[[f32; BLOCK]], input: &Input<'_>, out: &mut [f32]) {
    let rows = weights.chunks_exact(input.blocks.max(1));
    for (weights, out) in rows.zip(out.chunks_exact_mut(input.tokens.max(1))) {
        for (token, out) in (0..).step_by(TILE).zip(out.chunks_mut(TILE)) {
            match out.len() {
                TILE => dot_tile::<TILE>(weights, input, token, out),
                _ => (token..).zip(out.chunks_mut(1)).for_each(|(token, out)| {
                    dot_tile::<1>(weights, input, token, out);
                }),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn dot_tile<const T: usize>(weights: &[[f32; BLOCK]], input: &Input<'_>, token: usize, out: &mut [f32]) {
    let values: [_; T] = core::array::from_fn(|i| input.values(token + i));
    let mut lanes = [zero_lanes(); T];
    for (block, weights) in weights.iter().enumerate() {
        let Some(x) = blocks_of(&values, block) else { return };
        for (i, weights) in weights.as_chunks().0.iter().enumerate() {
            add_granule(&mut lanes, load_lanes(weights), &x, i);
        }
    }
    add_sums(&lanes, out);
}

const F16: u8 = 0;
const BF16: u8 = 1;
const F32: u8 = 2;

/// The first 16 elements of `bytes`, or as many as there are, and zeros.
#[inline]
#[target_feature(enable = "neon")]
fn load_elements<const KIND: u8>(bytes: &[u8]) -> Lanes {
    if KIND == F32 {
        return load_64(bytes).map(|four| vreinterpretq_f32_u8(four));
    }
    let [a, b] = load_32(bytes);
    if KIND == F16 {
        let [a, b] = [a, b].map(|eight| vreinterpretq_f16_u8(eight));
        let (low, high) = (vcvt_f32_f16(vget_low_f16(a)), vcvt_high_f32_f16(a));
        return [low, high, vcvt_f32_f16(vget_low_f16(b)), vcvt_high_f32_f16(b)];
    }
    let zero = vdupq_n_u16(0);
    let [a, b] = [a, b].map(|eight| vreinterpretq_u16_u8(eight));
    [vzip1q_u16(zero, a), vzip2q_u16(zero, a), vzip1q_u16(zero, b), vzip2q_u16(zero, b)]
        .map(|four| vreinterpretq_f32_u16(four))
}

/// As the portable kernel, to the bit.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn elements(rows: &Elements<'_>, input: &Input<'_>, out: &mut [f32]) {
    match rows.element {
        Element::F16 => elements_of::<F16, 128>(rows, input, out),
        Element::Bf16 => elements_of::<BF16, 128>(rows, input, out),
        Element::F32 => elements_of::<F32, 256>(rows, input, out),
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn elements_of<const KIND: u8, const BYTES: usize>(rows: &Elements<'_>, input: &Input<'_>, out: &mut [f32]) {
    for (row, out) in (0..rows.rows).zip(out.chunks_exact_mut(input.tokens.max(1))) {
        let bytes = rows.row(row);
        for (token, out) in (0..).step_by(TILE).zip(out.chunks_mut(TILE)) {
            match out.len() {
                TILE => elements_tile::<KIND, BYTES, TILE>(bytes, input, token, out),
                _ => (token..).zip(out.chunks_mut(1)).for_each(|(token, out)| {
                    elements_tile::<KIND, BYTES, 1>(bytes, input, token, out);
                }),
            }
        }
    }
}

/// A row by some tokens; a block has `BYTES` bytes.
#[inline]
#[target_feature(enable = "neon")]
fn elements_tile<const KIND: u8, const BYTES: usize, const T: usize>(
    bytes: &[u8],
    input: &Input<'_>,
    token: usize,
    out: &mut [f32],
) {
    let values: [_; T] = core::array::from_fn(|i| input.values(token + i));
    let mut lanes = [zero_lanes(); T];
    for (block, bytes) in bytes.chunks(BYTES).enumerate() {
        let Some(x) = blocks_of(&values, block) else { return };
        let bytes: &[u8; BYTES] = match bytes.first_chunk() {
            Some(bytes) => bytes,
            None => &part(bytes),
        };
        for i in 0..GRANULES {
            add_granule(&mut lanes, load_elements::<KIND>(&bytes[i * BYTES / GRANULES..]), &x, i);
        }
    }
    add_sums(&lanes, out);
}

/// As the portable kernel.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn halves(elements: &[[u8; 2]], out: &mut [f32]) {
    for (elements, out) in elements.chunks(GRANULE).zip(out.chunks_mut(GRANULE)) {
        store_some(load_elements::<F16>(elements.as_flattened()), out);
    }
}

/// The first values, as many as `out` has and at most 16.
#[inline]
#[target_feature(enable = "neon")]
fn store_some(lanes: Lanes, out: &mut [f32]) {
    match out.first_chunk_mut() {
        Some(out) => store_lanes(lanes, out),
        None => {
            let mut all = [0.0; GRANULE];
            store_lanes(lanes, &mut all);
            out.iter_mut().zip(all).for_each(|(out, value)| *out = value);
        }
    }
}

/// As the portable kernel, to the bit.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn decode(codes: &Codes<'_>, cols: usize, out: &mut [f32]) {
    let (map, decoder) = Decoder::new(codes);
    by_meaning!(map, codes.zero, decode_rows(codes, &decoder, cols, out));
}

#[inline]
#[target_feature(enable = "neon")]
fn decode_rows<const MAP: u8, const ZERO: u8>(
    codes: &Codes<'_>,
    decoder: &Decoder<'_>,
    cols: usize,
    out: &mut [f32],
) {
    for (row, out) in (0..codes.rows).zip(out.chunks_exact_mut(cols.max(1))) {
        let (bytes, scales, zeros) = (codes.row(row), codes.scales(row), codes.zeros(row));
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let unpacked = decoder.unpacker.unpack(bytes, block);
            let scales = scales.get(block).unwrap_or(&[0.0; GRANULES]);
            let zeros = if ZERO == 0 { None } else { zeros.get(block) }.unwrap_or(&[0.0; GRANULES]);
            for (i, out) in out.chunks_mut(GRANULE).enumerate() {
                store_some(decoder.weights::<MAP, ZERO>(unpacked[i], scales[i], zeros[i]), out);
            }
        }
    }
}

/// As the portable kernel.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn planes(planes: &[&[u8]], out: &mut [[u8; BLOCK]]) {
    let bit = load_16(&[1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128]);
    for (i, out) in out.as_flattened_mut().as_chunks_mut().0.iter_mut().enumerate() {
        let codes = planes.iter().fold(vdupq_n_u8(0), |codes, plane| {
            let [low, high] = plane.get(2 * i..).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; 2]);
            let bytes = vcombine_u8(vdup_n_u8(*low), vdup_n_u8(*high));
            // A bit that is set is -1 in its byte.
            vsubq_u8(vaddq_u8(codes, codes), vtstq_u8(bytes, bit))
        });
        store_16(codes, out);
    }
}

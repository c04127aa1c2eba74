//! Kernels for 64-bit Arm: vectors of 128 bits, of which four are 16 lanes.
//!
//! What sums products of bytes is a value, [`Dot`]: instruction sets differ in that alone. Codes of 4 bits
//! by quantised activations stay in the order of their bytes, even columns before odd ones. Codes of
//! other widths are spread to bytes by one lookup of bytes and one shift for each eight.

mod dot;
mod exact;
mod memory;
mod trellis;
mod twice;

use core::arch::aarch64::*;

pub(super) use self::dot::{Dot, Dotprod, Matmul, Wide};
pub(super) use self::exact::{decode, dot, elements, exact, halves, planes};
pub(super) use self::trellis::{trellis, trellis_fast};
pub(super) use self::twice::fast_twice;

use self::dot::SIDE;
use self::memory::*;
use crate::operands::{BLOCK, Codes, GRANULE, GRANULES, Input, Map};

/// Rows, or tokens, of a tile.
const TILE: usize = 4;
/// Rows of a panel, which many tokens are multiplied with.
const PANEL: usize = 16;

/// Spreads codes of a width to bytes.
#[derive(Clone, Copy)]
struct Unpacker {
    bits: usize,
    /// The two bytes that have a code, for eight codes and for the next eight.
    bytes: [uint8x16_t; 2],
    /// To the right, and so negative.
    shifts: int16x8_t,
    mask: uint8x16_t,
}

impl Unpacker {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(bits: usize) -> Self {
        let bytes = |from: usize| {
            let places: [u8; 16] = core::array::from_fn(|i| (from + i / 2 * bits / 8 + i % 2) as u8);
            load_16(&places)
        };
        let mut shifts = [0; 16];
        for (i, shift) in shifts.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *shift = (-((i * bits % 8) as i16)).to_le_bytes();
        }
        Self {
            bits,
            bytes: [bytes(0), bytes(bits)],
            shifts: vreinterpretq_s16_u8(load_16(&shifts)),
            mask: vdupq_n_u8(((1u16 << bits) - 1) as u8),
        }
    }

    /// The codes of block `block` of `row`; those beyond its end are those of what lies there.
    #[inline]
    #[target_feature(enable = "neon")]
    fn unpack(&self, row: &[u8], block: usize) -> [uint8x16_t; GRANULES] {
        match self.bits {
            8 => load_64(row.get(block * 64..).unwrap_or(&[])),
            4 => {
                let [even, odd, even_2, odd_2] = self.nibbles(row, block);
                let (a, b) = (vzip1q_u8(even, odd), vzip2q_u8(even, odd));
                [a, b, vzip1q_u8(even_2, odd_2), vzip2q_u8(even_2, odd_2)]
            }
            bits => self.spread(row.get(block * 8 * bits..).unwrap_or(&[])),
        }
    }

    /// The first 64 codes of `bytes`.
    #[inline(never)]
    #[target_feature(enable = "neon")]
    fn spread(&self, bytes: &[u8]) -> [uint8x16_t; GRANULES] {
        let whole = match bytes.first_chunk() {
            Some(bytes) => bytes,
            None => &part::<64>(bytes),
        };
        let mut out = [vdupq_n_u8(0); GRANULES];
        for (i, out) in out.iter_mut().enumerate() {
            // At most 7 bits a code: 16 bytes are there.
            let sixteen = whole.get(i * 2 * self.bits..).and_then(|bytes| bytes.first_chunk());
            let Some(bytes) = sixteen else { continue };
            *out = self.sixteen(load_16(bytes));
        }
        out
    }

    /// The first 16 codes of `bytes`.
    #[inline]
    #[target_feature(enable = "neon")]
    fn sixteen(&self, bytes: uint8x16_t) -> uint8x16_t {
        let [low, high] = self.bytes.map(|places| {
            let words = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, places));
            vreinterpretq_u8_u16(vshlq_u16(words, self.shifts))
        });
        vandq_u8(vuzp1q_u8(low, high), self.mask)
    }

    /// Codes of 4 bits: the even columns of the first half of a block, the odd ones, then those of the
    /// second half.
    #[inline]
    #[target_feature(enable = "neon")]
    fn nibbles(&self, row: &[u8], block: usize) -> [uint8x16_t; GRANULES] {
        let [a, b] = load_32(row.get(block * 32..).unwrap_or(&[]));
        split(a, b)
    }
}

/// The lower halves of the bytes of `a`, the upper ones, then those of `b`.
#[inline]
#[target_feature(enable = "neon")]
fn split(a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; GRANULES] {
    let low = vdupq_n_u8(15);
    [vandq_u8(a, low), vshrq_n_u8::<4>(a), vandq_u8(b, low), vshrq_n_u8::<4>(b)]
}

/// Rows of codes that are signed bytes.
struct Rows<'k> {
    codes: &'k Codes<'k>,
    unpacker: Unpacker,
    /// What is taken off the codes, 0 to 128.
    less: uint8x16_t,
}

impl<'k> Rows<'k> {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(codes: &'k Codes<'k>, offset: i16) -> Self {
        let less = vdupq_n_u8(offset.unsigned_abs() as u8);
        Self { codes, unpacker: Unpacker::new(codes.bits), less }
    }

    /// The weights of a block without scales, in the order of [`of_tokens`].
    #[inline]
    #[target_feature(enable = "neon")]
    fn weights<const NIBBLES: bool>(&self, row: &[u8], block: usize) -> [int8x16_t; GRANULES] {
        let codes = match NIBBLES {
            true => self.unpacker.nibbles(row, block),
            false => self.unpacker.unpack(row, block),
        };
        self.less(codes)
    }

    /// Signed bytes of codes.
    #[inline]
    #[target_feature(enable = "neon")]
    fn less(&self, codes: [uint8x16_t; GRANULES]) -> [int8x16_t; GRANULES] {
        codes.map(|codes| vreinterpretq_s8_u8(vsubq_u8(codes, self.less)))
    }
}

/// Quantised activations of a block: column by column, or as [`Unpacker::nibbles`] has them.
#[inline]
#[target_feature(enable = "neon")]
fn of_tokens<const NIBBLES: bool>(
    input: &Input<'_>,
    token: usize,
    block: usize,
) -> ([int8x16_t; GRANULES], f32) {
    let zero = [vdupq_n_s8(0); GRANULES];
    let Some(scale) = input.scales(token).get(block) else { return (zero, 0.0) };
    let quarters = match NIBBLES {
        true => input.pairs(token).0.get(block / 2).map(|[even, odd]| {
            let (even, odd) = (even.as_chunks().0, odd.as_chunks().0);
            let i = block % 2 * 2;
            [load_codes(&even[i]), load_codes(&odd[i]), load_codes(&even[i + 1]), load_codes(&odd[i + 1])]
        }),
        false => input.quantised(token).get(block).map(|q| {
            let q = q.as_chunks().0;
            [load_codes(&q[0]), load_codes(&q[1]), load_codes(&q[2]), load_codes(&q[3])]
        }),
    };
    (quarters.unwrap_or(zero), *scale)
}

/// The scales of a row of codes.
trait Scales<'k>: Copy {
    /// Those of row `row`.
    fn new(codes: &Codes<'k>, row: usize) -> Self;

    /// Those of the granules of a block, or those of groups in the lane of their first granule.
    fn block(self, block: usize) -> float32x4_t;
}

/// Spread out, one for each granule.
#[derive(Clone, Copy)]
struct Spread<'k>(&'k [[f32; GRANULES]]);

impl<'k> Scales<'k> for Spread<'k> {
    #[inline(always)]
    fn new(codes: &Codes<'k>, row: usize) -> Self {
        Self(codes.scales(row))
    }

    #[inline(always)]
    fn block(self, block: usize) -> float32x4_t {
        let scales = self.0.get(block).unwrap_or(&[0.0; GRANULES]);
        // SAFETY: every machine of this architecture on which there is a vector type has NEON.
        unsafe { load_four(scales) }
    }
}

/// As they are stored, one for 32 columns.
#[derive(Clone, Copy)]
struct Halves<'k>(&'k [[u8; 2]]);

impl<'k> Scales<'k> for Halves<'k> {
    #[inline(always)]
    fn new(codes: &Codes<'k>, row: usize) -> Self {
        Self(codes.stored.map_or(&[], |stored| stored.row(row)))
    }

    #[inline(always)]
    fn block(self, block: usize) -> float32x4_t {
        let from = self.0.get(2 * block..).unwrap_or(&[]).as_flattened();
        let two = match from.first_chunk() {
            Some(two) => *two,
            None => part::<4>(from),
        };
        // SAFETY: every machine of this architecture on which there is a vector type has NEON.
        unsafe { of_halves(u32::from_le_bytes(two)) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn of_halves(two: u32) -> float32x4_t {
    let two = vreinterpret_u16_u32(vdup_n_u32(two));
    vcvt_f32_f16(vreinterpret_f16_u16(vzip1_u16(two, two)))
}

/// As they are stored, one for a block or several.
#[derive(Clone, Copy)]
struct Blocks<'k>(&'k [[u8; 2]], u32);

impl<'k> Scales<'k> for Blocks<'k> {
    #[inline(always)]
    fn new(codes: &Codes<'k>, row: usize) -> Self {
        codes.stored.map_or(Self(&[], 0), |stored| Self(stored.row(row), stored.granules_log))
    }

    #[inline(always)]
    fn block(self, block: usize) -> float32x4_t {
        let scale = self.0.get((block * GRANULES) >> self.1).copied().unwrap_or_default();
        // SAFETY: every machine of this architecture on which there is a vector type has NEON.
        unsafe { of_half(u16::from_le_bytes(scale)) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn of_half(scale: u16) -> float32x4_t {
    vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(scale)))
}

/// As the portable kernel.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fast<D: Dot>(
    dot: D,
    codes: &Codes<'_>,
    input: &Input<'_>,
    lanes: &mut [[f32; 16]],
    out: &mut [f32],
) {
    let Map::Signed(offset) = codes.map else { return };
    let rows = Rows::new(codes, offset);
    let is_nibbles = codes.bits == 4 && !input.halves.is_empty();
    if input.tokens >= SIDE {
        match (is_nibbles, codes.group_granules % GRANULES) {
            (true, 0) => fast_panels::<D, true, 4>(dot, &rows, input, lanes, out),
            (true, 2) => fast_panels::<D, true, 2>(dot, &rows, input, lanes, out),
            (_, 0) => fast_panels::<D, false, 4>(dot, &rows, input, lanes, out),
            (_, 2) => fast_panels::<D, false, 2>(dot, &rows, input, lanes, out),
            _ => fast_panels::<D, false, 1>(dot, &rows, input, lanes, out),
        }
        return;
    }
    let dot = dot.few();
    match (is_nibbles, codes.group_granules % GRANULES) {
        (true, 0) => fast_rows::<D::Few, Spread<'_>, true, 32, 4>(dot, &rows, input, out),
        (true, 2) => fast_rows::<D::Few, Spread<'_>, true, 32, 2>(dot, &rows, input, out),
        (_, 0) => fast_rows::<D::Few, Spread<'_>, false, 64, 4>(dot, &rows, input, out),
        (_, 2) => fast_rows::<D::Few, Spread<'_>, false, 64, 2>(dot, &rows, input, out),
        _ => fast_rows::<D::Few, Spread<'_>, false, 64, 1>(dot, &rows, input, out),
    }
}

/// Few tokens by rows whose scales are read where they lie. Gives whether that is what there is.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fast_stored<D: Dot>(dot: D, codes: &Codes<'_>, input: &Input<'_>, out: &mut [f32]) -> bool {
    let (Map::Signed(offset), Some(scales)) = (codes.map, codes.stored) else { return false };
    if input.tokens >= SIDE {
        return false;
    }
    let (dot, rows) = (dot.few(), Rows::new(codes, offset));
    let is_nibbles = codes.bits == 4 && !input.halves.is_empty();
    match (is_nibbles, scales.granules_log) {
        (_, 0) => return false,
        (true, 1) => fast_rows::<D::Few, Halves<'_>, true, 32, 2>(dot, &rows, input, out),
        (true, _) => fast_rows::<D::Few, Blocks<'_>, true, 32, 4>(dot, &rows, input, out),
        (false, 1) => fast_rows::<D::Few, Halves<'_>, false, 64, 2>(dot, &rows, input, out),
        (false, _) => fast_rows::<D::Few, Blocks<'_>, false, 64, 4>(dot, &rows, input, out),
    }
    true
}

/// A token after the other. A block has `W` bytes where codes are 8 bits or nibbles, and `STEP` granules
/// share a scale.
#[inline]
#[target_feature(enable = "neon")]
fn fast_rows<'k, D: Dot, S: Scales<'k>, const NIBBLES: bool, const W: usize, const STEP: usize>(
    dot: D,
    rows: &Rows<'k>,
    input: &Input<'_>,
    out: &mut [f32],
) {
    for token in 0..input.tokens {
        let mut row = 0;
        while row < rows.codes.rows {
            let place = out.get_mut(row * input.tokens + token..).unwrap_or(&mut []);
            row += match rows.codes.rows - row >= TILE {
                true => some_rows::<D, S, NIBBLES, W, STEP, TILE>(dot, rows, input, row, token, place),
                false => some_rows::<D, S, NIBBLES, W, STEP, 1>(dot, rows, input, row, token, place),
            };
        }
    }
}

/// Some rows by one token; gives how many rows.
#[inline]
#[target_feature(enable = "neon")]
fn some_rows<
    'k,
    D: Dot,
    S: Scales<'k>,
    const NIBBLES: bool,
    const W: usize,
    const STEP: usize,
    const R: usize,
>(
    dot: D,
    rows: &Rows<'k>,
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) -> usize {
    let codes = rows.codes;
    let bytes: [&[[u8; W]]; R] = core::array::from_fn(|i| codes.row(row + i).as_chunks().0);
    let scales: [S; R] = core::array::from_fn(|i| S::new(codes, row + i));
    // The last row has the fewest bytes from its start on.
    let whole = match NIBBLES || codes.bits == 8 {
        true => bytes.last().map_or(0, |bytes| bytes.len()).min(codes.blocks),
        false => 0,
    };
    let mut lanes = [vdupq_n_f32(0.0); R];
    for block in 0..whole {
        let (q, scale) = of_tokens::<NIBBLES>(input, token, block);
        for r in 0..R {
            let Some(bytes) = bytes[r].get(block) else { continue };
            let unpacked = match NIBBLES {
                true => split(load_16(&bytes.as_chunks().0[0]), load_16(&bytes.as_chunks().0[1])),
                false => load_64(bytes),
            };
            let of_rows = vmulq_n_f32(scales[r].block(block), scale);
            lanes[r] = add_block::<D, STEP>(dot, rows.less(unpacked), q, of_rows, lanes[r]);
        }
    }
    for block in whole..codes.blocks {
        let (q, scale) = of_tokens::<NIBBLES>(input, token, block);
        for r in 0..R {
            let weights = rows.weights::<NIBBLES>(codes.row(row + r), block);
            let of_rows = vmulq_n_f32(scales[r].block(block), scale);
            lanes[r] = add_block::<D, STEP>(dot, weights, q, of_rows, lanes[r]);
        }
    }
    for (out, lanes) in out.iter_mut().step_by(input.tokens.max(1)).zip(lanes) {
        *out += sum_four(lanes);
    }
    R
}

/// Adds the products of a block.
#[inline]
#[target_feature(enable = "neon")]
fn add_block<D: Dot, const STEP: usize>(
    dot: D,
    weights: [int8x16_t; GRANULES],
    q: [int8x16_t; GRANULES],
    of_rows: float32x4_t,
    lanes: float32x4_t,
) -> float32x4_t {
    let sums = |i: usize| {
        let mut sums = vdupq_n_s32(0);
        for j in i..i + STEP {
            sums = dot.dot(sums, weights[j], q[j]);
        }
        vcvtq_f32_s32(sums)
    };
    let lanes = vfmaq_laneq_f32::<0>(lanes, sums(0), of_rows);
    match STEP {
        4 => lanes,
        2 => vfmaq_laneq_f32::<2>(lanes, sums(2), of_rows),
        _ => {
            let lanes = vfmaq_laneq_f32::<1>(lanes, sums(1), of_rows);
            let lanes = vfmaq_laneq_f32::<2>(lanes, sums(2), of_rows);
            vfmaq_laneq_f32::<3>(lanes, sums(3), of_rows)
        }
    }
}

/// All tokens, four at a time, by panels of rows.
#[inline]
#[target_feature(enable = "neon")]
fn fast_panels<D: Dot, const NIBBLES: bool, const STEP: usize>(
    dot: D,
    rows: &Rows<'_>,
    input: &Input<'_>,
    lanes: &mut [[f32; 16]],
    out: &mut [f32],
) {
    let Some(lanes) = lanes.get_mut(..input.tokens) else { return };
    for row in (0..rows.codes.rows).step_by(PANEL) {
        let count = (rows.codes.rows - row).min(PANEL);
        lanes.fill([0.0; 16]);
        for block in 0..rows.codes.blocks {
            let mut panel = [[[vdupq_n_s8(0); SIDE]; GRANULES]; PANEL / SIDE];
            let mut of_rows = [[vdupq_n_f32(0.0); GRANULES]; PANEL / SIDE];
            let fours = (0..count).step_by(SIDE);
            for (first, (panel, of_rows)) in fours.clone().zip(panel.iter_mut().zip(&mut of_rows)) {
                let mut weights = [[vdupq_n_s8(0); GRANULES]; SIDE];
                let mut scales = [vdupq_n_f32(0.0); SIDE];
                for (i, row) in (row + first..row + count.min(first + SIDE)).enumerate() {
                    weights[i] = rows.weights::<NIBBLES>(rows.codes.row(row), block);
                    scales[i] = Spread::new(rows.codes, row).block(block);
                }
                *of_rows = transpose(scales);
                for (j, panel) in panel.iter_mut().enumerate() {
                    *panel = dot.of_rows(weights.map(|weights| weights[j]));
                }
            }
            for (token, lanes) in (0..).step_by(SIDE).zip(lanes.chunks_mut(SIDE)) {
                let tokens: [_; SIDE] = core::array::from_fn(|t| {
                    of_tokens::<NIBBLES>(input, (token + t).min(input.tokens - 1), block)
                });
                let mut q = [[vdupq_n_s8(0); SIDE]; GRANULES];
                for (j, q) in q.iter_mut().enumerate() {
                    *q = dot.of_tokens(tokens.map(|(q, _)| q[j]));
                }
                for (first, (panel, of_rows)) in fours.clone().zip(panel.iter().zip(&of_rows)) {
                    for i in (0..GRANULES).step_by(STEP) {
                        let sums = dot.square(&panel[i..i + STEP], &q[i..i + STEP]);
                        for (lanes, (sums, (_, scale))) in lanes.iter_mut().zip(sums.iter().zip(&tokens)) {
                            let Some(lanes) = lanes.as_chunks_mut::<SIDE>().0.get_mut(first / SIDE) else {
                                continue;
                            };
                            let of_rows = vmulq_n_f32(of_rows[i], *scale);
                            let so_far = vfmaq_f32(load_four(lanes), vcvtq_f32_s32(*sums), of_rows);
                            store_four(so_far, lanes);
                        }
                    }
                }
            }
        }
        let outs = out.chunks_mut(input.tokens.max(1)).skip(row).take(count);
        for (i, out) in outs.enumerate() {
            for (out, lanes) in out.iter_mut().zip(lanes.iter()) {
                *out += lanes[i];
            }
        }
    }
}

/// The words of block `block`, which has fewer than it could, and zeros.
fn part_of(words: &[[u8; 4]], block: usize) -> [[u8; 4]; BLOCK] {
    core::array::from_fn(|i| words.get(block * BLOCK + i).copied().unwrap_or_default())
}

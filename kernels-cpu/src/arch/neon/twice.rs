//! Codes of 4 bits whose scales and zero points are codes again: 16 groups of 32 columns at a time.

use core::arch::aarch64::*;

use super::memory::*;
use super::*;
use crate::operands::{Small, Twice};

/// Blocks of 16 groups.
const BLOCKS: usize = 8;

/// Decodes 16 scales or zero points.
struct Decoder<'k> {
    small: Small<'k>,
    unpacker: Unpacker,
    offset: int16x8_t,
}

impl<'k> Decoder<'k> {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(small: &Small<'k>) -> Self {
        let unpacker = Unpacker::new(small.bits);
        Self { small: *small, unpacker, offset: vdupq_n_s16(small.offset) }
    }

    /// Values `16 * i` to `16 * i + 15` of row `row`.
    #[inline]
    #[target_feature(enable = "neon")]
    fn sixteen(&self, row: usize, i: usize) -> Lanes {
        let small = &self.small;
        let bytes = small.bytes.get(row * small.row_bytes + i * 2 * small.bits..).unwrap_or(&[]);
        let bytes = match bytes.first_chunk() {
            Some(bytes) => load_16(bytes),
            None => load_16(&part(bytes)),
        };
        let codes = self.unpacker.sixteen(bytes);
        let low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes)));
        let high = vreinterpretq_s16_u16(vmovl_high_u8(codes));
        let [low, high] = [low, high].map(|half| vaddq_s16(half, self.offset));
        let scale = small.scales.get(row * small.groups + i).copied().unwrap_or_default();
        let scale = of_half(u16::from_le_bytes(scale));
        let words = [
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ];
        words.map(|words| vmulq_f32(vcvtq_f32_s32(words), scale))
    }
}

/// Few tokens by such rows, if they have 4 bits. `prepared` has room for a vector for each 8 blocks.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::arch) fn fast_twice<D: Dot>(
    dot: D,
    rows: &Twice<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    let codes = &rows.codes;
    let Map::Signed(offset) = codes.map else { return false };
    if codes.bits != 4 || input.halves.is_empty() {
        return false;
    }
    let (scale, zero) = (Decoder::new(&rows.scale), rows.zero.as_ref().map(|zero| Decoder::new(zero)));
    let of_codes = Rows::new(codes, offset);
    for token in 0..input.tokens {
        for (blocks, sums) in input.granule_sums(token).chunks(BLOCKS).zip(&mut *prepared) {
            *sums = [0.0; 16];
            let pairs = blocks.as_flattened().as_chunks::<2>().0;
            sums.iter_mut().zip(pairs).for_each(|(sum, [a, b])| *sum = a + b);
        }
        for (row, out) in out.chunks_exact_mut(input.tokens).enumerate().take(codes.rows) {
            let sum = one_row(dot.few(), &of_codes, &scale, zero.as_ref(), input, prepared, row, token);
            if let Some(out) = out.get_mut(token) {
                *out += sum;
            }
        }
    }
    true
}

/// The product of a row and a token, of whose groups the sums are `sums`.
#[inline]
#[target_feature(enable = "neon")]
#[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
fn one_row<D: Dot>(
    dot: D,
    rows: &Rows<'_>,
    scale: &Decoder<'_>,
    zero: Option<&Decoder<'_>>,
    input: &Input<'_>,
    sums: &[[f32; 16]],
    row: usize,
    token: usize,
) -> f32 {
    let bytes = rows.codes.own_row(row);
    let (halves, scales) = input.pairs(token);
    let pairs = halves.chunks(BLOCKS / 2).zip(scales.chunks(BLOCKS / 2));
    let mut lanes = zero_lanes();
    for (i, ((halves, scales), sums)) in pairs.zip(sums).enumerate() {
        let of_groups = scale.sixteen(row, i);
        if let Some(zero) = zero {
            lanes = multiply_add(lanes, zero.sixteen(row, i), load_lanes(sums));
        }
        for (j, ([even, odd], [first, second])) in halves.iter().zip(scales).enumerate() {
            let bytes = load_64(bytes.get((i * BLOCKS / 2 + j) * 64..).unwrap_or(&[]));
            let of_blocks = vcombine_f32(vdup_n_f32(*first), vdup_n_f32(*second));
            let of_rows = vmulq_f32(of_groups[j], of_blocks);
            let (even, odd) = (even.as_chunks().0, odd.as_chunks().0);
            let products = |k: usize| {
                let [low, high, ..] = rows.less(split(bytes[k], bytes[k]));
                let sums = dot.dot(vdupq_n_s32(0), low, load_codes(&even[k]));
                vcvtq_f32_s32(dot.dot(sums, high, load_codes(&odd[k])))
            };
            lanes[0] = vfmaq_laneq_f32::<0>(lanes[0], products(0), of_rows);
            lanes[1] = vfmaq_laneq_f32::<1>(lanes[1], products(1), of_rows);
            lanes[2] = vfmaq_laneq_f32::<2>(lanes[2], products(2), of_rows);
            lanes[3] = vfmaq_laneq_f32::<3>(lanes[3], products(3), of_rows);
        }
    }
    sum(lanes)
}

//! The types whose elements are short vectors out of a grid: IQ1, IQ2 and IQ3.
//!
//! Each vector gets one number that names its place in the grid and its signs, so that a type is a
//! codebook of whole numbers and a scale. The factors 1/2, 1/4 and 1/8 of ggml's formulas are moved
//! into the scales, which changes no result: they are powers of two and no product underflows.

use super::blocks::{Parts, u16_at, u32_at};
use super::grids;

/// (2 code + 1) for 4-bit codes.
pub(super) static ODD: [f32; 16] = odd(1.0);
/// (2 code + 1) / 4 = (code + 1/2) / 2.
pub(super) static ODD_QUARTERS: [f32; 16] = odd(4.0);
/// (2 code + 1) / 8 = (code + 1/2) / 4.
pub(super) static ODD_EIGHTHS: [f32; 16] = odd(8.0);
/// The first half of [`ODD_EIGHTHS`], for 3-bit codes.
pub(super) static ODD_EIGHTHS_OF_3_BITS: &[f32] = ODD_EIGHTHS.split_at(8).0;

/// The codebook of a type: whole numbers, 8 or 4 of them in a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Grid {
    /// 8 bits of place, 7 of signs; the eighth sign makes their number even.
    Iq2Xxs,
    /// 9 bits of place, 7 of signs.
    Iq2Xs,
    /// Not the grid itself, whose 10 bits of place and 8 of signs are more than a codebook takes,
    /// but all that the halves of its vectors can be: 4 signs and 7 bits that are 4 digits to the
    /// base of 3.
    Iq2S,
    /// 8 bits of place, 4 of signs.
    Iq3Xxs,
    /// 9 bits of place, 4 of signs.
    Iq3S,
    /// 11 bits of place, 1 that moves all elements by an eighth; everything is 8 times as large.
    Iq1,
}

impl Grid {
    pub(super) const COUNT: usize = 6;

    /// Bits of a vector's number.
    pub(super) const fn index_bits(self) -> u8 {
        match self {
            Self::Iq2Xxs => 15,
            Self::Iq2Xs => 16,
            Self::Iq2S => 11,
            Self::Iq3Xxs | Self::Iq1 => 12,
            Self::Iq3S => 13,
        }
    }

    /// Elements of a vector.
    pub(super) const fn vector(self) -> usize {
        match self {
            Self::Iq2S | Self::Iq3Xxs | Self::Iq3S => 4,
            Self::Iq2Xxs | Self::Iq2Xs | Self::Iq1 => 8,
        }
    }

    /// The vector with this number. `out` is as long as a vector; high bits of `index` that the
    /// grid does not have are ignored.
    pub(super) fn entry(self, index: u16, out: &mut [i8]) {
        let place = |bits: u32| usize::from(index & ((1 << bits) - 1));
        match self {
            Self::Iq2Xxs => {
                signed(grids::IQ2_XXS[place(8)], 2, &grids::IQ2_VALUES, even_signs(index >> 8), out)
            }
            Self::Iq2Xs => {
                signed(grids::IQ2_XS[place(9)], 2, &grids::IQ2_VALUES, even_signs(index >> 9), out)
            }
            Self::Iq2S => {
                // Numbers above 80 are no digits of anything; they get the last digits again.
                let digits = (index >> 4 & 127).min(80);
                let fields = [digits % 3, digits / 3 % 3, digits / 9 % 3, digits / 27];
                let packed = fields.iter().rev().fold(0, |packed, field| packed << 2 | field);
                signed(packed, 2, &grids::IQ2_VALUES, index, out);
            }
            Self::Iq3Xxs => signed(grids::IQ3_XXS[place(8)], 4, &grids::IQ3_XXS_VALUES, index >> 8, out),
            Self::Iq3S => signed(grids::IQ3_S[place(9)], 4, &grids::IQ3_S_VALUES, index >> 9, out),
            Self::Iq1 => {
                let shift = if index >> 11 & 1 == 0 { 1 } else { -1 };
                signed(grids::IQ1[place(11)], 2, &grids::IQ1_VALUES, 0, out);
                for value in out {
                    *value += shift;
                }
            }
        }
    }
}

/// Looks the fields of `packed` up and negates those whose bit of `signs` is set.
fn signed<const N: usize>(packed: u16, bits: usize, values: &[i8; N], signs: u16, out: &mut [i8]) {
    for (i, value) in out.iter_mut().enumerate() {
        let magnitude = values[usize::from(packed >> (i * bits)) % N];
        *value = if signs >> i & 1 == 0 { magnitude } else { -magnitude };
    }
}

/// Completes seven signs by one that makes the number of minus signs even.
fn even_signs(seven: u16) -> u16 {
    let seven = seven & 127;
    seven | (seven.count_ones() as u16 & 1) << 7
}

/// The 4-bit fields of `bytes`, low ones first.
fn nibbles(bytes: &[u8], out: &mut [u8; 16]) {
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[byte & 15, byte >> 4]);
    }
}

pub(super) fn iq2_xxs(block: &[u8; 66], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    for group in 0..8 {
        let at = 2 + group * 8;
        let signs = u32_at(block, at + 4);
        parts.scales[group] = (signs >> 28) as u8;
        for i in 0..4 {
            parts.vectors[group * 4 + i] = u16::from(block[at + i]) | ((signs >> (7 * i) & 127) as u16) << 8;
        }
    }
}

pub(super) fn iq2_xs(block: &[u8; 74], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    for i in 0..32 {
        parts.vectors[i] = u16_at(block, 2 + i * 2);
    }
    nibbles(&block[66..], &mut parts.scales);
}

pub(super) fn iq2_s(block: &[u8; 82], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    for i in 0..32 {
        let high = block[66 + i / 4] >> (i % 4 * 2) & 3;
        let vector = grids::IQ2_S[usize::from(block[2 + i]) | usize::from(high) << 8];
        let signs = block[34 + i];
        parts.vectors[i * 2] = half_vector(vector, signs);
        parts.vectors[i * 2 + 1] = half_vector(vector >> 8, signs >> 4);
    }
    nibbles(&block[74..], &mut parts.scales);
}

/// The number of a half of an IQ2_S vector in [`Grid::Iq2S`].
fn half_vector(packed: u16, signs: u8) -> u16 {
    let field = |i: u16| packed >> (2 * i) & 3;
    let digits = field(0) + 3 * field(1) + 9 * field(2) + 27 * field(3);
    digits << 4 | u16::from(signs & 15)
}

pub(super) fn iq3_xxs(block: &[u8; 98], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    for group in 0..8 {
        let signs = u32_at(block, 66 + group * 4);
        parts.scales[group] = (signs >> 28) as u8;
        for i in 0..8 {
            let vector = group * 8 + i;
            let four = even_signs((signs >> (i / 2 * 7)) as u16) >> (i % 2 * 4) & 15;
            parts.vectors[vector] = u16::from(block[2 + vector]) | four << 8;
        }
    }
}

pub(super) fn iq3_s(block: &[u8; 110], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    for i in 0..64 {
        let high = block[66 + i / 8] >> (i % 8) & 1;
        let signs = block[74 + i / 2] >> (i % 2 * 4) & 15;
        parts.vectors[i] = u16::from(block[2 + i]) | u16::from(high) << 8 | u16::from(signs) << 9;
    }
    nibbles(&block[106..], &mut parts.scales);
}

pub(super) fn iq1_s(block: &[u8; 50], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    for group in 0..8 {
        let high = u16_at(block, 34 + group * 2);
        parts.scales[group] = (high >> 12 & 7) as u8;
        for i in 0..4 {
            let vector = group * 4 + i;
            let place = u16::from(block[2 + vector]) | (high >> (3 * i) & 7) << 8;
            parts.vectors[vector] = place | high >> 15 << 11;
        }
    }
}

pub(super) fn iq1_m(block: &[u8; 56], parts: &mut Parts) {
    parts.d = 0;
    for i in 0..4 {
        let word = u16_at(block, 48 + i * 2);
        // The f16 scale is spread over the highest fields of the four words.
        parts.d |= word >> 12 << (4 * i);
        for k in 0..4 {
            parts.scales[i * 4 + k] = (word >> (3 * k) & 7) as u8;
        }
    }
    for i in 0..32 {
        // Three bits of the place and one of the shift, which stay together.
        let high = block[32 + i / 2] >> (i % 2 * 4) & 15;
        parts.vectors[i] = u16::from(block[i]) | u16::from(high) << 8;
    }
}

const fn odd(divisor: f32) -> [f32; 16] {
    let mut table = [0.0; 16];
    let mut code = 0;
    while code < 16 {
        table[code] = (2 * code + 1) as f32 / divisor;
        code += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_signs_are_completed_to_an_even_number() {
        assert_eq!(even_signs(0), 0);
        assert_eq!(even_signs(1), 0x81);
        assert_eq!(even_signs(3), 3);
        assert_eq!(even_signs(0xff), 0xff);
    }

    #[test]
    fn grid_entries_are_those_of_ggml() {
        // Rows of the tables in ggml-common.h, which are little-endian words of bytes.
        let mut entry = [0; 8];
        Grid::Iq2Xxs.entry(1, &mut entry);
        assert_eq!(entry, [0x2b, 8, 8, 8, 8, 8, 8, 8]);
        Grid::Iq1.entry(2047, &mut entry);
        assert_eq!(entry, [9; 8]);
        Grid::Iq3S.entry(1 | 1 << 9, &mut entry[..4]);
        assert_eq!(entry[..4], [-3, 1, 1, 1]);
    }
}

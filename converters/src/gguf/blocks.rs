//! What every block type is made of, and taking its blocks apart.
//!
//! A block becomes codes in the order of its elements and the numbers that scale them, so that
//! decoding and the translation to nodes need no knowledge of bit positions. Layouts after
//! `ggml-common.h` and `ggml-quants.c` of ggml.

use cmf_format::DType;

use super::iq::{self, Grid};
use super::types::GgmlType;

/// The numbers that the codes of a block mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Map<T: 'static> {
    /// Code plus this number.
    Offset(i16),
    /// Entry of this table, one for each code.
    Table(&'static [T]),
}

/// What a block's elements are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Elements {
    /// A code of so many bits each.
    Codes(u8, Map<i8>),
    /// Short vectors out of a grid.
    Vectors(Grid),
}

/// A factor or a summand that a group of elements shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shared {
    /// An f16 number.
    Half,
    /// A code of so many bits, multiplied by the f16 number of the block.
    Scaled(u8, Map<f32>),
    /// A float of 8 bits.
    Byte(&'static ByteFloat),
}

/// Floats of 8 bits that scale [`E2M1_VALUES`], which are doubled.
#[derive(Debug, PartialEq)]
pub(super) struct ByteFloat {
    /// Half of each number.
    pub(super) halves: [f32; 256],
    /// The type whose values the codes below `limit` have.
    pub(super) dtype: DType,
    pub(super) limit: u8,
}

impl ByteFloat {
    /// Whether `dtype` has the values of all of these codes.
    pub(super) fn covers(&self, codes: &[u8]) -> bool {
        codes.iter().all(|&code| code < self.limit)
    }
}

/// Composition of a block: value = element * scale - minimum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layout {
    pub(super) elements: Elements,
    /// Elements that share a scale and a minimum.
    pub(super) group: usize,
    pub(super) scale: Shared,
    /// Added for [`Shared::Half`], subtracted for [`Shared::Scaled`].
    pub(super) min: Option<Shared>,
}

/// One block taken apart. Only the front of each array is used, as its [`Layout`] says.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) codes: [u8; 256],
    pub(super) vectors: [u16; 64],
    pub(super) scales: [u8; 16],
    pub(super) mins: [u8; 16],
    /// Bits of the f16 scale.
    pub(super) d: u16,
    /// Bits of the f16 minimum.
    pub(super) dmin: u16,
}

impl Parts {
    pub(super) const fn new() -> Self {
        Self { codes: [0; 256], vectors: [0; 64], scales: [0; 16], mins: [0; 16], d: 0, dmin: 0 }
    }
}

const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// E2M1 doubled; code 8 is +0, not the -0 of the minifloat.
const E2M1_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
const SIGNS: [i8; 2] = [-1, 1];
/// 2^(code - 127). ggml has no NaN at 255.
static E8M0: ByteFloat = ByteFloat { halves: e8m0_halves(), dtype: DType::F8E8M0, limit: 255 };
/// E4M3 that ignores the sign. ggml has 0 at 0x7f.
static UE4M3: ByteFloat = ByteFloat { halves: ue4m3_halves(), dtype: DType::F8E4M3, limit: 127 };

/// The composition of a type; none for the types whose elements are plain numbers.
pub(super) fn layout(ty: GgmlType) -> Option<Layout> {
    use Elements::{Codes, Vectors};
    use Map::{Offset, Table};
    use Shared::{Byte, Half, Scaled};
    let (elements, group, scale, min) = match ty {
        GgmlType::Q4_0 => (Codes(4, Offset(-8)), 32, Half, None),
        GgmlType::Q4_1 => (Codes(4, Offset(0)), 32, Half, Some(Half)),
        GgmlType::Q5_0 => (Codes(5, Offset(-16)), 32, Half, None),
        GgmlType::Q5_1 => (Codes(5, Offset(0)), 32, Half, Some(Half)),
        GgmlType::Q8_0 => (Codes(8, Offset(-128)), 32, Half, None),
        GgmlType::Q2_K => (Codes(2, Offset(0)), 16, Scaled(4, Offset(0)), Some(Scaled(4, Offset(0)))),
        GgmlType::Q3_K => (Codes(3, Offset(-4)), 16, Scaled(6, Offset(-32)), None),
        GgmlType::Q4_K => (Codes(4, Offset(0)), 32, Scaled(6, Offset(0)), Some(Scaled(6, Offset(0)))),
        GgmlType::Q5_K => (Codes(5, Offset(0)), 32, Scaled(6, Offset(0)), Some(Scaled(6, Offset(0)))),
        GgmlType::Q6_K => (Codes(6, Offset(-32)), 16, Scaled(8, Offset(-128)), None),
        GgmlType::IQ4_NL => (Codes(4, Table(&IQ4_VALUES)), 32, Half, None),
        GgmlType::IQ4_XS => (Codes(4, Table(&IQ4_VALUES)), 32, Scaled(6, Offset(-32)), None),
        GgmlType::TQ1_0 | GgmlType::TQ2_0 => (Codes(2, Offset(-1)), 256, Half, None),
        GgmlType::MXFP4 => (Codes(4, Table(&E2M1_VALUES)), 32, Byte(&E8M0), None),
        GgmlType::NVFP4 => (Codes(4, Table(&E2M1_VALUES)), 16, Byte(&UE4M3), None),
        GgmlType::Q1_0 => (Codes(1, Table(&SIGNS)), 128, Half, None),
        GgmlType::Q2_0 => (Codes(2, Offset(-1)), 64, Half, None),
        GgmlType::IQ2_XXS => (Vectors(Grid::Iq2Xxs), 32, Scaled(4, Table(&iq::ODD_EIGHTHS)), None),
        GgmlType::IQ2_XS => (Vectors(Grid::Iq2Xs), 16, Scaled(4, Table(&iq::ODD_EIGHTHS)), None),
        GgmlType::IQ2_S => (Vectors(Grid::Iq2S), 16, Scaled(4, Table(&iq::ODD_EIGHTHS)), None),
        GgmlType::IQ3_XXS => (Vectors(Grid::Iq3Xxs), 32, Scaled(4, Table(&iq::ODD_QUARTERS)), None),
        GgmlType::IQ3_S => (Vectors(Grid::Iq3S), 32, Scaled(4, Table(&iq::ODD)), None),
        GgmlType::IQ1_S => (Vectors(Grid::Iq1), 32, Scaled(3, Table(iq::ODD_EIGHTHS_OF_3_BITS)), None),
        GgmlType::IQ1_M => (Vectors(Grid::Iq1), 16, Scaled(3, Table(iq::ODD_EIGHTHS_OF_3_BITS)), None),
        GgmlType::F32
        | GgmlType::F16
        | GgmlType::BF16
        | GgmlType::F64
        | GgmlType::I8
        | GgmlType::I16
        | GgmlType::I32
        | GgmlType::I64 => return None,
    };
    Some(Layout { elements, group, scale, min })
}

/// Takes `block`, which is as long as a block of `ty`, apart. Types without a [`layout`] have no
/// parts.
pub(super) fn unpack(ty: GgmlType, block: &[u8], parts: &mut Parts) {
    // A block of another length, which no caller has, leaves the parts as they are.
    let done = match ty {
        GgmlType::Q4_0 | GgmlType::IQ4_NL => block.first_chunk().map(|block| nibbles_32(block, parts)),
        GgmlType::Q4_1 => block.first_chunk().map(|block| q4_1(block, parts)),
        GgmlType::Q5_0 => block.first_chunk().map(|block| q5_0(block, parts)),
        GgmlType::Q5_1 => block.first_chunk().map(|block| q5_1(block, parts)),
        GgmlType::Q8_0 => block.first_chunk().map(|block| q8_0(block, parts)),
        GgmlType::Q2_K => block.first_chunk().map(|block| q2_k(block, parts)),
        GgmlType::Q3_K => block.first_chunk().map(|block| q3_k(block, parts)),
        GgmlType::Q4_K => block.first_chunk().map(|block| q4_k(block, parts)),
        GgmlType::Q5_K => block.first_chunk().map(|block| q5_k(block, parts)),
        GgmlType::Q6_K => block.first_chunk().map(|block| q6_k(block, parts)),
        GgmlType::IQ4_XS => block.first_chunk().map(|block| iq4_xs(block, parts)),
        GgmlType::TQ1_0 => block.first_chunk().map(|block| tq1_0(block, parts)),
        GgmlType::TQ2_0 => block.first_chunk().map(|block| tq2_0(block, parts)),
        GgmlType::MXFP4 => block.first_chunk().map(|block| mxfp4(block, parts)),
        GgmlType::NVFP4 => block.first_chunk().map(|block| nvfp4(block, parts)),
        GgmlType::Q1_0 => block.first_chunk().map(|block| q1_0(block, parts)),
        GgmlType::Q2_0 => block.first_chunk().map(|block| q2_0(block, parts)),
        GgmlType::IQ2_XXS => block.first_chunk().map(|block| iq::iq2_xxs(block, parts)),
        GgmlType::IQ2_XS => block.first_chunk().map(|block| iq::iq2_xs(block, parts)),
        GgmlType::IQ2_S => block.first_chunk().map(|block| iq::iq2_s(block, parts)),
        GgmlType::IQ3_XXS => block.first_chunk().map(|block| iq::iq3_xxs(block, parts)),
        GgmlType::IQ3_S => block.first_chunk().map(|block| iq::iq3_s(block, parts)),
        GgmlType::IQ1_S => block.first_chunk().map(|block| iq::iq1_s(block, parts)),
        GgmlType::IQ1_M => block.first_chunk().map(|block| iq::iq1_m(block, parts)),
        _ => None,
    };
    debug_assert!(done.is_some(), "a {} block of {} bytes", ty.name(), block.len());
}

/// The little-endian u16 at `at`.
pub(super) fn u16_at<const N: usize>(block: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The little-endian u32 at `at`.
pub(super) fn u32_at<const N: usize>(block: &[u8; N], at: usize) -> u32 {
    u32::from(u16_at(block, at)) | u32::from(u16_at(block, at + 2)) << 16
}

/// Fields of `bits` bits: all lowest fields of `run` bytes, then all next ones, and so on, run by
/// run. This one rule orders the codes of almost every type.
fn planes(bytes: &[u8], run: usize, bits: usize, codes: &mut [u8]) {
    let mask = (1u8 << bits) - 1;
    let per_run = run * 8 / bits;
    for (bytes, codes) in bytes.chunks_exact(run).zip(codes.chunks_exact_mut(per_run)) {
        for (field, codes) in codes.chunks_exact_mut(run).enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (field * bits) & mask;
            }
        }
    }
}

/// Adds a bit above the others: bit `i / 32` of byte `i % 32` belongs to element `i`.
fn high_bits(bytes: &[u8], above: u32, codes: &mut [u8; 256]) {
    for (bit, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code |= (byte >> bit & 1) << above;
        }
    }
}

/// Adds the fifth bits of a block of 32: bit `i` belongs to element `i`.
fn fifth_bits(bits: u32, codes: &mut [u8; 256]) {
    for (i, code) in codes[..32].iter_mut().enumerate() {
        *code |= ((bits >> i & 1) as u8) << 4;
    }
}

fn nibbles_32(block: &[u8; 18], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    planes(&block[2..], 16, 4, &mut parts.codes);
}

fn q4_1(block: &[u8; 20], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    parts.dmin = u16_at(block, 2);
    planes(&block[4..], 16, 4, &mut parts.codes);
}

fn q5_0(block: &[u8; 22], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    planes(&block[6..], 16, 4, &mut parts.codes);
    fifth_bits(u32_at(block, 2), &mut parts.codes);
}

fn q5_1(block: &[u8; 24], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    parts.dmin = u16_at(block, 2);
    planes(&block[8..], 16, 4, &mut parts.codes);
    fifth_bits(u32_at(block, 4), &mut parts.codes);
}

fn q8_0(block: &[u8; 34], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    for (code, byte) in parts.codes.iter_mut().zip(&block[2..]) {
        *code = byte ^ 0x80;
    }
}

fn q2_k(block: &[u8; 84], parts: &mut Parts) {
    for (i, byte) in block[..16].iter().enumerate() {
        parts.scales[i] = byte & 15;
        parts.mins[i] = byte >> 4;
    }
    planes(&block[16..80], 32, 2, &mut parts.codes);
    parts.d = u16_at(block, 80);
    parts.dmin = u16_at(block, 82);
}

fn q3_k(block: &[u8; 110], parts: &mut Parts) {
    planes(&block[32..96], 32, 2, &mut parts.codes);
    high_bits(&block[..32], 2, &mut parts.codes);
    let (low, high) = block[96..108].split_at(8);
    planes(low, 8, 4, &mut parts.scales);
    for (i, scale) in parts.scales.iter_mut().enumerate() {
        *scale |= (high[i % 4] >> (i / 4 * 2) & 3) << 4;
    }
    parts.d = u16_at(block, 108);
}

fn q4_k(block: &[u8; 144], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    parts.dmin = u16_at(block, 2);
    k_scales(&block[4..16], parts);
    planes(&block[16..], 32, 4, &mut parts.codes);
}

fn q5_k(block: &[u8; 176], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    parts.dmin = u16_at(block, 2);
    k_scales(&block[4..16], parts);
    planes(&block[48..], 32, 4, &mut parts.codes);
    high_bits(&block[16..48], 4, &mut parts.codes);
}

/// Eight scales and eight minima of 6 bits. The last four of each have their low bits in the last
/// four bytes and their high bits above those of the first four.
fn k_scales(bytes: &[u8], parts: &mut Parts) {
    for i in 0..4 {
        let (scale, min, low) = (bytes[i], bytes[i + 4], bytes[i + 8]);
        parts.scales[i] = scale & 63;
        parts.mins[i] = min & 63;
        parts.scales[i + 4] = low & 15 | scale >> 6 << 4;
        parts.mins[i + 4] = low >> 4 | min >> 6 << 4;
    }
}

fn q6_k(block: &[u8; 210], parts: &mut Parts) {
    let mut high = [0; 256];
    planes(&block[..128], 64, 4, &mut parts.codes);
    planes(&block[128..192], 32, 2, &mut high);
    for (code, high) in parts.codes.iter_mut().zip(high) {
        *code |= high << 4;
    }
    for (scale, byte) in parts.scales.iter_mut().zip(&block[192..208]) {
        *scale = byte ^ 0x80;
    }
    parts.d = u16_at(block, 208);
}

fn iq4_xs(block: &[u8; 136], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    let high = u16_at(block, 2);
    for (i, scale) in parts.scales[..8].iter_mut().enumerate() {
        let low = block[4 + i / 2] >> (i % 2 * 4) & 15;
        *scale = low | ((high >> (i * 2) & 3) as u8) << 4;
    }
    planes(&block[8..], 16, 4, &mut parts.codes);
}

fn tq1_0(block: &[u8; 54], parts: &mut Parts) {
    let (first, rest) = parts.codes.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    trits(&block[..32], first);
    trits(&block[32..48], second);
    trits(&block[48..52], third);
    parts.d = u16_at(block, 52);
}

/// Base-3 digits, scaled so that the highest digit of a byte is the carry of its product with 3.
/// All highest digits first, then all next ones.
fn trits(bytes: &[u8], codes: &mut [u8]) {
    let mut power = 1u8;
    for codes in codes.chunks_exact_mut(bytes.len()) {
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
        }
        power = power.wrapping_mul(3);
    }
}

fn tq2_0(block: &[u8; 66], parts: &mut Parts) {
    planes(&block[..64], 32, 2, &mut parts.codes);
    parts.d = u16_at(block, 64);
}

fn mxfp4(block: &[u8; 17], parts: &mut Parts) {
    parts.scales[0] = block[0];
    planes(&block[1..], 16, 4, &mut parts.codes);
}

fn nvfp4(block: &[u8; 36], parts: &mut Parts) {
    parts.scales[..4].copy_from_slice(&block[..4]);
    planes(&block[4..], 8, 4, &mut parts.codes);
}

fn q1_0(block: &[u8; 18], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    planes(&block[2..], 1, 1, &mut parts.codes);
}

fn q2_0(block: &[u8; 18], parts: &mut Parts) {
    parts.d = u16_at(block, 0);
    planes(&block[2..], 1, 2, &mut parts.codes);
}

const fn e8m0_halves() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let bits = if code < 2 { 0x0020_0000 << code } else { (code as u32 - 1) << 23 };
        table[code] = f32::from_bits(bits);
        code += 1;
    }
    table
}

const fn ue4m3_halves() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3 & 15) as u32, (code & 7) as f32);
        table[code] = match exponent {
            _ if code == 0x7f => 0.0,
            0 => mantissa / 1024.0,
            // 2^(exponent - 8), exact like all operations here.
            _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 119) << 23),
        };
        code += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(ty: GgmlType, block: &[u8], count: usize) -> Vec<u8> {
        let mut parts = Parts::new();
        unpack(ty, block, &mut parts);
        parts.codes[..count].to_vec()
    }

    #[test]
    fn every_layout_fits_its_block() {
        for &ty in GgmlType::ALL {
            let Some(layout) = layout(ty) else {
                assert_eq!(ty.block_elems(), 1, "{}", ty.name());
                continue;
            };
            let elems = usize::try_from(ty.block_elems()).unwrap_or(0);
            assert!(elems.is_multiple_of(layout.group) && elems / layout.group <= 16, "{}", ty.name());
        }
    }

    #[test]
    fn takes_every_block_apart() {
        for &ty in GgmlType::ALL.iter().filter(|&&ty| layout(ty).is_some()) {
            let block = vec![0xff; usize::try_from(ty.block_bytes()).unwrap_or(0)];
            unpack(ty, &block, &mut Parts::new());
        }
    }

    #[test]
    fn q1_0_is_least_significant_bit_first() {
        let mut block = [0; 18];
        block[2] = 0b0000_0101;
        block[17] = 0x80;
        let codes = codes(GgmlType::Q1_0, &block, 128);
        assert_eq!(codes[..4], [1, 0, 1, 0]);
        assert_eq!(codes[127], 1);
    }

    #[test]
    fn q2_0_is_least_significant_field_first() {
        let mut block = [0; 18];
        block[2] = 0b11_10_01_00;
        assert_eq!(codes(GgmlType::Q2_0, &block, 64)[..5], [0, 1, 2, 3, 0]);
    }

    #[test]
    fn ue4m3_of_0x7f_is_zero_and_the_largest_is_224() {
        assert_eq!(UE4M3.halves[0x7f], 0.0);
        assert_eq!(UE4M3.halves[0x7e], 224.0);
        assert_eq!(UE4M3.halves[0x01], 2f32.powi(-10));
    }

    #[test]
    fn e8m0_keeps_its_subnormal_ends() {
        assert_eq!(E8M0.halves[0], 2f32.powi(-128));
        assert_eq!(E8M0.halves[255], 2f32.powi(127));
    }
}

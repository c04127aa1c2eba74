//! Taking blocks apart: codes in the order of the elements, and the numbers that scale them.
//!
//! After `ggml-common.h` and `ggml-quants.c` of ggml.

use super::iq;
use super::types::GgmlType;

/// One block taken apart. Only the front of each array is used, as its layout says.
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

/// Takes `block`, which is as long as a block of `ty`, apart. Types of plain numbers have no
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

#[cfg(test)]
mod tests {
    use super::super::layout::layout;
    use super::*;

    fn codes(ty: GgmlType, block: &[u8], count: usize) -> Vec<u8> {
        let mut parts = Parts::new();
        unpack(ty, block, &mut parts);
        parts.codes[..count].to_vec()
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
}

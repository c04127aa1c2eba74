//! Transforms by the formulas of their page.

use super::naive::Piece;
use cmf_format::SegmentData;
use cmf_format::write::TransformEntry;

/// A transform of either side.
#[derive(Clone, Debug)]
pub enum Transform {
    /// Factors `[1, n]`.
    Scale(Piece),
    /// Block and seed.
    SignHadamard(usize, u64),
    /// Block and whether each sign is negative.
    StoredSigns(usize, Vec<bool>),
    /// Indices.
    Permute(Vec<u32>),
}

impl Transform {
    /// What is written.
    pub fn entry(&self) -> TransformEntry {
        match self {
            Transform::Scale(factors) => TransformEntry::Scale(factors.node.clone()),
            Transform::SignHadamard(block, seed) => {
                TransformEntry::SignHadamard { block: *block as u64, seed: *seed }
            }
            Transform::StoredSigns(block, signs) => {
                let bits: Vec<u32> = signs.iter().map(|s| u32::from(*s)).collect();
                let signs = SegmentData::from(super::naive::stream(&bits, bits.len(), 1));
                TransformEntry::StoredSignHadamard { block: *block as u64, signs }
            }
            Transform::Permute(indices) => {
                let bytes: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
                TransformEntry::Permute(SegmentData::from(bytes))
            }
        }
    }

    /// What it does to a vector on the output side.
    pub fn act(&self, v: &mut [f32]) {
        match self {
            Transform::Scale(factors) => {
                for (i, v) in v.iter_mut().enumerate() {
                    *v *= factors.at(0, i);
                }
            }
            Transform::SignHadamard(block, seed) => {
                hadamard(v, *block);
                for (i, v) in v.iter_mut().enumerate() {
                    if *seed != 0 && word(*seed, i as u64 / 64) >> (i % 64) & 1 == 1 {
                        *v = -*v;
                    }
                }
            }
            Transform::StoredSigns(block, signs) => {
                hadamard(v, *block);
                for (v, negative) in v.iter_mut().zip(signs) {
                    if *negative {
                        *v = -*v;
                    }
                }
            }
            Transform::Permute(indices) => {
                let old = v.to_vec();
                for (value, index) in old.iter().zip(indices) {
                    v[*index as usize] = *value;
                }
            }
        }
    }
}

/// Word `k` of SplitMix64.
fn word(seed: u64, k: u64) -> u64 {
    let z = seed.wrapping_add((k + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn hadamard(v: &mut [f32], block: usize) {
    let c = (1.0 / (block as f64).sqrt()) as f32;
    for v in v.chunks_mut(block) {
        let mut h = 1;
        while h < block {
            for i in (0..block).filter(|i| i / h % 2 == 0) {
                (v[i], v[i + h]) = (v[i] + v[i + h], v[i] - v[i + h]);
            }
            h *= 2;
        }
        for v in v {
            *v *= c;
        }
    }
}

/// The matrix `T_out * sums * T_in`.
pub fn apply(inputs: &[Transform], outputs: &[Transform], sums: &mut [f32], cols: usize) {
    for row in sums.chunks_mut(cols.max(1)) {
        for transform in inputs.iter().rev() {
            transform.act(row);
        }
    }
    for j in 0..cols {
        let mut column: Vec<f32> = sums.iter().skip(j).step_by(cols).copied().collect();
        for transform in outputs {
            transform.act(&mut column);
        }
        for (value, sum) in column.iter().zip(sums.iter_mut().skip(j).step_by(cols)) {
            *sum = *value;
        }
    }
}

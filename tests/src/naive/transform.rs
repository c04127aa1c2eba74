//! spec/transforms.md

use super::{bits, number};

/// A transform of a side.
#[derive(Clone, Debug)]
pub enum Transform {
    /// Factors.
    Scale(Vec<f32>),
    /// A Hadamard matrix and signs from a seed.
    Seeded {
        /// Elements of a block.
        block: usize,
        /// 0: all signs are positive.
        seed: u64,
    },
    /// A Hadamard matrix and stored signs.
    Stored {
        /// Elements of a block.
        block: usize,
        /// A bit each.
        signs: Vec<u8>,
    },
    /// Indices, u32 little-endian.
    Permute(Vec<u8>),
}

impl Transform {
    /// Acts on a vector as on the output side.
    pub fn output_side(&self, v: &mut [f32]) {
        match self {
            Transform::Scale(factors) => v.iter_mut().zip(factors).for_each(|(v, d)| *v *= d),
            Transform::Seeded { block, seed } => {
                hadamard(v, *block);
                v.iter_mut().enumerate().filter(|(i, _)| drawn(*seed, *i as u64)).for_each(|(_, v)| *v = -*v);
            }
            Transform::Stored { block, signs } => {
                hadamard(v, *block);
                for (_, v) in v.iter_mut().enumerate().filter(|(i, _)| bits(signs, 0, *i as u64, 1) == 1) {
                    *v = -*v;
                }
            }
            Transform::Permute(indices) => {
                let old = v.to_vec();
                for (i, old) in old.into_iter().enumerate() {
                    v[number(indices, i as u64 * 4, 4) as usize] = old;
                }
            }
        }
    }
}

/// Whether sign i that a seed draws is negative.
fn drawn(seed: u64, i: u64) -> bool {
    if seed == 0 {
        return false;
    }
    let mut z = seed.wrapping_add((i / 64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) >> (i % 64) & 1 == 1
}

fn hadamard(v: &mut [f32], block: usize) {
    // The square root is correctly rounded in f64, and so is its inverse; one rounding to f32 is left.
    let c = (1.0 / (block as f64).sqrt()) as f32;
    for run in v.chunks_mut(block) {
        let mut h = 1;
        while h < block {
            for i in (0..block).filter(|i| i / h % 2 == 0) {
                (run[i], run[i + h]) = (run[i] + run[i + h], run[i] - run[i + h]);
            }
            h *= 2;
        }
        run.iter_mut().for_each(|v| *v *= c);
    }
}

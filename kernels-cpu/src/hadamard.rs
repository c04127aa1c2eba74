//! Transforms of vectors, value for value as `cmf-format` makes them.

use crate::arch::Simd;
use crate::error::Result;
use crate::lines::Lines;
use cmf_format::transform::{Kind, Side, Signs, Transform};

/// Transforms a vector in place by a whole list, in order of application.
pub(crate) fn apply_all(
    simd: Simd,
    transforms: &[Transform],
    side: Side,
    x: &mut [f32],
    scratch: &mut Lines<f32>,
) -> Result<()> {
    for transform in transforms {
        match transform.kind() {
            Kind::SignHadamard { block, signs } if transform.size() == x.len() => {
                if side == Side::Input {
                    negate(signs, x);
                }
                simd.run(
                    #[inline(always)]
                    || x.chunks_exact_mut(*block).for_each(hadamard),
                );
                if side == Side::Output {
                    negate(signs, x);
                }
            }
            Kind::Permute(indices) if indices.len() == x.len() => {
                let scratch = scratch.sized(x.len());
                scratch.copy_from_slice(x);
                for (i, index) in indices.iter().enumerate() {
                    let index = *index as usize;
                    let (to, from) = if side == Side::Input { (i, index) } else { (index, i) };
                    if let (Some(to), Some(from)) = (x.get_mut(to), scratch.get(from)) {
                        *to = *from;
                    }
                }
            }
            _ => transform.apply(side, x)?,
        }
    }
    Ok(())
}

fn negate(signs: &Signs, x: &mut [f32]) {
    if *signs == Signs::Positive {
        return;
    }
    for (word, x) in x.chunks_mut(64).enumerate() {
        let bits = signs.word(word);
        for (i, v) in x.iter_mut().enumerate() {
            *v = f32::from_bits(v.to_bits() ^ ((bits >> i & 1) as u32) << 31);
        }
    }
}

/// Values whose butterflies stay in registers.
const NEAR: usize = 64;

/// Multiplies by the orthogonal Hadamard matrix: butterflies of distance 1, 2, 4, ..., then a product
/// with 1 / sqrt(length).
#[inline(always)]
fn hadamard(x: &mut [f32]) {
    let length = x.len();
    let mut distance = 1;
    if length.is_multiple_of(NEAR) {
        x.as_chunks_mut::<NEAR>().0.iter_mut().for_each(near);
        distance = NEAR;
    }
    while distance < length {
        for pair in x.chunks_exact_mut(2 * distance) {
            let (upper, lower) = pair.split_at_mut(distance);
            for (a, b) in upper.iter_mut().zip(lower) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
    let factor = (1.0 / (length as f64).sqrt()) as f32;
    x.iter_mut().for_each(|v| *v *= factor);
}

/// Butterflies within 64 values.
#[inline(always)]
fn near(x: &mut [f32; NEAR]) {
    // Eight by eight: the first three distances go along rows of the transpose, where they are whole
    // vectors apart.
    let mut turned = [[0.0f32; 8]; 8];
    for i in 0..8 {
        for j in 0..8 {
            turned[j][i] = x[8 * i + j];
        }
    }
    rows(&mut turned);
    let mut back = [[0.0f32; 8]; 8];
    for i in 0..8 {
        for j in 0..8 {
            back[i][j] = turned[j][i];
        }
    }
    rows(&mut back);
    x.copy_from_slice(back.as_flattened());
}

/// Butterflies between rows at distance 1, 2 and 4.
#[inline(always)]
fn rows(x: &mut [[f32; 8]; 8]) {
    for distance in [1, 2, 4] {
        for pair in x.chunks_exact_mut(2 * distance) {
            let (upper, lower) = pair.split_at_mut(distance);
            for (a, b) in upper.as_flattened_mut().iter_mut().zip(lower.as_flattened_mut()) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
    }
}

//! What wraps the sum of a matrix's terms: W = T_out * S * T_in (spec: transforms).
//!
//! A transform on the input side acts on the activation x before the sum does, one on the output
//! side acts on the sum's result. Both lists are in order of application, so
//! `T_in = T_k * ... * T_1`. All arithmetic is f32 in the order that the spec states.

mod lists;
#[cfg(test)]
mod tests;

pub use lists::{RowSource, apply_all, left_multiply, right_multiply};

use crate::bits;
use crate::error::{Error, ErrorKind, Result};

/// Which side of the sum a transform is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Before the sum; the transform's own direction.
    Input,
    /// After the sum; the transposed direction of `sign_hadamard` and `permute`.
    Output,
}

/// A checked transform of vectors of a fixed length.
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    size: usize,
    kind: Kind,
}

/// What a transform does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    /// Element i times factor i.
    Scale(Vec<f32>),
    /// Signs and a block-diagonal Hadamard matrix, orthogonal.
    SignHadamard {
        /// Elements of a block, a power of two.
        block: usize,
        /// A sign for each element.
        signs: Signs,
    },
    /// Element i of the result is element `indices[i]` of the input.
    Permute(Vec<u32>),
}

/// The signs of a `sign_hadamard`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signs {
    /// All positive.
    Positive,
    /// Drawn from SplitMix64 with this seed.
    Seeded(u64),
    /// One bit each, LSB first; set is negative.
    Stored(Vec<u8>),
}

impl Signs {
    /// Signs `64 * word` to `64 * word + 63` as bits; set is negative.
    pub fn word(&self, word: usize) -> u64 {
        match self {
            Signs::Positive => 0,
            Signs::Seeded(seed) => splitmix64(*seed, word as u64),
            Signs::Stored(bytes) => {
                let byte = |i: usize| bytes.get(word * 8 + i).copied().unwrap_or(0);
                u64::from_le_bytes(core::array::from_fn(byte))
            }
        }
    }

    /// Whether element `index` is negated.
    pub fn is_negative(&self, index: usize) -> bool {
        self.word(index / 64) >> (index % 64) & 1 == 1
    }

    fn apply(&self, x: &mut [f32]) {
        if *self == Signs::Positive {
            return;
        }
        for (word, x) in x.chunks_mut(64).enumerate() {
            let bits = self.word(word);
            for (i, v) in x.iter_mut().enumerate() {
                *v = f32::from_bits(v.to_bits() ^ ((bits >> i & 1) as u32) << 31);
            }
        }
    }
}

/// Output `index` of SplitMix64 (Steele, Lea and Flood, 2014) with the given seed.
fn splitmix64(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The default Hadamard block of a side: the largest power of two that divides `size`.
pub const fn hadamard_block(size: u64) -> u64 {
    match size {
        0 => 1,
        _ => 1 << size.trailing_zeros(),
    }
}

impl Transform {
    /// Multiplies element i by `factors[i]`.
    pub fn scale(factors: Vec<f32>) -> Self {
        Self { size: factors.len(), kind: Kind::Scale(factors) }
    }

    /// Signs from `seed` (0: all positive) and Hadamard blocks.
    ///
    /// # Errors
    /// `Structure` when `block` is no power of two that divides `size`.
    pub fn sign_hadamard(size: usize, block: u64, seed: u64) -> Result<Self> {
        let signs = if seed == 0 { Signs::Positive } else { Signs::Seeded(seed) };
        Ok(Self { size, kind: Kind::SignHadamard { block: checked_block(size, block)?, signs } })
    }

    /// Signs from a segment of `ceil(size / 32) * 4` bytes and Hadamard blocks.
    ///
    /// # Errors
    /// `Structure` when `block` is no power of two that divides `size` or `signs` has another
    /// length, `Value` when bits beyond `size` are set.
    pub fn stored_sign_hadamard(size: usize, block: u64, signs: &[u8]) -> Result<Self> {
        let block = checked_block(size, block)?;
        let expected = size.div_ceil(32).saturating_mul(4);
        if signs.len() != expected {
            return Err(Error::expected(
                ErrorKind::Structure,
                "signs",
                format_args!("{expected} bytes"),
                signs.len(),
            ));
        }
        if !bits::padding_is_zero(signs, size as u64, 1) {
            return Err(Error::new(ErrorKind::Value, "signs", "padding bits are not zero"));
        }
        Ok(Self { size, kind: Kind::SignHadamard { block, signs: Signs::Stored(signs.to_vec()) } })
    }

    /// A permutation: on the input side, element i of the result is element `indices[i]`.
    ///
    /// # Errors
    /// `Value` when an index is out of range or occurs twice.
    pub fn permute(indices: Vec<u32>) -> Result<Self> {
        let mut seen = vec![false; indices.len()];
        for (i, index) in indices.iter().enumerate() {
            let problem = match seen.get_mut(*index as usize) {
                None => "is out of range",
                Some(true) => "occurs twice",
                Some(seen) => {
                    *seen = true;
                    continue;
                }
            };
            return Err(Error::new(ErrorKind::Value, "permutation", format!("{i}: index {index} {problem}")));
        }
        Ok(Self { size: indices.len(), kind: Kind::Permute(indices) })
    }

    /// A permutation from a segment of `u32` little-endian indices.
    ///
    /// # Errors
    /// `Structure` when `bytes` is not a multiple of 4 long, else as [`Transform::permute`].
    pub fn permute_bytes(bytes: &[u8]) -> Result<Self> {
        let (indices, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(Error::expected(
                ErrorKind::Structure,
                "permutation",
                "a multiple of 4 bytes",
                bytes.len(),
            ));
        }
        Self::permute(indices.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    /// Length of the vectors.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What the transform does.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Transforms a vector in place, as the transform acts on the given side.
    ///
    /// # Errors
    /// `Argument` when `x` has another length than [`Transform::size`].
    pub fn apply(&self, side: Side, x: &mut [f32]) -> Result<()> {
        self.apply_with(side, x, &mut Vec::new())
    }

    /// Multiplies a row by this input-side transform from the right: row * T.
    ///
    /// That is the transpose of T applied to the row, which is how T acts on the output side.
    ///
    /// # Errors
    /// As [`Transform::apply`].
    pub fn right_multiply_row(&self, row: &mut [f32]) -> Result<()> {
        self.apply(Side::Output, row)
    }

    fn apply_with(&self, side: Side, x: &mut [f32], scratch: &mut Vec<f32>) -> Result<()> {
        if x.len() != self.size {
            return Err(Error::expected(
                ErrorKind::Argument,
                "transform",
                format_args!("{} values", self.size),
                x.len(),
            ));
        }
        match &self.kind {
            Kind::Scale(factors) => x.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor),
            Kind::SignHadamard { block, signs } => {
                if side == Side::Input {
                    signs.apply(x);
                }
                x.chunks_exact_mut(*block).for_each(|x| hadamard(x, 1));
                if side == Side::Output {
                    signs.apply(x);
                }
            }
            Kind::Permute(indices) => {
                scratch.clear();
                scratch.extend_from_slice(x);
                match side {
                    Side::Input => {
                        for (y, index) in x.iter_mut().zip(indices) {
                            *y = scratch.get(*index as usize).copied().unwrap_or(0.0);
                        }
                    }
                    Side::Output => {
                        for (value, index) in scratch.iter().zip(indices) {
                            if let Some(y) = x.get_mut(*index as usize) {
                                *y = *value;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn checked_block(size: usize, block: u64) -> Result<usize> {
    match usize::try_from(block) {
        Ok(block) if block.is_power_of_two() && size.is_multiple_of(block) => Ok(block),
        _ => Err(Error::new(
            ErrorKind::Structure,
            "block",
            format!("{block} is no power of two that divides {size}"),
        )),
    }
}

/// Multiplies columns by the orthogonal Hadamard matrix of `x.len() / width` rows, a power of two:
/// butterflies of distance 1, 2, 4, ..., then a product with 1 / sqrt(rows).
fn hadamard(x: &mut [f32], width: usize) {
    let rows = x.len() / width.max(1);
    let mut distance = 1;
    while distance < rows {
        for pair in x.chunks_exact_mut(2 * distance * width) {
            let (upper, lower) = pair.split_at_mut(distance * width);
            for (a, b) in upper.iter_mut().zip(lower) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
    let factor = (1.0 / (rows as f64).sqrt()) as f32;
    x.iter_mut().for_each(|v| *v *= factor);
}

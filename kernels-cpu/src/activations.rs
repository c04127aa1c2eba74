//! Activations, transformed and quantised once for all matrices that read them.

use crate::arch::{self, Simd};
use crate::error::{Result, argument};
use crate::hadamard;
use crate::lines::Lines;
use crate::operands::{BLOCK, GRANULES, Input, Quantised};
use crate::{Isa, Precision};
use cmf_format::transform::{Side, Transform};
use core::ops::Range;

/// Vectors that matrices are multiplied with: the input side of a multiplication.
///
/// What matrices have in common, the transforms of their input and the quantisation, is done when
/// activations are loaded. Buffers are kept from one load to the next.
#[derive(Debug, Default)]
pub struct Activations {
    cols: usize,
    tokens: usize,
    /// Blocks of a vector, which is padded with zeros.
    blocks: usize,
    values: Lines<[f32; BLOCK]>,
    quantised: Lines<[i8; BLOCK]>,
    halves: Lines<[i8; BLOCK]>,
    scales: Lines<f32>,
    sums: Lines<[i32; GRANULES]>,
    granule_sums: Lines<[f32; GRANULES]>,
    /// A vector that is being permuted.
    scratch: Lines<f32>,
}

impl Activations {
    /// No activations yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes vectors of `cols` values, one after the other, through `transforms`, the input-side
    /// list of the matrices that will be multiplied with, and quantises them if `precision` is fast.
    ///
    /// # Errors
    /// `Argument` when `values` are no vectors of `cols`, a transform has another size, or this
    /// machine lacks the instruction set.
    pub fn load(
        &mut self,
        values: &[f32],
        cols: usize,
        transforms: &[Transform],
        precision: Precision,
        isa: Isa,
    ) -> Result<()> {
        let simd = Simd::new(isa).ok_or_else(|| argument("isa", format!("{isa:?} is not available")))?;
        if cols == 0 || !values.len().is_multiple_of(cols) {
            return Err(argument("activations", format!("{} values are no vectors of {cols}", values.len())));
        }
        (self.cols, self.tokens, self.blocks) =
            (cols, values.len() / cols, cols.div_ceil(BLOCK).next_multiple_of(2));
        let count = self.tokens * self.blocks;
        let padded = self.values.exactly(count);
        for (from, to) in values.chunks_exact(cols).zip(padded.chunks_exact_mut(self.blocks)) {
            let Some((to, beyond)) = to.as_flattened_mut().split_at_mut_checked(cols) else { continue };
            beyond.fill(0.0);
            to.copy_from_slice(from);
            hadamard::apply_all(simd, transforms, Side::Input, to, &mut self.scratch)?;
        }
        let count = if precision == Precision::Fast { count } else { 0 };
        let out = Quantised {
            values: self.quantised.exactly(count),
            halves: self.halves.exactly(count),
            scales: self.scales.exactly(count),
            sums: self.sums.exactly(count),
            granule_sums: self.granule_sums.exactly(count),
        };
        arch::quantise(simd, &self.values, out);
        Ok(())
    }

    /// Length of the vectors.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of vectors.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The precision that they were loaded for.
    pub fn precision(&self) -> Precision {
        if self.quantised.is_empty() { Precision::Exact } else { Precision::Fast }
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        let bytes = self.quantised.bytes() + self.halves.bytes() + self.values.bytes();
        let floats = self.scales.bytes() + self.sums.bytes() + self.granule_sums.bytes();
        bytes + floats + self.scratch.bytes()
    }

    /// Blocks `blocks` of all vectors.
    pub(crate) fn input(&self, blocks: Range<usize>) -> Input<'_> {
        let start = blocks.start;
        Input {
            tokens: self.tokens,
            blocks: blocks.len(),
            stride: self.blocks,
            values: self.values.get(start..).unwrap_or(&[]),
            quantised: self.quantised.get(start..).unwrap_or(&[]),
            halves: match start.is_multiple_of(2) {
                true => self.halves.get(start..).unwrap_or(&[]),
                false => &[],
            },
            scales: self.scales.get(start..).unwrap_or(&[]),
            sums: self.sums.get(start..).unwrap_or(&[]),
            granule_sums: self.granule_sums.get(start..).unwrap_or(&[]),
        }
    }
}

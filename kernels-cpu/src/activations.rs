//! Activations, transformed and quantised once for all matrices that read them.

use crate::arch::{self, Simd};
use crate::error::{Result, argument};
use crate::hadamard;
use crate::operands::{BLOCK, GRANULE, GRANULES, Input};
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
    values: Vec<[f32; BLOCK]>,
    quantised: Vec<[i8; BLOCK]>,
    halves: Vec<[i8; BLOCK]>,
    scales: Vec<f32>,
    sums: Vec<[i32; GRANULES]>,
    granule_sums: Vec<[f32; GRANULES]>,
    /// A vector that is being permuted.
    scratch: Vec<f32>,
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
        self.values.clear();
        self.values.resize(self.tokens * self.blocks, [0.0; BLOCK]);
        for (from, to) in values.chunks_exact(cols).zip(self.values.chunks_exact_mut(self.blocks)) {
            let Some(to) = to.as_flattened_mut().get_mut(..cols) else { continue };
            to.copy_from_slice(from);
            hadamard::apply_all(simd, transforms, Side::Input, to, &mut self.scratch)?;
        }
        self.quantised.clear();
        self.scales.clear();
        self.sums.clear();
        self.granule_sums.clear();
        self.halves.clear();
        if precision == Precision::Fast {
            for values in &self.values {
                let (quantised, scale) = arch::quantise(simd, values);
                let granules = quantised.as_chunks::<GRANULE>().0.iter();
                let mut sums = [0; GRANULES];
                for (sum, granule) in sums.iter_mut().zip(granules) {
                    *sum = granule.iter().map(|q| i32::from(*q)).sum();
                }
                self.granule_sums.push(sums.map(|sum| sum as f32 * scale));
                self.sums.push(sums);
                self.scales.push(scale);
                self.quantised.push(quantised);
            }
            for pair in self.quantised.as_chunks::<2>().0 {
                let columns = pair.as_flattened().as_chunks::<2>().0;
                for part in 0..2 {
                    let mut half = [0; BLOCK];
                    half.iter_mut().zip(columns).for_each(|(half, columns)| *half = columns[part]);
                    self.halves.push(half);
                }
            }
        }
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
        self.values.capacity() * size_of::<[f32; BLOCK]>()
            + (self.quantised.capacity() + self.halves.capacity()) * BLOCK
            + (self.scales.capacity() + self.scratch.capacity()) * 4
            + (self.sums.capacity() + self.granule_sums.capacity()) * size_of::<[f32; GRANULES]>()
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

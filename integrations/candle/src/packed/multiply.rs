//! Products of tensors with packed matrices.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use cmf_kernels_cpu::{Activations, Linear, Precision, Scratch};

/// What multiplications leave behind for the next one.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    activations: Activations,
    scratch: Scratch,
}

impl Buffers {
    /// Bytes that are held.
    pub(super) fn bytes(&self) -> usize {
        self.activations.bytes().saturating_add(self.scratch.bytes())
    }

    /// The products of `x`, `[tokens, inputs]`, with each of `matrices`. Input-side transforms that
    /// neighbours share are computed once.
    pub(super) fn multiply(
        &mut self,
        matrices: &[&Linear<'_>],
        x: &Tensor,
        inputs: usize,
        precision: Precision,
    ) -> Result<Vec<Tensor>> {
        let (tokens, cols) = x.dims2()?;
        if cols != inputs || cols == 0 || tokens == 0 {
            return Err(Error::argument(format!("{cols} inputs of a matrix of {inputs}")));
        }
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
            return Err(Error::argument("activations are not f32 in main memory"));
        };
        let start = layout.start_offset();
        let values = values.get(start..start + tokens * cols).unwrap_or(&[]);
        let mut loaded: Option<&Linear<'_>> = None;
        let products = matrices.iter().map(|matrix| {
            if !loaded.is_some_and(|loaded| matrix.shares_input(loaded)) {
                let transforms = matrix.view().input_transforms();
                self.activations.load(values, cols, transforms, precision, matrix.isa())?;
                loaded = Some(matrix);
            }
            let mut product = vec![0.0; tokens.saturating_mul(matrix.rows())];
            matrix.multiply(&self.activations, &mut product, &mut self.scratch)?;
            Ok(Tensor::from_vec(product, (tokens, matrix.rows()), &Device::Cpu)?)
        });
        products.collect()
    }

    /// The rows `ids` of a matrix.
    pub(super) fn gather(&mut self, matrix: &Linear<'_>, ids: &[u32], out: &mut [f32]) -> Result<()> {
        Ok(matrix.gather(ids, out, &mut self.scratch)?)
    }
}

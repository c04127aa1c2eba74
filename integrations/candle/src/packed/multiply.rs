//! Products of tensors with packed matrices.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use cmf_kernels_cpu::{Activations, Linear, Precision, Scratch};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers for as many passes as run at a time.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Buffers>>);

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Vec<Buffers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Buffers that nobody else uses. No lock is held meanwhile: the thread may take up another pass
    /// while it waits for parts of its own.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Buffers) -> R) -> R {
        let mut buffers = self.lock().pop().unwrap_or_default();
        let result = work(&mut buffers);
        self.lock().push(buffers);
        result
    }

    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().iter().map(|buffers| buffers.bytes() as u64).sum()
    }
}

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

    /// The products of `x`, `[tokens, inputs]`, with each of `matrices`. Neighbours that share their
    /// input-side transforms are multiplied with at once.
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
        let mut products = Vec::with_capacity(matrices.len());
        for matrices in matrices.chunk_by(|one, next| next.shares_input(one)) {
            let Some(first) = matrices.first() else { continue };
            let transforms = first.view().input_transforms();
            self.activations.load(values, cols, transforms, precision, first.isa())?;
            let outputs = matrices.iter().map(|matrix| matrix.rows()).sum::<usize>();
            let mut all = vec![0.0; tokens.saturating_mul(outputs)];
            Linear::multiply_all(matrices, &self.activations, &mut all, &mut self.scratch)?;
            let mut rest = all.as_slice();
            for matrix in matrices {
                let (own, beyond) = rest.split_at(tokens * matrix.rows());
                products.push(Tensor::from_slice(own, (tokens, matrix.rows()), &Device::Cpu)?);
                rest = beyond;
            }
        }
        Ok(products)
    }

    /// The rows `ids` of a matrix.
    pub(super) fn gather(&mut self, matrix: &Linear<'_>, ids: &[u32], out: &mut [f32]) -> Result<()> {
        Ok(matrix.gather(ids, out, &mut self.scratch)?)
    }
}

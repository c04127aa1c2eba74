//! Products on a GPU.

use super::Rates;
use crate::device::Gpu;
use anyhow::Context;
use cmf_format::archive::{Matrix, MatrixView};
use cmf_kernels_wgpu::{Activations, GpuMatrix, Rows, Uploader, Workspace};
use cmf_loader::FileSource;
use std::time::{Duration, Instant};

/// Bytes of the buffer whose copy says how fast memory is.
const COPY_BYTES: u64 = 64 << 20;

/// Matrices on the device.
pub(super) struct Uploaded<'g> {
    gpu: &'g Gpu,
    matrices: Vec<GpuMatrix>,
    bytes_per_second: f64,
}

impl<'g> Uploaded<'g> {
    pub(super) fn new(gpu: &'g Gpu, matrices: &[Matrix<'_, FileSource>]) -> anyhow::Result<Self> {
        let context = gpu.context();
        let mut uploader = Uploader::new(context.device(), context.queue());
        let upload = |matrix| {
            let view = MatrixView::open(matrix, u16::MAX)?;
            Ok(GpuMatrix::from_view(context.kernels(), &mut uploader, &view)?)
        };
        let matrices = matrices.iter().map(upload).collect::<anyhow::Result<Vec<_>>>()?;
        uploader.finish()?;
        Ok(Self { gpu, matrices, bytes_per_second: copy_rate(gpu)? })
    }

    pub(super) fn len(&self) -> usize {
        self.matrices.len()
    }

    /// Products with `batch` vectors; a pass has all matrices in turn.
    pub(super) fn measure(&self, batch: usize, time: Duration) -> anyhow::Result<Rates> {
        let first = self.matrices.first().context("no matrix")?;
        let (rows, cols) = (first.rows(), first.cols());
        let (context, count) = (self.gpu.context(), self.matrices.len() as f64);
        let kernels = context.kernels();
        let x: Vec<f32> = (0..batch * cols as usize).map(|i| (i * 37 % 251) as f32 / 125.0 - 1.0).collect();
        let (x, y) = (context.upload(&x)?, context.buffer(batch * rows as usize)?);
        let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
        // Pipelines are compiled in the first round, which does not count.
        let (mut best, mut round, started) = (f64::INFINITY, 0, Instant::now());
        while round < 3 || started.elapsed() < time {
            let begun = Instant::now();
            context.submit(|pass| {
                self.matrices.iter().try_for_each(|matrix| {
                    let x = Rows::of(&x, cols);
                    let input = matrix.input();
                    kernels.activate(pass, &mut workspace, input, x, batch as u32, &mut activations)?;
                    kernels.multiply(pass, &mut workspace, matrix, &activations, Rows::of(&y, rows))
                })
            })?;
            context.wait()?;
            if round > 0 {
                best = best.min(begun.elapsed().as_secs_f64());
            }
            round += 1;
        }
        let bytes = self.matrices.iter().map(|matrix| matrix.bytes() as f64).sum::<f64>() / count;
        Ok(Rates { multiply: best / count, read: bytes / self.bytes_per_second, bytes })
    }
}

/// Name of the adapter.
pub(super) fn adapter(gpu: &Gpu) -> String {
    gpu.context().device().adapter_info().name
}

/// Bytes a second that a copy on the device reads and writes.
fn copy_rate(gpu: &Gpu) -> anyhow::Result<f64> {
    let context = gpu.context();
    let buffer = || context.buffer((COPY_BYTES / 4) as usize);
    let (from, to) = (buffer()?, buffer()?);
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let begun = Instant::now();
        let mut encoder = context.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&from, 0, &to, 0, COPY_BYTES);
        context.queue().submit([encoder.finish()]);
        context.wait()?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(2.0 * COPY_BYTES as f64 / best)
}

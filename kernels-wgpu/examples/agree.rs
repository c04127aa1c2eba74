//! Products of every matrix of a `.cmf` on the GPU against those of its reference decode.
//!
//! `cargo run --release -p cmf-kernels-wgpu --example agree MODEL.cmf [LEVEL]`: for each matrix of one
//! tensor, the units up to a level are uploaded and multiplied with three activations, transforms
//! included. Prints the largest error as a share of the largest product of its matrix.

use cmf_format::archive::MatrixView;
use cmf_format::transform::{Side, apply_all};
use cmf_format::{Archive, Limits};
use cmf_kernels_wgpu::{Activations, Context, GpuMatrix, Rows, Uploader, Workspace};
use std::error::Error;

const BATCH: usize = 3;
/// Rows that are decoded at a time.
const BLOCK_ROWS: usize = 1024;

fn products(view: &MatrixView<'_>, x: &[f32]) -> Result<Vec<f32>, Box<dyn Error>> {
    let (rows, cols) = (view.rows(), view.cols());
    let mut turned = x.to_vec();
    for x in turned.chunks_mut(cols) {
        apply_all(view.input_transforms(), Side::Input, x)?;
    }
    let mut y = vec![0.0; BATCH * rows];
    for start in (0..rows).step_by(BLOCK_ROWS) {
        let block = start..rows.min(start + BLOCK_ROWS);
        let mut values = vec![0.0; block.len() * cols];
        view.sum_rows(block.clone(), &mut values)?;
        for (b, x) in turned.chunks(cols).enumerate() {
            for (row, w) in block.clone().zip(values.chunks(cols)) {
                let sum: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                if let Some(y) = y.get_mut(b * rows + row) {
                    *y = sum as f32;
                }
            }
        }
    }
    for y in y.chunks_mut(rows) {
        apply_all(view.output_transforms(), Side::Output, y)?;
    }
    Ok(y)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("expected a .cmf")?;
    let level = args.next().map_or(Ok(u16::MAX), |level| level.parse())?;
    let bytes = std::fs::read(path)?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    let context = Context::new()?;
    let kernels = context.kernels();
    let mut uploader = Uploader::new(context.device(), context.queue());
    let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
    let (mut matrices, mut elements, mut on_device, mut worst) = (0, 0u64, 0, 0.0f32);
    for tensor in archive.tensors() {
        for matrix in tensor.matrices() {
            let view = MatrixView::open(&matrix, level)?;
            let (rows, cols) = (view.rows(), view.cols());
            let gpu = GpuMatrix::from_view(kernels, &mut uploader, &view)?;
            uploader.finish()?;
            let x: Vec<f32> = (0..BATCH * cols).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
            let (from, to) = (context.upload(&x)?, context.buffer(BATCH * rows)?);
            context.submit(|pass| {
                let from = Rows::of(&from, cols as u32);
                kernels.activate(pass, &mut workspace, gpu.input(), from, BATCH as u32, &mut activations)?;
                kernels.multiply(pass, &mut workspace, &gpu, &activations, Rows::of(&to, rows as u32))
            })?;
            let found = context.download(&to, BATCH * rows)?;
            let expected = products(&view, &x)?;
            let largest = expected.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
            let error = found.iter().zip(&expected).fold(0.0f32, |m, (f, e)| m.max((f - e).abs()));
            worst = worst.max(error / largest);
            matrices += 1;
            elements += (rows * cols) as u64;
            on_device += gpu.bytes();
        }
    }
    println!("{matrices} matrices, {elements} elements, {on_device} bytes on the device");
    println!("{} pipelines; largest error {worst:.2e} of the largest product", kernels.compiled());
    Ok(())
}

//! y = x Wᵀ with W = T_out S T_in: the input is transformed, blocks of rows of the sum S are decoded
//! and multiplied with, and the output is transformed.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use cmf_format::archive::MatrixView;
use cmf_format::transform::{Side, apply_all};
use multiversion::multiversion;
use rayon::prelude::*;

/// Values of a block: with what the decoder reads for it, it stays in the cache of a core.
pub(super) const BLOCK_ELEMS: usize = 1 << 16;
/// Tokens up to which dot products are as fast as a matrix product.
const FEW_TOKENS: usize = 4;

/// `x`, `[tokens, inputs]`, after the input-side transforms of `view`.
pub(super) fn transform(view: &MatrixView<'_>, x: &Tensor) -> Result<Tensor> {
    if view.input_transforms().is_empty() {
        return Ok(x.clone());
    }
    let shape = x.shape().clone();
    let mut values = x.flatten_all()?.to_vec1::<f32>()?;
    let rows = values.par_chunks_exact_mut(view.cols().max(1));
    rows.try_for_each(|row| apply_all(view.input_transforms(), Side::Input, row))?;
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The product of a transformed `x`, `[tokens, inputs]`, with the matrix.
pub(super) fn multiply(view: &MatrixView<'_>, x: &Tensor) -> Result<Tensor> {
    let (tokens, cols) = x.dims2()?;
    let rows = view.rows();
    if cols != view.cols() || cols == 0 || tokens == 0 {
        return Err(Error::argument(format!("{cols} inputs of a matrix of {}", view.cols())));
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(Error::argument("activations are not f32 in main memory"));
    };
    let values = values.get(layout.start_offset()..).unwrap_or(&[]);
    // [rows, tokens]: blocks of rows lie one after the other.
    let mut product = vec![0.0; rows.saturating_mul(tokens)];
    let block_rows = (BLOCK_ELEMS / cols).max(1);
    let blocks = product.par_chunks_mut(block_rows.saturating_mul(tokens)).enumerate();
    blocks.try_for_each_init(Vec::new, |tile: &mut Vec<f32>, (block, out)| {
        let start = block * block_rows;
        let rows = start..start + out.len() / tokens;
        tile.clear();
        tile.resize(rows.len() * cols, 0.0);
        view.sum_rows(rows.clone(), tile)?;
        if tokens <= FEW_TOKENS {
            for (row, out) in tile.chunks_exact(cols).zip(out.chunks_exact_mut(tokens)) {
                for (x, y) in values.chunks_exact(cols).zip(out) {
                    *y = dot(row, x);
                }
            }
            return Ok(());
        }
        let tile = Tensor::from_slice(tile, (rows.len(), cols), &Device::Cpu)?;
        out.copy_from_slice(&tile.matmul(&x.t()?)?.flatten_all()?.to_vec1::<f32>()?);
        Ok::<(), Error>(())
    })?;
    if tokens > 1 {
        let mut turned = vec![0.0; product.len()];
        turned.par_chunks_exact_mut(rows.max(1)).enumerate().for_each(|(token, out)| {
            let column = product.iter().skip(token).step_by(tokens);
            out.iter_mut().zip(column).for_each(|(y, product)| *y = *product);
        });
        product = turned;
    }
    if !view.output_transforms().is_empty() {
        let outputs = product.par_chunks_exact_mut(rows.max(1));
        outputs.try_for_each(|y| apply_all(view.output_transforms(), Side::Output, y))?;
    }
    Ok(Tensor::from_vec(product, (tokens, rows), &Device::Cpu)?)
}

/// The dot product, in 16 sums.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_parts, a_rest) = a.as_chunks::<16>();
    let (b_parts, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for (a, b) in a_parts.iter().zip(b_parts) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

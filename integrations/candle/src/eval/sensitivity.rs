//! How much an error of each matrix changes what a model predicts.

use super::score::{Distribution, Tally};
use super::scored;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{Hidden, Progress};
use crate::llama::{Block, Site, final_norm, head};
use crate::text::Windows;
use crate::weights::{Linear, MatrixName, Rows, Weights};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Power of the noise, relative to that of what a matrix gives for each token: small enough for its effect to grow
/// in proportion, large enough to stand out from rounding.
const NOISE: f32 = 0.01;

/// The divergence in nats per token that noise in the products of each matrix causes, by the noise's
/// power relative to theirs.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// Of the matrices of layers, by name.
    pub matrices: BTreeMap<String, f64>,
    /// Of the rows that the embedding gives.
    pub embedding: f64,
}

/// Measures the sensitivity of every matrix but the head.
///
/// Noise in one matrix's products at a time goes through the rest of the model, and the scored half
/// of each of `windows` is compared with the undisturbed one. (Noise of equal power in any place
/// does harm in proportion to its power while it is small: Malinovskii et al. 2024, section 3.)
///
/// Holds the whole model as f32. Runs a layer once for each matrix before it and in it.
///
/// # Errors
/// What `weights` and the layers give.
pub fn sensitivity(
    weights: &dyn Weights,
    config: &Config,
    windows: &Windows,
    progress: &Progress<'_>,
) -> Result<Sensitivity> {
    let noisy = Noisy { weights, target: AtomicUsize::new(usize::MAX) };
    let blocks =
        (0..config.layers).map(|layer| Block::load(&noisy, config, layer)).collect::<Result<Vec<_>>>()?;
    let norm = final_norm(weights, config)?;
    let head = head(weights, config)?;
    let (first, count) = scored(windows.context());
    let logits = |hidden: &Hidden| -> Result<Vec<Vec<f32>>> {
        let of = |x: &Tensor| -> Result<Vec<f32>> {
            let states = norm.forward(&x.narrow(0, first, count)?)?;
            let logits = head.forward(&states)?;
            Ok(logits.first().ok_or_else(|| Error::model("no head"))?.flatten_all()?.to_vec1()?)
        };
        hidden.states().iter().map(of).collect()
    };
    // What each layer reads in the undisturbed model.
    let mut inputs = vec![Hidden::embed(weights, config, windows)?];
    for (block, layer) in blocks.iter().zip(0..) {
        let mut hidden = inputs.get(layer).cloned().ok_or_else(|| Error::model("no layer"))?;
        hidden.through(block)?;
        inputs.push(hidden);
    }
    let last = inputs.last().ok_or_else(|| Error::model("no layer"))?;
    let base: Vec<_> =
        logits(last)?.into_iter().map(|logits| Distribution::new(logits, config.vocab)).collect();
    let divergence = |hidden: &Hidden| -> Result<f64> {
        let mut tally = Tally::default();
        for ((logits, base), ids) in logits(hidden)?.iter().zip(&base).zip(windows.iter()) {
            tally.add(logits, config.vocab, ids.get(first + 1..).unwrap_or(&[]), Some(base))?;
        }
        Ok(tally.scores(1).kl_mean.unwrap_or(0.0) / f64::from(NOISE))
    };
    let per_layer = Site::of(config).iter().map(|site| site.matrices().len()).sum::<usize>();
    let total = (config.layers * per_layer + 1) as u64;
    let mut matrices = BTreeMap::new();
    for layer in 0..config.layers {
        for matrix in Site::of(config).iter().flat_map(|site| site.matrices()) {
            let name = format!("model.layers.{layer}.{matrix}.weight");
            let mut hidden = inputs.get(layer).cloned().ok_or_else(|| Error::model("no layer"))?;
            noisy.target.store(key(&name), Ordering::SeqCst);
            for block in blocks.iter().skip(layer) {
                hidden.through(block)?;
            }
            noisy.target.store(usize::MAX, Ordering::SeqCst);
            matrices.insert(name, divergence(&hidden)?);
            progress(matrices.len() as u64, total);
        }
    }
    let embedded = inputs.first().ok_or_else(|| Error::model("no layer"))?;
    let mut hidden = embedded.map(disturbed)?;
    for block in &blocks {
        hidden.through(block)?;
    }
    let embedding = divergence(&hidden)?;
    progress(total, total);
    Ok(Sensitivity { matrices, embedding })
}

/// A number for a name; names of one model hardly meet.
fn key(name: &str) -> usize {
    let hash = blake3::hash(name.as_bytes());
    let bytes: [u8; 4] = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    u32::from_le_bytes(bytes) as usize
}

/// Weights one matrix of which gives noisy products.
struct Noisy<'w> {
    weights: &'w dyn Weights,
    /// [`key`] of the matrix.
    target: AtomicUsize,
}

impl Weights for Noisy<'_> {
    fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
        self.weights.vector(name, elements)
    }

    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
        Ok(Box::new(NoisyLinear {
            inner: self.weights.linear(matrices, inputs)?,
            keys: matrices.iter().map(|matrix| key(&matrix.name)).collect(),
            target: &self.target,
        }))
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        self.weights.rows(name, rows, cols)
    }
}

struct NoisyLinear<'w> {
    inner: Box<dyn Linear + 'w>,
    keys: Vec<usize>,
    target: &'w AtomicUsize,
}

impl Linear for NoisyLinear<'_> {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let products = self.inner.forward(x)?;
        let target = self.target.load(Ordering::SeqCst);
        let disturb = |(y, key): (Tensor, &usize)| match *key == target {
            true => disturbed(&y),
            false => Ok(y),
        };
        products.into_iter().zip(&self.keys).map(disturb).collect()
    }
}

/// A tensor whose rows, one a token, have fixed white noise of [`NOISE`] times their mean square: an
/// error of a matrix grows with what a token brings.
fn disturbed(x: &Tensor) -> Result<Tensor> {
    let mut values = x.flatten_all()?.to_vec1::<f32>()?;
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    let mut state = 0x243F_6A88_85A3_08D3u64;
    for row in values.chunks_exact_mut(width) {
        let power = row.iter().map(|v| f64::from(v * v)).sum::<f64>() / width as f64;
        let size = (power * f64::from(NOISE)).sqrt() as f32;
        for value in row {
            // The sum of four uniform numbers of variance 1/12 each, times sqrt(3), is about normal.
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            let bits = state ^ (state >> 29);
            let sum: f32 = (0..4).map(|i| f32::from((bits >> (16 * i)) as u16) / 65_536.0 - 0.5).sum();
            *value += size * sum * 3f32.sqrt();
        }
    }
    Ok(Tensor::from_vec(values, x.shape(), &Device::Cpu)?)
}

//! Llama-family decoders on candle tensors.

mod attention;
mod block;
mod mixture;
mod rope;

pub use attention::LayerCache;
pub use block::{Block, Observe, Site};
pub use rope::RopeTable;

use crate::config::{Config, EMBEDDING};
use crate::error::{Error, Result};
use crate::weights::{Linear, MatrixName, Rows, Weights};
use candle_core::{D, Tensor};

/// A whole model.
pub struct Llama<'w> {
    weights: &'w dyn Weights,
    config: Config,
    embedding: Box<dyn Rows + 'w>,
    blocks: Vec<Block<'w>>,
    norm: Norm,
    head: Box<dyn Linear + 'w>,
}

/// Keys and values of all layers.
pub struct Cache {
    layers: Vec<LayerCache>,
    positions: usize,
}

impl Cache {
    /// An empty cache.
    pub fn new(config: &Config) -> Self {
        Self { layers: (0..config.layers).map(|_| LayerCache::new()).collect(), positions: 0 }
    }

    /// Tokens that it holds.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(LayerCache::bytes).sum()
    }
}

impl<'w> Llama<'w> {
    /// Loads all of a model.
    ///
    /// # Errors
    /// What `weights` gives.
    pub fn load(weights: &'w dyn Weights, config: &Config) -> Result<Self> {
        Ok(Self {
            weights,
            embedding: embedding(weights, config)?,
            blocks: (0..config.layers).map(|i| Block::load(weights, config, i)).collect::<Result<_>>()?,
            norm: final_norm(weights, config)?,
            head: head(weights, config)?,
            config: config.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Logits `[vocab]` of the token after `ids`, which follow what `cache` holds.
    ///
    /// # Errors
    /// As [`Llama::hidden`].
    pub fn next(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        self.run(|| self.logits_of(&self.hidden_of(ids, cache)?))
    }

    /// The last layer's output `[1, hidden]` for the last of `ids`, which follow what `cache` holds.
    ///
    /// # Errors
    /// `BadArgument` for an unknown token or none, and as [`Linear::forward`].
    pub fn hidden(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
        self.run(|| self.hidden_of(ids, cache))
    }

    /// Logits `[vocab]` of an output `[1, hidden]` of the last layer.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        self.run(|| self.logits_of(hidden))
    }

    fn run<T: Send>(&self, pass: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let (mut pass, mut result) = (Some(pass), None);
        self.weights.run(&mut || result = pass.take().map(|pass| pass()));
        result.unwrap_or_else(|| Err(Error::argument("weights that do not run what they are given")))
    }

    fn hidden_of(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let rope = RopeTable::new(&self.config, cache.positions, ids.len())?;
        let mut x = self.embedding.gather(ids)?;
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.forward(&x, &rope, Some(layer), &mut |_, _| Ok(()))?;
        }
        cache.positions += ids.len();
        Ok(x.narrow(0, ids.len().saturating_sub(1), 1)?)
    }

    fn logits_of(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        let logits = self.head.forward(&self.norm.forward(hidden)?)?;
        Ok(Tensor::cat(&logits, D::Minus1)?.flatten_all()?.to_vec1()?)
    }
}

/// The embedding of a model.
///
/// # Errors
/// What `weights` gives.
pub fn embedding<'w>(weights: &'w dyn Weights, config: &Config) -> Result<Box<dyn Rows + 'w>> {
    weights.rows(EMBEDDING, config.vocab, config.hidden)
}

/// The norm before the head.
///
/// # Errors
/// What `weights` gives.
pub fn final_norm(weights: &dyn Weights, config: &Config) -> Result<Norm> {
    Norm::load(weights, "model.norm.weight", config.hidden, config.rms_eps)
}

/// The matrix that gives the logits.
///
/// # Errors
/// What `weights` gives.
pub fn head<'w>(weights: &'w dyn Weights, config: &Config) -> Result<Box<dyn Linear + 'w>> {
    let head = MatrixName { name: config.head_name().into(), outputs: config.vocab };
    weights.linear(&[head], config.hidden)
}

/// Root mean square normalisation.
pub struct Norm {
    factors: Tensor,
    eps: f32,
}

impl Norm {
    fn load(weights: &dyn Weights, name: &str, elements: usize, eps: f64) -> Result<Self> {
        Ok(Self { factors: weights.vector(name, elements)?, eps: eps as f32 })
    }

    /// Normalises the innermost axis.
    ///
    /// # Errors
    /// `Compute`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm(&x.contiguous()?, &self.factors, self.eps)?)
    }
}

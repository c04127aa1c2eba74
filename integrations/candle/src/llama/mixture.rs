//! A mixture of experts in the place of an MLP.

use crate::config::{Config, Mixture as Shape};
use crate::error::{Error, Result};
use crate::weights::{Experts, Linear, MatrixName, Weights};
use candle_core::{D, Device, Tensor};

/// A router, which chooses of many experts a few for each token, and the experts.
pub(super) struct Mixture<'w> {
    router: Box<dyn Linear + 'w>,
    experts: Box<dyn Experts + 'w>,
    shape: Shape,
}

/// Tokens that an expert was chosen for, and what its outputs count there.
#[derive(Clone, Default)]
struct Chosen {
    tokens: Vec<u32>,
    factors: Vec<f32>,
}

impl<'w> Mixture<'w> {
    pub(super) fn load(
        weights: &'w dyn Weights,
        config: &Config,
        shape: &Shape,
        layer: usize,
    ) -> Result<Self> {
        let name = format!("model.layers.{layer}.{}.gate.weight", shape.block);
        let router = MatrixName { name, outputs: shape.experts };
        Ok(Self {
            router: weights.linear(&[router], config.hidden)?,
            experts: weights.experts(&config.experts(layer), config.hidden, shape.wide)?,
            shape: shape.clone(),
        })
    }

    /// The sum of the outputs of the experts that are chosen for each token of `x`, `[tokens, hidden]`. An
    /// expert reads all of its tokens at once, and one follows the other: no more than one needs to be in
    /// memory.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let scores = Tensor::cat(&self.router.forward(&x)?, D::Minus1)?;
        let mut sum = x.zeros_like()?;
        let all = self.choose(&scores)?;
        let chosen = || all.iter().enumerate().filter(|(_, chosen)| !chosen.tokens.is_empty());
        self.experts.expect(&chosen().map(|(expert, _)| expert).collect::<Vec<_>>())?;
        for (expert, chosen) in chosen() {
            let count = chosen.tokens.len();
            let tokens = Tensor::from_slice(&chosen.tokens, count, &Device::Cpu)?;
            let factors = Tensor::from_slice(&chosen.factors, (count, 1), &Device::Cpu)?;
            let output = self.experts.forward(expert, &x.index_select(&tokens, 0)?)?;
            sum = sum.index_add(&tokens, &output.broadcast_mul(&factors)?, 0)?;
        }
        Ok(sum)
    }

    /// The choice of each token: its highest scores, by their softmax.
    fn choose(&self, scores: &Tensor) -> Result<Vec<Chosen>> {
        let mut chosen = vec![Chosen::default(); self.shape.experts];
        for (token, scores) in scores.to_vec2::<f32>()?.into_iter().enumerate() {
            if scores.iter().any(|score| score.is_nan()) {
                return Err(Error::model("a router's score is no number"));
            }
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
            let mut order: Vec<usize> = (0..weights.len()).collect();
            // The first of equal ones, as a sort that keeps the order of equal ones has it.
            order.sort_by(|a, b| {
                scores.get(*b).partial_cmp(&scores.get(*a)).unwrap_or(core::cmp::Ordering::Equal)
            });
            order.truncate(self.shape.per_token);
            let weight = |expert: &usize| weights.get(*expert).copied().unwrap_or(0.0);
            let whole: f32 = match self.shape.normalised {
                true => order.iter().map(weight).sum(),
                false => weights.iter().sum(),
            };
            for expert in order {
                if let Some(chosen) = chosen.get_mut(expert) {
                    chosen.tokens.push(token as u32);
                    chosen.factors.push(weight(&expert) / whole);
                }
            }
        }
        Ok(chosen)
    }
}

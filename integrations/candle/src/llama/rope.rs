//! Rotary position embedding.

use crate::config::Config;
use crate::error::{Error, Result};
use candle_core::{Device, Tensor};

/// Cosines and sines of consecutive positions, `[positions, head_dim / 2]` each.
#[derive(Clone)]
pub struct RopeTable {
    cos: Tensor,
    sin: Tensor,
}

impl RopeTable {
    /// The table of `count` positions from `first` on.
    ///
    /// # Errors
    /// `BadArgument` for no positions.
    pub fn new(config: &Config, first: usize, count: usize) -> Result<Self> {
        if count == 0 {
            return Err(Error::argument("no tokens"));
        }
        let frequencies = config.rope.frequencies(config.head_dim);
        let angles = || {
            let positions = first..first.saturating_add(count);
            positions.flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
        };
        let shape = (count, frequencies.len());
        let cos: Vec<f32> = angles().map(|angle| angle.cos() as f32).collect();
        let sin: Vec<f32> = angles().map(|angle| angle.sin() as f32).collect();
        Ok(Self {
            cos: Tensor::from_vec(cos, shape, &Device::Cpu)?,
            sin: Tensor::from_vec(sin, shape, &Device::Cpu)?,
        })
    }

    /// Rotates `x`, `[1, heads, positions, head_dim]`: element i with i + head_dim / 2.
    ///
    /// # Errors
    /// `Compute`.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::rotary_emb::rope(&x.contiguous()?, &self.cos, &self.sin)?)
    }
}

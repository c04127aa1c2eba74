//! Grouped-query attention.

use super::{Norm, RopeTable};
use crate::config::Config;
use crate::error::Result;
use crate::weights::Weights;
use candle_core::{Device, Tensor};
use candle_nn::kv_cache::KvCache;

/// Positions that a cache grows by.
const GROWTH: usize = 256;

/// Keys and values of one layer.
pub struct LayerCache(KvCache);

impl LayerCache {
    /// An empty cache.
    pub(super) fn new() -> Self {
        Self(KvCache::new(2, GROWTH))
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        let parts = [self.0.k_cache().all_data(), self.0.v_cache().all_data()];
        parts.into_iter().flatten().map(|t| t.elem_count() as u64 * 4).sum()
    }
}

/// What attention does between its projections.
pub(super) struct Attention {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
}

impl Attention {
    pub(super) fn load(weights: &dyn Weights, config: &Config, prefix: &str) -> Result<Self> {
        let norm = |name: &str| match config.qk_norm {
            true => Norm::load(weights, &format!("{prefix}.{name}.weight"), config.head_dim, config.rms_eps)
                .map(Some),
            false => Ok(None),
        };
        Ok(Self {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
        })
    }

    /// Attention of the queries to all keys up to their own position; `[tokens, heads * head_dim]`.
    pub(super) fn forward(
        &self,
        [q, k, v]: [&Tensor; 3],
        rope: &RopeTable,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let tokens = q.dim(0)?;
        let split = |x: &Tensor, heads: usize, norm: Option<&Norm>| -> Result<Tensor> {
            let x = x.reshape((1, tokens, heads, self.head_dim))?;
            let x = norm.map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
            Ok(x.transpose(1, 2)?)
        };
        let q = rope.rotate(&split(q, self.heads, self.q_norm.as_ref())?)?;
        let mut k = rope.rotate(&split(k, self.kv_heads, self.k_norm.as_ref())?)?;
        let mut v = split(v, self.kv_heads, None)?.contiguous()?;
        if let Some(cache) = cache {
            (k, v) = cache.0.append(&k, &v)?;
        }
        let all = k.dim(2)?;
        let group = self.heads / self.kv_heads;
        // The query heads of a group lie one below the other over their key head.
        let q = (q * (self.head_dim as f64).powf(-0.5))?;
        let q = q.reshape((1, self.kv_heads, group * tokens, self.head_dim))?;
        let mut scores = q.matmul(&k.transpose(2, 3)?)?;
        if tokens > 1 {
            let grouped = scores.reshape((self.kv_heads * group, tokens, all))?;
            scores = grouped.broadcast_add(&causal(tokens, all)?)?;
            scores = scores.reshape((1, self.kv_heads, group * tokens, all))?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let y = weights.matmul(&v)?.reshape((self.heads, tokens, self.head_dim))?;
        Ok(y.transpose(0, 1)?.reshape((tokens, self.heads * self.head_dim))?)
    }
}

/// Minus infinity where a query would look ahead, `[tokens, all]`; the last query sees all.
fn causal(tokens: usize, all: usize) -> Result<Tensor> {
    let before = all - tokens;
    let mask: Vec<f32> = (0..tokens)
        .flat_map(|i| (0..all).map(move |j| if j > i + before { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Ok(Tensor::from_vec(mask, (tokens, all), &Device::Cpu)?)
}

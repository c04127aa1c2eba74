//! One decoder layer.

use super::attention::{Attention, LayerCache};
use super::mixture::Mixture;
use super::{Norm, RopeTable};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Linear, MatrixName, Weights};
use candle_core::Tensor;

/// Where in a layer an activation is an input of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// Before the query, key and value projections.
    Attention,
    /// Before the attention's output projection.
    AttentionOutput,
    /// Before the gate and up projections.
    Mlp,
    /// Before the down projection.
    Down,
}

impl Site {
    /// All sites, in order.
    pub const ALL: [Site; 4] = [Site::Attention, Site::AttentionOutput, Site::Mlp, Site::Down];

    /// The sites of the layers of a model: in one with a mixture, those before it.
    pub fn of(config: &Config) -> &'static [Site] {
        match config.mixture {
            Some(_) => &[Site::Attention, Site::AttentionOutput],
            None => &Self::ALL,
        }
    }

    /// The matrices that read here, by their name in a layer.
    pub fn matrices(self) -> &'static [&'static str] {
        match self {
            Site::Attention => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            Site::AttentionOutput => &["self_attn.o_proj"],
            Site::Mlp => &["mlp.gate_proj", "mlp.up_proj"],
            Site::Down => &["mlp.down_proj"],
        }
    }
}

/// Is shown the inputs of all matrices, `[tokens, inputs]`.
pub type Observe<'o> = dyn FnMut(Site, &Tensor) -> Result<()> + 'o;

/// Matrices that read the same input, and their biases.
struct Projection<'w> {
    matrices: Box<dyn Linear + 'w>,
    biases: Vec<Option<Tensor>>,
}

impl<'w> Projection<'w> {
    fn load(
        weights: &'w dyn Weights,
        layer: usize,
        site: Site,
        outputs: &[usize],
        inputs: usize,
        bias: bool,
    ) -> Result<Self> {
        let prefixes = site.matrices().iter().map(|matrix| format!("model.layers.{layer}.{matrix}"));
        let named: Vec<_> = prefixes.zip(outputs).collect();
        let matrices = named
            .iter()
            .map(|(prefix, outputs)| MatrixName { name: format!("{prefix}.weight"), outputs: **outputs });
        let biases = named.iter().map(|(prefix, outputs)| match bias {
            true => weights.vector(&format!("{prefix}.bias"), **outputs).map(Some),
            false => Ok(None),
        });
        Ok(Self {
            biases: biases.collect::<Result<_>>()?,
            matrices: weights.linear(&matrices.collect::<Vec<_>>(), inputs)?,
        })
    }

    fn forward<const N: usize>(&self, x: &Tensor) -> Result<[Tensor; N]> {
        let products = self.matrices.forward(&x.contiguous()?)?;
        let biased = products.into_iter().zip(&self.biases).map(|(y, bias)| match bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        });
        let products = biased.collect::<Result<Vec<_>>>()?;
        let found = products.len();
        products.try_into().map_err(|_| Error::model(format!("expected {N} products, found {found}")))
    }
}

/// What follows the attention.
enum Mlp<'w> {
    Dense { gate_up: Projection<'w>, down: Projection<'w> },
    Mixture(Mixture<'w>),
}

/// A decoder layer.
pub struct Block<'w> {
    attention_norm: Norm,
    qkv: Projection<'w>,
    attention: Attention,
    output: Projection<'w>,
    mlp_norm: Norm,
    mlp: Mlp<'w>,
}

impl<'w> Block<'w> {
    /// Loads layer `index`.
    ///
    /// # Errors
    /// What `weights` gives.
    pub fn load(weights: &'w dyn Weights, config: &Config, index: usize) -> Result<Self> {
        let prefix = format!("model.layers.{index}");
        let norm = |name: &str| {
            Norm::load(weights, &format!("{prefix}.{name}.weight"), config.hidden, config.rms_eps)
        };
        let project = |site: Site, outputs: &[usize], inputs: usize, bias: bool| {
            Projection::load(weights, index, site, outputs, inputs, bias)
        };
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (hidden, wide) = (config.hidden, config.intermediate);
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            qkv: project(Site::Attention, &[q, kv, kv], hidden, config.qkv_bias)?,
            attention: Attention::load(weights, config, &format!("{prefix}.self_attn"))?,
            output: project(Site::AttentionOutput, &[hidden], q, config.output_bias)?,
            mlp_norm: norm("post_attention_layernorm")?,
            mlp: match &config.mixture {
                Some(shape) => Mlp::Mixture(Mixture::load(weights, config, shape, index)?),
                None => Mlp::Dense {
                    gate_up: project(Site::Mlp, &[wide, wide], hidden, config.mlp_bias)?,
                    down: project(Site::Down, &[hidden], wide, config.mlp_bias)?,
                },
            },
        })
    }

    /// The layer's output for hidden states `x`, `[tokens, hidden]`, which follow what `cache`
    /// holds. `observe` is shown the inputs of all matrices but those of a mixture.
    ///
    /// # Errors
    /// `Compute`, and as [`Linear::forward`].
    pub fn forward(
        &self,
        x: &Tensor,
        rope: &RopeTable,
        cache: Option<&mut LayerCache>,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor> {
        let x = self.attend(x, rope, cache, observe)?;
        self.after_attention(&x, observe)
    }

    /// The first half of [`Block::forward`]: what comes before the MLP or the mixture.
    pub(crate) fn attend(
        &self,
        x: &Tensor,
        rope: &RopeTable,
        cache: Option<&mut LayerCache>,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor> {
        let input = self.attention_norm.forward(x)?;
        observe(Site::Attention, &input)?;
        let [q, k, v] = self.qkv.forward(&input)?;
        let attended = self.attention.forward([&q, &k, &v], rope, cache)?;
        observe(Site::AttentionOutput, &attended)?;
        let [output] = self.output.forward(&attended)?;
        Ok((x + output)?)
    }

    /// The second half of [`Block::forward`].
    pub(crate) fn after_attention(&self, x: &Tensor, observe: &mut Observe<'_>) -> Result<Tensor> {
        let input = self.mlp_norm.forward(x)?;
        let output = match &self.mlp {
            Mlp::Dense { gate_up, down } => {
                observe(Site::Mlp, &input)?;
                let [gate, up] = gate_up.forward(&input)?;
                let wide = (candle_nn::ops::silu(&gate)? * up)?;
                observe(Site::Down, &wide)?;
                let [output] = down.forward(&wide)?;
                output
            }
            Mlp::Mixture(mixture) => mixture.forward(&input)?,
        };
        Ok((x + output)?)
    }

    /// Whether the layer has a mixture of experts.
    pub(crate) fn is_mixture(&self) -> bool {
        matches!(self.mlp, Mlp::Mixture(_))
    }

    /// The second half of [`Block::forward`] for the tokens of several texts at once: each expert of a mixture
    /// is asked for once.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub(crate) fn mix(&self, texts: &[Tensor]) -> Result<Vec<Tensor>> {
        let all = self.after_attention(&Tensor::cat(texts, 0)?, &mut |_, _| Ok(()))?;
        let mut start = 0;
        let parts = texts.iter().map(|text| {
            let tokens = text.dim(0)?;
            let part = all.narrow(0, start, tokens)?.contiguous()?;
            start += tokens;
            Ok(part)
        });
        parts.collect()
    }
}

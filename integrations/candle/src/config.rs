//! What `config.json` says of a Llama-family model, checked.

use crate::error::{Error, Result};
use crate::weights::ExpertName;
use serde::Deserialize;

/// Largest extent that a configuration may state; weights of such a size do not exist.
const MAX_EXTENT: usize = 1 << 20;
/// Most layers that a configuration may state.
const MAX_LAYERS: usize = 4096;
/// Most experts of a layer that it may state.
const MAX_EXPERTS: usize = 4096;
/// Most positions that it may state.
const MAX_POSITIONS: usize = 1 << 30;
/// Most keys of one position in all layers: 8 MiB of keys and values.
const MAX_POSITION_KEYS: usize = 1 << 20;

/// The architecture of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Elements of a hidden state.
    pub hidden: usize,
    /// Elements between the matrices of an MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// What the root mean square is kept from zero by.
    pub rms_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has one.
    pub output_bias: bool,
    /// Whether the MLP's matrices have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised head by head (Qwen3).
    pub qk_norm: bool,
    /// The mixture of experts that each layer has in the place of an MLP (Mixtral, Qwen3-MoE).
    pub mixture: Option<Mixture>,
    /// Whether stored query and key rows are interleaved, as llama.cpp stores them.
    pub(crate) interleaved: bool,
    /// Positions that the model was made for.
    pub max_positions: usize,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that are chosen for each token.
    pub per_token: usize,
    /// Elements between the matrices of an expert.
    pub wide: usize,
    /// Whether what the chosen ones count is made to add up to 1.
    pub normalised: bool,
    /// What a layer calls it.
    pub(crate) block: &'static str,
    /// What an expert calls its gate, up and down matrix.
    pub(crate) matrices: [&'static str; 3],
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// What is done to them for long contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are scaled.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear(f64),
    /// Llama 3: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths beyond `original_positions` over this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions` over this are high frequencies.
        high_freq_factor: f64,
        /// Context that the model was first trained with.
        original_positions: f64,
    },
}

#[derive(Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawScaling>,
    rope_parameters: Option<RawScaling>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    max_position_embeddings: Option<usize>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    eos_token_id: Option<Eos>,
    num_local_experts: Option<usize>,
    num_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    moe_intermediate_size: Option<usize>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    quantization_config: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawScaling {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Eos {
    One(u32),
    Many(Vec<u32>),
}

impl Config {
    /// Parses a `config.json`.
    ///
    /// # Errors
    /// `BadModel` for a file that is no configuration or one whose numbers make no model,
    /// `Unsupported` for another architecture.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(json).map_err(|e| Error::model(format!("config.json: {e}")))?;
        let (qkv_bias, output_bias, qk_norm) = match raw.model_type.as_str() {
            "llama" | "mistral" | "mixtral" => {
                let bias = raw.attention_bias.unwrap_or(false);
                (bias, bias, false)
            }
            "qwen2" => (true, false, false),
            "qwen3" | "qwen3_moe" => {
                let bias = raw.attention_bias.unwrap_or(false);
                (bias, bias, true)
            }
            other => {
                let known = "llama, mistral, mixtral, qwen2, qwen3 or qwen3_moe";
                let found = other.escape_debug();
                return Err(Error::unsupported(format!(
                    "config.json: model_type: expected {known}, found {found}"
                )));
            }
        };
        if raw.quantization_config.is_some() {
            return Err(Error::unsupported(
                "config.json: quantization_config: convert the model to .cmf first",
            ));
        }
        let act = raw.hidden_act.as_deref().unwrap_or("silu");
        if act != "silu" && act != "swish" {
            let found = act.escape_debug();
            return Err(Error::unsupported(format!("config.json: hidden_act: expected silu, found {found}")));
        }
        let windowed =
            raw.use_sliding_window.unwrap_or(matches!(raw.model_type.as_str(), "mistral" | "mixtral"));
        if windowed && raw.sliding_window.is_some() {
            return Err(Error::unsupported(
                "config.json: sliding_window: attention within a window is not built",
            ));
        }
        let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        let extents = [
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_attention_heads", raw.num_attention_heads),
            ("num_key_value_heads", kv_heads),
            ("vocab_size", raw.vocab_size),
            ("head_dim", raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1))),
        ];
        for (name, value) in extents {
            if value == 0 || value > MAX_EXTENT {
                return Err(Error::model(format!(
                    "config.json: {name}: expected 1 to {MAX_EXTENT}, found {value}"
                )));
            }
        }
        let [.., (_, head_dim)] = extents;
        let max_positions = raw.max_position_embeddings.unwrap_or(2048);
        if max_positions == 0 || max_positions > MAX_POSITIONS {
            let expected = format!("expected 1 to {MAX_POSITIONS}, found {max_positions}");
            return Err(Error::model(format!("config.json: max_position_embeddings: {expected}")));
        }
        if raw.num_hidden_layers == 0 || raw.num_hidden_layers > MAX_LAYERS {
            let found = raw.num_hidden_layers;
            return Err(Error::model(format!(
                "config.json: num_hidden_layers: expected 1 to {MAX_LAYERS}, found {found}"
            )));
        }
        if !raw.num_attention_heads.is_multiple_of(kv_heads) {
            let heads = raw.num_attention_heads;
            return Err(Error::model(format!(
                "config.json: {heads} heads do not share {kv_heads} key and value heads evenly"
            )));
        }
        if !head_dim.is_multiple_of(2) || raw.num_attention_heads.saturating_mul(head_dim) > MAX_EXTENT {
            return Err(Error::model(format!(
                "config.json: head_dim: expected an even number, found {head_dim}"
            )));
        }
        let keys = raw.num_hidden_layers.saturating_mul(kv_heads).saturating_mul(head_dim);
        if keys > MAX_POSITION_KEYS {
            let found = format!("at most {MAX_POSITION_KEYS} keys a position in all layers, found {keys}");
            return Err(Error::model(format!("config.json: expected {found}")));
        }
        let config = Self {
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads,
            head_dim,
            vocab: raw.vocab_size,
            rms_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            rope: rope(&raw)?,
            tied: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias,
            output_bias,
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            qk_norm,
            mixture: mixture(&raw)?,
            interleaved: false,
            max_positions,
            eos: match raw.eos_token_id {
                None => Vec::new(),
                Some(Eos::One(id)) => vec![id],
                Some(Eos::Many(ids)) => ids,
            },
        };
        if !(config.rms_eps.is_finite() && config.rms_eps >= 0.0) {
            return Err(Error::model(format!(
                "config.json: rms_norm_eps: {} makes no sense",
                config.rms_eps
            )));
        }
        Ok(config)
    }

    /// Query heads that share a key and value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// The names of the matrices of the experts of layer `layer`; none where there is no mixture.
    pub fn experts(&self, layer: usize) -> Vec<ExpertName> {
        let Some(Mixture { experts, block, matrices, .. }) = &self.mixture else { return Vec::new() };
        let names = (0..*experts).map(|expert| {
            let prefix = format!("model.layers.{layer}.{block}.experts.{expert}");
            let [gate, up, down] = matrices.map(|name| format!("{prefix}.{name}.weight"));
            ExpertName { gate, up, down }
        });
        names.collect()
    }

    /// Name of the matrix that gives the logits.
    pub fn head_name(&self) -> &'static str {
        if self.tied { EMBEDDING } else { "lm_head.weight" }
    }
}

/// Name of the embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

fn mixture(raw: &Raw) -> Result<Option<Mixture>> {
    let (experts, wide, normalised, block, matrices) = match raw.model_type.as_str() {
        "mixtral" => {
            let experts = ("num_local_experts", raw.num_local_experts);
            (experts, raw.intermediate_size, true, "block_sparse_moe", ["w1", "w3", "w2"])
        }
        "qwen3_moe" => {
            if raw.decoder_sparse_step.unwrap_or(1) != 1 || raw.mlp_only_layers.iter().flatten().count() > 0 {
                return Err(Error::unsupported("config.json: layers with and without experts are not built"));
            }
            let wide = raw.moe_intermediate_size.unwrap_or(raw.intermediate_size);
            let experts = ("num_experts", raw.num_experts.or(raw.num_local_experts));
            let normalised = raw.norm_topk_prob.unwrap_or(false);
            (experts, wide, normalised, "mlp", ["gate_proj", "up_proj", "down_proj"])
        }
        _ => return Ok(None),
    };
    let within = |name: &str, value: Option<usize>, most: usize| match value {
        Some(value) if (1..=most).contains(&value) => Ok(value),
        found => Err(Error::model(format!("config.json: {name}: expected 1 to {most}, found {found:?}"))),
    };
    let experts = within(experts.0, experts.1, MAX_EXPERTS)?;
    Ok(Some(Mixture {
        experts,
        per_token: within("num_experts_per_tok", raw.num_experts_per_tok, experts)?,
        wide: within("moe_intermediate_size", Some(wide), MAX_EXTENT)?,
        normalised,
        block,
        matrices,
    }))
}

fn rope(raw: &Raw) -> Result<Rope> {
    let scaling = raw.rope_scaling.as_ref().or(raw.rope_parameters.as_ref());
    let theta =
        raw.rope_theta.or(raw.rope_parameters.as_ref().and_then(|p| p.rope_theta)).unwrap_or(10_000.0);
    let positive = |name: &str, value: Option<f64>| match value {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        found => {
            Err(Error::model(format!("config.json: {name}: expected a positive number, found {found:?}")))
        }
    };
    let theta = positive("rope_theta", Some(theta))?;
    let kind = scaling.and_then(|s| s.rope_type.as_deref()).unwrap_or("default");
    let scaling = match (kind, scaling) {
        ("default", _) | (_, None) => RopeScaling::None,
        ("linear", Some(s)) => RopeScaling::Linear(positive("rope_scaling.factor", s.factor)?),
        ("llama3", Some(s)) => {
            let low_freq_factor = positive("rope_scaling.low_freq_factor", s.low_freq_factor)?;
            let high_freq_factor = positive("rope_scaling.high_freq_factor", s.high_freq_factor)?;
            if high_freq_factor <= low_freq_factor {
                return Err(Error::model(
                    "config.json: rope_scaling: high_freq_factor is not above low_freq_factor",
                ));
            }
            RopeScaling::Llama3 {
                factor: positive("rope_scaling.factor", s.factor)?,
                low_freq_factor,
                high_freq_factor,
                original_positions: positive(
                    "rope_scaling.original_max_position_embeddings",
                    s.original_max_position_embeddings,
                )?,
            }
        }
        (other, _) => {
            let found = other.escape_debug();
            return Err(Error::unsupported(format!(
                "config.json: rope_scaling: expected default, linear or llama3, found {found}"
            )));
        }
    };
    Ok(Rope { theta, scaling })
}

impl Rope {
    /// Angle of one position for each of the `head_dim / 2` pairs.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        plain.map(|frequency| self.scaling.apply(frequency)).collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        match self {
            RopeScaling::None => frequency,
            RopeScaling::Linear(factor) => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original_positions / high_freq_factor {
                    return frequency;
                }
                if wavelength > original_positions / low_freq_factor {
                    return frequency / factor;
                }
                let smooth = (original_positions / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published parameters of Llama 3.2 1B.
    fn llama3() -> Rope {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192.0,
        };
        Rope { theta: 500_000.0, scaling }
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let plain = Rope { scaling: RopeScaling::None, ..llama3() }.frequencies(64);
        let scaled = llama3().frequencies(64);
        assert_eq!(scaled.first(), plain.first());
        let last = scaled.last().zip(plain.last());
        assert!(last.is_some_and(|(scaled, plain)| (scaled * 32.0 / plain - 1.0).abs() < 1e-12));
        let ratios: Vec<_> = scaled.iter().zip(&plain).map(|(s, p)| s / p).collect();
        assert!(ratios.is_sorted_by(|a, b| a >= b), "{ratios:?}");
        let between = ratios.iter().filter(|r| **r < 0.999 && **r > 1.001 / 32.0).count();
        // Wavelengths from 2048 to 8192 of base 500 000 in 32 pairs.
        assert_eq!(between, 3, "{ratios:?}");
    }

    #[test]
    fn linear_divides_all_frequencies() {
        let rope = Rope { theta: 100.0, scaling: RopeScaling::Linear(4.0) };
        assert_eq!(rope.frequencies(4), [0.25, 0.025]);
    }
}

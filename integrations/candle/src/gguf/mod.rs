//! Models under the names and with the row order that llama.cpp gives them.

mod tokenizer;

pub(crate) use tokenizer::{chat, text};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Linear, MatrixName, Rows, Weights};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

/// Attribute with the metadata of a GGUF file.
pub(crate) const METADATA: &str = "cmf.gguf_metadata.json";
/// Attribute with the same as they stand in the file.
pub(crate) const METADATA_BYTES: &str = "cmf.gguf_metadata.bin";
/// The embedding.
const EMBEDDING: &str = "token_embd.weight";

/// The configuration that GGUF metadata and tensors state. `shape` gives the shape of a tensor.
///
/// # Errors
/// `BadModel` for metadata that is missing or makes no model, `Unsupported` for another architecture.
pub fn config(metadata: &[u8], shape: &dyn Fn(&str) -> Option<Vec<u64>>) -> Result<Config> {
    let metadata: Value =
        serde_json::from_slice(metadata).map_err(|e| Error::model(format!("GGUF metadata: {e}")))?;
    let architecture = metadata.get("general.architecture").and_then(Value::as_str).unwrap_or("none");
    if !["llama", "qwen2", "qwen3"].contains(&architecture) {
        let found = architecture.escape_debug();
        return Err(Error::unsupported(format!(
            "GGUF architecture: expected llama, qwen2 or qwen3, found {found}"
        )));
    }
    if shape("rope_freqs.weight").is_some() {
        return Err(Error::unsupported("rope_freqs.weight: rotations by a table are not built"));
    }
    let get = |key: &str| metadata.get(format!("{architecture}.{key}")).cloned();
    let require = |key: &str| {
        get(key).ok_or_else(|| Error::model(format!("GGUF metadata: {architecture}.{key} is not there")))
    };
    let vocab = shape(EMBEDDING).and_then(|shape| shape.first().copied());
    let scaling = match get("rope.scaling.type").as_ref().and_then(Value::as_str) {
        None | Some("none") => Value::Null,
        Some(kind) => json!({ "rope_type": kind, "factor": get("rope.scaling.factor") }),
    };
    let hf = json!({
        "model_type": architecture,
        "hidden_size": require("embedding_length")?,
        "intermediate_size": require("feed_forward_length")?,
        "num_hidden_layers": require("block_count")?,
        "num_attention_heads": require("attention.head_count")?,
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length"),
        "vocab_size": vocab,
        "rms_norm_eps": require("attention.layer_norm_rms_epsilon")?,
        "rope_theta": get("rope.freq_base"),
        "rope_scaling": scaling,
        "tie_word_embeddings": shape("output.weight").is_none(),
        "attention_bias": shape("blk.0.attn_q.bias").is_some(),
        "max_position_embeddings": get("context_length"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    });
    let mut config = Config::parse(hf.to_string().as_bytes())?;
    config.output_bias = shape("blk.0.attn_output.bias").is_some();
    // For llama alone, the two halves of a head's rotation are interleaved row by row.
    config.interleaved = architecture == "llama";
    Ok(config)
}

/// llama.cpp's name of a tensor.
fn stored_name(name: &str) -> String {
    const PARTS: [(&str, &str); 11] = [
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("self_attn.q_proj.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("self_attn.o_proj.", "attn_output."),
        ("self_attn.q_norm.", "attn_q_norm."),
        ("self_attn.k_norm.", "attn_k_norm."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
    ];
    match name {
        "model.embed_tokens.weight" => return EMBEDDING.into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let part = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let found = part.and_then(|(layer, part)| {
        let (ours, theirs) = PARTS.iter().find(|(ours, _)| part.starts_with(ours))?;
        Some(format!("blk.{layer}.{theirs}{}", part.strip_prefix(ours)?))
    });
    found.unwrap_or_else(|| name.to_owned())
}

/// Weights under llama.cpp's names, as the model asks for them.
pub struct GgufNames<W> {
    inner: W,
    head_dim: usize,
    interleaved: bool,
}

impl<W> GgufNames<W> {
    /// `inner` by the names of Hugging Face.
    pub fn new(inner: W, config: &Config) -> Self {
        Self { inner, head_dim: config.head_dim, interleaved: config.interleaved }
    }

    /// Where each output of `name` is among the stored ones, if it is elsewhere: of the rotated
    /// projections, row `half * head_dim / 2 + i` of a head is stored as row `2 * i + half`.
    fn order(&self, name: &str, outputs: usize) -> Option<Vec<u32>> {
        let turned = name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.");
        let half = self.head_dim / 2;
        let place = |row: usize| {
            let (head, inside) = (row / self.head_dim, row % self.head_dim);
            (head * self.head_dim + 2 * (inside % half) + inside / half) as u32
        };
        (self.interleaved && turned).then(|| (0..outputs).map(place).collect())
    }
}

fn ordered(x: &Tensor, order: Option<&Vec<u32>>) -> Result<Tensor> {
    let Some(order) = order else { return Ok(x.clone()) };
    let axis = x.rank().saturating_sub(1);
    Ok(x.index_select(&Tensor::new(order.as_slice(), &Device::Cpu)?, axis)?)
}

impl<W: Weights> Weights for GgufNames<W> {
    fn run(&self, pass: &mut (dyn FnMut() + Send)) {
        self.inner.run(pass);
    }

    fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
        ordered(&self.inner.vector(&stored_name(name), elements)?, self.order(name, elements).as_ref())
    }

    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
        let stored = matrices.iter().map(|m| MatrixName { name: stored_name(&m.name), outputs: m.outputs });
        let inner = self.inner.linear(&stored.collect::<Vec<_>>(), inputs)?;
        let orders: Vec<_> = matrices.iter().map(|m| self.order(&m.name, m.outputs)).collect();
        Ok(match orders.iter().all(Option::is_none) {
            true => inner,
            false => Box::new(Ordered { inner, orders }),
        })
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        self.inner.rows(&stored_name(name), rows, cols)
    }

    fn stored_name(&self, name: &str) -> String {
        self.inner.stored_name(&stored_name(name))
    }
}

/// Products whose outputs are put in order.
struct Ordered<'w> {
    inner: Box<dyn Linear + 'w>,
    orders: Vec<Option<Vec<u32>>>,
}

impl Linear for Ordered<'_> {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let products = self.inner.forward(x)?;
        products.iter().zip(&self.orders).map(|(y, order)| ordered(y, order.as_ref())).collect()
    }
}

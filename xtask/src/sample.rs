//! A small made-up model: a Hugging Face folder in the Llama layout with random bf16 weights and a
//! tokenizer of bytes.

use std::path::Path;

use anyhow::{Context, Result};

const VOCABULARY: usize = 2048;
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 768;
const KEY_VALUE: usize = 64;
const LAYERS: usize = 4;

/// Writes `config.json`, `tokenizer.json` and `model.safetensors` into `dir`; always the same bytes.
pub(crate) fn write(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())
    };
    put("config.json", config().as_bytes())?;
    put("tokenizer.json", tokenizer().as_bytes())?;
    put("model.safetensors", &safetensors(&tensors())?)
}

fn config() -> String {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
    });
    format!("{config:#}\n")
}

/// One token a byte, without merges; printable bytes stand for themselves and the others for the
/// letters from U+0100 on, as byte-level BPE has them.
fn tokenizer() -> String {
    let is_itself = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let letters = (0..=0xff).filter_map(|byte| if is_itself(byte) { Some(byte) } else { others.next() });
    let words: serde_json::Map<_, _> =
        letters.filter_map(char::from_u32).zip(0..).map(|(c, id)| (c.to_string(), id.into())).collect();
    let bytes = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": &bytes,
        "decoder": &bytes,
        "model": { "type": "BPE", "vocab": words, "merges": [] },
    });
    format!("{tokenizer:#}\n")
}

/// Names and shapes; a vector for a norm, rows and columns for a matrix.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let shapes = [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KEY_VALUE, HIDDEN]),
            ("self_attn.v_proj", vec![KEY_VALUE, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ];
        tensors.extend(shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors
}

/// The safetensors layout: length of the header (u64, little-endian), header (JSON), data.
fn safetensors(tensors: &[(String, Vec<usize>)]) -> Result<Vec<u8>> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape) in tensors {
        let start = data.len();
        let is_norm = shape.len() == 1;
        let deviation = shape.last().map_or(1.0, |&inputs| 1.0 / (inputs as f32).sqrt());
        for _ in 0..shape.iter().product() {
            let weight = if is_norm { 1.0 + 0.1 * random.normal() } else { deviation * random.weight() };
            data.extend_from_slice(&bf16(weight).to_le_bytes());
        }
        let entry = serde_json::json!({
            "dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()],
        });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = u64::try_from(header.len())?.to_le_bytes().to_vec();
    file.append(&mut header);
    file.append(&mut data);
    Ok(file)
}

/// The bf16 nearest to `value` (ties to even), which must be finite.
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits + 0x7fff + ((bits >> 16) & 1);
    (rounded >> 16) as u16
}

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        high as f32 / (1_u32 << 24) as f32
    }

    /// Nearly normal with deviation 1: the sum of 12 uniform numbers, less their mean.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// Like a trained weight: normal, and one in a thousand six times as large.
    fn weight(&mut self) -> f32 {
        let outlier = self.uniform() < 0.001;
        self.normal() * if outlier { 6.0 } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_bf16() {
        assert_eq!(bf16(1.0), 0x3f80);
        assert_eq!(bf16(1.0 + 1.0 / 256.0), 0x3f80, "a tie goes to even");
        assert_eq!(bf16(1.0 + 3.0 / 256.0), 0x3f82, "a tie goes to even");
        assert_eq!(bf16(-2.0), 0xc000);
    }

    #[test]
    fn random_weights_have_unit_deviation() {
        let mut random = Random(1);
        let squares: f32 = (0..10_000).map(|_| random.normal().powi(2)).sum();
        assert!((squares / 10_000.0 - 1.0).abs() < 0.05, "mean square {}", squares / 10_000.0);
    }

    #[test]
    fn header_names_all_data() -> Result<()> {
        let tensors = tensors();
        let file = safetensors(&tensors)?;
        let elements: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let header = usize::try_from(u64::from_le_bytes(file[..8].try_into()?))?;
        assert_eq!(file.len(), 8 + header + 2 * elements);
        Ok(())
    }
}

//! A tiny random Llama.

use super::{Outcome, Place, weights};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

/// Words and width of the model.
pub struct Shape {
    pub vocab: usize,
    pub hidden: usize,
}

/// A Hugging Face directory `model` with a Llama of one layer, and a text of them.
pub fn write(place: &Place, shape: &Shape) -> Outcome {
    let Shape { vocab, hidden } = *shape;
    std::fs::create_dir_all(place.path("model"))?;
    let layer = |part: &str| format!("model.layers.0.{part}.weight");
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        (layer("input_layernorm"), vec![hidden]),
        (layer("post_attention_layernorm"), vec![hidden]),
        (layer("self_attn.q_proj"), vec![hidden, hidden]),
        (layer("self_attn.k_proj"), vec![hidden / 2, hidden]),
        (layer("self_attn.v_proj"), vec![hidden / 2, hidden]),
        (layer("self_attn.o_proj"), vec![hidden, hidden]),
        (layer("mlp.gate_proj"), vec![2 * hidden, hidden]),
        (layer("mlp.up_proj"), vec![2 * hidden, hidden]),
        (layer("mlp.down_proj"), vec![hidden, 2 * hidden]),
    ];
    let tensors: Vec<_> = shapes
        .into_iter()
        .zip(1..)
        .map(|((name, shape), seed)| {
            let values = weights(shape.iter().product(), seed);
            let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
            let bytes: Vec<u8> = values.iter().flat_map(|v| (v + offset).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    serialize_to_file(views, None, &place.path("model/model.safetensors"))?;
    let config = json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "max_position_embeddings": 64
    });
    place.write("model/config.json", config.to_string())?;
    let words: serde_json::Map<_, _> = (0..vocab).map(|i| (format!("w{i}"), i.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    });
    place.write("model/tokenizer.json", tokenizer.to_string())?;
    let text: String = (0..100).map(|i| format!("w{} ", (i * i * 7 + i / 3) % vocab)).collect();
    place.write("text.txt", text)
}

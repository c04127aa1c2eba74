//! A tiny random Llama.

use super::{Outcome, Place, weights};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

/// Words and width of the model.
pub struct Shape {
    pub vocab: usize,
    pub hidden: usize,
}

/// Which mixture of experts, and how many a layer has.
pub struct Mixture {
    pub qwen: bool,
    pub experts: usize,
    pub layers: usize,
}

/// A Hugging Face directory `model` with a Llama of one layer, and a text of them.
pub fn write(place: &Place, shape: &Shape) -> Outcome {
    write_as(place, shape, None)
}

/// The same with a mixture of experts, of which each token takes two.
pub fn write_mixture(place: &Place, shape: &Shape, mixture: &Mixture) -> Outcome {
    write_as(place, shape, Some(mixture))
}

fn write_as(place: &Place, shape: &Shape, mixture: Option<&Mixture>) -> Outcome {
    let Shape { vocab, hidden } = *shape;
    std::fs::create_dir_all(place.path("model"))?;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..mixture.map_or(1, |mixture| mixture.layers) {
        let mut add = |part: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{part}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[hidden / 2, hidden]);
        add("self_attn.v_proj", &[hidden / 2, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        let mut mlp = |prefix: &str, [gate, up, down]: [&str; 3]| {
            add(&format!("{prefix}.{gate}"), &[2 * hidden, hidden]);
            add(&format!("{prefix}.{up}"), &[2 * hidden, hidden]);
            add(&format!("{prefix}.{down}"), &[hidden, 2 * hidden]);
        };
        let llama = ["gate_proj", "up_proj", "down_proj"];
        match mixture {
            None => mlp("mlp", llama),
            Some(Mixture { qwen, experts, .. }) => {
                let (block, matrices) =
                    if *qwen { ("mlp", llama) } else { ("block_sparse_moe", ["w1", "w3", "w2"]) };
                (0..*experts).for_each(|expert| mlp(&format!("{block}.experts.{expert}"), matrices));
                add(&format!("{block}.gate"), &[*experts, hidden]);
                if *qwen {
                    add("self_attn.q_norm", &[hidden / 4]);
                    add("self_attn.k_norm", &[hidden / 4]);
                }
            }
        }
    }
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
    let mut config = json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "max_position_embeddings": 64
    });
    if let Some(Mixture { qwen, experts, layers }) = mixture {
        config["model_type"] = if *qwen { "qwen3_moe" } else { "mixtral" }.into();
        config[if *qwen { "num_experts" } else { "num_local_experts" }] = (*experts).into();
        config["num_experts_per_tok"] = 2.into();
        config["moe_intermediate_size"] = (2 * hidden).into();
        config["norm_topk_prob"] = true.into();
        config["num_hidden_layers"] = (*layers).into();
    }
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

//! Configurations and files that make no model.

mod common;

use cmf_candle::chat::{Chat, Message};
use cmf_candle::llama::Llama;
use cmf_candle::packed::PackedModel;
use cmf_candle::weights::Dense;
use cmf_candle::{AnyModel, Config, ErrorKind, Text};
use cmf_loader::{Budget, Model};
use common::{Kind, TestResult, Tiny, written};
use serde_json::{Value, json};

/// The error for a configuration in which `key` is `value`.
fn parsed(key: &str, value: Value) -> Result<Config, (ErrorKind, String)> {
    let mut config = Tiny::new(Kind::Llama, true).config();
    config[key] = value;
    Config::parse(config.to_string().as_bytes()).map_err(|e| (e.kind(), e.to_string()))
}

#[test]
fn rejects_extents_that_make_no_model() {
    let absurd = json!(u64::MAX);
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ] {
        for value in [json!(0), json!(-1), json!("8"), absurd.clone(), json!(1u64 << 40)] {
            let found = parsed(key, value.clone()).map_err(|(kind, _)| kind);
            assert_eq!(found, Err(ErrorKind::BadModel), "{key} {value}");
        }
    }
}

#[test]
fn rejects_heads_that_do_not_share_evenly() {
    assert!(parsed("num_key_value_heads", json!(3)).is_err());
    assert!(parsed("head_dim", json!(7)).is_err());
}

#[test]
fn refuses_what_is_not_built_by_name() {
    for (key, value, named) in [
        ("model_type", json!("mamba"), "mamba"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "yarn"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantization_config"),
    ] {
        let error = parsed(key, value);
        assert!(
            matches!(&error, Err((ErrorKind::Unsupported, text)) if text.contains(named)),
            "{key}: {error:?}"
        );
    }
}

#[test]
fn rejects_rotations_without_sense() {
    for scaling in [
        json!({"rope_type": "llama3", "factor": 8.0}),
        json!({"rope_type": "llama3", "factor": 0.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}),
        json!({"type": "linear"}),
    ] {
        assert!(parsed("rope_scaling", scaling.clone()).is_err(), "{scaling}");
    }
    assert!(parsed("rope_theta", json!(-1.0)).is_err());
}

#[test]
fn rejects_a_file_that_is_no_configuration() {
    for text in ["", "{}", "[]", "null", "{\"model_type\": \"llama\"}", "\u{0}"] {
        assert!(Config::parse(text.as_bytes()).is_err(), "{text}");
    }
}

/// The errors of the dense and of the packed model for weights or a configuration that were changed.
fn loaded(
    change: impl Fn(&mut Tiny),
    config: impl Fn(&mut Config),
) -> Result<[ErrorKind; 2], Box<dyn std::error::Error>> {
    let mut tiny = Tiny::new(Kind::Llama, false);
    change(&mut tiny);
    let (_directory, path) = written(&tiny.plain())?;
    let dense = AnyModel::open(&path)?;
    let mut changed = dense.card()?.config().clone();
    config(&mut changed);
    let model = Model::open(&path)?;
    let packed = PackedModel::new(&model, model.plan(Budget::Maximum)?);
    let dense = Dense(dense);
    let kinds = [Llama::load(&dense, &changed).err(), Llama::load(&packed, &changed).err()];
    let [Some(dense), Some(packed)] = kinds else { return Err("it loads".into()) };
    Ok([dense.kind(), packed.kind()])
}

#[test]
fn rejects_missing_tensors() -> TestResult {
    for name in ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"] {
        let kinds = loaded(|tiny| drop(tiny.tensors.remove(name)), |_| ())?;
        assert_eq!(kinds, [ErrorKind::BadModel; 2], "{name}");
    }
    Ok(())
}

#[test]
fn rejects_shapes_that_are_not_the_configurations() -> TestResult {
    let wide = |config: &mut Config| config.intermediate = 1 << 24;
    let tall = |config: &mut Config| config.vocab = 1 << 24;
    let deep = |config: &mut Config| config.layers = 4096;
    for change in [&wide as &dyn Fn(&mut Config), &tall, &deep] {
        assert_eq!(loaded(|_| (), change)?, [ErrorKind::BadModel; 2]);
    }
    Ok(())
}

#[test]
fn rejects_tokens_beyond_the_embedding() -> TestResult {
    let (_directory, path) = written(&Tiny::new(Kind::Llama, true).progressive())?;
    let model = Model::open(&path)?;
    let config = cmf_candle::cut::card(&model)?.config().clone();
    let packed = PackedModel::new(&model, model.plan(Budget::Maximum)?);
    let llama = Llama::load(&packed, &config)?;
    let mut cache = cmf_candle::llama::Cache::new(&config);
    for ids in [&[40u32][..], &[u32::MAX], &[]] {
        let kind = llama.hidden(ids, &mut cache).map(drop).map_err(|e| e.kind());
        assert_eq!(kind, Err(ErrorKind::BadArgument), "{ids:?}");
    }
    Ok(())
}

#[test]
fn rejects_what_is_no_tokenizer() {
    for text in ["", "{}", "[1]", "{\"model\": {\"type\": \"BPE\"}}"] {
        assert!(Text::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn template_that_does_not_end_is_an_error() -> TestResult {
    let template = "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}";
    let config = json!({"chat_template": template}).to_string();
    let chat = Chat::parse(config.as_bytes(), None)?;
    assert!(chat.prompt(&[]).is_err());
    Ok(())
}

#[test]
fn template_sees_messages_and_python_methods() -> TestResult {
    let template = "{{ bos_token }}{% for m in messages %}\n[{{ m.role.upper() }}] {{ m['content'].strip() }}{% endfor %}{% if add_generation_prompt %} >{% endif %}";
    let config = json!({"chat_template": template, "bos_token": {"content": "<s>"}}).to_string();
    let chat = Chat::parse(config.as_bytes(), None)?;
    let message = Message { role: "user".into(), content: " hi ".into() };
    assert_eq!(chat.prompt(&[message])?, "<s>[USER] hi >");
    Ok(())
}

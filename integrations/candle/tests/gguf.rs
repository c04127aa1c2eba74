//! The same model under llama.cpp's names, with its interleaved query and key rows.

#![allow(clippy::expect_used, reason = "a model that cannot be made fails the test")]

mod common;

use cmf_candle::llama::{Cache, Llama};
use cmf_candle::packed::PackedModel;
use cmf_candle::{Card, ErrorKind, cut};
use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry};
use cmf_format::{ArchiveBuilder, DType};
use cmf_loader::{Budget, Model};
use common::{
    HEAD_DIM, HEADS, HIDDEN, KV_HEADS, Kind, LAYERS, TestResult, Tiny, WIDE, difference, ids, written,
};
use serde_json::{Value, json};

/// llama.cpp's name of a tensor.
fn renamed(name: &str) -> String {
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}

/// Rows as llama.cpp's converter turns them: `reshape(heads, 2, dim / 2, cols).swapaxes(1, 2)`.
fn interleaved(values: &[f32], cols: usize) -> Vec<f32> {
    let half = HEAD_DIM / 2;
    let rows = values.len() / cols;
    let row =
        |head: usize, part: usize, i: usize| &values[(head * HEAD_DIM + part * half + i) * cols..][..cols];
    (0..rows / HEAD_DIM)
        .flat_map(|head| (0..half).flat_map(move |i| (0..2).map(move |part| (head, part, i))))
        .flat_map(|(head, part, i)| row(head, part, i).to_vec())
        .collect()
}

fn metadata() -> Value {
    json!({
        "general.architecture": "llama", "llama.embedding_length": HIDDEN, "llama.feed_forward_length": WIDE,
        "llama.block_count": LAYERS, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS, "llama.attention.key_length": HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0
    })
}

fn builder(tiny: &Tiny) -> ArchiveBuilder {
    let mut builder = ArchiveBuilder::default();
    for (name, (shape, values)) in &tiny.tensors {
        let turned = name.contains("q_proj") || name.contains("k_proj");
        let values = if turned { interleaved(values, HIDDEN) } else { values.clone() };
        let (rows, cols) = if shape.len() == 2 { (shape[0], shape[1]) } else { (1, shape[0]) };
        let node = dense::pack_values(DType::F32, rows as u64, cols as u64, &values).expect("f32 values");
        builder.tensor(TensorEntry {
            name: renamed(name),
            dtype: DType::F32,
            shape: shape.iter().map(|n| *n as u64).collect(),
            content: Content::Matrices(vec![MatrixEntry::from_node(node)]),
        });
    }
    builder.attribute("cmf.gguf_metadata.json", "application/json", metadata().to_string().into_bytes());
    let entries = metadata().as_object().map_or(0, serde_json::Map::len);
    let raw: Vec<u8> = (0..entries).flat_map(|i| entry(&format!("key{i}"))).collect();
    builder.attribute("cmf.gguf_metadata.bin", "application/octet-stream", raw);
    builder
}

/// A key with a `u32` value, as GGUF stores it.
fn entry(key: &str) -> Vec<u8> {
    let mut bytes = (key.len() as u64).to_le_bytes().to_vec();
    bytes.extend(key.as_bytes());
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(7u32.to_le_bytes());
    bytes
}

#[test]
fn model_of_llama_cpp_is_the_same_model() -> TestResult {
    let tiny = Tiny::new(Kind::Llama, true);
    let (_directory, path) = written(&builder(&tiny))?;
    let model = Model::open(&path)?;
    let card = cut::card(&model)?;
    let packed = PackedModel::new(&model, model.plan(Budget::Maximum)?);
    let weights = card.weights(&packed);
    let llama = Llama::load(weights.as_ref(), card.config())?;
    let found = llama.logits(&llama.hidden(&ids(12), &mut Cache::new(card.config()))?)?;
    let expected = tiny.forward(&ids(12), &mut |_, _| ());
    let difference = difference(&found, expected.last().ok_or("no logits")?);
    assert!(difference < 1e-5, "{difference}");
    assert_eq!(weights.stored_name("model.layers.1.mlp.up_proj.weight"), "blk.1.ffn_up.weight");
    assert_eq!(card.text().err().map(|e| e.kind()), Some(ErrorKind::Unsupported));
    Ok(())
}

#[test]
fn rejects_metadata_that_make_no_model() {
    for (key, value) in [
        ("general.architecture", json!("mamba")),
        ("general.architecture", json!(7)),
        ("llama.attention.head_count", json!(0)),
        ("llama.block_count", Value::Null),
        ("llama.embedding_length", json!("wide")),
        ("llama.rope.scaling.type", json!("yarn")),
    ] {
        let mut changed = metadata();
        changed[key] = value.clone();
        let file =
            |name: &str| Ok((name == "cmf.gguf_metadata.json").then(|| changed.to_string().into_bytes()));
        let shape = |name: &str| (name == "token_embd.weight").then(|| vec![40, HIDDEN as u64]);
        assert!(Card::read(&file, &shape).is_err(), "{key} {value}");
    }
}

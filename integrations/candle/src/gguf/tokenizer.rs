//! The tokenizer that GGUF metadata state: byte-level BPE, as `tokenizer.json` would have it.

use crate::chat::Chat;
use crate::error::{Error, Result};
use crate::text::Text;
use cmf_converters::gguf::{Metadata, Value};
use serde_json::json;

/// Kind of a token that is taken as such in a text and not shown: control.
const CONTROL: u64 = 3;
/// Kind of a token that is taken as such in a text: user-defined.
const USER_DEFINED: u64 = 4;

/// How Llama 3 splits a text before its bytes are paired.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 does.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn text_of(metadata: &Metadata, key: &str) -> Option<String> {
    match metadata.get(key)? {
        Value::String(text) => Some(text.to_str().into_owned()),
        _ => None,
    }
}

fn texts_of(metadata: &Metadata, key: &str) -> Result<Vec<String>> {
    let Some(Value::Array(array)) = metadata.get(key) else {
        return Err(Error::model(format!("GGUF metadata: {key} is not there")));
    };
    let texts = array.iter().map(|value| match value {
        Value::String(text) => Ok(text.to_str().into_owned()),
        _ => Err(Error::model(format!("GGUF metadata: {key}: expected strings"))),
    });
    texts.collect()
}

/// The tokenizer.
///
/// # Errors
/// `Unsupported` for another kind than byte-level BPE and for splits that are not known here,
/// `BadModel` for tables that make no tokenizer.
pub(crate) fn text(metadata: &Metadata) -> Result<Text> {
    let model = text_of(metadata, "tokenizer.ggml.model").unwrap_or_default();
    if model != "gpt2" {
        let found = model.escape_debug();
        return Err(Error::unsupported(format!("tokenizer.ggml.model: expected gpt2, found {found}")));
    }
    let tokens = texts_of(metadata, "tokenizer.ggml.tokens")?;
    let merges = texts_of(metadata, "tokenizer.ggml.merges")?;
    let kinds: Vec<u64> = match metadata.get("tokenizer.ggml.token_type") {
        Some(Value::Array(array)) => array.iter().map(|kind| kind.as_u64().unwrap_or(0)).collect(),
        _ => Vec::new(),
    };
    let bytes = |split: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let pre = text_of(metadata, "tokenizer.ggml.pre").unwrap_or_default();
    let steps = match pre.as_str() {
        "smollm" => vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)],
        "gpt-2" | "default" | "" => vec![bytes(true)],
        "llama-bpe" | "llama3" | "llama-v3" => vec![split(LLAMA3), bytes(false)],
        "qwen2" => vec![split(QWEN2), bytes(false)],
        other => {
            let found = other.escape_debug();
            return Err(Error::unsupported(format!("tokenizer.ggml.pre: {found} is not known here")));
        }
    };
    let special =
        tokens.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| [CONTROL, USER_DEFINED].contains(kind));
    let added: Vec<_> = special
        .map(|(id, (content, kind))| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL})
        })
        .collect();
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let normalizer = if pre == "qwen2" { json!({"type": "NFC"}) } else { json!(null) };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": null,
        "decoder": bytes(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.starts_with("llama"), "vocab": vocab, "merges": merges
        }
    });
    Text::parse(tokenizer.to_string().as_bytes())
}

/// The chat template.
///
/// # Errors
/// As [`Chat::parse`].
pub(crate) fn chat(metadata: &Metadata) -> Result<Chat> {
    let token = |key: &str| {
        let id = usize::try_from(metadata.get(key)?.as_u64()?).ok()?;
        let Value::Array(tokens) = metadata.get("tokenizer.ggml.tokens")? else { return None };
        match tokens.iter().nth(id)? {
            Value::String(text) => Some(text.to_str().into_owned()),
            _ => None,
        }
    };
    let config = json!({
        "chat_template": text_of(metadata, "tokenizer.chat_template"),
        "bos_token": token("tokenizer.ggml.bos_token_id"),
        "eos_token": token("tokenizer.ggml.eos_token_id"),
    });
    Chat::parse(config.to_string().as_bytes(), None)
}

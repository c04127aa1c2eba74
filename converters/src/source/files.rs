//! Which files beside the weights travel with a model.

use super::AttributeFile;
use crate::error::{Error, Result};
use std::path::Path;

/// Attribute with the `__metadata__` of a safetensors file.
pub(crate) const SAFETENSORS_METADATA: &str = "cmf.safetensors_metadata.json";

/// Largest file that is carried: tokenizers reach 33 MB.
const LIMIT_BYTES: u64 = 256 << 20;

/// Whether an attribute was made by a conversion and is no file of the model.
pub(crate) fn is_own(name: &str) -> bool {
    name.starts_with("cmf.")
}

/// Media type by ending, for the files that are carried; `None` for those that are not.
fn media_type(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    if lower.starts_with('.') || lower.ends_with(".index.json") || is_own(&lower) {
        return None;
    }
    if ["license", "licence", "notice"].iter().any(|stem| lower.starts_with(stem)) {
        return Some("text/plain");
    }
    Some(match lower.rsplit_once('.')?.1 {
        "json" | "jsonl" => "application/json",
        "md" => "text/markdown",
        "txt" | "jinja" | "bpe" | "tiktoken" | "yaml" | "yml" | "toml" => "text/plain",
        "model" | "spm" | "vocab" => "application/octet-stream",
        _ => return None,
    })
}

/// The files of `directory` that travel with the model, ascending in name.
pub(super) fn carried(directory: &Path) -> Result<Vec<AttributeFile>> {
    let failed = |e| Error::io("cannot be read", e).file(directory);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let Some(media_type) = media_type(name) else { continue };
        let metadata = std::fs::metadata(&path).map_err(|e| Error::io("cannot be read", e).file(&path))?;
        if !metadata.is_file() {
            continue;
        }
        if metadata.len() > LIMIT_BYTES {
            return Err(Error::limit("file length")
                .file(&path)
                .expected(format_args!("at most {LIMIT_BYTES}"))
                .found(metadata.len()));
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io("cannot be read", e).file(&path))?;
        found.push(AttributeFile { name: name.into(), media_type: media_type.into(), bytes });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_what_a_model_needs_and_no_weights() {
        for name in ["config.json", "tokenizer.model", "merges.txt", "LICENSE", "chat_template.jinja"] {
            assert!(media_type(name).is_some(), "{name}");
        }
        for name in
            ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", ".gitattributes"]
        {
            assert!(media_type(name).is_none(), "{name}");
        }
    }
}

//! Importance matrices of llama.cpp: the mean square of each input of each weight.
//!
//! The older form is a list of entries (`i32` length, name, `i32` calls, `i32` values, then f32 sums
//! of squares, already divided by tokens and multiplied by calls) behind an `i32` count; the newer
//! is a GGUF file with tensors `NAME.in_sum2` and `NAME.counts`.

use super::{Moments, SecondMoments};
use crate::error::{Error, Result};
use crate::gguf::GgufSource;
use crate::source::{InputFile, input_file};
use std::collections::HashMap;
use std::path::Path;

/// Most bytes of a file in the older form.
const LIMIT_BYTES: u64 = 1 << 30;

/// The diagonals of all weights, by llama.cpp's names.
pub(super) struct Importance {
    means: HashMap<String, Vec<f32>>,
    inputs: Vec<InputFile>,
}

impl Importance {
    pub(super) fn open(path: &Path, is_gguf: bool) -> Result<Self> {
        let inputs = vec![input_file(path)?];
        let means = match is_gguf {
            true => from_gguf(path)?,
            false => {
                if inputs.iter().any(|i| i.bytes > LIMIT_BYTES) {
                    return Err(Error::limit("importance matrix")
                        .file(path)
                        .expected(format_args!("at most {LIMIT_BYTES} bytes")));
                }
                let bytes = std::fs::read(path).map_err(|e| Error::io("cannot be read", e).file(path))?;
                from_entries(&bytes).ok_or_else(|| {
                    Error::bad_file("second moments")
                        .file(path)
                        .expected("a .cmf of `cmf calibrate` or an importance matrix of llama.cpp")
                })?
            }
        };
        Ok(Self { means, inputs })
    }
}

impl Moments for Importance {
    fn of(&self, name: &str, cols: usize) -> Result<Option<SecondMoments>> {
        let found = self.means.get(name).or_else(|| self.means.get(&llama_name(name)?));
        found.map(|means| SecondMoments::Diagonal(means.clone()).checked(name, cols)).transpose()
    }

    fn sensitivity(&self, _name: &str) -> Option<f64> {
        None
    }

    fn row_weights(&self, _name: &str, _rows: usize) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }

    fn inputs(&self) -> &[InputFile] {
        &self.inputs
    }
}

fn from_gguf(path: &Path) -> Result<HashMap<String, Vec<f32>>> {
    let source = GgufSource::open(path)?;
    let mut means = HashMap::new();
    for tensor in source.tensors() {
        let Some(name) = tensor.name().strip_suffix(".in_sum2") else { continue };
        let sums = floats(&source, tensor.name(), tensor.rows())?;
        let counts_name = format!("{name}.counts");
        let counts = match source.get(&counts_name) {
            Some(counts) => floats(&source, &counts_name, counts.rows())?,
            None => {
                return Err(Error::bad_file("importance matrix")
                    .file(path)
                    .tensor(&counts_name)
                    .expected("counts"));
            }
        };
        // Experts have a row and a count each; a weight is one matrix.
        if let [count] = counts.as_slice() {
            let count = if *count > 0.0 { *count } else { 1.0 };
            means.insert(name.to_owned(), sums.iter().map(|s| s / count).collect());
        }
    }
    Ok(means)
}

fn floats(source: &GgufSource, name: &str, rows: u64) -> Result<Vec<f32>> {
    let mut bytes = Vec::new();
    let ty = source.get(name).map(crate::gguf::TensorInfo::ty);
    if ty != Some(crate::gguf::GgmlType::F32) {
        return Err(Error::bad_file("importance matrix").tensor(name).expected("f32"));
    }
    source.read_rows(name, 0..rows, &mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// The entries of the older form; `None` when the bytes are none.
fn from_entries(bytes: &[u8]) -> Option<HashMap<String, Vec<f32>>> {
    let mut rest = bytes;
    let mut means = HashMap::new();
    for _ in 0..count(&mut rest)? {
        let length = count(&mut rest)?;
        let (name, after) = rest.split_at_checked(length)?;
        rest = after;
        let calls = count(&mut rest)?.max(1) as f32;
        let values = count(&mut rest)?;
        let (values, after) = rest.split_at_checked(values.checked_mul(4)?)?;
        rest = after;
        let values = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) / calls).collect();
        means.insert(std::str::from_utf8(name).ok()?.to_owned(), values);
    }
    Some(means)
}

fn count(rest: &mut &[u8]) -> Option<usize> {
    let (bytes, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    usize::try_from(i32::from_le_bytes(*bytes)).ok()
}

/// llama.cpp's name of a weight that Hugging Face calls `name`.
fn llama_name(name: &str) -> Option<String> {
    let flat = match name {
        "model.embed_tokens.weight" | "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(flat) = flat {
        return Some(flat.into());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let part = match part {
        "self_attn.q_proj.weight" => "attn_q",
        "self_attn.k_proj.weight" => "attn_k",
        "self_attn.v_proj.weight" => "attn_v",
        "self_attn.o_proj.weight" => "attn_output",
        "mlp.gate_proj.weight" => "ffn_gate",
        "mlp.up_proj.weight" => "ffn_up",
        "mlp.down_proj.weight" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<u8> {
        let mut bytes = 1i32.to_le_bytes().to_vec();
        let name = b"blk.3.attn_q.weight";
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name);
        bytes.extend(2i32.to_le_bytes());
        bytes.extend(3i32.to_le_bytes());
        [2.0f32, 4.0, 8.0].iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        bytes
    }

    #[test]
    fn entries_are_found_by_either_name() -> Result<()> {
        let means = from_entries(&entries()).ok_or_else(|| Error::bad_argument("entries"))?;
        let importance = Importance { means, inputs: Vec::new() };
        let expected = Some(SecondMoments::Diagonal(vec![1.0, 2.0, 4.0]));
        assert_eq!(importance.of("blk.3.attn_q.weight", 3)?, expected);
        assert_eq!(importance.of("model.layers.3.self_attn.q_proj.weight", 3)?, expected);
        assert_eq!(importance.of("model.layers.4.self_attn.q_proj.weight", 3)?, None);
        assert!(importance.of("blk.3.attn_q.weight", 4).is_err());
        Ok(())
    }

    #[test]
    fn every_cut_is_refused() {
        let whole = entries();
        for end in 0..whole.len() {
            assert!(from_entries(&whole[..end]).is_none(), "{end}");
        }
        let mut negative = whole.clone();
        negative[4..8].copy_from_slice(&(-1i32).to_le_bytes());
        assert!(from_entries(&negative).is_none());
    }
}

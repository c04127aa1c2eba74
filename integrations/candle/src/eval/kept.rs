//! A baseline's states, kept in a file: of all that a comparison computes, most is the baseline's
//! layers, and they give the same every time.

use super::States;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::output;
use crate::text::Windows;
use candle_core::{Device, Tensor};
use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry};
use cmf_format::{ArchiveBuilder, DType, WriteOptions};
use cmf_loader::{Levels, Model};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the tensor.
const STATES: &str = "states";
/// Name of the attribute that says what they are.
const KEY: &str = "cmf.states.json";

/// What states depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// BLAKE3 of names, lengths and times of the model's files.
    model_blake3: String,
    /// BLAKE3 of the tokens.
    tokens_blake3: String,
    context: usize,
}

impl Key {
    /// The key of `windows` through the model of which `fingerprint` tells.
    pub fn new(fingerprint: &str, windows: &Windows) -> Self {
        let mut tokens = blake3::Hasher::new();
        for id in windows.iter().flatten() {
            tokens.update(&id.to_le_bytes());
        }
        Self {
            model_blake3: blake3::hash(fingerprint.as_bytes()).to_hex().to_string(),
            tokens_blake3: tokens.finalize().to_hex().to_string(),
            context: windows.context(),
        }
    }
}

/// The states that the file at `path` holds for `key`; `None` when there is no file, or one of other
/// states.
///
/// # Errors
/// `BadModel` for a damaged file or one that holds something else, `Io`.
pub fn load(path: &Path, key: &Key, config: &Config, windows: &Windows) -> Result<Option<States>> {
    if !path.exists() {
        return Ok(None);
    }
    let model = Model::open(path)?;
    let wrong = || Error::model(format!("{}: holds no states", path.display()));
    let json = model.attribute(KEY).ok_or_else(wrong)?;
    if serde_json::from_slice::<Key>(&json.bytes()?).ok().as_ref() != Some(key) {
        return Ok(None);
    }
    let (_, scored) = super::scored(windows.context());
    let rows = scored.saturating_mul(windows.iter().len());
    let tensor = model.tensor(STATES).ok_or_else(wrong)?;
    if tensor.shape() != [rows as u64, config.hidden as u64] {
        return Err(wrong());
    }
    let mut values = vec![0.0; rows.saturating_mul(config.hidden)];
    tensor.decode(Levels::All, &mut values)?;
    let windows = values.chunks_exact(scored.saturating_mul(config.hidden).max(1));
    let windows = windows.map(|part| Ok(Tensor::from_slice(part, (scored, config.hidden), &Device::Cpu)?));
    Ok(Some(States(windows.collect::<Result<_>>()?)))
}

/// Keeps `states` in a file, in the place of what it held.
///
/// # Errors
/// `BadArgument` for a file that holds something else, `Io`.
pub fn save(path: &Path, key: &Key, states: &States) -> Result<()> {
    if path.exists() && Model::open(path)?.attribute(KEY).is_none() {
        return Err(Error::argument(format!("{}: holds no states", path.display())));
    }
    let all = Tensor::cat(&states.0, 0)?;
    let (rows, cols) = all.dims2()?;
    let values = all.flatten_all()?.to_vec1::<f32>()?;
    let node = dense::pack_values(DType::F32, rows as u64, cols as u64, &values)?;
    let mut builder = ArchiveBuilder::new(WriteOptions::default());
    builder.tensor(TensorEntry {
        name: STATES.into(),
        dtype: DType::F32,
        shape: vec![rows as u64, cols as u64],
        content: Content::Matrices(vec![MatrixEntry::from_node(node)]),
    });
    let json = serde_json::to_vec_pretty(key).map_err(|e| Error::argument(e.to_string()))?;
    builder.attribute(KEY, "application/json", json);
    let bytes = builder.to_vec()?;
    output::write(path, true, |file| std::io::Write::write_all(file, &bytes))
}

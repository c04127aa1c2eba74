//! Export to safetensors and to a Hugging Face directory.

use crate::convert::output::{check_free, rename, write_synced};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::source::{Source, files};
use cmf_format::DType;
use serde_json::{Map, Value, json};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes of elements read at a time.
const STEP_BYTES: u64 = 4 << 20;

/// Settings of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Element type of all floating-point tensors; each tensor's own without it.
    pub dtype: Option<DType>,
    /// Replaces an output that exists.
    pub force: bool,
}

/// What an export wrote.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ExportReport {
    /// Files, ascending in name.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Tensors.
    pub tensors: usize,
}

/// Writes the tensors of `source` as one safetensors file at `output`, through a temporary file.
///
/// `progress` is called with bytes written and in all.
///
/// # Errors
/// `BadArgument` when the output exists and is not to be replaced, `Unsupported` for an element
/// type that safetensors does not have, `Io`, and what reading the source gives.
pub fn export_safetensors(
    source: &dyn Source,
    output: &Path,
    options: &ExportOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<ExportReport> {
    check_free(output, options.force)?;
    let (header, total) = header(source, options)?;
    let temporary = Temporary::beside(output)?;
    let mut failure = None;
    let written = write_synced(&temporary.0, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        write_tensors(source, options, out, total, progress).map_err(|e| {
            let text = e.to_string();
            failure = Some(e);
            io::Error::other(text)
        })
    });
    if let Some(error) = failure {
        return Err(error);
    }
    written?;
    rename(&temporary.0, output)?;
    Ok(ExportReport {
        files: vec![output.to_path_buf()],
        file_bytes: 8 + header.len() as u64 + total,
        tensors: source.tensors().len(),
    })
}

/// Writes a Hugging Face directory: `model.safetensors` and the files that came with the model,
/// as they were.
///
/// # Errors
/// As [`export_safetensors`].
pub fn export_directory(
    source: &dyn Source,
    output: &Path,
    options: &ExportOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<ExportReport> {
    if output.exists() && !output.is_dir() {
        return Err(Error::bad_argument("exists and is no folder").file(output));
    }
    let attributes: Vec<_> = source.attributes()?.into_iter().filter(|a| !files::is_own(&a.name)).collect();
    for attribute in &attributes {
        check_free(&output.join(&attribute.name), options.force)?;
    }
    std::fs::create_dir_all(output).map_err(|e| Error::io("cannot be made", e).file(output))?;
    let mut report = export_safetensors(source, &output.join("model.safetensors"), options, progress)?;
    for attribute in attributes {
        let path = output.join(&attribute.name);
        let temporary = Temporary::beside(&path)?;
        write_synced(&temporary.0, |out| out.write_all(&attribute.bytes))?;
        rename(&temporary.0, &path)?;
        report.file_bytes += attribute.bytes.len() as u64;
        report.files.push(path);
    }
    report.files.sort();
    Ok(report)
}

/// The element type that a tensor is written in.
fn written_dtype(dtype: DType, options: &ExportOptions) -> DType {
    match options.dtype {
        Some(wanted) if dtype.is_float() => wanted,
        _ => dtype,
    }
}

/// The header, padded so that data begins at a multiple of 8, and the bytes of data.
fn header(source: &dyn Source, options: &ExportOptions) -> Result<(Vec<u8>, u64)> {
    let mut entries = Map::new();
    let metadata = source.attributes()?.into_iter().find(|a| a.name == files::SAFETENSORS_METADATA);
    let metadata = match metadata {
        Some(attribute) => serde_json::from_slice(&attribute.bytes)
            .map_err(|e| Error::bad_file(format!("attribute {}: {e}", attribute.name)).caused_by(e))?,
        None => json!({ "format": "pt" }),
    };
    entries.insert("__metadata__".into(), metadata);
    let mut end = 0u64;
    for tensor in source.tensors() {
        let dtype = written_dtype(tensor.dtype, options);
        let overflow = || Error::limit("tensor is too large").tensor(&tensor.name);
        let bytes = tensor.elements().and_then(|n| n.checked_mul(dtype.bytes() as u64)).ok_or_else(overflow)?;
        let start = end;
        end = end.checked_add(bytes).ok_or_else(overflow)?;
        let name = dtype.safetensors_name();
        let entry = json!({ "dtype": name, "shape": tensor.shape, "data_offsets": [start, end] });
        if entries.insert(tensor.name.clone(), entry).is_some() {
            return Err(Error::unsupported("safetensors keeps this name for itself").tensor(&tensor.name));
        }
    }
    let mut header = serde_json::to_vec(&Value::Object(entries)).map_err(|e| Error::limit(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok((header, end))
}

fn write_tensors(
    source: &dyn Source,
    options: &ExportOptions,
    out: &mut impl Write,
    total: u64,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<()> {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    let mut done = 0;
    for (i, tensor) in source.tensors().iter().enumerate() {
        let elements = tensor.elements().unwrap_or(0);
        if elements == 0 {
            continue;
        }
        let dtype = written_dtype(tensor.dtype, options);
        let cols = Geometry::of(&tensor.shape).cols.max(1);
        let row_bytes = cols.saturating_mul(tensor.dtype.bytes() as u64);
        let step = (STEP_BYTES / row_bytes).max(1).saturating_mul(cols);
        let mut start = 0;
        while start < elements {
            let end = start.saturating_add(step).min(elements);
            if dtype == tensor.dtype {
                source.read_elements(i, start..end, &mut bytes)?;
            } else {
                source.read_values(i, start..end, &mut values)?;
                bytes = dtype.encode(&values).map_err(|e| Error::unsupported(e.to_string()).tensor(&tensor.name))?;
            }
            out.write_all(&bytes).map_err(|e| Error::io("cannot be written", e).tensor(&tensor.name))?;
            done += bytes.len() as u64;
            progress(done, total);
            start = end;
        }
    }
    Ok(())
}

/// A file that is removed unless it was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn beside(output: &Path) -> Result<Self> {
        let name = output
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| Error::bad_argument("is no file name").file(output))?;
        Ok(Self(output.with_file_name(format!(".{name}.{}.partial", std::process::id()))))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when it took its name.
        let _ = std::fs::remove_file(&self.0);
    }
}

//! Export to safetensors and to a Hugging Face directory.

use crate::convert::output::{check_free, rename, write_synced};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::source::{Source, TensorInfo, files};
use cmf_format::DType;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes of elements read at a time.
const STEP_BYTES: u64 = 4 << 20;

/// Name of the weights in a Hugging Face directory.
const WEIGHTS: &str = "model.safetensors";

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
    let temporary = Temporary::file_beside(output)?;
    let report = write_safetensors(source, &temporary.path, output, options, progress)?;
    rename(&temporary.path, output)?;
    Ok(report)
}

/// Writes the file that is to be called `output` to `temporary`.
fn write_safetensors(
    source: &dyn Source,
    temporary: &Path,
    output: &Path,
    options: &ExportOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<ExportReport> {
    let order = order(source, options);
    let (header, total) = header(source, &order, options)?;
    let mut failure = None;
    let written = write_synced(temporary, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        write_tensors(source, &order, options, out, total, progress).map_err(|e| {
            let text = e.to_string();
            failure = Some(e);
            io::Error::other(text)
        })
    });
    if let Some(error) = failure {
        return Err(error);
    }
    written?;
    Ok(ExportReport {
        files: vec![output.to_path_buf()],
        file_bytes: 8 + header.len() as u64 + total,
        tensors: source.tensors().len(),
    })
}

/// Writes a Hugging Face directory: `model.safetensors` and the files that came with the model,
/// as they were. A new directory appears when it is whole; in one that exists, each file does.
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
        if attribute.name == WEIGHTS {
            return Err(Error::unsupported(format!("attribute `{WEIGHTS}` has the name of the weights")));
        }
        check_free(&output.join(&attribute.name), options.force)?;
    }
    check_free(&output.join(WEIGHTS), options.force)?;
    // A directory that is not there yet is filled aside and then takes its name.
    let aside = match output.exists() {
        true => None,
        false => Some(Temporary::directory_beside(output)?),
    };
    let folder = aside.as_ref().map_or(output, |aside| &aside.path);
    let put = |name: &str, write: &mut dyn FnMut(&Path) -> Result<ExportReport>| {
        let path = folder.join(name);
        let temporary = Temporary::file_beside(&path)?;
        let report = write(&temporary.path)?;
        rename(&temporary.path, &path)?;
        Ok(report)
    };
    let target = output.join(WEIGHTS);
    let mut report = put(WEIGHTS, &mut |path| write_safetensors(source, path, &target, options, progress))?;
    for attribute in attributes {
        let own = put(&attribute.name, &mut |path| {
            write_synced(path, |out| out.write_all(&attribute.bytes))?;
            let (files, file_bytes) = (vec![output.join(&attribute.name)], attribute.bytes.len() as u64);
            Ok(ExportReport { files, file_bytes, tensors: 0 })
        })?;
        report.file_bytes += own.file_bytes;
        report.files.extend(own.files);
    }
    if let Some(aside) = &aside {
        rename(&aside.path, output)?;
    }
    report.files.sort();
    Ok(report)
}

/// Tensors in the order in which the safetensors crate lays them out, so that each is aligned:
/// wide element types first, then by name.
fn order(source: &dyn Source, options: &ExportOptions) -> Vec<usize> {
    let rank = |tensor: &TensorInfo| {
        let name = Value::from(written_dtype(tensor.dtype, options).safetensors_name());
        Reverse(serde_json::from_value::<safetensors::Dtype>(name).ok())
    };
    let mut order: Vec<usize> = (0..source.tensors().len()).collect();
    order.sort_by_key(|i| source.tensors().get(*i).map(|tensor| (rank(tensor), &tensor.name)));
    order
}

/// The element type that a tensor is written in.
fn written_dtype(dtype: DType, options: &ExportOptions) -> DType {
    match options.dtype {
        Some(wanted) if dtype.is_float() => wanted,
        _ => dtype,
    }
}

/// The header, padded so that data begins at a multiple of 8, and the bytes of data.
fn header(source: &dyn Source, order: &[usize], options: &ExportOptions) -> Result<(Vec<u8>, u64)> {
    let mut entries = Map::new();
    let metadata = source.attributes()?.into_iter().find(|a| a.name == files::SAFETENSORS_METADATA);
    let metadata = match metadata {
        Some(attribute) => serde_json::from_slice(&attribute.bytes)
            .map_err(|e| Error::bad_file(format!("attribute {}: {e}", attribute.name)).caused_by(e))?,
        None => json!({ "format": "pt" }),
    };
    entries.insert("__metadata__".into(), metadata);
    let mut end = 0u64;
    for tensor in order.iter().filter_map(|i| source.tensors().get(*i)) {
        let dtype = written_dtype(tensor.dtype, options);
        let overflow = || Error::limit("tensor is too large").tensor(&tensor.name);
        let bytes =
            tensor.elements().and_then(|n| n.checked_mul(dtype.bytes() as u64)).ok_or_else(overflow)?;
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
    order: &[usize],
    options: &ExportOptions,
    out: &mut impl Write,
    total: u64,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<()> {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    let mut done = 0;
    for &i in order {
        let Some(tensor) = source.tensors().get(i) else { continue };
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
                bytes = dtype
                    .encode(&values)
                    .map_err(|e| Error::unsupported(e.to_string()).tensor(&tensor.name))?;
            }
            out.write_all(&bytes).map_err(|e| Error::io("cannot be written", e).tensor(&tensor.name))?;
            done += bytes.len() as u64;
            progress(done, total);
            start = end;
        }
    }
    Ok(())
}

/// A file or directory that is removed unless it was renamed. What a killed process left under
/// its name is replaced.
struct Temporary {
    path: PathBuf,
    /// Locked as long as the file is written.
    lock: Option<File>,
}

impl Temporary {
    fn path_beside(output: &Path) -> Result<PathBuf> {
        let name = output.file_name().and_then(|n| n.to_str());
        let name = name.ok_or_else(|| Error::bad_argument("is no file name").file(output))?;
        Ok(output.with_file_name(format!(".{name}.partial")))
    }

    fn file_beside(output: &Path) -> Result<Self> {
        let path = Self::path_beside(output)?;
        let failed = |e| Error::io("cannot be written", e).file(&path);
        let lock = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        lock.try_lock().map_err(|e| failed(io::Error::other(format!("another export uses it: {e}"))))?;
        Ok(Self { path, lock: Some(lock) })
    }

    fn directory_beside(output: &Path) -> Result<Self> {
        let path = Self::path_beside(output)?;
        let failed = |e| Error::io("cannot be made", e).file(output);
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => std::fs::create_dir(&path).map_err(failed)?,
        }
        Ok(Self { path, lock: None })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when it took its name.
        let _ = match self.lock {
            Some(_) => std::fs::remove_file(&self.path),
            None => std::fs::remove_dir_all(&self.path),
        };
    }
}

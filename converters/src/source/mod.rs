//! What a conversion reads: tensors by name, in whatever format they come.

mod carry;
mod cmf;
mod directory;
pub(crate) mod files;
mod gguf;
mod safetensors;

pub(crate) use carry::CARRIED;
pub use cmf::CmfSource;
pub use directory::DirectorySource;
pub use safetensors::SafetensorsFile;

use crate::error::{Error, Result};
use cmf_format::{DType, NodeData};
use cmf_loader::Budget;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A tensor of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name.
    pub name: String,
    /// Element type; f32 for the block-quantised types of GGUF.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
}

impl TensorInfo {
    /// Number of elements; `None` when it does not fit 64 bits.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, extent| n.checked_mul(*extent))
    }
}

/// A file that travels with the model, kept verbatim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeFile {
    /// Bare file name.
    pub name: String,
    /// Media type.
    pub media_type: String,
    /// Content.
    pub bytes: Vec<u8>,
}

/// A file that a conversion depends on, as far as a resumed one must find it unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Nanoseconds of its last change since 1970.
    pub modified_ns: u128,
}

/// A model to convert, export or compare.
pub trait Source: Send + Sync {
    /// Tensors, ascending in name.
    fn tensors(&self) -> &[TensorInfo];

    /// Reads elements `range` of tensor `index` (a place in [`Source::tensors`]), row-major, as
    /// little-endian bytes of the tensor's element type. `range` begins and ends at whole runs of
    /// the innermost extent.
    ///
    /// # Errors
    /// `Io`, and `BadFile` where decoding finds damage.
    fn read_elements(&self, index: usize, range: Range<u64>, out: &mut Vec<u8>) -> Result<()>;

    /// Reads elements as [`Source::read_elements`], as f32 values.
    ///
    /// # Errors
    /// As [`Source::read_elements`], and `Unsupported` for a type without real values.
    fn read_values(&self, index: usize, range: Range<u64>, out: &mut Vec<f32>) -> Result<()>;

    /// Elements `range`, `[rows, cols]`, as the nodes that carry the source's own encoding exactly, to
    /// be summed; `None` when the elements are plain.
    ///
    /// # Errors
    /// As [`Source::read_elements`]; `Unsupported` for an encoding that rows alone cannot carry.
    fn native_nodes(
        &self,
        index: usize,
        range: Range<u64>,
        rows: u64,
        cols: u64,
    ) -> Result<Option<Vec<NodeData>>>;

    /// The archive, where the source is one: its matrices are carried whole, as they are stored.
    fn archive(&self) -> Option<&CmfSource>;

    /// Whether tensor `index` is held as its very elements, so that reading them loses nothing;
    /// false where they are decoded from an encoding with values of its own.
    ///
    /// # Errors
    /// As [`Source::read_elements`].
    fn is_exact(&self, index: usize) -> Result<bool>;

    /// Files that travel with the model.
    ///
    /// # Errors
    /// `Io`, and `Limit` for one that is too large.
    fn attributes(&self) -> Result<Vec<AttributeFile>>;

    /// The files that the tensors are read from.
    fn inputs(&self) -> &[InputFile];

    /// What kind of files they are.
    fn format(&self) -> SourceFormat;
}

/// The formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFormat {
    /// safetensors: a file, an index, or a directory.
    Safetensors,
    /// GGUF.
    Gguf,
    /// `.cmf`.
    Cmf,
}

/// Opens what `path` is: a safetensors file or index, a Hugging Face directory, a GGUF file, or a
/// `.cmf`. Files are told apart by their first bytes, not by their names.
///
/// # Errors
/// `Io`, `BadFile`, and `Unsupported` with the name of the format when it is another.
pub fn open(path: &Path) -> Result<Box<dyn Source>> {
    if path.is_dir() {
        return Ok(Box::new(DirectorySource::open(path)?));
    }
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut start))
        .map_err(|e| Error::io("cannot be read", e).file(path))?;
    if start.starts_with(b"GGUF") {
        return Ok(Box::new(gguf::open(path)?));
    }
    // A .cmf that a transfer damaged is still meant to be one: the format crate says by what.
    if start.starts_with(&cmf_format::wire::MAGIC) || start.get(1..4) == Some(b"CMF") {
        return Ok(Box::new(CmfSource::open(path)?));
    }
    let is_json = path.extension().is_some_and(|e| e == "json");
    if start.get(8) == Some(&b'{') && !is_json {
        return Ok(Box::new(SafetensorsFile::open(path)?));
    }
    if is_json {
        return Ok(Box::new(DirectorySource::open_index(path)?));
    }
    let error = Error::unsupported("format")
        .file(path)
        .expected("a safetensors file, a sharded index, a Hugging Face directory, a GGUF file or a .cmf");
    Err(match known_as(&start) {
        Some(name) => error.found(name),
        None => error,
    })
}

/// [`open`], and where a budget is given, only the levels of an archive that fit it.
///
/// # Errors
/// As [`open`]; `BadArgument` for a budget below the minimum of the archive, which it names, and for
/// one with a model in another format, which has one size.
pub fn open_within(path: &Path, budget: Option<Budget>) -> Result<Box<dyn Source>> {
    let source = open(path)?;
    match budget {
        None => Ok(source),
        Some(budget) if source.archive().is_some() => Ok(Box::new(CmfSource::open_within(path, budget)?)),
        Some(_) => Err(Error::bad_argument("budget").file(path).expected("a .cmf").found("another format")),
    }
}

/// What the format crate calls a file of another format that begins with `start`.
fn known_as(start: &[u8]) -> Option<String> {
    let error = cmf_format::Archive::parse(start, &cmf_format::Limits::default()).err()?.to_string();
    let (_, name) = error.rsplit_once(", found ")?;
    (name != "unknown").then(|| name.to_owned())
}

pub(crate) fn input_file(path: &Path) -> Result<InputFile> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("cannot be read", e).file(path))?;
    let modified = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(InputFile {
        path: path.to_path_buf(),
        bytes: metadata.len(),
        modified_ns: modified.map_or(0, |d| d.as_nanos()),
    })
}

/// Reads `elements` values of `dtype` from their bytes.
fn decode_elements(dtype: DType, bytes: &[u8], out: &mut Vec<f32>) -> Result<()> {
    out.clear();
    out.resize(bytes.len() / dtype.bytes(), 0.0);
    dtype.decode(bytes, out).map_err(|e| Error::unsupported(e.to_string()))
}

//! The head of a GGUF file: header, metadata and tensor directory.
//!
//! Layout after the specification in ggml's `docs/gguf.md` and the checks of its `gguf.cpp`:
//! magic `GGUF`, version, tensor count, metadata count, metadata, tensor directory, padding, data.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::collections::HashSet;

use super::Limits;
use super::head::Head;
use super::metadata::{Metadata, check_entry_count, read_name};
use super::read_at::ReadAt;
use super::types::GgmlType;
use super::value::Value;
use crate::error::{Error, Result};

/// Smallest directory entry: length and one byte of name, dimension count, type, offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;
const DEFAULT_ALIGNMENT: u64 = 32;
const LARGEST_ALIGNMENT: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;

/// The checked head of one GGUF file. Every tensor's data lie inside the file and overlap no other's.
#[derive(Debug, Clone)]
pub struct Gguf {
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    name: String,
    ty: GgmlType,
    shape: Vec<u64>,
    rows: u64,
    cols: u64,
    row_bytes: u64,
    offset: u64,
    bytes: u64,
}

impl Gguf {
    /// Reads the head; tensor data are not touched, but for what the last fetch brings along.
    ///
    /// # Errors
    /// `BadFile` for whatever breaks the format, `Unsupported` for version 1, versions above 3,
    /// big-endian files and types that cannot be imported, `Limit` beyond `limits`, `Io`.
    pub fn read<R: ReadAt + ?Sized>(source: &R, limits: &Limits) -> Result<Self> {
        let mut head = Head::new(source, limits.head_bytes)?;
        check_magic(head.take(4, "magic")?)?;
        let version = read_version(&mut head)?;
        let tensor_count = head.u64("tensor count")?;
        head.check_count(tensor_count, LEAST_TENSOR_BYTES, "tensor count")?;
        if tensor_count > limits.tensors {
            return Err(Error::limit("tensor count")
                .expected(format!("at most {}", limits.tensors))
                .found(tensor_count));
        }
        let entry_count = head.u64("metadata count")?;
        check_entry_count(&head, entry_count)?;
        let metadata = Metadata::read(&mut head, entry_count, limits)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(TensorInfo::read(&mut head, limits)?);
        }
        place(&mut tensors, head.position(), alignment, head.len_bytes())?;
        check_names(&tensors)?;
        Ok(Self { version, alignment, metadata, tensors })
    }

    /// The format version: 2 or 3, which differ in nothing but the permission of big-endian files.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What every tensor's offset is a multiple of, in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
}

impl TensorInfo {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its blocks.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Extents with the slowest axis first, as in PyTorch; GGUF stores them in reverse.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Rows of the tensor seen as a matrix: the product of all extents but the last.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Elements in a row: the last extent, 1 for a scalar.
    pub fn cols(&self) -> u64 {
        self.cols
    }

    /// Stored bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    /// Offset of the data in its file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Stored bytes of all rows.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read<R: ReadAt + ?Sized>(head: &mut Head<'_, R>, limits: &Limits) -> Result<Self> {
        let name = read_name(head, limits, "tensor name")?;
        let at = head.position();
        Self::read_rest(head)
            .map(|info| Self { name: name.clone(), ..info })
            .map_err(|error| error.tensor(name).at(at))
    }

    /// All but the name; the offset still counts from the start of the data.
    fn read_rest<R: ReadAt + ?Sized>(head: &mut Head<'_, R>) -> Result<Self> {
        let dims = head.u32("dimension count")?;
        if dims > MAX_DIMS {
            return Err(Error::bad_file("dimension count")
                .expected(format!("at most {MAX_DIMS}"))
                .found(dims));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(head.u64("dimensions")?);
        }
        shape.reverse();
        let ty = GgmlType::from_id(head.u32("tensor type")?)?;
        let offset = head.u64("tensor offset")?;
        let (&cols, outer) = shape.split_last().unwrap_or((&1, &[]));
        let row_bytes = ty.row_bytes(cols)?;
        // An empty tensor has no data to compare its other extents with; they are bounded as if it
        // had, because readers size their buffers by them.
        let product = |first: u64, least: u64| {
            outer.iter().try_fold(first, |product, &extent| product.checked_mul(extent.max(least)))
        };
        let claimed_bytes = product(row_bytes.max(1), 1).filter(|&bytes| bytes <= head.len_bytes());
        let (Some(_), Some(rows)) = (claimed_bytes, product(1, 0)) else {
            return Err(Error::bad_file("shape")
                .expected(format!("at most the {} bytes of the file", head.len_bytes()))
                .found(format!("{shape:?} of type {}", ty.name())));
        };
        let bytes = rows.saturating_mul(row_bytes);
        Ok(Self { name: String::new(), ty, rows, cols, row_bytes, offset, bytes, shape })
    }
}

/// Makes offsets absolute. They must be those that ggml demands: each tensor begins where the
/// padding of the one before ends, so that nothing overlaps and nothing is hidden between.
fn place(tensors: &mut [TensorInfo], head_end: u64, alignment: u64, len_bytes: u64) -> Result<()> {
    let too_big = || Error::bad_file("tensor data end beyond 2^64 bytes");
    let start = head_end.checked_next_multiple_of(alignment).ok_or_else(too_big)?;
    let mut next = start;
    for tensor in tensors {
        let found = tensor.offset.checked_add(start);
        if found != Some(next) {
            return Err(Error::bad_file("tensor offset")
                .tensor(&tensor.name)
                .expected(next.saturating_sub(start))
                .found(tensor.offset));
        }
        tensor.offset = next;
        let end = next.checked_add(tensor.bytes).ok_or_else(too_big)?;
        if end > len_bytes {
            return Err(Error::bad_file("data")
                .tensor(&tensor.name)
                .at(tensor.offset)
                .expected(format!("{} bytes", tensor.bytes))
                .found(format!("{} bytes up to the end of the file", len_bytes.saturating_sub(next))));
        }
        next = end.checked_next_multiple_of(alignment).ok_or_else(too_big)?;
    }
    Ok(())
}

fn check_names(tensors: &[TensorInfo]) -> Result<()> {
    let mut seen = HashSet::new();
    match tensors.iter().find(|tensor| !seen.insert(tensor.name())) {
        Some(twice) => Err(Error::bad_file("name occurs twice").tensor(&twice.name)),
        None => Ok(()),
    }
}

fn check_magic(magic: &[u8]) -> Result<()> {
    match magic {
        b"GGUF" => Ok(()),
        b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
            Err(Error::unsupported("file of ggml's formats before GGUF; convert it with an older llama.cpp"))
        }
        _ => Err(Error::bad_file("magic")
            .at(0)
            .expected("`GGUF`")
            .found(format!("`{}`", magic.escape_ascii()))),
    }
}

fn read_version<R: ReadAt + ?Sized>(head: &mut Head<'_, R>) -> Result<u32> {
    let at = head.position();
    match head.u32("version")? {
        version @ (2 | 3) => Ok(version),
        0 => Err(Error::bad_file("version").at(at).expected("2 or 3").found(0)),
        version if version & 0xffff == 0 => Err(Error::unsupported("big-endian GGUF file").at(at)),
        version => Err(Error::unsupported("GGUF version").at(at).expected("2 or 3").found(version)),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let found = match metadata.get("general.alignment") {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(number)) if number.is_power_of_two() && u64::from(number) <= LARGEST_ALIGNMENT => {
            return Ok(number.into());
        }
        Some(Value::U32(number)) => number.to_string(),
        Some(_) => "another type".to_owned(),
    };
    Err(Error::bad_file("general.alignment")
        .expected(format!("a u32 power of two of at most {LARGEST_ALIGNMENT}"))
        .found(found))
}

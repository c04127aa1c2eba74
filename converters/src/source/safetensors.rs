//! safetensors files, parsed by the safetensors crate and read by position.

use super::{
    AttributeFile, CmfSource, InputFile, Source, SourceFormat, TensorInfo, decode_elements, input_file,
};
use crate::error::{Error, Result};
use crate::gguf::ReadAt;
use cmf_format::{DType, NodeData};
use safetensors::tensor::Metadata;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Largest header that is read: the safetensors crate's own limit.
const HEADER_LIMIT_BYTES: u64 = 100_000_000;

/// One safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    tensors: Vec<TensorInfo>,
    /// Absolute offset of each tensor.
    offsets: Vec<u64>,
    metadata: Vec<u8>,
    inputs: [InputFile; 1],
}

impl SafetensorsFile {
    /// Reads the header and checks it against the length of the file.
    ///
    /// # Errors
    /// `Io`; `BadFile` for a header that breaks a rule; `Unsupported` for an element type that
    /// `.cmf` does not hold.
    pub fn open(path: &Path) -> Result<Self> {
        let input = input_file(path)?;
        let file = File::open(path).map_err(|e| Error::io("cannot be read", e).file(path))?;
        let mut length = [0; 8];
        let read = |offset, out: &mut [u8]| {
            file.read_exact_at(offset, out).map_err(|e| Error::io("header cannot be read", e).file(path))
        };
        read(0, &mut length)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_LIMIT_BYTES || header_bytes > input.bytes.saturating_sub(8) {
            return Err(Error::bad_file("header length")
                .file(path)
                .at(0)
                .expected(format_args!("at most {}", HEADER_LIMIT_BYTES.min(input.bytes.saturating_sub(8))))
                .found(header_bytes));
        }
        let mut header = vec![0; usize::try_from(header_bytes).unwrap_or(0)];
        read(8, &mut header)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| Error::bad_file(format!("header: {e}")).file(path).at(8).caused_by(e))?;
        let data = 8 + header_bytes;
        let expected = data.saturating_add(metadata.data_len() as u64);
        if expected != input.bytes {
            return Err(Error::bad_file("file length").file(path).expected(expected).found(input.bytes));
        }
        let mut tensors = Vec::new();
        let mut named: Vec<_> = metadata.tensors().into_iter().collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let mut offsets = Vec::new();
        for (name, info) in named {
            let text = info.dtype.to_string();
            let dtype = DType::from_safetensors_name(&text)
                .ok_or_else(|| Error::unsupported(format!("element type {text}")).file(path).tensor(&name))?;
            offsets.push(data.saturating_add(info.data_offsets.0 as u64));
            tensors.push(TensorInfo { name, dtype, shape: info.shape.iter().map(|n| *n as u64).collect() });
        }
        let metadata = match metadata.metadata() {
            Some(map) => {
                let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
                serde_json::to_vec(&sorted).map_err(|e| Error::bad_file(e.to_string()).file(path))?
            }
            None => Vec::new(),
        };
        Ok(Self { path: path.to_path_buf(), file, tensors, offsets, metadata, inputs: [input] })
    }
}

impl SafetensorsFile {
    /// Bytes of elements `range` of tensor `index`, which are there.
    fn bytes_of(&self, index: usize, range: &Range<u64>) -> Result<usize> {
        let Some(tensor) = self.tensors.get(index) else {
            return Err(Error::bad_argument(format!("tensor index {index}")).file(&self.path));
        };
        let elements = tensor.elements().unwrap_or(0);
        if range.start > range.end || range.end > elements {
            return Err(Error::bad_argument("elements")
                .file(&self.path)
                .tensor(&tensor.name)
                .expected(format_args!("a range within 0..{elements}"))
                .found(format_args!("{range:?}")));
        }
        let bytes = (range.end - range.start) * tensor.dtype.bytes() as u64;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Fills `out` with the bytes of tensor `index` from element `start` on.
    fn read(&self, index: usize, start: u64, out: &mut [u8]) -> Result<()> {
        let (Some(tensor), Some(offset)) = (self.tensors.get(index), self.offsets.get(index)) else {
            return Err(Error::bad_argument(format!("tensor index {index}")).file(&self.path));
        };
        let at = offset + start * tensor.dtype.bytes() as u64;
        self.file
            .read_exact_at(at, out)
            .map_err(|e| Error::io("data cannot be read", e).file(&self.path).tensor(&tensor.name).at(at))
    }
}

impl Source for SafetensorsFile {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_elements(&self, index: usize, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let bytes = self.bytes_of(index, &range)?;
        out.clear();
        out.resize(bytes, 0);
        self.read(index, range.start, out)
    }

    fn read_values(&self, index: usize, range: Range<u64>, out: &mut Vec<f32>) -> Result<()> {
        let Some(tensor) = self.tensors.get(index) else { return Ok(()) };
        if tensor.dtype == DType::F32 && cfg!(target_endian = "little") {
            let bytes = self.bytes_of(index, &range)?;
            out.clear();
            out.resize(bytes / 4, 0.0);
            return self.read(index, range.start, bytemuck::cast_slice_mut(out));
        }
        let mut bytes = Vec::new();
        self.read_elements(index, range, &mut bytes)?;
        decode_elements(tensor.dtype, &bytes, out).map_err(|e| e.file(&self.path).tensor(&tensor.name))
    }

    fn native_nodes(&self, _: usize, _: Range<u64>, _: u64, _: u64) -> Result<Option<Vec<NodeData>>> {
        Ok(None)
    }

    fn archive(&self) -> Option<&CmfSource> {
        None
    }

    fn is_exact(&self, _: usize) -> Result<bool> {
        Ok(true)
    }

    fn attributes(&self) -> Result<Vec<AttributeFile>> {
        if self.metadata.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![AttributeFile {
            name: super::files::SAFETENSORS_METADATA.into(),
            media_type: "application/json".into(),
            bytes: self.metadata.clone(),
        }])
    }

    fn inputs(&self) -> &[InputFile] {
        &self.inputs
    }

    fn format(&self) -> SourceFormat {
        SourceFormat::Safetensors
    }
}

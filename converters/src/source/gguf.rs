//! GGUF files as a source: block types are carried as they are.

use super::{
    AttributeFile, CmfSource, InputFile, Source, SourceFormat, TensorInfo, decode_elements, input_file,
};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, GgufSource, block_node, decode};
use cmf_format::{DType, NodeData};
use std::ops::Range;
use std::path::Path;

/// Attribute with the metadata of a GGUF file as JSON.
const METADATA_JSON: &str = "cmf.gguf_metadata.json";
/// Attribute with the metadata of a GGUF file as its own bytes.
const METADATA: &str = "cmf.gguf_metadata.bin";
/// Elements of an array beyond which its JSON is cut; the raw bytes hold all.
const JSON_ARRAY_LIMIT: usize = 16;

pub(super) struct Gguf {
    source: GgufSource,
    tensors: Vec<TensorInfo>,
    inputs: Vec<InputFile>,
}

pub(super) fn open(path: &Path) -> Result<Gguf> {
    let source = GgufSource::open(path)?;
    let mut tensors: Vec<_> = source
        .tensors()
        .map(|t| TensorInfo {
            name: t.name().into(),
            dtype: plain(t.ty()).unwrap_or(DType::F32),
            shape: t.shape().to_vec(),
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let inputs = source.files().map(|(path, _)| input_file(path)).collect::<Result<_>>()?;
    Ok(Gguf { source, tensors, inputs })
}

/// The element type of a type without blocks.
fn plain(ty: GgmlType) -> Option<DType> {
    Some(match ty {
        GgmlType::F64 => DType::F64,
        GgmlType::F32 => DType::F32,
        GgmlType::F16 => DType::F16,
        GgmlType::BF16 => DType::BF16,
        GgmlType::I64 => DType::I64,
        GgmlType::I32 => DType::I32,
        GgmlType::I16 => DType::I16,
        GgmlType::I8 => DType::I8,
        _ => return None,
    })
}

impl Gguf {
    /// Stored bytes of elements `range`, and their type.
    fn stored(&self, index: usize, range: Range<u64>) -> Result<(GgmlType, Vec<u8>)> {
        let info = self
            .tensors
            .get(index)
            .and_then(|t| self.source.get(&t.name))
            .ok_or_else(|| Error::bad_argument(format!("tensor index {index}")))?;
        let elements = info.rows().saturating_mul(info.cols());
        if range.start > range.end || range.end > elements {
            return Err(Error::bad_argument("elements")
                .tensor(info.name())
                .expected(format_args!("a range within 0..{elements}"))
                .found(format_args!("{range:?}")));
        }
        let cols = info.cols().max(1);
        if !range.start.is_multiple_of(cols) || !range.end.is_multiple_of(cols) {
            return Err(Error::bad_argument("elements")
                .tensor(info.name())
                .expected(format_args!("whole rows of {cols}"))
                .found(format_args!("{range:?}")));
        }
        let mut bytes = Vec::new();
        self.source.read_rows(info.name(), range.start / cols..range.end / cols, &mut bytes)?;
        Ok((info.ty(), bytes))
    }
}

impl Source for Gguf {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_elements(&self, index: usize, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let elements = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let (ty, bytes) = self.stored(index, range)?;
        if plain(ty).is_some() {
            *out = bytes;
            return Ok(());
        }
        let mut values = vec![0.0; elements];
        decode(ty, &bytes, &mut values)?;
        out.clear();
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        Ok(())
    }

    fn read_values(&self, index: usize, range: Range<u64>, out: &mut Vec<f32>) -> Result<()> {
        let elements = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let (ty, bytes) = self.stored(index, range)?;
        match plain(ty) {
            Some(dtype) => decode_elements(dtype, &bytes, out),
            None => {
                out.clear();
                out.resize(elements, 0.0);
                decode(ty, &bytes, out)
            }
        }
    }

    fn native_nodes(
        &self,
        index: usize,
        range: Range<u64>,
        rows: u64,
        cols: u64,
    ) -> Result<Option<Vec<NodeData>>> {
        let (ty, bytes) = self.stored(index, range)?;
        if plain(ty).is_some() {
            return Ok(None);
        }
        Ok(Some(vec![block_node(ty, rows, cols, &bytes)?]))
    }

    fn archive(&self) -> Option<&CmfSource> {
        None
    }

    fn is_exact(&self, index: usize) -> Result<bool> {
        let info = self.tensors.get(index).and_then(|t| self.source.get(&t.name));
        Ok(info.is_some_and(|info| plain(info.ty()).is_some()))
    }

    fn attributes(&self) -> Result<Vec<AttributeFile>> {
        let Some(metadata) = self.source.metadata() else { return Ok(Vec::new()) };
        let json = serde_json::to_vec_pretty(&metadata.to_json(JSON_ARRAY_LIMIT))
            .map_err(|e| Error::bad_file(e.to_string()).caused_by(e))?;
        Ok(vec![
            AttributeFile { name: METADATA_JSON.into(), media_type: "application/json".into(), bytes: json },
            AttributeFile {
                name: METADATA.into(),
                media_type: "application/octet-stream".into(),
                bytes: metadata.raw().to_vec(),
            },
        ])
    }

    fn inputs(&self) -> &[InputFile] {
        &self.inputs
    }

    fn format(&self) -> SourceFormat {
        SourceFormat::Gguf
    }
}

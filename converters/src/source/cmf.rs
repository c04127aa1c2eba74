//! `.cmf` archives as a source: for export, comparison and re-encoding.

use super::{AttributeFile, InputFile, Source, SourceFormat, TensorInfo, input_file};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use cmf_format::archive::{Node, Unit};
use cmf_format::{NodeData, SegmentData, SegmentSource};
use cmf_loader::{FileSource, Levels, Model};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Most bytes of plain elements for each byte of the files: a hundredth of a bit for each f32.
const MAX_EXPANSION: u64 = 4096;
/// Bytes of plain elements that any archive may have.
const ALWAYS_BYTES: u64 = 1 << 30;

/// An archive, with its shards and bases.
#[derive(Debug)]
pub struct CmfSource {
    model: Model,
    tensors: Vec<TensorInfo>,
    inputs: Vec<InputFile>,
}

impl CmfSource {
    /// Opens an archive. Its tensors are read at their highest level.
    ///
    /// # Errors
    /// What [`Model::open`] gives; `Limit` for more than 4096 bytes of plain elements in each byte
    /// of the files.
    pub fn open(path: &Path) -> Result<Self> {
        let model = Model::open(path).map_err(loader_error)?;
        let tensors: Vec<_> = model
            .tensors()
            .map(|t| TensorInfo { name: t.name().into(), dtype: t.dtype(), shape: t.shape() })
            .collect();
        let mut inputs = vec![input_file(path)?];
        let folder = path.parent().unwrap_or(Path::new(""));
        for reference in model.references() {
            inputs.push(input_file(&folder.join(reference.name()))?);
        }
        check_expansion(path, &tensors, &inputs)?;
        Ok(Self { model, tensors, inputs })
    }

    /// The rows of elements `range`, and the loader's tensor.
    fn rows(&self, index: usize, range: &Range<u64>) -> Result<(cmf_loader::Tensor<'_>, Range<u64>)> {
        let (Some(info), Some(tensor)) = (self.tensors.get(index), self.model.tensors().nth(index)) else {
            return Err(Error::bad_argument(format!("tensor index {index}")).file(self.model.path()));
        };
        let cols = Geometry::of(&info.shape).cols.max(1);
        if !range.start.is_multiple_of(cols) || !range.end.is_multiple_of(cols) {
            return Err(Error::bad_argument("elements")
                .tensor(&info.name)
                .expected(format_args!("whole rows of {cols}"))
                .found(format_args!("{range:?}")));
        }
        // The archive may have cut the tensor into other matrices than we would.
        let held = tensor.matrix_shape().map_err(loader_error)?.cols.max(1);
        if !range.start.is_multiple_of(held) || !range.end.is_multiple_of(held) {
            return Err(Error::unsupported("rows of the archive's matrices")
                .tensor(&info.name)
                .expected(format_args!("whole rows of {held}"))
                .found(format_args!("elements {range:?}")));
        }
        Ok((tensor, range.start / held..range.end / held))
    }
}

/// Refuses an archive of far more elements than anybody's weights fit in so few bytes. Zeros take no
/// space in some encodings, and whoever reads them all would not come to an end.
fn check_expansion(path: &Path, tensors: &[TensorInfo], inputs: &[InputFile]) -> Result<()> {
    let held = inputs.iter().fold(0u64, |sum, input| sum.saturating_add(input.bytes));
    let most = held.saturating_mul(MAX_EXPANSION).max(ALWAYS_BYTES);
    let plain = |t: &TensorInfo| t.elements().unwrap_or(u64::MAX).saturating_mul(t.dtype.bytes() as u64);
    let total = tensors.iter().fold(0u64, |sum, tensor| sum.saturating_add(plain(tensor)));
    if total <= most {
        return Ok(());
    }
    Err(Error::limit("plain elements")
        .file(path)
        .expected(format_args!("at most {most} bytes in files of {held}"))
        .found(format_args!("{total} bytes")))
}

fn loader_error(error: cmf_loader::Error) -> Error {
    let kind = match error.kind() {
        cmf_loader::ErrorKind::Io => ErrorKind::Io,
        _ => ErrorKind::BadFile,
    };
    Error::new(kind, error.to_string()).caused_by(error)
}

impl Source for CmfSource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_elements(&self, index: usize, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let (tensor, rows) = self.rows(index, &range)?;
        let elements = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        out.clear();
        out.resize(elements.saturating_mul(tensor.dtype().bytes()), 0);
        tensor.read_elements(rows, out).map_err(loader_error)
    }

    fn read_values(&self, index: usize, range: Range<u64>, out: &mut Vec<f32>) -> Result<()> {
        let (tensor, rows) = self.rows(index, &range)?;
        out.clear();
        out.resize(usize::try_from(range.end - range.start).unwrap_or(usize::MAX), 0.0);
        tensor.decode_rows(Levels::All, rows, out).map_err(loader_error)
    }

    fn native_nodes(
        &self,
        index: usize,
        range: Range<u64>,
        rows: u64,
        _: u64,
    ) -> Result<Option<Vec<NodeData>>> {
        let (tensor, held) = self.rows(index, &range)?;
        let stored = tensor.stored().map_err(loader_error)?;
        let matrix_rows = tensor.matrix_shape().map_err(loader_error)?.rows.max(1);
        let matrix = usize::try_from(held.start / matrix_rows).ok().and_then(|i| stored.matrices().nth(i));
        let start = held.start % matrix_rows;
        let unit = matrix.and_then(|m| {
            m.units().find(|u| u.record().row_start.get() == start && u.record().rows.get() == rows)
        });
        let Some(unit) = unit else {
            return Err(Error::unsupported("rows do not make a unit").tensor(tensor.name()));
        };
        let nodes = unit.terms().filter_map(|t| t.node()).map(|n| node_data(&n));
        let nodes = nodes.collect::<cmf_format::Result<Vec<_>>>();
        nodes.map(Some).map_err(|e| Error::bad_file(e.to_string()).tensor(tensor.name()).caused_by(e))
    }

    fn native_blocks(&self, index: usize) -> Result<Option<Vec<Range<u64>>>> {
        let (tensor, _) = self.rows(index, &(0..0))?;
        let stored = tensor.stored().map_err(loader_error)?;
        let mut blocks = None;
        for matrix in stored.matrices() {
            let (inputs, outputs) = matrix.transforms();
            let plain = |unit: &Unit<'_, FileSource>| {
                unit.record().level.get() == 0
                    && unit.terms().all(|term| {
                        let node = term.node().map(|n| (n.record().rows.get(), n.record().cols.get()));
                        let start = (term.record().row_start.get(), term.record().col_start.get());
                        !term.is_optional()
                            && node == Some((unit.record().rows.get(), matrix.cols()))
                            && start == (unit.record().row_start.get(), 0)
                    })
            };
            let rows = |u: Unit<'_, FileSource>| {
                u.record().row_start.get()..u.record().row_start.get().saturating_add(u.record().rows.get())
            };
            let found: Vec<_> = matrix.units().map(rows).collect();
            let same = blocks.get_or_insert_with(|| found.clone()) == &found;
            if tensor.is_delta()
                || !inputs.is_empty()
                || !outputs.is_empty()
                || !same
                || !matrix.units().all(|u| plain(&u))
            {
                return Err(Error::unsupported(
                    "has levels, transforms or regions, which `keep` does not carry",
                )
                .file(self.model.path())
                .tensor(tensor.name()));
            }
        }
        Ok(blocks)
    }

    fn is_exact(&self, index: usize) -> Result<bool> {
        let Some(tensor) = self.model.tensors().nth(index) else { return Ok(false) };
        let rows = tensor.matrix_shape().map_err(loader_error)?.rows;
        // Unit by unit: to open a whole tensor may take as much memory as it has bytes.
        for (m, matrix) in tensor.stored().map_err(loader_error)?.matrices().enumerate() {
            let top = rows.saturating_mul(m as u64);
            for unit in matrix.units() {
                let (start, count) = (unit.record().row_start.get(), unit.record().rows.get());
                let start = top.saturating_add(start);
                let opened = tensor.open_rows(Levels::All, start..start.saturating_add(count));
                if !opened.map_err(loader_error)?.is_exact() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn attributes(&self) -> Result<Vec<AttributeFile>> {
        self.model
            .attributes()
            .map(|attribute| {
                Ok(AttributeFile {
                    name: attribute.name().into(),
                    media_type: attribute.media_type().into(),
                    bytes: attribute.bytes().map_err(loader_error)?.into_owned(),
                })
            })
            .collect()
    }

    fn inputs(&self) -> &[InputFile] {
        &self.inputs
    }

    fn format(&self) -> SourceFormat {
        SourceFormat::Cmf
    }
}

/// A node with its stored bytes, compressed ones as they are.
fn node_data(node: &Node<'_, FileSource>) -> cmf_format::Result<NodeData> {
    let segment = |s: cmf_format::archive::Segment<'_, FileSource>| {
        let unknown =
            || cmf_format::Error::new(cmf_format::ErrorKind::Unsupported, "segment", "unknown compression");
        Ok(SegmentData {
            source: SegmentSource::Bytes(s.stored()?.into_owned().into()),
            decoded_bytes: s.record().decoded_bytes.get(),
            compression: s.compression().ok_or_else(unknown)?,
        })
    };
    Ok(NodeData {
        encoding: node.record().encoding.get(),
        version: node.record().version.get(),
        rows: node.record().rows.get(),
        cols: node.record().cols.get(),
        descriptor: node.descriptor().to_vec(),
        segments: node.segments().map(segment).collect::<cmf_format::Result<_>>()?,
        children: node.children().map(|c| node_data(&c).map(Arc::new)).collect::<cmf_format::Result<_>>()?,
    })
}

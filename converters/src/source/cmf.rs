//! `.cmf` archives as a source: for export, comparison and re-encoding.

use super::carry::{CARRIED, Carrier, Hashed};
use super::{AttributeFile, InputFile, Source, SourceFormat, TensorInfo, input_file};
use crate::error::{Error, ErrorKind, Result};
use cmf_format::NodeData;
use cmf_format::archive::Step;
use cmf_format::wire::SCHEDULE_LOSS;
use cmf_format::write::{MatrixEntry, StepEntry};
use cmf_loader::{Backend, Budget, FileSource, Levels, Model, OpenOptions, Plan};
use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

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
    hashed: Hashed,
    /// What is read of each tensor; all levels without one.
    plan: Option<Plan>,
}

impl CmfSource {
    /// Opens an archive. Its tensors are read at their highest level. The file is read and not
    /// mapped: pages of a map stay in memory, and would count against the bound of a conversion.
    ///
    /// # Errors
    /// What [`Model::open_with`] gives; `Limit` for more than 4096 bytes of plain elements in each byte
    /// of the files.
    pub fn open(path: &Path) -> Result<Self> {
        let read = OpenOptions { backend: Backend::Pread, ..OpenOptions::default() };
        let model = Model::open_with(path, &read).map_err(loader_error)?;
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
        Ok(Self { model, tensors, inputs, hashed: Hashed::default(), plan: None })
    }

    /// Opens an archive, of whose tensors only those levels are read that fit `budget`.
    ///
    /// # Errors
    /// As [`CmfSource::open`]; `BadArgument` for a budget below the minimum, which it names.
    pub fn open_within(path: &Path, budget: Budget) -> Result<Self> {
        let mut source = Self::open(path)?;
        source.plan = Some(source.model.plan(budget).map_err(loader_error)?);
        Ok(source)
    }

    /// The units that are read, where a budget chose them.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    fn levels(&self) -> Levels<'_> {
        self.plan.as_ref().map_or(Levels::All, Levels::Plan)
    }

    fn tensor(&self, index: usize) -> Result<cmf_loader::Tensor<'_>> {
        let tensor = self.model.tensors().nth(index);
        tensor.ok_or_else(|| Error::bad_argument(format!("tensor index {index}")).file(self.model.path()))
    }

    /// Reads the rows that hold elements `range` with `read`, to items of `width` an element, and
    /// leaves the items of `range` in `out`. The archive may have cut the tensor into matrices of
    /// other columns than its innermost extent.
    fn read<T: Clone + Default>(
        &self,
        index: usize,
        range: Range<u64>,
        width: usize,
        out: &mut Vec<T>,
        read: impl FnOnce(&cmf_loader::Tensor<'_>, Range<u64>, &mut [T]) -> cmf_loader::Result<()>,
    ) -> Result<()> {
        let tensor = self.tensor(index)?;
        let elements = tensor.elements();
        if range.start > range.end || range.end > elements {
            return Err(Error::bad_argument("elements")
                .tensor(tensor.name())
                .expected(format_args!("a range within 0..{elements}"))
                .found(format_args!("{range:?}")));
        }
        let cols = tensor.matrix_shape().map_err(loader_error)?.cols.max(1);
        let rows = range.start / cols..range.end.div_ceil(cols);
        let items = |elements: u64| usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(width);
        let whole = (rows.end - rows.start).saturating_mul(cols);
        out.clear();
        out.resize(items(whole), T::default());
        read(&tensor, rows.clone(), out).map_err(loader_error)?;
        out.truncate(items(range.end - rows.start * cols));
        out.drain(..items(range.start - rows.start * cols));
        Ok(())
    }

    /// The matrices of tensor `index` as they are stored, with all levels, terms and transforms. Their
    /// segments have keys of this source, for [`CmfSource::copy_segment`].
    ///
    /// # Errors
    /// `Unsupported` for what cannot be carried into another archive, `BadFile` for damaged bytes.
    pub(crate) fn matrices(&self, index: usize) -> Result<Vec<MatrixEntry>> {
        let tensor = self.tensor(index)?;
        let reference = tensor.reference().map(|r| r.name());
        let place = self.model.references().position(|r| Some(r.name()) == reference);
        let carrier = Carrier {
            path: self.model.path(),
            tensor: tensor.stored().map_err(loader_error)?,
            file: place.map_or(0, |place| place as u32 + 1),
            hashed: &self.hashed,
        };
        carrier.matrices()
    }

    /// Writes the stored bytes of a segment to `out`.
    ///
    /// # Errors
    /// What reading them or `out` gives.
    pub(crate) fn copy_segment(&self, key: u64, out: &mut dyn Write) -> io::Result<()> {
        let file = (key & !CARRIED) >> 32;
        let reference = file.checked_sub(1).and_then(|n| self.model.references().nth(n as usize));
        let model = match reference {
            Some(reference) => reference.open().map_err(io::Error::other)?,
            None => &self.model,
        };
        let segment =
            model.archive().segment(key as u32).ok_or_else(|| io::Error::other("no such segment"))?;
        out.write_all(&segment.stored().map_err(io::Error::other)?)
    }

    /// The order of all units, where this file alone holds them.
    pub(crate) fn schedule(&self) -> Option<Vec<StepEntry>> {
        let archive = self.model.archive();
        if self.model.references().len() > 0 {
            return None;
        }
        let mut places = HashMap::new();
        for tensor in archive.tensors() {
            for (number, matrix) in tensor.matrices().enumerate() {
                places.entry(matrix.index()).or_insert_with(|| (tensor.name().to_owned(), number));
            }
        }
        let units: Vec<_> = archive.units().collect();
        let matrices: Vec<_> = archive.matrices().collect();
        let step = |step: Step<'_, FileSource>| {
            let index = step.record().unit.get();
            let matrix = matrices.get(units.get(index as usize)?.record().matrix.get() as usize)?;
            let (name, number) = places.get(&matrix.index())?;
            let unit = index.checked_sub(matrix.record().first_unit.get())? as usize;
            let stated = step.record().flags.get() & SCHEDULE_LOSS != 0;
            let expected_loss = stated.then(|| step.record().expected_loss.get());
            Some(StepEntry { unit: (name.clone(), *number, unit), expected_loss })
        };
        archive.schedule().map(step).collect()
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
        cmf_loader::ErrorKind::Argument => ErrorKind::BadArgument,
        _ => ErrorKind::BadFile,
    };
    Error::new(kind, error.to_string()).caused_by(error)
}

impl Source for CmfSource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_elements(&self, index: usize, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let width = self.tensors.get(index).map_or(1, |tensor| tensor.dtype.bytes());
        self.read(index, range, width, out, |tensor, rows, out| match &self.plan {
            None => tensor.read_elements(rows, out),
            Some(plan) => {
                let opened = tensor.open_rows(Levels::Plan(plan), rows.clone())?;
                opened.read_elements(rows.start as usize..rows.end as usize, out)
            }
        })
    }

    fn read_values(&self, index: usize, range: Range<u64>, out: &mut Vec<f32>) -> Result<()> {
        self.read(index, range, 1, out, |tensor, rows, out| tensor.decode_rows(self.levels(), rows, out))
    }

    fn native_nodes(&self, _: usize, _: Range<u64>, _: u64, _: u64) -> Result<Option<Vec<NodeData>>> {
        Ok(None)
    }

    fn archive(&self) -> Option<&CmfSource> {
        Some(self)
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
                let opened = tensor.open_rows(self.levels(), start..start.saturating_add(count));
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

//! A tensor by name.

use crate::error::{Error, Result};
use crate::model::Model;
use crate::opened::OpenTensor;
use crate::plan::Plan;
use crate::references::Reference;
use crate::source::FileSource;
use crate::stored::Record;
use cmf_format::{DType, Source};
use core::ops::Range;
use std::borrow::Cow;

/// How many levels of a sum are decoded. For a delta they are those of the terms here: the base
/// always has its full value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Levels<'p> {
    /// All: the best values that the file has.
    #[default]
    All,
    /// Those up to this one; level 0 alone is the smallest.
    UpTo(u16),
    /// Those that a plan holds, which may differ from block of rows to block of rows. The plan must
    /// be one for the file that holds the terms.
    Plan(&'p Plan),
}

/// The matrices that a tensor consists of, all of one shape: one, or one for each expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// Number of matrices; 0 for a tensor without elements.
    pub count: usize,
    /// Rows of each: outputs.
    pub rows: u64,
    /// Columns of each: inputs.
    pub cols: u64,
}

impl MatrixShape {
    /// Rows of all matrices together. Rows are counted over all matrices wherever a method of
    /// [`Tensor`] or [`OpenTensor`] takes them.
    pub fn all_rows(&self) -> u64 {
        self.rows.saturating_mul(self.count as u64)
    }
}

/// A tensor of a [`Model`], here, in a shard, or a delta to a base.
///
/// What names the tensor is in this file; whatever needs its values opens the file that holds them.
///
/// Decoders write to slices of the caller. [`Tensor::elements`] is what the file states, checked
/// against the stored bytes for most encodings but not for those that store zeros in no space
/// (`sparse`): look at it before allocating for a file from strangers.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'m> {
    pub(crate) model: &'m Model,
    pub(crate) record: Record<'m>,
}

impl<'m> Tensor<'m> {
    /// The name.
    pub fn name(&self) -> &'m str {
        self.record.name()
    }

    /// The element type that it had before it was encoded.
    pub fn dtype(&self) -> DType {
        self.record.dtype()
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> Vec<u64> {
        self.record.shape()
    }

    /// Product of the extents.
    pub fn elements(&self) -> u64 {
        self.record.elements()
    }

    /// Whether the terms here are added to the tensor of this name in [`Tensor::reference`].
    pub fn is_delta(&self) -> bool {
        self.record.is_delta()
    }

    /// The shard that holds the tensor, or the base that it is a delta to.
    pub fn reference(&self) -> Option<Reference<'m>> {
        self.record.reference().map(|record| Reference { model: self.model, record })
    }

    /// The record in the file that holds the terms: matrices, terms, nodes and segments.
    ///
    /// # Errors
    /// `Reference` when the shard or base is missing or not the one that is referred to.
    pub fn stored(&self) -> Result<cmf_format::archive::Tensor<'m, FileSource>> {
        Ok(self.find()?.record)
    }

    /// Number and shape of its matrices.
    ///
    /// # Errors
    /// As [`Tensor::stored`].
    pub fn matrix_shape(&self) -> Result<MatrixShape> {
        Ok(self.find()?.matrix_shape())
    }

    /// Opens the tensor to be decoded more than once: with [`Backend::Pread`](crate::Backend::Pread)
    /// its stored bytes are read now and kept.
    ///
    /// # Errors
    /// As [`Tensor::stored`]; `Format` with `Unsupported` for a required term that this reader does
    /// not know, `Value` for damaged compressed bytes, `Limit`; `Argument` for a plan of other files;
    /// `Io`, `Changed`.
    pub fn open(&self, levels: Levels<'_>) -> Result<OpenTensor<'m>> {
        self.open_rows(levels, 0..u64::MAX)
    }

    /// Opens what rows `rows` need; only these can be decoded.
    ///
    /// # Errors
    /// As [`Tensor::open`].
    pub fn open_rows(&self, levels: Levels<'_>, rows: Range<u64>) -> Result<OpenTensor<'m>> {
        OpenTensor::new(&self.find()?, levels, rows)
    }

    /// Decodes all values, row-major.
    ///
    /// # Errors
    /// `Argument` when `out` is not [`Tensor::elements`] long; as [`Tensor::open`] and
    /// [`OpenTensor::decode_rows`].
    pub fn decode(&self, levels: Levels<'_>, out: &mut [f32]) -> Result<()> {
        self.check_length(out.len())?;
        let opened = self.open(levels)?;
        opened.decode_rows(0..opened.rows(), out)
    }

    /// [`Tensor::decode`] on the threads of the current rayon pool, to the same values.
    ///
    /// # Errors
    /// As [`Tensor::decode`].
    pub fn decode_parallel(&self, levels: Levels<'_>, out: &mut [f32]) -> Result<()> {
        self.check_length(out.len())?;
        let opened = self.open(levels)?;
        opened.decode_rows_parallel(0..opened.rows(), out)
    }

    /// Decodes rows `rows`, counted over all matrices, reading no others.
    ///
    /// # Errors
    /// `Argument` when there are no such rows or `out` does not fit them; as [`Tensor::decode`].
    pub fn decode_rows(&self, levels: Levels<'_>, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let opened = self.open_rows(levels, rows.clone())?;
        opened.decode_rows(self.indices(rows)?, out)
    }

    /// Decodes matrix `index` alone: one expert.
    ///
    /// # Errors
    /// As [`Tensor::decode_rows`].
    pub fn decode_matrix(&self, index: usize, levels: Levels<'_>, out: &mut [f32]) -> Result<()> {
        let shape = self.matrix_shape()?;
        if index >= shape.count {
            return Err(self.argument("matrix", format!("expected below {}, found {index}", shape.count)));
        }
        let start = shape.rows.saturating_mul(index as u64);
        self.decode_rows(levels, start..start.saturating_add(shape.rows), out)
    }

    /// Writes rows `rows` as little-endian elements of [`Tensor::dtype`]: the original bytes when
    /// they are stored ([`OpenTensor::is_exact`]), else all levels decoded and rounded to the type.
    ///
    /// # Errors
    /// As [`Tensor::decode_rows`].
    pub fn read_elements(&self, rows: Range<u64>, out: &mut [u8]) -> Result<()> {
        let opened = self.open_rows(Levels::All, rows.clone())?;
        opened.read_elements(self.indices(rows)?, out)
    }

    /// The elements as they are stored, when the file holds them as they were, one after the
    /// other; `None` when they must be decoded. Borrowed from the map; with
    /// [`Backend::Pread`](crate::Backend::Pread), read into memory.
    ///
    /// # Errors
    /// As [`Tensor::stored`]; `Format` with `Limit` when they are too many to read, `Io`,
    /// `Changed`.
    pub fn bytes(&self) -> Result<Option<Cow<'m, [u8]>>> {
        let stored = self.find()?;
        let Some(range) = stored.elements() else { return Ok(None) };
        let read = stored.source().read(range.start, range.end.saturating_sub(range.start));
        read.map(Some).map_err(|e| stored.error(e))
    }

    fn indices(&self, rows: Range<u64>) -> Result<Range<usize>> {
        match (usize::try_from(rows.start), usize::try_from(rows.end)) {
            (Ok(start), Ok(end)) => Ok(start..end),
            _ => Err(self.argument("rows", format!("{rows:?} are out of range"))),
        }
    }

    fn check_length(&self, length: usize) -> Result<()> {
        match self.elements() == length as u64 {
            true => Ok(()),
            false => {
                Err(self.argument("out", format!("expected {} values, found {length}", self.elements())))
            }
        }
    }

    fn argument(&self, part: &str, problem: String) -> Error {
        let part = format!("tensor `{}`: {part}", self.name().escape_debug());
        Error::argument(self.model.path(), part, problem)
    }
}

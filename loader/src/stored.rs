//! Where the values of a tensor are: the file that holds its terms, the tensor that it is a delta
//! to, and the range of the file when the stored bytes are the values.

use crate::error::{Error, Result};
use crate::model::Model;
use crate::source::FileSource;
use crate::tensor::{MatrixShape, Tensor};
use cmf_format::archive::{Matrix, Node};
use cmf_format::encoding::{Shape, dense};
use cmf_format::wire::{TENSOR_DELTA, TRANSFORM_SCALE, TRANSFORM_SIGN_HADAMARD};
use cmf_format::{Compression, DType};
use core::ops::Range;

pub(crate) type Record<'m> = cmf_format::archive::Tensor<'m, FileSource>;

/// A tensor in the file that holds its terms.
pub(crate) struct Stored<'m> {
    pub(crate) model: &'m Model,
    pub(crate) record: Record<'m>,
    /// What the terms are added to, for a delta.
    pub(crate) base: Option<Box<Stored<'m>>>,
}

impl<'m> Tensor<'m> {
    /// Follows references to the file that holds the terms, and for a delta to its base (spec:
    /// container, 6.5).
    pub(crate) fn find(&self) -> Result<Stored<'m>> {
        let Some(reference) = self.reference() else {
            return Ok(Stored { model: self.model, record: self.record, base: None });
        };
        let name = self.name();
        let wrong = |problem: String| reference.error(format!("tensor `{}`: {problem}", name.escape_debug()));
        let there = reference.open()?.tensor(name).ok_or_else(|| wrong("is not there".into()))?;
        if self.shape() != there.shape() {
            return Err(wrong(format!("expected shape {:?}, found {:?}", self.shape(), there.shape())));
        }
        if self.is_delta() {
            let base = Some(there.find()?.into());
            return Ok(Stored { model: self.model, record: self.record, base });
        }
        if self.dtype() != there.dtype() {
            let (expected, found) = (self.dtype().name(), there.dtype().name());
            return Err(wrong(format!("expected type {expected}, found {found}")));
        }
        if let Some(further) = there.reference() {
            return Err(wrong(format!("expected its values, found a reference to `{}`", further.name())));
        }
        there.find()
    }
}

fn shape(record: &Record<'_>) -> MatrixShape {
    let mut matrices = record.matrices();
    let count = matrices.len();
    let (rows, cols) = matrices.next().map_or((0, 0), |m| (m.rows(), m.cols()));
    MatrixShape { count, rows, cols }
}

impl<'m> Stored<'m> {
    /// Matrices of the tensor; those of the base for a delta without terms.
    pub(crate) fn matrix_shape(&self) -> MatrixShape {
        match (shape(&self.record), &self.base) {
            (MatrixShape { count: 0, .. }, Some(base)) => base.matrix_shape(),
            (shape, _) => shape,
        }
    }

    pub(crate) fn source(&self) -> &'m FileSource {
        self.model.source()
    }

    pub(crate) fn error(&self, error: cmf_format::Error) -> Error {
        self.source().error(error.in_tensor(self.record.name()))
    }

    /// How many rows have to be decoded together: transforms of the output side make each of them
    /// from all of them. At least 1.
    pub(crate) fn joined_rows(&self) -> u64 {
        let outputs = self.record.matrices().flat_map(|m| m.transforms().1);
        let joined = outputs.map(|transform| match transform.kind.get() {
            TRANSFORM_SCALE => 1,
            TRANSFORM_SIGN_HADAMARD => transform.block.get(),
            _ => transform.size.get(),
        });
        joined.max().unwrap_or(1).max(1)
    }

    /// The range of the file that is the tensor's elements, row-major, when there is one: raw
    /// dense terms of its own type, one below the other, without gaps between them.
    pub(crate) fn elements(&self) -> Option<Range<u64>> {
        let known = self.record.record().flags.get() & 0xFFFF & !TENSOR_DELTA == 0;
        if !known || self.base.is_some() {
            return None;
        }
        let mut found: Option<Range<u64>> = None;
        for matrix in self.record.matrices() {
            extend(&matrix, self.record.dtype(), &mut found)?;
        }
        match self.record.elements() {
            0 => Some(0..0),
            _ => found,
        }
    }
}

/// Extends `found` by the elements of `matrix`; `None` when they do not follow it in the file.
fn extend(matrix: &Matrix<'_, FileSource>, dtype: DType, found: &mut Option<Range<u64>>) -> Option<()> {
    let (inputs, outputs) = matrix.transforms();
    let mut next_row = 0;
    for term in matrix.terms() {
        let node = term.node().filter(|_| term.is_known() && term.level() == 0)?;
        let (record, place) = (node.record(), term.record());
        let whole_rows = place.col_start.get() == 0 && record.cols.get() == matrix.cols();
        if place.row_start.get() != next_row || !whole_rows || dense_type(&node) != Some(dtype) {
            return None;
        }
        next_row = next_row.checked_add(record.rows.get())?;
        let segment = node.segments().next()?;
        if segment.compression() != Some(Compression::Raw) || !segment.record().is_known() {
            return None;
        }
        let start = segment.record().offset.get();
        let end = start.checked_add(segment.record().stored_bytes.get())?;
        *found = match found.take() {
            None => Some(start..end),
            Some(before) if before.end == start => Some(before.start..end),
            Some(_) => return None,
        };
    }
    (inputs.is_empty() && outputs.is_empty() && next_row == matrix.rows()).then_some(())
}

fn dense_type(node: &Node<'_, FileSource>) -> Option<DType> {
    let record = node.record();
    if (record.encoding.get(), record.version.get()) != (dense::ID, dense::VERSION) {
        return None;
    }
    with_shape(node, dense::Descriptor::parse).ok().map(|d| d.dtype)
}

/// Segments of the transforms of `matrix`.
pub(crate) fn transform_segments(matrix: &Matrix<'_, FileSource>) -> Vec<u32> {
    let archive = matrix.archive();
    let (inputs, outputs) = matrix.transforms();
    let transforms = inputs.into_iter().chain(outputs);
    let segments = transforms.flat_map(|transform| {
        let own = archive.segment(transform.segment.get()).map(|s| s.index());
        let factors = archive.node(transform.node.get()).map(|n| n.all_segments());
        own.into_iter().chain(factors.unwrap_or_default())
    });
    segments.collect()
}

/// Calls `parse` with what the directory says of `node`.
pub(crate) fn with_shape<T>(node: &Node<'_, FileSource>, parse: impl FnOnce(&Shape<'_>) -> T) -> T {
    let segments: Vec<u64> = node.segments().map(|s| s.record().decoded_bytes.get()).collect();
    let children: Vec<_> = node.children().map(|c| (c.record().rows.get(), c.record().cols.get())).collect();
    parse(&Shape {
        rows: node.record().rows.get(),
        cols: node.record().cols.get(),
        descriptor: node.descriptor(),
        segments: &segments,
        children: &children,
    })
}

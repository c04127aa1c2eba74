//! Opened matrices and tensors: sums of terms between transforms (spec: container, 6).

use super::Cut;
use super::access::{Matrix, Tensor, Term};
use super::sum::{Placed, sum_rows};
use crate::DType;
use crate::encoding::{KeepBudget, View};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limits;
use crate::source::Source;
use crate::transform::{self, Transform};
use core::ops::Range;

/// A matrix with the terms of some of its units opened.
#[derive(Debug)]
pub struct MatrixView<'a> {
    rows: usize,
    cols: usize,
    /// Rows whose terms are opened.
    opened: Range<usize>,
    terms: Vec<Placed<'a>>,
    left_out: Vec<u32>,
    input_transforms: Vec<Transform>,
    output_transforms: Vec<Transform>,
}

/// What matrices that are opened together take.
struct Together {
    /// Bytes of memory that segments and transforms take.
    decoded_bytes: u64,
    keep: KeepBudget,
}

impl Together {
    fn new(limits: &Limits) -> Self {
        Self { decoded_bytes: 0, keep: limits.keep_budget() }
    }

    fn add(&mut self, bytes: u64) {
        self.decoded_bytes = self.decoded_bytes.saturating_add(bytes);
    }
}

impl<'a> MatrixView<'a> {
    /// Opens the terms of the units of `matrix` that `cut` holds: a level, or any units.
    ///
    /// # Errors
    /// `Unsupported` when a term that is not optional has an unknown encoding, and as
    /// [`super::Node::view`].
    pub fn open<'c, S: Source>(matrix: &Matrix<'a, S>, cut: impl Into<Cut<'c>>) -> Result<Self> {
        Self::open_rows(matrix, cut, 0..matrix.rows())
    }

    /// Opens the terms of the units of `matrix` that `cut` holds and that touch rows `rows`; only
    /// these rows can be decoded. Payload of the other terms is not read.
    ///
    /// # Errors
    /// `Argument` when the matrix does not have these rows, else as [`MatrixView::open`].
    pub fn open_rows<'c, S: Source>(
        matrix: &Matrix<'a, S>,
        cut: impl Into<Cut<'c>>,
        rows: Range<u64>,
    ) -> Result<Self> {
        Self::open_within(matrix, cut.into(), rows, &mut Together::new(matrix.archive().limits()))
    }

    /// Opens after what segments and transforms here take in memory has been found to be within the
    /// limit: many terms may share one small segment that decodes to a large one.
    fn open_within<S: Source>(
        matrix: &Matrix<'a, S>,
        cut: Cut<'_>,
        rows: Range<u64>,
        together: &mut Together,
    ) -> Result<Self> {
        let extent = |n: u64| {
            usize::try_from(n)
                .map_err(|_| Error::new(ErrorKind::Limit, "matrix", format!("extent {n} is too large")))
        };
        let (mut terms, mut left_out) = (Vec::new(), Vec::new());
        if rows.start > rows.end || rows.end > matrix.rows() {
            return Err(Error::new(ErrorKind::Argument, "rows", format!("{rows:?} of {}", matrix.rows())));
        }
        let (inputs, outputs) = matrix.transforms();
        let limits = matrix.archive().limits();
        for record in inputs.iter().chain(&outputs) {
            together.add(super::transforms::decoded_bytes(matrix.archive(), record));
        }
        limits.check_decoded_tensor(together.decoded_bytes)?;
        let working = outputs.iter().map(|record| super::transforms::working_rows(record));
        let working = working.fold(0u64, |sum, rows| sum.saturating_add(rows));
        limits.check_decoded_tensor(working.saturating_mul(matrix.cols()).saturating_mul(4))?;
        let load = |records: Vec<_>| {
            let transforms = records.into_iter().map(|r| super::transforms::load(matrix.archive(), r));
            transforms.collect::<Result<Vec<_>>>()
        };
        let (input_transforms, output_transforms) = (load(inputs)?, load(outputs)?);
        // A row of the product may need any row of the sum.
        let needed = if output_transforms.is_empty() { rows.clone() } else { 0..matrix.rows() };
        let touches = |term: &Term<'a, S>| {
            let start = term.record().row_start.get();
            let end = start.saturating_add(term.node().map_or(0, |node| node.record().rows.get()));
            start.max(needed.start) < end.min(needed.end)
        };
        let held = matrix.units().filter(|unit| cut.holds(unit)).flat_map(|unit| unit.terms());
        let held: Vec<_> = held.filter(touches).collect();
        for node in held.iter().filter(|t| t.is_known()).filter_map(|t| t.node()) {
            together.add(node.held_bytes());
        }
        limits.check_decoded_tensor(together.decoded_bytes)?;
        for term in held {
            let i = term.index().saturating_sub(matrix.record().first_term.get());
            if !term.is_known() && term.is_optional() {
                left_out.push(term.index());
                continue;
            }
            let Some(node) = term.node() else { continue };
            if term.record().flags.get() & 0xFF != 0 {
                return Err(Error::new(ErrorKind::Unsupported, format!("term {i}"), "has unknown flags"));
            }
            terms.push(Placed {
                row: extent(term.record().row_start.get())?,
                col: extent(term.record().col_start.get())?,
                view: node.open(&together.keep).map_err(|e| e.within(format_args!("term {i}")))?,
            });
        }
        Ok(Self {
            rows: extent(matrix.rows())?,
            cols: extent(matrix.cols())?,
            opened: extent(rows.start)?..extent(rows.end)?,
            terms,
            left_out,
            input_transforms,
            output_transforms,
        })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Indices of optional terms that were left out because this reader does not know them: the
    /// values are those of a lower quality.
    pub fn left_out(&self) -> &[u32] {
        &self.left_out
    }

    /// The opened terms with the row and column at which each starts.
    pub fn terms(&self) -> impl Iterator<Item = (usize, usize, &View<'a>)> {
        self.terms.iter().map(|t| (t.row, t.col, &t.view))
    }

    /// Input-side transforms in order of application.
    pub fn input_transforms(&self) -> &[Transform] {
        &self.input_transforms
    }

    /// Output-side transforms in order of application.
    pub fn output_transforms(&self) -> &[Transform] {
        &self.output_transforms
    }

    /// Rows `rows` of the sum of the terms, without the transforms around it, into `out`, row-major:
    /// for those who transform the activation instead. With output-side transforms all rows of the sum
    /// are opened.
    ///
    /// # Errors
    /// As [`MatrixView::decode_rows`].
    pub fn sum_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let opened = match self.output_transforms.is_empty() {
            true => self.opened.clone(),
            false => 0..self.rows,
        };
        self.check_rows(&opened, &rows, out.len())?;
        sum_rows(&self.terms, rows, self.cols, out)
    }

    fn check_rows(&self, opened: &Range<usize>, rows: &Range<usize>, out: usize) -> Result<()> {
        let fits = opened.start <= rows.start && rows.start <= rows.end && rows.end <= opened.end;
        if fits && rows.len().checked_mul(self.cols) == Some(out) {
            return Ok(());
        }
        let problem = format!("{rows:?} of [{}, {}] into {out} values", self.rows, self.cols);
        Err(Error::new(ErrorKind::Argument, "rows", problem))
    }

    /// Decodes rows `rows` into `out`, row-major.
    ///
    /// # Errors
    /// `Argument` when `rows` is not opened or `out` is not `rows.len() * cols` long, `Value`
    /// when the payload breaks a rule.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check_rows(&self.opened, &rows, out.len())?;
        transform::left_multiply(&self.output_transforms, rows, self.cols, out, &mut |rows, out| {
            sum_rows(&self.terms, rows, self.cols, out)?;
            transform::right_multiply(&self.input_transforms, self.cols, out)
        })
    }
}

/// A tensor with some of its units opened: its matrices one below the other.
#[derive(Debug)]
pub struct TensorView<'a> {
    name: &'a str,
    dtype: DType,
    matrices: Vec<MatrixView<'a>>,
    exact: bool,
}

impl<'a> TensorView<'a> {
    /// Opens the units of all matrices of `tensor` that `cut` holds: those up to a level, of which
    /// `u16::MAX` is all, or any units.
    ///
    /// # Errors
    /// `Argument` when the tensor lies in another archive or is a delta to one; else as
    /// [`MatrixView::open`].
    pub fn open<'c, S: Source>(tensor: &Tensor<'a, S>, cut: impl Into<Cut<'c>>) -> Result<Self> {
        Self::open_rows(tensor, cut, 0..u64::MAX)
    }

    /// Opens what rows `rows` need, counted over all matrices; only these rows can be decoded.
    /// Rows beyond the last are left out.
    ///
    /// # Errors
    /// As [`TensorView::open`].
    pub fn open_rows<'c, S: Source>(
        tensor: &Tensor<'a, S>,
        cut: impl Into<Cut<'c>>,
        rows: Range<u64>,
    ) -> Result<Self> {
        let cut = cut.into();
        let name = tensor.name();
        if let Some(reference) = tensor.reference().filter(|_| !tensor.is_delta()) {
            let problem = format!("lies in archive `{}`", reference.name());
            return Err(Error::new(ErrorKind::Argument, "tensor", problem).in_tensor(name));
        }
        tensor.check_flags()?;
        let mut first = 0u64;
        let mut together = Together::new(tensor.archive().limits());
        let matrices = tensor
            .matrices()
            .map(|m| {
                let end = first.saturating_add(m.rows());
                let start = rows.start.clamp(first, end);
                let part = start - first..rows.end.clamp(start, end) - first;
                first = end;
                MatrixView::open_within(&m, cut, part, &mut together).map_err(|e| e.in_tensor(name))
            })
            .collect::<Result<Vec<_>>>()?;
        let dtype = tensor.dtype();
        let exact = !tensor.is_delta() && matrices.iter().all(|m| is_exact(m, dtype));
        Ok(Self { name, dtype, matrices, exact })
    }

    /// Rows of all matrices together; 0 for an empty tensor.
    pub fn rows(&self) -> usize {
        self.matrices.iter().map(|m| m.rows).sum()
    }

    /// Columns of each matrix; 0 for an empty tensor.
    pub fn cols(&self) -> usize {
        self.matrices.first().map_or(0, |m| m.cols)
    }

    /// The matrices.
    pub fn matrices(&self) -> &[MatrixView<'a>] {
        &self.matrices
    }

    /// Whether the stored bytes are the original elements, or give them back to the bit.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Decodes rows `rows` into `out`, row-major.
    ///
    /// # Errors
    /// As [`MatrixView::decode_rows`].
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        self.check(&rows, cols, out.len())?;
        self.each_part(rows, |matrix, part, at| {
            let out = out.get_mut(at * cols..(at + part.len()) * cols).unwrap_or(&mut []);
            matrix.decode_rows(part, out)
        })
    }

    /// Writes rows `rows` as elements of the tensor's own type: the exact original bytes when
    /// [`TensorView::is_exact`], else decoded values rounded to the type.
    ///
    /// # Errors
    /// As [`MatrixView::decode_rows`].
    pub fn read_elements(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let row_bytes = self.cols().saturating_mul(self.dtype.bytes());
        self.check(&rows, row_bytes, out.len())?;
        if self.exact {
            return self.each_part(rows, |matrix, part, at| {
                let out = out.get_mut(at * row_bytes..(at + part.len()) * row_bytes).unwrap_or(&mut []);
                exact_rows(matrix, part, row_bytes, out)
            });
        }
        let mut values = vec![0.0; rows.len() * self.cols()];
        self.decode_rows(rows, &mut values)?;
        out.copy_from_slice(&self.dtype.encode(&values).map_err(|e| e.in_tensor(self.name))?);
        Ok(())
    }

    fn check(&self, rows: &Range<usize>, row_length: usize, out: usize) -> Result<()> {
        let fits = rows.start <= rows.end && rows.end <= self.rows();
        if fits && rows.len().checked_mul(row_length) == Some(out) {
            return Ok(());
        }
        let problem = format!("{rows:?} of {} rows of {row_length} into {out}", self.rows());
        Err(Error::new(ErrorKind::Argument, "rows", problem).in_tensor(self.name))
    }

    /// Calls `f` with each matrix that `rows` touches, its rows, and how many rows came before.
    fn each_part(
        &self,
        rows: Range<usize>,
        mut f: impl FnMut(&MatrixView<'a>, Range<usize>, usize) -> Result<()>,
    ) -> Result<()> {
        let mut first = 0;
        for matrix in &self.matrices {
            let start = rows.start.clamp(first, first + matrix.rows);
            let end = rows.end.clamp(start, first + matrix.rows);
            if start < end {
                f(matrix, start - first..end - first, start - rows.start)
                    .map_err(|e| e.in_tensor(self.name))?;
            }
            first += matrix.rows;
        }
        Ok(())
    }
}

/// Whether each opened row of `matrix` is whole in exactly one dense or lossless term of type
/// `dtype`.
fn is_exact(matrix: &MatrixView<'_>, dtype: DType) -> bool {
    if !(matrix.input_transforms.is_empty() && matrix.output_transforms.is_empty()) {
        return false;
    }
    let mut next_row = matrix.terms.first().map_or(0, |t| t.row).min(matrix.opened.start);
    for term in &matrix.terms {
        let stored = match &term.view {
            View::Dense(view) => view.dtype(),
            View::Lossless(view) => view.dtype(),
            _ => return false,
        };
        if stored != dtype || term.row != next_row || term.col != 0 || term.view.cols() != matrix.cols {
            return false;
        }
        next_row += term.view.rows();
    }
    next_row >= matrix.opened.end && matrix.left_out.is_empty()
}

fn exact_rows(matrix: &MatrixView<'_>, rows: Range<usize>, row_bytes: usize, out: &mut [u8]) -> Result<()> {
    for term in &matrix.terms {
        let start = rows.start.max(term.row);
        let end = rows.end.min(term.row + term.view.rows());
        if start >= end {
            continue;
        }
        let inside = start - term.row..end - term.row;
        let out =
            out.get_mut((start - rows.start) * row_bytes..(end - rows.start) * row_bytes).unwrap_or(&mut []);
        match &term.view {
            View::Dense(view) => {
                out.copy_from_slice(
                    view.bytes().get(inside.start * row_bytes..inside.end * row_bytes).unwrap_or(&[]),
                );
            }
            View::Lossless(view) => view.decode_bytes(inside, out)?,
            _ => {}
        }
    }
    Ok(())
}

//! A tensor that is ready to be decoded.

use crate::error::Result;
use crate::source::FileSource;
use crate::stored::Stored;
use crate::tensor::Levels;
use cmf_format::archive::{Cut, TensorView};
use cmf_format::{DType, ErrorKind};
use core::ops::Range;
use rayon::prelude::*;

type FormatError = cmf_format::Error;

/// Values that are decoded at a time where a second buffer is needed, and by one thread.
const BLOCK_ELEMS: usize = 1 << 18;

/// A tensor opened up to a level or for a plan, whole or for some of its rows. Rows are counted over all its
/// matrices.
#[derive(Debug)]
pub struct OpenTensor<'m> {
    source: &'m FileSource,
    name: &'m str,
    dtype: DType,
    rows: usize,
    cols: usize,
    /// Rows that are decoded at a time where it can be chosen.
    block_rows: usize,
    /// Most bytes that are decoded and not asked for.
    limit_bytes: u64,
    values: Values<'m>,
    base: Option<Box<OpenTensor<'m>>>,
}

#[derive(Debug)]
enum Values<'m> {
    /// Stored as they are from this offset on.
    Elements(u64),
    Terms(TensorView<'m>),
}

impl<'m> OpenTensor<'m> {
    /// Opens what rows `rows` need.
    pub(crate) fn new(stored: &Stored<'m>, levels: Levels<'_>, rows: Range<u64>) -> Result<Self> {
        let shape = stored.matrix_shape();
        let extent = |n: u64| {
            usize::try_from(n).map_err(|_| {
                stored.error(FormatError::new(ErrorKind::Limit, "extent", format!("{n} is too large")))
            })
        };
        let planned = match levels {
            Levels::Plan(plan) => Some(plan.of(stored.model.archive()).ok_or_else(|| {
                stored.error(FormatError::new(ErrorKind::Argument, "plan", "is of another archive"))
            })?),
            _ => None,
        };
        let holds = |unit| planned.is_none_or(|units| units.includes(unit));
        let cut = match levels {
            Levels::All => Cut::Level(u16::MAX),
            Levels::UpTo(level) => Cut::Level(level),
            Levels::Plan(_) => Cut::Units(&holds),
        };
        let values = match stored.elements() {
            Some(range) => Values::Elements(range.start),
            None => Values::Terms(
                TensorView::open_rows(&stored.record, cut, rows.clone()).map_err(|e| stored.error(e))?,
            ),
        };
        let base = match &stored.base {
            Some(base) => {
                // The base's matrices may have other columns: only the elements are the same.
                let cols = base.matrix_shape().cols.max(1);
                let start = rows.start.saturating_mul(shape.cols) / cols;
                let end = rows.end.saturating_mul(shape.cols).div_ceil(cols);
                Some(Self::new(base, Levels::All, start..end)?.into())
            }
            None => None,
        };
        let cols = extent(shape.cols)?;
        let joined = extent(stored.joined_rows())?;
        let block_rows = (BLOCK_ELEMS / cols.max(1)).max(1).checked_next_multiple_of(joined);
        Ok(Self {
            source: stored.source(),
            name: stored.record.name(),
            dtype: stored.record.dtype(),
            rows: extent(shape.all_rows())?,
            cols,
            block_rows: block_rows.unwrap_or(usize::MAX),
            limit_bytes: stored.model.archive().limits().decoded_tensor_bytes,
            values,
            base,
        })
    }

    /// Rows of all matrices together; 0 for a tensor without elements.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of each matrix; 0 for a tensor without elements.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the stored bytes are the original elements, or give them back to the bit.
    pub fn is_exact(&self) -> bool {
        match &self.values {
            Values::Elements(_) => true,
            Values::Terms(view) => self.base.is_none() && view.is_exact(),
        }
    }

    /// How many optional terms are left out because this reader does not know their encoding: the
    /// values are those of a lower quality.
    pub fn left_out(&self) -> usize {
        let own = match &self.values {
            Values::Elements(_) => 0,
            Values::Terms(view) => view.matrices().iter().map(|m| m.left_out().len()).sum(),
        };
        own + self.base.as_ref().map_or(0, |base| base.left_out())
    }

    /// Decodes rows `rows` into `out`, row-major. For a delta, each value is the base's plus the
    /// sum of the terms here.
    ///
    /// # Errors
    /// `Argument` when `rows` is out of range or not opened, or `out` is not `rows.len() * cols`
    /// long; `Format` with `Value` when the payload breaks a rule of its encoding; `Io`, `Changed`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check(&rows, self.cols, out.len())?;
        let Some(base) = &self.base else { return self.decode_own(rows, out) };
        let mut sums = Vec::new();
        for (block, out) in self.blocks(rows, 1, out) {
            base.decode_elements(block.start.saturating_mul(self.cols), out)?;
            if matches!(&self.values, Values::Terms(view) if view.matrices().is_empty()) {
                continue;
            }
            sums.clear();
            sums.resize(out.len(), 0.0);
            self.decode_own(block, &mut sums)?;
            for (out, sum) in out.iter_mut().zip(&sums) {
                *out += sum;
            }
        }
        Ok(())
    }

    /// [`OpenTensor::decode_rows`] on the threads of the current rayon pool, to the same values.
    ///
    /// # Errors
    /// As [`OpenTensor::decode_rows`], that of the first row which cannot be decoded.
    pub fn decode_rows_parallel(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check(&rows, self.cols, out.len())?;
        let blocks: Vec<_> = self.blocks(rows, 1, out).collect();
        let results = blocks.into_par_iter().map(|(block, out)| self.decode_rows(block, out));
        results.find_first(|result| result.is_err()).unwrap_or(Ok(()))
    }

    /// Writes rows `rows` as little-endian elements of the tensor's type: the original bytes when
    /// [`OpenTensor::is_exact`], else decoded values rounded to the type.
    ///
    /// # Errors
    /// As [`OpenTensor::decode_rows`].
    pub fn read_elements(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let element_bytes = self.dtype.bytes();
        let row_bytes = self.cols.saturating_mul(element_bytes);
        self.check(&rows, row_bytes, out.len())?;
        match (&self.values, &self.base) {
            (Values::Elements(start), _) => {
                let offset = start.saturating_add((rows.start as u64).saturating_mul(row_bytes as u64));
                return self.source.read_into(offset, out).map_err(|e| self.error(e));
            }
            (Values::Terms(view), None) if view.is_exact() => {
                return view.read_elements(rows, out).map_err(|e| self.error(e));
            }
            _ => {}
        }
        let mut values = Vec::new();
        for (block, out) in self.blocks(rows, element_bytes, out) {
            values.clear();
            values.resize(block.len().saturating_mul(self.cols), 0.0);
            self.decode_rows(block, &mut values)?;
            out.copy_from_slice(&self.dtype.encode(&values).map_err(|e| self.error(e))?);
        }
        Ok(())
    }

    /// Decodes the elements from `start` on, which need not begin or end with a row.
    fn decode_elements(&self, start: usize, out: &mut [f32]) -> Result<()> {
        let cols = self.cols.max(1);
        let rows = start / cols..start.saturating_add(out.len()).div_ceil(cols);
        let before = start % cols;
        if before == 0 && out.len().is_multiple_of(cols) {
            return self.decode_rows(rows, out);
        }
        let elements = rows.len().saturating_mul(cols);
        if (elements as u64).saturating_mul(4) > self.limit_bytes {
            let expected = format!("at most {} decoded bytes", self.limit_bytes);
            let found = format!("{elements} values");
            return Err(self.error(FormatError::expected(ErrorKind::Limit, "row", expected, found)));
        }
        let mut whole = vec![0.0; elements];
        self.decode_rows(rows, &mut whole)?;
        out.copy_from_slice(whole.get(before..before.saturating_add(out.len())).unwrap_or(&[]));
        Ok(())
    }

    /// Decodes without the base.
    fn decode_own(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let start = match &self.values {
            Values::Elements(start) => *start,
            Values::Terms(view) => return view.decode_rows(rows, out).map_err(|e| self.error(e)),
        };
        let row_bytes = (self.cols as u64).saturating_mul(self.dtype.bytes() as u64);
        for (block, out) in self.blocks(rows, 1, out) {
            let offset = start.saturating_add((block.start as u64).saturating_mul(row_bytes));
            let bytes = (block.len() as u64).saturating_mul(row_bytes);
            cmf_format::Source::read(self.source, offset, bytes)
                .and_then(|bytes| self.dtype.decode(&bytes, out))
                .map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    /// Cuts `rows` and their part of `out`, of `width` items an element, into blocks.
    fn blocks<'o, T>(
        &self,
        rows: Range<usize>,
        width: usize,
        out: &'o mut [T],
    ) -> impl Iterator<Item = (Range<usize>, &'o mut [T])> + use<'o, T> {
        let row_items = self.cols.saturating_mul(width).max(1);
        let block_rows = self.block_rows;
        out.chunks_mut(block_rows.saturating_mul(row_items)).enumerate().map(move |(i, out)| {
            let start = rows.start.saturating_add(i.saturating_mul(block_rows)).min(rows.end);
            (start..start.saturating_add(block_rows).min(rows.end), out)
        })
    }

    fn check(&self, rows: &Range<usize>, row_items: usize, found: usize) -> Result<()> {
        let fits = rows.start <= rows.end && rows.end <= self.rows;
        if fits && rows.len().checked_mul(row_items) == Some(found) {
            return Ok(());
        }
        let problem = format!("{rows:?} of {} rows of {row_items} into {found}", self.rows);
        Err(self.error(FormatError::new(ErrorKind::Argument, "rows", problem)))
    }

    fn error(&self, error: FormatError) -> crate::Error {
        self.source.error(error.in_tensor(self.name))
    }
}

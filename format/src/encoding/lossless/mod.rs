//! `lossless`: elements of one type in byte planes, each plane in zstd frames where that makes it
//! smaller (spec: encodings/lossless).
//!
//! Every element is rotated left by one bit, so that its sign leaves the exponent's byte, and cut
//! into bytes. Trained weights have exponents of less than three bits of information and mantissas
//! that nothing compresses.

mod descriptor;
mod pack;
mod planes;
#[cfg(test)]
mod tests;

pub use descriptor::{Descriptor, DescriptorRecord, MAX_FRAME_ELEMENTS};
pub use pack::pack;

use super::{RawNode, check_rows, extent, structure, value};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::segment::{decompress_frame_with, decompressor};
use core::ops::Range;
use std::borrow::Cow;
use zstd::bulk::Decompressor;

/// Id on disk.
pub const ID: u32 = 6;
/// Name in every layer.
pub const NAME: &str = "lossless";
/// Version written and read.
pub const VERSION: u16 = 1;

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    rows_per_frame: usize,
    ends: Cow<'a, [u8]>,
    chunks: Cow<'a, [u8]>,
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let descriptor = raw.check(Descriptor::parse)?;
        let mut segments = raw.segments.into_iter();
        let mut segment =
            || segments.next().ok_or_else(|| structure("segment count", "expected more segments"));
        Ok(Self {
            dtype: descriptor.dtype,
            rows: extent("rows", raw.rows)?,
            cols: extent("cols", raw.cols)?,
            rows_per_frame: extent("rows_per_frame", descriptor.rows_per_frame.into())?,
            ends: segment()?,
            chunks: segment()?,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows that are decoded together.
    pub fn rows_per_frame(&self) -> usize {
        self.rows_per_frame
    }

    /// Decodes rows `rows` into `out`: the exact element bytes, row-major, little-endian.
    ///
    /// # Errors
    /// `Argument` when `rows` is out of range or `out` has another length, `Value` when the
    /// payload breaks a rule.
    pub fn decode_bytes(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let element_bytes = self.dtype.bytes();
        check_rows(self.rows, self.cols.saturating_mul(element_bytes), &rows, out.len())?;
        let row_bytes = self.cols * element_bytes;
        let mut planes = Planes::new(self)?;
        self.each_frame(rows.clone(), |frame, covered| {
            let range = (covered.start - rows.start) * row_bytes..(covered.end - rows.start) * row_bytes;
            planes.decode(frame, covered, out.get_mut(range).unwrap_or(&mut []))
        })
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut planes = Planes::new(self)?;
        let mut bytes = Vec::new();
        self.each_frame(rows.clone(), |frame, covered| {
            let range = (covered.start - rows.start) * self.cols..(covered.end - rows.start) * self.cols;
            bytes.resize(range.len() * self.dtype.bytes(), 0);
            planes.decode(frame, covered, &mut bytes)?;
            self.dtype.decode(&bytes, out.get_mut(range).unwrap_or(&mut []))
        })
    }

    pub(super) fn verify(&self) -> Result<()> {
        let mut planes = Planes::new(self)?;
        if self.rows == 0 || self.cols == 0 {
            return match self.chunks.len() {
                0 => Ok(()),
                found => Err(value("chunks", format!("expected no bytes, found {found}"))),
            };
        }
        self.each_frame(0..self.rows, |frame, _| {
            for plane in 0..self.dtype.bytes() {
                planes.load(frame, plane)?;
            }
            Ok(())
        })
    }

    /// Calls `visit` with each frame that holds any of `rows`, and those of its rows.
    fn each_frame(
        &self,
        rows: Range<usize>,
        mut visit: impl FnMut(usize, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        if rows.is_empty() || self.cols == 0 {
            return Ok(());
        }
        for frame in rows.start / self.rows_per_frame..rows.end.div_ceil(self.rows_per_frame) {
            let of_frame = self.frame_rows(frame);
            visit(frame, rows.start.max(of_frame.start)..rows.end.min(of_frame.end))?;
        }
        Ok(())
    }

    fn frame_rows(&self, frame: usize) -> Range<usize> {
        let start = frame * self.rows_per_frame;
        start..start.saturating_add(self.rows_per_frame).min(self.rows)
    }

    /// The stored bytes of a plane of a frame.
    fn chunk(&self, frame: usize, plane: usize) -> Result<&[u8]> {
        let (ends, _) = self.ends.as_chunks::<8>();
        let index = frame * self.dtype.bytes() + plane;
        let end = |index: usize| ends.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let start = index.checked_sub(1).map_or(0, end);
        let (end, all) = (end(index), self.chunks.len() as u64);
        let last = index + 1 == ends.len();
        if start > end || end > all || (last && end != all) {
            return Err(value(
                "ends",
                format!("chunk {index}: expected a range that ascends to {all}, found {start} to {end}"),
            ));
        }
        Ok(self.chunks.get(start as usize..end as usize).unwrap_or(&[]))
    }
}

/// Decoded planes of one frame, in buffers that serve all frames.
struct Planes<'v, 'a> {
    view: &'v View<'a>,
    decompressor: Decompressor<'static>,
    buffers: Vec<Vec<u8>>,
}

impl<'v, 'a> Planes<'v, 'a> {
    fn new(view: &'v View<'a>) -> Result<Self> {
        let buffers = vec![Vec::new(); view.dtype.bytes()];
        Ok(Self { view, decompressor: decompressor()?, buffers })
    }

    /// Decodes a plane of a frame into its buffer; `None` says that it is stored raw, as returned.
    fn load(&mut self, frame: usize, plane: usize) -> Result<Option<&'v [u8]>> {
        let elements = self.view.frame_rows(frame).len() * self.view.cols;
        let chunk = self.view.chunk(frame, plane)?;
        if chunk.len() == elements {
            return Ok(Some(chunk));
        }
        if chunk.len() > elements {
            return Err(Error::expected(
                ErrorKind::Value,
                "chunks",
                format_args!("frame {frame}, plane {plane} in at most {elements} bytes"),
                chunk.len(),
            ));
        }
        if let Some(buffer) = self.buffers.get_mut(plane) {
            buffer.resize(elements, 0);
            decompress_frame_with(&mut self.decompressor, chunk, buffer)
                .map_err(|e| e.within(format_args!("chunks: frame {frame}, plane {plane}")))?;
        }
        Ok(None)
    }

    /// Puts the elements of rows `rows` of a frame together.
    fn decode(&mut self, frame: usize, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let first = self.view.frame_rows(frame).start;
        let range = (rows.start - first) * self.view.cols..(rows.end - first) * self.view.cols;
        let mut raw = [None; 8];
        for (plane, raw) in raw.iter_mut().enumerate().take(self.view.dtype.bytes()) {
            *raw = self.load(frame, plane)?;
        }
        let mut sources = [[].as_slice(); 8];
        for ((source, raw), buffer) in sources.iter_mut().zip(raw).zip(&self.buffers) {
            *source = raw.unwrap_or(buffer).get(range.clone()).unwrap_or(&[]);
        }
        planes::merge(self.view.dtype.bytes(), &sources, out);
        Ok(())
    }
}

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
use std::sync::Mutex;
use zstd::bulk::Decompressor;

/// Id on disk.
pub const ID: u32 = 6;
/// Name in every layer.
pub const NAME: &str = "lossless";
/// Version written and read.
pub const VERSION: u16 = 1;

/// Most decompressed bytes that a view keeps between reads.
const SPARE_BYTES: usize = 1 << 20;
/// About what a decompressor takes.
const DECOMPRESSOR_BYTES: usize = 160 << 10;

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    rows_per_frame: usize,
    ends: Cow<'a, [u8]>,
    chunks: Cow<'a, [u8]>,
    /// Whether reads may leave anything behind.
    keeps: bool,
    /// What the last read left behind: rows of the same frame need no second decompression.
    spare: Mutex<Option<Workspace>>,
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let descriptor = raw.check(Descriptor::parse)?;
        let rows_per_frame = extent("rows_per_frame", descriptor.rows_per_frame.into())?;
        let cols = extent("cols", raw.cols)?;
        let frame_bytes = rows_per_frame.saturating_mul(cols).saturating_mul(descriptor.dtype.bytes());
        let keeps = frame_bytes <= SPARE_BYTES && raw.keep.take(frame_bytes + DECOMPRESSOR_BYTES);
        let mut segments = raw.segments.into_iter();
        let mut segment =
            || segments.next().ok_or_else(|| structure("segment count", "expected more segments"));
        Ok(Self {
            dtype: descriptor.dtype,
            rows: extent("rows", raw.rows)?,
            cols,
            rows_per_frame,
            ends: segment()?,
            chunks: segment()?,
            keeps,
            spare: Mutex::new(None),
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
        self.with_workspace(|workspace| {
            self.each_frame(rows.clone(), |frame, covered| {
                let range = (covered.start - rows.start) * row_bytes..(covered.end - rows.start) * row_bytes;
                self.decode_frame(workspace, frame, covered, out.get_mut(range).unwrap_or(&mut []))
            })
        })
    }

    /// Frame `index`, decompressed into `workspace`, unless that is the frame of this node that lies there.
    ///
    /// A workspace that another node has used is to [`Workspace::forget`] its frame first.
    ///
    /// # Errors
    /// `Argument` when there is no such frame, `Value` when the payload breaks a rule.
    pub fn frame<'w>(&'w self, workspace: &'w mut Workspace, index: usize) -> Result<Frame<'w>> {
        let rows = self.frame_rows(index);
        if rows.is_empty() || self.cols == 0 {
            return Err(Error::new(ErrorKind::Argument, "frame", format!("{index} is not there")));
        }
        let raw = self.load(workspace, index)?;
        let mut planes = [[].as_slice(); 8];
        for ((plane, raw), buffer) in planes.iter_mut().zip(raw).zip(&workspace.planes) {
            *plane = raw.unwrap_or(buffer);
        }
        Ok(Frame { rows, element_bytes: self.dtype.bytes(), planes })
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut bytes = Vec::new();
        self.with_workspace(|workspace| {
            self.each_frame(rows.clone(), |frame, covered| {
                let range = (covered.start - rows.start) * self.cols..(covered.end - rows.start) * self.cols;
                bytes.resize(range.len() * self.dtype.bytes(), 0);
                self.decode_frame(workspace, frame, covered, &mut bytes)?;
                self.dtype.decode(&bytes, out.get_mut(range).unwrap_or(&mut []))
            })
        })
    }

    pub(super) fn verify(&self) -> Result<()> {
        if self.rows == 0 || self.cols == 0 {
            return match self.chunks.len() {
                0 => Ok(()),
                found => Err(value("chunks", format!("expected no bytes, found {found}"))),
            };
        }
        self.with_workspace(|workspace| {
            self.each_frame(0..self.rows, |frame, _| self.load(workspace, frame).map(drop))
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
        let start = frame.saturating_mul(self.rows_per_frame);
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

    /// Runs `read` with the spare workspace, or with a new one while another thread has it.
    fn with_workspace(&self, read: impl FnOnce(&mut Workspace) -> Result<()>) -> Result<()> {
        let spare = self.spare.lock().ok().and_then(|mut spare| spare.take());
        let mut workspace = match spare {
            Some(workspace) => workspace,
            None => Workspace::new()?,
        };
        let result = read(&mut workspace);
        if self.keeps
            && let Ok(mut spare) = self.spare.lock()
        {
            *spare = Some(workspace);
        }
        result
    }

    /// Decompresses the planes of a frame; those that are stored raw are returned.
    fn load(&self, workspace: &mut Workspace, frame: usize) -> Result<[Option<&[u8]>; 8]> {
        let elements = self.frame_rows(frame).len() * self.cols;
        let loaded = workspace.frame.take() == Some(frame);
        let mut raw = [None; 8];
        let planes = raw.iter_mut().zip(&mut workspace.planes).take(self.dtype.bytes());
        for (plane, (raw, buffer)) in planes.enumerate() {
            let chunk = self.chunk(frame, plane)?;
            if chunk.len() > elements {
                return Err(Error::expected(
                    ErrorKind::Value,
                    "chunks",
                    format_args!("frame {frame}, plane {plane} in at most {elements} bytes"),
                    chunk.len(),
                ));
            }
            if chunk.len() == elements {
                *raw = Some(chunk);
            } else if elements as u64 > MAX_FRAME_ELEMENTS {
                let expected = format!("frame {frame}, plane {plane} stored raw in {elements} bytes");
                return Err(Error::expected(ErrorKind::Value, "chunks", expected, chunk.len()));
            } else if !loaded {
                buffer.resize(elements, 0);
                decompress_frame_with(&mut workspace.decompressor, chunk, buffer)
                    .map_err(|e| e.within(format_args!("chunks: frame {frame}, plane {plane}")))?;
            }
        }
        workspace.frame = Some(frame);
        Ok(raw)
    }

    /// Puts the elements of rows `rows` of a frame together.
    fn decode_frame(
        &self,
        workspace: &mut Workspace,
        frame: usize,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        let frame = self.frame(workspace, frame)?;
        let first = frame.rows.start;
        frame.merge((rows.start - first) * self.cols..(rows.end - first) * self.cols, out);
        Ok(())
    }
}

/// The byte planes of some rows.
#[derive(Clone, Debug)]
pub struct Frame<'w> {
    rows: Range<usize>,
    element_bytes: usize,
    planes: [&'w [u8]; 8],
}

impl<'w> Frame<'w> {
    /// The rows of the node that the frame has.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// A byte of each element after its rotation to the left by one bit, row-major, the most significant
    /// plane first: as many planes as an element has bytes.
    pub fn planes(&self) -> &[&'w [u8]] {
        self.planes.get(..self.element_bytes).unwrap_or(&[])
    }

    /// Puts elements `elements` of the frame together, little-endian.
    pub fn merge(&self, elements: Range<usize>, out: &mut [u8]) {
        let sources = self.planes.map(|plane| plane.get(elements.clone()).unwrap_or(&[]));
        planes::merge(self.element_bytes, &sources, out);
    }
}

/// A decompressor and the decompressed planes of one frame, for [`View::frame`].
pub struct Workspace {
    decompressor: Decompressor<'static>,
    planes: [Vec<u8>; 8],
    frame: Option<usize>,
}

impl Workspace {
    /// Room for no frame yet.
    ///
    /// # Errors
    /// `Limit` when there is no memory for a decompressor.
    pub fn new() -> Result<Self> {
        Ok(Self { decompressor: decompressor()?, planes: Default::default(), frame: None })
    }

    /// Forgets which frame it has, so that the next one is decompressed whatever its number.
    pub fn forget(&mut self) {
        self.frame = None;
    }

    /// About how many bytes are held.
    pub fn bytes(&self) -> usize {
        DECOMPRESSOR_BYTES + self.planes.iter().map(Vec::capacity).sum::<usize>()
    }
}

impl core::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Workspace").field("frame", &self.frame).finish_non_exhaustive()
    }
}

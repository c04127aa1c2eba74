//! The validated view over the bytes of one archive.

mod access;
mod check;
mod cut;
mod foreign;
mod matrix;
mod sum;
mod transforms;
mod verify;

pub use access::{Attribute, Matrix, Node, Reference, ReferenceKind, Segment, Step, Tensor, Term, Unit};
pub use cut::Cut;
pub use matrix::{MatrixView, TensorView};
pub use verify::ChunkGroups;

use crate::error::{Error, ErrorKind, Result};
use crate::hash;
use crate::limits::Limits;
use crate::source::Source;
use crate::wire::{HEADER_BYTES, Header, NONE, Table};
use core::marker::PhantomData;

/// A `.cmf` whose directory has been checked whole.
///
/// Parsing reads the header and the directory, in O(directory) time and without touching payload.
/// Payload is checked against its hashes by [`Archive::verify`] and the finer `verify_*` methods;
/// decoding without verification is safe, and gives an error or wrong values for damaged bytes.
///
/// The source may be any `AsRef<[u8]>` that always gives the same bytes (a vector, a slice, a
/// map), or one that reads on demand.
#[derive(Debug)]
pub struct Archive<S> {
    source: S,
    header: Header,
    limits: Limits,
    tables: [Span; Table::ALL.len()],
    /// Whether there are tables, or ends of records, that this reader does not know.
    more: bool,
    /// Whether a node and all below it have encodings that this reader knows.
    known_nodes: Vec<bool>,
}

/// Where a table lies in the file.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    offset: usize,
    record_bytes: usize,
    count: usize,
}

/// The records of one table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Records<'a, T> {
    bytes: &'a [u8],
    span: Span,
    record: PhantomData<T>,
}

impl<'a, T: bytemuck::Pod> Records<'a, T> {
    fn get(&self, index: usize) -> Option<&'a T> {
        if index >= self.span.count {
            return None;
        }
        let start = self.span.offset.checked_add(index.checked_mul(self.span.record_bytes)?)?;
        let bytes = self.bytes.get(start..start.checked_add(size_of::<T>())?)?;
        bytemuck::try_from_bytes(bytes).ok()
    }

    fn len(&self) -> usize {
        self.span.count
    }

    /// The records of `range`, found without walking over those before it.
    fn slice(self, range: core::ops::Range<usize>) -> Self {
        let count = range.end.min(self.span.count).saturating_sub(range.start);
        let skipped_bytes = range.start.saturating_mul(self.span.record_bytes);
        let span = Span { offset: self.span.offset.saturating_add(skipped_bytes), count, ..self.span };
        Self { span, ..self }
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = &'a T> + use<'a, T> {
        let span = self.span;
        let bytes = self
            .bytes
            .get(span.offset..span.offset.saturating_add(span.count.saturating_mul(span.record_bytes)))
            .unwrap_or(&[]);
        bytes
            .chunks_exact(span.record_bytes.max(1))
            .map(|record| bytemuck::from_bytes(record.get(..size_of::<T>()).unwrap_or(record)))
    }
}

impl<S: Source> Archive<S> {
    /// Checks the header and the directory.
    ///
    /// # Errors
    /// `NotCmf` for another format (named when it is known), `Truncated`, `UnsupportedVersion`,
    /// `Unsupported`, `Limit`, `Hash` for a damaged directory, `Structure` for one that breaks a
    /// rule; each with the absolute offset, expected and found.
    pub fn parse(source: S, limits: &Limits) -> Result<Self> {
        let head = source.head();
        let end = Self::head_bytes(head, source.file_bytes(), limits)?;
        let header = check::header(head, source.file_bytes())?;
        let directory = usize::try_from(end)
            .ok()
            .and_then(|end| head.get(256..end))
            .ok_or_else(|| check::truncated("directory", HEADER_BYTES, end, source.file_bytes()))?;
        if hash::hash(directory) != header.directory_hash {
            return Err(Error::new(ErrorKind::Hash, "directory", "its BLAKE3 hash is not the header's")
                .at(HEADER_BYTES));
        }
        let (tables, more) = check::tables(directory, &header, limits)?;
        let mut archive =
            Self { source, header, limits: limits.clone(), tables, more, known_nodes: Vec::new() };
        archive.known_nodes = check::records(&archive)?;
        Ok(archive)
    }

    /// Length of header and directory together, from the first [`HEADER_BYTES`] bytes of a file of
    /// `file_bytes` bytes. For readers that fetch the head on its own.
    ///
    /// # Errors
    /// As [`Archive::parse`] for the header.
    pub fn head_bytes(head: &[u8], file_bytes: u64, limits: &Limits) -> Result<u64> {
        let header = check::header(head, file_bytes)?;
        let directory_bytes = header.directory_bytes.get();
        if directory_bytes > limits.directory_bytes {
            let expected = format!("at most {}", limits.directory_bytes);
            return Err(Error::expected(
                ErrorKind::Limit,
                "header.directory_bytes",
                expected,
                directory_bytes,
            )
            .at(40));
        }
        HEADER_BYTES
            .checked_add(directory_bytes)
            .filter(|end| *end <= file_bytes)
            .ok_or_else(|| check::truncated("directory", HEADER_BYTES, directory_bytes, file_bytes))
    }

    fn records<T: bytemuck::Pod>(&self, table: Table) -> Records<'_, T> {
        Records { bytes: self.source.head(), span: self.span(table), record: PhantomData }
    }

    /// The bytes of a table of single bytes.
    fn heap(&self, table: Table) -> &[u8] {
        let span = self.span(table);
        self.source.head().get(span.offset..span.offset.saturating_add(span.count)).unwrap_or(&[])
    }

    fn span(&self, table: Table) -> Span {
        let index = table.number() as usize - Table::Strings.number() as usize;
        self.tables.get(index).copied().unwrap_or_default()
    }

    /// Absolute offset of a record.
    fn record_offset(&self, table: Table, index: usize) -> u64 {
        let span = self.span(table);
        (span.offset as u64).saturating_add((index as u64).saturating_mul(span.record_bytes as u64))
    }

    fn chunk_hash_segment(&self) -> Option<usize> {
        match self.header.chunk_hash_segment.get() {
            NONE => None,
            segment => Some(segment as usize),
        }
    }

    /// Where the bytes come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The limits that the archive was parsed with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// BLAKE3 of the header: the archive's identity, which covers every byte of the file.
    pub fn identity(&self) -> [u8; 32] {
        hash::hash(bytemuck::bytes_of(&self.header))
    }
}

//! Places of all segments, and the stream of the whole file.

use super::tables::Tables;
use super::{ArchiveBuilder, argument};
use crate::Archive;
use crate::error::Result;
use crate::hash;
use crate::limits::Limits;
use crate::segment::{SegmentData, SegmentSource, StoredSegment};
use crate::wire::*;
use std::io::{self, Write};

/// An archive that is laid out and can be streamed.
#[derive(Debug)]
pub struct Layout {
    head: Vec<u8>,
    segments: Vec<(u64, SegmentData)>,
    file_bytes: u64,
}

impl Layout {
    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The archive's identity.
    pub fn identity(&self) -> [u8; 32] {
        hash::hash(self.head.get(..256).unwrap_or(&[]))
    }

    /// Streams the file. `stored` is called with each segment that the caller keeps,
    /// in file order, and must write its bytes.
    ///
    /// # Errors
    /// From `out` and `stored`, and `InvalidData` when `stored` writes another number of bytes
    /// than it stated.
    pub fn write(
        &self,
        out: &mut impl Write,
        mut stored: impl FnMut(&StoredSegment, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut out = Counted { out, bytes: 0 };
        out.write_all(&self.head)?;
        for (offset, segment) in &self.segments {
            let gap = offset.saturating_sub(out.bytes);
            io::copy(&mut io::Read::take(io::repeat(0), gap), &mut out)?;
            match &segment.source {
                SegmentSource::Bytes(bytes) => out.write_all(bytes)?,
                SegmentSource::Stored(segment) => stored(segment, &mut out)?,
            }
            if out.bytes != offset.saturating_add(segment.stored_bytes()) {
                let problem = format!("segment at {offset:#x}: expected {} bytes", segment.stored_bytes());
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
        }
        Ok(())
    }
}

struct Counted<'w, W> {
    out: &'w mut W,
    bytes: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

pub(super) fn lay_out(builder: &ArchiveBuilder) -> Result<Layout> {
    let options = builder.options;
    let mut tables = Tables::build(builder)?;
    let group = options.chunk_group_bytes as usize;
    let hashes: Vec<_> = tables.segments.iter().map(|s| s.hashes(group)).collect();
    let chunk_hashes: Vec<u8> = hashes.iter().flat_map(|(_, groups)| groups.concat()).collect();
    let chunk_hash_segment = match chunk_hashes.is_empty() {
        true => NONE,
        false => 0,
    };
    // The chunk-group hashes come before the payload that they are for. They are segment 0, so
    // that every reference in the tables moves up by one.
    let mut segments = Vec::with_capacity(tables.segments.len() + 1);
    let mut records = Vec::with_capacity(tables.segments.len() + 1);
    let mut all_hashes = Vec::with_capacity(hashes.len() + 1);
    if chunk_hash_segment != NONE {
        let segment = SegmentData::from(chunk_hashes);
        all_hashes.push((segment.hashes(usize::MAX).0, 0));
        segments.push(segment);
        tables.shift_segments();
    }
    all_hashes.extend(hashes.iter().map(|(hash, groups)| (*hash, groups.len())));
    segments.append(&mut tables.segments);

    let directory_bytes = tables.directory_bytes(segments.len());
    let too_large = || argument("archive", "is larger than 64 bits can address");
    let alignment = u64::from(options.alignment_bytes);
    if !alignment.is_power_of_two() {
        return Err(argument("alignment_bytes", format!("{alignment} is no power of two")));
    }
    let mut end = HEADER_BYTES + directory_bytes;
    let mut first_chunk_hash = 0u32;
    let mut placed = Vec::with_capacity(segments.len());
    for (segment, (hash, groups)) in segments.into_iter().zip(all_hashes) {
        let offset = end.checked_next_multiple_of(alignment).ok_or_else(too_large)?;
        end = offset.checked_add(segment.stored_bytes()).ok_or_else(too_large)?;
        records.push(SegmentRecord {
            offset: offset.into(),
            stored_bytes: segment.stored_bytes().into(),
            decoded_bytes: segment.decoded_bytes.into(),
            first_chunk_hash: if groups == 0 { NONE } else { first_chunk_hash }.into(),
            compression: segment.compression as u8,
            reserved: 0,
            flags: 0.into(),
            hash,
        });
        first_chunk_hash += groups as u32;
        placed.push((offset, segment));
    }
    let directory = tables.directory(&records);
    let header = Header {
        magic: MAGIC,
        major: MAJOR.into(),
        minor: MINOR.into(),
        edition: EDITION.into(),
        alignment_bytes: options.alignment_bytes.into(),
        file_bytes: end.into(),
        directory_offset: HEADER_BYTES.into(),
        directory_bytes: directory_bytes.into(),
        must_understand: 0.into(),
        may_ignore: 0.into(),
        directory_hash: hash::hash(&directory),
        chunk_group_bytes: options.chunk_group_bytes.into(),
        chunk_hash_segment: chunk_hash_segment.into(),
        table_count: (Table::ALL.len() as u32).into(),
        reserved: [0; 148],
    };
    let mut head = bytemuck::bytes_of(&header).to_vec();
    head.extend_from_slice(&directory);
    let layout = Layout { head, segments: placed, file_bytes: end };
    layout.check()?;
    Ok(layout)
}

impl Layout {
    /// Parses what is about to be written: the writer cannot make what the reader refuses.
    fn check(&self) -> Result<()> {
        struct Head<'a>(&'a Layout);
        impl crate::Source for Head<'_> {
            fn head(&self) -> &[u8] {
                &self.0.head
            }
            fn file_bytes(&self) -> u64 {
                self.0.file_bytes
            }
            fn read(&self, _: u64, _: u64) -> Result<std::borrow::Cow<'_, [u8]>> {
                Err(argument("payload", "is not written yet"))
            }
        }
        let limits = Limits { directory_bytes: u64::MAX, records: u64::MAX, ..Limits::default() };
        Archive::parse(Head(self), &limits).map(drop)
    }
}

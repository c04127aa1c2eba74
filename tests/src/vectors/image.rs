//! Archives taken apart and put together again, to break one rule at a time.
//!
//! Offsets and sizes are those of the spec, typed again.

use cmf_format::hash;

/// Table numbers (spec: container, 4).
pub mod table {
    #![allow(missing_docs, reason = "the names of the spec")]
    pub const STRINGS: u32 = 1;
    pub const EXTENTS: u32 = 2;
    pub const ATTRIBUTES: u32 = 3;
    pub const ARCHIVES: u32 = 4;
    pub const TENSORS: u32 = 5;
    pub const MATRICES: u32 = 6;
    pub const TRANSFORMS: u32 = 7;
    pub const TERMS: u32 = 8;
    pub const NODES: u32 = 9;
    pub const REFS: u32 = 10;
    pub const DESCRIPTORS: u32 = 11;
    pub const SEGMENTS: u32 = 12;
    pub const UNITS: u32 = 13;
    pub const SCHEDULE: u32 = 14;
}

const HEADER_BYTES: usize = 256;
const TABLE_RECORD_BYTES: usize = 32;

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The bytes of an archive, with access by table, record and field.
#[derive(Clone, Debug)]
pub struct Image {
    /// The file.
    pub bytes: Vec<u8>,
}

impl Image {
    /// Offset of the table record of `kind`.
    pub fn table_record(&self, kind: u32) -> usize {
        let count = number::<4>(&self.bytes, 104) as usize;
        (0..count)
            .map(|i| HEADER_BYTES + i * TABLE_RECORD_BYTES)
            .find(|at| number::<4>(&self.bytes, *at) == u64::from(kind))
            .unwrap_or(usize::MAX)
    }

    /// Offset of a field of a record.
    pub fn at(&self, kind: u32, record: usize, field: usize) -> usize {
        let table = self.table_record(kind);
        let record_bytes = number::<4>(&self.bytes, table + 8) as usize;
        HEADER_BYTES + number::<8>(&self.bytes, table + 16) as usize + record * record_bytes + field
    }

    /// Bytes of segment `index`.
    pub fn segment(&self, index: usize) -> core::ops::Range<usize> {
        let at = self.at(table::SEGMENTS, index, 0);
        let offset = number::<8>(&self.bytes, at) as usize;
        offset..offset + number::<8>(&self.bytes, at + 8) as usize
    }

    /// Writes `value` at an offset.
    pub fn put(mut self, at: usize, value: &[u8]) -> Self {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self
    }

    /// Writes a field of a record.
    pub fn set(self, kind: u32, record: usize, field: usize, value: &[u8]) -> Self {
        let at = self.at(kind, record, field);
        self.put(at, value)
    }

    /// Writes a `u16` field.
    pub fn u16(self, kind: u32, record: usize, field: usize, value: u16) -> Self {
        self.set(kind, record, field, &value.to_le_bytes())
    }

    /// Writes a `u32` field.
    pub fn u32(self, kind: u32, record: usize, field: usize, value: u32) -> Self {
        self.set(kind, record, field, &value.to_le_bytes())
    }

    /// Writes a `u64` field.
    pub fn u64(self, kind: u32, record: usize, field: usize, value: u64) -> Self {
        self.set(kind, record, field, &value.to_le_bytes())
    }

    /// Writes bytes of a segment and states its new hash.
    pub fn payload(self, index: usize, at: usize, value: &[u8]) -> Self {
        let range = self.segment(index);
        let image = self.put(range.start + at, value);
        let hash = hash::hash(&image.bytes[range]);
        image.set(table::SEGMENTS, index, 32, &hash)
    }

    /// The file with the hash of its directory stated.
    pub fn seal(self) -> Vec<u8> {
        let end = HEADER_BYTES + number::<8>(&self.bytes, 40) as usize;
        let hash = hash::hash(&self.bytes[HEADER_BYTES..end]);
        self.put(64, &hash).bytes
    }
}

/// One table.
#[derive(Clone, Debug)]
pub struct TableParts {
    /// Number.
    pub kind: u32,
    /// Flags.
    pub flags: u32,
    /// Bytes from one record to the next.
    pub record_bytes: usize,
    /// Records.
    pub bytes: Vec<u8>,
}

/// An archive in parts, which are laid out anew when they are put together.
#[derive(Clone, Debug)]
pub struct Parts {
    header: Vec<u8>,
    /// Tables in order.
    pub tables: Vec<TableParts>,
    /// Stored bytes of the segments.
    pub segments: Vec<Vec<u8>>,
}

impl Parts {
    /// Takes an archive apart.
    pub fn of(bytes: &[u8]) -> Self {
        let image = Image { bytes: bytes.to_vec() };
        let count = number::<4>(bytes, 104) as usize;
        let tables: Vec<TableParts> = (0..count)
            .map(|i| {
                let at = HEADER_BYTES + i * TABLE_RECORD_BYTES;
                let record_bytes = number::<4>(bytes, at + 8) as usize;
                let start = HEADER_BYTES + number::<8>(bytes, at + 16) as usize;
                let end = start + number::<8>(bytes, at + 24) as usize * record_bytes;
                TableParts {
                    kind: number::<4>(bytes, at) as u32,
                    flags: number::<4>(bytes, at + 4) as u32,
                    record_bytes,
                    bytes: bytes[start..end].to_vec(),
                }
            })
            .collect();
        let segments = tables.iter().find(|t| t.kind == table::SEGMENTS).map_or(0, |t| t.bytes.len() / 64);
        let segments = (0..segments).map(|i| bytes[image.segment(i)].to_vec()).collect();
        Self { header: bytes[..HEADER_BYTES].to_vec(), tables, segments }
    }

    /// Changes the table `kind`.
    pub fn table(mut self, kind: u32, change: impl FnOnce(&mut TableParts)) -> Self {
        if let Some(table) = self.tables.iter_mut().find(|t| t.kind == kind) {
            change(table);
        }
        self
    }

    /// Adds bytes to the end of table `kind`.
    pub fn push(self, kind: u32, bytes: &[u8]) -> Self {
        self.table(kind, |t| t.bytes.extend_from_slice(bytes))
    }

    /// Replaces the stored bytes of a segment; `decoded_bytes` is its new decoded length.
    pub fn segment(mut self, index: usize, stored: Vec<u8>, decoded_bytes: u64, compression: u8) -> Self {
        self.segments[index] = stored;
        self.table(table::SEGMENTS, |t| {
            let record = &mut t.bytes[index * 64..(index + 1) * 64];
            record[16..24].copy_from_slice(&decoded_bytes.to_le_bytes());
            record[28] = compression;
        })
    }

    /// Adds a raw segment at the end and its record.
    pub fn push_segment(mut self, stored: &[u8]) -> Self {
        self.segments.push(stored.to_vec());
        let mut record = [0; 64];
        record[16..24].copy_from_slice(&(stored.len() as u64).to_le_bytes());
        record[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
        self.push(table::SEGMENTS, &record)
    }

    /// Grows every record of a table by `bytes` bytes of 0xA5.
    pub fn grow(self, kind: u32, bytes: usize) -> Self {
        self.table(kind, |t| {
            let grown = t.bytes.chunks(t.record_bytes).flat_map(|r| [r, &vec![0xA5; bytes]].concat());
            t.bytes = grown.collect();
            t.record_bytes += bytes;
        })
    }

    /// Lays everything out: places of tables and segments, lengths, hashes of segments, header.
    pub fn build(&self) -> Image {
        let alignment = number::<4>(&self.header, 20) as usize;
        let mut records = Vec::new();
        let mut body = Vec::new();
        let start = self.tables.len() * TABLE_RECORD_BYTES;
        let mut segment_table = 0;
        for t in &self.tables {
            body.resize(body.len().next_multiple_of(8), 0);
            if t.kind == table::SEGMENTS {
                segment_table = HEADER_BYTES + start + body.len();
            }
            records.extend(t.kind.to_le_bytes());
            records.extend(t.flags.to_le_bytes());
            records.extend((t.record_bytes as u32).to_le_bytes());
            records.extend([0; 4]);
            records.extend(((start + body.len()) as u64).to_le_bytes());
            records.extend(((t.bytes.len() / t.record_bytes) as u64).to_le_bytes());
            body.extend_from_slice(&t.bytes);
        }
        let mut bytes = [self.header.as_slice(), &records, &body].concat();
        let directory_end = bytes.len();
        let stride = self.tables.iter().find(|t| t.kind == table::SEGMENTS).map_or(64, |t| t.record_bytes);
        for (i, segment) in self.segments.iter().enumerate() {
            let offset = bytes.len().next_multiple_of(alignment);
            bytes.resize(offset, 0);
            bytes.extend_from_slice(segment);
            let record = &mut bytes[segment_table + i * stride..][..64];
            record[..8].copy_from_slice(&(offset as u64).to_le_bytes());
            record[8..16].copy_from_slice(&(segment.len() as u64).to_le_bytes());
            record[32..].copy_from_slice(&hash::hash(segment));
        }
        let file_bytes = bytes.len() as u64;
        let image = Image { bytes }
            .put(24, &file_bytes.to_le_bytes())
            .put(40, &((directory_end - HEADER_BYTES) as u64).to_le_bytes())
            .put(104, &(self.tables.len() as u32).to_le_bytes());
        Image { bytes: image.seal() }
    }
}

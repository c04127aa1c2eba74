//! Makes damaged archives whole on the outside, so that a reader gets to what is damaged inside.
//!
//! A flipped byte of an archive is stopped by a hash. To reach the checks behind the hashes, these
//! functions state again what follows from the rest of the file. They share no code with the
//! reader, and leave alone what they cannot find.

use cmf_format::hash;

const HEADER_BYTES: usize = 256;
const TABLE_RECORD_BYTES: usize = 32;
const SEGMENT_RECORD_BYTES: usize = 64;
const SEGMENTS: u32 = 12;
/// Longest file that [`layout`] makes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// States the length of the file and the hash of the directory in the header.
pub fn header(bytes: &mut [u8]) {
    let file_bytes = bytes.len() as u64;
    put(bytes, 24, &file_bytes.to_le_bytes());
    if let Some(end) = directory_end(bytes) {
        let hash = bytes.get(HEADER_BYTES..end).map(hash::hash).unwrap_or_default();
        put(bytes, 64, &hash);
    }
}

/// States the hash of every segment that lies within the file, then as [`header`].
///
/// Segments with chunk-group hashes keep theirs.
pub fn hashes(bytes: &mut [u8]) {
    for at in segment_records(bytes) {
        let (Some(offset), Some(stored)) = (u64_at(bytes, at), u64_at(bytes, at + 8)) else { continue };
        let found = range(bytes, offset, stored).map(hash::hash);
        if u32_at(bytes, at + 24) == Some(u32::MAX)
            && let Some(hash) = found
        {
            put(bytes, at + 32, &hash);
        }
    }
    header(bytes);
}

/// Places all segments one after the other as their lengths ask for, gives the file the length
/// that follows (up to 1 MiB), then as [`hashes`].
pub fn layout(bytes: &mut Vec<u8>) {
    let alignment = u64::from(u32_at(bytes, 20).unwrap_or(0).clamp(1, 65_536));
    let mut end = directory_end(bytes).unwrap_or(bytes.len()) as u64;
    for at in segment_records(bytes) {
        let offset = end.next_multiple_of(alignment);
        let stored = u64_at(bytes, at + 8).unwrap_or(0);
        let Some(next) = offset.checked_add(stored).filter(|end| *end <= MAX_FILE_BYTES) else { break };
        put(bytes, at, &offset.to_le_bytes());
        end = next;
    }
    if (HEADER_BYTES as u64..=MAX_FILE_BYTES).contains(&end) {
        bytes.resize(end as usize, 0);
    }
    hashes(bytes);
}

/// Offsets of the records of the segments table.
fn segment_records(bytes: &[u8]) -> Vec<usize> {
    let tables = u32_at(bytes, 104).unwrap_or(0).min(64) as usize;
    let record = (0..tables)
        .map(|i| HEADER_BYTES + i * TABLE_RECORD_BYTES)
        .find(|at| u32_at(bytes, *at) == Some(SEGMENTS));
    let Some(record) = record else { return Vec::new() };
    let stride = u32_at(bytes, record + 8).unwrap_or(0) as usize;
    let offset = u64_at(bytes, record + 16).unwrap_or(u64::MAX);
    let count = u64_at(bytes, record + 24).unwrap_or(0);
    if stride < SEGMENT_RECORD_BYTES || offset > bytes.len() as u64 {
        return Vec::new();
    }
    (0..count)
        .map_while(|i| {
            let at = (HEADER_BYTES as u64 + offset).checked_add(i.checked_mul(stride as u64)?)?;
            let end = at.checked_add(stride as u64)?;
            (end <= bytes.len() as u64).then_some(at as usize)
        })
        .collect()
}

fn directory_end(bytes: &[u8]) -> Option<usize> {
    let end = u64_at(bytes, 40)?.checked_add(HEADER_BYTES as u64)?;
    usize::try_from(end).ok().filter(|end| *end <= bytes.len())
}

fn range(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

//! Segments as a writer holds them, and bounded decompression (spec: container, 4.12).

use crate::error::{Error, ErrorKind, Result};
use crate::hash;
use std::sync::Arc;
use zstd::bulk::Decompressor;

/// How the stored bytes of a segment relate to its decoded bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Compression {
    /// The same bytes.
    Raw = 0,
    /// One zstd frame that states its content size.
    Zstd = 1,
}

/// Bytes of a segment, or what the layout must know of bytes that lie elsewhere.
#[derive(Clone, Debug)]
pub enum SegmentSource {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// Kept by the caller under `key` until the archive is written.
    Stored(StoredSegment),
}

/// A segment whose bytes the caller keeps, in a spool file for example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StoredSegment {
    /// What the caller finds the bytes by.
    pub key: u64,
    /// Number of bytes.
    pub stored_bytes: u64,
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
    /// Chaining values of the chunk groups, as [`hash::segment_hashes`] gives them.
    pub chunk_hashes: Vec<[u8; 32]>,
}

/// A segment to be written.
#[derive(Clone, Debug)]
pub struct SegmentData {
    /// Stored bytes.
    pub source: SegmentSource,
    /// Length after decompression.
    pub decoded_bytes: u64,
    /// Raw or zstd.
    pub compression: Compression,
}

impl From<Vec<u8>> for SegmentData {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            decoded_bytes: bytes.len() as u64,
            source: SegmentSource::Bytes(bytes.into()),
            compression: Compression::Raw,
        }
    }
}

impl SegmentData {
    /// A zstd segment, or a raw one when zstd does not make it smaller.
    ///
    /// # Errors
    /// `Argument` when the compressor refuses.
    pub fn compressed(bytes: Vec<u8>, level: i32) -> Result<Self> {
        let stored = zstd::bulk::compress(&bytes, level)
            .map_err(|e| Error::new(ErrorKind::Argument, "zstd", e.to_string()))?;
        if stored.len() >= bytes.len() {
            return Ok(bytes.into());
        }
        Ok(Self {
            decoded_bytes: bytes.len() as u64,
            source: SegmentSource::Bytes(stored.into()),
            compression: Compression::Zstd,
        })
    }

    /// The stored bytes when they are in memory.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.source {
            SegmentSource::Bytes(bytes) => Some(bytes),
            SegmentSource::Stored(_) => None,
        }
    }

    /// Number of stored bytes.
    pub fn stored_bytes(&self) -> u64 {
        match &self.source {
            SegmentSource::Bytes(bytes) => bytes.len() as u64,
            SegmentSource::Stored(stored) => stored.stored_bytes,
        }
    }

    /// Hash and chunk-group hashes of the stored bytes.
    pub fn hashes(&self, chunk_group_bytes: usize) -> ([u8; 32], Vec<[u8; 32]>) {
        match &self.source {
            SegmentSource::Bytes(bytes) => hash::segment_hashes(bytes, chunk_group_bytes),
            SegmentSource::Stored(stored) => (stored.hash, stored.chunk_hashes.clone()),
        }
    }
}

/// Decodes one zstd frame into exactly `decoded_bytes` bytes.
///
/// The frame must fill `stored`, state its content size and need a window of at most 2^27.
/// `limit_bytes` is checked before anything is allocated.
///
/// # Errors
/// `Limit` above the limit, `Value` for a frame that is not what is stated.
pub fn decompress(stored: &[u8], decoded_bytes: u64, limit_bytes: u64) -> Result<Vec<u8>> {
    if decoded_bytes > limit_bytes {
        return Err(Error::expected(
            ErrorKind::Limit,
            "zstd",
            format_args!("at most {limit_bytes} decoded bytes"),
            decoded_bytes,
        ));
    }
    let length = usize::try_from(decoded_bytes)
        .map_err(|_| Error::new(ErrorKind::Limit, "zstd", "does not fit this machine"))?;
    check_frame(stored, decoded_bytes)?;
    let mut out = vec![0; length];
    decompress_frame(stored, &mut out)?;
    Ok(out)
}

/// Largest window of a frame that is not a single segment.
const WINDOW_LOG_MAX: u8 = 27;

/// Checks that `stored` is one frame with the stated content size and an allowed window.
fn check_frame(stored: &[u8], decoded_bytes: u64) -> Result<()> {
    let bad = |problem: String| Error::new(ErrorKind::Value, "zstd", problem);
    if stored.first_chunk::<4>() != Some(&[0x28, 0xB5, 0x2F, 0xFD]) {
        return Err(bad("expected a zstd frame".into()));
    }
    let frame = zstd::zstd_safe::find_frame_compressed_size(stored)
        .map_err(|_| bad("the frame is damaged".into()))?;
    if frame != stored.len() {
        return Err(bad(format!("expected one frame of {} bytes, found {frame}", stored.len())));
    }
    // RFC 8878, 3.1.1.1: without the single-segment flag a window descriptor follows.
    if let [_, _, _, _, flags, window, ..] = stored
        && flags & 0x20 == 0
        && *window > (WINDOW_LOG_MAX - 10) << 3
    {
        return Err(bad(format!("the frame needs a window above 2^{WINDOW_LOG_MAX}")));
    }
    match zstd::zstd_safe::get_frame_content_size(stored) {
        Ok(Some(size)) if size == decoded_bytes => Ok(()),
        Ok(Some(size)) => Err(bad(format!("expected {decoded_bytes} decoded bytes, found {size}"))),
        _ => Err(bad("the frame does not state its content size".into())),
    }
}

/// Decodes one zstd frame into all of `out`.
///
/// # Errors
/// `Value` when the frame is damaged or decodes to another length.
pub fn decompress_frame(stored: &[u8], out: &mut [u8]) -> Result<()> {
    decompress_frame_with(&mut decompressor()?, stored, out)
}

/// A decompressor to be used for many frames.
pub(crate) fn decompressor() -> Result<Decompressor<'static>> {
    Decompressor::new().map_err(|e| Error::new(ErrorKind::Limit, "zstd", e.to_string()))
}

/// [`decompress_frame`] without a decompressor of its own.
pub(crate) fn decompress_frame_with(
    decompressor: &mut Decompressor<'static>,
    stored: &[u8],
    out: &mut [u8],
) -> Result<()> {
    let bad = |problem: String| Error::new(ErrorKind::Value, "zstd", problem);
    check_frame(stored, out.len() as u64)?;
    let expected = out.len();
    let found = decompressor.decompress_to_buffer(stored, out).map_err(|e| bad(e.to_string()))?;
    if found != expected {
        return Err(bad(format!("expected {expected} decoded bytes, found {found}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decompresses_what_it_compressed() -> Result<()> {
        let segment = SegmentData::compressed(vec![7; 1000], 3)?;
        assert_eq!(segment.compression, Compression::Zstd);
        assert_eq!(decompress(segment.bytes().unwrap_or(&[]), 1000, 1000)?, vec![7; 1000]);
        Ok(())
    }

    #[test]
    fn rejects_bomb_before_allocating() -> Result<()> {
        let segment = SegmentData::compressed(vec![0; 1 << 20], 3)?;
        let stored = segment.bytes().unwrap_or(&[]);
        let error = decompress(stored, 1 << 20, 1 << 16).map_err(|e| e.kind());
        assert_eq!(error, Err(ErrorKind::Limit));
        let error = decompress(stored, 10, 1 << 16).map_err(|e| e.kind());
        assert_eq!(error, Err(ErrorKind::Value));
        Ok(())
    }

    #[test]
    fn rejects_two_frames() -> Result<()> {
        let segment = SegmentData::compressed(vec![7; 1000], 3)?;
        let twice = segment.bytes().unwrap_or(&[]).repeat(2);
        assert!(decompress(&twice, 1000, 4000).is_err());
        Ok(())
    }

    #[test]
    fn rejects_window_above_the_limit() {
        // Magic, a content size of one byte without the single-segment flag, the window, a size
        // of 256, one last block of that many times 7.
        let frame = |window| {
            let head = [0x28, 0xB5, 0x2F, 0xFD, 0x40, window, 0, 0];
            [head.as_slice(), &[0b011, 0b1000, 0, 7]].concat()
        };
        assert_eq!(decompress(&frame(17 << 3), 256, 1000).ok(), Some(vec![7; 256]));
        for window in [(17 << 3) + 1, 18 << 3] {
            let error = decompress(&frame(window), 256, 1000).map_err(|e| e.to_string());
            assert!(error.is_err_and(|e| e.contains("window")));
        }
    }
}

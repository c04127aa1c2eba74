//! A forward cursor over the start of a file that never allocates more than the file holds.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use super::read_at::ReadAt;
use crate::error::{Error, Result};

/// Smallest and largest number of bytes fetched at once. The last fetch may reach past the head
/// into tensor data, by less than the largest.
const FETCH_BYTES: (u64, u64) = (64 << 10, 1 << 20);

/// The bytes read so far and the position of the next one.
pub(super) struct Head<'a, R: ?Sized> {
    source: &'a R,
    len_bytes: u64,
    limit_bytes: u64,
    bytes: Vec<u8>,
    position: usize,
}

impl<'a, R: ReadAt + ?Sized> Head<'a, R> {
    pub(super) fn new(source: &'a R, limit_bytes: u64) -> Result<Self> {
        let len_bytes =
            source.len_bytes().map_err(|error| Error::io("cannot tell the file's length", error))?;
        Ok(Self { source, len_bytes, limit_bytes, bytes: Vec::new(), position: 0 })
    }

    /// Length of the file.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.position as u64
    }

    /// The bytes from `start` up to the next one.
    pub(super) fn since(&self, start: u64) -> &[u8] {
        usize::try_from(start).ok().and_then(|start| self.bytes.get(start..self.position)).unwrap_or_default()
    }

    /// Steps over `count` bytes and gives them. `what` names them in errors.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&[u8]> {
        let start = self.position;
        let end = self.position().checked_add(count).filter(|&end| end <= self.len_bytes);
        let Some(end) = end else {
            return Err(Error::bad_file(what)
                .at(self.position())
                .expected(format!("{count} bytes"))
                .found(format!("{} bytes up to the end of the file", self.remaining())));
        };
        if end > self.limit_bytes {
            return Err(Error::limit(what)
                .at(self.position())
                .expected(format!("a head of at most {} bytes", self.limit_bytes)));
        }
        self.fetch(end)?;
        self.position = usize::try_from(end).map_err(|_| Error::limit(what).at(start as u64))?;
        Ok(self.bytes.get(start..self.position).unwrap_or_default())
    }

    /// Bytes between the next one and the end of the file.
    pub(super) fn remaining(&self) -> u64 {
        self.len_bytes.saturating_sub(self.position())
    }

    /// Refuses a count of things of at least `least_bytes` each that the file cannot hold.
    pub(super) fn check_count(&self, count: u64, least_bytes: u64, what: &str) -> Result<()> {
        let room = self.remaining().checked_div(least_bytes).unwrap_or(u64::MAX);
        if count > room {
            return Err(Error::bad_file(what)
                .at(self.position().saturating_sub(8))
                .expected(format!("at most {room} in the rest of the file"))
                .found(count));
        }
        Ok(())
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    /// Makes sure that the first `end` bytes of the file are in memory.
    fn fetch(&mut self, end: u64) -> Result<()> {
        let have = self.bytes.len() as u64;
        if end <= have {
            return Ok(());
        }
        let ahead = have.saturating_add(have.clamp(FETCH_BYTES.0, FETCH_BYTES.1));
        let until = end.max(ahead).min(self.len_bytes).min(self.limit_bytes);
        let until = usize::try_from(until).map_err(|_| Error::limit("head of the file").found(until))?;
        let start = self.bytes.len();
        self.bytes.resize(until, 0);
        let fresh = self.bytes.get_mut(start..).unwrap_or_default();
        self.source
            .read_exact_at(have, fresh)
            .map_err(|error| Error::io("cannot read the head of the file", error).at(have))
    }
}

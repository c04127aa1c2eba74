//! Checks of payload (spec: container, 5): hashes, padding, values, stated sizes.

use super::Archive;
use super::access::Segment;
use super::matrix::TensorView;
use crate::error::{Error, ErrorKind, Result};
use crate::hash;
use crate::source::Source;
use crate::wire::{HEADER_BYTES, NONE};
use core::ops::Range;

impl<S: Source> Segment<'_, S> {
    /// Checks the stored bytes against the segment's hash, and its chunk-group hashes if it has
    /// any.
    ///
    /// # Errors
    /// `Hash` when they differ, and from the source.
    pub fn verify(&self) -> Result<()> {
        let group = self.archive().header.chunk_group_bytes.get() as usize;
        let stored = self.stored()?;
        let is_hashes = self.archive().chunk_hash_segment() == Some(self.index() as usize);
        if stored.len() <= group || is_hashes {
            return match hash::hash(&stored) == self.record().hash {
                true => Ok(()),
                false => Err(self.differs("its BLAKE3 hash is not the stated one", 0)),
            };
        }
        let groups = self.chunk_hashes()?;
        for (i, (chunk, stated)) in stored.chunks(group).zip(&groups).enumerate() {
            if hash::chunk_group_hash(i as u64, group as u64, chunk) != *stated {
                return Err(
                    self.differs(&format!("chunk group {i} does not have its hash"), (i * group) as u64)
                );
            }
        }
        Ok(())
    }

    /// Checks the chunk groups that bytes `range` of the segment lie in, and no others.
    ///
    /// # Errors
    /// `Argument` when the range is not within the segment; as [`Segment::verify`].
    pub fn verify_range(&self, range: Range<u64>) -> Result<()> {
        let stored = self.record().stored_bytes.get();
        let group = u64::from(self.archive().header.chunk_group_bytes.get());
        if range.start > range.end || range.end > stored {
            let problem = format!("{range:?} of {stored} bytes");
            return Err(Error::new(ErrorKind::Argument, "range", problem).in_segment(self.index()));
        }
        if stored <= group || self.record().first_chunk_hash.get() == NONE {
            return self.verify();
        }
        let groups = self.chunk_hashes()?;
        let mut first = range.start / group;
        while first.saturating_mul(group) < range.end {
            let start = first.saturating_mul(group);
            let offset = self.record().offset.get() + start;
            let chunk = self.archive().source.read(offset, group.min(stored - start))?;
            if groups.get(first as usize) != Some(&hash::chunk_group_hash(first, group, &chunk)) {
                return Err(self.differs(&format!("chunk group {first} does not have its hash"), start));
            }
            first += 1;
        }
        Ok(())
    }

    /// The chunk-group hashes, checked to amount to the segment's hash.
    fn chunk_hashes(&self) -> Result<Vec<[u8; 32]>> {
        let archive = self.archive();
        let table = archive.chunk_hash_segment().and_then(|i| archive.segment(u32::try_from(i).ok()?));
        let group = u64::from(archive.header.chunk_group_bytes.get());
        let count = self.record().stored_bytes.get().div_ceil(group);
        let first = u64::from(self.record().first_chunk_hash.get());
        let bytes = match table {
            Some(table) => archive.source.read(table.record().offset.get() + first * 32, count * 32)?,
            None => Vec::new().into(),
        };
        let groups: Vec<[u8; 32]> = bytes.as_chunks::<32>().0.to_vec();
        if groups.len() < 2 || hash::root_of(&groups) != self.record().hash {
            return Err(self.differs("its chunk-group hashes do not amount to its hash", 0));
        }
        Ok(groups)
    }

    fn differs(&self, problem: &str, at: u64) -> Error {
        Error::new(ErrorKind::Hash, "payload", problem).in_segment(self.index()).at(self
            .record()
            .offset
            .get()
            .saturating_add(at))
    }
}

impl<S: Source> Archive<S> {
    /// Checks that the bytes between segments are zero.
    ///
    /// # Errors
    /// `Value` at the first that is not, and from the source.
    pub fn verify_padding(&self) -> Result<()> {
        let mut end = HEADER_BYTES.saturating_add(self.header.directory_bytes.get());
        for segment in self.segments() {
            let offset = segment.record().offset.get();
            let gap = self.source.read(end, offset.saturating_sub(end))?;
            if let Some(i) = gap.iter().position(|b| *b != 0) {
                let problem = "expected zero padding before the segment";
                return Err(Error::new(ErrorKind::Value, "padding", problem)
                    .in_segment(segment.index())
                    .at(end.saturating_add(i as u64)));
            }
            end = offset.saturating_add(segment.record().stored_bytes.get());
        }
        Ok(())
    }

    /// Checks that units and schedule state the bytes that their segments take.
    ///
    /// # Errors
    /// `Structure` at the first that does not.
    pub fn verify_sizes(&self) -> Result<()> {
        let mut counted = vec![false; self.segments().len()];
        let mut sum = 0u64;
        for unit in self.units() {
            let expected = self.resident_bytes(unit.segments().into_iter());
            let found = unit.record().resident_bytes.get();
            if found != expected {
                let part = format!("units[{}].resident_bytes", unit.index());
                return Err(Error::expected(ErrorKind::Structure, part, expected, found));
            }
        }
        let units: Vec<_> = self.units().collect();
        for step in self.schedule() {
            let segments =
                units.get(step.record().unit.get() as usize).map(|u| u.segments()).unwrap_or_default();
            let fresh = segments
                .into_iter()
                .filter(|i| counted.get_mut(*i as usize).is_some_and(|seen| !core::mem::replace(seen, true)));
            sum = sum.saturating_add(self.resident_bytes(fresh));
            let found = step.record().cumulative_bytes.get();
            if found != sum {
                let part = format!("schedule[{}].cumulative_bytes", step.index());
                return Err(Error::expected(ErrorKind::Structure, part, sum, found));
            }
        }
        Ok(())
    }

    /// Bytes that the segments take in memory when they are executed as stored: decoded.
    fn resident_bytes(&self, segments: impl Iterator<Item = u32>) -> u64 {
        segments.filter_map(|i| self.segment(i)).map(|s| s.record().decoded_bytes.get()).sum()
    }

    /// Checks everything that hashes do not cover: padding, stated sizes, and every code, index
    /// and frame of the tensors that this reader can decode.
    ///
    /// # Errors
    /// The first breach.
    pub fn verify_values(&self) -> Result<()> {
        self.verify_padding()?;
        self.verify_sizes()?;
        for tensor in self.tensors() {
            let readable = tensor.matrices().all(|m| m.terms().all(|t| t.is_known() || t.is_optional()));
            if !readable || (tensor.reference().is_some() && !tensor.is_delta()) {
                continue;
            }
            for matrix in TensorView::open(&tensor, u16::MAX)?.matrices() {
                for (i, (_, _, view)) in matrix.terms().enumerate() {
                    view.verify().map_err(|e| e.within(format_args!("term {i}")).in_tensor(tensor.name()))?;
                }
            }
        }
        Ok(())
    }

    /// Checks all hashes and then all values.
    ///
    /// # Errors
    /// The first breach.
    pub fn verify(&self) -> Result<()> {
        for segment in self.segments() {
            segment.verify()?;
        }
        self.verify_values()
    }
}

//! Checks of payload (spec: container, 5): hashes, padding, values, stated sizes.

use super::Archive;
use super::access::Segment;
use super::transforms;
use crate::error::{Error, ErrorKind, Result};
use crate::hash;
use crate::source::Source;
use crate::wire::HEADER_BYTES;
use blake3::hazmat::HasherExt;
use core::ops::Range;
use std::collections::HashSet;

/// The hashes of one segment, against which its stored bytes are checked a chunk group at a time.
#[derive(Debug)]
pub struct ChunkGroups<'a, S> {
    segment: Segment<'a, S>,
    group_bytes: u64,
    /// Chaining values; the segment's hash alone when it is one chunk group or less.
    hashes: Vec<[u8; 32]>,
}

impl<'a, S: Source> Segment<'a, S> {
    /// Checks the stored bytes against the segment's hash, and its chunk-group hashes if it has
    /// any.
    ///
    /// # Errors
    /// `Hash` when they differ, and from the source.
    pub fn verify(&self) -> Result<()> {
        let groups = self.chunk_groups()?;
        groups.check(groups.indices())
    }

    /// Checks the chunk groups that bytes `range` of the segment lie in, and no others.
    ///
    /// # Errors
    /// `Argument` when the range is not within the segment; as [`Segment::verify`].
    pub fn verify_range(&self, range: Range<u64>) -> Result<()> {
        let stored = self.record().stored_bytes.get();
        if range.start > range.end || range.end > stored {
            let problem = format!("{range:?} of {stored} bytes");
            return Err(Error::new(ErrorKind::Argument, "range", problem).in_segment(self.index()));
        }
        let groups = self.chunk_groups()?;
        match range.is_empty() {
            true => Ok(()),
            false => groups.check(range.start / groups.group_bytes..range.end.div_ceil(groups.group_bytes)),
        }
    }

    /// The chunk-group hashes, checked to amount to the segment's hash. A segment of one chunk
    /// group or less, and the segment that holds these hashes, is one group with the segment's
    /// own hash.
    ///
    /// # Errors
    /// `Hash` when they do not amount to it, `Limit` when they do not fit the limits, and from
    /// the source.
    pub fn chunk_groups(&self) -> Result<ChunkGroups<'a, S>> {
        let archive = self.archive();
        let stored = self.record().stored_bytes.get();
        let group_bytes = u64::from(archive.header.chunk_group_bytes.get());
        let table = archive.chunk_hash_segment().and_then(|i| archive.segment(u32::try_from(i).ok()?));
        let table = match table {
            Some(table) if table.index() != self.index() && stored > group_bytes => table,
            _ => {
                let hashes = vec![self.record().hash];
                return Ok(ChunkGroups { segment: *self, group_bytes: stored.max(1), hashes });
            }
        };
        let bytes = stored.div_ceil(group_bytes).saturating_mul(32);
        if bytes > archive.limits.decoded_segment_bytes {
            let expected = format!("at most {}", archive.limits.decoded_segment_bytes);
            return Err(
                Error::expected(ErrorKind::Limit, "chunk_hashes", expected, bytes).in_segment(self.index())
            );
        }
        let first = u64::from(self.record().first_chunk_hash.get()).saturating_mul(32);
        let bytes = archive.source.read(table.record().offset.get().saturating_add(first), bytes)?;
        let hashes: Vec<[u8; 32]> = bytes.as_chunks::<32>().0.to_vec();
        if hashes.len() < 2 || hash::root_of(&hashes) != self.record().hash {
            return Err(self.differs("its chunk-group hashes do not amount to its hash", 0));
        }
        Ok(ChunkGroups { segment: *self, group_bytes, hashes })
    }

    /// Checks that the bytes between the segment before, or the directory, and this one are zero.
    ///
    /// # Errors
    /// `Value` at the first that is not, and from the source.
    pub fn verify_padding(&self) -> Result<()> {
        let archive = self.archive();
        let start = match self.index().checked_sub(1).and_then(|before| archive.segment(before)) {
            Some(before) => before.record().offset.get().saturating_add(before.record().stored_bytes.get()),
            None => HEADER_BYTES.saturating_add(archive.header.directory_bytes.get()),
        };
        let gap = archive.source.read(start, self.record().offset.get().saturating_sub(start))?;
        match gap.iter().position(|b| *b != 0) {
            None => Ok(()),
            Some(i) => {
                let problem = "expected zero padding before the segment";
                Err(Error::new(ErrorKind::Value, "padding", problem)
                    .in_segment(self.index())
                    .at(start.saturating_add(i as u64)))
            }
        }
    }

    fn differs(&self, problem: &str, at: u64) -> Error {
        Error::new(ErrorKind::Hash, "payload", problem).in_segment(self.index()).at(self
            .record()
            .offset
            .get()
            .saturating_add(at))
    }
}

impl<S: Source> ChunkGroups<'_, S> {
    /// Indices of all chunk groups.
    pub fn indices(&self) -> Range<u64> {
        0..self.hashes.len() as u64
    }

    /// Bytes of the segment that lie in chunk group `group`.
    pub fn bytes(&self, group: u64) -> Range<u64> {
        let stored = self.segment.record().stored_bytes.get();
        let start = group.saturating_mul(self.group_bytes).min(stored);
        start..start.saturating_add(self.group_bytes).min(stored)
    }

    /// Whether `bytes`, which come from elsewhere, are those of chunk group `group`.
    pub fn matches(&self, group: u64, bytes: &[u8]) -> bool {
        let stated = usize::try_from(group).ok().and_then(|i| self.hashes.get(i));
        let found = match self.hashes.len() {
            1 => hash::hash(bytes),
            _ => hash::chunk_group_hash(group, self.group_bytes, bytes),
        };
        let range = self.bytes(group);
        stated == Some(&found) && bytes.len() as u64 == range.end.saturating_sub(range.start)
    }

    /// Checks the stored bytes of chunk groups `groups`, which are visited and not kept. `failed` is
    /// called with each group that does not have its hash, and its error.
    ///
    /// # Errors
    /// `Argument` for groups that there are not, and from the source.
    pub fn verify(&self, groups: Range<u64>, failed: &mut dyn FnMut(u64, Error)) -> Result<()> {
        let segment = self.segment.index();
        let count = self.hashes.len() as u64;
        if groups.start >= groups.end || groups.end > count {
            let (expected, found) = (format!("within 0..{count}"), format!("{groups:?}"));
            let error = Error::expected(ErrorKind::Argument, "chunk groups", expected, found);
            return Err(error.in_segment(segment));
        }
        let (start, end) = (self.bytes(groups.start).start, self.bytes(groups.end - 1).end);
        let offset = self.segment.record().offset.get().saturating_add(start);
        let mut check = Check::new(self, groups.start);
        let visit = &mut |mut bytes: &[u8]| {
            while let Some((part, rest)) = bytes.split_at_checked(check.left.min(bytes.len())) {
                check.hasher.update(part);
                check.left -= part.len();
                if rest.is_empty() {
                    break;
                }
                check.finish(failed);
                check = Check::new(self, check.group + 1);
                bytes = rest;
            }
            Ok(())
        };
        let source = &self.segment.archive().source;
        source.visit(offset, end.saturating_sub(start), visit).map_err(|e| e.in_segment(segment))?;
        check.finish(failed);
        Ok(())
    }

    /// Checks the stored bytes of chunk groups `groups`, which are visited and not kept.
    ///
    /// # Errors
    /// `Hash` for the first group that does not have its hash; as [`ChunkGroups::verify`].
    pub fn check(&self, groups: Range<u64>) -> Result<()> {
        let mut first = None;
        self.verify(groups, &mut |_, error| {
            first.get_or_insert(error);
        })?;
        first.map_or(Ok(()), Err)
    }
}

/// The check of one chunk group whose bytes come in parts.
struct Check<'g, 'a, S> {
    groups: &'g ChunkGroups<'a, S>,
    group: u64,
    /// Bytes that are still to come.
    left: usize,
    hasher: blake3::Hasher,
}

impl<'g, 'a, S: Source> Check<'g, 'a, S> {
    fn new(groups: &'g ChunkGroups<'a, S>, group: u64) -> Self {
        let hasher = match groups.hashes.len() {
            1 => blake3::Hasher::new(),
            _ => hash::chunk_group_hasher(group, groups.group_bytes),
        };
        let bytes = groups.bytes(group);
        let left = usize::try_from(bytes.end.saturating_sub(bytes.start)).unwrap_or(usize::MAX);
        Self { groups, group, left, hasher }
    }

    fn finish(&self, failed: &mut dyn FnMut(u64, Error)) {
        let whole = self.groups.hashes.len() == 1;
        let found: [u8; 32] = match whole {
            true => self.hasher.finalize().into(),
            false => self.hasher.finalize_non_root(),
        };
        let stated = usize::try_from(self.group).ok().and_then(|i| self.groups.hashes.get(i));
        if stated == Some(&found) {
            return;
        }
        let problem = match whole {
            true => "its BLAKE3 hash is not the stated one".to_owned(),
            false => format!("chunk group {} does not have its hash", self.group),
        };
        failed(self.group, self.groups.segment.differs(&problem, self.groups.bytes(self.group).start));
    }
}

impl<S: Source> Archive<S> {
    /// Checks that the bytes between segments are zero.
    ///
    /// # Errors
    /// `Value` at the first that is not, and from the source.
    pub fn verify_padding(&self) -> Result<()> {
        self.segments().try_for_each(|segment| segment.verify_padding())
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
        segments
            .filter_map(|i| self.segment(i))
            .fold(0, |sum, s| s.record().decoded_bytes.get().saturating_add(sum))
    }

    /// Checks everything that hashes do not cover: padding, stated sizes, and every code, index
    /// and frame of the attributes, terms and transforms that this reader can decode.
    ///
    /// Each node that terms name, and each transform, is checked once, however many tensors and terms share it.
    ///
    /// # Errors
    /// The first breach.
    pub fn verify_values(&self) -> Result<()> {
        self.verify_padding()?;
        self.verify_sizes()?;
        for attribute in self.attributes() {
            if attribute.segment().is_some_and(|s| s.record().is_known()) {
                attribute.bytes().map_err(|e| e.within(format_args!("attribute `{}`", attribute.name())))?;
            }
        }
        let mut checked = vec![false; self.nodes().len()];
        let mut checked_transforms = HashSet::new();
        let mut next_matrix = 0;
        for tensor in self.tensors() {
            // A tied tensor names matrices of one before it.
            if tensor.record().first_matrix.get() != next_matrix {
                continue;
            }
            next_matrix = next_matrix.saturating_add(tensor.record().matrix_count.get());
            for matrix in tensor.matrices() {
                let (inputs, outputs) = matrix.transforms();
                for record in inputs.into_iter().chain(outputs) {
                    let content =
                        (record.kind.get(), record.size.get(), record.node.get(), record.segment.get());
                    if checked_transforms.insert(content) {
                        transforms::verify(self, record).map_err(|e| e.in_tensor(tensor.name()))?;
                    }
                }
                for (i, term) in matrix.terms().enumerate().filter(|(_, term)| term.is_known()) {
                    let Some(node) = term.node() else { continue };
                    let seen = checked.get_mut(node.index() as usize);
                    if seen.is_none_or(|seen| core::mem::replace(seen, true)) {
                        continue;
                    }
                    node.view()
                        .and_then(|view| view.verify())
                        .map_err(|e| e.within(format_args!("term {i}")).in_tensor(tensor.name()))?;
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

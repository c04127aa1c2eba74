//! The chunk groups of a file, in the order in which they are wanted, and which of them are there.

use crate::error::{Error, ErrorKind, Result};
use cmf_format::archive::ChunkGroups;
use cmf_loader::{FileSource, Model, Schedule};
use core::ops::Range;
use rayon::prelude::*;
use std::fs::File;
use std::sync::Arc;

/// The step of what is not wanted.
pub(crate) const NEVER: usize = usize::MAX;

/// A chunk group of a segment: the unit of verification.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    segment: u32,
    index: u64,
    /// Where it lies in the file.
    pub(crate) range: Range<u64>,
    /// Steps of the schedule that need it: 0 when every model does, one more than there are when tensors on
    /// demand alone do, [`NEVER`] when this one does not.
    pub(crate) step: usize,
    /// Its place among those of the same step.
    pub(crate) rank: usize,
}

impl Group {
    pub(crate) fn bytes(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }
}

/// All chunk groups of a file in the order of the file.
pub(crate) struct Groups<'m> {
    segments: Vec<ChunkGroups<'m, FileSource>>,
    pub(crate) all: Arc<Vec<Group>>,
    /// By segment: its groups.
    pub(crate) of_segments: Arc<Vec<Range<usize>>>,
}

impl<'m> Groups<'m> {
    /// The groups of `model` as `schedule` wants them, and those of tensors on demand, `demanded` by segment with
    /// its rank, behind them; chunk-group hashes must be there.
    pub(crate) fn of(model: &'m Model, schedule: &Schedule, demanded: &[Option<usize>]) -> Result<Self> {
        let archive = model.archive();
        let (all_steps, steps) = (Schedule::of(archive).segment_steps(), schedule.segment_steps());
        let limit = archive.limits().decoded_segment_bytes;
        let (mut segments, mut all, mut of_segments) = (Vec::new(), Vec::new(), Vec::new());
        for segment in archive.segments() {
            let start = segment.record().offset.get();
            let about = || format!("{}: segment {}", model.path().display(), segment.index());
            let groups = segment.chunk_groups().map_err(|e| Error::new(ErrorKind::Corrupt, about(), e))?;
            let of = |steps: &[Option<usize>]| steps.get(segment.index() as usize).copied().flatten();
            // What no unit needs at all, as attributes, is for every model.
            let (step, rank) = match (of(&steps), of(demanded), of(&all_steps)) {
                (Some(step), ..) => (step, 0),
                (None, Some(rank), _) => (schedule.steps().saturating_add(1), rank),
                (None, None, Some(_)) => (NEVER, 0),
                (None, None, None) => (0, 0),
            };
            let first = all.len();
            for index in groups.indices() {
                let bytes = groups.bytes(index);
                if bytes.end - bytes.start > limit {
                    let problem =
                        format!("chunk groups of {} bytes do not fit memory", bytes.end - bytes.start);
                    return Err(Error::new(ErrorKind::Format, about(), problem));
                }
                let range = start.saturating_add(bytes.start)..start.saturating_add(bytes.end);
                all.push(Group { segment: segment.index(), index, range, step, rank });
            }
            of_segments.push(first..all.len());
            segments.push(groups);
        }
        Ok(Self { segments, all: Arc::new(all), of_segments: Arc::new(of_segments) })
    }

    /// Whether `bytes` are those of group `group`.
    pub(crate) fn matches(&self, group: &Group, bytes: &[u8]) -> bool {
        let groups = self.segments.get(group.segment as usize);
        groups.is_some_and(|groups| groups.matches(group.index, bytes))
    }

    /// Which groups `file`, which is the model's, holds already, of those of the first `steps` steps. They are read
    /// and not mapped, so that nothing of them stays in memory of the process.
    pub(crate) fn present(&self, file: &File, steps: usize) -> Vec<bool> {
        let written = written(file);
        let is_written = |range: &Range<u64>| {
            let next = written.partition_point(|one| one.end <= range.start);
            written.get(next).is_some_and(|one| one.start < range.end)
        };
        let present = self.all.par_iter().map_init(Vec::new, |bytes, group| {
            if group.step > steps || !is_written(&group.range) {
                return false;
            }
            bytes.resize(usize::try_from(group.bytes()).unwrap_or(usize::MAX), 0);
            cmf_loader::read_exact_at(file, bytes, group.range.start).is_ok() && self.matches(group, bytes)
        });
        present.collect()
    }
}

/// Where something was ever written to a file, in its order: what was not is no group, and need not be read.
fn written(file: &File) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{SeekFrom, seek};
        let mut end = 0;
        while let Ok(start) = seek(file, SeekFrom::Data(end)) {
            match seek(file, SeekFrom::Hole(start)) {
                Ok(hole) if hole > start => end = hole,
                _ => break,
            }
            parts.push(start..end);
        }
    }
    #[cfg(not(target_os = "linux"))]
    parts.push(0..u64::MAX);
    parts
}

#[cfg(test)]
impl Group {
    pub(crate) fn for_test(range: Range<u64>, step: usize) -> Self {
        Self { segment: 0, index: 0, range, step, rank: 0 }
    }
}

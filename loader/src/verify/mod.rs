//! Verification of files, tensors and ranges, on all threads of the current rayon pool (spec:
//! container, 5).

mod found;
mod tensor;
mod values;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::references::ReferenceKind;
use crate::source::FileSource;
use cmf_format::archive::{ChunkGroups, Segment};
use cmf_format::wire::HEADER_BYTES;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use found::{Found, Phase, lock};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use values::Values;

/// Bytes of a segment that one thread verifies in one go.
const RUN_BYTES: u64 = 1 << 20;

/// What [`Model::verify_with`] checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Besides hashes and padding, every code, index and frame of the tensors.
    pub values: bool,
    /// The files that hold tensors of this one, too. A base is a model of its own and is not
    /// verified.
    pub shards: bool,
    /// How many errors are kept; the others are counted.
    pub max_errors: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { values: true, shards: true, max_errors: 100 }
    }
}

/// What verification found.
#[derive(Debug, Default)]
pub struct Verification {
    /// The first errors: by file, hashes before values, in order of place.
    pub errors: Vec<Error>,
    /// Errors that were found beyond [`VerifyOptions::max_errors`].
    pub errors_left_out: u64,
    /// Files that were verified.
    pub files: usize,
    /// Bytes of these files.
    pub bytes: u64,
    /// Terms whose encoding this reader does not know: their hashes were checked, their values
    /// were not.
    pub unknown_terms: u64,
}

impl Verification {
    /// Whether nothing was found wrong.
    pub fn is_ok(&self) -> bool {
        self.errors.is_empty() && self.errors_left_out == 0
    }
}

impl Model {
    /// Checks every hash, all padding, stated sizes, and every code, index and frame, of this file
    /// and its shards.
    ///
    /// `progress` is called from several threads with the bytes that are done and those that there
    /// are: of the files, and again of what is decoded to be checked.
    pub fn verify_all(&self, progress: impl Fn(u64, u64) + Sync) -> Verification {
        self.verify_with(&VerifyOptions::default(), progress)
    }

    /// Checks what `options` say; else as [`Model::verify_all`].
    pub fn verify_with(&self, options: &VerifyOptions, progress: impl Fn(u64, u64) + Sync) -> Verification {
        let found = Found::new(options.max_errors);
        let mut models = vec![self];
        for shard in self.references().filter(|r| options.shards && r.kind() == ReferenceKind::Shard) {
            match shard.open() {
                Ok(model) => models.push(model),
                Err(error) => found.add((0, Phase::Shards, shard.record.index().into(), 0), error),
            }
        }
        let plans: Vec<_> = models.iter().map(|model| Values::of(model, options.values)).collect();
        let file_bytes = models.iter().map(|m| m.file_bytes()).fold(0, u64::saturating_add);
        let value_bytes = plans.iter().map(|p| p.bytes).fold(0, u64::saturating_add);
        let total = file_bytes.saturating_add(value_bytes);
        let done = AtomicU64::new(0);
        let advance = |bytes: u64| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            progress(before.saturating_add(bytes).min(total), total);
        };
        for (file, (model, values)) in models.iter().zip(&plans).enumerate() {
            let damaged = model.verify_hashes(file, &found, &advance);
            values.verify(model, file, &damaged, &found, &advance);
            if let Err(error) = model.check_unchanged() {
                found.add((file, Phase::Changed, 0, 0), error);
            }
        }
        progress(total, total);
        let (errors, errors_left_out) = found.into_parts();
        let unknown_terms = plans.iter().map(|p| p.unknown_terms).sum();
        Verification { errors, errors_left_out, files: models.len(), bytes: file_bytes, unknown_terms }
    }

    /// Checks the hashes and values of the tensor called `name` and of what it is a delta to.
    ///
    /// # Errors
    /// `Argument` when there is none, else the first breach.
    pub fn verify_tensor(&self, name: &str) -> Result<()> {
        self.expect_tensor(name)?.verify()
    }

    /// Checks the chunk groups of segment `segment` of this file that bytes `range` of it lie in.
    ///
    /// # Errors
    /// `Argument` when there is no such range, `Format` with `Hash` when it is damaged, `Io`,
    /// `Changed`.
    pub fn verify_range(&self, segment: u32, range: Range<u64>) -> Result<()> {
        let segment = self.archive().segment(segment).ok_or_else(|| {
            let problem = format!("expected below {}, found {segment}", self.archive().segments().len());
            Error::argument(self.path(), "segment", problem)
        })?;
        segment.verify_range(range).map_err(|e| self.source().error(e))
    }

    /// Checks all segments and the padding before them; gives the segments that are damaged: why
    /// their values are what they are is no further question.
    fn verify_hashes(&self, file: usize, found: &Found, advance: &(impl Fn(u64) + Sync)) -> BTreeSet<u32> {
        let damaged = Mutex::new(BTreeSet::new());
        let add = |phase, segment: &Segment<'_, FileSource>, group: u64, error| {
            if phase == Phase::Hashes {
                lock(&damaged).insert(segment.index());
            }
            found.add((file, phase, segment.index().into(), group), self.source().error(error));
        };
        let head_end = HEADER_BYTES.saturating_add(self.archive().header().directory_bytes.get());
        let segments: Vec<_> = self.archive().segments().collect();
        let ends = segments.iter().map(end_of);
        let starts: Vec<u64> = core::iter::once(head_end).chain(ends).collect();
        advance(head_end);
        segments.par_iter().zip(&starts).for_each(|(segment, start)| {
            if let Err(error) = segment.verify_padding() {
                add(Phase::Padding, segment, 0, error);
            }
            advance(segment.record().offset.get().saturating_sub(*start));
            let groups = match segment.chunk_groups() {
                Ok(groups) => groups,
                Err(error) => {
                    add(Phase::Hashes, segment, 0, error);
                    return advance(segment.record().stored_bytes.get());
                }
            };
            runs(&groups).for_each(|run| {
                let failed = &mut |group, error| add(Phase::Hashes, segment, group, error);
                if let Err(error) = groups.verify(run.clone(), failed) {
                    add(Phase::Hashes, segment, run.start, error);
                }
                let end = groups.bytes(run.end.saturating_sub(1)).end;
                advance(end.saturating_sub(groups.bytes(run.start).start));
            });
        });
        damaged.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs of chunk groups that are verified in one go, by one thread.
fn runs(groups: &ChunkGroups<'_, FileSource>) -> impl ParallelIterator<Item = Range<u64>> {
    let all = groups.indices();
    let group_bytes = groups.bytes(0).end.max(1);
    let length = (RUN_BYTES / group_bytes).max(1);
    let runs = 0..all.end.div_ceil(length);
    runs.into_par_iter().map(move |run| {
        let start = run.saturating_mul(length);
        start..start.saturating_add(length).min(all.end)
    })
}

fn end_of(segment: &Segment<'_, FileSource>) -> u64 {
    segment.record().offset.get().saturating_add(segment.record().stored_bytes.get())
}

//! How what is held becomes what a plan wants.

use super::generations::{Generation, Stopped};
use super::{Change, Resident, Runs, Snapshot, Status, lock};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::open::Backend;
use crate::plan::{Budget, Plan, Schedule};
use crate::source::FileSource;
use cmf_format::{Compression, Source};
use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::Ordering;
use rayon::prelude::*;
use std::sync::Arc;

/// Bytes that are brought in, verified and published at once, at least.
const SLICE_BYTES: u64 = 32 << 20;
/// Slices of the largest change.
const SLICES: u64 = 64;
/// Bytes of a map that one thread brings in at once, at least.
const PART_BYTES: u64 = 2 << 20;
/// Bytes that one thread reads into memory of the process at once: threads wait for each other to put
/// them in their place, which takes as long for many pages as for few.
const OWN_PART_BYTES: u64 = 4 << 20;
/// Bytes that one thread holds against their hashes at once.
const VERIFY_BYTES: u64 = 512 << 10;
/// Bytes that the system maps at once around a page that is missed, in blocks of as many.
const AROUND_BYTES: u64 = 64 << 10;
/// Bytes that are given back at once: readers that touch new pages wait as long as it takes.
pub(super) const RELEASE_BYTES: u64 = 8 << 20;
/// Parts of the largest file: each may become a map of its own, of which a process has some ten
/// thousands.
const PARTS: u64 = 4096;

/// What is in memory. Whoever has it locked may bring in and take away; a change does so in several steps,
/// between which others may, within [`Held::room`].
pub(super) struct Held {
    files: Vec<FileHeld>,
    /// The budget that is in force.
    budget: Budget,
    /// Steps whose pages are in memory or have their place there: of the plans before and after the change
    /// that is under way the larger one, until what only that one has is given back.
    units: usize,
    /// Steps that are held when the change that is under way is done.
    target: usize,
    /// Bytes that the plan and what is on demand may take together.
    room: u64,
}

struct FileHeld {
    pages: Runs,
    /// By segment: whether it had its hash when it was first brought in.
    verified: Vec<bool>,
}

impl Held {
    pub(super) fn nothing(files: &[&Model], budget: Budget) -> Self {
        let nothing = |file: &&Model| FileHeld {
            pages: Runs::default(),
            verified: vec![false; file.archive().segments().len()],
        };
        Self { files: files.iter().map(nothing).collect(), budget, units: 0, target: 0, room: 0 }
    }

    /// Steps whose pages are in memory or have their place there.
    pub(super) fn units(&self) -> usize {
        self.units
    }

    /// Bytes that the plan and what is on demand may take together.
    pub(super) fn room(&self) -> u64 {
        self.room
    }

    fn page_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.pages.bytes()).fold(0, u64::saturating_add)
    }
}

/// Pages of memory.
pub(super) fn page_bytes() -> u64 {
    #[cfg(unix)]
    return rustix::param::page_size() as u64;
    #[cfg(not(unix))]
    4096
}

/// The pages of each file that the first `steps` steps need.
fn pages(schedule: &Schedule, steps: usize) -> impl Iterator<Item = Runs> {
    let page = page_bytes();
    schedule.files().map(move |file| file.pages(steps, page))
}

/// What is in memory beside pages of files.
pub(super) fn beside(schedule: &Schedule, steps: usize) -> u64 {
    let decoded = schedule.files().map(|file| file.decoded_bytes(steps));
    decoded.fold(schedule.overhead_bytes(), u64::saturating_add)
}

/// What the first `steps` steps take in memory.
pub(super) fn paged_bytes(schedule: &Schedule, steps: usize) -> u64 {
    pages(schedule, steps).map(|runs| runs.bytes()).fold(beside(schedule, steps), u64::saturating_add)
}

/// What the first steps take in memory.
#[derive(Debug)]
pub(super) struct Planned {
    /// By file.
    pub(super) pages: Vec<Runs>,
    /// Beside pages of files.
    pub(super) beside: u64,
}

impl Planned {
    fn bytes(&self) -> u64 {
        self.pages.iter().map(Runs::bytes).fold(self.beside, u64::saturating_add)
    }
}

impl Resident<'_> {
    /// What the first `steps` steps take in memory.
    pub(super) fn planned(&self, steps: usize) -> Arc<Planned> {
        let mut last = lock(&self.planned);
        match &*last {
            Some((known, planned)) if *known == steps => Arc::clone(planned),
            _ => {
                let pages = pages(&self.schedule, steps).collect();
                let planned = Arc::new(Planned { pages, beside: beside(&self.schedule, steps) });
                *last = Some((steps, Arc::clone(&planned)));
                planned
            }
        }
    }

    /// The first plan: nothing is published before it is there.
    pub(super) fn start(&self, budget: Budget) -> Result<()> {
        let target = self.target(budget)?;
        let mut held = lock(&self.held);
        (held.units, held.room) = (target.units(), self.room_under(budget, &target));
        self.begin(&mut held, &target);
        self.release(&mut held, 0)?;
        // With what is held always: transforms come with step 0.
        self.bring(&mut held, 0..target.units().saturating_add(1), target.units())?;
        let grown = self.current.grow(|_| Ok(()), || Ok(target));
        grown.map_err(|stopped| self.stopped(stopped))?;
        self.settle(&held);
        Ok(())
    }

    /// Changes what is held to what fits `budget`, or the budget that is in force.
    pub(super) fn change<E: From<Error>>(
        &self,
        budget: Option<Budget>,
        announce: &mut impl FnMut(&Snapshot) -> core::result::Result<(), E>,
    ) -> core::result::Result<Change, E> {
        let ticket = self.asked.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let _turn = lock(&self.turn);
        // By what has arrived, and what budget is in force, when it is this change's turn.
        let budget = budget.unwrap_or(lock(&self.held).budget);
        let target = self.target(budget)?;
        let moved = Cell::new(Change::default());
        let ended_early = self.change_held(&moved, ticket, (budget, &target), announce);
        self.step(&moved, |held| held.target = self.current.snapshot().value.units());
        Ok(Change { ended_early: ended_early?, ..moved.get() })
    }

    /// A step of a change: nobody else brings anything in or takes anything away meanwhile. Adds what it
    /// moves to `moved`.
    fn step<T>(&self, moved: &Cell<Change>, work: impl FnOnce(&mut Held) -> T) -> T {
        let mut held = lock(&self.held);
        let before = *lock(&self.status);
        let result = work(&mut held);
        self.settle(&held);
        let after = *lock(&self.status);
        let Change { loaded_bytes, released_bytes, ended_early } = moved.get();
        let loaded = after.loaded_bytes.saturating_sub(before.loaded_bytes);
        let released = after.released_bytes.saturating_sub(before.released_bytes);
        moved.set(Change {
            loaded_bytes: loaded_bytes.saturating_add(loaded),
            released_bytes: released_bytes.saturating_add(released),
            ended_early,
        });
        result
    }

    /// Whether a later change ended this one.
    ///
    /// While it waits for readers, and while it tells them, others may bring in what is on demand: a reader
    /// that is waited for may need that to come to its end.
    fn change_held<E: From<Error>>(
        &self,
        moved: &Cell<Change>,
        ticket: u64,
        (budget, target): (Budget, &Plan),
        announce: &mut impl FnMut(&Snapshot) -> core::result::Result<(), E>,
    ) -> core::result::Result<bool, E> {
        let room = self.room_under(budget, target);
        self.check_pinned(target.units(), room)?;
        self.step(moved, |held| self.begin(held, target));
        let announce = &mut |generation: &Arc<Generation<Plan>>| announce(&Snapshot(Arc::clone(generation)));
        let current = self.current.snapshot().value.units();
        let mut reached = target.units().min(current);
        // Also when nothing is dropped: pages that were touched outside of the plan go.
        let smaller = self.schedule.first(reached).under(target.budget_bytes());
        let release = || {
            self.step(moved, |held| {
                self.release(held, reached)?;
                held.units = reached;
                // From here on the new budget is in force.
                (held.budget, held.room) = (budget, room);
                self.make_room(held, target.units(), &[])?;
                held.units = target.units();
                Ok(())
            })
            .map_err(|e: Error| E::from(e))
        };
        let shrunk = self.current.shrink(smaller, self.options.patience, &mut *announce, release);
        shrunk.map_err(|stopped| self.stopped(stopped))?;
        for next in self.slices(reached, target.units()) {
            if self.asked.load(Ordering::Relaxed) != ticket {
                // What came ahead of the steps that were published.
                self.step(moved, |held| self.fall_back(held, reached))?;
                return Ok(true);
            }
            let plan = self.schedule.first(next).under(target.budget_bytes());
            let steps = reached.saturating_add(1)..next.saturating_add(1);
            let bring = || {
                let brought = self.step(moved, |held| self.bring(held, steps, target.units()));
                brought.map_err(E::from).map(|()| plan)
            };
            if let Err(stopped) = self.current.grow(&mut *announce, bring) {
                // What was brought in and cannot be read goes.
                let _ = self.step(moved, |held| self.fall_back(held, reached));
                return Err(self.stopped(stopped));
            }
            reached = next;
        }
        if reached > current {
            // Whoever was told may have read compressed segments to decode them.
            self.step(moved, |held| {
                let mut files = held.files.iter().zip(&self.files);
                files.try_for_each(|(held, file)| sweep(file.source(), &held.pages))
            })?;
        }
        Ok(false)
    }

    /// Gives back what a grow brought in beyond `reached` steps.
    fn fall_back(&self, held: &mut Held, reached: usize) -> Result<()> {
        held.units = reached;
        self.release(held, reached)
    }

    /// The steps at which a grow from `start` to `end` publishes what it has.
    fn slices(&self, start: usize, end: usize) -> Vec<usize> {
        let bytes = |steps| self.schedule.resident_bytes(steps);
        let slice_bytes = (bytes(end).saturating_sub(bytes(start)) / SLICES).max(SLICE_BYTES);
        let (mut ends, mut last) = (Vec::new(), bytes(start));
        for steps in start.saturating_add(1)..=end {
            if steps == end || bytes(steps.saturating_add(1)).saturating_sub(last) > slice_bytes {
                ends.push(steps);
                last = bytes(steps);
            }
        }
        ends
    }

    /// Brings in the pages of the steps before `steps.end`, and verifies the segments of `steps`. What of the
    /// first `last` steps comes for less when it comes at once with them comes too.
    fn bring(&self, held: &mut Held, steps: Range<usize>, last: usize) -> Result<()> {
        let until = steps.end.saturating_sub(1);
        self.schedule.files().enumerate().try_for_each(|(file, units)| {
            let mut pages = units.pages(until, page_bytes());
            if let Some(file) = self.files.get(file).filter(|_| until < last) {
                pages = file.source().with_whole_blocks(pages, || units.pages(last, page_bytes()));
            }
            self.bring_to(held, file, &pages, units.segments(steps.clone()))?;
            // What was touched outside of the plan goes.
            let all = held.files.get(file).zip(self.files.get(file));
            all.map_or(Ok(()), |(held, file)| sweep(file.source(), &held.pages))
        })
    }

    /// Brings in the pages `wanted` of a file, verifies `segments`, and gives back what that touched beside them.
    pub(super) fn bring_to(
        &self,
        held: &mut Held,
        file: usize,
        wanted: &Runs,
        segments: impl Iterator<Item = u32>,
    ) -> Result<()> {
        let (Some(held), Some(file)) = (held.files.get_mut(file), self.files.get(file)) else {
            return Ok(());
        };
        let source = file.source();
        if self.arrived.load(Ordering::Relaxed) == usize::MAX {
            source.check_open_file()?;
        }
        let part_bytes = if source.backend() == Backend::Pread { OWN_PART_BYTES } else { PART_BYTES };
        let part_bytes = (source.file_bytes() / PARTS).max(part_bytes);
        let parts = source.parts(&wanted.minus(&held.pages), part_bytes);
        let hold = |part: &Range<u64>| {
            source.hold(part.clone()).map_err(|e| source.error(e))?;
            self.count(
                |status, bytes| {
                    status.held_bytes = status.held_bytes.saturating_add(bytes);
                    status.loaded_bytes = status.loaded_bytes.saturating_add(bytes);
                    status.loading_bytes = status.loading_bytes.saturating_sub(bytes);
                },
                part,
            );
            Ok(part.clone())
        };
        let done: Vec<Result<Range<u64>>> = parts.par_iter().with_max_len(1).map(hold).collect();
        // Also after an error: what is in memory is known.
        let mut came = Runs::default();
        done.iter().flatten().for_each(|part| came.push(part.clone()));
        held.pages = held.pages.plus(&came);
        done.into_iter().find_map(core::result::Result::err).map_or(Ok(()), Err)?;
        if self.options.verify {
            let segments: Vec<u32> = segments.collect();
            self.verify(file, &mut held.verified, segments.iter().copied())?;
            release_all(source, &touched(file, segments).minus(&held.pages))?;
        }
        Ok(())
    }

    /// Holds `segments` of a file against their hashes, those that were not before.
    fn verify(&self, file: &Model, verified: &mut [bool], segments: impl Iterator<Item = u32>) -> Result<()> {
        let known = |index: &u32| verified.get(*index as usize).copied().unwrap_or(true);
        let segments: Vec<_> = segments.filter(|index| !known(index)).collect();
        let failed = |e| file.source().error(e);
        let groups = segments.par_iter().filter_map(|index| file.archive().segment(*index));
        let groups: Vec<_> = groups.map(|segment| segment.chunk_groups()).collect();
        let groups = groups.into_iter().collect::<cmf_format::Result<Vec<_>>>().map_err(failed)?;
        // A large segment is more than one thread's.
        let parts = groups.iter().flat_map(|groups| {
            let (all, first) = (groups.indices(), groups.bytes(0));
            let part = (VERIFY_BYTES / (first.end - first.start).max(1)).max(1);
            let starts = all.clone().step_by(usize::try_from(part).unwrap_or(usize::MAX));
            starts.map(move |start| (groups, start..all.end.min(start.saturating_add(part))))
        });
        let parts: Vec<_> = parts.collect();
        // One by one, so that no thread has some left when the others are done.
        let found = parts.par_iter().with_max_len(1).map(|(groups, part)| {
            groups.check(part.clone())?;
            let last = groups.bytes(part.end.saturating_sub(1));
            self.count(
                |status, bytes| status.verified_bytes = status.verified_bytes.saturating_add(bytes),
                &(groups.bytes(part.start).start..last.end),
            );
            Ok(())
        });
        let wrong = found.find_first(|result: &cmf_format::Result<()>| result.is_err());
        wrong.unwrap_or(Ok(())).map_err(failed)?;
        for index in segments {
            if let Some(place) = verified.get_mut(index as usize) {
                *place = true;
            }
        }
        Ok(())
    }

    /// The pages of each file that are wanted for the first `steps` steps and on demand.
    fn wanted(&self, steps: usize) -> Vec<Runs> {
        let planned = self.planned(steps);
        let files = planned.pages.iter().enumerate();
        files.map(|(file, planned)| planned.plus(&self.demand.pages(file))).collect()
    }

    /// Gives back all but the pages of the first `steps` steps and of what is on demand, whoever touched them; of
    /// those, none is brought in.
    pub(super) fn release(&self, held: &mut Held, steps: usize) -> Result<()> {
        self.release_held(held, steps)?;
        held.files.iter().zip(&self.files).try_for_each(|(held, file)| sweep(file.source(), &held.pages))
    }

    /// The same of what is held.
    pub(super) fn release_held(&self, held: &mut Held, steps: usize) -> Result<()> {
        for ((held, file), kept) in held.files.iter_mut().zip(&self.files).zip(self.wanted(steps)) {
            let source = file.source();
            let gone = held.pages.minus(&kept);
            held.pages = held.pages.minus(&gone);
            let parts = source.parts(&gone, RELEASE_BYTES);
            let released = parts.into_iter().try_for_each(|part| source.release(part));
            released.map_err(|e| source.error(e))?;
            self.count(
                |status, bytes| {
                    status.held_bytes = status.held_bytes.saturating_sub(bytes);
                    status.released_bytes = status.released_bytes.saturating_add(bytes);
                    status.releasing_bytes = status.releasing_bytes.saturating_sub(bytes);
                },
                &(0..gone.bytes()),
            );
        }
        Ok(())
    }

    /// Says what is going to happen.
    fn begin(&self, held: &mut Held, target: &Plan) {
        held.target = target.units();
        {
            let mut status = lock(&self.status);
            status.budget_bytes = target.budget_bytes();
            status.changes = status.changes.saturating_add(1);
        }
        self.settle(held);
    }

    /// Says how it is now, between two steps.
    pub(super) fn settle(&self, held: &Held) {
        let (mut loading, mut releasing) = (0u64, 0u64);
        let (wanted, decoded_bytes) = (self.wanted(held.target), self.demand.decoded_bytes());
        for (held, wanted) in held.files.iter().zip(&wanted) {
            loading = loading.saturating_add(wanted.minus(&held.pages).bytes());
            releasing = releasing.saturating_add(held.pages.minus(wanted).bytes());
        }
        let target = self.planned(held.target);
        let wanted_beside = target.beside.saturating_add(decoded_bytes);
        let wanted_bytes = wanted.iter().map(Runs::bytes).fold(wanted_beside, u64::saturating_add);
        let plan = &self.current.snapshot().value;
        let beside = match plan.units() == held.target {
            true => target.beside,
            false => beside(&self.schedule, plan.units()),
        };
        let beside = beside.saturating_add(decoded_bytes);
        let mut status = lock(&self.status);
        status.units = plan.units();
        status.resident_bytes = plan.resident_bytes();
        status.held_bytes = held.page_bytes().saturating_add(beside);
        status.wanted_bytes = wanted_bytes;
        status.demanded_bytes = wanted_bytes.saturating_sub(target.bytes());
        status.demanded = self.demand.count();
        (status.loading_bytes, status.releasing_bytes) = (loading, releasing);
    }

    fn count(&self, add: impl FnOnce(&mut Status, u64), bytes: &Range<u64>) {
        add(&mut lock(&self.status), bytes.end.saturating_sub(bytes.start));
    }

    fn stopped<E: From<Error>>(&self, stopped: Stopped<E>) -> E {
        match stopped {
            Stopped::Failed(error) => error,
            Stopped::Busy => {
                let problem = "budget: readers still hold units that are to be given back";
                Error::busy(self.model.path(), problem.into()).into()
            }
        }
    }
}

/// Gives back all of a file but `kept`.
fn sweep(source: &FileSource, kept: &Runs) -> Result<()> {
    let page = page_bytes();
    let end = source.file_bytes().checked_next_multiple_of(page).unwrap_or(u64::MAX);
    release_all(source, &Runs::up_to(end).minus(kept))
}

fn release_all(source: &FileSource, gone: &Runs) -> Result<()> {
    let released = gone.iter().try_for_each(|run| source.release(run.clone()));
    released.map_err(|e| source.error(e))
}

/// Pages that verifying `segments` may bring into memory beside those of raw segments: hashes of chunk groups,
/// compressed segments, and what the system maps around a page that is missed.
fn touched(file: &Model, segments: Vec<u32>) -> Runs {
    let archive = file.archive();
    let hashes = archive.header().chunk_hash_segment.get();
    let compressed = segments.into_iter().filter_map(|index| archive.segment(index));
    let compressed = compressed.filter(|segment| segment.compression() != Some(Compression::Raw));
    let mut ranges: Vec<Range<u64>> = compressed
        .chain(archive.segment(hashes))
        .map(|segment| {
            let start = segment.record().offset.get();
            start..start.saturating_add(segment.record().stored_bytes.get())
        })
        .collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut runs = Runs::default();
    ranges.into_iter().for_each(|range| runs.push(range));
    runs.blocks(AROUND_BYTES.max(page_bytes()), 0)
}

//! Plans: which units of a model are held within a budget.
//!
//! A plan is a prefix of the schedule, so it is a pure function of the directory and the budget,
//! monotone (a larger budget never drops a unit that a smaller one held) and, for the order that
//! the file states, optimal up to one unit.
//!
//! # What is counted
//!
//! [`Plan::resident_bytes`] is the sum of
//! - the decoded bytes of the segments of all units of the prefix, each segment once, which is what
//!   the schedule states as `cumulative_bytes` (spec: container, 4.14);
//! - what is held always ([`Plan::overhead_bytes`]): header, directory, and the segments of
//!   transforms, each once; and for a delta all of its base.
//!
//! Attributes (a tokenizer, a configuration) are not counted: they are read once and not held while
//! the model runs. Neither is what an executor makes for itself, such as activations.
//!
//! [`Plan::mapped_bytes`] is the same for a file that is mapped: raw segments lie on whole pages.

mod budget;
mod memory;
mod merge;
mod pass;
mod schedule;

pub use budget::{Budget, ParseBudgetError, parse_bytes};
pub use memory::{AUTO_SHARE, available_bytes};
#[cfg(feature = "pressure")]
pub(crate) use memory::{room_bytes, stalled_percent};
pub use schedule::Schedule;

use crate::resident::Runs;
use cmf_format::archive::Matrix;
use cmf_format::{Archive, Source};
use core::fmt;
use core::hash::{Hash, Hasher};
use core::ops::Range;
pub(crate) use schedule::FileUnits;
use std::sync::Arc;

/// The plan for a budget: the longest prefix of the archive's schedule that fits.
///
/// Looks at the directory alone: O(nodes + units + segments). For several budgets, make the
/// [`Schedule`] once.
///
/// # Errors
/// [`BelowMinimum`] when the budget does not hold all units of level 0.
pub fn plan<S: Source>(archive: &Archive<S>, budget: Budget) -> Result<Plan, BelowMinimum> {
    Schedule::of(archive).plan(budget)
}

/// What is wanted of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Want {
    /// Nothing: it is not part of the model that is run.
    Never,
    /// Nothing until it is asked for, as the experts of a mixture: see
    /// [`Resident::require`](crate::Resident::require). It is in no plan.
    Demand,
    /// As much as the budget allows.
    #[default]
    Budget,
    /// All of it, whatever the budget: it is part of the minimum.
    Always,
}

/// A budget in which a model cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("budget: expected at least {minimum_bytes} bytes, the minimum of this model, found {budget_bytes}")]
pub struct BelowMinimum {
    /// The budget.
    pub budget_bytes: u64,
    /// The smallest budget that is a model.
    pub minimum_bytes: u64,
}

/// The units that are held within a budget.
///
/// Cheap to clone. Two plans are equal when they hold the same units of the same archives.
#[derive(Clone)]
pub struct Plan {
    schedule: Schedule,
    budget_bytes: u64,
    steps: usize,
}

impl Plan {
    /// The same units under another budget.
    pub(crate) fn under(mut self, budget_bytes: u64) -> Self {
        self.budget_bytes = budget_bytes;
        self
    }

    /// The schedule that it is a prefix of.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The budget, in bytes.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Units that are held: the length of the prefix.
    pub fn units(&self) -> usize {
        self.steps
    }

    /// Bytes that are held, exactly; never more than the budget.
    pub fn resident_bytes(&self) -> u64 {
        self.schedule.resident_bytes(self.steps)
    }

    /// The smallest budget that is a model.
    pub fn minimum_bytes(&self) -> u64 {
        self.schedule.minimum_bytes()
    }

    /// The budget that holds everything.
    pub fn maximum_bytes(&self) -> u64 {
        self.schedule.maximum_bytes()
    }

    /// The part of [`Plan::resident_bytes`] that is held whatever the budget: headers, directories,
    /// segments of transforms, and bases.
    pub fn overhead_bytes(&self) -> u64 {
        self.schedule.overhead_bytes()
    }

    /// What the next unit would add; `None` when all are held. The budget has less than this left.
    pub fn next_bytes(&self) -> Option<u64> {
        let next = self.steps.checked_add(1).filter(|next| *next <= self.schedule.steps())?;
        Some(self.schedule.resident_bytes(next).saturating_sub(self.resident_bytes()))
    }

    /// [`Plan::resident_bytes`] in bits by elements of the model; 0 without elements.
    pub fn bits_per_weight(&self) -> f64 {
        match self.schedule.elements() {
            0 => 0.0,
            elements => self.resident_bytes() as f64 * 8.0 / elements as f64,
        }
    }

    /// Expected loss of the model with these units, where the file states it.
    pub fn expected_loss(&self) -> Option<f64> {
        self.schedule.expected_loss(self.steps)
    }

    /// Bytes that are held when raw segments are mapped in pages of `page_bytes`: each page on which
    /// a raw segment of the plan lies once, compressed ones decoded, and the overhead.
    ///
    /// The writer lays payload in schedule order, so a plan is one cut through the file: beside its
    /// segments it takes the padding between them and two pages at most. Files in another order pay
    /// for each gap. O(segments).
    pub fn mapped_bytes(&self, page_bytes: u64) -> u64 {
        let files = self.schedule.0.files.iter();
        let paged = files.map(|file| file.paged_bytes(self.steps, page_bytes.max(1)));
        paged.fold(self.overhead_bytes(), u64::saturating_add)
    }

    /// Whether unit `unit` of the archive is held; of the first file, where the model has several.
    /// O(1).
    pub fn includes(&self, unit: u32) -> bool {
        self.schedule.0.files.first().is_some_and(|file| file.holds_unit(unit, self.steps))
    }

    /// The units of `archive` that are held; `None` when the plan was made for others.
    pub fn of<S: Source>(&self, archive: &Archive<S>) -> Option<HeldUnits<'_>> {
        let file = self.schedule.0.file(&archive.identity())?;
        Some(HeldUnits { file, steps: self.steps })
    }
}

/// The units of one archive that a [`Plan`] holds.
#[derive(Clone, Copy)]
pub struct HeldUnits<'p> {
    file: &'p FileUnits,
    steps: usize,
}

impl HeldUnits<'_> {
    /// Whether unit `unit` is held. O(1).
    pub fn includes(&self, unit: u32) -> bool {
        self.file.holds_unit(unit, self.steps)
    }

    /// Whether segment `segment` is held for a unit or a transform. O(1).
    pub fn holds_segment(&self, segment: u32) -> bool {
        self.file.segments.get(segment as usize).is_some_and(|s| s.needed as usize <= self.steps)
    }

    /// The blocks of rows of a matrix of this archive, in order, with the level up to which each is
    /// held. O(units of the matrix).
    pub fn levels<S: Source>(&self, matrix: &Matrix<'_, S>) -> Vec<(Range<u64>, u16)> {
        let mut blocks: Vec<(Range<u64>, u16)> = Vec::new();
        for unit in matrix.units().filter(|unit| self.includes(unit.index())) {
            let rows = unit.rows();
            // Blocks ascend in rows, and a unit of a higher level has the rows of one of level 0.
            match blocks.binary_search_by_key(&rows.start, |(rows, _)| rows.start) {
                Ok(found) => {
                    if let Some((_, level)) = blocks.get_mut(found) {
                        *level = unit.level();
                    }
                }
                Err(place) => blocks.insert(place, (rows, unit.level())),
            }
        }
        blocks
    }
}

impl FileUnits {
    fn holds_unit(&self, unit: u32, steps: usize) -> bool {
        self.needed.get(unit as usize).is_some_and(|needed| *needed as usize <= steps)
    }

    /// Pages that are held for the first `steps` steps: those that raw segments of units and of
    /// transforms lie on.
    pub(crate) fn pages(&self, steps: usize, page_bytes: u64) -> Runs {
        let mut runs = Runs::default();
        // In file order.
        for segment in self.segments.iter().filter(|s| s.raw && s.decoded_bytes > 0) {
            if segment.needed as usize <= steps {
                runs.push(segment.pages(page_bytes));
            }
        }
        runs
    }

    /// Those of [`FileUnits::pages`] that hold what `part`, a schedule of some of the matrices of the same
    /// file, has at any step.
    pub(crate) fn pages_of(&self, part: &Self, steps: usize, page_bytes: u64) -> Runs {
        let mut runs = Runs::default();
        for (segment, of_part) in self.segments.iter().zip(&part.segments) {
            let held = segment.raw && segment.decoded_bytes > 0 && segment.needed as usize <= steps;
            if held && of_part.needed != pass::NEVER {
                runs.push(segment.pages(page_bytes));
            }
        }
        runs
    }

    /// Segments that come with the steps from `steps.start` to before `steps.end`; those of step 0
    /// are held always.
    pub(crate) fn segments(&self, steps: Range<usize>) -> impl Iterator<Item = u32> {
        let all = self.segments.iter().zip(0u32..);
        all.filter(move |(segment, _)| steps.contains(&(segment.needed as usize))).map(|(_, index)| index)
    }

    /// What is held for `segments`, ascending: the pages of raw ones, and the bytes that the others become.
    pub(crate) fn held_for(&self, segments: &[u32], page_bytes: u64) -> (Runs, u64) {
        let (mut runs, mut decoded_bytes) = (Runs::default(), 0u64);
        for segment in segments.iter().filter_map(|index| self.segments.get(*index as usize)) {
            match segment.raw {
                true => runs.push(segment.pages(page_bytes)),
                false => decoded_bytes = decoded_bytes.saturating_add(segment.decoded_bytes),
            }
        }
        (runs, decoded_bytes)
    }

    /// Decoded bytes of the compressed segments of the first `steps` units.
    pub(crate) fn decoded_bytes(&self, steps: usize) -> u64 {
        let held = self.segments.iter().filter(|s| !s.raw && s.needed > 0 && s.needed as usize <= steps);
        held.fold(0, |sum, segment| sum.saturating_add(segment.decoded_bytes))
    }

    /// Pages of the raw segments and bytes of the decoded ones, without those of transforms.
    fn paged_bytes(&self, steps: usize, page_bytes: u64) -> u64 {
        let (mut bytes, mut next_page) = (0u64, 0u64);
        // In file order.
        for segment in self.segments.iter().filter(|s| s.needed > 0 && s.needed as usize <= steps) {
            if !segment.raw {
                bytes = bytes.saturating_add(segment.decoded_bytes);
            } else if segment.decoded_bytes > 0 {
                let end = segment.offset.saturating_add(segment.decoded_bytes).div_ceil(page_bytes);
                let start = (segment.offset / page_bytes).max(next_page).min(end);
                bytes = bytes.saturating_add((end - start).saturating_mul(page_bytes));
                next_page = end;
            }
        }
        bytes
    }
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        let (own, others) = (&self.schedule.0, &other.schedule.0);
        let same = || own.files.iter().map(|f| f.identity).eq(others.files.iter().map(|f| f.identity));
        self.steps == other.steps && (Arc::ptr_eq(own, others) || same())
    }
}

impl Eq for Plan {}

impl Hash for Plan {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.steps.hash(state);
        self.schedule.0.files.iter().for_each(|file| file.identity.hash(state));
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("budget_bytes", &self.budget_bytes)
            .field("resident_bytes", &self.resident_bytes())
            .field("units", &self.units())
            .finish()
    }
}

impl fmt::Debug for HeldUnits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldUnits").field("steps", &self.steps).finish()
    }
}

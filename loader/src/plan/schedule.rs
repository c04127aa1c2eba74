//! The order of the units of a model, with the bytes that each prefix of it holds.

use super::merge;
use super::pass::{HeldSegment, NEVER, Pass};
use super::{BelowMinimum, Budget, Plan, Want};
use cmf_format::{Archive, Source};
use core::fmt;
use std::sync::Arc;

/// The order in which budgets take the units of a model, and what each prefix of it takes: all that
/// [`Plan`]s of one model share.
///
/// Made in one pass over the directory, O(nodes + units + segments), and cheap to clone. Bytes are
/// counted from the segments themselves, not taken from what the schedule states.
#[derive(Clone)]
pub struct Schedule(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) files: Vec<FileUnits>,
    /// Bytes with so many steps: one more than there are steps.
    pub(super) resident_bytes: Vec<u64>,
    /// Expected loss after each step; NaN where it is not stated.
    pub(super) losses: Vec<f64>,
    /// Steps up to the last unit of level 0 of any file.
    pub(super) required: usize,
    pub(super) overhead_bytes: u64,
    pub(super) elements: u64,
}

/// When the units and segments of one file are held.
pub(crate) struct FileUnits {
    pub(super) identity: [u8; 32],
    /// By unit: steps that must be held for it.
    pub(super) needed: Vec<u32>,
    pub(super) segments: Vec<HeldSegment>,
}

impl Schedule {
    /// The schedule of one archive. What it refers to in other archives is not part of it.
    pub fn of<S: Source>(archive: &Archive<S>) -> Self {
        Self::of_files([archive], 0, 0, None)
    }

    /// One schedule over several archives of a model; `fixed_bytes` and `fixed_elements` are held
    /// beside them always.
    pub(crate) fn of_files<'a, S: Source + 'a>(
        archives: impl IntoIterator<Item = &'a Archive<S>>,
        fixed_bytes: u64,
        fixed_elements: u64,
        want: Option<&dyn Fn(&str) -> Want>,
    ) -> Self {
        let passes: Vec<Pass> = archives.into_iter().map(|archive| Pass::over(archive, want)).collect();
        let order = match passes.len() {
            1 => None,
            _ => Some(merge::order(&passes)),
        };
        let overhead_bytes =
            passes.iter().fold(fixed_bytes, |sum, pass| sum.saturating_add(pass.overhead_bytes));
        let elements = passes.iter().fold(fixed_elements, |sum, pass| sum.saturating_add(pass.elements));
        let inner = match order {
            None => single(passes, overhead_bytes, elements),
            Some(order) => merged(&order, passes, overhead_bytes, elements),
        };
        Self(Arc::new(inner))
    }

    /// The plan for a budget: the longest prefix of the schedule that fits. O(log steps).
    ///
    /// # Errors
    /// [`BelowMinimum`] when the budget does not hold all units of level 0.
    pub fn plan(&self, budget: Budget) -> Result<Plan, BelowMinimum> {
        let inner = &self.0;
        let budget_bytes = self.budget_bytes(budget);
        let fitting = inner.resident_bytes.partition_point(|bytes| *bytes <= budget_bytes);
        match fitting.checked_sub(1).filter(|steps| *steps >= inner.required) {
            Some(steps) => Ok(Plan { schedule: self.clone(), budget_bytes, steps }),
            None => Err(BelowMinimum { budget_bytes, minimum_bytes: self.minimum_bytes() }),
        }
    }

    /// A budget of this model in bytes.
    pub fn budget_bytes(&self, budget: Budget) -> u64 {
        match budget {
            Budget::Bytes(bytes) => bytes,
            // The cast saturates; a budget is rounded down.
            Budget::BitsPerWeight(bits) => (self.0.elements as f64 * bits / 8.0) as u64,
            Budget::Minimum => self.minimum_bytes(),
            Budget::Maximum => self.maximum_bytes(),
        }
    }

    /// The plan that holds the first `steps` units; no fewer than are required.
    pub fn first(&self, steps: usize) -> Plan {
        let steps = steps.clamp(self.0.required.min(self.steps()), self.steps());
        Plan { schedule: self.clone(), budget_bytes: self.resident_bytes(steps), steps }
    }

    /// The files that it is over: the model's own and its shards.
    pub(crate) fn files(&self) -> impl Iterator<Item = &FileUnits> {
        self.0.files.iter()
    }

    /// Number of steps: units of all files that are wanted.
    pub fn steps(&self) -> usize {
        self.0.losses.len()
    }

    /// Steps up to the last unit of level 0: the shortest prefix that is a model.
    pub fn required_steps(&self) -> usize {
        self.0.required
    }

    /// Bytes that the first `steps` units take, with [`Schedule::overhead_bytes`]; those of all units
    /// when there are fewer.
    pub fn resident_bytes(&self, steps: usize) -> u64 {
        let bytes = self.0.resident_bytes.get(steps).or_else(|| self.0.resident_bytes.last());
        bytes.copied().unwrap_or(self.0.overhead_bytes)
    }

    /// For each segment of the model's own file the step that it comes with: 0 when it is held always,
    /// `None` when no unit and no transform needs it, as those of attributes.
    pub fn segment_steps(&self) -> Vec<Option<usize>> {
        let segments = self.0.files.first().map_or(&[][..], |file| &file.segments);
        let step = |segment: &HeldSegment| (segment.needed != NEVER).then_some(segment.needed as usize);
        segments.iter().map(step).collect()
    }

    /// Expected loss of the model with the first `steps` units, where it is stated.
    pub fn expected_loss(&self, steps: usize) -> Option<f64> {
        let loss = steps.checked_sub(1).and_then(|last| self.0.losses.get(last)).copied();
        loss.filter(|loss| loss.is_finite())
    }

    /// The smallest budget that is a model.
    pub fn minimum_bytes(&self) -> u64 {
        self.resident_bytes(self.0.required)
    }

    /// The budget that holds everything.
    pub fn maximum_bytes(&self) -> u64 {
        self.resident_bytes(self.steps())
    }

    /// Bytes that are resident whatever the budget: headers, directories, segments of transforms,
    /// and bases.
    pub fn overhead_bytes(&self) -> u64 {
        self.0.overhead_bytes
    }

    /// Elements of the model; those of tied tensors count once.
    pub fn elements(&self) -> u64 {
        self.0.elements
    }
}

impl Inner {
    /// The units of the archive with this identity.
    pub(super) fn file(&self, identity: &[u8; 32]) -> Option<&FileUnits> {
        self.files.iter().find(|file| file.identity == *identity)
    }
}

/// The schedule of one file is that of the whole.
fn single(passes: Vec<Pass>, overhead_bytes: u64, elements: u64) -> Inner {
    let mut inner = empty(overhead_bytes, elements);
    for pass in passes {
        let mut needed = vec![NEVER; pass.all_units];
        for (step, unit) in (1..).zip(&pass.units) {
            set(&mut needed, *unit, step);
        }
        let mut sum = overhead_bytes;
        inner.resident_bytes.extend(pass.added_bytes.iter().map(|bytes| {
            sum = sum.saturating_add(*bytes);
            sum
        }));
        inner.losses = pass.losses;
        inner.required = pass.required;
        inner.files.push(FileUnits { identity: pass.identity, needed, segments: pass.segments });
    }
    inner
}

fn merged(order: &[usize], passes: Vec<Pass>, overhead_bytes: u64, elements: u64) -> Inner {
    let mut inner = empty(overhead_bytes, elements);
    inner.required = passes.iter().map(|pass| pass.required).sum();
    // Of each file: the merged step of each of its own.
    let mut places: Vec<Vec<u32>> = passes.iter().map(|pass| Vec::with_capacity(pass.units.len())).collect();
    let mut losses: Vec<f64> =
        passes.iter().map(|pass| if pass.units.is_empty() { 0.0 } else { f64::NAN }).collect();
    let mut sum = overhead_bytes;
    let (mut loss_sum, mut not_stated) = (0.0, losses.iter().filter(|loss| loss.is_nan()).count());
    for (step, file) in order.iter().enumerate() {
        let (Some(pass), Some(places), Some(loss)) =
            (passes.get(*file), places.get_mut(*file), losses.get_mut(*file))
        else {
            continue;
        };
        let own = places.len();
        places.push(u32::try_from(step.saturating_add(1)).unwrap_or(NEVER));
        sum = sum.saturating_add(pass.added_bytes.get(own).copied().unwrap_or(0));
        inner.resident_bytes.push(sum);
        match loss.is_nan() {
            true => not_stated -= 1,
            false => loss_sum -= *loss,
        }
        *loss = pass.losses.get(own).copied().unwrap_or(f64::NAN);
        match loss.is_nan() {
            true => not_stated += 1,
            false => loss_sum += *loss,
        }
        inner.losses.push(if not_stated == 0 { loss_sum } else { f64::NAN });
    }
    for (pass, places) in passes.into_iter().zip(places) {
        let mut needed = vec![NEVER; pass.all_units];
        for (place, unit) in places.iter().zip(&pass.units) {
            set(&mut needed, *unit, *place);
        }
        let mut segments = pass.segments;
        for segment in &mut segments {
            // 0 and NEVER are the same in every order.
            let own = (segment.needed as usize).checked_sub(1).and_then(|step| places.get(step));
            segment.needed = own.copied().unwrap_or(segment.needed);
        }
        inner.files.push(FileUnits { identity: pass.identity, needed, segments });
    }
    inner
}

fn empty(overhead_bytes: u64, elements: u64) -> Inner {
    Inner {
        files: Vec::new(),
        resident_bytes: vec![overhead_bytes],
        losses: Vec::new(),
        required: 0,
        overhead_bytes,
        elements,
    }
}

fn set(needed: &mut [u32], unit: u32, step: u32) {
    if let Some(place) = needed.get_mut(unit as usize) {
        *place = step;
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedule")
            .field("files", &self.0.files.len())
            .field("steps", &self.steps())
            .field("minimum_bytes", &self.minimum_bytes())
            .field("maximum_bytes", &self.maximum_bytes())
            .finish()
    }
}

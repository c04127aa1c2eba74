//! A model inside a budget that moves: what is held is brought in, verified and given back while
//! readers keep running.
//!
//! ```no_run
//! use cmf_loader::{Budget, Levels, Model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("model.cmf")?;
//! let resident = model.resident(Budget::parse("90MiB")?)?;
//! let mut values = vec![0.0; 576];
//! std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
//!     scope.spawn(|| resident.set_budget(Budget::Bytes(40 << 20)));
//!     // What the snapshot holds may be read for as long as it lives.
//!     let snapshot = resident.snapshot();
//!     let tensor = model.tensor("lm_head.weight").ok_or("no such tensor")?;
//!     Ok(tensor.decode_rows(Levels::Plan(snapshot.plan()), 0..1, &mut values)?)
//! })?;
//! println!("{} bytes", resident.status().held_bytes);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - A plan is published after all of its bytes are in memory and every chunk group of them has its
//!   hash. What it lacks leaves memory after no snapshot holds it any more.
//! - So at each moment no more is held than the larger of the plan before and the plan after, and
//!   both are within their budgets.
//! - A change moves the difference: pages that both plans need stay, and are not read again. Of a
//!   file that is read for the first time the hashes of chunk groups are read too, 32 bytes for each
//!   group (64 KiB as a rule) of a segment of more than one.
//! - Readers do not wait: [`Resident::snapshot`] clones an `Arc`.
//! - Changes wait for each other, but one that is waiting ends the one before early: whoever wants
//!   memory back does not wait until a model has been read from a disk.
//!
//! # On demand
//!
//! Tensors that [`ResidentOptions::want`] says are wanted on demand, as the experts of a mixture, are in no
//! plan. [`Resident::require`] brings them in, and takes those out that were used longest ago, so that all
//! together stays within the budget.
//!
//! # What is counted
//!
//! Memory comes in pages. A budget in bytes is met by the longest prefix of the schedule whose
//! *pages* fit, or by the minimum if that fits without rounding; [`Status::held_bytes`] is the
//! sum of
//! - the pages that raw segments of the plan and of transforms lie on;
//! - what the file's directory and its transforms take beside the file, and what compressed segments
//!   of the plan become when they are opened;
//! - both for what is in memory on demand, with its transforms;
//! - for a delta, all of its base, which is not moved.
//!
//! # Where bytes are
//!
//! With [`Backend::Mmap`](crate::Backend::Mmap) pages are those of the map. They are given back with
//! `MADV_DONTNEED`: they no longer count for this process, and stay in the system's cache as long as
//! the system likes. All other pages of the map are given back too at each change. With
//! [`Backend::Pread`](crate::Backend::Pread), on Linux, pages are read into memory of this process, which
//! nobody can write to or cut, and freed. With [`Backend::Memory`](crate::Backend::Memory) all bytes are in
//! memory whatever the budget, and figures are those of what may be read. On systems other than Linux the system decides about
//! mapped pages, and figures are what it is asked for.

mod budgets;
mod change;
mod demand;
mod elsewhere;
mod generations;
#[cfg(feature = "pressure")]
pub mod pressure;
mod runs;
mod status;
mod supply;
mod sync;
mod table;

pub use budgets::Budgets;
pub use demand::{Part, Required};
pub use status::{Change, Status};
pub use supply::Supply;

pub(crate) use runs::Runs;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{Budget, Plan, Schedule, Want};
use change::{Held, Planned};
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use demand::Demand;
use generations::{Generation, Generations};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Says what is wanted of a tensor, by its name.
pub type WantOf = Arc<dyn Fn(&str) -> Want + Send + Sync>;

/// What a [`Resident`] is made with.
#[derive(Clone)]
pub struct ResidentOptions {
    /// What is wanted of each tensor, by name: parts of a model, or tensors that are held whatever the
    /// budget.
    pub want: Option<WantOf>,
    /// Whether bytes are held against their hashes when they are brought in for the first time.
    pub verify: bool,
    /// How long a change waits for readers of what it takes away.
    pub patience: Duration,
    /// Bytes of a budget that are set aside for what is wanted on demand, as far as the minimum of the rest
    /// leaves them. What the plan does not take is for it too.
    pub demand_bytes: u64,
    /// Bytes that must be left for what is wanted on demand, as those of the largest expert: a budget that
    /// leaves less beside the minimum of the rest is refused.
    pub least_demand_bytes: u64,
    /// The highest level that comes on demand.
    pub demand_level: u16,
}

impl Default for ResidentOptions {
    fn default() -> Self {
        Self {
            want: None,
            verify: true,
            patience: Duration::from_secs(60),
            demand_bytes: 0,
            least_demand_bytes: 0,
            demand_level: u16::MAX,
        }
    }
}

impl ResidentOptions {
    /// Bytes that are set aside for what is wanted on demand where there is room.
    fn aside_bytes(&self) -> u64 {
        self.demand_bytes.max(self.least_demand_bytes)
    }
}

impl fmt::Debug for ResidentOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResidentOptions").field("verify", &self.verify).finish_non_exhaustive()
    }
}

/// The part of a [`Model`] that is in memory. Shared between threads by reference.
pub struct Resident<'m> {
    model: &'m Model,
    /// The model's file and its shards.
    files: Vec<&'m Model>,
    schedule: Schedule,
    options: ResidentOptions,
    current: Generations<Plan>,
    /// Held by whoever changes the plan, from the beginning of the change to its end.
    turn: Mutex<()>,
    held: Mutex<Held>,
    demand: Demand,
    /// What the plan takes that was looked at last: a directory is long.
    planned: Mutex<Option<(usize, Arc<Planned>)>>,
    /// Who brings what is not in the file yet.
    supply: Option<&'m dyn Supply>,
    status: Mutex<Status>,
    /// Held by whoever changes the budgets of main memory and of a device.
    both: Mutex<()>,
    /// The steps that may be held whatever the budget.
    arrived: AtomicUsize,
    /// Changes that were asked for: a change that is not the last one ends early.
    asked: AtomicU64,
}

/// What may be read: the units of a plan, which stay in memory for as long as this is held.
#[derive(Clone)]
pub struct Snapshot(Arc<Generation<Plan>>);

impl Snapshot {
    /// The units.
    pub fn plan(&self) -> &Plan {
        &self.0.value
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Snapshot").field(self.plan()).finish()
    }
}

impl Model {
    /// Brings in and verifies what fits `budget`, and gives the rest back.
    ///
    /// There should be one of a model at a time: each takes out of memory what its own plan does
    /// not hold.
    ///
    /// # Errors
    /// `Argument` when the budget is below the minimum; `Format` with `Hash` for damaged bytes; `Io`,
    /// `Changed`; as [`Model::schedule`].
    pub fn resident(&self, budget: Budget) -> Result<Resident<'_>> {
        self.resident_with(budget, ResidentOptions::default())
    }

    /// [`Model::resident`] with options.
    ///
    /// # Errors
    /// As [`Model::resident`].
    pub fn resident_with(&self, budget: Budget, options: ResidentOptions) -> Result<Resident<'_>> {
        self.resident_of(budget, options, usize::MAX)
    }

    /// [`Model::resident_with`] for a file that is still being written: no more than the first
    /// `arrived` steps are brought in, until [`Resident::set_arrived`] says that more are there.
    ///
    /// # Errors
    /// As [`Model::resident`].
    pub fn resident_of(
        &self,
        budget: Budget,
        options: ResidentOptions,
        arrived: usize,
    ) -> Result<Resident<'_>> {
        let schedule = match &options.want {
            Some(want) => self.schedule_for(&|name| want(name))?,
            None => self.schedule()?.clone(),
        };
        let files = self.files()?;
        for file in &files {
            file.source().prepare().map_err(|e| file.source().error(e))?;
        }
        let resident = Resident {
            model: self,
            turn: Mutex::new(()),
            held: Mutex::new(Held::nothing(&files, budget)),
            demand: Demand::default(),
            planned: Mutex::default(),
            supply: None,
            files,
            options,
            current: Generations::new(schedule.first(0)),
            schedule,
            status: Mutex::default(),
            both: Mutex::new(()),
            arrived: AtomicUsize::new(arrived),
            asked: AtomicU64::new(0),
        };
        resident.start(budget)?;
        Ok(resident)
    }
}

impl<'m> Resident<'m> {
    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// The order in which budgets take units.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What may be read now. Takes a clone of an `Arc`, whatever change is under way.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.current.snapshot())
    }

    /// Changes what is held to what fits `budget`, and returns when memory is as it says.
    ///
    /// A shrink publishes the smaller plan, waits until no reader holds an older snapshot, and gives
    /// the pages back. A grow brings pages in, verifies them and publishes the larger plan. May be
    /// called from any thread; one that comes later ends one that is under way.
    ///
    /// # Errors
    /// `Argument` when the budget is below the minimum: nothing changes. `Busy` when readers hold an
    /// older snapshot for longer than [`ResidentOptions::patience`]: what they may read stays, and
    /// the next change takes it. `Format` with `Hash` for damaged bytes, `Io`, `Changed`: what was
    /// brought in is given back, and the plan before stays in force.
    pub fn set_budget(&self, budget: Budget) -> Result<Change> {
        self.set_budget_with(budget, |_| Ok(()))
    }

    /// [`Resident::set_budget`] that tells `announce` of each snapshot before it becomes the current
    /// one: for a reader that keeps something for each plan. It must not keep older snapshots.
    ///
    /// # Errors
    /// As [`Resident::set_budget`], and that of `announce`: the plan before stays in force.
    pub fn set_budget_with<E: From<Error>>(
        &self,
        budget: Budget,
        mut announce: impl FnMut(&Snapshot) -> core::result::Result<(), E>,
    ) -> core::result::Result<Change, E> {
        // What makes no sense ends no change that is under way.
        self.target(budget)?;
        self.change(Some(budget), &mut announce)
    }

    /// Says that the first `steps` steps are in the file now, verified or to be verified, and takes
    /// what of them fits the budget that is in force.
    ///
    /// # Errors
    /// As [`Resident::set_budget_with`].
    pub fn set_arrived<E: From<Error>>(
        &self,
        steps: usize,
        mut announce: impl FnMut(&Snapshot) -> core::result::Result<(), E>,
    ) -> core::result::Result<Change, E> {
        self.arrived.store(steps, Ordering::Relaxed);
        self.change(None, &mut announce)
    }

    /// What is held, wanted and under way, at this moment.
    pub fn status(&self) -> Status {
        let mut status = *lock(&self.status);
        status.read_bytes = self.files.iter().map(|file| file.source().read_bytes()).sum();
        status
    }

    /// Bytes that the plan of `steps` units takes in memory, in pages.
    pub fn paged_bytes(&self, steps: usize) -> u64 {
        change::paged_bytes(&self.schedule, steps)
    }

    /// The smallest budget that is accepted: the minimum of the plan, and what must be left for what is on
    /// demand ([`ResidentOptions::least_demand_bytes`]).
    pub fn least_bytes(&self) -> u64 {
        match self.options.least_demand_bytes {
            0 => self.schedule.minimum_bytes(),
            least => self.paged_bytes(self.schedule.required_steps()).saturating_add(least),
        }
    }

    /// The plan that fits `budget`.
    fn target(&self, budget: Budget) -> Result<Plan> {
        let whole = self.schedule.plan(budget).map_err(|e| Error::budget(self.model.path(), e))?;
        let arrived = self.arrived.load(Ordering::Relaxed);
        let (least, most) = (self.schedule.required_steps(), whole.units().min(arrived));
        if arrived < least {
            let problem = format!("expected the first {least} units, found {arrived}");
            return Err(Error::argument(self.model.path(), "file", problem));
        }
        if matches!(budget, Budget::Minimum | Budget::Maximum) {
            let aside = if budget == Budget::Minimum { self.options.aside_bytes() } else { 0 };
            return Ok(self.schedule.first(most).under(whole.budget_bytes().saturating_add(aside)));
        }
        let rest = whole.budget_bytes().saturating_sub(self.paged_bytes(least));
        if rest < self.options.least_demand_bytes {
            let (expected, aside) = (self.least_bytes(), self.options.least_demand_bytes);
            let found = whole.budget_bytes();
            let problem = format!(
                "expected at least {expected} bytes, {aside} of them for what is on demand, found {found}"
            );
            return Err(Error::argument(self.model.path(), "budget", problem));
        }
        let budget_bytes = whole.budget_bytes().saturating_sub(rest.min(self.options.aside_bytes()));
        // Pages of a prefix never become fewer as it grows.
        let (mut low, mut high) = (least, most);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.paged_bytes(middle) <= budget_bytes {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        Ok(self.schedule.first(low).under(whole.budget_bytes()))
    }
}

impl Drop for Resident<'_> {
    fn drop(&mut self) {
        self.files.iter().for_each(|file| file.source().forget());
    }
}

impl fmt::Debug for Resident<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resident").field("status", &self.status()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

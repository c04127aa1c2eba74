//! Packed weights whose budget moves between passes through a model.

use crate::error::Result;
use crate::packed::PackedModel;
use crate::weights::Weights;
use cmf_loader::resident::{Change, Resident, Status};
use cmf_loader::{Budget, Model, Plan, Snapshot};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Packed weights whose plan can be changed.
pub trait Held: Weights + Send {
    /// The plan that is in force.
    fn plan(&self) -> Plan;

    /// Makes ready for another plan, while readers go on, and gives what brings it into force, which is
    /// called when no pass is under way. If that is not called, or fails, the plan before stays.
    ///
    /// # Errors
    /// `BadArgument` for the plan of another model, `BadModel` for units that cannot be opened,
    /// `Compute` when a device refuses.
    fn prepare<'p>(&'p self, plan: Plan) -> Result<Install<'p>>;

    /// Bytes that are held beside weights to multiply with them.
    fn scratch_bytes(&self) -> u64;

    /// Bytes of weights on a device other than the CPU, where there is one.
    fn device_bytes(&self) -> Option<u64> {
        None
    }
}

/// Brings a plan into force.
pub type Install<'p> = Box<dyn FnOnce() -> Result<()> + 'p>;

/// [`Held`] weights that follow what a [`Resident`] holds: nothing is loaded again when the budget
/// changes.
///
/// A pass through the model (a token, or a part of a prompt) sees one plan from its first layer to its
/// last. Changes may be asked for at any time and from any thread; they come into force between
/// passes, and memory that a smaller budget takes is given back after the pass that still reads it.
pub struct Moving<'m> {
    weights: Box<dyn Held + 'm>,
    resident: Resident<'m>,
    turns: Turns,
}

/// Passes and changes in turn: a change that waits is the next one, however many passes follow each
/// other. (A lock of the standard library goes to whoever asks while it is free, and that is the
/// thread that has just ended a pass.)
#[derive(Default)]
struct Turns {
    state: Mutex<Turn>,
    moved: Condvar,
}

#[derive(Default)]
struct Turn {
    passes: usize,
    changing: bool,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, mut wait: impl FnMut(&Turn) -> bool) -> MutexGuard<'_, Turn> {
        let turn = self.moved.wait_while(self.lock(), |turn| wait(turn));
        turn.unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_pass(&self) {
        let mut turn = self.wait_while(|turn| turn.changing);
        turn.passes = turn.passes.saturating_add(1);
    }

    fn end_pass(&self) {
        let mut turn = self.lock();
        turn.passes = turn.passes.saturating_sub(1);
        self.moved.notify_all();
    }

    /// Calls `change` when no pass is under way. One change at a time.
    fn between<T>(&self, change: impl FnOnce() -> T) -> T {
        self.lock().changing = true;
        let mut turn = self.wait_while(|turn| turn.passes > 0);
        let result = change();
        turn.changing = false;
        self.moved.notify_all();
        result
    }
}

/// A pass: what it reads stays in memory, and stays the same, until it is dropped.
#[must_use = "a pass lasts as long as this lives"]
pub struct Pass<'p> {
    turns: &'p Turns,
    _snapshot: Snapshot,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.turns.end_pass();
    }
}

impl<'m> Moving<'m> {
    /// The matrices of what `resident` holds, on the CPU.
    pub fn new(resident: Resident<'m>) -> Self {
        Self::with(resident, |model, plan| Box::new(PackedModel::new(model, plan)))
    }

    /// The weights that `make` makes of what `resident` holds.
    pub fn with(resident: Resident<'m>, make: impl FnOnce(&'m Model, Plan) -> Box<dyn Held + 'm>) -> Self {
        let weights = make(resident.model(), resident.snapshot().plan().clone());
        Self { weights, resident, turns: Turns::default() }
    }

    /// The weights.
    pub fn packed(&self) -> &(dyn Held + 'm) {
        self.weights.as_ref()
    }

    /// What is in memory.
    pub fn resident(&self) -> &Resident<'m> {
        &self.resident
    }

    /// What is held, wanted and under way.
    pub fn status(&self) -> Status {
        self.resident.status()
    }

    /// Begins a pass. While a change waits to come into force, which it does when the passes that are under
    /// way end, this waits for it.
    pub fn pass(&self) -> Pass<'_> {
        self.turns.begin_pass();
        Pass { turns: &self.turns, _snapshot: self.resident.snapshot() }
    }

    /// Changes the budget, and returns when memory is as it says.
    ///
    /// # Errors
    /// As [`Resident::set_budget`] and [`Held::prepare`]: what was in force before stays so.
    pub fn set_budget(&self, budget: Budget) -> Result<Change> {
        self.resident.set_budget_with(budget, |snapshot| self.follow(snapshot))
    }

    /// Says that the first `steps` units of the file are there now: see [`Resident::set_arrived`].
    ///
    /// # Errors
    /// As [`Moving::set_budget`].
    pub fn set_arrived(&self, steps: usize) -> Result<Change> {
        self.resident.set_arrived(steps, |snapshot| self.follow(snapshot))
    }

    fn follow(&self, snapshot: &Snapshot) -> Result<()> {
        if self.weights.plan() == *snapshot.plan() {
            return Ok(());
        }
        let install = self.weights.prepare(snapshot.plan().clone())?;
        self.turns.between(install)
    }
}

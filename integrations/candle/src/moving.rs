//! Packed weights whose budget moves between passes through a model.

use crate::error::Result;
use crate::packed::PackedModel;
use cmf_kernels_cpu::Precision;
use cmf_loader::resident::{Change, Resident, Status};
use cmf_loader::{Budget, Snapshot};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A [`PackedModel`] that follows what a [`Resident`] holds: nothing is loaded again when the budget
/// changes.
///
/// A pass through the model (a token, or a part of a prompt) sees one plan from its first layer to its
/// last. Changes may be asked for at any time and from any thread; they come into force between
/// passes, and memory that a smaller budget takes is given back after the pass that still reads it.
pub struct Moving<'m> {
    packed: PackedModel<'m>,
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
    /// The matrices of what `resident` holds.
    pub fn new(resident: Resident<'m>) -> Self {
        let packed = PackedModel::new(resident.model(), resident.snapshot().plan().clone());
        Self { packed, resident, turns: Turns::default() }
    }

    /// The same with another precision of activations.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { packed: self.packed.with_precision(precision), ..self }
    }

    /// The weights.
    pub fn packed(&self) -> &PackedModel<'m> {
        &self.packed
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
    /// As [`Resident::set_budget`] and [`PackedModel::set_plan`]: what was in force before stays so.
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
        if self.packed.plan() == *snapshot.plan() {
            return Ok(());
        }
        let prepared = self.packed.prepare(snapshot.plan().clone())?;
        self.turns.between(|| self.packed.install(prepared)).map(drop)
    }
}

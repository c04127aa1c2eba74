//! Packed weights whose budget moves between passes through a model.

use crate::error::Result;
use crate::packed::PackedModel;
use cmf_loader::resident::{Change, Resident, Status};
use cmf_loader::{Budget, Snapshot};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// A [`PackedModel`] that follows what a [`Resident`] holds: nothing is loaded again when the budget
/// changes.
///
/// A pass through the model (a token, or a part of a prompt) sees one plan from its first layer to its
/// last. Changes may be asked for at any time and from any thread; they come into force between
/// passes, and memory that a smaller budget takes is given back after the pass that still reads it.
pub struct Moving<'m> {
    packed: PackedModel<'m>,
    resident: Resident<'m>,
    passes: RwLock<()>,
}

/// A pass: what it reads stays in memory, and stays the same, until it is dropped.
#[must_use = "a pass lasts as long as this lives"]
pub struct Pass<'p> {
    _turn: RwLockReadGuard<'p, ()>,
    _snapshot: Snapshot,
}

impl<'m> Moving<'m> {
    /// The matrices of what `resident` holds.
    pub fn new(resident: Resident<'m>) -> Self {
        let packed = PackedModel::new(resident.model(), resident.snapshot().plan().clone());
        Self { packed, resident, passes: RwLock::new(()) }
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

    /// Begins a pass. Waits while a change that has come into force exchanges the matrices, and for
    /// nothing else.
    pub fn pass(&self) -> Pass<'_> {
        let turn = self.passes.read().unwrap_or_else(PoisonError::into_inner);
        Pass { _turn: turn, _snapshot: self.resident.snapshot() }
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
        let _between = self.passes.write().unwrap_or_else(PoisonError::into_inner);
        self.packed.set_plan(snapshot.plan().clone())
    }
}

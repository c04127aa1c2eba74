//! Budgets for main memory and a device, each for itself and both together.

use super::{Change, Resident, Snapshot, lock};
use crate::error::Error;
use crate::plan::Budget;

/// How much of a model may be in main memory, and how much on a device (a GPU).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budgets {
    /// Main memory.
    pub cpu: Budget,
    /// The device.
    pub gpu: Budget,
    /// Bytes that both may take together, where that is less: for a device whose memory is main memory.
    pub together: Option<u64>,
}

impl Resident<'_> {
    /// Changes both budgets. `device` is called with the bytes that the device may take, changes what it
    /// holds, and gives the bytes that it holds now; [`Status::device_bytes`](super::Status::device_bytes)
    /// is what it gave last. Main memory gives back first, then the device changes, then main memory takes
    /// more: together they are within [`Budgets::together`] at every moment, when they were before and
    /// `device` keeps what it is asked for. Of less than both budgets the device gets its own as far as it
    /// leaves main memory its minimum, and main memory gets what the device does not take.
    ///
    /// One thread at a time changes both.
    ///
    /// # Errors
    /// As [`Resident::set_budget_with`] and that of `device`: what has been given back by then stays so.
    pub fn set_budgets<E: From<Error>>(
        &self,
        budgets: Budgets,
        device: impl FnOnce(u64) -> Result<u64, E>,
        mut announce: impl FnMut(&Snapshot) -> Result<(), E>,
    ) -> Result<Change, E> {
        let _turn = lock(&self.both);
        let bytes = |budget| self.schedule().budget_bytes(budget);
        let together = budgets.together.unwrap_or(u64::MAX);
        let (cpu, least) = (bytes(budgets.cpu), self.schedule().minimum_bytes());
        let paged_least = self.paged_bytes(self.schedule().required_steps());
        let gpu = bytes(budgets.gpu).min(together.saturating_sub(paged_least.min(cpu.max(least))));
        let before = self.status();
        // What main memory may take while the device takes all of its budget.
        let beside = cpu.min(together.saturating_sub(gpu));
        let mut change = Change::default();
        if beside < before.held_bytes {
            change = self.set_budget_with(Budget::Bytes(beside), &mut announce)?;
        }
        let device_bytes = device(gpu)?;
        lock(&self.status).device_bytes = device_bytes;
        let rest = cpu.min(together.saturating_sub(device_bytes));
        let grown = self.set_budget_with(Budget::Bytes(rest), &mut announce)?;
        Ok(Change {
            loaded_bytes: change.loaded_bytes.saturating_add(grown.loaded_bytes),
            released_bytes: change.released_bytes.saturating_add(grown.released_bytes),
            ended_early: grown.ended_early,
        })
    }
}

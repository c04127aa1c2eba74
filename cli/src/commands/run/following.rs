//! Budgets that follow the memory that the system and a device have left.

use crate::device::Gpu;
use cmf_candle::moving::Moving;
use cmf_loader::Budget;
use cmf_loader::resident::pressure::{self, DeviceBudget, Pressure, Step};
use std::sync::atomic::AtomicBool;

/// What follows which memory.
pub(super) enum Following<'g> {
    /// The budget, main memory.
    Main,
    /// Budgets beside a device.
    Both(&'g Gpu, pressure::Following),
}

impl<'g> Following<'g> {
    /// What of `--budget` and `--device-budget` is `auto`; `None` when nothing is.
    pub(super) fn of(budget: &str, gpu: Option<&'g Gpu>) -> Option<Self> {
        let plan = budget.trim() == "auto";
        match gpu {
            None => plan.then_some(Following::Main),
            Some(gpu) => {
                let device = gpu.budget().0;
                let some = plan || device == DeviceBudget::Follows;
                some.then_some(Following::Both(gpu, pressure::Following { plan, device }))
            }
        }
    }

    /// Changes budgets until `done`.
    pub(super) fn follow(&self, moving: &Moving<'_>, done: &AtomicBool) -> anyhow::Result<()> {
        let pressure = Pressure::default();
        let resident = moving.resident();
        let plan = |budget| -> anyhow::Result<()> { Ok(moving.set_budget(budget).map(drop)?) };
        match self {
            Following::Main => pressure.follow(resident, done, plan),
            Following::Both(gpu, following) => {
                let (_, device_bytes) = gpu.budget();
                let read = || Ok(gpu.reading_of(moving));
                pressure.follow_both(resident, *following, device_bytes, done, read, |step| match step {
                    Step::Plan(bytes) => plan(Budget::Bytes(bytes)),
                    Step::Device(bytes) => Ok(moving.set_device_budget(bytes)?),
                })
            }
        }
    }
}

//! Budgets that follow the memory that the system and a device have left.

use crate::device::Gpu;
use cmf_candle::moving::Moving;
use cmf_loader::resident::pressure::{self, DeviceBudget, Pressure, Step};
use cmf_loader::{Budget, ErrorKind};
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

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
        let plan = |budget| patiently(done, || moving.set_budget(budget));
        match self {
            Following::Main => pressure.follow(resident, done, plan),
            Following::Both(gpu, following) => {
                let (_, device_bytes) = gpu.budget();
                let read = || Ok(gpu.reading_of(moving));
                pressure.follow_both(resident, *following, device_bytes, done, read, |step| match step {
                    Step::Plan(bytes) => plan(Budget::Bytes(bytes)),
                    Step::Device(bytes) => patiently(done, || moving.set_device_budget(bytes)),
                })
            }
        }
    }
}

/// Makes a change, again as long as passes are too long for it, as one that waits for an expert from a server may be.
pub(super) fn patiently<T>(
    done: &AtomicBool,
    change: impl Fn() -> cmf_candle::Result<T>,
) -> anyhow::Result<()> {
    let is_busy = |error: &cmf_candle::Error| {
        let source = error.source().and_then(|source| source.downcast_ref::<cmf_loader::Error>());
        source.is_some_and(|error| error.kind() == ErrorKind::Busy)
    };
    loop {
        match change() {
            Ok(_) => return Ok(()),
            Err(error) if !is_busy(&error) => return Err(error.into()),
            Err(_) if done.load(Ordering::Relaxed) => return Ok(()),
            Err(_) => {}
        }
    }
}

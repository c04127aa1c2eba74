//! Budgets that follow what memory the system has left.
//!
//! ```no_run
//! use cmf_loader::resident::pressure::Pressure;
//! use cmf_loader::{Budget, Model};
//! use std::sync::atomic::{AtomicBool, Ordering};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("model.cmf")?;
//! let resident = model.resident(Budget::parse("auto")?)?;
//! let (pressure, done) = (Pressure::default(), AtomicBool::new(false));
//! std::thread::scope(|scope| {
//!     scope.spawn(|| {
//!         pressure.follow(&resident, &done, |budget| {
//!             resident.set_budget(budget).map(drop).map_err(std::io::Error::other)
//!         })
//!     });
//!     // The model runs here.
//!     done.store(true, Ordering::Relaxed);
//! });
//! # Ok(())
//! # }
//! ```
//!
//! What is read: the memory that the system has left and the limits of the control groups that the
//! process is in, `memory.high` among them; and the share of time in which something waits for
//! memory (PSI, `/proc/pressure/memory`, or that of the group). [`Pressure::follow_both`] also follows a device's
//! memory, of which somebody else says what is left, as `cmf_kernels_wgpu::DeviceMemory` does.

mod both;

pub use both::{DeviceBudget, DeviceReading, Following, Steerings, Step};

use super::Resident;
use crate::open::Backend;
use crate::plan::{AUTO_SHARE, Budget, room_bytes, stalled_percent};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io;

/// How budgets follow memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// How often memory is looked at.
    pub period: Duration,
    /// The part of the memory that is to be had which a budget takes.
    pub share: f64,
    /// Per cent of time in which something waits for memory, from which on the budget shrinks whatever
    /// is left.
    pub stalled_percent: f64,
    /// Looks without waiting that come before a budget grows again.
    pub calm_looks: u32,
}

impl Default for Pressure {
    fn default() -> Self {
        Self { period: Duration::from_millis(500), share: AUTO_SHARE, stalled_percent: 10.0, calm_looks: 6 }
    }
}

/// What the system says at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Bytes that the process may have in all.
    pub room_bytes: u64,
    /// Per cent of the last ten seconds in which something waited for memory.
    pub stalled_percent: f64,
}

/// Makes budgets of readings: at once when there is less, slowly when there is more, and not for
/// small differences.
#[derive(Clone, Debug)]
pub struct Steering {
    pressure: Pressure,
    budget_bytes: u64,
    calm: u32,
}

impl Steering {
    /// Begins at a budget of `budget_bytes`.
    pub fn new(pressure: Pressure, budget_bytes: u64) -> Self {
        Self { pressure, budget_bytes, calm: 0 }
    }

    /// The new budget in bytes, when it is to be changed. While something waits for memory it falls by
    /// an eighth a look. It follows what is left down when that is less by a sixteenth, and up
    /// when it is more by an eighth and nothing has waited for some looks.
    pub fn next(&mut self, reading: &Reading) -> Option<u64> {
        let goal = (reading.room_bytes as f64 * self.pressure.share) as u64;
        self.toward(goal, reading.stalled_percent)
    }

    /// The new budget when it should be `goal` and something waits for so much of the time.
    fn toward(&mut self, mut goal: u64, stalled_percent: f64) -> Option<u64> {
        let budget = self.budget_bytes;
        if stalled_percent >= self.pressure.stalled_percent {
            self.calm = 0;
            goal = goal.min(budget.saturating_sub(budget / 8));
        } else {
            self.calm = self.calm.saturating_add(1);
        }
        let falls = goal < budget.saturating_sub(budget / 16);
        let rises = goal > budget.saturating_add(budget / 8) && self.calm >= self.pressure.calm_looks;
        if !falls && !rises {
            return None;
        }
        self.budget_bytes = goal;
        Some(goal)
    }
}

impl Pressure {
    /// What the system says now, for a process that has `owned_bytes` of weights in memory of its own;
    /// pages of maps are not its own.
    ///
    /// # Errors
    /// `Unsupported` where the system does not say.
    pub fn read(owned_bytes: u64) -> io::Result<Reading> {
        Ok(Reading { room_bytes: room_bytes(owned_bytes)?, stalled_percent: stalled_percent() })
    }

    /// Looks at memory until `done`, and calls `set` with budgets for `resident`. A budget below the least that
    /// is accepted ([`Resident::least_bytes`]) becomes that, and one above all that is wanted that
    /// ([`Resident::most_bytes`]).
    ///
    /// # Errors
    /// As [`Pressure::read`] and [`Resident::most_bytes`], and what `set` gives.
    pub fn follow<E: From<io::Error>>(
        &self,
        resident: &Resident<'_>,
        done: &AtomicBool,
        mut set: impl FnMut(Budget) -> Result<(), E>,
    ) -> Result<(), E> {
        let (least, most) = (resident.least_bytes(), resident.most_bytes().map_err(io::Error::other)?);
        let owned = resident.model().backend() != Backend::Mmap;
        let mut steering = Steering::new(*self, resident.status().budget_bytes);
        while !done.load(Ordering::Relaxed) {
            let held_bytes = resident.status().held_bytes;
            let mut reading = Self::read(if owned { held_bytes } else { 0 })?;
            // What is more than the model takes makes no difference.
            reading.room_bytes = reading.room_bytes.min((most as f64 / self.share) as u64);
            if let Some(bytes) = steering.next(&reading) {
                set(Budget::Bytes(bytes.clamp(least, most)))?;
            }
            std::thread::park_timeout(self.period);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(room_bytes: u64) -> Reading {
        Reading { room_bytes, stalled_percent: 0.0 }
    }

    fn steering(budget_bytes: u64) -> Steering {
        Steering::new(Pressure { share: 0.5, calm_looks: 3, ..Pressure::default() }, budget_bytes)
    }

    #[test]
    fn small_differences_change_nothing() {
        let mut steering = steering(1000);
        for room in [1900, 2000, 2200] {
            assert_eq!(steering.next(&reading(room)), None, "room {room}");
        }
    }

    #[test]
    fn falls_at_once_and_rises_when_it_has_been_calm() {
        let mut steering = steering(1000);
        assert_eq!(steering.next(&reading(1000)), Some(500));
        let looks = [(); 4].map(|()| steering.next(&reading(4000)));
        assert_eq!(looks, [None, Some(2000), None, None]);
    }

    #[test]
    fn gives_way_as_long_as_something_waits() {
        let mut steering = steering(1000);
        let waits = Reading { room_bytes: 1 << 40, stalled_percent: 40.0 };
        assert_eq!([(); 2].map(|()| steering.next(&waits)), [Some(875), Some(766)]);
        assert_eq!([(); 3].map(|()| steering.next(&reading(2000))), [None, None, Some(1000)]);
    }
}

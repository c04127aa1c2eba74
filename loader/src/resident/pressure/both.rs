//! Budgets of main memory and of a device beside each other.

use super::{Pressure, Reading, Steering};
use crate::open::Backend;
use crate::resident::Resident;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io;

/// Which budgets follow what memory is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Following {
    /// The plan's.
    pub plan: bool,
    /// That of the device.
    pub device: DeviceBudget,
}

/// How many bytes of weights a device may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceBudget {
    /// All that the plan has.
    Plan,
    /// As many as somebody said.
    Fixed,
    /// As many as its memory has room for.
    Follows,
}

/// What a device says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceReading {
    /// Bytes that weights may have there in all, where its driver says that.
    pub room_bytes: Option<u64>,
    /// Bytes of weights that are there.
    pub weight_bytes: u64,
    /// Whether its memory is main memory.
    pub is_main_memory: bool,
}

/// A budget that is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Of the plan: what main memory and the device have together.
    Plan(u64),
    /// Of the device: what it may have of the plan.
    Device(u64),
}

/// Makes budgets of what main memory and a device say, each with the hysteresis of [`Steering`], in an order in which
/// neither has more than it should in between.
///
/// Where the device's memory is main memory, both have one room, the smaller of what the system and the driver say:
/// both budgets are made of it. What the device has of the plan main memory gives back, so that no byte is promised
/// twice.
///
/// Where the device has memory of its own, and a budget of its own, main memory's room is for what the device does not
/// have: the plan's budget is that and what the device has in place of main memory.
#[derive(Clone, Debug)]
pub struct Steerings {
    share: f64,
    following: Following,
    plan: Steering,
    device: Steering,
    /// The least and the most bytes that make sense for a plan.
    plan_bytes: [u64; 2],
}

impl Steerings {
    /// Begins at budgets of `plan_bytes` and `device_bytes`; `least_bytes` and `most_bytes` are those of a plan that
    /// make sense.
    pub fn new(
        pressure: Pressure,
        following: Following,
        [plan_bytes, device_bytes]: [u64; 2],
        [least_bytes, most_bytes]: [u64; 2],
    ) -> Self {
        let [plan, device] = [plan_bytes, device_bytes].map(|bytes| Steering::new(pressure, bytes));
        Self { share: pressure.share, following, plan, device, plan_bytes: [least_bytes, most_bytes] }
    }

    /// The budgets that are to be changed, in this order. `elsewhere_bytes` are those of the plan that main memory has
    /// given back because the device has them
    /// ([`Status::elsewhere_bytes`](crate::resident::Status::elsewhere_bytes)).
    pub fn next(&mut self, main: &Reading, device: &DeviceReading, elsewhere_bytes: u64) -> Vec<Step> {
        let share = |room: u64| (room as f64 * self.share) as u64;
        let (shared, [least, most]) = (device.is_main_memory, self.plan_bytes);
        let device_follows = self.following.device == DeviceBudget::Follows;
        let (room, stalled) = match shared {
            true => (Some(device.room_bytes.unwrap_or(u64::MAX).min(main.room_bytes)), main.stalled_percent),
            false => (device.room_bytes, 0.0),
        };
        let device_before = self.device.budget_bytes;
        let of_device =
            room.filter(|_| device_follows).and_then(|room| self.device.toward(share(room), stalled));
        let main_room = room.filter(|_| shared && device_follows).unwrap_or(main.room_bytes);
        let there = match self.following.device {
            _ if shared => 0,
            DeviceBudget::Plan => 0,
            DeviceBudget::Fixed => elsewhere_bytes,
            DeviceBudget::Follows => elsewhere_bytes.min(self.device.budget_bytes),
        };
        // What is more than the model takes makes no difference.
        let goal = share(main_room).saturating_add(there).min(most);
        let of_plan = match self.following.plan {
            true => self.plan.toward(goal, main.stalled_percent),
            false => None,
        };
        let of_plan = of_plan.map(|bytes| Step::Plan(bytes.clamp(least, most.max(least))));
        let of_device = of_device.map(Step::Device);
        // What leaves the device main memory must have: the plan becomes smaller before that does.
        match self.device.budget_bytes < device_before {
            true => of_plan.into_iter().chain(of_device).collect(),
            false => of_device.into_iter().chain(of_plan).collect(),
        }
    }
}

impl Pressure {
    /// The budget of a device that begins in so much room.
    pub fn device_bytes(&self, room_bytes: u64) -> u64 {
        (room_bytes as f64 * self.share) as u64
    }

    /// Looks at main memory and at a device (`read`) until `done`, and calls `set` with budgets for `resident` and what
    /// the device may have of it, which begins at `device_bytes`.
    ///
    /// # Errors
    /// As [`Pressure::follow`], and what `read` gives.
    pub fn follow_both<E: From<io::Error>>(
        &self,
        resident: &Resident<'_>,
        following: Following,
        device_bytes: u64,
        done: &AtomicBool,
        mut read: impl FnMut() -> Result<DeviceReading, E>,
        mut set: impl FnMut(Step) -> Result<(), E>,
    ) -> Result<(), E> {
        let limits = [resident.least_bytes(), resident.most_bytes().map_err(io::Error::other)?];
        let owned = resident.model().backend() != Backend::Mmap;
        let begun = [resident.status().budget_bytes, device_bytes];
        let mut steerings = Steerings::new(*self, following, begun, limits);
        while !done.load(Ordering::Relaxed) {
            let (device, status) = (read()?, resident.status());
            let held_bytes = status.held_bytes.saturating_sub(status.elsewhere_bytes);
            // What a device has in main memory is this process's own, and a smaller budget gives it back.
            let on_device = if device.is_main_memory { device.weight_bytes } else { 0 };
            let own = if owned { held_bytes } else { 0 }.saturating_add(on_device);
            for step in steerings.next(&Self::read(own)?, &device, status.elsewhere_bytes) {
                set(step)?;
            }
            std::thread::park_timeout(self.period);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: Reading = Reading { room_bytes: 1000, stalled_percent: 0.0 };
    const DEVICE: DeviceReading =
        DeviceReading { room_bytes: Some(600), weight_bytes: 0, is_main_memory: false };

    /// Half of the room, and one look without waiting before a budget grows.
    fn steerings(plan: bool, device: DeviceBudget, budgets: [u64; 2]) -> Steerings {
        let pressure = Pressure { share: 0.5, calm_looks: 1, ..Pressure::default() };
        Steerings::new(pressure, Following { plan, device }, budgets, [10, 5000])
    }

    fn room(room_bytes: u64) -> DeviceReading {
        DeviceReading { room_bytes: Some(room_bytes), ..DEVICE }
    }

    #[test]
    fn a_device_has_the_hysteresis_of_main_memory() {
        let mut both = steerings(false, DeviceBudget::Follows, [800, 300]);
        for (bytes, budget) in [(600, None), (570, None), (560, Some(280)), (620, None), (640, Some(320))] {
            let step = budget.map(Step::Device);
            assert_eq!(both.next(&MAIN, &room(bytes), 0), Vec::from_iter(step), "room {bytes}");
        }
        // The plan is as somebody said, whatever main memory has.
        assert!(both.next(&Reading { room_bytes: 10, ..MAIN }, &room(640), 0).is_empty());
        // A driver that says nothing changes nothing.
        let silent = DeviceReading { room_bytes: None, ..DEVICE };
        assert!(both.next(&MAIN, &silent, 0).is_empty());
    }

    #[test]
    fn a_plan_is_what_main_memory_has_room_for_and_what_a_device_has() {
        let mut both = steerings(true, DeviceBudget::Follows, [500, 300]);
        assert_eq!(both.next(&MAIN, &DEVICE, 290), [Step::Plan(790)]);
        // Others want the device's memory: main memory must have room for what leaves it.
        assert_eq!(both.next(&MAIN, &room(200), 290), [Step::Plan(600), Step::Device(100)]);
        assert!(both.next(&MAIN, &room(200), 100).is_empty());
        // They leave it: the device has it first, and what it has then is beside what main memory has.
        assert_eq!(both.next(&MAIN, &room(600), 100), [Step::Device(300)]);
        assert_eq!(both.next(&MAIN, &room(600), 300), [Step::Plan(800)]);
        // A device of which nobody knows how much it has is no room for more.
        assert_eq!(
            steerings(true, DeviceBudget::Plan, [600, 0]).next(&MAIN, &DEVICE, 300),
            [Step::Plan(500)]
        );
        let fixed = &mut steerings(true, DeviceBudget::Fixed, [600, 0]);
        assert_eq!(fixed.next(&MAIN, &DEVICE, 300), [Step::Plan(800)]);
    }

    #[test]
    fn memory_that_is_both_is_promised_once() {
        let shared = |room_bytes| DeviceReading { room_bytes, weight_bytes: 200, is_main_memory: true };
        let mut both = steerings(true, DeviceBudget::Follows, [500, 500]);
        assert!(both.next(&MAIN, &shared(None), 200).is_empty());
        assert_eq!(both.next(&MAIN, &shared(Some(400)), 200), [Step::Plan(200), Step::Device(200)]);
        assert_eq!(both.next(&MAIN, &shared(Some(4000)), 200), [Step::Device(500), Step::Plan(500)]);
        let waits = Reading { stalled_percent: 50.0, ..MAIN };
        assert_eq!(both.next(&waits, &shared(None), 200), [Step::Plan(438), Step::Device(438)]);
        // The plan alone: as without a device.
        let mut plan = steerings(true, DeviceBudget::Plan, [500, u64::MAX]);
        assert!(plan.next(&MAIN, &shared(Some(10)), 200).is_empty());
        // The device alone.
        let mut device = steerings(false, DeviceBudget::Follows, [5000, 500]);
        assert_eq!(
            device.next(&Reading { room_bytes: 300, ..MAIN }, &shared(Some(900)), 0),
            [Step::Device(150)]
        );
    }

    #[test]
    fn no_budget_is_less_or_more_than_makes_sense() {
        let mut both = steerings(true, DeviceBudget::Follows, [500, 300]);
        assert_eq!(
            both.next(&Reading { room_bytes: 4, ..MAIN }, &room(0), 300),
            [Step::Plan(10), Step::Device(0)]
        );
        let most = both.next(&Reading { room_bytes: 1 << 40, ..MAIN }, &room(1 << 40), 0);
        assert_eq!(most, [Step::Device(1 << 39), Step::Plan(5000)]);
        let more = both.next(&Reading { room_bytes: 1 << 41, ..MAIN }, &room(1 << 40), 0);
        assert!(more.is_empty(), "all that there is, is in the plan: {more:?}");
    }
}

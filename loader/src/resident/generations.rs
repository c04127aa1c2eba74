//! A value that readers hold snapshots of while it is replaced, and the order in which a change
//! happens: what is dropped is published before it goes, what is new after it came.
//!
//! Readers never wait for a change: taking a snapshot is one clone of an `Arc`, and the value is
//! replaced by one assignment. `tests/schedules.rs` runs this file under loom.

use super::sync::{Arc, Condvar, Mutex, RwLock};
use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// The current value, and which older ones are still held.
#[derive(Debug)]
pub(crate) struct Generations<T> {
    current: RwLock<Arc<Generation<T>>>,
    live: Arc<Live>,
}

/// A value that was published; it counts as held until it is dropped.
#[derive(Debug)]
pub(crate) struct Generation<T> {
    pub(crate) value: T,
    number: u64,
    live: Arc<Live>,
}

#[derive(Debug)]
struct Live {
    numbers: Mutex<Numbers>,
    dropped: Condvar,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    held: BTreeSet<u64>,
}

/// Why a change was not made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stopped<E> {
    /// Older snapshots are still held after the time that was given; what they may read is still
    /// there.
    Busy,
    /// A step failed.
    Failed(E),
}

impl<T> Generations<T> {
    pub(crate) fn new(value: T) -> Self {
        let numbers = Numbers { next: 1, held: BTreeSet::from([0]) };
        let live = Arc::new(Live { numbers: Mutex::new(numbers), dropped: Condvar::new() });
        let first = Arc::new(Generation { value, number: 0, live: Arc::clone(&live) });
        Self { current: RwLock::new(first), live }
    }

    /// What may be read now, and for as long as this is held.
    pub(crate) fn snapshot(&self) -> Arc<Generation<T>> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the value by a smaller one, tells `announce`, waits up to `patience` until no
    /// older one is held, and then calls `release`. One change at a time.
    pub(crate) fn shrink<E>(
        &self,
        smaller: T,
        patience: Duration,
        announce: impl FnOnce(&Arc<Generation<T>>) -> Result<(), E>,
        release: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), Stopped<E>> {
        let number = self.publish(smaller, announce).map_err(Stopped::Failed)?;
        if !self.wait_for_older(number, patience) {
            return Err(Stopped::Busy);
        }
        release().map_err(Stopped::Failed)
    }

    /// Calls `bring`, and publishes the larger value that it gives. One change at a time.
    pub(crate) fn grow<E>(
        &self,
        announce: impl FnOnce(&Arc<Generation<T>>) -> Result<(), E>,
        bring: impl FnOnce() -> Result<T, E>,
    ) -> Result<(), Stopped<E>> {
        bring().and_then(|larger| self.publish(larger, announce)).map_err(Stopped::Failed)?;
        Ok(())
    }

    /// Makes `value` the current one; the number of its generation. When `announce` fails, the old
    /// value stays.
    fn publish<E>(
        &self,
        value: T,
        announce: impl FnOnce(&Arc<Generation<T>>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let number = self.live.lock(|numbers| {
            let number = numbers.next;
            numbers.next = number.saturating_add(1);
            numbers.held.insert(number);
            number
        });
        let next = Arc::new(Generation { value, number, live: Arc::clone(&self.live) });
        announce(&next)?;
        let before = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            core::mem::replace(&mut *current, next)
        };
        // Outside of the lock: the last holder of a value drops it.
        drop(before);
        Ok(number)
    }

    /// Waits until nothing older than generation `number` is held; whether that came.
    fn wait_for_older(&self, number: u64, patience: Duration) -> bool {
        let mut numbers = self.live.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        while numbers.held.first().is_some_and(|oldest| *oldest < number) {
            let waited = self.live.dropped.wait_timeout(numbers, patience);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            numbers = guard;
            if timeout.timed_out() {
                return numbers.held.first().is_none_or(|oldest| *oldest >= number);
            }
        }
        true
    }
}

impl Live {
    fn lock<R>(&self, change: impl FnOnce(&mut Numbers) -> R) -> R {
        change(&mut self.numbers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Drop for Generation<T> {
    fn drop(&mut self) {
        self.live.lock(|numbers| numbers.held.remove(&self.number));
        self.live.dropped.notify_all();
    }
}

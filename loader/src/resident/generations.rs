//! A value that readers hold snapshots of while it is replaced, and the order in which a change
//! happens: what is dropped is published before it goes, what is new after it came.
//!
//! Readers never wait for a change: taking a snapshot is one clone of an `Arc`, from the slot that the
//! thread of a change does not write to, wherever that thread is stopped. `tests/schedules.rs` runs this
//! file under loom.

use super::sync::{Arc, AtomicUsize, Condvar, Mutex, Ordering, RwLock, spin_loop};
use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::{PoisonError, TryLockError};

/// The current value, and which older ones are still held.
#[derive(Debug)]
pub(crate) struct Generations<T> {
    /// Both have the current value, but while it is replaced.
    slots: [RwLock<Arc<Generation<T>>>; 2],
    /// The slot that readers take it from: 0, or else 1.
    current: AtomicUsize,
    /// Changes take turns.
    change: Mutex<()>,
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
        let slots = [RwLock::new(Arc::clone(&first)), RwLock::new(first)];
        Self { slots, current: AtomicUsize::new(0), change: Mutex::new(()), live }
    }

    /// What may be read now, and for as long as this is held.
    pub(crate) fn snapshot(&self) -> Arc<Generation<T>> {
        loop {
            let slot = self.slot(self.current.load(Ordering::Acquire));
            match slot.try_read() {
                Ok(current) => return Arc::clone(&current),
                Err(TryLockError::Poisoned(current)) => return Arc::clone(&current.into_inner()),
                // Since `current` was read a change has gone on to this slot, so it names the other.
                Err(TryLockError::WouldBlock) => spin_loop(),
            }
        }
    }

    fn slot(&self, number: usize) -> &RwLock<Arc<Generation<T>>> {
        let [first, second] = &self.slots;
        if number == 0 { first } else { second }
    }

    fn put(&self, number: usize, next: Arc<Generation<T>>) {
        let mut slot = self.slot(number).write().unwrap_or_else(PoisonError::into_inner);
        let before = core::mem::replace(&mut *slot, next);
        drop(slot);
        // Outside of the lock: the last holder of a value drops it.
        drop(before);
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
        let turn = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load(Ordering::Relaxed);
        let other = 1usize.saturating_sub(current);
        // A reader that is slow to clone from the other slot holds this up, and no reader.
        self.put(other, Arc::clone(&next));
        self.current.store(other, Ordering::Release);
        // What was before must not stay here: it is waited for.
        self.put(current, next);
        drop(turn);
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

//! What is in memory on demand, who holds it, and what goes first. `tests/schedules.rs` runs this file under
//! loom.

use super::sync::{Condvar, Mutex, MutexGuard};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Instant;

/// A matrix: the file that it is in, of the files of the model, and its index there.
pub(crate) type Key = (usize, u32);

/// Matrices in memory, each with a value.
#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: Mutex<Entries<T>>,
    /// Somebody has let go of something.
    let_go: Condvar,
}

/// The entries of a [`Table`], while nobody else changes them.
#[derive(Debug)]
pub(crate) struct Entries<T> {
    entries: BTreeMap<Key, Entry<T>>,
    /// Times that something was used.
    clock: u64,
}

/// A matrix in memory.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) value: T,
    pub(crate) pinned: bool,
    used: u64,
    /// Those that hold it.
    holders: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: Mutex::new(Entries { entries: BTreeMap::new(), clock: 0 }), let_go: Condvar::new() }
    }
}

impl<T> Table<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Entries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds all of `keys`, if all are there.
    pub(crate) fn hold_all(&self, keys: &[Key]) -> Option<Vec<Key>> {
        let mut entries = self.lock();
        keys.iter().all(|key| entries.contains(key)).then(|| entries.hold(keys))
    }

    /// Holds what of `keys` is there, and says that it is used.
    pub(crate) fn hold(&self, keys: &[Key]) -> Vec<Key> {
        self.lock().hold(keys)
    }

    /// Ends what [`Table::hold`] and [`Table::insert`] began.
    pub(crate) fn let_go(&self, keys: &[Key]) {
        let mut entries = self.lock();
        for key in keys {
            if let Some(entry) = entries.entries.get_mut(key) {
                entry.holders = entry.holders.saturating_sub(1);
            }
        }
        drop(entries);
        self.let_go.notify_all();
    }

    /// Adds a matrix that has come, and holds it.
    pub(crate) fn insert(&self, key: Key, value: T) {
        let mut entries = self.lock();
        let used = entries.clock;
        entries.entries.insert(key, Entry { value, pinned: false, used, holders: 1 });
    }

    /// Says which of `keys` do not go.
    pub(crate) fn set_pinned(&self, keys: &[Key], pinned: bool) {
        let mut entries = self.lock();
        for key in keys {
            if let Some(entry) = entries.entries.get_mut(key) {
                entry.pinned = pinned;
            }
        }
        drop(entries);
        self.let_go.notify_all();
    }

    /// Removes what was used longest ago, and what nobody holds, until `fits`; waits up to `patience` for
    /// those that hold something. Whether it fits, and whether anything was removed.
    pub(crate) fn make_room(
        &self,
        patience: Duration,
        mut fits: impl FnMut(&Entries<T>) -> bool,
    ) -> (bool, bool) {
        let deadline = Instant::now() + patience;
        let mut removed = false;
        let mut entries = self.lock();
        loop {
            if fits(&entries) {
                return (true, removed);
            }
            if let Some(oldest) = entries.oldest() {
                entries.entries.remove(&oldest);
                removed = true;
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || entries.entries.is_empty() {
                return (false, removed);
            }
            let waited = self.let_go.wait_timeout(entries, left);
            entries = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<T> Entries<T> {
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Entry<T>)> {
        self.entries.iter()
    }

    fn hold(&mut self, keys: &[Key]) -> Vec<Key> {
        self.clock = self.clock.saturating_add(1);
        let mut there = Vec::new();
        for key in keys {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.used = self.clock;
                entry.holders = entry.holders.saturating_add(1);
                there.push(*key);
            }
        }
        there
    }

    /// The one that was used longest ago, of those that nobody holds.
    fn oldest(&self) -> Option<Key> {
        let free = self.entries.iter().filter(|(_, entry)| entry.holders == 0 && !entry.pinned);
        free.min_by_key(|(key, entry)| (entry.used, **key)).map(|(key, _)| *key)
    }
}

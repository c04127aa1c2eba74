//! Errors of many threads in one order.

use crate::error::Error;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What is checked, in the order in which errors are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Shards,
    Changed,
    Padding,
    Hashes,
    Sizes,
    Values,
}

/// File, phase, index, and group: the order of errors.
pub(super) type Place = (usize, Phase, u64, u64);

/// Errors as threads find them, of which the first in order are kept.
pub(super) struct Found {
    max: usize,
    kept: Mutex<BTreeMap<Place, Error>>,
    left_out: AtomicU64,
}

impl Found {
    pub(super) fn new(max: usize) -> Self {
        Self { max, kept: Mutex::default(), left_out: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, place: Place, error: Error) {
        let mut kept = lock(&self.kept);
        kept.insert(place, error);
        if kept.len() > self.max {
            kept.pop_last();
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn into_parts(self) -> (Vec<Error>, u64) {
        let kept = self.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        (kept.into_values().collect(), self.left_out.into_inner())
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Every schedule of readers and changes, by loom: what a snapshot holds is in memory for as long as
//! the snapshot lives, and no more is in memory than the larger of two plans.

#[path = "../src/resident/generations.rs"]
#[allow(dead_code, reason = "Debug and messages are for the loader")]
mod generations;

/// What the loader builds it of, from loom.
mod sync {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, RwLock};
}

use generations::{Generations, Stopped};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use std::time::Duration;

/// A plan of so many units, and how many are in memory.
struct Memory {
    plans: Generations<usize>,
    held: AtomicUsize,
}

impl Memory {
    fn new(units: usize) -> Arc<Self> {
        Arc::new(Self { plans: Generations::new(units), held: AtomicUsize::new(units) })
    }

    /// What a reader relies on, twice in the life of a snapshot.
    fn read(&self) {
        let snapshot = self.plans.snapshot();
        assert!(self.held.load(Ordering::SeqCst) >= snapshot.value, "what is published is in memory");
        thread::yield_now();
        assert!(self.held.load(Ordering::SeqCst) >= snapshot.value, "what is held stays");
    }

    fn shrink(&self, units: usize) -> Result<(), Stopped<()>> {
        let release = || {
            self.held.store(units, Ordering::SeqCst);
            Ok(())
        };
        self.plans.shrink(units, Duration::from_secs(1), |_| Ok(()), release)
    }

    fn grow(&self, units: usize) -> Result<(), Stopped<()>> {
        let bring = || {
            self.held.store(units, Ordering::SeqCst);
            Ok(units)
        };
        self.plans.grow(|_| Ok(()), bring)
    }
}

fn explore(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

#[test]
fn a_reader_keeps_what_a_shrink_takes() {
    explore(|| {
        let memory = Memory::new(2);
        let readers = [(); 2].map(|()| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || memory.read())
        });
        assert_eq!(memory.shrink(1), Ok(()));
        assert_eq!(memory.held.load(Ordering::SeqCst), 1, "a shrink returns when memory is back");
        for reader in readers {
            reader.join().expect("a reader relies on what it holds");
        }
    });
}

#[test]
fn a_reader_finds_what_a_grow_publishes() {
    explore(|| {
        let memory = Memory::new(1);
        let reader = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                memory.read();
                memory.read();
            })
        };
        assert_eq!(memory.grow(2), Ok(()));
        reader.join().expect("a reader relies on what it holds");
        assert_eq!(memory.plans.snapshot().value, 2);
    });
}

#[test]
fn a_shrink_and_a_grow_follow_each_other() {
    explore(|| {
        let memory = Memory::new(2);
        let reader = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                memory.read();
                memory.read();
            })
        };
        assert_eq!(memory.shrink(1), Ok(()));
        assert_eq!(memory.grow(3), Ok(()));
        reader.join().expect("a reader relies on what it holds");
    });
}

#[test]
fn a_refused_change_changes_nothing() {
    explore(|| {
        let memory = Memory::new(2);
        let reader = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || memory.read())
        };
        let refused = memory.plans.shrink(1, Duration::from_secs(1), |_| Err(()), || Ok(()));
        assert_eq!(refused, Err(Stopped::Failed(())));
        assert_eq!(memory.plans.snapshot().value, 2);
        reader.join().expect("a reader relies on what it holds");
        assert_eq!(memory.shrink(1), Ok(()), "what was refused is not waited for");
    });
}

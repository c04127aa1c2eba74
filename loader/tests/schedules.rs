//! Every schedule of readers and changes, by loom: what a snapshot holds is in memory for as long as
//! the snapshot lives, what is required for as long as it is held, and no more is in memory than the larger of
//! two plans.

#[path = "../src/resident/generations.rs"]
#[allow(dead_code, reason = "Debug and messages are for the loader")]
mod generations;
#[path = "../src/resident/table.rs"]
#[allow(dead_code, reason = "Debug and pins are for the loader")]
mod table;

/// What the loader builds it of, from loom.
mod sync {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
}

use generations::{Generations, Stopped};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread;
use std::sync::PoisonError;
use std::time::Duration;
use table::{Entries, Table};

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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Experts on demand in room for so many, as `Resident` has them: who brings one in or takes one away holds
/// `change`.
struct Experts {
    table: Table<()>,
    change: Mutex<usize>,
    held: [AtomicUsize; 2],
    in_memory: AtomicUsize,
}

impl Experts {
    fn new(room: usize) -> Arc<Self> {
        let held = [AtomicUsize::new(0), AtomicUsize::new(0)];
        Arc::new(Self {
            table: Table::default(),
            change: Mutex::new(room),
            held,
            in_memory: AtomicUsize::new(0),
        })
    }

    /// Removes entries until there are at most `most`, and gives their memory back.
    fn make_room(&self, most: usize) {
        let fits = |entries: &Entries<()>| entries.iter().count() <= most;
        let (fits, removed) = self.table.make_room(Duration::from_secs(60), fits);
        assert!(fits, "whoever holds an expert lets go of it");
        for (index, held) in self.held.iter().enumerate() {
            let there = self.table.lock().contains(&(0, index as u32));
            if removed && !there && held.swap(0, Ordering::SeqCst) == 1 {
                self.in_memory.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Requires expert `index` and reads it, twice while it is held; not when there is room for none.
    fn read(&self, index: usize) {
        let key = (0, index as u32);
        if self.table.hold_all(&[key]).is_none() {
            let room = lock(&self.change);
            if self.table.hold(&[key]).is_empty() {
                if *room == 0 {
                    return;
                }
                self.make_room(*room - 1);
                assert!(self.in_memory.fetch_add(1, Ordering::SeqCst) < *room, "within the budget");
                self.held[index].store(1, Ordering::SeqCst);
                self.table.insert(key, ());
            }
        }
        assert_eq!(self.held[index].load(Ordering::SeqCst), 1, "what is required is in memory");
        thread::yield_now();
        assert_eq!(self.held[index].load(Ordering::SeqCst), 1, "what is held stays");
        self.table.let_go(&[key]);
    }

    fn set_room(&self, most: usize) {
        let mut room = lock(&self.change);
        self.make_room(most);
        *room = most;
        assert!(self.in_memory.load(Ordering::SeqCst) <= most, "a shrink returns when memory is back");
    }
}

#[test]
fn an_expert_that_is_held_stays_while_another_one_comes() {
    explore(|| {
        let experts = Experts::new(1);
        let other = {
            let experts = Arc::clone(&experts);
            thread::spawn(move || experts.read(1))
        };
        experts.read(0);
        experts.read(0);
        other.join().expect("a reader relies on what it holds");
    });
}

#[test]
fn a_pinned_expert_stays_until_it_is_unpinned_and_then_makes_room() {
    explore(|| {
        let experts = Experts::new(1);
        experts.read(0);
        experts.table.set_pinned(&[(0, 0)], true);
        let other = {
            let experts = Arc::clone(&experts);
            thread::spawn(move || {
                assert_eq!(experts.held[0].load(Ordering::SeqCst), 1, "what is pinned stays");
                experts.table.set_pinned(&[(0, 0)], false);
            })
        };
        experts.read(1);
        other.join().expect("a pinned expert stays");
    });
}

#[test]
fn the_expert_that_was_used_longest_ago_goes_first() {
    explore(|| {
        let experts = Experts::new(2);
        let other = {
            let experts = Arc::clone(&experts);
            thread::spawn(move || experts.read(1))
        };
        experts.read(0);
        other.join().expect("a reader relies on what it holds");
        experts.read(1);
        experts.read(0);
        experts.set_room(1);
        let held = [0, 1].map(|index: usize| experts.held[index].load(Ordering::SeqCst));
        assert_eq!(held, [1, 0]);
    });
}

#[test]
fn a_budget_that_takes_experts_waits_for_who_holds_them_and_is_woken() {
    explore(|| {
        let experts = Experts::new(2);
        let readers = [0, 0].map(|index| {
            let experts = Arc::clone(&experts);
            thread::spawn(move || experts.read(index))
        });
        experts.set_room(0);
        for reader in readers {
            reader.join().expect("a reader relies on what it holds");
        }
    });
}

#[test]
fn budgets_from_two_threads_and_experts() {
    explore(|| {
        let experts = Experts::new(1);
        let reader = {
            let experts = Arc::clone(&experts);
            thread::spawn(move || experts.read(1))
        };
        let other = {
            let experts = Arc::clone(&experts);
            thread::spawn(move || experts.set_room(0))
        };
        experts.set_room(2);
        other.join().expect("a budget is kept");
        reader.join().expect("a reader relies on what it holds");
        let room = *lock(&experts.change);
        assert!(experts.in_memory.load(Ordering::SeqCst) <= room);
    });
}

/// Changes of a plan from several threads, as `Resident` makes them: one at a time, a grow in steps of one
/// unit that a later change ends.
struct Changes {
    memory: Arc<Memory>,
    asked: AtomicUsize,
    turn: Mutex<()>,
}

impl Changes {
    fn new(units: usize) -> Arc<Self> {
        Arc::new(Self { memory: Memory::new(units), asked: AtomicUsize::new(0), turn: Mutex::new(()) })
    }

    /// Whether it came to its end, of a change that `fails` when it has brought something in.
    fn change(&self, units: usize, fails: bool) -> bool {
        let ticket = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let _turn = lock(&self.turn);
        let mut reached = units.min(self.memory.plans.snapshot().value);
        assert_eq!(self.memory.shrink(reached), Ok(()));
        while reached < units {
            if self.asked.load(Ordering::Relaxed) != ticket {
                return false;
            }
            let bring = || {
                self.memory.held.store(reached + 1, Ordering::SeqCst);
                if fails { Err(()) } else { Ok(reached + 1) }
            };
            if self.memory.plans.grow(|_| Ok(()), bring).is_err() {
                self.memory.held.store(reached, Ordering::SeqCst);
                return false;
            }
            reached += 1;
        }
        true
    }

    fn check(&self) {
        let planned = self.memory.plans.snapshot().value;
        assert_eq!(self.memory.held.load(Ordering::SeqCst), planned, "no more and no less than the plan");
    }
}

#[test]
fn a_shrink_that_races_a_grow_is_made() {
    explore(|| {
        let changes = Changes::new(1);
        let (grows, reads) = (Arc::clone(&changes), Arc::clone(&changes));
        let grow = thread::spawn(move || grows.change(3, false));
        let reader = thread::spawn(move || reads.memory.read());
        assert!(changes.change(1, false), "a shrink comes to its end");
        let grown = grow.join().expect("no thread panics");
        reader.join().expect("a reader relies on what it holds");
        changes.check();
        // Either the grow came last, or what it took was given back, or it was ended.
        let planned = changes.memory.plans.snapshot().value;
        assert!(planned == 1 || (grown && planned == 3), "{planned}");
    });
}

#[test]
fn a_grow_that_fails_in_the_middle_leaves_the_plan_before() {
    explore(|| {
        let changes = Changes::new(1);
        let (fails, reads) = (Arc::clone(&changes), Arc::clone(&changes));
        let failed = thread::spawn(move || fails.change(2, true));
        let reader = thread::spawn(move || reads.memory.read());
        assert!(changes.change(1, false));
        assert!(!failed.join().expect("no thread panics"));
        reader.join().expect("a reader relies on what it holds");
        changes.check();
        assert_eq!(changes.memory.plans.snapshot().value, 1);
    });
}

/// A plan and experts in one budget, as `Resident` has them: a change holds `turn` throughout, and whoever
/// brings something in or takes it away holds `held`, which nobody does who waits for readers.
struct Mixture {
    plans: Generations<usize>,
    turn: Mutex<()>,
    held: Mutex<Place>,
    table: Table<()>,
    /// Units and experts in memory.
    units: AtomicUsize,
    experts: AtomicUsize,
}

/// Units that are in memory or have their place there, and what units and experts may be together.
struct Place {
    units: usize,
    room: usize,
}

impl Mixture {
    fn new(units: usize, room: usize) -> Arc<Self> {
        Arc::new(Self {
            plans: Generations::new(units),
            turn: Mutex::new(()),
            held: Mutex::new(Place { units, room }),
            table: Table::default(),
            units: AtomicUsize::new(units),
            experts: AtomicUsize::new(0),
        })
    }

    fn make_room(&self, place: &Place, units: usize, missing: usize) {
        let fits = |entries: &Entries<()>| units + entries.iter().count() + missing <= place.room;
        let (fits, _) = self.table.make_room(Duration::from_secs(60), fits);
        assert!(fits, "whoever holds an expert lets go of it");
        self.experts.store(self.table.lock().iter().count(), Ordering::SeqCst);
    }

    /// A pass: it takes a snapshot, and requires one expert after the other.
    fn pass(&self, experts: &[u32]) {
        let snapshot = self.plans.snapshot();
        for index in experts {
            let key = (0, *index);
            if self.table.hold_all(&[key]).is_none() {
                let place = lock(&self.held);
                if self.table.hold(&[key]).is_empty() {
                    self.make_room(&place, place.units, 1);
                    let experts = self.experts.fetch_add(1, Ordering::SeqCst) + 1;
                    let units = self.units.load(Ordering::SeqCst);
                    assert!(units + experts <= place.room, "{units} and {experts} of {}", place.room);
                    self.table.insert(key, ());
                }
            }
            assert!(self.units.load(Ordering::SeqCst) >= snapshot.value, "what a pass holds stays");
            self.table.let_go(&[key]);
        }
    }

    fn change(&self, units: usize, room: usize) {
        let _turn = lock(&self.turn);
        let current = self.plans.snapshot().value;
        let reached = units.min(current);
        let release = || {
            let mut place = lock(&self.held);
            self.units.store(reached, Ordering::SeqCst);
            (place.units, place.room) = (reached, room);
            self.make_room(&place, units, 0);
            place.units = units;
            Ok::<(), ()>(())
        };
        assert_eq!(self.plans.shrink(reached, Duration::from_secs(60), |_| Ok(()), release), Ok(()));
        let bring = || {
            let _place = lock(&self.held);
            self.units.store(units, Ordering::SeqCst);
            Ok::<usize, ()>(units)
        };
        assert_eq!(self.plans.grow(|_| Ok(()), bring), Ok(()));
        let experts = self.table.lock().iter().count();
        assert!(units + experts <= room, "{units} and {experts} of {room}");
    }
}

#[test]
fn a_pass_that_a_smaller_budget_waits_for_gets_its_experts() {
    explore(|| {
        let mixture = Mixture::new(2, 3);
        let pass = {
            let mixture = Arc::clone(&mixture);
            thread::spawn(move || mixture.pass(&[0, 1]))
        };
        mixture.change(1, 2);
        pass.join().expect("a pass comes to its end");
    });
}

#[test]
fn a_pass_takes_no_room_that_a_larger_plan_is_to_have() {
    explore(|| {
        let mixture = Mixture::new(1, 2);
        let pass = {
            let mixture = Arc::clone(&mixture);
            thread::spawn(move || mixture.pass(&[0, 1, 0]))
        };
        mixture.change(2, 3);
        pass.join().expect("a pass comes to its end");
    });
}

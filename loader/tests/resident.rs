//! What is in memory while a budget moves: counted by the system, not by the loader.

mod common;

use cmf_format::encoding::dense;
use cmf_format::write::{MatrixEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, WriteOptions};
use cmf_loader::resident::{Budgets, Resident, ResidentOptions};
use cmf_loader::{Backend, Budget, ErrorKind, Levels, Model, Snapshot, Want};
use common::{BACKENDS, FILES, Fallible, Outcome, bits, decoded, entry, options, term, write};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PAGE: u64 = 4096;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three matrices of four blocks of rows and three levels, in units of up to 150 KB.
fn builder() -> Fallible<ArchiveBuilder> {
    let mut builder =
        ArchiveBuilder::new(WriteOptions { chunk_group_bytes: 16384, ..WriteOptions::default() });
    builder.attribute("notes.txt", "text/plain", vec![b'x'; 300_000]);
    let mut seed = 1u32;
    for (name, cols) in NAMES.into_iter().zip([64u64, 300, 517]) {
        let mut units = Vec::new();
        for level in 0..3u16 {
            for block in 0..4u64 {
                let rows = 40 + 13 * block;
                let values = (0..rows * cols).map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 20) as f32 / f32::from(1 + level)
                });
                let node = dense::pack_values(DType::F32, rows, cols, &values.collect::<Vec<_>>())?;
                let row_start = (0..block).map(|block| 40 + 13 * block).sum();
                units.push(UnitEntry { level, row_start, rows, terms: vec![term(row_start, node)] });
            }
        }
        let rows = 4 * 40 + 13 * 6;
        let matrix = MatrixEntry { rows, cols, units, ..MatrixEntry::default() };
        builder.tensor(entry(name, DType::F32, &[rows, cols], vec![matrix]));
    }
    Ok(builder)
}

fn file() -> Fallible<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "model.cmf", &builder()?)?;
    Ok((dir, path))
}

/// Resident bytes of the maps of the file at `path`, as the system counts them.
fn mapped(path: &Path) -> Fallible<u64> {
    let path = std::fs::canonicalize(path)?;
    let (mut ours, mut bytes) = (false, 0);
    for line in std::fs::read_to_string("/proc/self/smaps")?.lines() {
        if let Some(resident) = line.strip_prefix("Rss:").filter(|_| ours) {
            bytes += resident.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
        } else if line.starts_with(|c: char| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()) {
            ours = line.ends_with(path.to_str().ok_or("no text")?);
        }
    }
    Ok(bytes)
}

/// The pages that the first `steps` units lie on.
fn pages(model: &Model, steps: usize) -> BTreeSet<u64> {
    let archive = model.archive();
    let units = archive.schedule().take(steps).filter_map(|step| step.unit());
    let segments = units.flat_map(|unit| unit.segments()).filter_map(|index| archive.segment(index));
    let ranges =
        segments.map(|s| s.record().offset.get()..s.record().offset.get() + s.record().stored_bytes.get());
    ranges.flat_map(|range| range.start / PAGE..range.end.div_ceil(PAGE)).collect()
}

/// Budgets in an order without order.
fn budgets(resident: &Resident<'_>, count: u64) -> Vec<Budget> {
    let (least, most) = (resident.schedule().minimum_bytes(), resident.schedule().maximum_bytes());
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Budget::Bytes(least + PAGE * 12 + (state >> 33) % (most - least))
    };
    (0..count).map(|_| next()).collect()
}

fn bytes_of(pages: &BTreeSet<u64>) -> u64 {
    pages.len() as u64 * PAGE
}

#[cfg(target_os = "linux")]
#[test]
fn the_system_counts_what_is_said_to_be_held() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    assert!(model.verify_all(|_, _| {}).is_ok(), "all of the file was touched");
    let resident = model.resident(Budget::Minimum)?;
    for budget in budgets(&resident, 60) {
        resident.set_budget(budget)?;
        let status = resident.status();
        let held = status.held_bytes - resident.schedule().overhead_bytes();
        assert_eq!(mapped(&path)?, held);
        assert_eq!(held, bytes_of(&pages(&model, status.units)));
        assert!(status.held_bytes <= status.budget_bytes);
        let next = resident.paged_bytes(status.units + 1);
        assert!(next > status.budget_bytes || status.units == resident.schedule().steps());
        // Reading what is held brings nothing else in.
        let snapshot = resident.snapshot();
        NAMES.iter().try_for_each(|name| decoded(&model, name, Levels::Plan(snapshot.plan())).map(drop))?;
        assert_eq!(mapped(&path)?, held);
    }
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn pages_in_memory_of_the_process_go_when_they_are_given_back() -> Outcome {
    let anonymous = || -> Fallible<u64> {
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).ok_or("no line")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    let (_dir, path) = file()?;
    let model = Model::open_with(&path, &options(Backend::Pread))?;
    let resident = model.resident(Budget::Maximum)?;
    let (all, most) = (anonymous()?, resident.status().held_bytes);
    resident.set_budget(Budget::Minimum)?;
    let (less, least) = (anonymous()?, resident.status().held_bytes);
    // Other tests run in this process, and allocate: less than half of what is given back here.
    assert!(all - less > (most - least) / 2, "{all} and {less} for {most} and {least}");
    Ok(())
}

#[test]
fn a_change_moves_the_difference() -> Outcome {
    let (_dir, path) = file()?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let resident = model.resident(Budget::Maximum)?;
        for budget in budgets(&resident, 60) {
            let before = resident.status();
            let change = resident.set_budget(budget)?;
            let after = resident.status();
            let (old, new) = (pages(&model, before.units), pages(&model, after.units));
            let came = bytes_of(&new.difference(&old).copied().collect());
            assert_eq!(change.loaded_bytes, came);
            assert_eq!(change.released_bytes, bytes_of(&old.difference(&new).copied().collect()));
            // The last page of the file is not whole. Everything was verified before.
            let read = after.read_bytes - before.read_bytes;
            let expected = if backend == Backend::Memory { 0 } else { came };
            assert!(read <= expected && expected - read < PAGE, "{read} for {came}");
            assert_eq!(after.verified_bytes, before.verified_bytes);
        }
    }
    Ok(())
}

#[test]
fn values_are_those_of_the_plan_while_the_budget_moves() -> Outcome {
    let (_dir, path) = file()?;
    let other = Model::open(&path)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let resident = model.resident(Budget::Minimum)?;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| -> Outcome {
            let reader = |name: &'static str| {
                let (resident, model, other, done) = (&resident, &model, &other, &done);
                scope.spawn(move || -> Result<usize, String> {
                    let mut reads = 0;
                    while !done.load(Ordering::Relaxed) {
                        let snapshot = resident.snapshot();
                        let levels = Levels::Plan(snapshot.plan());
                        let found = decoded(model, name, levels).map_err(|e| e.to_string())?;
                        let expected = decoded(other, name, levels).map_err(|e| e.to_string())?;
                        if bits(&found) != bits(&expected) {
                            return Err(format!("{name} under {:?}", snapshot.plan()));
                        }
                        reads += 1;
                    }
                    Ok(reads)
                })
            };
            let readers = NAMES.map(reader);
            let changed =
                budgets(&resident, 150).into_iter().try_for_each(|b| resident.set_budget(b).map(drop));
            done.store(true, Ordering::Relaxed);
            for reader in readers {
                assert!(reader.join().map_err(|_| "a reader panicked")?? > 0);
            }
            Ok(changed?)
        })?;
    }
    Ok(())
}

#[test]
fn changes_from_many_threads_end_at_the_last_one_that_was_made() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let resident = model.resident(Budget::Minimum)?;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| budgets(&resident, 40).into_iter().all(|b| resident.set_budget(b).is_ok()));
        }
    });
    resident.set_budget(Budget::Maximum)?;
    let status = resident.status();
    assert_eq!(status.units, resident.schedule().steps());
    assert_eq!((status.loading_bytes, status.releasing_bytes), (0, 0));
    Ok(())
}

#[test]
fn damaged_units_are_not_published() -> Outcome {
    let (_dir, path) = file()?;
    let mut bytes = std::fs::read(&path)?;
    let last = bytes.len() - 10;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let resident = model.resident(Budget::Minimum)?;
        let before = resident.status();
        let failed = resident.set_budget(Budget::Maximum).err().map(|e| e.kind());
        assert_eq!(failed, Some(ErrorKind::Format(cmf_format::ErrorKind::Hash)));
        let after = resident.status();
        assert_eq!((after.units, after.held_bytes), (before.units, before.held_bytes));
        assert!(model.resident(Budget::Maximum).is_err());
    }
    Ok(())
}

#[test]
fn a_file_that_was_cut_is_an_error_and_no_signal() -> Outcome {
    for backend in FILES {
        let (_dir, path) = file()?;
        let model = Model::open_with(&path, &options(backend))?;
        let resident = model.resident(Budget::Minimum)?;
        let least = resident.snapshot().plan().units();
        std::fs::OpenOptions::new().write(true).open(&path)?.set_len(200_000)?;
        let failed = resident.set_budget(Budget::Maximum).err().map(|e| e.kind());
        assert_eq!(failed, Some(ErrorKind::Changed));
        assert_eq!(resident.snapshot().plan().units(), least);
    }
    Ok(())
}

#[test]
fn what_a_reader_holds_stays_until_it_lets_go() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let patience = Duration::from_millis(20);
    let options = ResidentOptions { patience, ..ResidentOptions::default() };
    let resident = model.resident_with(Budget::Maximum, options)?;
    let snapshot = resident.snapshot();
    let busy = resident.set_budget(Budget::Minimum).err().map(|e| e.kind());
    assert_eq!(busy, Some(ErrorKind::Busy));
    let status = resident.status();
    assert!(status.held_bytes > status.budget_bytes && status.releasing_bytes > 0);
    assert_eq!(resident.snapshot().plan().units(), resident.schedule().required_steps());
    drop(snapshot);
    resident.set_budget(Budget::Minimum)?;
    let status = resident.status();
    assert_eq!((status.held_bytes, status.releasing_bytes), (status.wanted_bytes, 0));
    Ok(())
}

#[test]
fn a_reader_that_cannot_follow_keeps_the_plan() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let resident = model.resident(Budget::Minimum)?;
    let before = resident.status();
    let refuse = |_: &Snapshot| Err(Box::<dyn std::error::Error>::from("no"));
    assert!(resident.set_budget_with(Budget::Maximum, refuse).is_err());
    let after = resident.status();
    assert_eq!((after.units, after.held_bytes), (before.units, before.held_bytes));
    Ok(())
}

#[test]
fn budget_below_the_minimum_changes_nothing() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let resident = model.resident(Budget::Maximum)?;
    let error = resident.set_budget(Budget::Bytes(1000)).err().ok_or("accepted")?;
    assert_eq!(error.below_minimum().map(|e| e.minimum_bytes), Some(resident.schedule().minimum_bytes()));
    assert_eq!(resident.snapshot().plan().units(), resident.schedule().steps());
    // The minimum itself is enough, whatever its pages.
    resident.set_budget(Budget::Bytes(resident.schedule().minimum_bytes()))?;
    assert_eq!(resident.snapshot().plan().units(), resident.schedule().required_steps());
    Ok(())
}

/// A device that takes whole blocks of what it may, and looks at what main memory has meanwhile.
struct Device<'r> {
    resident: &'r Resident<'r>,
    held: std::cell::Cell<u64>,
}

impl Device<'_> {
    const BLOCK: u64 = 50_000;

    fn change(&self, allowed: u64, together: u64) -> Result<u64, cmf_loader::Error> {
        self.held.set(allowed / Self::BLOCK * Self::BLOCK);
        let both = self.held.get() + self.resident.status().held_bytes;
        assert!(both <= together, "{both} of {together} bytes while it changes");
        Ok(self.held.get())
    }
}

#[test]
fn main_memory_and_a_device_are_within_their_budgets_and_that_of_both() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let resident = model.resident(Budget::Minimum)?;
    let device = Device { resident: &resident, held: std::cell::Cell::new(0) };
    let (least, most) =
        (resident.paged_bytes(resident.schedule().required_steps()), resident.schedule().maximum_bytes());
    let mut state = 5u64;
    let mut next = |from: u64, to: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + (state >> 33) % (to - from)
    };
    for _ in 0..100 {
        let (cpu, gpu) = (next(least, most), next(0, most));
        let together = next(least, 2 * most);
        let budgets = Budgets { cpu: Budget::Bytes(cpu), gpu: Budget::Bytes(gpu), together: Some(together) };
        resident.set_budgets(budgets, |allowed| device.change(allowed, together), |_| Ok(()))?;
        let after = resident.status();
        assert!(after.held_bytes <= cpu && after.device_bytes <= gpu, "{after:?}");
        assert!(after.held_bytes + after.device_bytes <= together, "{after:?} of {together}");
        assert_eq!(after.device_bytes, device.held.get());
        // Nobody has less than there is room for.
        let more = resident.paged_bytes(after.units + 1);
        let rest = cpu.min(together - after.device_bytes);
        assert!(more > rest || after.units == resident.schedule().steps(), "{after:?}");
    }
    // Each for itself.
    let budgets = Budgets { cpu: Budget::Maximum, gpu: Budget::Maximum, together: None };
    resident.set_budgets(budgets, |allowed| device.change(allowed, u64::MAX), |_| Ok(()))?;
    assert_eq!(device.held.get(), most / Device::BLOCK * Device::BLOCK);
    Ok(())
}

#[test]
fn a_device_that_refuses_leaves_main_memory_with_less() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let resident = model.resident(Budget::Maximum)?;
    let most = resident.status().held_bytes;
    let budgets = Budgets { cpu: Budget::Maximum, gpu: Budget::Bytes(300_000), together: Some(most) };
    let refuse = |_| Err(Box::<dyn std::error::Error>::from("out of memory"));
    assert!(resident.set_budgets(budgets, refuse, |_| Ok(())).is_err());
    let status = resident.status();
    assert!(status.held_bytes <= most - 300_000 && status.device_bytes == 0, "{status:?}");
    Ok(())
}

fn wanting(want: impl Fn(&str) -> Want + Send + Sync + 'static) -> ResidentOptions {
    ResidentOptions { want: Some(Arc::new(want)), ..ResidentOptions::default() }
}

#[test]
fn pinned_tensors_are_held_whole_in_every_budget() -> Outcome {
    let (_dir, path) = file()?;
    let (model, other) = (Model::open(&path)?, Model::open(&path)?);
    let pin = |name: &str| if name == "b" { Want::Always } else { Want::Budget };
    let resident = model.resident_with(Budget::Minimum, wanting(pin))?;
    assert!(resident.schedule().minimum_bytes() > model.schedule()?.minimum_bytes());
    assert_eq!(resident.schedule().maximum_bytes(), model.schedule()?.maximum_bytes());
    for budget in budgets(&resident, 10) {
        resident.set_budget(budget)?;
        let snapshot = resident.snapshot();
        let found = decoded(&model, "b", Levels::Plan(snapshot.plan()))?;
        assert_eq!(bits(&found), bits(&decoded(&other, "b", Levels::All)?));
    }
    resident.set_budget(Budget::Minimum)?;
    let snapshot = resident.snapshot();
    let a = decoded(&model, "a", Levels::Plan(snapshot.plan()))?;
    assert_eq!(bits(&a), bits(&decoded(&other, "a", Levels::UpTo(0))?));
    Ok(())
}

#[test]
fn a_part_of_a_model_takes_its_own_bytes() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let only = |name: &str| if name == "c" { Want::Budget } else { Want::Never };
    let resident = model.resident_with(Budget::Maximum, wanting(only))?;
    let stored = model.tensor("c").ok_or("missing")?.summary()?.stored_bytes;
    let schedule = resident.schedule();
    assert_eq!(schedule.maximum_bytes() - schedule.overhead_bytes(), stored);
    assert_eq!(schedule.steps(), 12);
    #[cfg(target_os = "linux")]
    assert_eq!(mapped(&path)?, resident.status().held_bytes - schedule.overhead_bytes());
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_reader_has_elsewhere_leaves_memory_and_stays_readable() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let resident = model.resident(Budget::Minimum)?;
    let kept = model.schedule_for(&|name| if name == "b" { Want::Budget } else { Want::Never })?;
    for budget in budgets(&resident, 20) {
        let before = resident.status();
        let change = resident.set_budget(budget)?;
        let status = resident.status();
        let difference = status.held_bytes.abs_diff(before.held_bytes);
        assert_eq!(change.loaded_bytes.max(change.released_bytes), difference, "only what is new is read");
        let snapshot = resident.snapshot();
        let given_back = resident.give_back(&snapshot, &kept)?;
        let held = status.held_bytes - resident.schedule().overhead_bytes();
        assert_eq!(mapped(&path)?, held - given_back);
        assert_eq!(resident.status().elsewhere_bytes, given_back);
        assert!(given_back > 0 && given_back < held);
        for name in NAMES {
            let whole = decoded(&Model::open(&path)?, name, Levels::Plan(snapshot.plan()))?;
            assert_eq!(bits(&decoded(&model, name, Levels::Plan(snapshot.plan()))?), bits(&whole));
        }
    }
    Ok(())
}

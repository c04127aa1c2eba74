//! Experts that are in memory when they are asked for: against a simple model of what should be there.

mod common;

use cmf_format::encoding::dense;
use cmf_format::write::{MatrixEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, WriteOptions};
use cmf_loader::resident::{Resident, ResidentOptions};
use cmf_loader::{Backend, Budget, ErrorKind, Levels, Model, Want};
use common::{BACKENDS, Fallible, Outcome, bits, entry, options, term, write};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PAGE: u64 = 4096;
const LAYERS: usize = 2;
const EXPERTS: usize = 6;
const ROWS: u64 = 40;

fn matrix(rows: u64, cols: u64, levels: u16, seed: &mut u32) -> Fallible<MatrixEntry> {
    let units = (0..levels).map(|level| {
        let values = (0..rows * cols).map(|_| {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*seed >> 20) as f32 / f32::from(1 + level)
        });
        let node = dense::pack_values(DType::F32, rows, cols, &values.collect::<Vec<_>>())?;
        Ok(UnitEntry { level, row_start: 0, rows, terms: vec![term(0, node)] })
    });
    Ok(MatrixEntry { rows, cols, units: units.collect::<Fallible<_>>()?, ..MatrixEntry::default() })
}

/// A mixture of experts: attention in two levels, and of each layer the up-projections of all experts in one
/// tensor, and a down-projection of each in a tensor of its own. Experts are 5 to 12 KB, so that they share
/// pages with their neighbours.
fn mixture() -> Fallible<ArchiveBuilder> {
    let mut builder =
        ArchiveBuilder::new(WriteOptions { chunk_group_bytes: 4096, ..WriteOptions::default() });
    let mut seed = 1;
    for layer in 0..LAYERS {
        let attention = matrix(100, 100, 2, &mut seed)?;
        builder.tensor(entry(&format!("{layer}.attention"), DType::F32, &[100, 100], vec![attention]));
        let up = (0..EXPERTS).map(|_| matrix(ROWS, 33, 2, &mut seed)).collect::<Fallible<_>>()?;
        let shape = [EXPERTS as u64, ROWS, 33];
        builder.tensor(entry(&format!("{layer}.experts.up"), DType::F32, &shape, up));
        for expert in 0..EXPERTS {
            let cols = 60 + 3 * expert as u64;
            let down = matrix(ROWS, cols, 1, &mut seed)?;
            let name = format!("{layer}.experts.{expert}.down");
            builder.tensor(entry(&name, DType::F32, &[ROWS, cols], vec![down]));
        }
    }
    Ok(builder)
}

fn file() -> Fallible<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "mixture.cmf", &mixture()?)?;
    Ok((dir, path))
}

fn demanding(demand_bytes: u64) -> ResidentOptions {
    let want = |name: &str| if name.contains("experts") { Want::Demand } else { Want::Budget };
    ResidentOptions {
        want: Some(Arc::new(want)),
        demand_bytes,
        patience: Duration::from_millis(20),
        ..ResidentOptions::default()
    }
}

/// What one expert of a layer needs: a matrix of one tensor, and the only one of another.
fn expert(index: usize) -> [(String, usize); 2] {
    let (layer, expert) = (index / EXPERTS, index % EXPERTS);
    [(format!("{layer}.experts.up"), expert), (format!("{layer}.experts.{expert}.down"), 0)]
}

fn parts(names: &[(String, usize)]) -> Vec<(&str, usize)> {
    names.iter().map(|(name, matrix)| (name.as_str(), *matrix)).collect()
}

/// The pages of one expert.
fn pages(model: &Model, index: usize) -> Fallible<BTreeSet<u64>> {
    let mut pages = BTreeSet::new();
    for (name, matrix) in expert(index) {
        let stored = model.tensor(&name).ok_or("missing")?.stored()?;
        let matrix = stored.matrices().nth(matrix).ok_or("missing")?;
        for segment in matrix.units().flat_map(|unit| unit.segments()) {
            let record = *model.archive().segment(segment).ok_or("missing")?.record();
            let (start, bytes) = (record.offset.get(), record.stored_bytes.get());
            pages.extend(start / PAGE..(start + bytes).div_ceil(PAGE));
        }
    }
    Ok(pages)
}

/// The pages of the plan that is in force.
fn planned(model: &Model, resident: &Resident<'_>) -> BTreeSet<u64> {
    let snapshot = resident.snapshot();
    let archive = model.archive();
    let units = archive.units().filter(|unit| snapshot.plan().includes(unit.index()));
    let segments = units.flat_map(|unit| unit.segments()).filter_map(|index| archive.segment(index));
    let ranges = segments.map(|s| {
        let start = s.record().offset.get();
        start / PAGE..(start + s.record().stored_bytes.get()).div_ceil(PAGE)
    });
    ranges.flatten().collect()
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

/// Values of the matrix of an expert.
fn values(model: &Model, name: &str, matrix: usize) -> Fallible<Vec<f32>> {
    let tensor = model.tensor(name).ok_or("missing")?;
    let shape = tensor.matrix_shape()?;
    let mut out = vec![0.0; (shape.rows * shape.cols) as usize];
    tensor.decode_matrix(matrix, Levels::All, &mut out)?;
    Ok(out)
}

/// What a test does.
#[derive(Clone, Debug)]
enum Step {
    Require(Vec<usize>),
    Touch(usize),
    Pin(usize),
    Unpin(usize),
    /// Tenths between all that is planned alone and all experts beside it.
    Budget(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let one = 0..LAYERS * EXPERTS;
    prop_oneof![
        6 => prop::collection::vec(one.clone(), 1..4).prop_map(Step::Require),
        2 => one.clone().prop_map(Step::Touch),
        1 => one.clone().prop_map(Step::Pin),
        2 => one.prop_map(Step::Unpin),
        2 => (1u64..10).prop_map(Step::Budget),
    ]
}

/// Experts in memory, that which was used longest ago first. Of those that were used at the same time the
/// one that comes first in the file goes first.
struct Simple {
    pages: Vec<BTreeMap<usize, BTreeSet<u64>>>,
    /// Expert and matrix of it.
    order: Vec<(usize, usize)>,
    pinned: BTreeSet<usize>,
}

impl Simple {
    fn total(&self, planned: &BTreeSet<u64>, of: &[(usize, usize)]) -> u64 {
        let mut all = planned.clone();
        of.iter().for_each(|(expert, part)| all.extend(&self.pages[*expert][part]));
        all.len() as u64 * PAGE
    }

    /// Whether it succeeds.
    fn require(&mut self, wanted: &BTreeSet<usize>, planned: &BTreeSet<u64>, room: u64) -> bool {
        let own: Vec<_> = wanted.iter().flat_map(|expert| [(*expert, 0), (*expert, 1)]).collect();
        let mut needed = own.clone();
        needed.extend(self.order.iter().filter(|(expert, _)| self.pinned.contains(expert)));
        let missing = own.iter().any(|part| !self.order.contains(part));
        if missing && self.total(planned, &needed) > room {
            self.touch(wanted);
            return false;
        }
        self.touch(wanted);
        let with = |simple: &Self| [simple.order.clone(), own.clone()].concat();
        while missing && self.total(planned, &with(self)) > room {
            let goes =
                |(expert, _): &(usize, usize)| !wanted.contains(expert) && !self.pinned.contains(expert);
            // What is needed fits.
            let place = self.order.iter().position(goes).unwrap_or(0);
            self.order.remove(place);
        }
        self.order.retain(|part| !own.contains(part));
        self.order.extend(own);
        self.touch(wanted);
        true
    }

    fn touch(&mut self, wanted: &BTreeSet<usize>) {
        let (mut used, mut rest): (Vec<_>, Vec<_>) =
            self.order.iter().partition(|(expert, _)| wanted.contains(expert));
        // In the order of the file: of each layer first the tensors of one expert.
        used.sort_by_key(|(expert, part)| (expert / EXPERTS, *part == 0, *expert));
        rest.extend(used);
        self.order = rest;
    }
}

fn follows(backend: Backend, steps: &[Step]) -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open_with(&path, &options(backend))?;
    let most = 120_000;
    let resident = model.resident_with(Budget::Bytes(most), demanding(0))?;
    let schedule = resident.schedule();
    let all = resident.paged_bytes(schedule.steps());
    assert!(all > 160_000 && most < all, "{all}");
    let mut names = Vec::new();
    let mut pages = Vec::new();
    for index in 0..LAYERS * EXPERTS {
        let of = expert(index);
        let mut own = BTreeMap::new();
        for (part, (name, matrix)) in of.iter().enumerate() {
            let stored = model.tensor(name).ok_or("missing")?.stored()?;
            let matrix = stored.matrices().nth(*matrix).ok_or("missing")?;
            let mut set = BTreeSet::new();
            for segment in matrix.units().flat_map(|unit| unit.segments()) {
                let record = *model.archive().segment(segment).ok_or("missing")?.record();
                let start = record.offset.get();
                set.extend(start / PAGE..(start + record.stored_bytes.get()).div_ceil(PAGE));
            }
            own.insert(part, set);
        }
        pages.push(own);
        names.push(of);
    }
    let mut simple = Simple { pages, order: Vec::new(), pinned: BTreeSet::new() };
    let fixed = schedule.overhead_bytes();
    for step in steps {
        let plan = planned(&model, &resident);
        let room = resident.status().budget_bytes.max(plan.len() as u64 * PAGE + fixed) - fixed;
        match step {
            Step::Require(experts) => {
                let wanted: BTreeSet<usize> = experts.iter().copied().collect();
                let all = wanted.iter().flat_map(|index| names[*index].clone()).collect::<Vec<_>>();
                let required = resident.require(parts(&all));
                assert_eq!(required.is_ok(), simple.require(&wanted, &plan, room), "{step:?}");
                for (name, matrix) in all.iter().filter(|_| required.is_ok()) {
                    assert!(resident.holds((name.as_str(), *matrix))?);
                }
            }
            Step::Touch(index) => {
                let there = resident.touch(parts(&names[*index]))?;
                assert_eq!(there, simple.order.iter().filter(|(expert, _)| expert == index).count());
                simple.touch(&BTreeSet::from([*index]));
            }
            Step::Pin(index) => {
                let pinned = resident.pin(parts(&names[*index])).is_ok();
                assert_eq!(pinned, simple.require(&BTreeSet::from([*index]), &plan, room), "{step:?}");
                if pinned {
                    simple.pinned.insert(*index);
                }
            }
            Step::Unpin(index) => {
                resident.unpin(parts(&names[*index]))?;
                simple.pinned.remove(index);
            }
            Step::Budget(tenths) => {
                let bytes = schedule.minimum_bytes() + 8 * PAGE + tenths * 30_000;
                if resident.set_budget(Budget::Bytes(bytes)).is_ok() {
                    let plan = planned(&model, &resident);
                    let room = bytes.max(plan.len() as u64 * PAGE + fixed) - fixed;
                    while simple.total(&plan, &simple.order) > room {
                        let goes = |(expert, _): &(usize, usize)| !simple.pinned.contains(expert);
                        let place = simple.order.iter().position(goes).ok_or("pinned does not fit")?;
                        simple.order.remove(place);
                    }
                }
            }
        }
        for (index, of) in names.iter().enumerate() {
            for (part, (name, matrix)) in of.iter().enumerate() {
                let there = simple.order.contains(&(index, part));
                assert_eq!(
                    resident.holds((name.as_str(), *matrix))?,
                    there,
                    "{name} {matrix} after {step:?}"
                );
            }
        }
        let status = resident.status();
        let plan = planned(&model, &resident);
        assert_eq!(status.held_bytes - fixed, simple.total(&plan, &simple.order), "{step:?}");
        assert!(status.held_bytes <= status.budget_bytes.max(plan.len() as u64 * PAGE + fixed), "{step:?}");
        assert_eq!(status.demanded, simple.order.len());
        #[cfg(target_os = "linux")]
        if backend == Backend::Mmap {
            assert_eq!(mapped(&path)?, status.held_bytes - fixed, "{step:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_in_memory_is_what_a_simple_model_says(steps in prop::collection::vec(step(), 1..40)) {
        for backend in BACKENDS {
            follows(backend, &steps).map_err(|e| TestCaseError::fail(e.to_string()))?;
        }
    }
}

#[test]
fn experts_come_as_a_router_asks_while_the_budget_moves() -> Outcome {
    let (_dir, path) = file()?;
    let other = Model::open(&path)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let most_of_two = 2
            * (0..LAYERS * EXPERTS)
                .map(|index| Ok(pages(&model, index)?.len() as u64 * PAGE))
                .collect::<Fallible<Vec<_>>>()?
                .into_iter()
                .fold(0, u64::max);
        let resident = model.resident_with(Budget::Minimum, demanding(3 * most_of_two))?;
        let least = resident.schedule().minimum_bytes() + 3 * most_of_two + 8 * PAGE;
        resident.set_budget(Budget::Bytes(least))?;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| -> Outcome {
            let tokens = |seed: u32| {
                let (resident, model, other) = (&resident, &model, &other);
                move || -> Result<u64, String> {
                    let mut state = seed;
                    let mut choose = || {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (state >> 16) as usize % EXPERTS
                    };
                    let mut checked = 0;
                    for _token in 0..60 {
                        for layer in 0..LAYERS {
                            let chosen = BTreeSet::from([choose(), choose()]);
                            let all: Vec<_> =
                                chosen.iter().flat_map(|e| expert(layer * EXPERTS + e)).collect();
                            let _held = resident.require(parts(&all)).map_err(|e| e.to_string())?;
                            for (name, matrix) in &all {
                                let found = values(model, name, *matrix).map_err(|e| e.to_string())?;
                                let expected = values(other, name, *matrix).map_err(|e| e.to_string())?;
                                if bits(&found) != bits(&expected) {
                                    return Err(format!("{name} {matrix}"));
                                }
                                checked += 1;
                            }
                        }
                    }
                    Ok(checked)
                }
            };
            let readers = [scope.spawn(tokens(1)), scope.spawn(tokens(77))];
            let moving = |step: u64| {
                let (resident, done) = (&resident, &done);
                move || -> Result<(), String> {
                    let mut more = 0;
                    while !done.load(Ordering::Relaxed) {
                        more = (more + step) % 300_000;
                        resident.set_budget(Budget::Bytes(least + more)).map_err(|e| e.to_string())?;
                        let status = resident.status();
                        if status.held_bytes > least + 300_000 {
                            return Err(format!("{status:?}"));
                        }
                    }
                    Ok(())
                }
            };
            let changes = [scope.spawn(moving(37_000)), scope.spawn(moving(53_000))];
            let read = readers.map(|reader| reader.join().map_err(|_| "a reader panicked".to_owned()));
            done.store(true, Ordering::Relaxed);
            for change in changes {
                change.join().map_err(|_| "panicked")??;
            }
            for reader in read {
                assert!(reader?? > 0);
            }
            Ok(())
        })?;
        resident.set_budget(Budget::Bytes(least))?;
        let status = resident.status();
        assert!(status.held_bytes <= status.budget_bytes);
        assert!(status.demanded > 0 && status.demanded < 2 * LAYERS * EXPERTS);
    }
    Ok(())
}

#[test]
fn what_is_held_stays_and_what_does_not_fit_is_refused() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let room = pages(&model, 0)?.union(&pages(&model, 1)?).count() as u64 * PAGE;
    let resident = model.resident_with(Budget::Minimum, demanding(room))?;
    let kind = |result: cmf_loader::Result<_>| result.map(drop).err().map(|e: cmf_loader::Error| e.kind());
    let held = resident.require(parts(&[expert(0), expert(1)].concat()))?;
    // Others hold all the room.
    assert_eq!(kind(resident.require(parts(&expert(7)))), Some(ErrorKind::Busy));
    assert!(resident.holds(("0.experts.up", 0))?);
    drop(held);
    drop(resident.require(parts(&expert(7)))?);
    // More than there is room for, whatever goes.
    let all: Vec<_> = (0..EXPERTS).flat_map(expert).collect();
    let before = resident.status();
    assert_eq!(kind(resident.require(parts(&all))), Some(ErrorKind::Argument));
    assert_eq!(resident.status(), before, "nothing has changed");
    resident.pin(parts(&expert(7)))?;
    assert_eq!(kind(resident.require(parts(&[expert(0), expert(1)].concat()))), Some(ErrorKind::Argument));
    resident.unpin(parts(&expert(7)))?;
    drop(resident.require(parts(&[expert(0), expert(1)].concat()))?);
    for wrong in ["0.attention", "nothing"] {
        assert_eq!(kind(resident.require([wrong])), Some(ErrorKind::Argument));
    }
    assert_eq!(kind(resident.require([("0.experts.up", EXPERTS)])), Some(ErrorKind::Argument));
    Ok(())
}

#[test]
fn experts_may_come_with_their_first_level_alone() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let take = |level| -> Fallible<u64> {
        let options = ResidentOptions { demand_level: level, ..demanding(1 << 20) };
        let resident = model.resident_with(Budget::Minimum, options)?;
        let _all = resident.require(["0.experts.up"])?;
        Ok(resident.status().demanded_bytes)
    };
    let (first, all) = (take(0)?, take(u16::MAX)?);
    assert!(first < all * 2 / 3, "{first} of {all}");
    Ok(())
}

#[test]
fn damaged_experts_are_not_believed() -> Outcome {
    let (_dir, path) = file()?;
    let mut bytes = std::fs::read(&path)?;
    let place = {
        let model = Model::open(&path)?;
        *pages(&model, 3)?.last().ok_or("no pages")? * PAGE
    };
    bytes[place as usize + 10] ^= 1;
    std::fs::write(&path, bytes)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let resident = model.resident_with(Budget::Minimum, demanding(1 << 20))?;
        let all: Vec<_> = (0..LAYERS * EXPERTS).flat_map(expert).collect();
        let failed = resident.require(parts(&all)).err().map(|e| e.kind());
        assert_eq!(failed, Some(ErrorKind::Format(cmf_format::ErrorKind::Hash)));
        let status = resident.status();
        assert_eq!((status.held_bytes, status.loading_bytes), (status.wanted_bytes, 0));
    }
    Ok(())
}

#[test]
fn a_reader_that_is_waited_for_may_require_experts() -> Outcome {
    let (_dir, path) = file()?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let room = (0..EXPERTS).map(|index| Ok(pages(&model, index)?.len() as u64 * PAGE));
        let room = 2 * room.collect::<Fallible<Vec<_>>>()?.into_iter().fold(0, u64::max);
        let options = ResidentOptions { patience: Duration::from_secs(60), ..demanding(room) };
        let resident = model.resident_with(Budget::Maximum, options)?;
        let schedule = resident.schedule();
        let [all, least] =
            [schedule.steps(), schedule.required_steps()].map(|steps| resident.paged_bytes(steps));
        assert!(least < all);
        resident.set_budget(Budget::Bytes(all + room))?;
        (0..EXPERTS).try_for_each(|index| resident.require(parts(&expert(index))).map(drop))?;
        let snapshot = resident.snapshot();
        std::thread::scope(|scope| -> Outcome {
            let change = scope.spawn(|| resident.set_budget(Budget::Bytes(least + room)));
            while resident.snapshot().plan().units() == schedule.steps() {
                std::thread::yield_now();
            }
            // In the place of others: what the reader holds of the plan before stays.
            for index in EXPERTS..2 * EXPERTS {
                let _held = resident.require(parts(&expert(index)))?;
                let status = resident.status();
                assert!(status.held_bytes >= all && status.held_bytes <= all + room, "{status:?}");
                #[cfg(target_os = "linux")]
                if backend == Backend::Mmap {
                    assert_eq!(mapped(&path)?, status.held_bytes - schedule.overhead_bytes());
                }
            }
            assert!(!change.is_finished(), "it waits for the reader");
            drop(snapshot);
            let change = change.join().map_err(|_| "panicked")??;
            // What others gave back meanwhile is not of the change.
            assert!(change.released_bytes <= all - least + room, "{change:?} of {}", all - least);
            Ok(())
        })?;
        let status = resident.status();
        assert!(status.held_bytes <= least + room, "{status:?}");
        assert_eq!((status.held_bytes, status.loading_bytes), (status.wanted_bytes, 0));
    }
    Ok(())
}

#[test]
fn a_budget_leaves_room_for_what_must_come_on_demand() -> Outcome {
    let (_dir, path) = file()?;
    let model = Model::open(&path)?;
    let expert_bytes = |index: usize| -> Fallible<u64> {
        let mut bytes = model.demanded_bytes([expert(index)[1].0.as_str()], u16::MAX)?;
        // One matrix of a tensor with one for each expert.
        bytes += pages(&model, index)?.len() as u64 * PAGE;
        Ok(bytes)
    };
    let one =
        (0..LAYERS * EXPERTS).map(expert_bytes).collect::<Fallible<Vec<_>>>()?.into_iter().fold(0, u64::max);
    let options = ResidentOptions { least_demand_bytes: one, ..demanding(0) };
    let resident = model.resident_with(Budget::Minimum, options)?;
    let least = resident.least_bytes();
    assert_eq!(least, resident.paged_bytes(resident.schedule().required_steps()) + one);
    for index in 0..LAYERS * EXPERTS {
        drop(resident.require(parts(&expert(index)))?);
    }
    resident.set_budget(Budget::Bytes(least))?;
    let refused = resident.set_budget(Budget::Bytes(least - 1)).err().ok_or("accepted")?;
    assert!(
        refused.kind() == ErrorKind::Argument && refused.to_string().contains(&format!("{least}")),
        "{refused}"
    );
    for index in 0..LAYERS * EXPERTS {
        let _held = resident.require(parts(&expert(index)))?;
        assert!(resident.status().held_bytes <= least);
    }
    let status = resident.status();
    assert!(status.brought > 0 && status.required == 4 * (LAYERS * EXPERTS) as u64, "{status:?}");
    // All of it, when there is room for that.
    resident.set_budget(Budget::Maximum)?;
    let names: Vec<_> = model.tensors().map(|t| t.name()).filter(|name| name.contains("experts")).collect();
    let _all = resident.require(names.iter().copied())?;
    let most = resident.most_bytes()?;
    let held = resident.status().held_bytes;
    assert_eq!(held, most);
    Ok(())
}

//! Tensors that are in memory when they are asked for, and go when others need the room: the experts of a
//! mixture.

use super::table::{Entries, Entry, Key, Table};
use super::{Resident, Runs, change, lock};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{Budget, FileUnits, Plan, Want};
use crate::source::FileSource;
use crate::stored::transform_segments;
use cmf_format::archive::Matrix;
use core::ops::Range;
use std::collections::BTreeSet;

/// Matrices of a tensor: all of them, or one of them, as an expert of many in one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part<'n> {
    /// The tensor's name.
    pub name: &'n str,
    /// Which of its matrices; all when `None`.
    pub matrix: Option<usize>,
}

impl<'n> From<&'n str> for Part<'n> {
    fn from(name: &'n str) -> Self {
        Self { name, matrix: None }
    }
}

impl<'n> From<(&'n str, usize)> for Part<'n> {
    fn from((name, matrix): (&'n str, usize)) -> Self {
        Self { name, matrix: Some(matrix) }
    }
}

/// What was demanded and is in memory.
pub(super) type Demand = Table<Pages>;

/// What a matrix takes in memory.
#[derive(Debug)]
pub(super) struct Pages {
    pages: Runs,
    decoded_bytes: u64,
}

/// A matrix that is to be in memory.
pub(super) struct Missing {
    key: Key,
    needs: Needs,
}

impl Missing {
    pub(super) fn into_segments(self) -> Vec<u32> {
        self.needs.segments
    }
}

/// What a matrix needs in memory.
struct Needs {
    segments: Vec<u32>,
    pages: Runs,
    decoded_bytes: u64,
}

impl Needs {
    /// What the levels of `matrix` up to `level` need, in a file with these units.
    fn of(matrix: &Matrix<'_, FileSource>, units: &FileUnits, level: u16) -> Self {
        let wanted = matrix.units().filter(|unit| unit.level() <= level);
        let mut segments: BTreeSet<u32> = wanted.flat_map(|unit| unit.segments()).collect();
        segments.extend(transform_segments(matrix));
        let segments: Vec<u32> = segments.into_iter().collect();
        let (pages, decoded_bytes) = units.held_for(&segments, change::page_bytes());
        Self { segments, pages, decoded_bytes }
    }
}

impl Model {
    /// Bytes that all matrices of the tensors called `names`, with levels up to `level`, take together in memory
    /// when they are there on demand ([`Resident::require`]): pages, and what compressed segments become.
    ///
    /// # Errors
    /// `Argument` for a tensor that is not there or is a delta; as [`Model::schedule`].
    pub fn demanded_bytes<'n>(&self, names: impl IntoIterator<Item = &'n str>, level: u16) -> Result<u64> {
        let (pages, decoded_bytes) = self.demanded(names, level)?;
        Ok(pages.iter().map(Runs::bytes).fold(decoded_bytes, u64::saturating_add))
    }

    /// Pages of each file, and what compressed segments become.
    fn demanded<'n>(&self, names: impl IntoIterator<Item = &'n str>, level: u16) -> Result<(Vec<Runs>, u64)> {
        let (files, schedule) = (self.files()?, self.schedule()?);
        let (mut pages, mut bytes) = (vec![Vec::new(); files.len()], 0u64);
        for name in names {
            let stored = self.expect_tensor(name)?.find()?;
            let of = |file: &&Model| std::ptr::eq(*file, stored.model);
            let place = files.iter().position(of).filter(|_| stored.base.is_none());
            let found = place.and_then(|place| Some((pages.get_mut(place)?, schedule.files().nth(place)?)));
            let Some((pages, units)) = found else { return Err(delta(self, name)) };
            for matrix in stored.record.matrices() {
                let needs = Needs::of(&matrix, units, level);
                bytes = bytes.saturating_add(needs.decoded_bytes);
                pages.push(needs.pages);
            }
        }
        Ok((pages.iter().map(Runs::union).collect(), bytes))
    }
}

fn delta(model: &Model, name: &str) -> Error {
    let part = format!("tensor `{}`", name.escape_debug());
    Error::argument(model.path(), part, "is a delta, whose base is held always".into())
}

/// Keeps what was required in memory until it is dropped: see [`Resident::require`].
#[must_use = "what was required may go when this is dropped"]
#[derive(Debug)]
pub struct Required<'r> {
    demand: &'r Demand,
    keys: Vec<Key>,
}

impl Drop for Required<'_> {
    fn drop(&mut self) {
        self.demand.let_go(&self.keys);
    }
}

impl Demand {
    /// Pages of file `file` that are held for what was demanded.
    pub(super) fn pages(&self, file: usize) -> Runs {
        let entries = self.lock();
        let of_file = entries.iter().filter(|((of, _), _)| *of == file);
        Runs::union(of_file.map(|(_, entry)| &entry.value.pages))
    }

    /// What compressed segments of it become.
    pub(super) fn decoded_bytes(&self) -> u64 {
        self.lock().iter().fold(0, |sum, (_, entry)| sum.saturating_add(entry.value.decoded_bytes))
    }

    /// Matrices that are in memory.
    pub(super) fn count(&self) -> usize {
        self.lock().iter().count()
    }
}

impl Resident<'_> {
    /// Brings `parts` into memory, verified, and keeps them there until what this gives is dropped. They are of
    /// tensors that are wanted on demand ([`Want::Demand`]), and come with all levels up to
    /// [`ResidentOptions::demand_level`](super::ResidentOptions::demand_level).
    ///
    /// What was used longest ago and nobody holds goes first, so that the budget is kept at every moment.
    /// What is there already costs no more than looking it up, whatever change is under way; what is not
    /// waits for the change, and before that until it is in the file, where that is still coming
    /// ([`Resident::supplied_by`]).
    ///
    /// # Errors
    /// `Argument` for parts that are not there or not on demand, and when they do not fit the budget beside
    /// the plan and what is pinned: nothing changes. `Busy` when others hold what would have to go for longer
    /// than [`ResidentOptions::patience`](super::ResidentOptions::patience); `Supply` when they do not come into
    /// the file; as [`Resident::set_budget`] for damaged bytes.
    pub fn require<'n, P: Into<Part<'n>>>(&self, parts: impl IntoIterator<Item = P>) -> Result<Required<'_>> {
        let keys = self.keys(parts)?;
        if let Some(keys) = self.demand.hold_all(&keys) {
            self.count_required(keys.len(), 0);
            return Ok(Required { demand: &self.demand, keys });
        }
        self.wait_for(&keys)?;
        let mut held = lock(&self.held);
        // From here on nobody else brings anything in or takes anything away.
        let there = self.demand.hold(&keys);
        // Lets go of it after an error.
        let mut required = Required { demand: &self.demand, keys: there };
        let missing = keys.iter().filter(|key| !required.keys.contains(key));
        let missing = missing.map(|key| self.missing(*key)).collect::<Result<Vec<_>>>()?;
        let needed = |key: &Key, entry: &Entry<Pages>| entry.pinned || keys.contains(key);
        let needed = self.total(&self.demand.lock(), held.units(), &missing, needed);
        self.check_fits(needed, held.room())?;
        let units = held.units();
        self.make_room(&mut held, units, &missing)?;
        let brought = missing.len();
        for part in missing {
            let Missing { key, needs } = part;
            let Needs { segments, pages, decoded_bytes } = needs;
            let came = self.bring_to(&mut held, key.0, &pages, segments.into_iter());
            if let Err(error) = came {
                let _ = self.release(&mut held, units);
                self.settle(&held);
                return Err(error);
            }
            self.demand.insert(key, Pages { pages, decoded_bytes });
            required.keys.push(key);
        }
        self.settle(&held);
        self.count_required(keys.len(), brought);
        Ok(required)
    }

    fn count_required(&self, required: usize, brought: usize) {
        let mut status = lock(&self.status);
        status.required = status.required.saturating_add(required as u64);
        status.brought = status.brought.saturating_add(brought as u64);
    }

    /// Says that `parts` are used, so that others go before them; gives how many matrices of them are in
    /// memory. Brings nothing in.
    ///
    /// # Errors
    /// `Argument` for parts that are not there or not on demand.
    pub fn touch<'n, P: Into<Part<'n>>>(&self, parts: impl IntoIterator<Item = P>) -> Result<usize> {
        let keys = self.keys(parts)?;
        let there = self.demand.hold(&keys);
        let touched = Required { demand: &self.demand, keys: there };
        Ok(touched.keys.len())
    }

    /// Brings `parts` in, and keeps them in memory until [`Resident::unpin`].
    ///
    /// # Errors
    /// As [`Resident::require`].
    pub fn pin<'n, P: Into<Part<'n>>>(&self, parts: impl IntoIterator<Item = P>) -> Result<()> {
        let required = self.require(parts)?;
        self.demand.set_pinned(&required.keys, true);
        Ok(())
    }

    /// Lets `parts` go when others need the room.
    ///
    /// # Errors
    /// `Argument` for parts that are not there or not on demand.
    pub fn unpin<'n, P: Into<Part<'n>>>(&self, parts: impl IntoIterator<Item = P>) -> Result<()> {
        let keys = self.keys(parts)?;
        self.demand.set_pinned(&keys, false);
        Ok(())
    }

    /// The highest level that comes on demand.
    pub fn demand_level(&self) -> u16 {
        self.options.demand_level
    }

    /// What all that is wanted takes in memory, in pages: the plan of all units, and all that is on demand.
    /// O(directory).
    ///
    /// # Errors
    /// `Argument` when a delta is wanted on demand; as [`Model::schedule`].
    pub fn most_bytes(&self) -> Result<u64> {
        let steps = self.schedule.steps();
        let Some(want) = &self.options.want else { return Ok(self.paged_bytes(steps)) };
        let names =
            self.model.tensors().map(|tensor| tensor.name()).filter(|name| want(name) == Want::Demand);
        let (pages, decoded_bytes) = self.model.demanded(names, self.options.demand_level)?;
        let planned = self.schedule.files().map(|file| file.pages(steps, change::page_bytes()));
        let pages = planned.zip(&pages).map(|(planned, demanded)| planned.plus(demanded).bytes());
        Ok(pages
            .fold(change::beside(&self.schedule, steps).saturating_add(decoded_bytes), u64::saturating_add))
    }

    /// Whether all of `part` is in memory for being required; it may go at any time.
    ///
    /// # Errors
    /// `Argument` for a part that is not there or not on demand.
    pub fn holds<'n>(&self, part: impl Into<Part<'n>>) -> Result<bool> {
        let keys = self.keys([part])?;
        let entries = self.demand.lock();
        Ok(keys.iter().all(|key| entries.contains(key)))
    }

    /// The matrices of `parts`, each once.
    pub(super) fn keys<'n, P: Into<Part<'n>>>(&self, parts: impl IntoIterator<Item = P>) -> Result<Vec<Key>> {
        let mut keys = BTreeSet::new();
        for part in parts {
            let Part { name, matrix } = part.into();
            let wrong = |problem: &str| {
                let part = format!("tensor `{}`", name.escape_debug());
                Error::argument(self.model.path(), part, problem.to_owned())
            };
            let on_demand = self.options.want.as_ref().is_some_and(|want| want(name) == Want::Demand);
            if !on_demand {
                return Err(wrong("is not on demand"));
            }
            let stored = self.model.expect_tensor(name)?.find()?;
            let of = |file: &&crate::model::Model| std::ptr::eq(*file, stored.model);
            let file = self.files.iter().position(of).filter(|_| stored.base.is_none());
            let file = file.ok_or_else(|| delta(self.model, name))?;
            let matrices = stored.record.matrices();
            let range: Range<usize> = match matrix {
                Some(index) if index < matrices.len() => index..index.saturating_add(1),
                Some(_) => return Err(wrong("has no such matrix")),
                None => 0..matrices.len(),
            };
            keys.extend(matrices.skip(range.start).take(range.len()).map(|matrix| (file, matrix.index())));
        }
        Ok(keys.into_iter().collect())
    }

    pub(super) fn missing(&self, key: Key) -> Result<Missing> {
        let (file, units) = (self.files.get(key.0), self.schedule.files().nth(key.0));
        let archive = file.map(|file| file.archive());
        let matrix = archive.and_then(|archive| archive.matrices().nth(key.1 as usize));
        let (Some(matrix), Some(units)) = (matrix, units) else {
            return Err(Error::argument(self.model.path(), "matrix", "is not there".into()));
        };
        Ok(Missing { key, needs: Needs::of(&matrix, units, self.options.demand_level) })
    }

    /// Bytes that the plan and what is on demand may take together. A minimum whose pages do not fit the
    /// budget is accepted, and then there is room for nothing else.
    pub(super) fn room_under(&self, budget: Budget, plan: &Plan) -> u64 {
        let planned = self.paged_bytes(plan.units());
        match budget {
            Budget::Maximum => u64::MAX,
            Budget::Minimum => planned.saturating_add(self.options.aside_bytes()),
            _ => plan.budget_bytes().max(planned),
        }
    }

    /// What the plan of `steps` steps takes in memory with what `counts` of that which is there on demand, and
    /// `missing`.
    fn total(
        &self,
        entries: &Entries<Pages>,
        steps: usize,
        missing: &[Missing],
        counts: impl Fn(&Key, &Entry<Pages>) -> bool,
    ) -> u64 {
        let counted = || entries.iter().filter(|(key, entry)| counts(key, entry));
        let planned = self.planned(steps);
        let pages = planned.pages.iter().enumerate().map(|(index, planned)| {
            let there =
                counted().filter(|((file, _), _)| *file == index).map(|(_, entry)| &entry.value.pages);
            let missing = missing.iter().filter(|part| part.key.0 == index).map(|part| &part.needs.pages);
            Runs::union(missing.chain(there).chain([planned])).bytes()
        });
        let decoded = counted().map(|(_, entry)| entry.value.decoded_bytes);
        let decoded = decoded.chain(missing.iter().map(|part| part.needs.decoded_bytes));
        pages.chain(decoded).fold(planned.beside, u64::saturating_add)
    }

    /// That what is pinned fits `room` beside the plan of `steps` steps.
    pub(super) fn check_pinned(&self, steps: usize, room: u64) -> Result<()> {
        self.check_fits(self.total(&self.demand.lock(), steps, &[], |_, entry| entry.pinned), room)
    }

    fn check_fits(&self, needed: u64, room: u64) -> Result<()> {
        match needed <= room {
            true => Ok(()),
            false => {
                let problem =
                    format!("expected at least {needed} bytes with what is on demand, found {room}");
                Err(Error::argument(self.model.path(), "budget", problem))
            }
        }
    }

    /// Takes what was used longest ago out of memory until there is room for `missing` beside the plan of
    /// `steps` steps.
    pub(super) fn make_room(&self, held: &mut change::Held, steps: usize, missing: &[Missing]) -> Result<()> {
        let room = held.room();
        let fits = |entries: &Entries<Pages>| self.total(entries, steps, missing, |_, _| true) <= room;
        let (fits, evicted) = self.demand.make_room(self.options.patience, fits);
        if evicted {
            self.release_held(held, held.units())?;
        }
        let problem = "budget: others hold what would have to go for what is on demand";
        if fits { Ok(()) } else { Err(Error::busy(self.model.path(), problem.into())) }
    }
}

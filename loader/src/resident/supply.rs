//! Parts of a file that are not there yet.

use super::Resident;
use super::demand::Part;
use super::table::Key;
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// Brings parts of a file that is still being written: see [`Resident::supplied_by`].
pub trait Supply: Send + Sync {
    /// Asks for `segments`, by their index in the file, before others, and does not wait.
    fn ask(&self, segments: &[u32]);

    /// Waits until all of `segments` are in the file.
    ///
    /// # Errors
    /// Why they do not come.
    fn bring(&self, segments: &[u32]) -> core::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

impl<'m> Resident<'m> {
    /// The same, for a file of which what is on demand may not be there yet: [`Resident::require`] asks `supply` for
    /// it and waits, while others go on. The model is in one file, and its source that of
    /// [`Backend::Mmap`](crate::Backend::Mmap), which shows what is written.
    pub fn supplied_by(mut self, supply: &'m dyn Supply) -> Self {
        self.supply = Some(supply);
        self
    }

    /// Says that `parts` are going to be required, and does not wait: what of them is not in the file is asked for.
    /// Nothing is brought into memory.
    ///
    /// # Errors
    /// `Argument` for parts that are not there or not on demand.
    pub fn ask<'n, P: Into<Part<'n>>>(&self, parts: impl IntoIterator<Item = P>) -> Result<()> {
        let Some(supply) = self.supply else { return Ok(()) };
        let segments = self.absent(&self.keys(parts)?)?;
        if !segments.is_empty() {
            supply.ask(&segments);
        }
        Ok(())
    }

    /// Waits until what `keys` need is in the file. Nothing is locked meanwhile.
    pub(super) fn wait_for(&self, keys: &[Key]) -> Result<()> {
        let Some(supply) = self.supply else { return Ok(()) };
        let segments = self.absent(keys)?;
        let brought = if segments.is_empty() { Ok(()) } else { supply.bring(&segments) };
        brought.map_err(|error| {
            let part = keys.iter().find_map(|key| self.name_of(*key)).unwrap_or_default();
            Error::supply(self.model.path(), part, error)
        })
    }

    /// Segments that `keys` need, of those that are not in memory.
    fn absent(&self, keys: &[Key]) -> Result<Vec<u32>> {
        let absent: Vec<Key> = {
            let entries = self.demand.lock();
            keys.iter().filter(|key| !entries.contains(key)).copied().collect()
        };
        let mut segments = BTreeSet::new();
        for key in absent {
            segments.extend(self.missing(key)?.into_segments());
        }
        Ok(segments.into_iter().collect())
    }

    /// The tensor that has the matrix `key`, for errors.
    fn name_of(&self, key: Key) -> Option<String> {
        let tensor = self.model.tensors().find(|tensor| {
            let found = self.model.expect_tensor(tensor.name()).and_then(|tensor| tensor.find());
            found.is_ok_and(|stored| stored.record.matrices().any(|matrix| matrix.index() == key.1))
        })?;
        Some(format!("tensor `{}`", tensor.name().escape_debug()))
    }
}

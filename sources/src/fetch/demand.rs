//! What comes when somebody asks for it.

use super::Fetch;
use crate::error::{Error, ErrorKind, Result};
use crate::queue::Queue;
use cmf_loader::resident::Supply;
use std::sync::PoisonError;

impl Fetch {
    /// Asks for `segments`, by their index in the file, before anything else, and does not wait for them. While some
    /// that were asked for are missing, nothing else is. They lie in requests together where they lie in the file
    /// together. Nothing happens before [`Fetch::run`].
    pub fn ask(&self, segments: &[u32]) {
        let mut shared = self.lock();
        let groups = shared.groups.clone();
        let Some(queue) = shared.queue.as_mut() else { return };
        for range in segments.iter().filter_map(|index| groups.1.get(*index as usize)) {
            queue.ask(&groups.0, range.clone());
        }
        drop(shared);
        self.moved.notify_all();
    }

    /// [`Fetch::ask`], and waits until all of them are in the file. Each chunk group of them has had its hash. From
    /// any thread, while [`Fetch::run`] is under way on another, or is going to be.
    ///
    /// # Errors
    /// That with which [`Fetch::run`] ends; `Busy` when it has ended without one and they are not there.
    pub fn bring(&self, segments: &[u32]) -> Result<()> {
        let mut asked = false;
        loop {
            let shared = self.lock();
            let groups = shared.groups.clone();
            let ranges = || segments.iter().filter_map(|index| groups.1.get(*index as usize));
            let here = |queue: &Queue| ranges().all(|range| range.clone().all(|index| queue.is_here(index)));
            if shared.queue.as_ref().is_some_and(here) {
                return Ok(());
            }
            if let Some(error) = &shared.error {
                return Err(error.clone());
            }
            if shared.ended || self.is_stopped() {
                let problem = "the fetch has ended, and what is asked for has not come";
                return Err(Error::new(ErrorKind::Busy, self.remote.name(), problem));
            }
            if shared.queue.is_some() && !asked {
                drop(shared);
                self.ask(segments);
                asked = true;
                continue;
            }
            drop(self.moved.wait(shared).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// What a resident model needs of it.
impl Supply for Fetch {
    fn ask(&self, segments: &[u32]) {
        Fetch::ask(self, segments);
    }

    fn bring(&self, segments: &[u32]) -> core::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(Fetch::bring(self, segments)?)
    }
}

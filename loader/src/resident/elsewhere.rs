//! What a reader has a copy of elsewhere.

use super::change::{RELEASE_BYTES, page_bytes};
use super::{Resident, Snapshot, lock};
use crate::error::Result;
use crate::plan::Schedule;

impl Resident<'_> {
    /// Gives the memory back of what `snapshot` holds of matrices that are not in `kept`, a schedule of the
    /// parts of the model that are still read from here ([`Model::schedule_for`](crate::Model::schedule_for)):
    /// for a reader that has put the others on a device. Gives the bytes;
    /// [`Status::elsewhere_bytes`](super::Status::elsewhere_bytes) is what it gave last.
    ///
    /// They stay in the plan: whoever reads them again gets them from the file, and the next change does not
    /// bring them in again. May be called in what [`Resident::set_budget_with`] announces to.
    ///
    /// # Errors
    /// `Io`.
    pub fn give_back(&self, snapshot: &Snapshot, kept: &Schedule) -> Result<u64> {
        let (plan, page) = (snapshot.plan(), page_bytes());
        let mut bytes = 0u64;
        let files = self.files.iter().zip(plan.schedule().files()).zip(kept.files());
        for (index, ((file, units), kept)) in files.enumerate() {
            let (all, kept) = (units.pages(plan.units(), page), units.pages_of(kept, plan.units(), page));
            let gone = all.minus(&kept).minus(&self.demand.pages(index));
            let source = file.source();
            let parts = source.parts(&gone, RELEASE_BYTES);
            let released = parts.into_iter().try_for_each(|part| source.release(part));
            released.map_err(|e| source.error(e))?;
            bytes = bytes.saturating_add(gone.bytes());
        }
        lock(&self.status).elsewhere_bytes = bytes;
        Ok(bytes)
    }
}

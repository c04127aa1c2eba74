//! What a [`Resident`](super::Resident) says of itself.

/// What is held, wanted and under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The budget that was asked for last.
    pub budget_bytes: u64,
    /// Units that may be read.
    pub units: usize,
    /// Bytes of these units, and of what is held beside them: [`Plan::resident_bytes`](crate::Plan).
    pub resident_bytes: u64,
    /// Bytes that are in memory now, in pages: within the budget as soon as
    /// [`Status::releasing_bytes`] is 0.
    pub held_bytes: u64,
    /// Bytes that will be in memory when the change under way is done.
    pub wanted_bytes: u64,
    /// Bytes that the change under way still brings in.
    pub loading_bytes: u64,
    /// Bytes that it still gives back.
    pub releasing_bytes: u64,
    /// Matrices that are in memory on demand.
    pub demanded: usize,
    /// Bytes of [`Status::wanted_bytes`] that are for them alone.
    pub demanded_bytes: u64,
    /// Matrices that were required so far: see [`Resident::require`](super::Resident::require).
    pub required: u64,
    /// Of them those that were not in memory, and were brought in.
    pub brought: u64,
    /// Bytes of [`Status::held_bytes`] that were given back because a reader has them elsewhere, as it said
    /// last: see [`Resident::give_back`](super::Resident::give_back).
    pub elsewhere_bytes: u64,
    /// Bytes that a device holds, as it said last: see [`Resident::set_budgets`](super::Resident::set_budgets).
    pub device_bytes: u64,
    /// Bytes read from the file so far. With a map, those of changes alone: what is brought in
    /// by touching it is not counted.
    pub read_bytes: u64,
    /// Bytes brought in by changes so far.
    pub loaded_bytes: u64,
    /// Bytes given back by changes so far.
    pub released_bytes: u64,
    /// Bytes held against their hashes so far.
    pub verified_bytes: u64,
    /// Changes so far.
    pub changes: u64,
}

/// What a change did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Bytes brought in.
    pub loaded_bytes: u64,
    /// Bytes given back.
    pub released_bytes: u64,
    /// Whether a change that came later ended it early: what was brought in by then is published.
    pub ended_early: bool,
}

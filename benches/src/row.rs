//! A row: what is measured, against what, and what it must reach.

use crate::clock::{Clock, Rounds, Time, Work};
use anyhow::{Context, Result};
use serde::Serialize;

/// Rows with one peer and one meaning.
pub(crate) struct Suite {
    /// What ours does and what the peer does.
    pub(crate) title: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// Measures.
type Run = Box<dyn Fn(&Bench<'_>) -> Result<Outcome>>;

/// One measurement.
pub(crate) struct Row {
    /// Stable name.
    pub(crate) name: String,
    /// What it must reach; empty when nothing is demanded.
    pub(crate) goals: Vec<Goal>,
    run: Run,
}

/// What a row must reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Speed of ours over that of the peer.
    Ratio(f64),
    /// Bytes a second.
    BytesPerSecond(f64),
    /// Time of one run.
    Seconds(f64),
}

/// What a row measures with.
pub(crate) struct Bench<'b> {
    clock: &'b Clock,
}

/// What was measured.
pub(crate) struct Outcome {
    ours: Rounds,
    peer: Rounds,
    peer_name: &'static str,
    bytes: u64,
    note: String,
}

impl Bench<'_> {
    /// Measures `ours` against `peer`; one run of either deals with `bytes` bytes, 0 when bytes are
    /// not what it is about.
    pub(crate) fn compare(
        &self,
        time: Time,
        bytes: u64,
        ours: Work<'_>,
        (peer_name, peer): (&'static str, Work<'_>),
    ) -> Result<Outcome> {
        let (ours, peer) = self.clock.compare(time, ours, peer)?;
        Ok(Outcome { ours, peer, peer_name, bytes, note: String::new() })
    }
}

impl Outcome {
    /// Time of the best round of ours.
    pub(crate) fn seconds(&self) -> f64 {
        self.ours.best()
    }

    /// Adds what else there is to say.
    pub(crate) fn note(self, note: String) -> Self {
        Self { note, ..self }
    }
}

/// A measured row.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) peer: &'static str,
    /// Bytes that one run deals with; 0 when bytes are not what it is about.
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) seconds_median: f64,
    pub(crate) peer_seconds: f64,
    pub(crate) peer_seconds_median: f64,
    /// Speed of ours over that of the peer.
    pub(crate) ratio: f64,
    pub(crate) rounds: usize,
    pub(crate) note: String,
    pub(crate) goals: Vec<Reached>,
}

/// A goal and whether it was reached.
#[derive(Serialize)]
pub(crate) struct Reached {
    pub(crate) goal: String,
    pub(crate) met: bool,
}

impl Row {
    pub(crate) fn new(
        name: impl Into<String>,
        goals: impl Into<Vec<Goal>>,
        run: impl Fn(&Bench<'_>) -> Result<Outcome> + 'static,
    ) -> Self {
        Self { name: name.into(), goals: goals.into(), run: Box::new(run) }
    }

    pub(crate) fn measure(&self, clock: &Clock) -> Result<Measured> {
        let Outcome { ours, peer, peer_name, bytes, note } =
            (self.run)(&Bench { clock }).with_context(|| self.name.clone())?;
        let mut measured = Measured {
            name: self.name.clone(),
            peer: peer_name,
            bytes,
            seconds: ours.best(),
            seconds_median: ours.median(),
            peer_seconds: peer.best(),
            peer_seconds_median: peer.median(),
            ratio: peer.best() / ours.best(),
            rounds: ours.count(),
            note,
            goals: Vec::new(),
        };
        measured.goals = self.goals.iter().map(|goal| goal.judge(&measured)).collect();
        Ok(measured)
    }
}

impl Measured {
    pub(crate) fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// By how much the peer's median is slower than its best.
    pub(crate) fn variation(&self) -> f64 {
        self.peer_seconds_median / self.peer_seconds - 1.0
    }
}

impl Goal {
    fn judge(self, row: &Measured) -> Reached {
        let (goal, met) = match self {
            Goal::Ratio(least) => (format!("ratio of {least} or more"), row.ratio >= least),
            Goal::BytesPerSecond(least) => {
                (format!("{} MB/s or more", least / 1e6), row.bytes_per_second() >= least)
            }
            Goal::Seconds(most) => (format!("{} ms or less", most * 1e3), row.seconds <= most),
        };
        Reached { goal, met }
    }
}

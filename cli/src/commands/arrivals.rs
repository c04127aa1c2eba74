//! How good a model that comes from a server is at which time, as a picture.

use crate::plot::{self, Chart, Kind, Legend, Mark, Series};
use crate::size;
use anyhow::Context;
use cmf_loader::Schedule;
use cmf_sources::Progress;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What came when.
pub(crate) struct Arrivals {
    started: Instant,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Seconds, and steps that were there.
    steps: Vec<(f64, usize)>,
    /// Seconds and bytes received, at the last look.
    last: (f64, u64),
    #[cfg_attr(not(feature = "models"), allow(dead_code, reason = "cmf run alone makes tokens"))]
    first_token: Option<f64>,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), seen: Mutex::default() }
    }

    /// Says what has come.
    pub(crate) fn came(&self, progress: Progress) {
        let seconds = self.started.elapsed().as_secs_f64();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.arrived > seen.steps.last().map_or(0, |(_, steps)| *steps) {
            seen.steps.push((seconds, progress.arrived));
        }
        if progress.received_bytes > seen.last.1 {
            seen.last = (seconds, progress.received_bytes);
        }
    }

    /// Says that the model has made a token.
    #[cfg(feature = "models")]
    pub(crate) fn token(&self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).first_token.get_or_insert(seconds);
    }

    /// Writes the picture for a file of `file_bytes` bytes.
    pub(crate) fn write(
        &self,
        path: &Path,
        name: &str,
        schedule: &Schedule,
        file_bytes: u64,
    ) -> anyhow::Result<()> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let picture = plot::svg(&seen.chart(name, schedule, file_bytes)?)?;
        std::fs::write(path, picture).with_context(|| format!("{}: cannot be written", path.display()))
    }
}

impl Seen {
    fn chart(&self, name: &str, schedule: &Schedule, file_bytes: u64) -> anyhow::Result<Chart> {
        let (least, most) = (schedule.required_steps(), schedule.steps());
        let stated = (least..=most).all(|steps| schedule.expected_loss(steps).is_some());
        let value = |steps: usize| match stated {
            true => schedule.expected_loss(steps).unwrap_or(0.0),
            false => steps as f64,
        };
        let there: Vec<_> = self.steps.iter().filter(|(_, steps)| *steps >= least).copied().collect();
        let first = there.first().context("the smallest model has not come: there is nothing to draw")?;
        // What is there stays until more comes: a line of steps.
        let mut points = Vec::new();
        for (seconds, steps) in &there {
            points.extend(points.last().map(|(_, last)| (*seconds, *last)));
            points.push((*seconds, value(*steps)));
        }
        // At the pace that was seen.
        let (seconds, received) = self.last;
        let pace = received as f64 / seconds.max(1e-9);
        let whole = file_bytes as f64 / pace.max(1e-9);
        let all = there.last().is_some_and(|(_, steps)| *steps == most);
        // As far as anybody looked.
        let end = if all { whole } else { seconds };
        points.extend(points.last().map(|(at, last)| (end.max(*at), *last)));
        let mark = |x: f64, steps: usize, label: String| Mark {
            x,
            y: Some(value(steps)),
            label,
            covered: x > first.0,
        };
        let begins = match self.first_token {
            Some(token) => format!("required units: {:.1} s, first token: {token:.1} s", first.0),
            None => format!("required units: {:.1} s", first.0),
        };
        let mut marks = vec![mark(first.0, first.1, begins)];
        // The axis begins when the command does.
        marks.push(Mark { x: 0.0, y: None, label: String::new(), covered: false });
        let at_this_pace = if all { "" } else { " at this pace" };
        marks.push(mark(whole, most, format!("the whole file{at_this_pace}: {whole:.1} s")));
        Ok(Chart {
            title: format!("{name}: {} at {} a second", size::show(file_bytes), size::show(pace as u64)),
            x_label: "seconds".into(),
            y_label: if stated { "expected loss" } else { "units there" }.into(),
            series: vec![
                Series { name: "while it comes".into(), kind: Kind::Line, points },
                Series {
                    name: "when the whole file has come".into(),
                    kind: Kind::Line,
                    points: vec![(whole, value(least)), (whole, value(most)), (whole * 1.1, value(most))],
                },
            ],
            marks,
            notes: Vec::new(),
            legend: Legend::Middle,
        })
    }
}

/// What a picture is called after: the last part of an address.
pub(crate) fn name_of(address: &str) -> &str {
    let path = address.split(['?', '#']).next().unwrap_or(address);
    path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(address)
}

/// That a picture may be written to `path`.
pub(crate) fn check(path: Option<&Path>, force: bool) -> anyhow::Result<()> {
    match path.filter(|path| !force && path.exists()) {
        Some(path) => anyhow::bail!("{}: exists; --force replaces it", path.display()),
        None => Ok(()),
    }
}

//! What goes on in memory while a model talks.

use crate::experts::OnDemand;
use crate::size;
use cmf_candle::moving::Moving;
use cmf_loader::resident::Status;
use cmf_loader::{Model, Plan};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two frames.
const PERIOD: Duration = Duration::from_millis(500);
const BAR_CELLS: u64 = 48;
/// Lines of the answer that are shown.
const ANSWER_CHARS: usize = 240;

/// Drawn on standard error: over itself on a terminal, else frame by frame.
pub(super) struct Picture<'p> {
    tokens: AtomicU64,
    answer: Mutex<String>,
    experts: Option<&'p OnDemand>,
}

impl<'p> Picture<'p> {
    /// A picture of a model, some of whose experts may come on demand.
    pub(super) fn new(experts: Option<&'p OnDemand>) -> Self {
        Self { tokens: AtomicU64::new(0), answer: Mutex::default(), experts }
    }

    /// Says that the answer is `answer` now, one token longer than before.
    pub(super) fn token(&self, answer: &str) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
        let mut last = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let chars = answer.chars().count();
        *last = answer.chars().skip(chars.saturating_sub(ANSWER_CHARS)).collect();
    }

    /// Draws until `done`, and once more.
    pub(super) fn draw(&self, moving: &Moving<'_>, done: &AtomicBool) -> anyhow::Result<()> {
        let terminal = stderr().is_terminal();
        let (mut tokens, mut at) = (0, Instant::now());
        let most = moving.resident().most_bytes()?;
        loop {
            let last = done.load(Ordering::Relaxed);
            let now = self.tokens.load(Ordering::Relaxed);
            let rate = (now - tokens) as f64 / at.elapsed().as_secs_f64().max(1e-3);
            (tokens, at) = (now, Instant::now());
            let resident = moving.resident();
            let snapshot = resident.snapshot();
            let status = moving.status();
            let mut frame = frame(&status, most, rate);
            if let Some(experts) = self.experts {
                frame += &format!("experts   {}\n", experts.held(&status).show());
            }
            if let Some(bytes) = moving.packed().device_bytes() {
                frame += &format!("gpu       {} of weights\n", size::show(bytes));
            }
            frame += &format!("levels    {}\n", levels(resident.model(), snapshot.plan()));
            if terminal {
                let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner).replace('\n', " ");
                frame += &format!("answer    {answer}\n");
                // To the top, and all of the frame before away.
                frame = format!("\x1b[H\x1b[J{frame}");
            }
            stderr().write_all(frame.as_bytes())?;
            if last {
                return Ok(());
            }
            std::thread::park_timeout(PERIOD);
        }
    }
}

fn frame(status: &Status, most_bytes: u64, tokens_per_second: f64) -> String {
    let cells = |bytes: u64| (bytes.min(most_bytes) * BAR_CELLS / most_bytes.max(1)) as usize;
    let (held, allowed) = (cells(status.held_bytes), cells(status.budget_bytes));
    let bar: String = (0..BAR_CELLS as usize)
        .map(|cell| match cell {
            cell if cell < held => '█',
            cell if cell < allowed => '░',
            _ => '·',
        })
        .collect();
    format!(
        "memory    {bar}  {} of a budget of {}, all is {}\nmoved     {} in, {} out, {} to come, {} to go; {:.1} tokens a second\n",
        size::show(status.held_bytes),
        size::show(status.budget_bytes),
        size::show(most_bytes),
        size::show(status.loaded_bytes),
        size::show(status.released_bytes),
        size::show(status.loading_bytes),
        size::show(status.releasing_bytes),
        tokens_per_second,
    )
}

/// How many levels are held, in the mean over the rows of each layer, and of what is in no layer.
fn levels(model: &Model, plan: &Plan) -> String {
    let Some(units) = plan.of(model.archive()) else { return String::new() };
    // Rows by columns, and the levels of them, by layer.
    let mut layers: BTreeMap<Option<u32>, (f64, f64)> = BTreeMap::new();
    for tensor in model.archive().tensors() {
        let layer = tensor.name().split('.').find_map(|part| part.parse().ok());
        let (all, held) = layers.entry(layer).or_default();
        for matrix in tensor.matrices().filter(|matrix| matrix.units().len() > 0 && matrix.rows() > 1) {
            for (rows, level) in units.levels(&matrix) {
                let weights = (rows.end - rows.start) as f64 * matrix.cols() as f64;
                *all += weights;
                *held += weights * (f64::from(level) + 1.0);
            }
        }
    }
    let mean = |(all, held): &(f64, f64)| if *all > 0.0 { held / all } else { 0.0 };
    let rest =
        layers.remove(&None).map_or_else(String::new, |rest| format!("; beside them {:.1}", mean(&rest)));
    let all: Vec<String> = layers.values().map(|layer| format!("{:.1}", mean(layer))).collect();
    format!("{} by layer{rest}", all.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_is_held_of_what_may_be_of_all() {
        let status = Status { held_bytes: 25, budget_bytes: 50, loaded_bytes: 1500, ..Status::default() };
        let frame = frame(&status, 100, 7.25);
        let bar = ["█".repeat(12), "░".repeat(12), "·".repeat(24)].concat();
        assert!(
            frame.starts_with(&format!("memory    {bar}  25 B of a budget of 50 B, all is 100 B\n")),
            "{frame}"
        );
        assert!(frame.contains("1.5 kB in") && frame.contains("7.2 tokens a second"), "{frame}");
    }
}

//! Progress bars on standard error, for whatever takes longer than a second.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long work goes on before its bar appears.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Elements,
    #[cfg(feature = "models")]
    Layers,
    #[cfg(feature = "models")]
    Matrices,
}

/// A bar that appears on a terminal when the work has taken a second.
pub(crate) struct Bar {
    started: Instant,
    state: Option<Mutex<State>>,
}

struct State {
    bar: ProgressBar,
    phase: &'static str,
}

impl Bar {
    /// A bar; with `quiet`, or where standard error is no terminal, it never appears.
    pub(crate) fn new(quiet: bool, unit: Unit) -> Self {
        let shown = !quiet && io::stderr().is_terminal();
        let state = shown.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            let amounts = match unit {
                Unit::Bytes => "{bytes} of {total_bytes}  {bytes_per_sec}",
                #[cfg(feature = "models")]
                Unit::Layers => "{pos} of {len} layers",
                #[cfg(feature = "models")]
                Unit::Matrices => "{pos} of {len} matrices",
                Unit::Elements => "{human_pos} of {human_len} elements",
            };
            let template = format!("{{msg:9}} {{bar:32}} {{percent:>3}} %  {amounts}  {{eta}} left");
            let style = ProgressStyle::with_template(&template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            Mutex::new(State { bar, phase: "" })
        });
        Self { started: Instant::now(), state }
    }

    /// Shows that `done` of `total` of `phase` is done.
    pub(crate) fn set(&self, phase: &'static str, done: u64, total: u64) {
        let Some(state) = &self.state else { return };
        // Threads that come while another draws have nothing newer to say.
        let Ok(mut state) = state.try_lock() else { return };
        if state.phase != phase {
            state.bar.reset();
            state.bar.set_message(phase);
            state.phase = phase;
        }
        if state.bar.is_hidden() && self.started.elapsed() > PATIENCE {
            state.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        state.bar.set_length(total);
        state.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(Ok(state)) = self.state.as_ref().map(Mutex::lock) {
            state.bar.finish_and_clear();
        }
    }
}

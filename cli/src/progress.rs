//! Progress bars on standard error, for whatever takes longer than a second.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A bar that appears when the work has taken a second.
pub(crate) struct Bar {
    started: Instant,
    bar: Mutex<(ProgressBar, &'static str)>,
}

impl Bar {
    /// A bar; with `quiet` it never appears.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{msg:9} {bar:32} {percent:>3}%  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let started = if quiet { Instant::now() + Duration::from_secs(1 << 30) } else { Instant::now() };
        Self { started, bar: Mutex::new((bar, "")) }
    }

    /// Shows that `done` of `total` bytes of `phase` are done.
    pub(crate) fn set(&self, phase: &'static str, done: u64, total: u64) {
        let Ok(mut state) = self.bar.try_lock() else { return };
        if state.1 != phase {
            state.0.reset();
            state.0.set_message(phase);
            state.1 = phase;
        }
        if state.0.is_hidden() && Instant::now().saturating_duration_since(self.started) > Duration::from_secs(1) {
            state.0.set_draw_target(ProgressDrawTarget::stderr());
        }
        state.0.set_length(total);
        state.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Ok(state) = self.bar.lock() {
            state.0.finish_and_clear();
        }
    }
}

//! Rounds of two sides in turn.

use anyhow::Result;
use std::time::{Duration, Instant};

/// Shortest round: a shorter piece of work is repeated within it.
const ROUND_SECONDS: f64 = 1e-3;
/// Fewest rounds, unless one takes more than the whole budget.
const MIN_ROUNDS: usize = 3;

/// How long a row is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Time for all rounds of a row.
    pub(crate) budget: Duration,
}

/// Which time is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// Processor time of the process: for work of one thread.
    Cpu,
    /// Time that passes: for work of several threads.
    Wall,
}

/// Seconds of one run, round by round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    /// Of the fastest round.
    pub(crate) fn best(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Of the round in the middle.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// What is measured.
pub(crate) type Work<'w> = &'w mut dyn FnMut() -> Result<()>;

impl Clock {
    /// Measures two sides in turn.
    pub(crate) fn compare(&self, time: Time, ours: Work<'_>, peer: Work<'_>) -> Result<(Rounds, Rounds)> {
        // The first run of each, which is not measured, warms caches and says how often to repeat.
        let repeats = (repeats(ours)?, repeats(peer)?);
        let (mut left, mut right) = (Rounds::default(), Rounds::default());
        let start = Instant::now();
        loop {
            left.0.push(seconds(time, ours, repeats.0)?);
            right.0.push(seconds(time, peer, repeats.1)?);
            let spent = start.elapsed();
            let enough = spent >= self.budget && left.count() >= MIN_ROUNDS;
            if enough || spent >= 4 * self.budget {
                return Ok((left, right));
            }
        }
    }
}

/// How many runs make a round.
fn repeats(work: Work<'_>) -> Result<u32> {
    work()?;
    let once = seconds(Time::Wall, work, 1)?;
    Ok((ROUND_SECONDS / once.max(1e-9)).ceil().clamp(1.0, 1e6) as u32)
}

/// Seconds of one of `repeats` runs.
fn seconds(time: Time, work: Work<'_>, repeats: u32) -> Result<f64> {
    let start = now(time);
    for _ in 0..repeats {
        work()?;
    }
    Ok((now(time) - start) / f64::from(repeats))
}

fn now(time: Time) -> f64 {
    #[cfg(unix)]
    {
        use rustix::time::{ClockId, clock_gettime};
        let clock = match time {
            Time::Cpu => ClockId::ProcessCPUTime,
            Time::Wall => ClockId::Monotonic,
        };
        let at = clock_gettime(clock);
        at.tv_sec as f64 + at.tv_nsec as f64 * 1e-9
    }
    #[cfg(not(unix))]
    {
        use std::sync::OnceLock;
        static START: OnceLock<Instant> = OnceLock::new();
        let _ = time;
        START.get_or_init(Instant::now).elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slower_side_is_found_slower() -> Result<()> {
        let spin = |n: u32| (0..n).map(std::hint::black_box).fold(0u32, u32::wrapping_add);
        let clock = Clock { budget: Duration::from_millis(20) };
        let (fast, slow) = clock.compare(
            Time::Cpu,
            &mut || {
                std::hint::black_box(spin(20_000));
                Ok(())
            },
            &mut || {
                std::hint::black_box(spin(200_000));
                Ok(())
            },
        )?;
        assert!(slow.best() > 3.0 * fast.best(), "{} {}", slow.best(), fast.best());
        Ok(())
    }

    #[test]
    fn median_is_in_the_middle() {
        assert_eq!(Rounds(vec![3.0, 1.0, 2.0]).median(), 2.0);
    }
}

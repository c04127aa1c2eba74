//! A model that talks while its budget moves: `cargo run --release -p cmf-candle --example moving --
//! MODEL.cmf [SECONDS]`.
//!
//! One thread makes tokens, another changes the budget at random, as fast as it can. Prints how long
//! passes waited to begin, how long changes took, and how far the pages of the file in memory ever were
//! from what was said to be held.

use cmf_candle::cut;
use cmf_candle::generate::Generator;
use cmf_candle::llama::Llama;
use cmf_candle::moving::Moving;
use cmf_candle::sample::{Sampler, Sampling};
use cmf_loader::{Budget, Model};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("expected a model")?;
    let seconds = args.next().map_or(Ok(20), |seconds| seconds.parse())?;
    let model = Model::open(&path)?;
    let card = cut::card(&model)?;
    let moving = Moving::new(model.resident(Budget::Minimum)?);
    let weights = card.weights(moving.packed());
    let llama = Llama::load(weights.as_ref(), card.config())?;
    let ids = card.text()?.encode("Once upon a time")?.ids;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Fallible<()> {
        let changes = scope.spawn(|| change(&moving, &done).map_err(|e| e.to_string()));
        let (mut tokens, mut waits) = (0u32, Vec::new());
        let started = Instant::now();
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 })?;
        while started.elapsed() < Duration::from_secs(seconds) {
            let mut generator = Generator::new(&llama);
            let pass = moving.pass();
            generator.read(&ids)?;
            drop(pass);
            for _ in 0..20 {
                let asked = Instant::now();
                let pass = moving.pass();
                waits.push(asked.elapsed().as_secs_f64() * 1e3);
                generator.next(&mut sampler)?;
                drop(pass);
                tokens += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
        println!("{}", changes.join().map_err(|_| "a thread panicked")??);
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| waits.get(((waits.len() - 1) as f64 * share) as usize).copied().unwrap_or(0.0);
        println!(
            "{tokens} passes waited {:.3} ms in the median, {:.3} at 99 %, {:.3} at most",
            at(0.5),
            at(0.99),
            at(1.0)
        );
        Ok(())
    })
}

/// Changes the budget until `done`, and says what came of it.
fn change(moving: &Moving<'_>, done: &AtomicBool) -> Fallible<String> {
    let schedule = moving.resident().schedule();
    let (least, most) = (schedule.minimum_bytes(), schedule.maximum_bytes());
    let (mut state, mut changes, mut bytes, mut off) = (1u64, 0u32, 0u64, 0u64);
    let (mut shrinks, mut grows) = (0.0f64, 0.0f64);
    while !done.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let asked = Instant::now();
        let change = moving.set_budget(Budget::Bytes(least + (state >> 33) % (most - least + 1)))?;
        let took = asked.elapsed().as_secs_f64() * 1e3;
        let longest = if change.released_bytes > change.loaded_bytes { &mut shrinks } else { &mut grows };
        *longest = longest.max(took);
        bytes += change.loaded_bytes + change.released_bytes;
        changes += 1;
        let status = moving.status();
        let held = status.held_bytes - schedule.overhead_bytes();
        off = off.max(mapped(moving.resident().model())?.abs_diff(held));
    }
    Ok(format!(
        "{changes} changes moved {} MB; with the pass that they waited for, shrinks took {shrinks:.1} ms at \
         most, grows {grows:.1}; {off} bytes between memory and what was said",
        bytes / 1_000_000
    ))
}

/// Resident bytes of the maps of the model's file.
fn mapped(model: &Model) -> Fallible<u64> {
    let path = std::fs::canonicalize(model.path())?;
    let (mut ours, mut bytes) = (false, 0);
    for line in std::fs::read_to_string("/proc/self/smaps")?.lines() {
        if let Some(resident) = line.strip_prefix("Rss:").filter(|_| ours) {
            bytes += resident.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c)) {
            ours = path.to_str().is_some_and(|path| line.ends_with(path));
        }
    }
    Ok(bytes)
}

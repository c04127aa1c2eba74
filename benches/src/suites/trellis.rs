//! Paths through a bitshift trellis: the inner loop of conversions to planes.

use crate::clock::Time;
use crate::data;
use crate::row::{Bench, Outcome, Row, Suite};
use anyhow::Result;
use cmf_converters::encode::trellis::{Scratch, Trellis};
use std::hint::black_box;

/// Weights of a path, and paths.
const LENGTH: usize = 1536;
const PATHS: usize = 8;
/// State and step bits; up to 10 state bits the trained table, else the byte sum.
const WIDTHS: [(u32, u32); 9] = [(6, 2), (8, 1), (8, 2), (8, 4), (10, 1), (10, 2), (12, 1), (12, 2), (16, 2)];

pub(crate) fn suite() -> Suite {
    let row = |(state_bits, step_bits): (u32, u32)| {
        Row::new(format!("encode/trellis/{state_bits}-{step_bits}"), [], move |bench| {
            encoder(bench, state_bits, step_bits)
        })
    };
    Suite {
        title: "trellis: closed paths for f32 targets (state bits - step bits), one thread, bytes of input; \
                peer: memcpy of the input",
        rows: WIDTHS.into_iter().map(row).collect(),
    }
}

fn encoder(bench: &Bench<'_>, state_bits: u32, step_bits: u32) -> Result<Outcome> {
    let trellis = match state_bits {
        ..=10 => Trellis::trained(state_bits, step_bits)?,
        _ => Trellis::byte_sum(state_bits, step_bits)?,
    };
    let mut targets = data::weights(1, LENGTH * PATHS);
    let squares: f32 = targets.iter().map(|t| t * t).sum();
    let scale = trellis.best_scale((squares / targets.len() as f32).sqrt());
    targets.iter_mut().for_each(|t| *t /= scale);
    let mut scratch = Scratch::default();
    let (mut codes, mut values) = (vec![0; LENGTH], vec![0.0; LENGTH]);
    let outcome = bench.compare(
        Time::Cpu,
        4 * targets.len() as u64,
        &mut || {
            for targets in targets.chunks_exact(LENGTH) {
                trellis.encode(targets, &mut scratch, &mut codes, &mut values);
                black_box((&codes, &values));
            }
            Ok(())
        },
        ("memcpy", &mut || {
            black_box(black_box(&targets).to_vec());
            Ok(())
        }),
    )?;
    let weight = outcome.seconds() * 1e9 / targets.len() as f64;
    let state = weight * 1e3 / f64::from(1u32 << state_bits);
    Ok(outcome.note(format!("{weight:.1} ns a weight and plane, {state:.1} ps a state of it")))
}

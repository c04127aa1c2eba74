//! Decode of whole tensors of an open model: what users call.

use crate::clock::Time;
use crate::data;
use crate::files::{converted, matrices};
use crate::row::{Bench, Outcome, Row, Suite};
use anyhow::{Context, Result};
use cmf_loader::{Levels, Model};
use std::hint::black_box;

/// Shape of the tensor: 32 MiB of f32, which the format cuts into several blocks of rows.
const ROWS: usize = 2048;
const COLS: usize = 4096;

pub(crate) fn suite() -> Suite {
    let recipes = ["keep", "lossless", "q8", "q4", "q3", "q4-sparse", "q3-lowrank"];
    let row =
        |recipe| Row::new(format!("tensor/{recipe}"), [], move |bench: &Bench<'_>| decode(bench, recipe));
    Suite {
        title: "tensor: a tensor of an open model to f32, sums of terms included, one thread; peer: memcpy of the output",
        rows: recipes.into_iter().map(row).collect(),
    }
}

fn decode(bench: &Bench<'_>, recipe: &str) -> Result<Outcome> {
    let (_folder, path) = converted(matrices(1, ROWS, COLS), recipe)?;
    let model = Model::open(&path)?;
    let tensor = model.tensors().next().context("expected a tensor")?;
    let source = data::weights(1, ROWS * COLS);
    let (mut ours, mut copy) = (vec![1f32; source.len()], vec![1f32; source.len()]);
    let outcome = bench.compare(
        Time::Cpu,
        size_of_val(source.as_slice()) as u64,
        &mut || {
            tensor.decode(Levels::All, &mut ours)?;
            black_box(&mut ours);
            Ok(())
        },
        ("memcpy", &mut || {
            copy.copy_from_slice(black_box(&source));
            black_box(&mut copy);
            Ok(())
        }),
    )?;
    let bits = model.file_bytes() as f64 * 8.0 / source.len() as f64;
    Ok(outcome.note(format!("{bits:.2} bits a weight")))
}

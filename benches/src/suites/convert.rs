//! Conversion of f32 weights, recipe by recipe.

use crate::clock::Time;
use crate::data;
use crate::files::{Model, matrices};
use crate::row::{Bench, Goal, Outcome, Row, Suite};
use anyhow::{Context, Result};
use cmf_converters::convert::{ConvertOptions, convert};
use cmf_converters::encode::{self, Matrix, Method, TermParams};
use cmf_converters::recipe::{BUILTIN_NAMES, Exact, Recipe, Storage};
use cmf_converters::source::{self, TensorInfo};
use cmf_format::DType;
use cmf_format::encoding::{dense, lossless};
use ggml_quants::{Q4_0, Q8_0, Quantize};
use std::hint::black_box;

/// Shape of the matrix that encoders alone are given: 8 MiB.
const ROWS: usize = 512;
const COLS: usize = 4096;
/// The same for recipes with codebooks, of which a matrix takes seconds: 1 MiB.
const FEW_ROWS: usize = 64;

pub(crate) fn encoders() -> Suite {
    let row = |name: &&'static str| {
        let name = *name;
        Row::new(format!("encode/{name}"), goals(name), move |bench| encoder(bench, name))
    };
    Suite {
        title: "encode: f32 weights in memory to nodes, one thread, bytes of input; peer: ggml's scheme in \
                Rust (ggml-quants) where it has one, else memcpy of the input",
        rows: BUILTIN_NAMES.iter().map(row).collect(),
    }
}

pub(crate) fn pipeline() -> Suite {
    let row = |name: &&'static str| {
        let name = *name;
        Row::new(format!("convert/{name}"), goals(name), move |bench| whole(bench, name))
    };
    Suite {
        title: "convert: f32 safetensors file to .cmf file with one job, bytes of input; peer: reading, hashing \
                and writing the same bytes",
        rows: BUILTIN_NAMES.iter().map(row).collect(),
    }
}

/// 4 bits by rounding at 1 GB/s, groups searched for least error at 150 MB/s.
fn goals(name: &str) -> Vec<Goal> {
    let recipe = Recipe::load(name).ok();
    let storage = recipe.as_ref().map(|recipe| recipe.storage_of(&tensor(ROWS)));
    match storage {
        Some(Storage::Terms(rule)) => match rule.terms.as_slice() {
            [TermParams::Grouped(own)] if own.method == Method::Rtn && own.bits == 4 => {
                vec![Goal::BytesPerSecond(1e9)]
            }
            [TermParams::Grouped(own)] if own.method == Method::Mse => vec![Goal::BytesPerSecond(150e6)],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn recipe(name: &str) -> Result<Recipe> {
    Ok(Recipe::load(name)?)
}

/// A tensor of which the recipes have something to say.
fn tensor(rows: usize) -> TensorInfo {
    let shape = vec![rows as u64, COLS as u64];
    TensorInfo { name: "model.layers.0.mlp.up_proj.weight".into(), dtype: DType::F32, shape }
}

fn is_slow(recipe: &Recipe) -> bool {
    let Storage::Terms(rule) = recipe.storage_of(&tensor(ROWS)) else { return false };
    rule.terms.iter().any(|term| matches!(term, TermParams::Codebook(_) | TermParams::SignLowRank(_)))
}

fn encoder(bench: &Bench<'_>, name: &str) -> Result<Outcome> {
    let recipe = recipe(name)?;
    let rows = if is_slow(&recipe) { FEW_ROWS } else { ROWS };
    let tensor = tensor(rows);
    let weights = data::weights(1, rows * COLS);
    let bytes: &[u8] = bytemuck::cast_slice(&weights);
    let (down, across) = (rows as u64, COLS as u64);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let mut stored = 0;
    let mut ours = || -> Result<()> {
        let nodes = pool.install(|| -> Result<_> {
            Ok(match recipe.storage_of(&tensor) {
                Storage::Exact(Exact::Keep) => vec![dense::pack(DType::F32, down, across, bytes.to_vec())?],
                Storage::Exact(Exact::Lossless) => vec![lossless::pack(DType::F32, down, across, bytes)?],
                Storage::Terms(rule) => encode::terms(&Matrix::new(&weights, rows, COLS)?, &rule.terms)?,
            })
        })?;
        stored = nodes.iter().map(|node| node.stored_bytes()).sum();
        black_box(nodes);
        Ok(())
    };
    let outcome = match name {
        "q4-rtn" => {
            let peer = &mut || quantise::<Q4_0>(&weights);
            bench.compare(Time::Cpu, bytes.len() as u64, &mut ours, ("ggml q4_0", peer))?
        }
        "q8" => {
            let peer = &mut || quantise::<Q8_0>(&weights);
            bench.compare(Time::Cpu, bytes.len() as u64, &mut ours, ("ggml q8_0", peer))?
        }
        _ => {
            let peer = &mut || {
                black_box(black_box(bytes).to_vec());
                Ok(())
            };
            bench.compare(Time::Cpu, bytes.len() as u64, &mut ours, ("memcpy", peer))?
        }
    };
    Ok(outcome.note(note(&recipe, stored, weights.len())))
}

/// Blocks of 32 as ggml cuts them.
fn quantise<Q: Quantize<f32, 32>>(weights: &[f32]) -> Result<()> {
    let blocks: Vec<Q> = weights.as_chunks::<32>().0.iter().map(Q::quantize).collect();
    black_box(blocks);
    Ok(())
}

fn whole(bench: &Bench<'_>, name: &str) -> Result<Outcome> {
    let recipe = recipe(name)?;
    let plan = if is_slow(&recipe) { matrices(1, FEW_ROWS, COLS) } else { matrices(8, ROWS, COLS) };
    let weights: usize = plan.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let folder = tempfile::tempdir()?;
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.cmf"));
    std::fs::write(&input, Model::weights(plan).safetensors()?)?;
    let source = source::open(&input)?;
    let options = ConvertOptions { jobs: 1, force: true, ..ConvertOptions::new(recipe.clone()) };
    let mut stored = 0;
    let copy = folder.path().join("copy");
    let outcome = bench.compare(
        Time::Cpu,
        4 * weights as u64,
        &mut || {
            stored = convert(source.as_ref(), &output, &options, &|_| {})?.file_bytes;
            Ok(())
        },
        ("copy+blake3", &mut || {
            let bytes = std::fs::read(&input)?;
            black_box(blake3::hash(&bytes));
            std::fs::write(&copy, &bytes).context("copy")
        }),
    )?;
    Ok(outcome.note(note(&recipe, stored, weights)))
}

fn note(recipe: &Recipe, stored: u64, weights: usize) -> String {
    let searched = match recipe.storage_of(&tensor(ROWS)) {
        Storage::Exact(_) => "",
        Storage::Terms(rule) => match rule.terms.first() {
            Some(TermParams::Grouped(own)) => match own.method {
                Method::Rtn => ", rtn",
                Method::Mse => ", mse",
                Method::Hqq => ", hqq",
            },
            _ => "",
        },
    };
    format!("{:.2} bits a weight{searched}", stored as f64 * 8.0 / weights as f64)
}

//! `cmf bench`

#[cfg(feature = "gpu")]
mod gpu;

use crate::device::{Device, Gpu};
use crate::{Answer, print, text};
use anyhow::Context;
#[cfg(feature = "gpu")]
use anyhow::bail;
use cmf_format::archive::{Matrix, MatrixView};
use cmf_kernels_cpu::{Activations, Isa, Linear, Precision, Scratch};
use cmf_loader::{FileSource, Model};
use rayon::prelude::*;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf bench model.cmf
  cmf bench model.cmf --batch 1,32 --threads 1,2 --activations exact --json
  cmf bench model.cmf --batch 1,32 --device gpu
Matrices of one shape and the same encodings take turns, so that a model larger than the caches is
read from memory. Each round also reads the same packed bytes without decoding them, and the share
says how close to that multiplying comes: 1.00 is the speed of memory. On a GPU the speed of memory is
that of a copy on the device.")]
pub(crate) struct Args {
    /// The .cmf whose matrices are multiplied with
    file: PathBuf,
    /// Only matrices of tensors whose name holds this text
    #[arg(long, value_name = "TEXT")]
    tensors: Option<String>,
    /// Vectors that are multiplied at a time
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: Vec<u16>,
    /// What multiplies
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Threads [default: 1 and all]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// How activations are multiplied [default: fast; exact on a GPU]
    #[arg(long, value_name = "P", value_enum)]
    activations: Option<super::Activations>,
    /// Time for each row, in milliseconds
    #[arg(long, default_value_t = 300)]
    millis: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    /// Of the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    isa: Option<String>,
    /// Of the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<String>,
    activations: super::Activations,
    results: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    encoding: String,
    shape: [usize; 2],
    matrices: usize,
    bits_per_weight: f64,
    batch: usize,
    /// Of the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    device: Device,
    weights_per_second: f64,
    packed_bytes_per_second: f64,
    read_bytes_per_second: f64,
    share_of_read: f64,
}

/// A matrix and its packed bytes.
struct Opened<'m> {
    linear: Linear<'m>,
    segments: Vec<Cow<'m, [u8]>>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let gpu = args.device.gpu()?;
    let model = Model::open(&args.file)?;
    let kinds = kinds(&model, args.tensors.as_deref().unwrap_or(""))?;
    let report = match &gpu {
        Some(gpu) => on_gpu(args, gpu, kinds)?,
        None => on_cpu(args, kinds)?,
    };
    print(&if args.json { text::json(&report)? } else { table(&report) })?;
    Ok(Answer::Yes)
}

fn on_cpu(args: &Args, kinds: Kinds<'_>) -> anyhow::Result<Report> {
    let isa = Isa::detect();
    let mut threads = match args.threads.as_slice() {
        [] => vec![1, rayon::current_num_threads()],
        some => some.iter().map(|n| usize::from(*n)).collect(),
    };
    threads.dedup();
    let activations = args.activations.unwrap_or(super::Activations::Fast);
    let mut results = Vec::new();
    for (kind, matrices) in kinds {
        let opened = matrices.iter().map(|matrix| open(matrix, isa)).collect::<anyhow::Result<Vec<_>>>()?;
        for threads in &threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(*threads).build()?;
            for batch in args.batch.iter().map(|batch| usize::from(*batch)) {
                let time = Duration::from_millis(args.millis);
                let rates = pool.install(|| measure(&opened, batch, *threads, activations.into(), time))?;
                results.push(row(&kind, opened.len(), batch, Some(*threads), &rates));
            }
        }
    }
    Ok(Report { isa: Some(format!("{isa:?}")), adapter: None, activations, results })
}

#[cfg(feature = "gpu")]
fn on_gpu(args: &Args, gpu: &Gpu, kinds: Kinds<'_>) -> anyhow::Result<Report> {
    let activations = args.activations.unwrap_or(super::Activations::Exact);
    if !args.threads.is_empty() || activations != super::Activations::Exact {
        bail!("--device gpu: no --threads, and only --activations exact")
    }
    let mut results = Vec::new();
    for (kind, matrices) in kinds {
        let uploaded = gpu::Uploaded::new(gpu, &matrices).with_context(|| kind.0.clone())?;
        for batch in args.batch.iter().map(|batch| usize::from(*batch)) {
            let rates = uploaded.measure(batch, Duration::from_millis(args.millis))?;
            results.push(row(&kind, uploaded.len(), batch, None, &rates));
        }
    }
    Ok(Report { isa: None, adapter: Some(gpu::adapter(gpu)), activations, results })
}

#[cfg(not(feature = "gpu"))]
fn on_gpu(_: &Args, gpu: &Gpu, _: Kinds<'_>) -> anyhow::Result<Report> {
    match *gpu {}
}

fn row(kind: &Kind, matrices: usize, batch: usize, threads: Option<usize>, rates: &Rates) -> Row {
    let (encoding, rows, cols) = kind;
    let weights = (rows * cols) as f64;
    Row {
        encoding: encoding.clone(),
        shape: [*rows, *cols],
        matrices,
        bits_per_weight: rates.bytes * 8.0 / weights,
        batch,
        threads,
        device: if threads.is_some() { Device::Cpu } else { Device::Gpu },
        weights_per_second: weights / rates.multiply,
        packed_bytes_per_second: rates.bytes / rates.multiply,
        read_bytes_per_second: rates.bytes / rates.read,
        share_of_read: rates.read / rates.multiply,
    }
}

fn table(report: &Report) -> String {
    let rows: Vec<_> = report
        .results
        .iter()
        .map(|row| {
            vec![
                row.encoding.clone(),
                format!("{}x{}", row.shape[0], row.shape[1]),
                row.matrices.to_string(),
                format!("{:.2}", row.bits_per_weight),
                row.batch.to_string(),
                row.threads.map_or_else(String::new, |threads| threads.to_string()),
                format!("{:.2}", row.weights_per_second / 1e9),
                format!("{:.2}", row.packed_bytes_per_second / 1e9),
                format!("{:.2}", row.read_bytes_per_second / 1e9),
                format!("{:.2}", row.share_of_read),
            ]
        })
        .collect();
    let head = [
        "encoding",
        ">shape",
        ">matrices",
        ">bits/weight",
        ">batch",
        ">threads",
        ">Gweights/s",
        ">packed GB/s",
        ">read GB/s",
        ">share",
    ];
    text::table(&head, &rows)
}

type Kind = (String, usize, usize);

type Kinds<'m> = BTreeMap<Kind, Vec<Matrix<'m, FileSource>>>;

/// The matrices of a model by encodings and shape. Vectors are left out.
fn kinds<'m>(model: &'m Model, part_of_name: &str) -> anyhow::Result<Kinds<'m>> {
    let mut kinds = BTreeMap::<Kind, Vec<_>>::new();
    for tensor in model.tensors().filter(|tensor| tensor.name().contains(part_of_name)) {
        if tensor.is_delta() {
            continue;
        }
        for matrix in tensor.stored()?.matrices() {
            let (rows, cols) = (usize::try_from(matrix.rows())?, usize::try_from(matrix.cols())?);
            if rows < 2 || cols < 2 {
                continue;
            }
            // Neighbouring terms of one encoding are blocks of rows, or levels.
            let mut names: Vec<Cow<'static, str>> = Vec::new();
            for node in matrix.units().flat_map(|unit| unit.terms()).filter_map(|term| term.node()) {
                let name = node.encoding_name();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            kinds.entry((names.join(" + "), rows, cols)).or_default().push(matrix);
        }
    }
    Ok(kinds)
}

fn open<'m>(matrix: &Matrix<'m, FileSource>, isa: Isa) -> anyhow::Result<Opened<'m>> {
    let linear = Linear::new(MatrixView::open(matrix, u16::MAX)?, isa)?;
    let terms = matrix.units().flat_map(|unit| unit.terms());
    let mut indices: Vec<u32> =
        terms.filter_map(|term| term.node()).flat_map(|node| node.all_segments()).collect();
    indices.sort_unstable();
    indices.dedup();
    let archive = matrix.archive();
    let segments = indices.into_iter().filter_map(|index| archive.segment(index));
    let segments = segments.map(|segment| segment.stored()).collect::<Result<Vec<_>, _>>()?;
    Ok(Opened { linear, segments })
}

/// Seconds of a matrix, in the best round, and its packed bytes.
struct Rates {
    multiply: f64,
    read: f64,
    bytes: f64,
}

fn measure(
    matrices: &[Opened<'_>],
    batch: usize,
    threads: usize,
    precision: Precision,
    time: Duration,
) -> anyhow::Result<Rates> {
    let first = &matrices.first().context("no matrix")?.linear;
    let (rows, cols) = (first.rows(), first.cols());
    // Pages are mapped and buffers grow in the first round, which does not count.
    let mut best = [f64::INFINITY; 2];
    let x: Vec<f32> = (0..batch * cols).map(|i| (i * 37 % 251) as f32 / 125.0 - 1.0).collect();
    let mut y = vec![0.0; batch * rows];
    let (mut activations, mut scratch) = (Activations::new(), Scratch::new());
    let parts: Vec<&[u8]> =
        matrices.iter().flat_map(|m| &m.segments).flat_map(|segment| segment.chunks(1 << 18)).collect();
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    // What every thread reads, in one piece.
    let mut shares = vec![Vec::new(); threads];
    let mut so_far = 0;
    for part in parts {
        if let Some(share) = shares.get_mut(so_far * threads / bytes.max(1)) {
            share.push(part);
        }
        so_far += part.len();
    }
    let started = Instant::now();
    let mut round = 0;
    while round < 3 || started.elapsed() < time {
        let begun = Instant::now();
        for matrix in matrices {
            let transforms = matrix.linear.view().input_transforms();
            activations.load(&x, cols, transforms, precision, matrix.linear.isa())?;
            matrix.linear.multiply(&activations, &mut y, &mut scratch)?;
        }
        black_box(&y);
        let multiplied = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        shares.par_iter().for_each(|share| {
            black_box(share.iter().fold(0, |sum, part| sum ^ fold(part)));
        });
        let read = begun.elapsed().as_secs_f64();
        if round > 0 {
            best = [best[0].min(multiplied), best[1].min(read)];
        }
        round += 1;
    }
    let count = matrices.len() as f64;
    Ok(Rates { multiply: best[0] / count, read: best[1] / count, bytes: bytes as f64 / count })
}

/// All bytes, as cheaply as they can be read.
fn fold(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 32];
    for bytes in bytes.as_chunks::<256>().0 {
        for (sum, word) in sums.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *sum ^= u64::from_le_bytes(*word);
        }
    }
    sums.into_iter().fold(0, |a, b| a ^ b)
}

//! Products with packed matrices beside ggml's and candle's and a plain read of the same bytes, in one
//! process.
//!
//! ```text
//! cargo run --release -p cmf-benches --features ggml --bin cmf-multiply -- FOLDER [OPTIONS]
//! ```
//!
//! FOLDER has `libggml-base.so` and `libggml-cpu.so`. All sides of a row take turns. Speeds are of each side's fastest
//! round; shares of the read and of ggml are the middle ones of all rounds, in each of which the sides come right after
//! each other, as other programs slow all of them alike for a while. Ours includes loading activations, as the peers'
//! do. Our threads are awake during a turn, as they are during a pass through a model, and as the peers' are for a
//! while after each product.

#[path = "../../kernels-cpu/tests/common/mod.rs"]
mod common;
#[expect(unsafe_code, reason = "calls of a C library")]
mod ggml;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use clap::Parser;
use cmf_format::NodeData;
use cmf_format::archive::MatrixView;
use cmf_format::encoding::View;
use cmf_kernels_cpu::{Activations, Isa, Linear, Precision, Scratch, awake};
use cmf_loader::{Backend, Budget, Model, OpenOptions};
use common::{Grouped, Numbers, Parts, Result, Trellis};
use ggml::{Ggml, Product, Type};
use rayon::prelude::*;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    /// Folder of ggml's libraries
    folder: PathBuf,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long, value_delimiter = ',', default_value = "1,32,128")]
    batch: Vec<usize>,
    /// Rows x columns
    #[arg(long, value_delimiter = ',', default_value = "2048x2048,4096x4096,4096x11008")]
    shape: Vec<String>,
    /// Where ggml's weights lie
    #[arg(long, value_delimiter = ',', default_value = "CPU,CPU_REPACK")]
    places: Vec<String>,
    /// Our weights in memory of the process, in pages of 2 MiB where the system has them, not in the
    /// mapped file
    #[arg(long)]
    owned: bool,
    /// As many matrices of a shape as take so many megabytes, each read once before any is read again, as in a
    /// model: with 200 they come from memory, and not from a cache
    #[arg(long, default_value_t = 0)]
    megabytes: usize,
    /// Rows whose name holds this
    #[arg(long, default_value = "")]
    only: String,
    /// Time for a row, in milliseconds
    #[arg(long, default_value_t = 400)]
    millis: u64,
}

/// Ours, by what peer, in which of candle's types.
struct Case {
    name: &'static str,
    make: fn(usize, usize, &mut Numbers) -> Result<Vec<NodeData>>,
    peer: (&'static str, Type, GgmlDType),
}

const Q4: (&str, Type, GgmlDType) = ("q4_0", Type::Q4_0, GgmlDType::Q4_0);
const Q8: (&str, Type, GgmlDType) = ("q8_0", Type::Q8_0, GgmlDType::Q8_0);

const CASES: &[Case] = &[
    Case { name: "grouped 4 bits, groups of 32", make: |r, c, n| grouped(4, 32, r, c, n), peer: Q4 },
    Case { name: "grouped 4 bits, groups of 64", make: |r, c, n| grouped(4, 64, r, c, n), peer: Q4 },
    Case { name: "grouped 8 bits, groups of 32", make: |r, c, n| grouped(8, 32, r, c, n), peer: Q8 },
    Case { name: "grouped 8 bits, groups of 64", make: |r, c, n| grouped(8, 64, r, c, n), peer: Q8 },
    Case { name: "trellis 2 bits, windows of 6", make: |r, c, n| trellis(6, false, 1, r, c, n), peer: Q4 },
    Case { name: "trellis 2 bits, windows of 8", make: |r, c, n| trellis(8, false, 1, r, c, n), peer: Q4 },
    Case { name: "trellis 2 bits, windows of 10", make: |r, c, n| trellis(10, false, 1, r, c, n), peer: Q4 },
    Case { name: "trellis 2 bits, hashed of 12", make: |r, c, n| trellis(12, true, 1, r, c, n), peer: Q4 },
    Case {
        name: "trellis 2 + 2 bits, windows of 6",
        make: |r, c, n| trellis(6, false, 2, r, c, n),
        peer: Q4,
    },
    Case {
        name: "trellis 2 + 2 bits, windows of 8",
        make: |r, c, n| trellis(8, false, 2, r, c, n),
        peer: Q4,
    },
    Case {
        name: "trellis 2 + 2 bits, hashed of 12",
        make: |r, c, n| trellis(12, true, 2, r, c, n),
        peer: Q4,
    },
];

fn grouped(bits: u8, group: u32, rows: usize, cols: usize, n: &mut Numbers) -> Result<Vec<NodeData>> {
    Ok(vec![Grouped::symmetric(bits, group).node(rows, cols, n)?])
}

fn trellis(
    state_bits: u8,
    hashed: bool,
    planes: usize,
    rows: usize,
    cols: usize,
    n: &mut Numbers,
) -> Result<Vec<NodeData>> {
    let plane = Trellis { state_bits, hashed, scale_rows: 32, ..Trellis::PLAIN };
    (0..planes).map(|_| plane.node(rows, cols, n)).collect()
}

fn main() -> Result {
    let args = Args::parse();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    // What ggml gives stays on one thread.
    Ok(pool.install(|| print(&args).map_err(|e| e.to_string()))?)
}

fn print(args: &Args) -> Result {
    let ggml = Ggml::load(&args.folder)?;
    ggml.threads(args.threads);
    println!(
        "{:?}, threads {}, {} megabytes of weights or one matrix in {}, ggml in {}",
        Isa::detect(),
        args.threads,
        args.megabytes,
        if args.owned { "memory of the process" } else { "the mapped file" },
        ggml.places().collect::<Vec<_>>().join(", ")
    );
    println!(
        "{:34} {:>11} {:>5} {:>9} {:>9} | {:>8} {:>8} {:>8} | GFLOP/s ours, ggml by place, candle",
        "", "shape", "batch", "Gw/s", "packed GB/s", "of read", "of ggml", "candle"
    );
    for shape in &args.shape {
        let (rows, cols) = shape.split_once('x').ok_or("a shape is ROWSxCOLS")?;
        let (rows, cols) = (rows.parse()?, cols.parse()?);
        for case in CASES.iter().filter(|case| case.name.contains(&args.only)) {
            for batch in &args.batch {
                measure(case, &ggml, rows, cols, *batch, args)?;
            }
        }
    }
    Ok(())
}

/// What is measured, with the seconds of its rounds: of some runs, after others for as long as it is told.
struct Side<'s> {
    turn: Box<dyn FnMut(Duration) -> Result<f64> + 's>,
    /// Whether its threads look for more work at full speed for a while, at the cost of who comes next.
    lingers: bool,
    rounds: Vec<f64>,
}

impl Side<'_> {
    fn best(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// How many times as long as `ours` the fastest of `others` takes, in the middle one of all rounds.
fn times<'s>(others: impl Iterator<Item = &'s Side<'s>> + Clone, ours: &Side<'_>) -> f64 {
    let rounds = ours.rounds.iter().enumerate();
    let mut ratios: Vec<f64> = rounds
        .map(|(i, ours)| {
            others.clone().filter_map(|other| other.rounds.get(i)).copied().fold(f64::INFINITY, f64::min)
                / ours
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How long ggml's threads do.
const LINGER: Duration = Duration::from_millis(150);

/// Runs without pause for `warm_up`, at least once, then twice more: the seconds of the faster one. The first
/// runs warm what is near the cores.
fn turn(warm_up: Duration, mut run: impl FnMut() -> Result) -> Result<f64> {
    let begun = Instant::now();
    run()?;
    while begun.elapsed() < warm_up {
        run()?;
    }
    let mut best = f64::INFINITY;
    for _ in 0..2 {
        let begun = Instant::now();
        run()?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn other<'s>(mut run: impl FnMut() -> Result + 's) -> Side<'s> {
    Side { turn: Box::new(move |warm_up| turn(warm_up, &mut run)), lingers: true, rounds: Vec::new() }
}

/// By our threads, which stay awake.
fn own<'s>(mut run: impl FnMut() -> Result + Send + 's) -> Side<'s> {
    let turn = move |warm_up| Ok(awake(|| turn(warm_up, &mut run).map_err(|e| e.to_string()))?);
    Side { turn: Box::new(turn), lingers: false, rounds: Vec::new() }
}

/// The stored bytes of a node and those below it.
fn pieces<'v>(view: &'v View<'_>, out: &mut Vec<&'v [u8]>) {
    let below = match view {
        View::Dense(view) => {
            out.push(view.bytes());
            [None; 3]
        }
        View::Grouped(view) => {
            out.push(view.codes());
            [view.scale(), view.zero(), view.table()]
        }
        View::Trellis(view) => {
            out.push(view.paths());
            [Some(view.scale()), view.table(), None]
        }
        _ => [None; 3],
    };
    below.into_iter().flatten().for_each(|view| pieces(view, out));
}

fn measure(case: &Case, ggml: &Ggml, rows: usize, cols: usize, batch: usize, args: &Args) -> Result {
    let mut numbers = Numbers(1);
    let nodes = (case.make)(rows, cols, &mut numbers)?;
    let packed = nodes.iter().map(NodeData::stored_bytes).sum::<u64>() as usize;
    let terms = nodes.into_iter().map(|node| (0, 0, node)).collect();
    let bytes = Parts { terms, ..Parts::default() }.archive(rows, cols)?;
    let folder = tempfile::tempdir()?;
    let copies = (args.megabytes * 1_000_000).div_ceil(packed).max(1);
    let models = (0..copies).map(|copy| {
        let path = folder.path().join(format!("{copy}.cmf"));
        std::fs::write(&path, &bytes)?;
        let backend = if args.owned { Backend::Pread } else { Backend::Mmap };
        Ok(Model::open_with(&path, &OpenOptions { backend, ..OpenOptions::default() })?)
    });
    let models: Vec<Model> = models.collect::<Result<_>>()?;
    let held = models.iter().map(|model| model.resident(Budget::Maximum));
    let _held: Vec<_> = held.collect::<Result<_, _>>()?;
    let linears = models.iter().map(|model| {
        let matrix = model.archive().tensor("w").and_then(|w| w.matrices().next()).ok_or("no matrix")?;
        Ok(Linear::new(MatrixView::open(&matrix, u16::MAX)?, Isa::detect())?)
    });
    let linears: Vec<Linear<'_>> = linears.collect::<Result<_>>()?;
    let x = numbers.values(batch * cols, 1.0);
    let lines = linears.iter().map(|linear| {
        let mut stored = Vec::new();
        linear.view().terms().for_each(|(_, _, view)| pieces(view, &mut stored));
        match stored.iter().map(|piece| piece.len()).sum::<usize>() == packed {
            true => Ok(stored.iter().flat_map(|piece| piece.chunks(1 << 12)).collect()),
            false => Err("some stored bytes are not read".into()),
        }
    });
    let lines: Vec<Vec<&[u8]>> = lines.collect::<Result<_>>()?;

    let weights = numbers.values(rows * cols, 0.1);
    let (peer, kind, candle_type) = case.peer;
    // ggml is not asked whether a place takes a type, and crashes where it does not.
    let places = args.places.iter().filter(|place| !(peer == "q8_0" && *place == "CPU_REPACK"));
    let products = places.map(|place| {
        let products = (0..copies).map(|_| ggml.product(kind, place, &weights, &x, cols));
        let products = products.collect::<Result<Option<Vec<_>>>>()?;
        Ok(products.map(|products| (place.clone(), products)))
    });
    let products: Vec<_> = products.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let tensor = Tensor::from_vec(weights, (rows, cols), &Device::Cpu)?;
    let candle = (0..copies).map(|_| QMatMul::from_qtensor(QTensor::quantize(&tensor, candle_type)?));
    let candle: Vec<QMatMul> = candle.collect::<Result<_, _>>()?;
    drop(tensor);
    let candle_x = Tensor::from_slice(&x, (batch, cols), &Device::Cpu)?;
    agree(&products, &candle[0].forward(&candle_x)?.flatten_all()?.to_vec1()?)?;

    let (mut activations, mut scratch, mut y) = (Activations::new(), Scratch::new(), vec![0.0; batch * rows]);
    let mut sides = vec![
        own(|| {
            linears.iter().try_for_each(|linear| {
                let transforms = linear.view().input_transforms();
                activations.load(&x, cols, transforms, Precision::Fast, linear.isa())?;
                Ok(linear.multiply(&activations, black_box(&mut y), &mut scratch)?)
            })
        }),
        own(|| {
            for lines in &lines {
                let part = lines.len().div_ceil(rayon::current_num_threads()).max(1);
                let parts =
                    lines.par_chunks(part).map(|lines| lines.iter().fold(0, |sum, line| sum ^ fold(line)));
                black_box(parts.reduce(|| 0, |a, b| a ^ b));
            }
            Ok(())
        }),
    ];
    sides.extend(products.iter().map(|(_, products)| other(|| products.iter().try_for_each(Product::run))));
    rounds(&mut sides, args)?;
    // candle's threads linger for longer: it has rounds of its own.
    let mut alone = [other(|| {
        candle.iter().try_for_each(|candle| {
            black_box(candle.forward(&candle_x)?);
            Ok(())
        })
    })];
    rounds(&mut alone, args)?;
    let candle = alone[0].best();
    let (weights, packed) = (rows * cols * copies, packed * copies);
    let [own, read, peers @ ..] = &sides[..] else { return Ok(()) };
    let (of_read, of_peers) = (times([read].into_iter(), own), times(peers.iter(), own));
    let ours = own.best();
    let flops = |seconds: f64| format!("{:.0}", 2.0 * (weights * batch) as f64 / seconds / 1e9);
    let by_place: Vec<_> = products
        .iter()
        .zip(peers)
        .map(|((place, _), s)| format!("{peer} {place} {}", flops(s.best())))
        .collect();
    println!(
        "{:34} {:>11} {batch:>5} {:>9.2} {:>11.2} | {:>8.2} {:>8.2} {:>8.2} | {}, {}, {}",
        case.name,
        format!("{rows}x{cols}"),
        weights as f64 / ours / 1e9,
        packed as f64 / ours / 1e9,
        of_read,
        of_peers,
        candle / ours,
        flops(ours),
        by_place.join(", "),
        flops(candle),
    );
    Ok(())
}

/// Lets sides take turns.
fn rounds(sides: &mut [Side<'_>], args: &Args) -> Result {
    let end = Instant::now() + Duration::from_millis(args.millis);
    let warm_up = if args.threads > 1 { Duration::from_millis(25) } else { Duration::ZERO };
    let mut rounds = 0;
    while rounds < 3 || Instant::now() < end {
        for side in &mut *sides {
            let seconds = (side.turn)(warm_up)?;
            side.rounds.push(seconds);
            if side.lingers && args.threads > 1 {
                std::thread::sleep(LINGER);
            }
        }
        rounds += 1;
    }
    Ok(())
}

/// The peers' products of the same weights are the same but for their roundings.
fn agree(products: &[(String, Vec<Product<'_>>)], candle: &[f32]) -> Result {
    let size = candle.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    for (place, product) in products.iter().flat_map(|(place, all)| all.iter().map(move |one| (place, one))) {
        product.run()?;
        let values = product.values()?;
        let error: f64 = values.iter().zip(candle).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        if values.len() != candle.len() || error > size * 1e-3 {
            return Err(format!("ggml in {place} differs from candle: {:e} of {size:e}", error).into());
        }
    }
    Ok(())
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

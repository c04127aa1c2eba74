//! How fast products with packed weights are, beside a plain read of the same bytes in the same rounds.
//!
//! `cargo run --release -p cmf-kernels-cpu --example product_speed -- [THREADS] [NAMES THAT HOLD] [INSTRUCTION SET]
//! [ROWSxCOLS]`

use cmf_format::encoding::grouped::{CodeMap, ZeroOp};
use cmf_format::encoding::nested::Rounding;
use cmf_format::{DType, NodeData};
use cmf_kernels_cpu::{Activations, Isa, Linear, Precision, Scratch};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

#[path = "../tests/common/mod.rs"]
mod common;
use cmf_format::encoding::sparse::Block;
use common::{
    Grouped, Listing, Numbers, Parts, Result, Sparse, Trellis, levels, packed, parse, plain, planes, signs,
    tables, vectors, vectors_of, view,
};

/// Rows and columns.
type Shape = (usize, usize);

type Make = fn(Shape, &mut Numbers) -> Result<Vec<NodeData>>;

fn trellis((rows, cols): Shape, state_bits: u8, step_bits: u8, numbers: &mut Numbers) -> Result<NodeData> {
    let own = Trellis { state_bits, step_bits, scale_rows: 32, odd: true, ..Trellis::PLAIN };
    own.node(rows, cols, numbers)
}

fn hashed((rows, cols): Shape, state_bits: u8, numbers: &mut Numbers) -> Result<NodeData> {
    let own = Trellis { state_bits, scale_rows: 32, hashed: true, ..Trellis::PLAIN };
    own.node(rows, cols, numbers)
}

fn grouped((rows, cols): Shape, bits: u8, group_cols: u32, numbers: &mut Numbers) -> Result<Vec<NodeData>> {
    Ok(vec![Grouped::symmetric(bits, group_cols).node(rows, cols, numbers)?])
}

/// Codes as recipe `q4` makes them.
fn four_bits(numbers: &mut Numbers, (rows, cols): Shape) -> Result<NodeData> {
    let map = CodeMap::Integer { offset: 0 };
    Grouped { zero: ZeroOp::Add, twice: true, map, ..Grouped::symmetric(4, 32) }.node(rows, cols, numbers)
}

/// One listed value of `one_in`.
fn listed((rows, cols): Shape, listing: Listing, one_in: usize, numbers: &mut Numbers) -> Result<NodeData> {
    Sparse { listing, one_in, ..Sparse::PLAIN }.node(rows, cols, numbers)
}

const CSR: Listing = Listing::Csr(Block::ONE);
const BITMAP: Listing = Listing::Bitmap(Block::ONE);

const CASES: &[(&str, Make)] = &[
    ("grouped 2 bits, groups of 32", |s, n| grouped(s, 2, 32, n)),
    ("grouped 3 bits, groups of 32", |s, n| grouped(s, 3, 32, n)),
    ("grouped 4 bits, groups of 32", |s, n| grouped(s, 4, 32, n)),
    ("grouped 4 bits, groups of 64", |s, n| grouped(s, 4, 64, n)),
    ("grouped 4 bits, zero points, both twice", |s, n| Ok(vec![four_bits(n, s)?])),
    ("grouped 5 bits, groups of 32", |s, n| grouped(s, 5, 32, n)),
    ("grouped 6 bits, groups of 32", |s, n| grouped(s, 6, 32, n)),
    ("grouped 8 bits, groups of 64", |s, n| grouped(s, 8, 64, n)),
    ("trellis 2 bits, windows of 6", |s, n| Ok(vec![trellis(s, 6, 2, n)?])),
    ("trellis 2 bits, windows of 7", |s, n| Ok(vec![trellis(s, 7, 2, n)?])),
    ("trellis 2 bits, windows of 8", |s, n| Ok(vec![trellis(s, 8, 2, n)?])),
    ("trellis 2 bits, windows of 10", |s, n| Ok(vec![trellis(s, 10, 2, n)?])),
    ("trellis 2 bits, hashed windows of 10", |s, n| Ok(vec![hashed(s, 10, n)?])),
    ("trellis 2 bits, hashed windows of 12", |s, n| Ok(vec![hashed(s, 12, n)?])),
    ("trellis 1 bit, windows of 8", |s, n| Ok(vec![trellis(s, 8, 1, n)?])),
    ("trellis 2 + 2 bits, windows of 6", |s, n| Ok(vec![trellis(s, 6, 2, n)?, trellis(s, 6, 2, n)?])),
    ("trellis 2 + 2 bits, windows of 8", |s, n| Ok(vec![trellis(s, 8, 2, n)?, trellis(s, 8, 2, n)?])),
    ("trellis 2 + 2 bits, windows of 10", |s, n| Ok(vec![trellis(s, 10, 2, n)?, trellis(s, 10, 2, n)?])),
    ("trellis 2 + 2 bits, hashed windows of 12", |s, n| Ok(vec![hashed(s, 12, n)?, hashed(s, 12, n)?])),
    ("nested 4 bits, tables", |s, _| Ok(vec![planes(s.0, s.1, 4)?])),
    ("nested 4 bits, groups of 64", |s, _| levels(s.0, s.1, &[4], Rounding::Floor, 64)),
    ("nested 3 and 4 bits, groups of 64", |s, _| levels(s.0, s.1, &[3, 4], Rounding::Floor, 64)),
    ("nested 3 to 8 bits, tables", |s, _| tables(s.0, s.1, &[3, 4, 5, 6, 7, 8], Rounding::Floor)),
    ("codebook, 2 of 64 vectors of 8", |s, _| Ok(vec![vectors(s.0, s.1, 8, 2, 0)?])),
    ("codebook, 256 vectors of 4", |s, _| Ok(vec![vectors_of(8, s.0, s.1, 4, 1, 0)?])),
    ("codebook, 2 of 256 vectors of 8", |s, _| Ok(vec![vectors_of(8, s.0, s.1, 8, 2, 0)?])),
    ("codebook, 512 vectors of 3", |s, _| Ok(vec![vectors_of(9, s.0, s.1, 3, 1, 0)?])),
    ("sparse 1 %", |s, n| Ok(vec![listed(s, CSR, 100, n)?])),
    ("sparse 10 %, bitmap", |s, n| Ok(vec![listed(s, BITMAP, 10, n)?])),
    ("sparse 50 %, bitmap", |s, n| Ok(vec![listed(s, BITMAP, 2, n)?])),
    ("sparse 2 of 4", |s, n| Ok(vec![listed(s, Listing::Nm(2, 4), 1, n)?])),
    ("grouped 4 bits, groups of 64, sparse 1 %", |s, n| {
        Ok(vec![Grouped::symmetric(4, 64).node(s.0, s.1, n)?, listed(s, CSR, 100, n)?])
    }),
    ("grouped 4 bits, both twice, sparse 0.5 %", |s, n| Ok(vec![four_bits(n, s)?, listed(s, CSR, 200, n)?])),
    ("sign_low_rank, rank 8", |s, _| Ok(vec![signs(s.0, s.1, 8, DType::F16)?])),
    ("sign_low_rank, rank 16", |s, _| Ok(vec![signs(s.0, s.1, 16, DType::F16)?])),
    ("sign_low_rank, 4 of rank 16", |s, _| (0..4).map(|_| signs(s.0, s.1, 16, DType::F16)).collect()),
    ("lossless bf16", |s, _| Ok(vec![packed(DType::BF16, s.0, s.1)?])),
    ("lossless f32", |s, _| Ok(vec![packed(DType::F32, s.0, s.1)?])),
    ("dense f16", |s, n| Ok(vec![plain(DType::F16, s.0, s.1, &n.values(s.0 * s.1, 1.0))?])),
];

fn main() -> Result {
    let mut args = std::env::args().skip(1);
    let threads: usize = args.next().map_or(Ok(1), |threads| threads.parse())?;
    let wanted = args.next().unwrap_or_default();
    let isa = match args.next().as_deref() {
        Some(name) => {
            let named = |isa: &Isa| format!("{isa:?}").eq_ignore_ascii_case(name);
            Isa::ALL.into_iter().find(named).ok_or_else(|| format!("no instruction set `{name}`"))?
        }
        None => Isa::detect(),
    };
    let shape = args.next().unwrap_or_else(|| "4096x4096".into());
    let (rows, cols) = shape.split_once('x').ok_or("a shape is ROWSxCOLS")?;
    let (rows, cols) = (rows.parse()?, cols.parse()?);
    println!("{rows} x {cols}, {isa:?}, threads {threads}");
    println!(
        "{:40} {:>9} {:>6} {:>11} {:>11} {:>9} {:>6} {:>8}",
        "", "precision", "batch", "Gweights/s", "packed GB/s", "read GB/s", "share", "GFLOP/s"
    );
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    for (name, make) in CASES.iter().filter(|(name, _)| name.contains(&wanted)) {
        let nodes = make((rows, cols), &mut Numbers(1))?;
        let packed = nodes.iter().map(NodeData::stored_bytes).sum::<u64>() as usize;
        let terms = nodes.into_iter().map(|node| (0, 0, node)).collect();
        let bytes = Parts { terms, ..Parts::default() }.archive(rows, cols)?;
        // From the start of a page on, as a mapped file.
        let mut room = vec![0; bytes.len() + 4096];
        let page = room.as_ptr().align_offset(4096);
        let place = room.get_mut(page..page + bytes.len()).ok_or("no page")?;
        place.copy_from_slice(&bytes);
        let bytes = &*place;
        let archive = parse(bytes)?;
        let linear = Linear::new(view(&archive)?, isa)?;
        pool.install(|| measure(name, &linear, bytes.get(..packed).unwrap_or(bytes)))
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn measure(name: &str, linear: &Linear<'_>, packed: &[u8]) -> Result<(), String> {
    let text = |e: cmf_format::Error| e.to_string();
    let (rows, cols) = (linear.rows(), linear.cols());
    let mut scratch = Scratch::new();
    for (precision, batch) in
        [(Precision::Fast, 1), (Precision::Fast, 32), (Precision::Exact, 1), (Precision::Exact, 32)]
    {
        let mut x = Activations::new();
        x.load(&Numbers(2).values(batch * cols, 1.0), cols, &[], precision, linear.isa()).map_err(text)?;
        let mut y = vec![0.0; batch * rows];
        let (mut ours, mut read) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..if batch == 1 { 40 } else { 4 } {
            let begun = Instant::now();
            linear.multiply(&x, black_box(&mut y), &mut scratch).map_err(text)?;
            ours = ours.min(begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            let part = packed.len().div_ceil(rayon::current_num_threads()).max(1);
            black_box(packed.par_chunks(part).map(fold).reduce(|| 0, |a, b| a ^ b));
            read = read.min(begun.elapsed().as_secs_f64());
        }
        let (weights, bytes) = ((rows * cols) as f64, packed.len() as f64);
        println!(
            "{name:40} {:>9} {batch:>6} {:>11.2} {:>11.2} {:>9.2} {:>6.2} {:>8.0}",
            format!("{precision:?}").to_lowercase(),
            weights / ours / 1e9,
            bytes / ours / 1e9,
            bytes / read / 1e9,
            read / ours,
            2.0 * weights * batch as f64 / ours / 1e9,
        );
    }
    let mut values = vec![0.0f32; rows * cols];
    let source = values.clone();
    let (mut ours, mut copy) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..4 {
        let begun = Instant::now();
        linear.decode_rows(0..rows, black_box(&mut values), &mut scratch).map_err(text)?;
        ours = ours.min(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let part = source.len().div_ceil(rayon::current_num_threads()).max(1);
        let parts = values.par_chunks_mut(part).zip(source.par_chunks(part));
        parts.for_each(|(to, from)| to.copy_from_slice(black_box(from)));
        copy = copy.min(begun.elapsed().as_secs_f64());
    }
    let bytes = size_of_val(source.as_slice()) as f64 / 1e9;
    println!(
        "{name:40} decoded to f32 at {:.2} GB/s, {:.2} of memcpy's {:.2}",
        bytes / ours,
        copy / ours,
        bytes / copy
    );
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

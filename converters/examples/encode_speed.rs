//! Error and speed of the encoders on a normal source and on tensors of a file:
//! `cargo run --release --example encode_speed [FILE.safetensors TENSOR...]`.
//!
//! SNR is `10 log10(sum w^2 / sum (w - w')^2)`; MB/s are of f32 input on one thread, the best of
//! several runs.

use cmf_converters::encode::{
    CodebookParams, Codes, GroupedParams, LowRankParams, Matrix, Method, Range, Select, SparseParams, Store,
    TermParams, Zero, decode, terms,
};
use std::error::Error;
use std::time::Instant;

type Any = Box<dyn Error>;

struct Source {
    name: String,
    values: Vec<f32>,
    rows: usize,
    cols: usize,
}

fn main() -> Result<(), Any> {
    let mut args = std::env::args().skip(1);
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let mut sources = vec![normal(2048, 1536)];
    if let Some(file) = args.next() {
        let bytes = std::fs::read(file)?;
        let file = safetensors::SafeTensors::deserialize(&bytes)?;
        for name in args {
            sources.push(read(&name, &file.tensor(&name)?)?);
        }
    }
    for source in &sources {
        println!("{} {} x {}", source.name, source.rows, source.cols);
        println!("{:<42} {:>6} {:>8} {:>9}", "terms", "bits", "SNR dB", "MB/s");
        for (name, terms) in cases() {
            measure(source, &name, &terms)?;
        }
    }
    Ok(())
}

fn measure(source: &Source, name: &str, params: &[TermParams]) -> Result<(), Any> {
    let mut seconds = f64::INFINITY;
    let mut nodes = Vec::new();
    let begin = Instant::now();
    while nodes.is_empty() || (begin.elapsed().as_secs_f64() < 0.3) {
        let start = Instant::now();
        nodes = terms(&Matrix::new(&source.values, source.rows, source.cols)?, params)?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    let mut decoded = vec![0f32; source.values.len()];
    for node in &nodes {
        decoded.iter_mut().zip(decode(node)?).for_each(|(sum, value)| *sum += value);
    }
    let count = source.values.len() as f64;
    let bits = nodes.iter().map(|node| node.stored_bytes()).sum::<u64>() as f64 * 8.0 / count;
    println!(
        "{name:<42} {bits:>6.3} {:>8.3} {:>9.0}",
        snr(&source.values, &decoded),
        count * 4.0 / 1e6 / seconds
    );
    Ok(())
}

fn cases() -> Vec<(String, Vec<TermParams>)> {
    let mut cases = Vec::new();
    let base = GroupedParams::default();
    let mut grouped =
        |name: String, params: GroupedParams| cases.push((name, vec![TermParams::Grouped(params)]));
    let methods = [Method::Rtn, Method::Mse];
    for method in methods {
        for group_cols in [32, 64, 128] {
            grouped(
                format!("int4 g{group_cols} {method:?}"),
                GroupedParams { group_cols, method, ..base.clone() },
            );
        }
        for bits in [2, 3, 8] {
            grouped(format!("int{bits} g64 {method:?}"), GroupedParams { bits, method, ..base.clone() });
        }
    }
    for method in [Method::Rtn, Method::Mse, Method::Hqq] {
        for group_cols in [32, 64, 128] {
            let params = GroupedParams { group_cols, method, zero: Zero::Add, ..base.clone() };
            grouped(format!("int4 g{group_cols} zero add {method:?}"), params);
        }
        for zero in [Zero::Code, Zero::Subtract] {
            grouped(
                format!("int4 g64 zero {zero:?} {method:?}"),
                GroupedParams { method, zero, ..base.clone() },
            );
        }
    }
    for method in methods {
        for (bits, codes) in
            [(4, Codes::E2m1), (4, Codes::Nf4), (6, Codes::E3m2), (8, Codes::E4m3), (1, Codes::Binary)]
        {
            let name = format!("{codes:?} g64 {method:?}");
            grouped(name, GroupedParams { bits, codes, method, ..base.clone() });
        }
        let mxfp4 =
            GroupedParams { codes: Codes::E2m1, group_cols: 32, scale: Store::F8E8m0, ..base.clone() };
        grouped(format!("mxfp4 {method:?}"), GroupedParams { method, ..mxfp4 });
        let of_tensor = GroupedParams {
            bits: 8,
            codes: Codes::E4m3,
            group_rows: 0,
            group_cols: 0,
            scale: Store::F32,
            ..base.clone()
        };
        let nvfp4 =
            GroupedParams { codes: Codes::E2m1, group_cols: 16, scale: nested(of_tensor), ..base.clone() };
        grouped(format!("nvfp4 {method:?}"), GroupedParams { method, ..nvfp4 });
        let six = nested(GroupedParams { bits: 6, range: Range::Unsigned, group_cols: 8, ..base.clone() });
        let q4_k = GroupedParams {
            group_cols: 32,
            zero: Zero::Add,
            scale: six.clone(),
            zero_store: six,
            ..base.clone()
        };
        grouped(format!("like q4_K {method:?}"), GroupedParams { method, ..q4_k });
        let three =
            nested(GroupedParams { bits: 3, zero: Zero::Add, group_rows: 16, group_cols: 1, ..base.clone() });
        let spqr = GroupedParams {
            bits: 3,
            group_cols: 16,
            zero: Zero::Subtract,
            scale: three.clone(),
            zero_store: three,
            ..base.clone()
        };
        grouped(format!("like SpQR, int3 g16 {method:?}"), GroupedParams { method, ..spqr });
        for (name, group_rows, group_cols) in
            [("16 x 16", 16, 16), ("64 x 1", 64, 1), ("row", 1, 0), ("tensor", 0, 0)]
        {
            grouped(
                format!("int4 {name} {method:?}"),
                GroupedParams { group_rows, group_cols, method, ..base.clone() },
            );
        }
    }
    let three = TermParams::Grouped(GroupedParams { bits: 3, zero: Zero::Add, method: Method::Mse, ..base });
    for select in [Select::Fraction(0.005), Select::Error(0.005), Select::Error(0.01)] {
        let sparse = TermParams::Sparse(SparseParams { select, ..SparseParams::default() });
        cases.push((format!("int3 g64 zero add Mse + {select:?}"), vec![three.clone(), sparse]));
    }
    for (rank, alternations) in [(16, 0), (16, 3), (64, 0)] {
        let low = TermParams::LowRank(LowRankParams { rank, alternations, ..LowRankParams::default() });
        cases.push((
            format!("int3 g64 zero add Mse + rank {rank}, {alternations} rounds"),
            vec![three.clone(), low],
        ));
    }
    for (bits, codebooks, vector_cols, beam) in
        [(8, 1, 4, 1), (8, 2, 8, 4), (8, 2, 4, 1), (8, 2, 4, 4), (8, 3, 4, 4), (12, 1, 4, 1)]
    {
        let params = CodebookParams { bits, codebooks, vector_cols, beam, ..CodebookParams::default() };
        let name = format!("codebook {codebooks} x {bits} bits, {vector_cols} weights, beam {beam}");
        cases.push((name, vec![TermParams::Codebook(params)]));
    }
    cases
}

fn nested(params: GroupedParams) -> Store {
    Store::Grouped(Box::new(params))
}

fn read(name: &str, view: &safetensors::tensor::TensorView<'_>) -> Result<Source, Any> {
    let bytes = view.data();
    let values: Vec<f32> = match view.dtype() {
        safetensors::Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        safetensors::Dtype::F16 => {
            bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
        }
        safetensors::Dtype::BF16 => {
            bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        other => return Err(format!("no use for {other:?}").into()),
    };
    let cols = *view.shape().last().ok_or("a scalar")?;
    Ok(Source { name: name.to_owned(), rows: values.len() / cols, cols, values })
}

/// Normal values with deviation 0.02, by Box and Muller's method.
fn normal(rows: usize, cols: usize) -> Source {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let values = (0..rows * cols)
        .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos() * 0.02) as f32)
        .collect();
    Source { name: "normal".to_owned(), values, rows, cols }
}

fn snr(values: &[f32], decoded: &[f32]) -> f64 {
    let power: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    let error: f64 = values.iter().zip(decoded).map(|(v, d)| (f64::from(*v) - f64::from(*d)).powi(2)).sum();
    10.0 * (power / error).log10()
}

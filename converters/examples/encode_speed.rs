//! Error and speed of the encoders on a Gaussian matrix and, if given, a tensor of a file:
//! `cargo run --release --example encode_speed [FILE.safetensors TENSOR]`.
//!
//! SNR is `10 log10(sum w^2 / sum (w - w')^2)`; MB/s are of f32 input on one thread, best of three.

use cmf_converters::encode::{Codes, GroupedParams, Matrix, Method, Range, Store, Zero, decode, grouped};
use std::error::Error;
use std::time::Instant;

type Any = Box<dyn Error>;

fn main() -> Result<(), Any> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let (rows, cols) = (2048, 1536);
    let mut sources = vec![("gaussian".to_owned(), gaussian(rows * cols), rows, cols)];
    if let [file, tensor] = args.as_slice() {
        let bytes = std::fs::read(file)?;
        let file = safetensors::SafeTensors::deserialize(&bytes)?;
        let view = file.tensor(tensor)?;
        let values: Vec<f32> = match view.dtype() {
            safetensors::Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            safetensors::Dtype::F16 => view.data().chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            safetensors::Dtype::BF16 => view.data().chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => return Err(format!("no use for {other:?}").into()),
        };
        let cols = *view.shape().last().ok_or("a scalar")?;
        sources.push((tensor.clone(), values, view.shape().iter().product::<usize>() / cols, cols));
    }
    for (name, values, rows, cols) in &sources {
        println!("{name} {rows} x {cols}");
        println!("{:<44} {:>6} {:>8} {:>9}", "encoding", "bits", "SNR dB", "MB/s");
        let matrix = Matrix::new(values, *rows, *cols)?;
        for (name, params) in cases() {
            let mut seconds = f64::INFINITY;
            let mut node = grouped(&matrix, &params)?;
            for _ in 0..3 {
                let start = Instant::now();
                node = grouped(&matrix, &params)?;
                seconds = seconds.min(start.elapsed().as_secs_f64());
            }
            let bits = node.stored_bytes() as f64 * 8.0 / values.len() as f64;
            let speed = values.len() as f64 * 4.0 / 1e6 / seconds;
            println!("{name:<44} {bits:>6.3} {:>8.3} {speed:>9.0}", snr(values, &decode(&node)?));
        }
    }
    Ok(())
}

fn cases() -> Vec<(String, GroupedParams)> {
    let mut cases = Vec::new();
    let base = GroupedParams::default();
    for group_cols in [32, 64, 128] {
        for method in [Method::Rtn, Method::Mse] {
            cases.push((format!("int4 g{group_cols} {method:?}"), GroupedParams { group_cols, method, ..base.clone() }));
        }
    }
    for bits in [2, 3, 8] {
        for method in [Method::Rtn, Method::Mse] {
            cases.push((format!("int{bits} g64 {method:?}"), GroupedParams { bits, method, ..base.clone() }));
        }
    }
    for group_cols in [32, 64, 128] {
        for method in [Method::Rtn, Method::Mse, Method::Hqq] {
            cases.push((
                format!("int4 g{group_cols} add {method:?}"),
                GroupedParams { group_cols, method, zero: Zero::Add, ..base.clone() },
            ));
        }
    }
    for zero in [Zero::Code, Zero::Subtract] {
        for method in [Method::Rtn, Method::Mse, Method::Hqq] {
            cases.push((
                format!("int4 g64 {zero:?} {method:?}"),
                GroupedParams { method, zero, ..base.clone() },
            ));
        }
    }
    for (bits, codes) in [(4, Codes::E2m1), (4, Codes::Nf4), (6, Codes::E3m2), (8, Codes::E4m3), (1, Codes::Binary)] {
        for method in [Method::Rtn, Method::Mse] {
            cases.push((format!("{codes:?} g64 {method:?}"), GroupedParams { bits, codes: codes.clone(), method, ..base.clone() }));
        }
    }
    for method in [Method::Rtn, Method::Mse] {
        cases.push((
            format!("mxfp4 {method:?}"),
            GroupedParams { codes: Codes::E2m1, group_cols: 32, scale: Store::F8E8m0, method, ..base.clone() },
        ));
        let tensor_scale = GroupedParams {
            bits: 8,
            codes: Codes::E4m3,
            group_rows: 0,
            group_cols: 0,
            scale: Store::F32,
            ..base.clone()
        };
        cases.push((
            format!("nvfp4 {method:?}"),
            GroupedParams { codes: Codes::E2m1, group_cols: 16, scale: Store::Grouped(Box::new(tensor_scale)), method, ..base.clone() },
        ));
        let six = |range| Store::Grouped(Box::new(GroupedParams { bits: 6, range, group_cols: 8, ..base.clone() }));
        cases.push((
            format!("k-quant style int4 g32 {method:?}"),
            GroupedParams {
                group_cols: 32,
                zero: Zero::Add,
                scale: six(Range::Unsigned),
                zero_store: six(Range::Unsigned),
                method,
                ..base.clone()
            },
        ));
        let three = Store::Grouped(Box::new(GroupedParams { bits: 3, zero: Zero::Add, group_rows: 16, group_cols: 1, ..base.clone() }));
        cases.push((
            format!("spqr style int3 g16 {method:?}"),
            GroupedParams { bits: 3, group_cols: 16, zero: Zero::Subtract, scale: three.clone(), zero_store: three, method, ..base.clone() },
        ));
        cases.push((format!("int4 16x16 {method:?}"), GroupedParams { group_rows: 16, group_cols: 16, method, ..base.clone() }));
        cases.push((format!("int4 64x1 {method:?}"), GroupedParams { group_rows: 64, group_cols: 1, method, ..base.clone() }));
        cases.push((format!("int4 row {method:?}"), GroupedParams { group_cols: 0, method, ..base.clone() }));
        cases.push((format!("int8 tensor {method:?}"), GroupedParams { bits: 8, group_rows: 0, group_cols: 0, method, ..base.clone() }));
    }
    cases
}

fn gaussian(count: usize) -> Vec<f32> {
    // Sums of 12 uniforms would have no tails: Box-Muller on a multiplicative generator.
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..count)
        .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos() * 0.02) as f32)
        .collect()
}

fn snr(values: &[f32], decoded: &[f32]) -> f64 {
    let power: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    let error: f64 = values.iter().zip(decoded).map(|(v, d)| (f64::from(*v) - f64::from(*d)).powi(2)).sum();
    10.0 * (power / error).log10()
}

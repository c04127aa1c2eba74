//! Milliseconds of burn's own products with a matrix of f32, f16, and of blocks of 8 and 4 bits, best of
//! several rounds after burn has tuned them:
//! `cargo run --release --features autotune --example matmul [-- [--cpu] [ROWS COLS [BITS]]]`,
//! where BITS are 32, 16, 8 or 4 for one form alone.
//! With --cpu, time of the processor, of all threads, in place of that of the clock. Beside it,
//! `cargo run --release -p cmf-kernels-wgpu --example speed` measures the kernels of this project.
//!
//! A matrix lies as burn's linear has it, inputs by outputs, or outputs by inputs and seen transposed; its
//! blocks of 32 are along its rows as they lie.

use burn::tensor::quantization::{QuantScheme, QuantValue, ScaleDtype};
use burn::tensor::{Device, FloatDType, Tensor};
use rustix::time::{ClockId, clock_gettime};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const BATCHES: [usize; 3] = [1, 32, 128];
const ROUNDS: usize = 5;

fn now_ms(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 32768.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn main() -> Outcome<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let clock = if args.iter().any(|a| a == "--cpu") { ClockId::ProcessCPUTime } else { ClockId::Monotonic };
    args.retain(|arg| arg != "--cpu");
    let (rows, cols) = match &args[..] {
        [rows, cols, ..] => (rows.parse()?, cols.parse()?),
        _ => (4096usize, 4096usize),
    };
    let only = args.get(2);
    let (device, setup) = Device::wgpu_options().init_with_setup()?;
    println!("burn on {}, {rows} by {cols}", setup.adapter.get_info().name);
    println!("{:<32} {:>8} {:>9} {:>9} {:>9}", "form", "MB", "batch 1", "32", "128");

    let values = numbers(rows * cols);
    let x = numbers(BATCHES[2] * cols);
    let input = Tensor::<1>::from_floats(x.as_slice(), &device).reshape([BATCHES[2], cols]);
    let blocks = |value| QuantScheme::default().with_value(value).per_block([32], ScaleDtype::F32);
    let elems = (rows * cols) as f64;
    let forms = [
        ("32", "f32", 4.0, None),
        ("16", "f16", 2.0, None),
        ("8", "8 bits", 1.125, Some(blocks(QuantValue::Q8S))),
        ("4", "4 bits", 0.625, Some(blocks(QuantValue::Q4S))),
    ];
    for (bits, name, bytes, scheme) in forms {
        if only.is_some_and(|only| only != bits) {
            continue;
        }
        for transposed in [false, true] {
            let shape = if transposed { [rows, cols] } else { [cols, rows] };
            let flat = Tensor::<1>::from_floats(values.as_slice(), &device);
            let mut w: Tensor<2> = flat.reshape(shape);
            let mut input = input.clone();
            if name == "f16" {
                (w, input) = (w.cast(FloatDType::F16), input.cast(FloatDType::F16));
            }
            if let Some(scheme) = &scheme {
                w = w.quantize_dynamic(scheme);
            }
            let w = if transposed { w.transpose() } else { w };
            let mut ms = Vec::new();
            let mut first = 0.0f32;
            for batch in BATCHES {
                let x = input.clone().slice([0..batch, 0..cols]);
                let mut best = f64::MAX;
                for round in 0..=ROUNDS {
                    device.sync()?;
                    let start = now_ms(clock);
                    let y = x.clone().matmul(w.clone());
                    device.sync()?;
                    if round > 0 {
                        best = best.min(now_ms(clock) - start);
                    }
                    if round == ROUNDS {
                        let y = y.slice([0..1, 0..1]).cast(FloatDType::F32).into_data();
                        first = y.try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?[0];
                    }
                }
                ms.push(best);
            }
            let form = format!("burn {name}, {}", if transposed { "outputs by inputs" } else { "as linear" });
            println!("{form:<32} {:>8.2} {:>9.2} {:>9.2} {:>9.2}", bytes * elems / 1e6, ms[0], ms[1], ms[2]);
            let weight = |i: usize| if transposed { values[i] } else { values[i * rows] };
            let expected: f64 = (0..cols).map(|i| f64::from(weight(i)) * f64::from(x[i])).sum();
            // Products of numbers in -1..1, each wrong by a quarter at most, this way or that.
            if (f64::from(first) - expected).abs() > (cols as f64).sqrt() / 4.0 {
                eprintln!("{form}: {first} in place of {expected}");
            }
        }
    }
    Ok(())
}

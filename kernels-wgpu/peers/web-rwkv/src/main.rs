//! Milliseconds of web-rwkv's products with a matrix of f16, int8 and NF4, best of several rounds, on the
//! adapter that wgpu prefers: `cargo run --release [-- [--cpu] [ROWS COLS]]`. With --cpu, time of the
//! processor, of all threads, in place of that of the clock.
//!
//! As in its own runtime, one activation goes to its kernels for vectors and more go to its kernels for
//! matrices. Activations and results are of f16, which its models have, or of f32.

use half::f16;
use rustix::time::{ClockId, clock_gettime};
use std::error::Error;
use web_rwkv::context::{Context, ContextBuilder, InstanceExt};
use web_rwkv::num::{CoHom, Float, Hom};
use web_rwkv::tensor::kind::ReadWrite;
use web_rwkv::tensor::matrix::Matrix;
use web_rwkv::tensor::ops::Activation;
use web_rwkv::tensor::shape::Shape;
use web_rwkv::tensor::{TensorCpu, TensorGpu, TensorInit, TensorInto};
use web_rwkv::wgpu::{Instance, PollType, PowerPreference};

type Outcome<T> = Result<T, Box<dyn Error>>;

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

/// Milliseconds of y = x Wᵀ for the first activations of `x`, for each batch, with activations and results
/// in `F`; and y's first number.
fn best_ms<F: Float>(
    context: &Context,
    matrix: &Matrix,
    x: &[f32],
    (rows, cols): (usize, usize),
    clock: ClockId,
) -> Outcome<(Vec<f64>, f32)> {
    let (mut all, mut first) = (Vec::new(), 0.0);
    for batch in BATCHES {
        let values: Vec<F> = x[..batch * cols].iter().map(|v| F::co_hom(*v)).collect();
        let x: TensorGpu<F, ReadWrite> = context.tensor_from_data(Shape::new(cols, batch, 1, 1), values)?;
        let y: TensorGpu<F, ReadWrite> = context.tensor_init(Shape::new(rows, batch, 1, 1));
        let op = matrix.matmul_op(&x, &y, Activation::None, batch > 1)?;
        let mut best = f64::MAX;
        for round in 0..=ROUNDS {
            let start = now_ms(clock);
            context.queue.submit(context.encode(&op));
            context.device.poll(PollType::wait_indefinitely())?;
            if round > 0 {
                best = best.min(now_ms(clock) - start);
            }
        }
        all.push(best);
        first = y.back_in_place()[(0, 0, 0, 0)].hom();
    }
    Ok((all, first))
}

fn main() -> Outcome<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let clock = if args.iter().any(|a| a == "--cpu") { ClockId::ProcessCPUTime } else { ClockId::Monotonic };
    args.retain(|arg| arg != "--cpu");
    let (rows, cols) = match &args[..] {
        [rows, cols] => (rows.parse()?, cols.parse()?),
        _ => (4096, 4096),
    };
    let instance = Instance::default();
    let context = futures::executor::block_on(async {
        let adapter = instance.adapter(PowerPreference::HighPerformance).await?;
        ContextBuilder::new(adapter).build().await
    })?;
    println!("web-rwkv on {}, {rows} by {cols}", context.adapter.get_info().name);
    println!("{:<32} {:>8} {:>9} {:>9} {:>9}", "form", "MB", "batch 1", "32", "128");

    let values = numbers(rows * cols);
    let x = numbers(BATCHES[2] * cols);
    let expected: f64 = (0..cols).map(|i| f64::from(values[i]) * f64::from(x[i])).sum();
    let half: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    let tensor: TensorCpu<f16> = TensorCpu::from_data(Shape::new(cols, rows, 1, 1), half)?;
    let load = || -> TensorGpu<f16, ReadWrite> { tensor.clone().to(&context) };
    let elems = (rows * cols) as f64;
    let forms = [
        ("fp16", 2.0 * elems, Matrix::Fp16(load())),
        ("int8", elems * (1.0 + 4.0 / 128.0), Matrix::quant_u8(&load())?),
        ("nf4", elems * (0.5 + 2.0 / 64.0), Matrix::quant_nf4(&load())?),
    ];
    for (name, bytes, matrix) in &forms {
        let print = |activations: &str, (ms, first): (Vec<f64>, f32)| {
            let form = format!("web-rwkv {name}, {activations}");
            println!("{form:<32} {:>8.2} {:>9.2} {:>9.2} {:>9.2}", bytes / 1e6, ms[0], ms[1], ms[2]);
            // Products of numbers in -1..1, each wrong by a quarter at most, this way or that.
            if (f64::from(first) - expected).abs() > (cols as f64).sqrt() / 4.0 {
                eprintln!("{form}: {first} in place of {expected}");
            }
        };
        let shape = (rows, cols);
        print("16 bits", best_ms::<f16>(&context, matrix, &x, shape, clock)?);
        print("32 bits", best_ms::<f32>(&context, matrix, &x, shape, clock)?);
    }
    Ok(())
}

//! Milliseconds of products of a 4096 by 4096 matrix and of its upload, on the adapter that wgpu prefers.
//!
//! `cargo run --release -p cmf-kernels-wgpu --example speed [--cpu] [ROWS COLS]`, where `--cpu` counts the
//! time of the processor in place of that of the clock, for an adapter that is the processor, on a machine that
//! does other things too: best of several rounds, all
//! forms in turn in each round, pipelines compiled before. The share is that of the rate at which the
//! adapter copies a buffer, counting the bytes of the packed matrix once for a batch of up to 8.

use cmf_format::encoding::{dense, grouped, trellis};
use cmf_format::{DType, NodeData};
use cmf_kernels_wgpu::{Activations, Context, GpuMatrix, Rows, Uploader, Workspace};
use std::error::Error;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BATCHES: [usize; 3] = [1, 32, 128];
const ROUNDS: usize = 5;
const UPLOAD_BYTES: usize = 64 << 20;
/// Bytes of a unit, as recipes make them.
const UNIT_BYTES: usize = 64 << 10;

/// Numbers without a pattern.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() % 2001) as f32 / 1000.0 - 1.0).collect()
    }

    fn codes(&mut self, n: usize, bits: u8) -> Vec<u8> {
        (0..n).map(|_| (self.next() & ((1 << bits) - 1)) as u8).collect()
    }
}

fn grouped_node(bits: u8, rows: usize, cols: usize, random: &mut Random) -> Result<NodeData> {
    let descriptor = grouped::Descriptor {
        bits,
        code_map: grouped::CodeMap::Integer { offset: -(1 << (bits - 1)) },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: 32,
    };
    let across = cols.div_ceil(32);
    let scale = dense::pack_values(DType::F16, rows as u64, across as u64, &random.values(rows * across))?;
    let children = grouped::Children { scale: Some(scale), ..Default::default() };
    let codes = random.codes(rows * cols, bits);
    Ok(grouped::pack(&descriptor, rows as u64, cols as u64, &codes, children)?)
}

/// What windows mean.
#[derive(Clone, Copy)]
enum Windows {
    ByteSum,
    /// A table by so many bits, of signed bytes as recipes train them.
    Table(u8),
    /// A table of 64 signed bytes by the newest 6 bits and a linear map of those before.
    Hashed(u8),
}

impl Windows {
    fn table(self, random: &mut Random) -> Option<(u8, Vec<f32>)> {
        let mut bytes = |n| (0..n).map(|_| (random.next() % 255) as f32 - 127.0).collect::<Vec<_>>();
        match self {
            Windows::ByteSum => None,
            Windows::Table(bits) => Some((bits, bytes(1 << bits))),
            Windows::Hashed(bits) => {
                let values = bytes(64);
                let older = usize::from(bits) - 6;
                let map: Vec<usize> = (0..older).map(|_| random.next() % 64).collect();
                let index = |window: usize| {
                    let added = map.iter().enumerate().filter(|(bit, _)| window >> bit & 1 == 1);
                    added.fold(window >> older, |index, (_, more)| index ^ more)
                };
                let value = |window| values.get(index(window)).copied().unwrap_or(0.0);
                Some((bits, (0..1usize << bits).map(value).collect()))
            }
        }
    }
}

fn trellis_node(windows: Windows, rows: usize, cols: usize, random: &mut Random) -> Result<NodeData> {
    let table = windows.table(random);
    let descriptor = trellis::Descriptor {
        state_bits: table.as_ref().map_or(16, |(bits, _)| *bits),
        step_bits: 2,
        code: if table.is_some() { trellis::Code::Table } else { trellis::Code::BYTE_SUM },
        axis: trellis::Axis::Down,
        path_elems: 0,
        scale_rows: 32,
        scale_cols: 0,
    };
    let groups = rows.div_ceil(32);
    let scale = dense::pack_values(DType::F16, groups as u64, 1, &random.values(groups))?;
    let values = match table {
        Some((bits, values)) => Some(dense::pack_values(DType::F16, 1, 1 << bits, &values)?.into()),
        None => None,
    };
    let codes = random.codes(rows * cols, 2);
    Ok(trellis::pack(&descriptor, rows as u64, cols as u64, &codes, scale, values)?)
}

/// How time is measured.
#[derive(Clone, Copy)]
enum Clock {
    Wall,
    Processor,
}

impl Clock {
    /// Milliseconds since `start`, or that all threads of this process took.
    fn ms(self, start: Instant) -> Result<f64> {
        match self {
            Clock::Wall => Ok(start.elapsed().as_secs_f64() * 1e3),
            #[cfg(unix)]
            Clock::Processor => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
                Ok(time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6)
            }
            #[cfg(not(unix))]
            Clock::Processor => Err("--cpu: this system does not say".into()),
        }
    }
}

fn best_ms(clock: Clock, best: &mut f64, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let before = clock.ms(start)?;
    run()?;
    *best = best.min(clock.ms(start)? - before);
    Ok(())
}

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let clock = if args.iter().any(|arg| arg == "--cpu") { Clock::Processor } else { Clock::Wall };
    args.retain(|arg| arg != "--cpu");
    let sides: Vec<usize> = args.iter().map(|arg| arg.parse()).collect::<std::result::Result<_, _>>()?;
    let (rows, cols) = match sides[..] {
        [rows, cols] => (rows, cols),
        _ => (4096, 4096),
    };
    let context = Context::new()?;
    let kernels = context.kernels();
    let random = &mut Random(1);
    let dense = |dtype, random: &mut Random| {
        dense::pack_values(dtype, rows as u64, cols as u64, &random.values(rows * cols))
    };
    let planes = |name, count: usize, windows, random: &mut Random| -> Result<_> {
        let nodes = (0..count).map(|_| trellis_node(windows, rows, cols, random));
        Ok((name, nodes.collect::<Result<Vec<_>>>()?))
    };
    let forms = [
        ("dense f32", vec![dense(DType::F32, random)?]),
        ("dense f16", vec![dense(DType::F16, random)?]),
        ("grouped 8 bits", vec![grouped_node(8, rows, cols, random)?]),
        ("grouped 4 bits", vec![grouped_node(4, rows, cols, random)?]),
        planes("trellis 2 bits, byte sum", 1, Windows::ByteSum, random)?,
        planes("trellis 2+2 bits, byte sum", 2, Windows::ByteSum, random)?,
        planes("trellis 2 bits, table of 6", 1, Windows::Table(6), random)?,
        planes("trellis 2+2 bits, table of 6", 2, Windows::Table(6), random)?,
        planes("trellis 2 bits, table of 10", 1, Windows::Table(10), random)?,
        planes("trellis 2+2 bits, table of 10", 2, Windows::Table(10), random)?,
        planes("trellis 2 bits, hashed of 12", 1, Windows::Hashed(12), random)?,
        planes("trellis 2+2 bits, hashed of 12", 2, Windows::Hashed(12), random)?,
    ];
    let mut uploader = Uploader::new(context.device(), context.queue());
    let mut matrices = Vec::new();
    for (name, nodes) in &forms {
        let mut matrix = GpuMatrix::new(kernels, &mut uploader, rows, cols, &[], &[])?;
        for (unit, node) in nodes.iter().enumerate() {
            let view = node.view()?;
            matrix.insert(kernels, &mut uploader, unit as u32, std::iter::once((0, 0, &view)))?;
        }
        matrices.push((*name, matrix));
    }
    uploader.finish()?;

    let source = random.values(UPLOAD_BYTES / 4);
    let node = dense::pack_values(DType::F32, 1 << 12, UPLOAD_BYTES as u64 >> 14, &source)?;
    let view = node.view()?;
    let units =
        source.chunks(UNIT_BYTES / 4).map(|values| dense::pack_values(DType::F32, 16, 1 << 10, values));
    let units = units.collect::<std::result::Result<Vec<_>, _>>()?;
    let unit_views = units.iter().map(NodeData::view).collect::<std::result::Result<Vec<_>, _>>()?;
    let mut kept = GpuMatrix::new(kernels, &mut uploader, 16 * units.len(), 1 << 10, &[], &[])?;
    for (unit, view) in unit_views.iter().enumerate() {
        kept.insert(kernels, &mut uploader, unit as u32, std::iter::once((16 * unit, 0, view)))?;
    }
    uploader.finish()?;
    let mut copied = vec![0.0f32; source.len()];
    let targets = [context.buffer(source.len())?, context.buffer(source.len())?];
    let (mut memcpy, mut fresh, mut upload, mut back, mut copy) =
        (f64::MAX, f64::MAX, f64::MAX, f64::MAX, f64::MAX);
    let mut times = vec![[f64::MAX; BATCHES.len()]; matrices.len()];
    let x = context.upload(&random.values(128 * cols))?;
    let y = context.buffer(128 * rows)?;
    let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
    for round in 0..=ROUNDS {
        let mut none = f64::MAX;
        for ((_, matrix), times) in matrices.iter().zip(&mut times) {
            for (batch, best) in BATCHES.into_iter().zip(times) {
                let best = if round == 0 { &mut none } else { best };
                best_ms(clock, best, || {
                    context.submit(|pass| {
                        let rows = Rows::of(&x, cols as u32);
                        let input = matrix.input();
                        kernels.activate(
                            pass,
                            &mut workspace,
                            input,
                            rows,
                            batch as u32,
                            &mut activations,
                        )?;
                        kernels.multiply(
                            pass,
                            &mut workspace,
                            matrix,
                            &activations,
                            Rows::of(&y, matrix.rows()),
                        )
                    })?;
                    Ok(context.wait()?)
                })?;
            }
        }
        best_ms(clock, &mut memcpy, || {
            copied.copy_from_slice(&source);
            Ok(())
        })?;
        best_ms(clock, &mut fresh, || {
            std::hint::black_box(source.clone());
            Ok(())
        })?;
        let gone = || (0..unit_views.len()).filter(|unit| unit % 2 == 1);
        gone().for_each(|unit| assert!(kept.remove(unit as u32)));
        context.wait()?;
        best_ms(clock, &mut back, || {
            for unit in gone() {
                let terms = unit_views.get(unit).map(|view| (16 * unit, 0, view));
                kept.insert(kernels, &mut uploader, unit as u32, terms.into_iter())?;
            }
            uploader.finish()?;
            Ok(context.wait()?)
        })?;
        best_ms(clock, &mut upload, || {
            let mut matrix = GpuMatrix::new(kernels, &mut uploader, view.rows(), view.cols(), &[], &[])?;
            matrix.insert(kernels, &mut uploader, 0, std::iter::once((0, 0, &view)))?;
            uploader.finish()?;
            Ok(context.wait()?)
        })?;
        best_ms(clock, &mut copy, || {
            let mut encoder = context.device().create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&targets[0], 0, &targets[1], 0, UPLOAD_BYTES as u64);
            context.queue().submit([encoder.finish()]);
            Ok(context.wait()?)
        })?;
    }
    let info = context.device().adapter_info();
    println!("{} ({:?}), {rows} by {cols}, {:?}", info.name, info.device_type, kernels.tuning());
    // A copy reads and writes each byte.
    let rate = 2.0 * UPLOAD_BYTES as f64 / copy;
    println!("copy on the device {:.1} GB/s", rate / 1e6);
    let gigabytes = |bytes: usize, ms: f64| bytes as f64 / ms / 1e6;
    println!(
        "GB/s: upload into new memory {:.1}, of units that come back {:.1}; memcpy into new memory {:.1}, else {:.1}",
        gigabytes(UPLOAD_BYTES, upload),
        gigabytes(UPLOAD_BYTES / 2, back),
        gigabytes(UPLOAD_BYTES, fresh),
        gigabytes(UPLOAD_BYTES, memcpy)
    );
    println!("{:<32} {:>8} {:>9} {:>9} {:>9} {:>8}", "form", "MB", "batch 1", "32", "128", "share");
    for ((name, matrix), [one, some, many]) in matrices.iter().zip(times) {
        let bytes = matrix.bytes() as f64;
        println!(
            "{name:<32} {:>8.2} {one:>9.2} {some:>9.2} {many:>9.2} {:>7.0}%",
            bytes / 1e6,
            100.0 * bytes / one / rate
        );
    }
    Ok(())
}

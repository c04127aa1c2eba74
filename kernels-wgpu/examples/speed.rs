//! Milliseconds of products of a 4096 by 4096 matrix and of its upload, on the adapter that wgpu prefers.
//!
//! `cargo run --release -p cmf-kernels-wgpu --example speed [ROWS COLS]`: best of several rounds, all
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

fn trellis_node(code: trellis::Code, rows: usize, cols: usize, random: &mut Random) -> Result<NodeData> {
    let table = code == trellis::Code::Table;
    let descriptor = trellis::Descriptor {
        state_bits: if table { 10 } else { 16 },
        step_bits: 2,
        code,
        axis: trellis::Axis::Down,
        path_elems: 0,
        scale_rows: 32,
        scale_cols: 0,
    };
    let groups = rows.div_ceil(32);
    let scale = dense::pack_values(DType::F16, groups as u64, 1, &random.values(groups))?;
    let values = match table {
        true => Some(dense::pack_values(DType::F16, 1, 1024, &random.values(1024))?.into()),
        false => None,
    };
    let codes = random.codes(rows * cols, 2);
    Ok(trellis::pack(&descriptor, rows as u64, cols as u64, &codes, scale, values)?)
}

fn best_ms(best: &mut f64, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    run()?;
    *best = best.min(start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn main() -> Result<()> {
    let sides: Vec<usize> =
        std::env::args().skip(1).map(|a| a.parse()).collect::<std::result::Result<_, _>>()?;
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
    let forms = [
        ("dense f32", vec![dense(DType::F32, random)?]),
        ("dense f16", vec![dense(DType::F16, random)?]),
        ("grouped 8 bits", vec![grouped_node(8, rows, cols, random)?]),
        ("grouped 4 bits", vec![grouped_node(4, rows, cols, random)?]),
        ("trellis 2 bits, byte sum", vec![trellis_node(trellis::Code::BYTE_SUM, rows, cols, random)?]),
        (
            "trellis 2+2 bits, byte sum",
            vec![
                trellis_node(trellis::Code::BYTE_SUM, rows, cols, random)?,
                trellis_node(trellis::Code::BYTE_SUM, rows, cols, random)?,
            ],
        ),
        (
            "trellis 2+2 bits, table",
            vec![
                trellis_node(trellis::Code::Table, rows, cols, random)?,
                trellis_node(trellis::Code::Table, rows, cols, random)?,
            ],
        ),
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
    let mut copied = vec![0.0f32; source.len()];
    let targets = [context.buffer(source.len())?, context.buffer(source.len())?];
    let (mut memcpy, mut upload, mut copy) = (f64::MAX, f64::MAX, f64::MAX);
    let mut times = vec![[f64::MAX; BATCHES.len()]; matrices.len()];
    let x = context.upload(&random.values(128 * cols))?;
    let y = context.buffer(128 * rows)?;
    let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
    for round in 0..=ROUNDS {
        let mut none = f64::MAX;
        for ((_, matrix), times) in matrices.iter().zip(&mut times) {
            for (batch, best) in BATCHES.into_iter().zip(times) {
                let best = if round == 0 { &mut none } else { best };
                best_ms(best, || {
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
        best_ms(&mut memcpy, || {
            copied.copy_from_slice(&source);
            Ok(())
        })?;
        best_ms(&mut upload, || {
            let mut matrix = GpuMatrix::new(kernels, &mut uploader, view.rows(), view.cols(), &[], &[])?;
            matrix.insert(kernels, &mut uploader, 0, std::iter::once((0, 0, &view)))?;
            uploader.finish()?;
            Ok(context.wait()?)
        })?;
        best_ms(&mut copy, || {
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
    println!("upload of 64 MiB {upload:.1} ms, memcpy {memcpy:.1} ms");
    println!("{:<28} {:>8} {:>9} {:>9} {:>9} {:>8}", "form", "MB", "batch 1", "32", "128", "share");
    for ((name, matrix), [one, some, many]) in matrices.iter().zip(times) {
        let bytes = matrix.bytes() as f64;
        println!(
            "{name:<28} {:>8.2} {one:>9.2} {some:>9.2} {many:>9.2} {:>7.0}%",
            bytes / 1e6,
            100.0 * bytes / one / rate
        );
    }
    Ok(())
}

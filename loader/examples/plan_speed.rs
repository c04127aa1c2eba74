//! How long plans take: `cargo run --release -p cmf-loader --example plan_speed -- [UNITS]`.
//!
//! Makes an archive of blocks of 4-bit codes with scales, three levels each, in memory, and prints
//! the best of 20 rounds of opening it, of a first plan, and of a plan from a schedule that is there.

use cmf_format::encoding::{dense, grouped};
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{Archive, ArchiveBuilder, DType, Limits, NodeData, WriteOptions};
use cmf_loader::{Budget, Schedule};
use std::hint::black_box;
use std::time::Instant;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const BLOCKS: u64 = 100;
const LEVELS: u64 = 3;

fn node(seed: u64) -> Fallible<NodeData> {
    let descriptor = grouped::Descriptor {
        bits: 4,
        code_map: grouped::CodeMap::Integer { offset: -8 },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: 0,
    };
    let codes: Vec<u8> = (0..64).map(|i| (seed >> (i % 16 * 4) & 15) as u8).collect();
    let scale = dense::pack_values(DType::F32, 1, 1, &[f32::from_bits((seed as u32) << 4)])?;
    let children = grouped::Children { scale: Some(scale), ..Default::default() };
    Ok(grouped::pack(&descriptor, 1, 64, &codes, children)?)
}

fn archive(units: u64) -> Fallible<Vec<u8>> {
    let mut builder = ArchiveBuilder::new(WriteOptions { alignment_bytes: 64, ..WriteOptions::default() });
    let mut seed = 0;
    for matrix in 0..units.div_ceil(BLOCKS * LEVELS) {
        let mut own = MatrixEntry { rows: BLOCKS, cols: 64, ..MatrixEntry::default() };
        for level in 0..LEVELS {
            for row_start in 0..BLOCKS {
                seed += 1;
                let node = node(seed)?.into();
                let terms = vec![TermEntry { row_start, col_start: 0, optional: false, node }];
                own.units.push(UnitEntry { level: level as u16, row_start, rows: 1, terms });
            }
        }
        builder.tensor(TensorEntry {
            name: format!("layer.{matrix:05}"),
            dtype: DType::F32,
            shape: vec![BLOCKS, 64],
            content: Content::Matrices(vec![own]),
        });
    }
    Ok(builder.to_vec()?)
}

fn best<T>(mut work: impl FnMut() -> Fallible<T>) -> Fallible<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let started = Instant::now();
        black_box(work()?);
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best * 1e3)
}

fn main() -> Fallible<()> {
    let units = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let bytes = archive(units)?;
    let limits = Limits::default();
    let archive = Archive::parse(&bytes[..], &limits)?;
    println!(
        "{} units, {} nodes, {} segments, {} bytes of directory",
        archive.units().len(),
        archive.nodes().len(),
        archive.segments().len(),
        archive.header().directory_bytes.get()
    );
    println!("open          {:9.4} ms", best(|| Ok(Archive::parse(&bytes[..], &limits)?))?);
    let schedule = Schedule::of(&archive);
    let budget = Budget::Bytes((schedule.minimum_bytes() + schedule.maximum_bytes()) / 2);
    println!("first plan    {:9.4} ms", best(|| Ok(cmf_loader::plan(&archive, budget)?))?);
    println!("further plan  {:9.4} ms", best(|| Ok(schedule.plan(budget)?))?);
    let plan = schedule.plan(budget)?;
    println!("mapped bytes  {:9.4} ms", best(|| Ok(plan.mapped_bytes(4096)))?);
    println!("{plan:?}");
    Ok(())
}

//! How fast memory of the process comes back after it was given back for so many seconds: in a virtual machine
//! the host may have taken it meanwhile.
//!
//! `cargo run --release -p cmf-loader --example pauses`

use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType};
use cmf_loader::{Backend, Budget, Model, OpenOptions};
use std::time::{Duration, Instant};

/// Columns of f32.
const COLS: u64 = 1 << 20;
/// Rows of the second level: 256 MiB.
const ROWS: u64 = 64;
const PAUSES: [u64; 9] = [0, 0, 1, 0, 3, 0, 6, 0, 12];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let unit = |level: u16| -> Result<UnitEntry, Box<dyn std::error::Error>> {
        let values: Vec<f32> = (0..ROWS * COLS).map(|i| (i % 251) as f32 + f32::from(level)).collect();
        let node = dense::pack_values(DType::F32, ROWS, COLS, &values)?;
        let term = TermEntry { row_start: 0, col_start: 0, optional: false, node: node.into() };
        Ok(UnitEntry { level, row_start: 0, rows: ROWS, terms: vec![term] })
    };
    let matrix = |units| MatrixEntry { rows: ROWS, cols: COLS, units, ..MatrixEntry::default() };
    let mut builder = ArchiveBuilder::default();
    builder.tensor(TensorEntry {
        name: "a".into(),
        dtype: DType::F32,
        shape: vec![ROWS, COLS],
        content: Content::Matrices(vec![matrix(vec![unit(0)?, unit(1)?])]),
    });
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.cmf");
    std::fs::write(&path, builder.to_vec()?)?;
    let options = OpenOptions { backend: Backend::Pread, ..OpenOptions::default() };
    let model = Model::open_with(&path, &options)?;
    let resident = model.resident(Budget::Maximum)?;
    for seconds in PAUSES {
        resident.set_budget(Budget::Minimum)?;
        std::thread::sleep(Duration::from_secs(seconds));
        let started = Instant::now();
        let change = resident.set_budget(Budget::Maximum)?;
        let speed = change.loaded_bytes as f64 / started.elapsed().as_secs_f64() / 1e9;
        println!("{seconds:>2} s after it was given back: {speed:.2} GB/s");
    }
    Ok(())
}

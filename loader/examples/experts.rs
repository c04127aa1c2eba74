//! Requires experts of a mixture with very many of them, and says how long that takes and how much memory the tables
//! have: `cargo run --release -p cmf-loader --example experts -- 61 256`.

use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType};
use cmf_loader::resident::ResidentOptions;
use cmf_loader::{Budget, Model, Want};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Rows and columns: a page each.
const ROWS: u64 = 16;
const COLS: u64 = 64;
const MATRICES: [&str; 3] = ["gate", "up", "down"];
/// Experts that a layer chooses for a token.
const CHOSEN: usize = 8;

fn name(layer: usize, expert: usize, matrix: &str) -> String {
    format!("layers.{layer:02}.experts.{expert:03}.{matrix}")
}

fn write(layers: usize, experts: usize, path: &str) -> Outcome<()> {
    let mut builder = ArchiveBuilder::default();
    let values: Vec<f32> = (0..ROWS * COLS).map(|value| value as f32).collect();
    let mut add = |name: String, first: f32| -> Outcome<()> {
        let mut values = values.clone();
        // No two are alike, or they would be one.
        values[0] = first;
        let node = dense::pack_values(DType::F32, ROWS, COLS, &values)?.into();
        let terms = vec![TermEntry { row_start: 0, col_start: 0, optional: false, node }];
        let units = vec![UnitEntry { level: 0, row_start: 0, rows: ROWS, terms }];
        builder.tensor(TensorEntry {
            name,
            dtype: DType::F32,
            shape: vec![ROWS, COLS],
            content: Content::Matrices(vec![MatrixEntry {
                rows: ROWS,
                cols: COLS,
                units,
                ..MatrixEntry::default()
            }]),
        });
        Ok(())
    };
    add("embedding".into(), -1.0)?;
    let mut number = 0.0;
    for layer in 0..layers {
        for expert in 0..experts {
            for matrix in MATRICES {
                number += 1.0;
                add(name(layer, expert, matrix), number)?;
            }
        }
    }
    Ok(std::fs::write(path, builder.to_vec()?)?)
}

/// Memory of the process's own, in bytes.
fn own_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |place: usize, default| arguments.get(place).map_or(Ok(default), |text| text.parse::<usize>());
    let (layers, experts) = (number(0, 61)?, number(1, 256)?);
    if let Some(path) = arguments.get(2) {
        return write(layers, experts, path);
    }
    // Written by another process, so that the memory of this one is the loader's.
    let file = tempfile::NamedTempFile::new()?;
    let mut writer = std::process::Command::new(std::env::current_exe()?);
    let path = file.path().to_str().ok_or("a path that is no text")?;
    let written = writer.args([&layers.to_string(), &experts.to_string(), path]).status()?;
    if !written.success() {
        return Err("the file was not written".into());
    }
    let started = Instant::now();
    let model = Model::open(file.path())?;
    println!("{layers} layers of {experts} experts, {} tensors", model.tensors().len());
    println!("open: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let before = own_bytes();
    let want = |name: &str| if name.contains(".experts.") { Want::Demand } else { Want::Budget };
    let options = ResidentOptions { want: Some(Arc::new(want)), ..ResidentOptions::default() };
    let started = Instant::now();
    let resident = model.resident_with(Budget::Minimum, options)?;
    println!("resident: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let one =
        model.demanded_bytes(MATRICES.map(|matrix| name(0, 0, matrix)).iter().map(String::as_str), 0)?;
    let require = |layer: usize, expert: usize| -> Outcome<Duration> {
        let names = MATRICES.map(|matrix| name(layer, expert, matrix));
        let started = Instant::now();
        drop(resident.require(names.iter().map(String::as_str))?);
        Ok(started.elapsed())
    };
    // Experts of tokens, which choose anew each time, with room for so many of them.
    for tokens in [1usize, 4, 16] {
        let room = tokens * layers * CHOSEN;
        resident.set_budget(Budget::Bytes(resident.least_bytes() + room as u64 * (one + 4096)))?;
        let (mut came, mut there) = (Vec::new(), Vec::new());
        let mut random = 1u32;
        for _ in 0..tokens + 2 {
            for layer in 0..layers {
                for _ in 0..CHOSEN {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let expert = (random >> 16) as usize % experts;
                    let brought = resident.status().brought;
                    let time = require(layer, expert)?;
                    if resident.status().brought > brought {
                        came.push(time)
                    } else {
                        there.push(time)
                    }
                    there.push(require(layer, expert)?);
                }
            }
        }
        println!(
            "room for {room}: {} held; an expert that is there {:.1} µs, one that comes {:.1} µs (of {})",
            resident.status().demanded / MATRICES.len(),
            median(there).as_secs_f64() * 1e6,
            median(came.clone()).as_secs_f64() * 1e6,
            came.len(),
        );
    }
    if let Some((before, after)) = before.zip(own_bytes()) {
        println!("tables: {} bytes of the process's own memory", after.saturating_sub(before));
    }
    Ok(())
}

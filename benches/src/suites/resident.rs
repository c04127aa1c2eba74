//! Moving the budget of a model.

use crate::clock::Time;
use crate::data;
use crate::row::{Bench, Goal, Outcome, Row, Suite};
use anyhow::{Result, ensure};
use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType};
use cmf_loader::resident::ResidentOptions;
use cmf_loader::{Backend, Budget, Model, OpenOptions};
use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};
use std::time::Instant;
use tempfile::NamedTempFile;

/// Matrices of two levels of a megabyte each.
const MATRICES: u64 = 100;
const SIDE: u64 = 500;
const READ_BYTES: usize = 1 << 20;

pub(crate) fn suite() -> Suite {
    let title = "resident: bring 100 MB of a 200 MB model in and give them back, from the system's cache; \
                 peer: read them into a buffer of 1 MiB";
    let row = |name: &str, goals: &[Goal], backend, verify| {
        Row::new(format!("resident/{name}"), goals, move |bench| compare(bench, backend, verify))
    };
    let rows = vec![
        row("mapped", &[Goal::Ratio(0.8), Goal::Seconds(20e-3)], Backend::Mmap, false),
        row("mapped-verified", &[], Backend::Mmap, true),
        row("in-memory", &[], Backend::Pread, false),
        row("in-memory-verified", &[], Backend::Pread, true),
    ];
    Suite { title, rows }
}

/// A file of [`MATRICES`] matrices, as large with their first level as with the second alone.
fn file() -> Result<NamedTempFile> {
    let mut builder = ArchiveBuilder::default();
    for matrix in 0..MATRICES {
        let unit = |level: u16| -> Result<UnitEntry> {
            let bytes = data::bytes(2 * matrix + u64::from(level) + 1, (4 * SIDE * SIDE) as usize);
            let node = dense::pack(DType::F32, SIDE, SIDE, bytes)?.into();
            let terms = vec![TermEntry { row_start: 0, col_start: 0, optional: false, node }];
            Ok(UnitEntry { level, row_start: 0, rows: SIDE, terms })
        };
        let units = vec![unit(0)?, unit(1)?];
        builder.tensor(TensorEntry {
            name: format!("layer.{matrix:02}"),
            dtype: DType::F32,
            shape: vec![SIDE, SIDE],
            content: Content::Matrices(vec![MatrixEntry {
                rows: SIDE,
                cols: SIDE,
                units,
                ..MatrixEntry::default()
            }]),
        });
    }
    let file = NamedTempFile::new()?;
    std::fs::write(file.path(), builder.to_vec()?)?;
    Ok(file)
}

fn compare(bench: &Bench<'_>, backend: Backend, verify: bool) -> Result<Outcome> {
    let path = file()?;
    let open = || Model::open_with(path.path(), &OpenOptions { backend, ..OpenOptions::default() });
    let options = ResidentOptions { verify, ..ResidentOptions::default() };
    let model = open()?;
    let resident = model.resident_with(Budget::Minimum, options.clone())?;
    let schedule = resident.schedule();
    let bytes = schedule.maximum_bytes() - schedule.minimum_bytes();
    let mut slowest_shrink = 0f64;
    let mut file = File::open(path.path())?;
    let mut buffer = vec![0; READ_BYTES];
    let start = SeekFrom::End(-(bytes as i64));
    let outcome = bench.compare(
        Time::Wall,
        bytes,
        &mut || {
            // What is verified once stays so: another `Resident` begins anew.
            let anew = verify.then(|| model.resident_with(Budget::Minimum, options.clone())).transpose()?;
            let resident = anew.as_ref().unwrap_or(&resident);
            let change = resident.set_budget(Budget::Maximum)?;
            ensure!(change.loaded_bytes >= bytes, "brought in {} bytes of {bytes}", change.loaded_bytes);
            let started = Instant::now();
            let change = resident.set_budget(Budget::Minimum)?;
            slowest_shrink = slowest_shrink.max(started.elapsed().as_secs_f64());
            ensure!(change.released_bytes >= bytes, "gave back {} bytes of {bytes}", change.released_bytes);
            Ok(())
        },
        ("read", &mut || {
            file.seek(start)?;
            while file.read(&mut buffer)? > 0 {
                black_box(&buffer);
            }
            Ok(())
        }),
    )?;
    Ok(outcome.note(format!("{} MB given back in at most {:.1} ms", bytes / 1_000_000, slowest_shrink * 1e3)))
}

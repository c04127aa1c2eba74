//! Verification of whole files.

use crate::clock::Time;
use crate::files::{converted, matrices};
use crate::row::{Bench, Goal, Outcome, Row, Suite};
use anyhow::{Result, ensure};
use cmf_loader::{Backend, Model, OpenOptions, VerifyOptions};
use std::fs::File;
use std::hint::black_box;

/// What a row verifies.
#[derive(Clone, Copy)]
struct Case {
    recipe: &'static str,
    /// Codes, indices and frames, besides hashes.
    values: bool,
    backend: Backend,
    /// Whether the file is opened again in each round, so that its pages are mapped anew.
    open: bool,
    threads: usize,
}

pub(crate) fn suite() -> Suite {
    let one = Case { recipe: "keep", values: true, backend: Backend::Mmap, open: false, threads: 1 };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cases = [
        ("hashes", Case { values: false, ..one }),
        ("keep", one),
        ("keep-open", Case { open: true, ..one }),
        ("keep-pread", Case { backend: Backend::Pread, ..one }),
        ("keep-all-threads", Case { threads, ..one }),
        ("q4", Case { recipe: "q4", ..one }),
        ("q3", Case { recipe: "q3", ..one }),
        ("q4-sparse", Case { recipe: "q4-sparse", ..one }),
        ("lossless-hashes", Case { recipe: "lossless", values: false, ..one }),
        ("lossless", Case { recipe: "lossless", ..one }),
    ];
    let row = |(name, case): (&str, Case)| {
        Row::new(format!("verify/{name}"), [Goal::Ratio(0.8)], move |bench| verify(bench, case))
    };
    Suite {
        title: "verify: an open, warm file, one thread unless it says otherwise; peer: BLAKE3 of the same bytes in memory, \
                or read",
        rows: cases.into_iter().map(row).collect(),
    }
}

fn verify(bench: &Bench<'_>, case: Case) -> Result<Outcome> {
    let (_folder, path) = converted(matrices(16, 1024, 4096), case.recipe)?;
    let bytes = std::fs::read(&path)?;
    let open = OpenOptions { backend: case.backend, ..OpenOptions::default() };
    let model = Model::open_with(&path, &open)?;
    let options = VerifyOptions { values: case.values, ..VerifyOptions::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(case.threads).build()?;
    let time = if case.threads == 1 { Time::Cpu } else { Time::Wall };
    let outcome = bench.compare(
        time,
        bytes.len() as u64,
        &mut || {
            let fresh = if case.open { Some(Model::open_with(&path, &open)?) } else { None };
            let model = fresh.as_ref().unwrap_or(&model);
            let found = pool.install(|| model.verify_with(&options, |_, _| {}));
            ensure!(found.is_ok(), "found damage: {:?}", found.errors);
            Ok(())
        },
        (if case.backend == Backend::Pread { "blake3+read" } else { "blake3" }, &mut || {
            black_box(match case.backend {
                Backend::Pread => blake3::Hasher::new().update_reader(File::open(&path)?)?.finalize(),
                _ if case.threads == 1 => blake3::hash(&bytes),
                _ => pool.install(|| blake3::Hasher::new().update_rayon(&bytes).finalize()),
            });
            Ok(())
        }),
    )?;
    Ok(outcome.note(format!("{:.1} MB", bytes.len() as f64 / 1e6)))
}

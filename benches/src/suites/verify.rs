//! Verification of whole files.

use crate::clock::Time;
use crate::files::{converted, matrices};
use crate::row::{Bench, Goal, Outcome, Row, Suite};
use anyhow::{Result, bail, ensure};
use cmf_format::encoding::lossless;
use cmf_loader::{Backend, Model, OpenOptions, VerifyOptions};
use std::borrow::Cow;
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
                or read, and zstd of the same frames",
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
    let frames = if case.values { frames(&model)? } else { Vec::new() };
    let mut inflated = vec![0; frames.iter().map(|frame| frame.decoded_bytes).max().unwrap_or(0)];
    let mut zstd = zstd::bulk::Decompressor::new()?;
    let peer = match (case.backend, frames.is_empty()) {
        (Backend::Pread, _) => "blake3+read",
        (_, true) => "blake3",
        (_, false) => "blake3+zstd",
    };
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
        (peer, &mut || {
            black_box(match case.backend {
                Backend::Pread => blake3::Hasher::new().update_reader(File::open(&path)?)?.finalize(),
                _ if case.threads == 1 => blake3::hash(&bytes),
                _ => pool.install(|| blake3::Hasher::new().update_rayon(&bytes).finalize()),
            });
            for frame in &frames {
                let out = &mut inflated[..frame.decoded_bytes];
                ensure!(zstd.decompress_to_buffer(frame.stored, out)? == out.len(), "a frame is short");
                black_box(out);
            }
            Ok(())
        }),
    )?;
    Ok(outcome.note(format!("{:.1} MB", bytes.len() as f64 / 1e6)))
}

/// A zstd frame as it is stored.
struct Frame<'m> {
    stored: &'m [u8],
    decoded_bytes: usize,
}

/// The frames of all `lossless` nodes, which we inflate: of the chunks that their ends cut the payload into,
/// those that are zstd's (spec: encodings/lossless).
fn frames(model: &Model) -> Result<Vec<Frame<'_>>> {
    let mut frames = Vec::new();
    for node in model.archive().nodes().filter(|node| node.record().encoding.get() == lossless::ID) {
        let mut segments = node.segments().map(|segment| segment.stored());
        let (Some(ends), Some(chunks)) = (segments.next(), segments.next()) else { continue };
        let (ends, Cow::Borrowed(chunks)) = (ends?, chunks?) else { bail!("expected a mapped file") };
        let mut start = 0;
        for end in ends.as_chunks::<8>().0 {
            let end = usize::try_from(u64::from_le_bytes(*end))?;
            let stored = &chunks[start..end];
            start = end;
            if let Ok(Some(bytes)) = zstd::zstd_safe::get_frame_content_size(stored) {
                frames.push(Frame { stored, decoded_bytes: usize::try_from(bytes)? });
            }
        }
    }
    Ok(frames)
}

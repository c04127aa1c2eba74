//! Moving the budget of a model.

use crate::clock::Time;
use crate::data;
use crate::row::{Bench, Goal, Outcome, Row, Suite};
use anyhow::{Result, anyhow, ensure};
use cmf_format::encoding::{dense, sparse};
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType};
use cmf_loader::resident::ResidentOptions;
use cmf_loader::{Backend, Budget, Model, OpenOptions};
use rayon::prelude::*;
use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};
use std::time::Instant;
use tempfile::NamedTempFile;

/// Matrices of a megabyte each, which all come with level 1: level 0 is empty.
const MATRICES: u64 = 100;
const SIDE: u64 = 500;
const READ_BYTES: usize = 1 << 20;

pub(crate) fn suite() -> Suite {
    let title = "resident: bring 100 MB of a model in and give them back, from the system's cache; peers: read \
                 them into a buffer of 1 MiB, into memory that is there, or into new memory, on one thread; hash \
                 them with BLAKE3, or read and hash them, on all threads";
    let row = |name: &str, goals: &[Goal], peer, backend, verify| {
        Row::new(format!("resident/{name}"), goals, move |bench| compare(bench, peer, backend, verify))
    };
    let rows = vec![
        row("mapped", &[Goal::Ratio(0.8), Goal::Seconds(20e-3)], Peer::Read, Backend::Mmap, false),
        row("mapped-verified", &[], Peer::Read, Backend::Mmap, true),
        row("mapped-verified-to-hash", &[Goal::Ratio(0.8)], Peer::Hash, Backend::Mmap, true),
        row("in-memory", &[], Peer::Read, Backend::Pread, false),
        row("in-memory-to-place", &[Goal::Ratio(0.8)], Peer::Place, Backend::Pread, false),
        row("in-memory-to-keep", &[Goal::Ratio(0.8)], Peer::Keep, Backend::Pread, false),
        row("in-memory-verified", &[], Peer::Read, Backend::Pread, true),
        row("in-memory-verified-to-keep", &[Goal::Ratio(0.8)], Peer::Keep, Backend::Pread, true),
        row("in-memory-verified-to-hash", &[Goal::Ratio(0.8)], Peer::ReadHash, Backend::Pread, true),
    ];
    Suite { title, rows }
}

/// A file of [`MATRICES`] matrices, all of which a budget above the minimum brings in.
fn file() -> Result<NamedTempFile> {
    let mut builder = ArchiveBuilder::default();
    for matrix in 0..MATRICES {
        let unit = |level: u16| -> Result<UnitEntry> {
            let node = match level {
                0 => {
                    let positions = sparse::Positions {
                        block: sparse::Block::ONE,
                        row_offsets: vec![0; SIDE as usize + 1],
                        columns: Vec::new(),
                    };
                    let values = dense::pack(DType::F32, 0, 1, Vec::new())?;
                    sparse::pack_csr(sparse::Op::Add, SIDE, SIDE, &positions, values)?
                }
                _ => {
                    let bytes = data::bytes(matrix + 1, (4 * SIDE * SIDE) as usize);
                    dense::pack(DType::F32, SIDE, SIDE, bytes)?
                }
            };
            let node = node.into();
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

/// What it is compared with.
#[derive(Clone, Copy)]
enum Peer {
    /// Reading into a buffer that stays in the processor's cache.
    Read,
    /// Reading into as much memory, which is there already.
    Place,
    /// Reading into memory that is new.
    Keep,
    /// Hashing what lies in memory, on all threads.
    Hash,
    /// Reading into a buffer that stays in the processor's cache, and hashing it, on all threads.
    ReadHash,
}

fn compare(bench: &Bench<'_>, peer: Peer, backend: Backend, verify: bool) -> Result<Outcome> {
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
    let in_memory = std::fs::read(path.path())?;
    let in_memory = in_memory.get(in_memory.len() - bytes as usize..).unwrap_or(&[]);
    let mut hash = || {
        in_memory.par_chunks(READ_BYTES).for_each(|part| {
            black_box(blake3::hash(part));
        });
        Ok(())
    };
    let mut place = vec![1; bytes as usize];
    let mut place_file = File::open(path.path())?;
    let mut fill = || {
        place_file.seek(start)?;
        place_file.read_exact(&mut place)?;
        black_box(&place);
        Ok(())
    };
    let first = std::fs::metadata(path.path())?.len() - bytes;
    let mut read_and_hash = || {
        let parts = (0..bytes.div_ceil(READ_BYTES as u64)).into_par_iter();
        parts.try_for_each_init(
            || (File::open(path.path()), vec![0; READ_BYTES]),
            |(file, buffer), part| -> Result<()> {
                let file = file.as_mut().map_err(|e| anyhow!("{e}"))?;
                file.seek(SeekFrom::Start(first + part * READ_BYTES as u64))?;
                let read = file.read(buffer)?;
                black_box(blake3::hash(buffer.get(..read).unwrap_or(&[])));
                Ok(())
            },
        )
    };
    let mut kept_file = File::open(path.path())?;
    let mut keep = || {
        let mut kept = Vec::with_capacity(bytes as usize);
        kept_file.seek(start)?;
        Read::by_ref(&mut kept_file).take(bytes).read_to_end(&mut kept)?;
        black_box(&kept);
        Ok(())
    };
    let mut read = || {
        file.seek(start)?;
        while file.read(&mut buffer)? > 0 {
            black_box(&buffer);
        }
        Ok(())
    };
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
        match peer {
            Peer::Read => ("read", &mut read),
            Peer::Place => ("read+place", &mut fill),
            Peer::Keep => ("read+keep", &mut keep),
            Peer::ReadHash => ("read+blake3", &mut read_and_hash),
            Peer::Hash => ("blake3", &mut hash),
        },
    )?;
    Ok(outcome.note(format!("{} MB given back in at most {:.1} ms", bytes / 1_000_000, slowest_shrink * 1e3)))
}

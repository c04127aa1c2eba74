//! A control group with a hard limit, in which a process must live that holds a model larger than it.

#![cfg(all(target_os = "linux", feature = "pressure"))]

mod common;

use cmf_format::encoding::dense;
use cmf_format::write::{MatrixEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType};
use cmf_loader::resident::pressure::Pressure;
use cmf_loader::{Backend, Budget, Levels, Model, OpenOptions};
use common::{Fallible, Outcome, entry, term, write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MODEL: &str = "CMF_TEST_GROUP_MODEL";
const BACKEND: &str = "CMF_TEST_GROUP_BACKEND";
const BUDGET: &str = "CMF_TEST_GROUP_BUDGET";

const LIMIT_BYTES: u64 = 48 << 20;
const LEVELS: u16 = 24;
const SIDE: u64 = 1024;

/// A matrix of 24 levels of 4 MiB: twice the limit.
fn model(dir: &Path) -> Fallible<PathBuf> {
    let mut state = 1u32;
    let units = (0..LEVELS).map(|level| {
        let bytes = (0..SIDE * SIDE).flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32).to_le_bytes()
        });
        let node = dense::pack(DType::F32, SIDE, SIDE, bytes.collect::<Vec<u8>>())?;
        Ok(UnitEntry { level, row_start: 0, rows: SIDE, terms: vec![term(0, node)] })
    });
    let units = units.collect::<Fallible<_>>()?;
    let matrix = MatrixEntry { rows: SIDE, cols: SIDE, units, ..MatrixEntry::default() };
    let mut builder = ArchiveBuilder::default();
    builder.tensor(entry("a", DType::F32, &[SIDE, SIDE], vec![matrix]));
    let path = write(dir, "model.cmf", &builder)?;
    // Out of the system's cache: whoever reads it pays for it.
    let file = std::fs::File::open(&path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(path)
}

/// A group below that of this process, with a limit; gone with it.
struct Group(PathBuf);

impl Group {
    /// Why there is none is what the error says.
    fn new(name: &str) -> Fallible<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let fields = own.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?.trim_start_matches('/').to_owned()))
        });
        let mut problem = "no control group of memory".to_owned();
        for (controllers, path) in fields {
            let (mount, limit) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => continue,
            };
            let group = Path::new(mount).join(path).join(format!("cmf-test-{}-{name}", std::process::id()));
            let made = std::fs::create_dir(&group)
                .map(|()| Self(group.clone()))
                .and_then(|made| std::fs::write(group.join(limit), LIMIT_BYTES.to_string()).map(|()| made));
            match made {
                Ok(made) => {
                    // Without this it would swap in place of being killed.
                    let _ = std::fs::write(group.join("memory.swap.max"), "0");
                    let _ = std::fs::write(group.join("memory.swappiness"), "0");
                    return Ok(made);
                }
                Err(error) => problem = format!("{}: {error}", group.display()),
            }
        }
        Err(problem.into())
    }

    /// Runs [`child`] in the group.
    fn run(&self, model: &Path, backend: &str, budget: &str) -> Fallible<ExitStatus> {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(std::env::current_exe()?);
        command.args(["--exact", "child", "--ignored", "--nocapture"]);
        command.env(MODEL, model).env(BACKEND, backend).env(BUDGET, budget);
        Ok(command.status()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Holds the model within a budget for a second, and reads all that it holds again and again.
#[test]
#[ignore = "runs in a process of its own, with a limit"]
fn child() -> Outcome {
    let Some(path) = std::env::var_os(MODEL) else { return Ok(()) };
    let backend = match std::env::var(BACKEND)?.as_str() {
        "pread" => Backend::Pread,
        _ => Backend::Mmap,
    };
    let budget = std::env::var(BUDGET)?;
    let model = Model::open_with(path, &OpenOptions { backend, ..OpenOptions::default() })?;
    let resident = model.resident(Budget::parse(&budget)?)?;
    let done = AtomicBool::new(false);
    let pressure = Pressure { period: Duration::from_millis(20), ..Pressure::default() };
    std::thread::scope(|scope| -> Outcome {
        let follower = scope.spawn(|| match budget.as_str() {
            "auto" => pressure.follow(&resident, &done, |budget| {
                resident.set_budget(budget).map(drop).map_err(std::io::Error::other)
            }),
            _ => Ok(()),
        });
        let started = Instant::now();
        let mut row = vec![0.0; SIDE as usize];
        let mut reads = 0;
        while started.elapsed() < Duration::from_secs(1) || reads < 64 {
            let snapshot = resident.snapshot();
            let tensor = model.tensor("a").ok_or("missing")?;
            let number = reads * 37 % SIDE;
            tensor.decode_rows(Levels::Plan(snapshot.plan()), number..number + 1, &mut row)?;
            reads += 1;
        }
        done.store(true, Ordering::Relaxed);
        follower.thread().unpark();
        follower.join().map_err(|_| "panicked")??;
        let status = resident.status();
        println!("held {} of {} bytes, {} changes", status.held_bytes, status.budget_bytes, status.changes);
        assert!(status.held_bytes < LIMIT_BYTES);
        Ok(())
    })
}

#[test]
fn a_process_lives_within_a_hard_limit() -> Outcome {
    let group = match Group::new("auto") {
        Ok(group) => group,
        Err(problem) => {
            println!("SKIPPED: {problem}");
            return Ok(());
        }
    };
    let dir = tempfile::tempdir()?;
    let path = model(dir.path())?;
    for backend in ["mmap", "pread"] {
        let status = group.run(&path, backend, "auto")?;
        assert!(status.success(), "{backend}: {status}");
    }
    // The limit is a hard one: who does not look at it is killed.
    let status = group.run(&path, "pread", "max")?;
    assert_eq!(status.signal(), Some(9), "{status}");
    Ok(())
}

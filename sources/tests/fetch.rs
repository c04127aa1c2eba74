//! Fetching from servers that do wrong: what is kept is what has its hash, and all of it comes.

mod model;
#[allow(dead_code, reason = "each test file uses its part of it")]
mod server;

use cmf_loader::resident::ResidentOptions;
use cmf_loader::{Budget, Levels, Model, Want};
use cmf_sources::{ErrorKind, Fetch, Http, Progress, Result};
use model::{model, options};
use server::{Answer, Server};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn begin(server: &Server, target: &Path) -> Result<Fetch> {
    Fetch::begin(Box::new(Http::new(&server.url, &options())), target, options())
}

fn fetch(server: &Server, target: &Path) -> Result<PathBuf> {
    let fetch = begin(server, target)?;
    fetch.run(&|_| {})?;
    fetch.finish()
}

/// Fetches from a server that chooses its answers; what comes must be the file.
fn survives(choose: impl Fn(usize, &Range<u64>) -> Answer + Send + Sync + 'static) -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let server = Server::new(file.clone(), choose)?;
    let target = dir.path().join("model.cmf");
    assert_eq!(fetch(&server, &target)?, target);
    assert!(std::fs::read(&target)? == file, "the file is the one that the server has");
    assert!(!dir.path().join("model.cmf.part").exists());
    Ok(())
}

/// The kind of error that a fetch ends with.
fn ends(
    choose: impl Fn(usize, &Range<u64>) -> Answer + Send + Sync + 'static,
) -> std::result::Result<Option<ErrorKind>, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let server = Server::new(model(1)?, choose)?;
    let target = dir.path().join("model.cmf");
    let result = fetch(&server, &target);
    assert!(!target.exists(), "what is not whole has not the name of the file");
    Ok(result.err().map(|e| e.kind()))
}

/// Every third request goes wrong, the first ones included.
fn sometimes(wrong: Answer) -> impl Fn(usize, &Range<u64>) -> Answer + Send + Sync + 'static {
    move |number, _| if number.is_multiple_of(3) { wrong.clone() } else { Answer::Good }
}

#[test]
fn a_good_server_sends_each_byte_once() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let target = dir.path().join("model.cmf");
    fetch(&server, &target)?;
    assert!(std::fs::read(&target)? == file);
    // Beside the file: the rest of the first 64 KiB, the padding, which is less than a segment's place.
    assert!(server.sent() < file.len() as u64 + (64 << 10), "{} bytes for {}", server.sent(), file.len());
    assert!(server.requests() < file.len() / 50_000 + 8, "{} requests", server.requests());
    Ok(())
}

/// What is there already is looked for, and what is not, but none of it comes into memory: a model may hold less.
#[cfg(target_os = "linux")]
#[test]
fn going_on_brings_nothing_into_memory() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let target = dir.path().canonicalize()?.join("model.cmf");
    for steps in [0, 6, usize::MAX] {
        let fetch = begin(&server, &target)?;
        fetch.limit(steps);
        fetch.run(&|_| {})?;
        let part = fetch.part().to_str().ok_or("no text")?.to_owned();
        let maps = std::fs::read_to_string("/proc/self/smaps")?;
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(&part));
        let resident = lines.find_map(|line| line.strip_prefix("Rss:")).ok_or("no map")?;
        let kilobytes: usize = resident.trim().trim_end_matches(" kB").parse()?;
        assert!(kilobytes < file.len() / 1024 / 4, "{resident} of {} bytes at {steps} steps", file.len());
    }
    fetch(&server, &target)?;
    assert!(std::fs::read(&target)? == file);
    assert!(server.sent() < file.len() as u64 + 5 * (64 << 10), "{} bytes for {}", server.sent(), file.len());
    Ok(())
}

#[test]
fn a_slow_server_is_waited_for() -> Outcome {
    survives(|_, _| Answer::Slow(20_000))
}

#[test]
fn a_server_that_fails_is_asked_again() -> Outcome {
    survives(sometimes(Answer::Status(500)))?;
    survives(sometimes(Answer::Status(429)))
}

#[test]
fn a_server_that_cuts_bodies_short_is_asked_for_the_rest() -> Outcome {
    survives(sometimes(Answer::Cut(10_000)))
}

#[test]
fn a_server_that_resets_connections_is_asked_again() -> Outcome {
    survives(sometimes(Answer::Reset(10_000)))
}

#[test]
fn a_server_that_stalls_is_left() -> Outcome {
    survives(|number, _| if number % 5 == 1 { Answer::Stall(9_000) } else { Answer::Good })
}

#[test]
fn a_server_that_sends_other_ranges_is_not_believed() -> Outcome {
    survives(
        |number, range| if number % 3 == 1 && range.start > 0 { Answer::OtherRange } else { Answer::Good },
    )
}

#[test]
fn a_server_that_sends_other_bytes_is_not_believed() -> Outcome {
    survives(|number, _| if number % 3 == 2 { Answer::Corrupt } else { Answer::Good })
}

#[test]
fn a_server_without_ranges_is_read_in_one_stream() -> Outcome {
    survives(|_, _| Answer::Whole)?;
    survives(|_, _| Answer::Bare)
}

#[test]
fn a_server_that_never_answers_ends_the_fetch() -> Outcome {
    assert_eq!(ends(|_, _| Answer::Status(503))?, Some(ErrorKind::Unreachable));
    assert_eq!(
        ends(|n, _| if n < 3 { Answer::Good } else { Answer::Cut(100) })?,
        Some(ErrorKind::Unreachable)
    );
    Ok(())
}

#[test]
fn a_server_that_refuses_ends_the_fetch_at_once() -> Outcome {
    assert_eq!(ends(|_, _| Answer::Status(404))?, Some(ErrorKind::Refused));
    assert_eq!(
        ends(|n, _| if n < 3 { Answer::Good } else { Answer::Status(403) })?,
        Some(ErrorKind::Refused)
    );
    Ok(())
}

#[test]
fn a_server_whose_bytes_never_have_their_hash_ends_the_fetch() -> Outcome {
    assert_eq!(ends(|_, _| Answer::CorruptFrom(300_000))?, Some(ErrorKind::Corrupt));
    assert_eq!(ends(|_, _| Answer::Corrupt)?, Some(ErrorKind::Format), "no header");
    assert_eq!(
        ends(|_, _| Answer::CorruptFrom(1000))?,
        Some(ErrorKind::Format),
        "a directory without its hash"
    );
    Ok(())
}

#[test]
fn a_file_that_is_replaced_is_noticed_and_then_fetched_anew() -> Outcome {
    let (dir, second) = (tempfile::tempdir()?, model(2)?);
    let target = dir.path().join("model.cmf");
    let server = Server::new(model(1)?, |_, _| Answer::Slow(10_000))?;
    let fetching = begin(&server, &target)?;
    let replaced = AtomicBool::new(false);
    let result = fetching.run(&|progress: Progress| {
        if progress.have_bytes > 100_000 && !replaced.swap(true, Ordering::Relaxed) {
            server.replace(second.clone());
        }
    });
    assert_eq!(result.err().map(|e| e.kind()), Some(ErrorKind::Changed));
    drop(fetching);
    fetch(&server, &target)?;
    assert!(std::fs::read(&target)? == second);
    Ok(())
}

#[test]
fn a_fetch_goes_on_where_another_ended_whatever_is_in_the_file() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let target = dir.path().join("model.cmf");
    let part = dir.path().join("model.cmf.part");
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let first = begin(&server, &target)?;
    let result = first.run(&|progress| {
        if progress.have_bytes > 300_000 {
            first.stop();
        }
    });
    result?;
    let have = first.progress().have_bytes;
    assert!(first.progress().have_bytes < first.progress().wanted_bytes);
    assert_eq!(first.finish().err().map(|e| e.kind()), Some(ErrorKind::Busy));
    // Something else writes to the file: one group is no longer what it was.
    let mut bytes = std::fs::read(&part)?;
    let place = bytes.iter().rposition(|byte| *byte != 0).ok_or("nothing came")?;
    bytes[place] ^= 1;
    std::fs::write(&part, bytes)?;
    let before = server.sent();
    fetch(&server, &target)?;
    assert!(std::fs::read(&target)? == file);
    let again = server.sent() - before;
    assert!(again < file.len() as u64 - have + (64 << 10) + 60_000, "{again} bytes after {have}");
    Ok(())
}

#[test]
fn two_fetches_to_one_place_are_one_too_many() -> Outcome {
    let dir = tempfile::tempdir()?;
    let target = dir.path().join("model.cmf");
    let server = Server::new(model(1)?, |_, _| Answer::Good)?;
    let first = begin(&server, &target)?;
    assert_eq!(begin(&server, &target).err().map(|e| e.kind()), Some(ErrorKind::Busy));
    first.run(&|_| {})?;
    Ok(())
}

#[test]
fn a_model_is_read_while_it_comes() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let whole = dir.path().join("whole.cmf");
    std::fs::write(&whole, &file)?;
    let whole = Model::open(&whole)?;
    let server = Server::new(file, |_, _| Answer::Slow(20_000))?;
    let fetch = begin(&server, &dir.path().join("model.cmf"))?;
    let steps = fetch.model().schedule()?.steps();
    std::thread::scope(|scope| -> Outcome {
        let run = scope.spawn(|| fetch.run(&|_| {}));
        let required = fetch.model().schedule()?.required_steps();
        let mut arrived = fetch.wait_beyond(Some(required - 1)).ok_or("nothing came")?;
        let resident = fetch.model().resident_of(Budget::Maximum, ResidentOptions::default(), arrived)?;
        let mut plans = 0;
        loop {
            let snapshot = resident.snapshot();
            assert_eq!(snapshot.plan().units(), arrived);
            for tensor in whole.tensors() {
                let (mut found, mut expected) = (vec![0.0; 10_000], vec![0.0; 10_000]);
                let here = fetch.model().tensor(tensor.name()).ok_or("missing")?;
                here.decode(Levels::Plan(snapshot.plan()), &mut found)?;
                tensor.decode(Levels::Plan(snapshot.plan()), &mut expected)?;
                assert!(found == expected, "{} with {arrived} units", tensor.name());
            }
            drop(snapshot);
            plans += 1;
            if arrived == steps {
                break;
            }
            arrived = fetch.wait_beyond(Some(arrived)).ok_or("nothing came")?;
            resident.set_arrived(arrived, |_| Ok::<_, cmf_loader::Error>(()))?;
        }
        assert!(plans > 2, "the model gets better as it comes");
        Ok(run.join().map_err(|_| "the fetch panicked")??)
    })
}

#[test]
fn a_budget_gets_its_own_bytes() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let fetch = begin(&server, &dir.path().join("model.cmf"))?;
    let least = fetch.model().schedule()?.required_steps();
    fetch.limit(least);
    fetch.run(&|_| {})?;
    assert_eq!(fetch.arrived(), Some(least));
    assert!(server.sent() < file.len() as u64 / 2);
    let part = fetch.part().to_owned();
    drop(fetch);
    let model = Model::open(part)?;
    let resident = model.resident(Budget::Minimum)?;
    assert!(resident.set_budget(Budget::Maximum).is_err(), "what did not come is not believed");
    Ok(())
}

#[test]
fn a_part_of_a_model_gets_its_own_bytes() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, model(1)?);
    let server = Server::new(file.clone(), |_, _| Answer::Good)?;
    let mut fetch = begin(&server, &dir.path().join("model.cmf"))?;
    fetch.want(&|name| if name == "layer.2" { Want::Budget } else { Want::Never })?;
    assert_eq!(fetch.schedule().steps(), 3);
    fetch.run(&|_| {})?;
    assert_eq!(fetch.arrived(), Some(3));
    assert!(server.sent() < file.len() as u64 / 3, "{} of {}", server.sent(), file.len());
    let part = fetch.part().to_owned();
    assert_eq!(fetch.finish().err().map(|e| e.kind()), Some(ErrorKind::Busy));
    let model = Model::open(part)?;
    assert!(model.tensor("layer.2").ok_or("missing")?.verify().is_ok());
    assert!(model.tensor("layer.3").ok_or("missing")?.verify().is_err());
    Ok(())
}

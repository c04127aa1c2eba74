//! Tensors on demand of a file that is still coming: they come when somebody asks for them, and nothing twice.

mod model;
#[allow(dead_code, reason = "each test file uses its part of it")]
mod server;

use cmf_loader::resident::{Resident, ResidentOptions};
use cmf_loader::{Budget, Levels, Model, Want};
use cmf_sources::{ErrorKind, Fetch, Http};
use model::{model, options};
use server::{Answer, Server};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

type Outcome<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Layers 0 and 1 are in the plan, the others are experts.
const EXPERTS: Range<usize> = 2..6;

fn want(name: &str) -> Want {
    if EXPERTS.clone().any(|expert| name == format!("layer.{expert}")) { Want::Demand } else { Want::Budget }
}

fn begin(server: &Server, target: &Path) -> Outcome<Fetch> {
    let mut fetch = Fetch::begin(Box::new(Http::new(&server.url, &options())), target, options())?;
    fetch.want(&want)?;
    Ok(fetch)
}

/// What comes of a model is that of the file, and what was asked of its server.
struct Bed {
    whole: Model,
    file: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Outcome<Self> {
        let (dir, file) = (tempfile::tempdir()?, model(1)?);
        let path = dir.path().join("whole.cmf");
        std::fs::write(&path, &file)?;
        Ok(Self { whole: Model::open(path)?, file, dir })
    }

    fn target(&self) -> std::path::PathBuf {
        self.dir.path().join("model.cmf")
    }

    /// Where the segments of expert `expert` lie.
    fn ranges(&self, expert: usize) -> Outcome<Vec<Range<u64>>> {
        let name = format!("layer.{expert}");
        let tensor = self.whole.tensor(&name).ok_or("missing")?;
        let matrices = tensor.stored()?.matrices().collect::<Vec<_>>();
        let segments = matrices.iter().flat_map(|matrix| matrix.units()).flat_map(|unit| unit.segments());
        let ranges = segments.filter_map(|index| self.whole.archive().segment(index)).map(|segment| {
            let record = segment.record();
            record.offset.get()..record.offset.get() + record.stored_bytes.get()
        });
        Ok(ranges.collect())
    }

    /// That an expert that `resident` holds is that of the file.
    fn check(&self, resident: &Resident<'_>, expert: usize) -> Outcome {
        let name = format!("layer.{expert}");
        let required = resident.require([name.as_str()])?;
        let (mut found, mut expected) = (vec![0.0; 10_000], vec![0.0; 10_000]);
        resident.model().tensor(&name).ok_or("missing")?.decode(Levels::All, &mut found)?;
        drop(required);
        self.whole.tensor(&name).ok_or("missing")?.decode(Levels::All, &mut expected)?;
        assert!(found == expected, "{name}");
        Ok(())
    }
}

fn resident(fetch: &Fetch) -> Outcome<Resident<'_>> {
    // Room for one expert, wherever on a page it begins.
    let least_demand_bytes = fetch.model().demanded_bytes(["layer.2"], u16::MAX)? + 8192;
    let options =
        ResidentOptions { want: Some(Arc::new(want)), least_demand_bytes, ..ResidentOptions::default() };
    let required = fetch.schedule().required_steps();
    let arrived = fetch.wait_beyond(required.checked_sub(1)).ok_or("nothing came")?;
    Ok(fetch.model().resident_of(Budget::Maximum, options, arrived)?.supplied_by(fetch))
}

/// Runs `work` beside a fetch, and gives what both gave.
fn beside<T>(
    fetch: &Fetch,
    work: impl FnOnce() -> Outcome<T>,
) -> Outcome<(Outcome<T>, cmf_sources::Result<()>)> {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| fetch.run(&|_| {}));
        let result = work();
        fetch.stop();
        Ok((result, run.join().map_err(|_| "the fetch panicked")?))
    })
}

/// A server that keeps what it was asked for.
type Asked = Arc<Mutex<Vec<Range<u64>>>>;

fn recording(
    file: &[u8],
    choose: impl Fn(usize, &Range<u64>) -> Answer + Send + Sync + 'static,
) -> Outcome<(Server, Asked)> {
    let asked = Asked::default();
    let kept = Arc::clone(&asked);
    let server = Server::new(file.to_vec(), move |number, range| {
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(range.clone());
        choose(number, range)
    })?;
    Ok((server, asked))
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn eventually(what: &str, done: impl Fn() -> bool) -> Outcome {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > Duration::from_secs(20) {
            return Err(what.to_owned().into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[test]
fn experts_come_when_they_are_asked_for_and_nothing_else_does() -> Outcome {
    let bed = Bed::new()?;
    let (server, asked) = recording(&bed.file, |_, _| Answer::Good)?;
    let fetch = begin(&server, &bed.target())?;
    let (work, run) = beside(&fetch, || {
        let resident = resident(&fetch)?;
        let steps = fetch.schedule().steps();
        eventually("the plan", || fetch.arrived() == Some(steps))?;
        resident.set_arrived(steps, |_| Ok::<_, cmf_loader::Error>(()))?;
        for expert in [3, 5, 3] {
            let before = (server.sent(), server.requests(), resident.status().brought);
            bed.check(&resident, expert)?;
            let there = resident.status().brought == before.2;
            let bytes: u64 = bed.ranges(expert)?.iter().map(|range| range.end - range.start).sum();
            // Three segments, which begin at multiples of 64 bytes: what lies between is not worth a request.
            let more = server.sent() - before.0;
            assert!(
                if there { more == 0 } else { (bytes..bytes + 3 * 64).contains(&more) },
                "{more} for {bytes}"
            );
            assert!(server.requests() - before.1 <= 9, "requests of 50 kB at most");
        }
        assert_eq!(resident.status().demanded, 2);
        Ok(())
    })?;
    work?;
    run?;
    // Beside the first 64 KiB no byte was asked for twice.
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for (index, range) in asked.iter().enumerate() {
        let later = &asked[index + 1..];
        assert!(
            range.start == 0 || !later.iter().any(|other| overlap(range, other)),
            "{range:?} of {asked:?}"
        );
    }
    for expert in [2, 4] {
        let ranges = bed.ranges(expert)?;
        let begun = |range: &Range<u64>| asked.iter().any(|asked| asked.start > 0 && overlap(asked, range));
        assert!(!ranges.iter().any(begun), "nobody asked for expert {expert}");
    }
    let have = fetch.progress().have_bytes;
    assert_eq!(fetch.progress().wanted_bytes, have);
    assert_eq!(fetch.finish().err().map(|e| e.kind()), Some(ErrorKind::Busy));
    // The next fetch has all of it, and gets what is missing.
    let before = server.sent();
    let fetch = begin(&server, &bed.target())?;
    fetch.want_demanded();
    fetch.run(&|_| {})?;
    assert!(server.sent() - before < bed.file.len() as u64 - have + (64 << 10) + 1024);
    assert!(std::fs::read(fetch.finish()?)? == bed.file);
    Ok(())
}

#[test]
fn who_waits_goes_before_the_rest_of_the_file() -> Outcome {
    let bed = Bed::new()?;
    let last = bed.ranges(5)?;
    let (server, asked) = recording(&bed.file, |_, _| Answer::Slow(4_000))?;
    let fetch = begin(&server, &bed.target())?;
    fetch.want_demanded();
    let (work, run) = beside(&fetch, || {
        let resident = resident(&fetch)?;
        let before = asked.lock().unwrap_or_else(PoisonError::into_inner).len();
        bed.check(&resident, 5)?;
        let there = asked.lock().unwrap_or_else(PoisonError::into_inner)[before..].to_vec();
        let other = there.iter().position(|asked| !last.iter().any(|range| overlap(asked, range)));
        let own = there.iter().rposition(|asked| last.iter().any(|range| overlap(asked, range)));
        // One that was chosen before it was asked for may still be on its way to the server.
        assert!(
            own.is_some() && other.is_none_or(|other| other < 4 || Some(other) > own),
            "{there:?} for {last:?}"
        );
        assert!(fetch.progress().have_bytes < fetch.progress().wanted_bytes, "the rest is still coming");
        eventually("the rest", || fetch.progress().have_bytes == fetch.progress().wanted_bytes)?;
        for expert in EXPERTS {
            bed.check(&resident, expert)?;
        }
        Ok(())
    })?;
    work?;
    run?;
    assert!(std::fs::read(fetch.finish()?)? == bed.file);
    Ok(())
}

#[test]
fn servers_that_do_wrong_are_survived() -> Outcome {
    type Choose = fn(usize, &Range<u64>) -> Answer;
    let wrong: [(&str, Choose); 8] = [
        ("fails", |number, _| if number % 3 == 2 { Answer::Status(500) } else { Answer::Good }),
        ("cuts", |number, _| if number % 3 == 2 { Answer::Cut(10_000) } else { Answer::Good }),
        ("resets", |number, _| if number % 3 == 2 { Answer::Reset(10_000) } else { Answer::Good }),
        ("stalls", |number, _| if number % 9 == 4 { Answer::Stall(9_000) } else { Answer::Good }),
        ("lies", |number, _| if number % 3 == 2 { Answer::Corrupt } else { Answer::Good }),
        ("sends other ranges", |number, range| {
            if number % 3 == 2 && range.start > 0 { Answer::OtherRange } else { Answer::Good }
        }),
        ("is slow", |_, _| Answer::Slow(9_000)),
        ("has no ranges", |_, _| Answer::Whole),
    ];
    for (what, choose) in wrong {
        let bed = Bed::new()?;
        let server = Server::new(bed.file.clone(), choose)?;
        let fetch = begin(&server, &bed.target())?;
        let (work, run) = beside(&fetch, || {
            let resident = resident(&fetch)?;
            std::thread::scope(|scope| {
                let threads = [[2, 5, 3], [5, 4, 2]].map(|experts| {
                    let (bed, resident) = (&bed, &resident);
                    scope.spawn(move || {
                        experts
                            .into_iter()
                            .try_for_each(|e| bed.check(resident, e))
                            .map_err(|e| e.to_string())
                    })
                });
                threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err("panicked".into())))
            })?;
            Ok(())
        })?;
        work.map_err(|e| format!("a server that {what}: {e}"))?;
        run?;
        // All experts have come, and the plan.
        let steps = fetch.schedule().steps();
        if fetch.arrived() == Some(steps) {
            assert!(std::fs::read(fetch.finish()?)? == bed.file, "a server that {what}");
        }
    }
    Ok(())
}

#[test]
fn what_does_not_come_is_an_error_that_names_it_and_where_it_was_to_come_from() -> Outcome {
    let bed = Bed::new()?;
    let ranges = bed.ranges(4)?;
    let cases: [(Answer, ErrorKind); 3] = [
        (Answer::Status(403), ErrorKind::Refused),
        (Answer::Status(503), ErrorKind::Unreachable),
        (Answer::Corrupt, ErrorKind::Corrupt),
    ];
    for (answer, kind) in cases {
        let (wrong, ranges) = (answer.clone(), ranges.clone());
        let server = Server::new(bed.file.clone(), move |_, asked| {
            let expert = asked.start > 0 && ranges.iter().any(|range| overlap(asked, range));
            if expert { wrong.clone() } else { Answer::Good }
        })?;
        let target = bed.dir.path().join(format!("{kind:?}.cmf"));
        let fetch = begin(&server, &target)?;
        let (work, run) = beside(&fetch, || {
            let resident = resident(&fetch)?;
            bed.check(&resident, 2)?;
            let error = resident.require(["layer.4"]).err().ok_or("it came")?;
            assert_eq!(error.kind(), cmf_loader::ErrorKind::Supply, "{error}");
            let text = error.to_string();
            assert!(text.contains("tensor `layer.4`") && text.contains(&server.url), "{text}");
            // What is there is there.
            bed.check(&resident, 2)?;
            let snapshot = resident.snapshot();
            let mut values = vec![0.0; 10_000];
            let tensor = fetch.model().tensor("layer.0").ok_or("missing")?;
            Ok(tensor.decode(Levels::Plan(snapshot.plan()), &mut values)?)
        })?;
        work?;
        assert_eq!(run.err().map(|e| e.kind()), Some(kind), "{answer:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_replaced_in_between_is_not_believed() -> Outcome {
    let (bed, second) = (Bed::new()?, model(2)?);
    let server = Server::new(bed.file.clone(), |_, _| Answer::Good)?;
    let fetch = begin(&server, &bed.target())?;
    let (work, run) = beside(&fetch, || {
        let resident = resident(&fetch)?;
        bed.check(&resident, 2)?;
        server.replace(second);
        let error = resident.require(["layer.3"]).err().ok_or("it came")?;
        assert!(error.to_string().contains("another file"), "{error}");
        bed.check(&resident, 2)
    })?;
    work?;
    assert_eq!(run.err().map(|e| e.kind()), Some(ErrorKind::Changed));
    Ok(())
}

#[test]
fn others_go_on_while_somebody_waits() -> Outcome {
    let bed = Bed::new()?;
    let ranges = bed.ranges(5)?;
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let server = Server::new(bed.file.clone(), move |_, asked| {
        let expert = asked.start > 0 && ranges.iter().any(|range| overlap(asked, range));
        if expert && !gate.load(Ordering::Relaxed) { Answer::Stall(1) } else { Answer::Good }
    })?;
    let slow = cmf_sources::FetchOptions { attempts: 24, pause: Duration::from_nanos(1), ..options() };
    let mut fetch = Fetch::begin(Box::new(Http::new(&server.url, &slow)), &bed.target(), slow)?;
    fetch.want(&want)?;
    let (work, run) = beside(&fetch, || {
        let resident = resident(&fetch)?;
        let steps = fetch.schedule().steps();
        eventually("the plan", || fetch.arrived() == Some(steps))?;
        resident.set_arrived(steps, |_| Ok::<_, cmf_loader::Error>(()))?;
        bed.check(&resident, 2)?;
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| bed.check(&resident, 5).map_err(|e| e.to_string()));
            let meanwhile = || -> Outcome {
                eventually("a request", || fetch.progress().wanted_bytes > fetch.progress().have_bytes)?;
                let began = Instant::now();
                let least = resident.least_bytes();
                for round in 0..50 {
                    bed.check(&resident, 2)?;
                    resident.set_budget(Budget::Bytes(least + (round % 2) * 200_000))?;
                }
                resident.set_budget(Budget::Maximum)?;
                assert!(!waits.is_finished(), "it cannot have come");
                assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
                Ok(())
            };
            let went_on = meanwhile();
            open.store(true, Ordering::Relaxed);
            went_on?;
            Ok(waits.join().map_err(|_| "it panicked")??)
        })
    })?;
    work?;
    run?;
    Ok(())
}

#[test]
fn a_budget_is_kept_and_what_went_does_not_come_from_the_server_again() -> Outcome {
    let bed = Bed::new()?;
    let server = Server::new(bed.file.clone(), |_, _| Answer::Good)?;
    let fetch = begin(&server, &bed.target())?;
    let (work, run) = beside(&fetch, || {
        let resident = resident(&fetch)?;
        let budget = resident.least_bytes() + 50_000;
        resident.set_budget(Budget::Bytes(budget))?;
        let mut times = BTreeMap::new();
        for expert in [2, 3, 4, 5, 2, 3, 2, 4, 5, 5, 3] {
            let before = server.sent();
            bed.check(&resident, expert)?;
            assert!(resident.status().held_bytes <= budget, "{:?}", resident.status());
            let times = times.entry(expert).or_insert(0);
            *times += 1;
            // The plan's last units may still come beside the first ones.
            assert!(*times == 1 || server.sent() == before, "expert {expert} came again");
        }
        assert!(resident.status().brought > 4, "{:?}", resident.status());
        Ok(())
    })?;
    work?;
    run?;
    Ok(())
}

#[test]
fn without_a_supply_what_is_not_there_is_not_believed() -> Outcome {
    let bed = Bed::new()?;
    let server = Server::new(bed.file.clone(), |_, _| Answer::Good)?;
    let fetch = begin(&server, &bed.target())?;
    let (work, run) = beside(&fetch, || {
        let options = ResidentOptions { want: Some(Arc::new(want)), ..ResidentOptions::default() };
        let steps = fetch.schedule().steps();
        fetch.wait_beyond(Some(steps - 1));
        let resident = fetch.model().resident_of(Budget::Maximum, options, steps)?;
        let error = resident.require(["layer.2"]).err().ok_or("it is not there")?;
        assert!(matches!(error.kind(), cmf_loader::ErrorKind::Format(_)), "{error}");
        Ok(())
    })?;
    work?;
    run?;
    // When nobody gets anything any more, nobody waits.
    let error = fetch.bring(&[0, u32::MAX, 3, 4, 5, 6, 7, 8, 9, 10, 11]).err().map(|e| e.kind());
    assert_eq!(error, Some(ErrorKind::Busy));
    Ok(())
}

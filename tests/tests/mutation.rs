//! Damages real archives at every structural offset.
//!
//! Without repair, any change is seen by parsing and verification, or it is one of the few header
//! bits that change nothing but the archive's identity. With repair, when all hashes are right
//! again, whatever still parses keeps its laws, allocates little, and leaves the tensors alone that
//! do not rest on the changed bytes.

use cmf_format::archive::TensorView;
use cmf_format::{Archive, ErrorKind, Limits, Result};
use cmf_tests::{places, repair, samples, targets};
use peak_alloc::PeakAlloc;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Tests that measure memory run one after another.
static ALONE: Mutex<()> = Mutex::new(());

/// What reading a damaged sample, of at most 8 KiB, may allocate.
const ALLOCATION_BYTES: usize = 8 << 20;

/// Values of a tensor at all levels as bits, or why there are none.
type Values = std::result::Result<Vec<u32>, ErrorKind>;

struct Sample {
    name: &'static str,
    bytes: Vec<u8>,
    identity: [u8; 32],
    /// Name, values, and the bytes that they rest on.
    tensors: Vec<(String, Values, Vec<Range<usize>>)>,
    payload: Vec<Range<usize>>,
}

fn samples() -> Result<Vec<Sample>> {
    samples::all()?
        .into_iter()
        .map(|(name, bytes)| {
            let archive = Archive::parse(&bytes, &targets::limits())?;
            let tensors = archive
                .tensors()
                .map(|t| (t.name().to_owned(), values(&archive, t.name()), places::footprint(&bytes, &t)));
            let (tensors, identity) = (tensors.collect(), archive.identity());
            let payload = places::segments(&archive);
            Ok(Sample { name, bytes: bytes.clone(), identity, tensors, payload })
        })
        .collect()
}

fn values(archive: &Archive<&Vec<u8>>, name: &str) -> Values {
    let tensor = archive.tensor(name).ok_or(ErrorKind::Argument)?;
    let view = TensorView::open(&tensor, u16::MAX).map_err(|e| e.kind())?;
    let mut out = vec![0.0; view.rows() * view.cols()];
    view.decode_rows(0..view.rows(), &mut out).map_err(|e| e.kind())?;
    Ok(out.into_iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect())
}

/// Checks a changed file as it is.
fn unrepaired(sample: &Sample, what: &str, damaged: &Vec<u8>) {
    if *damaged == sample.bytes {
        return;
    }
    let Ok(archive) = Archive::parse(damaged, &Limits::default()) else { return };
    if archive.verify().is_ok() {
        assert_ne!(archive.identity(), sample.identity, "{}: {what} is not seen", sample.name);
        for (name, before, _) in &sample.tensors {
            assert_eq!(values(&archive, name), *before, "{}: {what} changes `{name}`", sample.name);
        }
    }
}

/// Checks a file that was changed at `changed` and made whole again; gives how many tensors do not
/// rest on what was changed and are the same, or that it does not parse.
fn repaired(sample: &Sample, what: &str, changed: &[Range<usize>], mut damaged: Vec<u8>) -> Option<u32> {
    repair::hashes(&mut damaged);
    let control = [&[0], damaged.as_slice()].concat();
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        targets::open(&control);
        targets::decode(&control);
    }));
    assert!(outcome.is_ok(), "{}: {what}", sample.name);
    let peak = MEMORY.peak_usage().saturating_sub(before);
    assert!(peak < ALLOCATION_BYTES, "{}: {what} makes the reader allocate {peak} bytes", sample.name);
    let Ok(archive) = Archive::parse(&damaged, &targets::limits()) else { return None };
    let mut unchanged = 0;
    for (name, before, rests_on) in &sample.tensors {
        let meets = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        if !rests_on.iter().any(|a| changed.iter().any(|b| meets(a, b))) {
            assert_eq!(values(&archive, name), *before, "{}: {what} changes `{name}`", sample.name);
            unchanged += 1;
        }
    }
    Some(unchanged)
}

/// Other values for a field of these bytes.
fn changes(field: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let number = field.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let with = |n: u64| {
        let mut bytes = field.to_vec();
        bytes.iter_mut().zip(n.to_le_bytes()).for_each(|(byte, new)| *byte = new);
        bytes
    };
    let flipped = |bit: usize| {
        let mut bytes = field.to_vec();
        bytes.get_mut(bit / 8).map(|b| *b ^= 1 << (bit % 8)).map(|()| bytes).unwrap_or_default()
    };
    let mut list = vec![
        ("zeroed", vec![0; field.len()]),
        ("all ones", vec![0xFF; field.len()]),
        ("plus one", with(number.wrapping_add(1))),
        ("minus one", with(number.wrapping_sub(1))),
        ("top bit flipped", flipped(field.len() * 8 - 1)),
        ("bit 3 flipped", flipped(3)),
        ("times 256", with(number << 8)),
        ("reversed", field.iter().rev().copied().collect()),
    ];
    list.sort_by(|a, b| a.1.cmp(&b.1));
    list.dedup_by(|a, b| a.1 == b.1);
    list.retain(|(_, bytes)| bytes != field);
    list
}

#[test]
fn every_changed_field_is_seen_or_does_no_harm() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut count, mut parsed, mut unchanged) = (0u32, 0u32, 0u32);
    for sample in samples()? {
        for place in places::fields(&sample.bytes) {
            for (how, bytes) in changes(&sample.bytes[place.range.clone()]) {
                let what = format!("{} {how}", place.name);
                let mut damaged = sample.bytes.clone();
                damaged[place.range.clone()].copy_from_slice(&bytes);
                unrepaired(&sample, &what, &damaged);
                if let Some(tensors) = repaired(&sample, &what, std::slice::from_ref(&place.range), damaged) {
                    parsed += 1;
                    unchanged += tensors;
                }
                count += 1;
            }
        }
    }
    let found = format!("{count} changes, {parsed} parse after repair, {unchanged} tensors stand");
    println!("{found}");
    assert!(count > 30_000 && parsed > 3_000 && unchanged > 20_000, "{found}");
    Ok(())
}

#[test]
fn every_changed_payload_byte_is_seen_or_does_no_harm() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for sample in samples()? {
        let end = sample.bytes.len();
        let head = sample.payload.first().map_or(end, |first| first.start);
        for at in head..end {
            // Most bytes of segments of several chunk groups are like their neighbours.
            if sample.name == "chunks" && at % 37 != 0 {
                continue;
            }
            for (how, byte) in changes(&sample.bytes[at..at + 1]).into_iter().step_by(2) {
                let what = format!("payload at {at:#x} {how}");
                let mut damaged = sample.bytes.clone();
                damaged[at..at + 1].copy_from_slice(&byte);
                unrepaired(&sample, &what, &damaged);
                let place = at..at + 1;
                assert!(
                    repaired(&sample, &what, std::slice::from_ref(&place), damaged).is_some(),
                    "{}: {what}: opening looks at payload",
                    sample.name
                );
            }
        }
    }
    Ok(())
}

#[test]
fn swapped_records_are_seen_or_do_no_harm() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for sample in samples()? {
        for table in places::tables(&sample.bytes) {
            for i in 1..table.count() {
                let (a, b) = (table.record(i - 1), table.record(i));
                let what = format!("{}[{}] and [{i}] swapped", table.name, i - 1);
                let mut damaged = sample.bytes.clone();
                let first = damaged[a.clone()].to_vec();
                damaged.copy_within(b.clone(), a.start);
                damaged[b.clone()].copy_from_slice(&first);
                unrepaired(&sample, &what, &damaged);
                repaired(&sample, &what, &[a.clone(), b.clone()], damaged);
                let mut damaged = sample.bytes.clone();
                damaged.copy_within(a.clone(), b.start);
                let what = format!("{}[{i}] overwritten by the one before", table.name);
                unrepaired(&sample, &what, &damaged);
                repaired(&sample, &what, &[b], damaged);
            }
        }
    }
    Ok(())
}

#[test]
fn cut_grown_and_shifted_files_are_refused() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for sample in samples()? {
        let mut edges: Vec<usize> = places::fields(&sample.bytes).iter().map(|p| p.range.start).collect();
        edges.extend(sample.payload.iter().flat_map(|s| [s.start, s.start + s.len() / 2, s.end]));
        edges.retain(|at| *at > 0 && *at < sample.bytes.len());
        edges.sort_unstable();
        edges.dedup();
        for at in edges {
            let (before, after) = sample.bytes.split_at(at);
            let all = sample.bytes.as_slice();
            for (how, damaged) in [
                ("cut", before.to_vec()),
                ("a byte inserted", [before, &[0], after].concat()),
                ("eight bytes inserted", [before, &[0; 8], after].concat()),
                ("eight bytes removed", [before, after.get(8..).unwrap_or(&[])].concat()),
                ("the rest twice", [all, after].concat()),
            ] {
                let what = format!("{how} at {at:#x}");
                let parsed = Archive::parse(&damaged, &Limits::default());
                assert!(parsed.is_err(), "{}: {what} parses", sample.name);
                let whole = 0..usize::MAX;
                repaired(&sample, &what, std::slice::from_ref(&whole), damaged);
            }
        }
    }
    Ok(())
}

//! Verification finds every byte that is not as it was written, and only those.

mod common;

use cmf_loader::{Error, ErrorKind, Model, VerifyOptions};
use common::*;
use std::sync::Mutex;

#[test]
fn a_sound_file_verifies() -> Outcome {
    let (_dir, path) = sample_file()?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let found = model.verify_all(|_, _| {});
        assert!(found.is_ok(), "{:?}", found.errors);
        assert_eq!((found.files, found.bytes, found.unknown_terms), (1, model.file_bytes(), 1));
        for tensor in model.tensors() {
            model.verify_tensor(tensor.name())?;
        }
        for segment in model.archive().segments() {
            model.verify_range(segment.index(), 0..segment.record().stored_bytes.get())?;
        }
    }
    Ok(())
}

#[test]
fn every_flipped_byte_is_found() -> Outcome {
    let (_dir, path) = sample_file()?;
    let bytes = std::fs::read(&path)?;
    for backend in BACKENDS {
        let model = Model::open(&path)?;
        let head = 256 + model.archive().header().directory_bytes.get() as usize;
        // Damaged chunk-group hashes are an error of their segment and of the one that they are for.
        let hashes = model.archive().segment(model.archive().header().chunk_hash_segment.get());
        let hashes = hashes.ok_or("no hashes")?.record();
        let start = hashes.offset.get() as usize;
        let hashes = start..start + hashes.stored_bytes.get() as usize;
        for at in (head..bytes.len()).step_by(61) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged)?;
            let found = Model::open_with(&path, &options(backend))?.verify_all(|_, _| {});
            let expected = if hashes.contains(&at) { 2 } else { 1 };
            assert_eq!(found.errors.len(), expected, "byte {at}: {:?}", found.errors);
        }
        std::fs::write(&path, &bytes)?;
    }
    Ok(())
}

#[test]
fn all_errors_are_found_in_order_and_counted_beyond_the_cap() -> Outcome {
    let (_dir, path) = sample_file()?;
    let mut bytes = std::fs::read(&path)?;
    let groups: Vec<u64> = {
        let model = Model::open(&path)?;
        let largest = model.archive().segments().max_by_key(|s| s.record().stored_bytes.get());
        let largest = largest.ok_or("no segment")?;
        let start = largest.record().offset.get();
        (0..largest.record().stored_bytes.get()).step_by(1024).map(|at| start + at).collect()
    };
    assert!(groups.len() > 5);
    for at in &groups {
        bytes[*at as usize] ^= 0xFF;
    }
    std::fs::write(&path, &bytes)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let found = model.verify_all(|_, _| {});
        let places: Vec<_> = found.errors.iter().filter_map(|e| e.format_error()?.offset()).collect();
        assert_eq!(places, groups);
        assert_eq!(found.errors_left_out, 0);
        let few = VerifyOptions { max_errors: 2, ..VerifyOptions::default() };
        let found = model.verify_with(&few, |_, _| {});
        let places: Vec<_> = found.errors.iter().filter_map(|e| e.format_error()?.offset()).collect();
        assert_eq!(places, groups[..2]);
        assert_eq!(found.errors_left_out, groups.len() as u64 - 2);
        let none = VerifyOptions { max_errors: 0, ..VerifyOptions::default() };
        assert!(!model.verify_with(&none, |_, _| {}).is_ok());
    }
    Ok(())
}

#[test]
fn a_range_is_checked_alone() -> Outcome {
    let (_dir, path) = sample_file()?;
    let mut bytes = std::fs::read(&path)?;
    let (segment, offset) = {
        let model = Model::open(&path)?;
        let node =
            model.tensor("tied.a").and_then(|t| t.stored().ok()?.matrices().next()?.terms().next()?.node());
        let segment = node.and_then(|n| n.segments().next()).ok_or("no segment")?;
        (segment.index(), segment.record().offset.get() as usize)
    };
    bytes[offset + 5000] ^= 1;
    std::fs::write(&path, &bytes)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        model.verify_range(segment, 0..4096)?;
        model.verify_range(segment, 5120..8000)?;
        let kind = |range| model.verify_range(segment, range).err().map(|e: Error| e.kind());
        assert_eq!(kind(5000..5001), Some(ErrorKind::Format(cmf_format::ErrorKind::Hash)));
        assert_eq!(kind(0..1 << 40), Some(ErrorKind::Argument));
        assert_eq!(model.verify_range(9999, 0..1).err().map(|e| e.kind()), Some(ErrorKind::Argument));
        let error = model.verify_tensor("tied.b").err().ok_or("verified")?;
        assert_eq!(error.format_error().and_then(|e| e.tensor()), Some("tied.b"));
        model.verify_tensor("levels")?;
        assert_eq!(model.verify_tensor("none").err().map(|e| e.kind()), Some(ErrorKind::Argument));
    }
    Ok(())
}

#[test]
fn progress_grows_to_its_end() -> Outcome {
    let (_dir, path) = sample_file()?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let calls = Mutex::new(Vec::new());
        model.verify_all(|done, total| {
            if let Ok(mut calls) = calls.lock() {
                calls.push((done, total));
            }
        });
        let calls = calls.into_inner()?;
        let (done, total) = *calls.last().ok_or("no progress")?;
        assert_eq!(done, total);
        assert!(total > model.file_bytes());
        assert!(calls.iter().all(|(done, same)| *done <= total && *same == total));
        // What each step adds is what there is: nothing is left for the last call.
        assert!(calls[..calls.len() - 1].iter().any(|(done, _)| *done == total));
    }
    Ok(())
}

#[test]
fn values_that_hashes_allow_are_checked() -> Outcome {
    use cmf_format::write::MatrixEntry;
    use cmf_format::{ArchiveBuilder, DType};
    // A column out of range, under hashes that are right: the writer hashes what it is given.
    let mut node = outliers(40, 50)?;
    let segment = node.segments.iter_mut().last().ok_or("no segment")?;
    let mut columns = segment.bytes().ok_or("no bytes")?.to_vec();
    columns[..2].copy_from_slice(&60_000u16.to_le_bytes());
    *segment = columns.into();
    let dir = tempfile::tempdir()?;
    let mut builder = ArchiveBuilder::default();
    builder.tensor(entry("w", DType::F32, &[40, 50], vec![MatrixEntry::from_node(node)]));
    let path = write(dir.path(), "bad.cmf", &builder)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        let found = model.verify_all(|_, _| {});
        let kinds: Vec<_> = found.errors.iter().map(Error::kind).collect();
        assert_eq!(kinds, [ErrorKind::Format(cmf_format::ErrorKind::Value)]);
        assert_eq!(found.errors[0].format_error().and_then(|e| e.tensor()), Some("w"));
        assert!(model.verify_tensor("w").is_err());
        let hashes = VerifyOptions { values: false, ..VerifyOptions::default() };
        assert!(model.verify_with(&hashes, |_, _| {}).is_ok());
    }
    Ok(())
}

#[test]
fn a_permutation_that_is_none_is_found() -> Outcome {
    use cmf_format::write::{MatrixEntry, TransformEntry};
    use cmf_format::{ArchiveBuilder, DType};
    let twice_zero = vec![0; 200];
    let matrix = MatrixEntry {
        input_transforms: vec![TransformEntry::Permute(twice_zero.into())],
        ..MatrixEntry::from_node(grouped_twice(40, 50)?)
    };
    let dir = tempfile::tempdir()?;
    let mut builder = ArchiveBuilder::default();
    builder.tensor(entry("w", DType::F32, &[40, 50], vec![matrix]));
    let model = Model::open(write(dir.path(), "bad.cmf", &builder)?)?;
    let found = model.verify_all(|_, _| {});
    let kinds: Vec<_> = found.errors.iter().map(Error::kind).collect();
    assert_eq!(kinds, [ErrorKind::Format(cmf_format::ErrorKind::Value)]);
    assert!(model.verify_tensor("w").is_err());
    Ok(())
}

//! Replays the fuzz targets over their seeds, over the inputs that once broke them, over the
//! vectors of the spec, and over a fixed sequence of random ones.

use cmf_format::archive::TensorView;
use cmf_format::{Archive, Limits};
use cmf_tests::{naive, targets};
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn replay(root: &str, target: targets::Target) -> Result<usize, Box<dyn Error>> {
    let (name, run) = target;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(root).join(name);
    if !folder.is_dir() {
        return Ok(0);
    }
    let mut count = 0;
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let input = std::fs::read(&path)?;
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
        assert!(outcome.is_ok(), "{}", path.display());
        count += 1;
    }
    Ok(count)
}

#[test]
fn seeds_pass() -> Result<(), Box<dyn Error>> {
    for target in targets::ALL {
        assert!(replay("../fuzz/seeds", *target)? > 0, "{} has no seeds", target.0);
    }
    Ok(())
}

#[test]
fn regressions_pass() -> Result<(), Box<dyn Error>> {
    for target in targets::ALL {
        replay("regressions", *target)?;
    }
    Ok(())
}

/// All files of the spec's vectors below `folder`.
fn vectors(folder: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/vectors").join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "cmf") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn vectors_keep_the_laws() -> Result<(), Box<dyn Error>> {
    for path in [vectors("accept")?, vectors("reject")?].concat() {
        let input = [vec![0], std::fs::read(&path)?].concat();
        for run in [targets::open, targets::decode] {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
            assert!(outcome.is_ok(), "{}", path.display());
        }
    }
    Ok(())
}

#[test]
fn the_naive_decoder_agrees_on_vectors() -> Result<(), Box<dyn Error>> {
    let mut compared = 0;
    for path in vectors("accept")? {
        let bytes = std::fs::read(&path)?;
        let archive = Archive::parse(&bytes, &Limits::default())?;
        for tensor in archive.tensors().filter(|t| t.elements() < 4096) {
            let place = format!("{}: {}", path.display(), tensor.name());
            let levels = tensor.matrices().map(|m| m.highest_level()).max().unwrap_or(0);
            for level in 0..=levels {
                let Ok(view) = TensorView::open(&tensor, level) else { continue };
                let mut out = vec![0.0; view.rows() * view.cols()];
                let decoded = view.decode_rows(0..view.rows(), &mut out);
                let mut expected = Vec::new();
                for matrix in tensor.matrices() {
                    match naive::Matrix::of_archive(&matrix)?.and_then(|m| m.values(level)) {
                        Ok(values) => expected.extend(values),
                        Err(reject) => assert!(decoded.is_err(), "{place}: {reject:?}"),
                    }
                }
                if decoded.is_ok() {
                    assert!(targets::same(&out, &expected), "{place}: {out:?}, naive: {expected:?}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 100, "{compared} compared");
    Ok(())
}

#[test]
fn random_inputs_pass() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for (name, run) in targets::ALL {
        for i in 0..400 {
            let length = random() % 300;
            let input: Vec<u8> = (0..length).map(|_| random() as u8).collect();
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
            assert!(outcome.is_ok(), "{name}: random input {i}: {input:02x?}");
        }
    }
}

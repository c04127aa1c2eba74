//! Every test vector of the specification through every command: what must be read is read, and
//! nothing ends in a panic.

mod common;

use common::{Outcome, Place, Run};
use std::path::{Path, PathBuf};

/// The `.cmf` files below `spec/vectors/NAME`.
fn vectors(name: &str) -> Outcome<Vec<PathBuf>> {
    fn add(folder: &Path, found: &mut Vec<PathBuf>) -> Outcome {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                add(&path, found)?;
            } else if path.extension().is_some_and(|e| e == "cmf") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    add(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/vectors").join(name), &mut found)?;
    found.sort();
    assert!(found.len() > 10, "{name}: {} vectors", found.len());
    Ok(found)
}

fn text(path: &Path) -> Outcome<&str> {
    Ok(path.to_str().ok_or("a path that is no text")?)
}

/// Whether a file that the vector refers to is missing, as it is beside some vectors on purpose.
fn lacks_a_file(run: &Run) -> bool {
    [&run.stdout, &run.stderr].iter().any(|text| text.contains("No such file") || text.contains("os error 2"))
}

#[test]
fn accepted_vectors_are_valid_and_equal_to_themselves() -> Outcome {
    let place = Place::new()?;
    for path in vectors("accept")? {
        let path = text(&path)?;
        let run = place.cmf(&["verify", path])?;
        assert!(run.code == Some(0) || lacks_a_file(&run), "{path}: {run:?}");
        let run = place.cmf(&["inspect", path, "--tensors", "--schedule"])?;
        assert!(run.code == Some(0) || lacks_a_file(&run), "{path}: {run:?}");
        let run = place.cmf(&["diff", path, path])?;
        // Required terms of unknown encodings have no values to compare.
        let unknown = run.code == Some(2) && run.stderr.contains("unknown");
        assert!(run.code == Some(0) || unknown || lacks_a_file(&run), "{path}: {run:?}");
    }
    Ok(())
}

#[test]
fn accepted_vectors_come_back_from_export_and_conversion() -> Outcome {
    let place = Place::new()?;
    let mut same = 0;
    for path in vectors("accept")? {
        let path = text(&path)?;
        // f32 holds all values but those of f64, which are stored as they are.
        let has_f64 = place.cmf(&["inspect", path, "--json"])?.stdout.contains("\"f64\"");
        let export: &[&str] = if has_f64 { &[] } else { &["--dtype", "f32"] };
        for (command, output, more) in [
            ("export", "out.safetensors", export),
            ("convert", "out.cmf", &["-r", "keep"]),
            ("convert", "out.cmf", &["-r", "lossless"]),
        ] {
            let run = place.cmf(&[&[command, path, "-o", output, "--force"][..], more].concat())?;
            match run.code {
                Some(0) => {
                    let run = place.cmf(&["diff", path, output])?;
                    // `keep` copies what this version cannot decode, too.
                    let unknown = run.code == Some(2) && run.stderr.contains("unknown");
                    assert!(run.code == Some(0) || unknown, "{command} {more:?} {path}: {run:?}");
                    same += usize::from(!unknown);
                }
                Some(2) => assert!(run.stderr.starts_with("cmf: "), "{command} {more:?} {path}: {run:?}"),
                _ => return Err(format!("{command} {more:?} {path}: {run:?}").into()),
            }
        }
    }
    assert!(same > 50, "{same} came back");
    Ok(())
}

#[test]
fn keep_carries_levels_transforms_regions_and_schedules() -> Outcome {
    let place = Place::new()?;
    let mut carried = 0;
    for path in vectors("accept")? {
        let path = text(&path)?;
        let run = place.cmf(&["convert", path, "-o", "out.cmf", "-r", "keep", "--force"])?;
        if run.code == Some(2) {
            let unknown = run.stderr.contains(", which `keep` does not carry");
            assert!(unknown || lacks_a_file(&run), "{path}: {run:?}");
            continue;
        }
        assert_eq!(run.code, Some(0), "{path}: {run:?}");
        place.good(&["verify", "out.cmf", "--hashes-only"])?;
        let report = |path| -> Outcome<serde_json::Value> { place.cmf(&["inspect", path, "--json"])?.json() };
        let (before, after) = (report(path)?, report("out.cmf")?);
        for key in ["tensors", "schedule"] {
            assert_eq!(before[key], after[key], "{path}: {key}");
        }
        carried += 1;
    }
    assert!(carried > 20, "{carried} vectors were carried");
    Ok(())
}

#[test]
fn rejected_vectors_are_refused() -> Outcome {
    let place = Place::new()?;
    for path in vectors("reject")? {
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path.with_extension("json"))?)?;
        let path = text(&path)?;
        let run = place.cmf(&["verify", path])?;
        let is_refused = matches!(run.code, Some(1 | 2));
        assert!(is_refused || (run.code == Some(0) && expected["fails_at"] == "decode"), "{path}: {run:?}");
        for args in [
            &["inspect", path][..],
            &["diff", path, path],
            &["export", path, "-o", "out.safetensors", "--force"],
            &["convert", path, "-o", "out.cmf", "--force"],
        ] {
            let run = place.cmf(args)?;
            // Damage that only hashes show is not looked for on the way.
            // What is of another format may well be read, except by `inspect`.
            let is_refused =
                expected["fails_at"] == "parse" && (args[0] == "inspect" || expected["kind"] != "not_cmf");
            let codes = if is_refused { 2..=2 } else { 0..=2 };
            assert!(run.code.is_some_and(|code| codes.contains(&code)), "{args:?}: {run:?}");
        }
    }
    Ok(())
}

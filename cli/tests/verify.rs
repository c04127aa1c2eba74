//! `cmf verify`.

mod common;

use common::{Outcome, Place, assert_keys, gguf, write_model};
use serde_json::Value;

/// A model and its archive, `model.cmf`.
fn place() -> Outcome<Place> {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf"])?;
    Ok(place)
}

/// Where the largest segment lies.
fn largest_segment(place: &Place) -> Outcome<(usize, usize)> {
    let report = place.cmf(&["inspect", "model.cmf", "--json"])?.json()?;
    let segments = report["segments"].as_array().ok_or("no segments")?;
    let range = |s: &Value| Some((s["offset"].as_u64()? as usize, s["stored_bytes"].as_u64()? as usize));
    Ok(segments.iter().filter_map(range).max_by_key(|(_, bytes)| *bytes).ok_or("no segment")?)
}

#[test]
fn says_what_was_checked() -> Outcome {
    let place = place()?;
    let said = place.good(&["verify", "model.cmf"])?;
    assert!(said.starts_with("model.cmf: valid: every hash, rule and code of "), "{said}");
    let said = place.good(&["verify", "model.cmf", "--hashes-only", "--pread"])?;
    assert!(said.starts_with("model.cmf: valid: every hash of "), "{said}");
    Ok(())
}

#[test]
fn reports_in_json() -> Outcome {
    let place = place()?;
    let report = place.cmf(&["verify", "model.cmf", "--json"])?.json()?;
    assert_keys(
        &report,
        &["schema", "ok", "errors", "errors_left_out", "files", "bytes", "unknown_terms", "unreadable"],
    )?;
    assert_eq!(report["ok"], true);
    assert_eq!(report["bytes"], place.read("model.cmf")?.len());
    Ok(())
}

#[test]
fn a_flipped_bit_is_found_where_it_is() -> Outcome {
    let place = place()?;
    let (offset, bytes) = largest_segment(&place)?;
    let mut file = place.read("model.cmf")?;
    file[offset + bytes / 2] ^= 1;
    place.write("model.cmf", &file)?;
    for more in [&[][..], &["--pread"], &["--hashes-only"]] {
        let run = place.cmf(&[&["verify", "model.cmf"][..], more].concat())?;
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.stdout.ends_with("model.cmf: not valid\n") && run.stderr.is_empty(), "{run:?}");
    }
    let run = place.cmf(&["verify", "model.cmf", "--json"])?;
    let report = run.json()?;
    assert_eq!((run.code, &report["ok"]), (Some(1), &Value::Bool(false)));
    let error = &report["errors"][0];
    assert_keys(error, &["kind", "message", "tensor", "segment", "offset"])?;
    assert_eq!(error["kind"], "hash");
    let found = error["offset"].as_u64().ok_or("no offset")? as usize;
    assert!((offset..=offset + bytes / 2).contains(&found), "{found} {offset} {bytes}");
    Ok(())
}

#[test]
fn a_file_that_is_cut_or_too_long_is_not_valid() -> Outcome {
    let place = place()?;
    let whole = place.read("model.cmf")?;
    for length in [0, 1, 12, 64, 127, 128, 1000, whole.len() / 2, whole.len() - 1] {
        place.write("model.cmf", &whole[..length])?;
        let run = place.cmf(&["verify", "model.cmf"])?;
        assert_eq!(run.code, Some(1), "{length}: {run:?}");
    }
    place.write("model.cmf", [&whole[..], b"x"].concat())?;
    assert_eq!(place.cmf(&["verify", "model.cmf"])?.code, Some(1));
    Ok(())
}

#[test]
fn damage_anywhere_is_found() -> Outcome {
    let place = place()?;
    let whole = place.read("model.cmf")?;
    for step in 0..40 {
        let mut file = whole.clone();
        let place_of_damage = step * (whole.len() - 1) / 39;
        file[place_of_damage] ^= 0x10;
        place.write("model.cmf", &file)?;
        let run = place.cmf(&["verify", "model.cmf", "--hashes-only"])?;
        // A newer version or a bound of this reader is no verdict on the file.
        assert!(matches!(run.code, Some(1 | 2)), "{place_of_damage}: {run:?}");
    }
    Ok(())
}

#[test]
fn names_what_is_no_cmf() -> Outcome {
    let place = place()?;
    place.write("other", gguf())?;
    for (bytes, name) in [
        (gguf(), "a GGUF file; `cmf convert` reads it"),
        (place.read("model/model.safetensors")?, "a safetensors file; `cmf convert` reads it"),
        (b"PK\x03\x04 and so on".to_vec(), "a zip archive (PyTorch checkpoints are zip archives)"),
        (b"\x80\x04\x95 and so on".to_vec(), "a Python pickle"),
        (b"CMF\x01 and so on".to_vec(), "a Cortiq Model Format file, which shares only the extension"),
        (vec![], "an empty file"),
    ] {
        place.write("other", bytes)?;
        let run = place.cmf(&["verify", "other"])?;
        let said = format!("other: magic at 0x0: expected a .cmf file, found {name}\nother: not valid\n");
        assert_eq!((run.code, run.stdout, run.stderr.as_str()), (Some(1), said, ""));
    }
    Ok(())
}

#[test]
fn what_cannot_be_read_is_no_verdict() -> Outcome {
    let place = place()?;
    assert!(place.refused(&["verify", "none.cmf"])?.starts_with("cmf: none.cmf: "));
    assert!(place.refused(&["verify", "model"])?.contains("found a directory"));
    Ok(())
}

#[test]
fn shards_are_verified_too() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf", "--shard-size", "10kB"])?;
    let said = place.good(&["verify", "model.cmf"])?;
    assert!(said.ends_with(" in 4 files\n"), "{said}");
    let shard = "model-00002-of-00003.cmf";
    let mut bytes = place.read(shard)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    place.write(shard, &bytes)?;
    let run = place.cmf(&["verify", "model.cmf"])?;
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stdout.contains(shard), "{run:?}");
    std::fs::remove_file(place.path(shard))?;
    let run = place.cmf(&["verify", "model.cmf", "--json"])?;
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(run.json()?["errors"][0]["kind"], "reference");
    Ok(())
}

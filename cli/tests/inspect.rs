//! `cmf inspect`.

mod common;

use common::{FILES, Outcome, Place, assert_keys, check, tensor, write_model};

#[test]
fn shows_totals_encodings_and_attributes() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf", "-r", "spqr"])?;
    let report = place.cmf(&["inspect", "model.cmf", "--json"])?.json()?;
    let shown = place.good(&["inspect", "model.cmf"])?;
    let identity = report["identity"].as_str().ok_or("no identity")?;
    assert!(shown.contains(&format!("\nidentity {identity}\n")), "{shown}");
    check("inspect.txt", &shown.replace(identity, "IDENTITY"))
}

#[test]
fn shows_every_tensor() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf"])?;
    let shown = place.good(&["inspect", "model.cmf", "--tensors"])?;
    let table: Vec<_> = shown.lines().skip(3).take(9).collect();
    check("inspect_tensors.txt", &(table.join("\n") + "\n"))
}

#[test]
fn reports_in_json() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf", "-r", "q4-sparse"])?;
    let report = place.cmf(&["inspect", "model.cmf", "--json"])?.json()?;
    let keys = [
        "schema",
        "format_version",
        "edition",
        "identity",
        "file_bytes",
        "total_bytes",
        "files",
        "elements",
        "bits_per_weight",
        "tensors",
        "attributes",
        "references",
        "segments",
        "schedule",
    ];
    assert_keys(&report, &keys)?;
    assert_eq!(report["format_version"], "1.0");
    assert_eq!(report["file_bytes"], place.read("model.cmf")?.len());
    let tensor = tensor(&report, "embed.weight")?;
    let keys =
        ["name", "shape", "dtype", "elements", "stored_bytes", "bits_per_weight", "shard", "base", "terms"];
    assert_keys(tensor, &keys)?;
    assert_eq!(tensor["shape"], serde_json::json!([130, 96]));
    assert_eq!(tensor["dtype"], "bf16");
    let keys = ["encoding", "level", "count", "optional", "known", "stored_bytes", "bits_per_weight"];
    assert_keys(&tensor["terms"][0], &keys)?;
    assert_eq!(tensor["terms"][0]["encoding"], "grouped(scale=grouped, zero=grouped)");
    assert_eq!(tensor["terms"][1]["encoding"], "sparse");
    assert_keys(&report["attributes"][0], &["name", "media_type", "bytes", "stored_bytes"])?;
    assert_keys(&report["segments"][0], &["offset", "stored_bytes", "decoded_bytes", "compression", "hash"])?;
    let keys = [
        "unit",
        "tensor",
        "number",
        "matrix",
        "level",
        "row_start",
        "rows",
        "resident_bytes",
        "cumulative_bytes",
        "expected_loss",
    ];
    assert_keys(&report["schedule"][0], &keys)?;
    Ok(())
}

#[test]
fn sizes_in_json_add_up() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf", "-r", "q3-lowrank"])?;
    let report = place.cmf(&["inspect", "model.cmf", "--json"])?.json()?;
    let sum = |key: &str, field: &str| {
        let list = report[key].as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(|item| item[field].as_u64()).sum::<u64>()
    };
    assert_eq!(
        sum("segments", "stored_bytes"),
        sum("tensors", "stored_bytes") + sum("attributes", "stored_bytes")
    );
    let bits = sum("tensors", "stored_bytes") as f64 * 8.0 / sum("tensors", "elements") as f64;
    assert_eq!(report["bits_per_weight"], bits);
    Ok(())
}

#[test]
fn lists_the_schedule() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf"])?;
    let shown = place.good(&["inspect", "model.cmf", "--schedule"])?;
    assert!(shown.contains("\nunit  tensor"), "{shown}");
    assert!(shown.contains("  experts.weight[2]  "), "{shown}");
    Ok(())
}

#[test]
fn gives_attributes_as_they_were() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf"])?;
    for (name, text) in FILES {
        assert_eq!(place.good(&["inspect", "model.cmf", "--attribute", name])?, text);
    }
    let said = place.refused(&["inspect", "model.cmf", "--attribute", "none"])?;
    assert_eq!(said, "cmf: model.cmf: no attribute `none`\n");
    Ok(())
}

#[test]
fn shows_shards() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf", "--shard-size", "10kB"])?;
    let report = place.cmf(&["inspect", "model.cmf", "--json"])?.json()?;
    assert_eq!(tensor(&report, "embed.weight")?["shard"], "model-00001-of-00003.cmf");
    assert_keys(&report["references"][0], &["name", "kind", "identity", "file_bytes"])?;
    assert_eq!(report["references"][0]["kind"], "shard");
    assert_eq!(report["files"], 4);
    let bytes: usize = ["model", "model-00001-of-00003", "model-00002-of-00003", "model-00003-of-00003"]
        .iter()
        .map(|stem| Ok(place.read(&format!("{stem}.cmf"))?.len()))
        .sum::<Outcome<usize>>()?;
    assert_eq!(report["total_bytes"], bytes);
    Ok(())
}

#[test]
fn names_what_is_no_cmf() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    let said = place.refused(&["inspect", "model/model.safetensors"])?;
    assert!(said.contains("found a safetensors file; `cmf convert` reads it"), "{said}");
    let said = place.refused(&["inspect", "model"])?;
    assert!(said.contains("expected a file, found a directory"), "{said}");
    let said = place.refused(&["inspect", "none.cmf"])?;
    assert!(said.starts_with("cmf: none.cmf: "), "{said}");
    Ok(())
}

#[test]
fn a_reader_that_leaves_early_is_no_error() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "model.cmf"])?;
    for arguments in
        [&["inspect", "model.cmf", "--json"][..], &["recipe"], &["completions", "bash"], &["--help"]]
    {
        let mut child = place.command(arguments).stdout(std::process::Stdio::piped()).spawn()?;
        // Closed before anything can be written to it.
        drop(child.stdout.take());
        assert_eq!(child.wait()?.code(), Some(0), "{arguments:?}");
    }
    Ok(())
}

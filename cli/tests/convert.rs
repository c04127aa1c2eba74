//! `cmf convert`.

mod common;

use common::{Outcome, Place, assert_keys, gguf, tensor, write_model, write_sharded_model};

#[test]
fn converts_every_input_format_to_a_valid_archive() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    write_sharded_model(&place)?;
    place.write("model.gguf", gguf())?;
    place.good(&["convert", "model", "-o", "source.cmf"])?;
    for (number, input) in [
        "model",
        "model/model.safetensors",
        "sharded",
        "sharded/model.safetensors.index.json",
        "model.gguf",
        "source.cmf",
    ]
    .into_iter()
    .enumerate()
    {
        let output = format!("{number}.cmf");
        let said = place.good(&["convert", input, "-o", &output])?;
        assert!(said.starts_with(&format!("{output}: recipe ")), "{said}");
        assert!(said.contains(" bits per weight, ") && said.lines().count() == 1, "{said}");
        place.good(&["verify", &output])?;
    }
    Ok(())
}

#[test]
fn plain_models_become_q4_and_encoded_ones_stay_as_they_are() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    // What a file is shows in its bytes, not in its name.
    place.write("model.bin", gguf())?;
    assert!(place.good(&["convert", "model", "-o", "a.cmf"])?.contains("recipe q4,"));
    assert!(place.good(&["convert", "model.bin", "-o", "b.cmf"])?.contains("recipe keep,"));
    assert!(place.good(&["convert", "a.cmf", "-o", "c.cmf"])?.contains("recipe keep,"));
    Ok(())
}

#[test]
fn reports_in_json() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    let report = place.cmf(&["convert", "model", "-o", "out.cmf", "--json"])?.json()?;
    let keys = [
        "schema",
        "tensors",
        "elements",
        "input_bytes",
        "levels",
        "files",
        "file_bytes",
        "bits_per_weight",
        "resumed_blocks",
        "blocks",
    ];
    assert_keys(&report, &keys)?;
    assert_eq!(report["tensors"], 8);
    assert_eq!(report["files"], serde_json::json!(["out.cmf"]));
    assert_eq!(report["file_bytes"], place.read("out.cmf")?.len());
    let inspected = place.cmf(&["inspect", "out.cmf", "--json"])?.json()?;
    assert_eq!(report["bits_per_weight"], inspected["bits_per_weight"]);
    Ok(())
}

#[test]
fn refuses_to_replace_without_force() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.write("out.cmf", "precious")?;
    let said = place.refused(&["convert", "model", "-o", "out.cmf"])?;
    assert_eq!(said, "cmf: out.cmf: exists; --force replaces it\n");
    assert_eq!(place.read("out.cmf")?, b"precious");
    place.good(&["convert", "model", "-o", "out.cmf", "--force"])?;
    place.good(&["verify", "out.cmf"])?;
    assert_eq!(place.names()?, ["model", "out.cmf"]);
    Ok(())
}

#[test]
fn refuses_an_output_in_no_directory_and_makes_none() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    let said = place.refused(&["convert", "model", "-o", "none/out.cmf"])?;
    assert!(said.starts_with("cmf: none/.out.cmf.partial: cannot be used as work folder: "), "{said}");
    assert_eq!(place.names()?, ["model"]);
    Ok(())
}

#[test]
fn threads_do_not_change_a_byte() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    for jobs in ["1", "3"] {
        place.good(&["convert", "model", "-o", &format!("{jobs}.cmf"), "-r", "spqr", "--jobs", jobs])?;
    }
    assert!(place.read("1.cmf")? == place.read("3.cmf")?);
    Ok(())
}

#[test]
fn the_last_override_that_matches_wins() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    let overrides = ["--override", "*=q8", "--override", "head*=lossless", "--override", "norm.weight=q8"];
    place.good(&[&["convert", "model", "-o", "out.cmf", "-r", "q2"][..], &overrides].concat())?;
    let report = place.cmf(&["inspect", "out.cmf", "--json"])?.json()?;
    let encoding = |name| -> Outcome<String> {
        Ok(tensor(&report, name)?["terms"][0]["encoding"].as_str().ok_or("no encoding")?.to_owned())
    };
    assert_eq!(encoding("head.weight")?, "lossless");
    assert_eq!(encoding("embed.weight")?, "grouped");
    assert_eq!(encoding("norm.weight")?, "grouped", "an override takes what the recipe leaves alone");
    assert_eq!(encoding("ids")?, "dense", "integers have no other encoding");
    let diff = place.cmf(&["diff", "model", "out.cmf", "--json"])?.json()?;
    assert_eq!(tensor(&diff, "head.weight")?["identical"], true);
    assert!(tensor(&diff, "embed.weight")?["snr_db"].as_f64() > Some(40.0), "8 bits, not 2");
    Ok(())
}

#[test]
fn overrides_that_mean_nothing_are_refused() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    for (text, problem) in [
        ("head*", "--override `head*`: expected PATTERN=NAME"),
        ("haed*=q8", "--override `haed*=q8`: no tensor is called `haed*`"),
        ("head*=q9", "recipe `q9` is not built in"),
    ] {
        let said = place.refused(&["convert", "model", "-o", "out.cmf", "--override", text])?;
        assert!(said.contains(problem), "{said}");
    }
    Ok(())
}

#[test]
fn shards_are_named_and_join_again() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    let report =
        place.cmf(&["convert", "model", "-o", "out.cmf", "--shard-size", "10kB", "--json"])?.json()?;
    let files = report["files"].as_array().ok_or("no files")?;
    assert!(files.len() > 2, "{files:?}");
    assert_eq!(files[0], "out.cmf");
    assert_eq!(files[1], format!("out-00001-of-{:05}.cmf", files.len() - 1));
    place.good(&["verify", "out.cmf"])?;
    place.good(&["convert", "out.cmf", "-o", "joined.cmf"])?;
    place.good(&["convert", "model", "-o", "whole.cmf"])?;
    for file in files {
        std::fs::remove_file(place.path(file.as_str().ok_or("no name")?))?;
    }
    place.good(&["verify", "joined.cmf"])?;
    place.good(&["diff", "whole.cmf", "joined.cmf"])?;
    let report = |name| -> Outcome<serde_json::Value> { place.cmf(&["inspect", name, "--json"])?.json() };
    assert_eq!(report("joined.cmf")?["tensors"], report("whole.cmf")?["tensors"]);
    Ok(())
}

#[test]
fn shards_that_are_there_are_refused_before_any_work() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.write("out-00002-of-00009.cmf", "precious")?;
    let said = place.refused(&["convert", "model", "-o", "out.cmf", "--shard-size", "10kB"])?;
    assert!(said.contains("out-00002-of-00009.cmf: exists; --force replaces it"), "{said}");
    place.good(&["convert", "model", "-o", "out.cmf"])?;
    Ok(())
}

#[test]
fn sizes_that_are_none_are_refused() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    for size in ["0", "many", "-1"] {
        let option = format!("--shard-size={size}");
        place.refused(&["convert", "model", "-o", "out.cmf", &option])?;
    }
    assert_eq!(place.names()?, ["model"]);
    Ok(())
}

#[test]
fn keep_copies_a_cmf_bit_for_bit() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    for recipe in ["q4-sparse", "q3-lowrank", "vq2", "lossless", "keep"] {
        place.good(&["convert", "model", "-o", "a.cmf", "-r", recipe, "--force"])?;
        place.good(&["convert", "a.cmf", "-o", "b.cmf", "-r", "keep", "--force"])?;
        place.good(&["diff", "a.cmf", "b.cmf"])?;
        let report = |name| -> Outcome<serde_json::Value> { place.cmf(&["inspect", name, "--json"])?.json() };
        let (a, b) = (report("a.cmf")?, report("b.cmf")?);
        assert_eq!(a["tensors"], b["tensors"], "{recipe}");
        let hashes = |report: &serde_json::Value| {
            let segments = report["segments"].as_array().cloned().unwrap_or_default();
            segments.iter().map(|s| s["hash"].to_string()).collect::<std::collections::BTreeSet<_>>()
        };
        // All but those of recipe and provenance.
        assert!(hashes(&a).difference(&hashes(&b)).count() <= 2, "{recipe}");
    }
    Ok(())
}

#[test]
fn keep_does_not_carry_damage_on() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf"])?;
    let report = place.cmf(&["inspect", "a.cmf", "--json"])?.json()?;
    let segments = report["segments"].as_array().ok_or("no segments")?.iter();
    let largest = segments.max_by_key(|s| s["stored_bytes"].as_u64()).ok_or("no segment")?;
    let offset = largest["offset"].as_u64().ok_or("no offset")?;
    let mut file = place.read("a.cmf")?;
    file[offset as usize + 100] ^= 1;
    place.write("a.cmf", file)?;
    let said = place.refused(&["convert", "a.cmf", "-o", "b.cmf"])?;
    assert!(said.ends_with(&format!("bytes do not match their hash at {offset:#x}\n")), "{said}");
    assert_eq!(place.names()?, ["a.cmf", "model"]);
    Ok(())
}

#[test]
fn keep_remembers_the_recipe_that_the_values_come_from() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf", "-r", "q3"])?;
    place.good(&["convert", "a.cmf", "-o", "b.cmf"])?;
    let text = place.good(&["inspect", "b.cmf", "--attribute", "cmf.provenance.json"])?;
    let provenance: serde_json::Value = serde_json::from_str(&text)?;
    let recipe = place.good(&["inspect", "a.cmf", "--attribute", "cmf.recipe.toml"])?;
    assert_eq!(provenance["input_recipe"], recipe);
    assert_eq!(provenance["input_provenance"]["inputs"][0]["name"], "model.safetensors");
    Ok(())
}

#[test]
fn a_cmf_is_encoded_again_by_any_recipe() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "plain.cmf", "-r", "keep"])?;
    for recipe in ["lossless", "q4", "vq2"] {
        place.good(&["convert", "model", "-o", "a.cmf", "-r", recipe, "--force"])?;
        place.good(&["convert", "plain.cmf", "-o", "b.cmf", "-r", recipe, "--force"])?;
        place.good(&["diff", "a.cmf", "b.cmf"])?;
        let report = |name| -> Outcome<serde_json::Value> { place.cmf(&["inspect", name, "--json"])?.json() };
        assert_eq!(report("a.cmf")?["tensors"], report("b.cmf")?["tensors"], "{recipe}");
    }
    Ok(())
}

#[test]
fn lossless_keeps_what_is_encoded_already() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf", "-r", "q4"])?;
    place.good(&["convert", "a.cmf", "-o", "b.cmf", "-r", "lossless"])?;
    place.good(&["diff", "a.cmf", "b.cmf"])?;
    Ok(())
}

#[test]
fn names_what_is_no_model() -> Outcome {
    let place = Place::new()?;
    for (bytes, name) in [
        (&b"PK\x03\x04 and so on"[..], "a zip archive"),
        (b"\x80\x02}q\x00", "a Python pickle"),
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"CMF\x01\x00\x00\x00\x00\x00\x00", "a Cortiq Model Format file"),
    ] {
        place.write("model.pt", bytes)?;
        let said = place.refused(&["convert", "model.pt", "-o", "out.cmf"])?;
        assert!(said.starts_with("cmf: model.pt: ") && said.contains(&format!("found {name}")), "{said}");
    }
    place.write("model.pt", "who knows")?;
    let said = place.refused(&["convert", "model.pt", "-o", "out.cmf"])?;
    assert!(said.contains("expected a safetensors file, a sharded index"), "{said}");
    Ok(())
}

#[test]
fn says_what_is_wrong_with_a_directory() -> Outcome {
    let place = Place::new()?;
    std::fs::create_dir(place.path("model"))?;
    let convert = ["convert", "model", "-o", "out.cmf"];
    assert_eq!(place.refused(&convert)?, "cmf: model: weights: expected .safetensors files\n");
    place.write("model/pytorch_model.bin", "PK")?;
    let said = place.refused(&convert)?;
    assert_eq!(said, "cmf: model: weights: expected .safetensors files, found pytorch_model.bin\n");
    std::fs::remove_file(place.path("model/pytorch_model.bin"))?;
    place.write("model/a.gguf", gguf())?;
    let said = place.refused(&convert)?;
    assert!(said.ends_with("found a.gguf: name that file instead of the directory\n"), "{said}");
    Ok(())
}

#[test]
fn says_what_is_wrong_with_a_file() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    let whole = place.read("model/model.safetensors")?;
    place.write("cut.safetensors", &whole[..whole.len() - 1])?;
    let said = place.refused(&["convert", "cut.safetensors", "-o", "out.cmf"])?;
    let lengths = format!("file length: expected {}, found {}", whole.len(), whole.len() - 1);
    assert_eq!(said, format!("cmf: cut.safetensors: {lengths}\n"));
    let said = place.refused(&["convert", "none.safetensors", "-o", "out.cmf"])?;
    assert!(said.starts_with("cmf: none.safetensors: cannot be read: "), "{said}");
    place.write("cut.gguf", &gguf()[..100])?;
    let said = place.refused(&["convert", "cut.gguf", "-o", "out.cmf"])?;
    assert!(said.starts_with("cmf: cut.gguf: "), "{said}");
    assert_eq!(place.names()?, ["cut.gguf", "cut.safetensors", "model"]);
    Ok(())
}

#[test]
fn recipes_come_from_files_too() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    let recipe = place.good(&["recipe", "q4"])?.replace("\"q4\"", "\"mine\"").replace("bits = 4", "bits = 5");
    place.write("mine.toml", recipe)?;
    let said = place.good(&["convert", "model", "-o", "out.cmf", "--recipe", "mine.toml"])?;
    assert!(said.contains("recipe mine,"), "{said}");
    place.write(
        "bad.toml",
        "name = 'x'\n\n[[rule]]\nmatch = '*'\nterms = [{ encoding = 'grouped', bitz = 4 }]\n",
    )?;
    let said = place.refused(&["convert", "model", "-o", "b.cmf", "--recipe", "bad.toml"])?;
    assert!(said.starts_with("cmf: bad.toml: recipe: ") && said.contains("bitz"), "{said}");
    place.write(
        "wide.toml",
        "name = 'x'\n[[rule]]\nmatch = '*'\nterms = [{ encoding = 'grouped', bits = 9 }]\n",
    )?;
    let said = place.refused(&["convert", "model", "-o", "b.cmf", "--recipe", "wide.toml"])?;
    assert!(said.contains("bits"), "{said}");
    Ok(())
}

#[test]
fn shows_no_progress_where_nobody_looks() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    // Standard error is no terminal here, so that it stays empty even if this takes long.
    let run = place.cmf(&["convert", "model", "-o", "out.cmf", "-r", "aqlm2"])?;
    assert_eq!((run.code, run.stderr.as_str(), run.stdout.lines().count()), (Some(0), "", 1));
    Ok(())
}

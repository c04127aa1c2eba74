//! `cmf export`.

mod common;

use cmf_format::DType;
use common::{
    FILES, Outcome, Place, gguf, names_in, parts, read_safetensors, write_model, write_sharded_model,
};

#[test]
fn lossless_and_keep_give_the_very_file_back() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    for recipe in ["lossless", "keep"] {
        place.good(&["convert", "model", "-o", "a.cmf", "-r", recipe, "--force"])?;
        place.good(&["export", "a.cmf", "-o", "b.safetensors", "--force"])?;
        // Header and all: tensors lie in the order in which the safetensors crate writes them.
        assert!(place.read("b.safetensors")? == place.read("model/model.safetensors")?, "{recipe}");
    }
    Ok(())
}

#[test]
fn shards_come_back_as_one_file() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    write_sharded_model(&place)?;
    place.good(&["convert", "sharded", "-o", "a.cmf", "-r", "lossless", "--shard-size", "10kB"])?;
    place.good(&["export", "a.cmf", "-o", "b.safetensors"])?;
    assert!(place.read("b.safetensors")? == place.read("model/model.safetensors")?);
    Ok(())
}

#[test]
fn a_directory_comes_back_whole() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf", "-r", "lossless"])?;
    let said = place.good(&["export", "a.cmf", "-o", "b"])?;
    assert!(said.starts_with("b: 8 tensors, ") && said.ends_with(" in 6 files\n"), "{said}");
    assert_eq!(names_in(&place.path("b"))?, names_in(&place.path("model"))?);
    for (name, text) in FILES {
        assert_eq!(place.read(&format!("b/{name}"))?, text.as_bytes(), "{name}");
    }
    assert!(place.read("b/model.safetensors")? == place.read("model/model.safetensors")?);
    assert_eq!(place.names()?, ["a.cmf", "b", "model"]);
    Ok(())
}

#[test]
fn quantised_values_come_back_in_their_own_type() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf"])?;
    place.good(&["export", "a.cmf", "-o", "b.safetensors"])?;
    let found = read_safetensors(&place.read("b.safetensors")?)?;
    let expected = parts()?;
    assert_eq!(found.len(), expected.len());
    for (found, (name, dtype, shape, bytes)) in found.iter().zip(&expected) {
        assert_eq!((&*found.0, &*found.1, &found.2), (*name, dtype.safetensors_name(), shape));
        let is_quantised = ["embed.weight", "experts.weight", "head.weight"].contains(name);
        assert_eq!(found.3 == *bytes, !is_quantised, "{name}");
    }
    Ok(())
}

#[test]
fn dtype_changes_the_type_of_floats_alone() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf", "-r", "keep"])?;
    place.good(&["export", "a.cmf", "-o", "b.safetensors", "--dtype", "f32"])?;
    for ((name, dtype, _, bytes), found) in
        parts()?.iter().zip(read_safetensors(&place.read("b.safetensors")?)?)
    {
        if !dtype.is_float() {
            assert_eq!((found.1.as_str(), &found.3), (dtype.safetensors_name(), bytes), "{name}");
            continue;
        }
        let mut values = vec![0.0; bytes.len() / dtype.bytes()];
        dtype.decode(bytes, &mut values)?;
        assert_eq!((found.1.as_str(), found.3), ("F32", DType::F32.encode(&values)?), "{name}");
    }
    Ok(())
}

#[test]
fn gguf_blocks_come_back_as_their_values() -> Outcome {
    let place = Place::new()?;
    place.write("model.gguf", gguf())?;
    place.good(&["convert", "model.gguf", "-o", "a.cmf"])?;
    place.good(&["diff", "model.gguf", "a.cmf"])?;
    place.good(&["export", "a.cmf", "-o", "b.safetensors"])?;
    place.good(&["export", "model.gguf", "-o", "c.safetensors"])?;
    assert!(place.read("b.safetensors")? == place.read("c.safetensors")?);
    let found = read_safetensors(&place.read("b.safetensors")?)?;
    let q8_0 = found.iter().find(|tensor| tensor.0 == "q8_0").ok_or("no q8_0")?;
    assert_eq!((q8_0.1.as_str(), &q8_0.2), ("F32", &vec![4, 32]));
    // The first block of Q8_0 by its definition: an f16 scale, then 32 signed codes.
    let file = gguf();
    let block = &file[file.len() - 160..file.len() - 160 + 34];
    let mut scale = [0.0];
    DType::F16.decode(&block[..2], &mut scale)?;
    let expected: Vec<f32> = block[2..].iter().map(|code| f32::from(*code as i8) * scale[0]).collect();
    assert_eq!(q8_0.3[..128], DType::F32.encode(&expected)?);
    Ok(())
}

#[test]
fn refuses_to_replace_without_force() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf"])?;
    place.write("b.safetensors", "precious")?;
    let said = place.refused(&["export", "a.cmf", "-o", "b.safetensors"])?;
    assert_eq!(said, "cmf: b.safetensors: exists; --force replaces it\n");
    let said = place.refused(&["export", "a.cmf", "-o", "model"])?;
    assert!(said.starts_with("cmf: model/") && said.ends_with(": exists; --force replaces it\n"), "{said}");
    let said = place.refused(&["export", "a.cmf", "-o", "a.cmf"])?;
    assert!(said.contains("exists and is no folder"), "{said}");
    assert_eq!(place.read("b.safetensors")?, b"precious");
    place.good(&["export", "a.cmf", "-o", "b.safetensors", "--force"])?;
    assert_eq!(place.names()?, ["a.cmf", "b.safetensors", "model"]);
    Ok(())
}

#[test]
fn what_a_killed_export_left_is_replaced() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf", "-r", "keep"])?;
    place.write(".b.safetensors.partial", vec![1; 1_000_000])?;
    std::fs::create_dir(place.path(".c.partial"))?;
    place.write(".c.partial/stray", "x")?;
    place.good(&["export", "a.cmf", "-o", "b.safetensors"])?;
    place.good(&["export", "a.cmf", "-o", "c"])?;
    assert!(place.read("b.safetensors")? == place.read("model/model.safetensors")?);
    assert_eq!(names_in(&place.path("c"))?, names_in(&place.path("model"))?);
    assert_eq!(place.names()?, ["a.cmf", "b.safetensors", "c", "model"]);
    Ok(())
}

#[test]
fn damage_leaves_no_output() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf", "-r", "lossless"])?;
    let report = place.cmf(&["inspect", "a.cmf", "--json"])?.json()?;
    let compressed = report["segments"].as_array().ok_or("no segments")?.iter();
    let largest = compressed.max_by_key(|s| s["stored_bytes"].as_u64()).ok_or("no segment")?;
    let mut file = place.read("a.cmf")?;
    let offset = largest["offset"].as_u64().ok_or("no offset")? as usize;
    file[offset..offset + 64].fill(0xFF);
    place.write("a.cmf", &file)?;
    for output in ["b.safetensors", "b"] {
        let said = place.refused(&["export", "a.cmf", "-o", output])?;
        assert!(said.contains("tensor `"), "{said}");
    }
    assert_eq!(place.names()?, ["a.cmf", "model"]);
    Ok(())
}

#[test]
fn refuses_what_it_cannot_write() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf"])?;
    let said = place.refused(&["export", "a.cmf", "-o", "b.gguf"])?;
    assert_eq!(said, "cmf: b.gguf: export to GGUF is not supported; write .safetensors or a directory\n");
    let said = place.refused(&["export", "a.cmf", "-o", "b.safetensors", "--dtype", "i8"])?;
    assert!(said.contains("expected f32, f16 or bf16"), "{said}");
    Ok(())
}

//! `cmf diff`.

mod common;

use cmf_format::DType;
use common::{
    Outcome, Place, assert_keys, check, parts, read_safetensors, tensor, write_model, write_safetensors,
};

/// The same numbers from the exported bytes, computed anew.
fn expected(a: &[f64], b: &[f64]) -> (f64, f64, f64) {
    let signal: f64 = a.iter().map(|a| a * a).sum();
    let noise: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    let most = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    (10.0 * (signal / noise).log10(), (noise / signal).sqrt(), most)
}

fn values(dtype: DType, bytes: &[u8]) -> Outcome<Vec<f64>> {
    let mut values = vec![0.0; bytes.len() / dtype.bytes()];
    dtype.decode(bytes, &mut values)?;
    Ok(values.into_iter().map(f64::from).collect())
}

#[test]
fn numbers_are_those_of_the_values() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    for recipe in ["q8", "q4-sparse", "q2", "vq2"] {
        place.good(&["convert", "model", "-o", "a.cmf", "-r", recipe, "--force"])?;
        place.good(&["export", "a.cmf", "-o", "b.safetensors", "--dtype", "f32", "--force"])?;
        let report = place.cmf(&["diff", "model", "a.cmf", "--json"])?.json()?;
        let exported = read_safetensors(&place.read("b.safetensors")?)?;
        for ((name, dtype, _, bytes), found) in parts()?.iter().zip(exported) {
            if !["embed.weight", "experts.weight", "head.weight"].contains(name) {
                assert_eq!(tensor(&report, name)?["identical"], true, "{recipe} {name}");
                continue;
            }
            let (snr, relative, most) = expected(&values(*dtype, bytes)?, &values(DType::F32, &found.3)?);
            let own = tensor(&report, name)?;
            for (key, expected) in [("snr_db", snr), ("relative_error", relative), ("max_abs_error", most)] {
                let found = own[key].as_f64().ok_or("no number")?;
                assert!(
                    (found - expected).abs() <= 1e-9 * expected.abs(),
                    "{recipe} {name} {key}: {found} {expected}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_same_is_0_and_another_is_1() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "same.cmf", "-r", "lossless"])?;
    place.good(&["convert", "model", "-o", "near.cmf", "-r", "q8"])?;
    let said = place.good(&["diff", "model", "same.cmf"])?;
    assert!(said.ends_with("\n8 tensors in both, all the same\n"), "{said}");
    assert_eq!(place.cmf(&["diff", "model", "near.cmf"])?.code, Some(1));
    assert_eq!(place.cmf(&["diff", "model", "near.cmf", "--min-snr", "30"])?.code, Some(0));
    assert_eq!(place.cmf(&["diff", "model", "near.cmf", "--min-snr", "60"])?.code, Some(1));
    Ok(())
}

#[test]
fn reports_in_json() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf"])?;
    let run = place.cmf(&["diff", "model", "a.cmf", "--json"])?;
    assert_eq!(run.code, Some(1));
    let report = run.json()?;
    assert_keys(&report, &["schema", "all", "tensors", "only_in_first", "only_in_second", "shapes_differ"])?;
    let keys = ["name", "elements", "snr_db", "relative_error", "max_abs_error", "not_finite", "identical"];
    assert_keys(tensor(&report, "embed.weight")?, &keys)?;
    assert_keys(&report["all"], &keys)?;
    Ok(())
}

#[test]
fn shows_a_table_and_a_summary() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.good(&["convert", "model", "-o", "a.cmf"])?;
    check("diff.txt", &place.cmf(&["diff", "model", "a.cmf"])?.stdout)
}

#[test]
fn tensors_and_shapes_of_one_alone_are_listed() -> Outcome {
    let place = Place::new()?;
    let zeros = |n: usize| vec![0; 4 * n];
    let f32 = DType::F32;
    let a = [
        ("both", f32, vec![2], zeros(2)),
        ("first", f32, vec![1], zeros(1)),
        ("shape", f32, vec![2, 3], zeros(6)),
    ];
    let b = [
        ("both", f32, vec![2], zeros(2)),
        ("second", f32, vec![1], zeros(1)),
        ("shape", f32, vec![3, 2], zeros(6)),
    ];
    write_safetensors(&place.path("a.safetensors"), &a)?;
    write_safetensors(&place.path("b.safetensors"), &b)?;
    let run = place.cmf(&["diff", "a.safetensors", "b.safetensors"])?;
    assert_eq!(run.code, Some(1));
    for line in
        ["only in the first: first", "only in the second: second", "shapes differ: shape [2, 3] [3, 2]"]
    {
        assert!(run.stdout.lines().any(|l| l == line), "{}", run.stdout);
    }
    let run = place.cmf(&["diff", "a.safetensors", "b.safetensors", "--min-snr", "0", "--json"])?;
    assert_eq!(run.code, Some(1), "a missing tensor is a difference at any distance");
    assert_eq!(run.json()?["shapes_differ"][0]["first"], serde_json::json!([2, 3]));
    Ok(())
}

#[test]
fn what_is_no_number_differs_from_all_numbers() -> Outcome {
    let place = Place::new()?;
    let file = |name: &str, values: &[f32]| -> Outcome {
        let part = ("w", DType::F32, vec![values.len()], DType::F32.encode(values)?);
        write_safetensors(&place.path(name), &[part])
    };
    file("a.safetensors", &[1.0, f32::NAN, f32::INFINITY])?;
    file("b.safetensors", &[1.0, f32::NAN, f32::NEG_INFINITY])?;
    place.good(&["diff", "a.safetensors", "a.safetensors"])?;
    let run = place.cmf(&["diff", "a.safetensors", "b.safetensors", "--min-snr", "0", "--json"])?;
    assert_eq!(run.code, Some(1));
    let report = run.json()?;
    assert_eq!(
        (&report["tensors"][0]["not_finite"], &report["tensors"][0]["identical"]),
        (&1.into(), &false.into())
    );
    file("c.safetensors", &[1.0, 0.0, f32::INFINITY])?;
    assert_eq!(place.cmf(&["diff", "c.safetensors", "a.safetensors"])?.code, Some(1));
    Ok(())
}

#[test]
fn wide_types_differ_by_what_f32_does_not_hold() -> Outcome {
    let place = Place::new()?;
    let file = |name: &str, integer: i64, real: f64| -> Outcome {
        let parts = [
            ("i", DType::I64, vec![1], integer.to_le_bytes().to_vec()),
            ("r", DType::F64, vec![1], real.to_le_bytes().to_vec()),
        ];
        write_safetensors(&place.path(name), &parts)
    };
    file("a.safetensors", (1 << 60) + 1, 1.0)?;
    file("b.safetensors", 1 << 60, 1.000_000_000_001)?;
    let run = place.cmf(&["diff", "a.safetensors", "b.safetensors", "--json"])?;
    assert_eq!(run.code, Some(1));
    let report = run.json()?;
    for name in ["i", "r"] {
        assert_eq!(tensor(&report, name)?["identical"], false, "{name}");
    }
    Ok(())
}

#[test]
fn names_what_is_no_model() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    place.write("zip", b"PK\x03\x04")?;
    let said = place.refused(&["diff", "model", "zip"])?;
    assert!(said.starts_with("cmf: zip: format: expected a safetensors file, "), "{said}");
    Ok(())
}

//! `cmf plan`, and `--budget` of the commands that read a model.

mod common;

use cmf_converters::schedule::{TensorLosses, schedule};
use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, WriteOptions};
use common::{Outcome, Place, assert_keys, check, tensor, weights, write_model};
use std::collections::{BTreeMap, HashMap};

const ROWS: u64 = 8;
const BLOCKS: u64 = 6;
const COLS: u64 = 96;

/// Writes `model.cmf`: two tensors of blocks of rows with three levels, finer by 2^6 each, in the
/// order of their squared errors; and a vector of one level.
fn write_progressive(place: &Place) -> Outcome {
    let mut tensors = Vec::new();
    let mut losses = BTreeMap::new();
    for (t, name) in ["a.weight", "b.weight"].into_iter().enumerate() {
        let values = weights((ROWS * BLOCKS * COLS) as usize, t as u32);
        let mut units = Vec::new();
        let mut known = TensorLosses { coefficient: 1.0, blocks: HashMap::new() };
        for (block, values) in (0..).zip(values.chunks((ROWS * COLS) as usize)) {
            let mut residual = values.to_vec();
            for level in 0..3u16 {
                let step = 0.25 / f32::from(1u16 << (6 * level));
                let rounded: Vec<f32> = residual.iter().map(|v| (v / step).round() * step).collect();
                residual.iter_mut().zip(&rounded).for_each(|(v, r)| *v -= r);
                let node = dense::pack_values(DType::F16, ROWS, COLS, &rounded)?.into();
                let row_start = block * ROWS;
                let terms = vec![TermEntry { row_start, col_start: 0, optional: false, node }];
                units.push(UnitEntry { level, row_start, rows: ROWS, terms });
                let loss = residual.iter().map(|v| f64::from(v * v)).sum();
                known.blocks.entry((0, row_start)).or_default().push(loss);
            }
        }
        losses.insert(name.to_owned(), known);
        units.sort_by_key(|unit| (unit.level, unit.row_start));
        let (rows, cols) = (ROWS * BLOCKS, COLS);
        let matrix = MatrixEntry { rows, cols, units, ..MatrixEntry::default() };
        let content = Content::Matrices(vec![matrix]);
        tensors.push(TensorEntry { name: name.into(), dtype: DType::F32, shape: vec![rows, cols], content });
    }
    let node = dense::pack_values(DType::F32, 1, COLS, &weights(COLS as usize, 7))?;
    let content = Content::Matrices(vec![MatrixEntry::from_node(node)]);
    tensors.push(TensorEntry { name: "norm".into(), dtype: DType::F32, shape: vec![COLS], content });
    let mut builder = ArchiveBuilder::new(WriteOptions::default());
    builder.schedule(schedule(&tensors, &losses)?.ok_or("no levels")?);
    tensors.into_iter().for_each(|tensor| {
        builder.tensor(tensor);
    });
    place.write("model.cmf", builder.to_vec()?)
}

#[test]
fn json_has_the_keys_that_scripts_rely_on() -> Outcome {
    let place = Place::new()?;
    write_progressive(&place)?;
    let report = place.cmf(&["plan", "model.cmf", "--budget", "40kB", "--json"])?.json()?;
    let own = [
        "budget",
        "budget_bytes",
        "resident_bytes",
        "mapped_bytes",
        "minimum_bytes",
        "maximum_bytes",
        "units",
        "bits_per_weight",
        "expected_loss",
        "next_unit_bytes",
    ];
    let whole =
        ["schema", "overhead_bytes", "elements", "all_units", "largest_step_bytes", "page_bytes", "plans"];
    assert_keys(&report, &[&own[..], &whole[..]].concat())?;
    assert_keys(&report["plans"][0], &own)?;
    assert_eq!(report["plans"][0]["resident_bytes"], report["resident_bytes"]);
    assert_eq!(report["budget_bytes"], 40_000);
    assert_eq!(report["elements"], 2 * ROWS * BLOCKS * COLS + COLS);
    assert_eq!(report["all_units"], 2 * 3 * BLOCKS + 1);
    let unit_bytes = 2 * ROWS * COLS;
    assert_eq!(report["largest_step_bytes"], unit_bytes);
    let number = |key: &str| report[key].as_u64().ok_or_else(|| format!("{key} is no number"));
    let (resident, minimum) = (number("resident_bytes")?, number("minimum_bytes")?);
    assert!(minimum < resident && resident <= 40_000 && 40_000 - resident < unit_bytes);
    let refinements = number("units")? - 2 * BLOCKS - 1;
    assert_eq!(resident, minimum + refinements * unit_bytes);
    assert_eq!(minimum, number("overhead_bytes")? + 2 * BLOCKS * unit_bytes + 4 * COLS);
    Ok(())
}

#[test]
fn several_budgets_are_planned_one_by_one() -> Outcome {
    let place = Place::new()?;
    write_progressive(&place)?;
    let args = ["plan", "model.cmf", "--budget", "min,40000", "--budget", "45bpw", "--budget", "max"];
    let report = place.cmf(&[&args[..], &["--json"]].concat())?.json()?;
    let plans = report["plans"].as_array().ok_or("no plans")?;
    let texts: Vec<_> = plans.iter().filter_map(|plan| plan["budget"].as_str()).collect();
    assert_eq!(texts, ["min", "40000", "45bpw", "max"]);
    let losses: Vec<_> = plans.iter().filter_map(|plan| plan["expected_loss"].as_f64()).collect();
    assert!(losses.len() == 4 && losses.is_sorted_by(|a, b| a > b), "{losses:?}");
    assert_eq!(plans[0]["resident_bytes"], plans[0]["minimum_bytes"]);
    assert_eq!(plans[3]["resident_bytes"], plans[3]["maximum_bytes"]);
    assert_eq!(plans[3]["units"], report["all_units"]);
    let text = place.good(&args)?;
    check("plan.txt", &text)
}

#[test]
fn a_budget_below_the_minimum_is_refused_and_the_minimum_named() -> Outcome {
    let place = Place::new()?;
    write_progressive(&place)?;
    let minimum = place.cmf(&["plan", "model.cmf", "--json"])?.json()?["minimum_bytes"].clone();
    for args in [
        &["plan", "model.cmf", "--budget", "1kB"][..],
        &["export", "model.cmf", "-o", "out.safetensors", "--budget", "1kB"],
        &["diff", "model.cmf", "model.cmf", "--budget", "1kB"],
    ] {
        let said = place.refused(args)?;
        assert!(said.contains(&format!("expected at least {minimum} bytes")), "{said}");
    }
    assert_eq!(place.names()?, ["model.cmf"]);
    Ok(())
}

#[test]
fn rejects_what_is_no_budget() -> Outcome {
    let place = Place::new()?;
    write_progressive(&place)?;
    for (budget, said) in
        [("12 parsecs", "`parsecs` is no unit"), ("manybpw", "bits per weight"), ("", "no size")]
    {
        let text = place.refused(&["plan", "model.cmf", "--budget", budget])?;
        assert!(text.contains(said), "{budget}: {text}");
    }
    Ok(())
}

#[test]
fn what_is_exported_is_what_fits() -> Outcome {
    let place = Place::new()?;
    write_progressive(&place)?;
    place.good(&["export", "model.cmf", "-o", "all.safetensors", "-q"])?;
    let mut ratios = Vec::new();
    for budget in ["min", "35000", "40000", "max"] {
        let name = format!("{budget}.safetensors");
        place.good(&["export", "model.cmf", "-o", &name, "--budget", budget, "-q"])?;
        // The same from the archive, and the better the larger.
        place.good(&["diff", &name, "model.cmf", "--budget", budget, "-q"])?;
        let run = place.cmf(&["diff", "all.safetensors", "model.cmf", "--budget", budget, "-q", "--json"])?;
        let report = run.json()?;
        assert_eq!(run.code, Some(if budget == "max" { 0 } else { 1 }));
        assert_eq!(tensor(&report, "norm")?["identical"], true);
        ratios.push(report["all"]["snr_db"].as_f64().unwrap_or(f64::INFINITY));
    }
    assert!(ratios.is_sorted_by(|a, b| a < b), "{ratios:?}");
    Ok(())
}

#[test]
fn draws_quality_against_bytes() -> Outcome {
    let place = Place::new()?;
    write_progressive(&place)?;
    let args = ["plan", "model.cmf", "--budget", "36kB,40kB", "--plot", "quality.svg"];
    place.good(&args)?;
    let picture = String::from_utf8(place.read("quality.svg")?)?;
    assert!(picture.starts_with("<svg "));
    for text in ["model.cmf: one file", "expected loss", "36kB: 3", "40kB: 3"] {
        assert!(picture.contains(text), "{text}");
    }
    assert!(place.refused(&args)?.contains("quality.svg: exists; --force replaces it"));
    place.good(&[&args[..], &["--force"]].concat())?;
    assert_eq!(String::from_utf8(place.read("quality.svg")?)?, picture);
    Ok(())
}

#[test]
fn a_file_of_one_level_has_one_size() -> Outcome {
    let place = Place::new()?;
    write_model(&place)?;
    for (name, more) in [("one.cmf", &[][..]), ("shards.cmf", &["--shard-size", "20kB"])] {
        place.good(&[&["convert", "model", "-o", name, "-q"], more].concat())?;
        let report = place.cmf(&["plan", name, "--json", "--plot", &format!("{name}.svg")])?.json()?;
        assert_eq!(report["minimum_bytes"], report["maximum_bytes"], "{name}");
        assert_eq!(report["units"], report["all_units"]);
        assert_eq!(report["expected_loss"], serde_json::Value::Null);
        place.good(&["export", name, "-o", &format!("{name}.safetensors"), "--budget", "min", "-q"])?;
    }
    assert_eq!(place.read("one.cmf.safetensors")?, place.read("shards.cmf.safetensors")?);
    assert!(
        place.refused(&["export", "model", "-o", "x.safetensors", "--budget", "max"])?.contains("a .cmf")
    );
    Ok(())
}

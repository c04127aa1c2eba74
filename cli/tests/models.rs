//! `cmf run`, `cmf eval` and `cmf calibrate` on a tiny random model.

#![cfg(feature = "models")]

mod common;

use common::{Outcome, Place};
use serde_json::{Value, json};

const VOCAB: usize = 40;
const HIDDEN: usize = 64;

fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some_and(|v| !v.is_null()), "{key}: {value}");
    }
}

fn write_llama(place: &Place) -> Outcome {
    common::llama::write(place, &common::llama::Shape { vocab: VOCAB, hidden: HIDDEN })
}

#[test]
fn evaluates_budgets_against_a_baseline() -> Outcome {
    let place = Place::new()?;
    write_llama(&place)?;
    place.good(&["convert", "model", "-o", "q4.cmf", "--recipe", "q4"])?;
    let base = ["eval", "q4.cmf", "--text", "text.txt", "--ctx", "16", "--baseline", "model", "--json"];
    let run = |more: &[&str]| place.cmf(&[&base[..], more].concat());
    let report = run(&["--budget", "min,max", "--keep-baseline", "kept.cmf"])?.json()?;
    let results = report["results"].as_array().ok_or("no results")?;
    assert_eq!(results.len(), 2);
    let keys = ["budget_bytes", "resident_bytes", "bits_per_weight", "perplexity", "kl_mean", "kl_p99"];
    for result in results {
        has_keys(result, &[&keys[..], &["top1_agreement", "bits_per_byte"]].concat());
        assert!(result["kl_mean"].as_f64().is_some_and(|kl| kl > 0.0), "{result}");
    }
    let again = run(&["--budget", "min,max", "--keep-baseline", "kept.cmf"])?.json()?;
    assert_eq!(again["results"][1]["kl_mean"], results[1]["kl_mean"], "a kept baseline is the baseline");
    assert!(
        place.refused(&["eval", "model", "--text", "text.txt", "--ctx", "16", "--budget", "max"]).is_ok()
    );
    Ok(())
}

#[test]
fn model_does_not_diverge_from_itself() -> Outcome {
    let place = Place::new()?;
    write_llama(&place)?;
    place.good(&["convert", "model", "-o", "exact.cmf", "--recipe", "lossless"])?;
    let args = ["eval", "exact.cmf", "--text", "text.txt", "--ctx", "16", "--baseline", "model", "--json"];
    let report = place.cmf(&args)?.json()?;
    let result = &report["results"][0];
    assert!(result["kl_mean"].as_f64().is_some_and(|kl| kl.abs() < 1e-12), "{result}");
    assert_eq!(result["top1_agreement"], 1.0);
    assert_eq!(result["perplexity"], report["baseline"]["perplexity"]);
    Ok(())
}

#[test]
fn draws_budgets_and_the_results_of_other_files() -> Outcome {
    let place = Place::new()?;
    write_llama(&place)?;
    place.good(&["convert", "model", "-o", "q4.cmf"])?;
    place.write("points.json", r#"[{"name": "Q4_0", "bytes": 12000, "perplexity": 41.0}]"#)?;
    let args =
        ["eval", "q4.cmf", "--text", "text.txt", "--ctx", "16", "--plot", "p.svg", "--points", "points.json"];
    place.good(&args)?;
    let picture = String::from_utf8(place.read("p.svg")?)?;
    assert!(picture.contains("Q4_0") && picture.contains("perplexity"));
    assert!(place.refused(&args)?.contains("exists"), "a picture is not overwritten");
    Ok(())
}

#[test]
fn says_what_it_holds_while_it_talks() -> Outcome {
    let place = Place::new()?;
    write_llama(&place)?;
    place.good(&["convert", "model", "-o", "q4.cmf"])?;
    let args = ["run", "q4.cmf", "--prompt", "w1 w2 w3", "-n", "5", "--json"];
    let run = place.cmf(&args)?;
    let lines = run.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let (summary, tokens) = lines.split_last().ok_or("no output")?;
    assert_eq!(tokens.len(), 5, "{run:?}");
    has_keys(
        summary,
        &["schema", "tokens_per_second", "resident_bytes", "first_token_seconds", "cache_bytes", "text"],
    );
    let plan = place.cmf(&["plan", "q4.cmf", "--budget", "max", "--json"])?.json()?;
    assert_eq!(summary["resident_bytes"], plan["resident_bytes"]);
    let again = place.cmf(&args)?;
    assert_eq!(again.stdout.lines().next(), run.stdout.lines().next(), "the same seed, the same text");
    Ok(())
}

#[test]
fn budget_below_the_minimum_is_refused_with_the_minimum() -> Outcome {
    let place = Place::new()?;
    write_llama(&place)?;
    place.good(&["convert", "model", "-o", "q4.cmf"])?;
    let said = place.refused(&["run", "q4.cmf", "--prompt", "w1", "--budget", "10"])?;
    assert!(said.contains("at least"), "{said}");
    Ok(())
}

#[test]
fn moments_have_the_name_of_each_matrix() -> Outcome {
    let place = Place::new()?;
    write_llama(&place)?;
    let args = ["calibrate", "model", "--text", "text.txt", "--context", "16", "-o", "moments.cmf", "--json"];
    let report = place.cmf(&args)?.json()?;
    assert_eq!((&report["tokens"], &report["context"]), (&json!(96), &json!(16)));
    place.good(&["verify", "moments.cmf"])?;
    let held = place.cmf(&["inspect", "moments.cmf", "--tensors", "--json"])?.json()?;
    let names: Vec<_> = held["tensors"].as_array().ok_or("no tensors")?.iter().map(|t| &t["name"]).collect();
    assert_eq!(names.len(), 9);
    assert!(names.contains(&&json!("model.layers.0.mlp.down_proj.weight")), "{names:?}");
    assert!(names.contains(&&json!("cmf.row_weights/model.embed_tokens.weight")), "{names:?}");
    assert!(place.refused(&args)?.contains("exists"));
    Ok(())
}

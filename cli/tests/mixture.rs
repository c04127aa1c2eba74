//! Mixtures of experts that come into memory when they are chosen, watched from outside.

#![cfg(all(feature = "models", target_os = "linux"))]

mod common;
#[path = "../../sources/tests/server/mod.rs"]
#[allow(dead_code, reason = "its other answers are for the tests of the crate")]
mod server;

use common::llama::{Mixture, Shape, write_mixture};
use common::{Outcome, Place};
use serde_json::Value;
use server::{Answer, Server};
use std::io::Write;
use std::process::Stdio;

const EXPERTS: usize = 8;
const LAYERS: usize = 2;
const RECIPE: &str = r#"
name = "moving"
description = "planes in small units"
unit_bytes = 4096
[[rule]]
match = "*"
min_rank = 2
progressive = true
transforms = { input_hadamard = true, seed = 1 }
terms = [
    { encoding = "trellis", step_bits = 2, state_bits = 8, code = "table" },
    { encoding = "trellis", step_bits = 2, state_bits = 8, code = "table" },
]
"#;

/// A place with a mixture, `m.cmf`.
fn mixture(qwen: bool) -> Outcome<Place> {
    let place = Place::new()?;
    let mixture = Mixture { qwen, experts: EXPERTS, layers: LAYERS };
    write_mixture(&place, &Shape { vocab: 60, hidden: 128 }, &mixture)?;
    place.write("recipe.toml", RECIPE)?;
    place.good(&["convert", "model", "-o", "m.cmf", "--recipe", "recipe.toml"])?;
    Ok(place)
}

const RUN: [&str; 5] = ["--raw", "--json", "-n", "24", "--quiet"];
const PROMPT: &str = "w1 w2 w3 w4 w5";

/// The summary of an answer.
fn answer(place: &Place, file: &str, more: &[&str]) -> Outcome<Value> {
    let run = place.cmf(&[&["run", file, "--prompt", PROMPT], &RUN[..], more].concat())?;
    let last = run.stdout.lines().last().ok_or_else(|| format!("{run:?}"))?;
    Ok(serde_json::from_str(last)?)
}

/// The summary of an answer of one token, for which a few experts are chosen.
fn first_token(place: &Place, file: &str, more: &[&str]) -> Outcome<Value> {
    let args = ["run", file, "--prompt", "w1", "--raw", "--json", "-n", "1", "--quiet"];
    let run = place.cmf(&[&args[..], more].concat())?;
    let last = run.stdout.lines().last().ok_or_else(|| format!("{run:?}"))?;
    Ok(serde_json::from_str(last)?)
}

fn number(value: &Value, keys: &[&str]) -> Outcome<u64> {
    let found = keys.iter().fold(value, |value, key| &value[*key]);
    found.as_u64().ok_or_else(|| format!("no {keys:?}: {value}").into())
}

/// Bytes of the rest of the model at its best, and those that are set aside for experts.
fn parts(place: &Place) -> Outcome<(u64, u64)> {
    let all = answer(place, "m.cmf", &[])?;
    let rest = number(&all, &["held_bytes"])? - number(&all, &["experts", "bytes"])?;
    Ok((rest, number(&all, &["experts", "aside_bytes"])?))
}

#[test]
fn experts_on_demand_say_what_all_of_them_say() -> Outcome {
    for qwen in [false, true] {
        let place = mixture(qwen)?;
        let all = answer(&place, "m.cmf", &["--experts", "all"])?;
        assert!(all["experts"].is_null(), "{all}");
        let lazy = answer(&place, "m.cmf", &[])?;
        assert_eq!(lazy["text"], all["text"]);
        // What was chosen has come, once.
        let matrices = number(&lazy, &["experts", "matrices"])?;
        assert_eq!(number(&lazy, &["experts", "brought"])?, matrices);
        assert_eq!(number(&lazy, &["experts", "all_matrices"])?, (3 * EXPERTS * LAYERS) as u64);
        assert!(number(&lazy, &["held_bytes"])? <= number(&all, &["held_bytes"])?);

        let (rest, aside) = parts(&place)?;
        let overhead = number(&place.cmf(&["plan", "m.cmf", "--json"])?.json()?, &["overhead_bytes"])?;
        let one = aside / (2 * LAYERS as u64);
        for (experts, budget) in [(aside, rest + aside), (one + 8192, rest + one + 8192)] {
            let (experts, budget) = (experts.to_string(), budget.to_string());
            let found = answer(&place, "m.cmf", &["--experts", &experts, "--budget", &budget])?;
            assert_eq!(found["text"], all["text"], "with {experts} of {budget}");
            let held = number(&found, &["held_bytes"])?;
            assert!(held <= budget.parse()?, "{found}");
            assert_eq!(number(&found, &["mapped_bytes"])?, held - overhead, "as the system counts: {found}");
            assert_eq!(held - number(&found, &["experts", "bytes"])?, rest, "{found}");
            let (required, brought) =
                (number(&found, &["experts", "required"])?, number(&found, &["experts", "brought"])?);
            assert!(brought > matrices && brought <= required, "some come again: {found}");
            // With those of one token, what the next one takes too is there.
            assert!(experts.parse::<u64>()? < aside || brought < required, "{found}");
        }
    }
    Ok(())
}

#[test]
fn a_budget_without_room_for_an_expert_is_refused() -> Outcome {
    let place = mixture(false)?;
    let said = place.refused(&["run", "m.cmf", "--prompt", PROMPT, "--experts", "10"])?;
    let one: u64 =
        said.split_once("at least ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("").parse()?;
    let rest = answer(&place, "m.cmf", &["--budget", "min", "--experts", &one.to_string()])?;
    let least = number(&rest, &["held_bytes"])? - number(&rest, &["experts", "bytes"])?;
    let enough = (least + one).to_string();
    let found = answer(&place, "m.cmf", &["--budget", &enough])?;
    assert!(number(&found, &["held_bytes"])? <= least + one, "{found}");
    let too_small = (least + one - 1).to_string();
    let said = place.refused(&["run", "m.cmf", "--prompt", PROMPT, "--budget", &too_small])?;
    assert!(
        said.contains(&format!("expected at least {enough} bytes, {one} of them for what is on demand")),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_conversation_changes_what_experts_have() -> Outcome {
    let place = mixture(true)?;
    let (rest, aside) = parts(&place)?;
    let [small, large] = [rest + aside / 2, rest + 2 * aside];
    let script =
        format!("{PROMPT}\n/budget {small}\n{PROMPT}\n/budget 20000\n{PROMPT}\n/budget {large}\n{PROMPT}\n");
    let args = ["run", "m.cmf", "--raw", "--json", "-n", "24", "--watch"];
    let mut child =
        place.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("no input")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("budget: expected at least"), "{said}");
    assert!(
        said.contains("\nexperts   ") && said.contains(&format!("matrices of {}", 3 * EXPERTS * LAYERS)),
        "{said}"
    );
    let lines = String::from_utf8(output.stdout)?;
    let lines = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let answers: Vec<_> = lines.iter().filter(|line| line["schema"] == 1).collect();
    assert_eq!(answers.len(), 4, "{said}");
    for (found, budget) in answers.into_iter().zip([u64::MAX, small, small, large]) {
        assert!(number(found, &["held_bytes"])? <= budget, "{found}");
        let budget = if budget == u64::MAX { "max".to_owned() } else { budget.to_string() };
        assert_eq!(found["text"], answer(&place, "m.cmf", &["--budget", &budget])?["text"], "under {budget}");
    }
    Ok(())
}

#[test]
fn experts_follow_memory_and_may_be_pinned_and_come_with_few_levels() -> Outcome {
    let place = mixture(false)?;
    let all = answer(&place, "m.cmf", &[])?;
    let auto = answer(&place, "m.cmf", &["--budget", "auto"])?;
    assert_eq!(auto["text"], all["text"]);
    assert!(number(&auto, &["experts", "brought"])? > 0);
    let pinned = answer(&place, "m.cmf", &["--pin", "*.experts.3.*"])?;
    assert_eq!(pinned["text"], all["text"]);
    assert_eq!(number(&pinned, &["experts", "all_matrices"])?, (3 * (EXPERTS - 1) * LAYERS) as u64);
    let bits = answer(&place, "m.cmf", &["--budget", "4bpw"])?;
    let plan = place.cmf(&["plan", "m.cmf", "--budget", "4bpw", "--json"])?.json()?;
    assert_eq!(bits["budget_bytes"], plan["budget_bytes"], "bits of all weights");
    let first = answer(&place, "m.cmf", &["--expert-levels", "1"])?;
    let (few, many) =
        (number(&first, &["experts", "aside_bytes"])?, number(&all, &["experts", "aside_bytes"])?);
    assert!(few < many * 2 / 3, "{few} of {many}");
    for (args, problem) in [
        (&["--expert-levels", "1", "--experts", "all"][..], "--expert-levels"),
        (&["--experts", "few"], "--experts"),
    ] {
        let said = place.refused(&[&["run", "m.cmf", "--prompt", PROMPT], args].concat())?;
        assert!(said.contains(problem), "{said}");
    }
    Ok(())
}

#[test]
fn other_models_have_no_experts() -> Outcome {
    let place = Place::new()?;
    common::llama::write(&place, &Shape { vocab: 40, hidden: 64 })?;
    place.good(&["convert", "model", "-o", "m.cmf"])?;
    for args in
        [&["run", "m.cmf", "--prompt", "w1"][..], &["eval", "m.cmf", "--text", "text.txt", "--ctx", "16"]]
    {
        let said = place.refused(&[args, &["--experts", "1MB"]].concat())?;
        assert!(said.contains("mixtures of experts"), "{said}");
    }
    Ok(())
}

/// Whether all that is in the cache is whole files.
fn is_whole(place: &Place) -> Outcome<bool> {
    let names: Vec<_> = std::fs::read_dir(place.path("cache"))?.collect::<Result<_, _>>()?;
    Ok(names.iter().all(|entry| entry.path().extension().is_some_and(|e| e == "cmf")))
}

#[test]
fn experts_come_from_a_server_when_they_are_chosen() -> Outcome {
    for qwen in [false, true] {
        let place = mixture(qwen)?;
        let whole = place.read("m.cmf")?;
        let (rest, aside) = parts(&place)?;
        let budget = (rest + aside).to_string();
        let server = Server::new(whole.clone(), |_, _| Answer::Good)?;
        let args = ["--cache", "cache", "--budget", &budget];
        let coming = first_token(&place, &server.url, &args)?;
        let local = first_token(&place, "m.cmf", &["--budget", &budget])?;
        // The last units of the plan may come after the last token.
        let brought = number(&coming, &["experts", "brought"])?;
        assert!(brought > 0 && number(&coming, &["held_bytes"])? <= budget.parse()?, "{coming}");
        let first = server.sent();
        assert!(!is_whole(&place)? && first < whole.len() as u64, "{first} of {}", whole.len());
        // What has come does not come again: each time header and directory do. With all of the plan there, the
        // answer is that of the file.
        let head = {
            let server = Server::new(whole.clone(), |_, _| Answer::Good)?;
            // With a vector and what every model needs beside it.
            place.good(&[
                "fetch",
                &server.url,
                "-o",
                "head.cmf",
                "--only",
                "model.norm.weight",
                "--quiet",
            ])?;
            server.sent()
        };
        for _ in 0..20 {
            let before = server.sent();
            let again = first_token(&place, &server.url, &args)?;
            if server.sent() - before < head {
                assert_eq!(again["text"], local["text"]);
                break;
            }
        }
        let before = server.sent();
        assert_eq!(first_token(&place, &server.url, &args)?["text"], local["text"]);
        let more = server.sent() - before;
        assert!(more < head, "it is there, but {more} bytes came, and {head} are its beginning");
        // The rest comes without a budget.
        while !is_whole(&place)? {
            let coming = answer(&place, &server.url, &args[..2])?;
            assert!(number(&coming, &["experts", "brought"])? > 0, "{coming}");
        }
        let name = std::fs::read_dir(place.path("cache"))?.next().ok_or("nothing")??.path();
        assert!(std::fs::read(name)? == whole);
        let there = answer(&place, &server.url, &args[..2])?;
        assert_eq!(there["text"], answer(&place, "m.cmf", &[])?["text"]);
    }
    Ok(())
}

#[test]
fn a_mixture_that_comes_may_hold_all_experts() -> Outcome {
    let place = mixture(true)?;
    let server = Server::new(place.read("m.cmf")?, |_, _| Answer::Good)?;
    let args = ["--cache", "cache", "--experts", "all"];
    let run = ["run", &server.url, "-p", PROMPT, "--budget", "50000"];
    let too_small = place.refused(&[&run, &args[..]].concat())?;
    assert!(too_small.contains("minimum"), "{too_small}");
    while !is_whole(&place)? {
        let coming = answer(&place, &server.url, &args)?;
        assert!(coming["experts"].is_null(), "{coming}");
    }
    let all = answer(&place, "m.cmf", &["--experts", "all"])?;
    assert_eq!(answer(&place, &server.url, &args)?["text"], all["text"]);
    Ok(())
}

#[test]
fn a_server_that_has_no_more_experts_is_named() -> Outcome {
    let place = mixture(false)?;
    let (rest, aside) = parts(&place)?;
    let budget = (rest + aside).to_string();
    let args = ["-p", PROMPT, "--raw", "--cache", "cache", "--budget", &budget];
    let mut named = false;
    for good in 2..40 {
        let answer = move |number, _: &_| if number < good { Answer::Good } else { Answer::Status(404) };
        let server = Server::new(place.read("m.cmf")?, answer)?;
        let run = place.cmf(&[&["run", &server.url], &args[..]].concat())?;
        if run.code == Some(2) && run.stderr.contains("experts.") {
            assert!(
                run.stderr.contains("tensor `model.layers.") && run.stderr.contains(&server.url),
                "{run:?}"
            );
            named = true;
            break;
        }
        std::fs::remove_dir_all(place.path("cache"))?;
    }
    assert!(named, "no run asked for an expert");
    Ok(())
}

#[test]
fn a_talk_that_is_killed_loses_nothing() -> Outcome {
    let place = mixture(false)?;
    let whole = place.read("m.cmf")?;
    let server = Server::new(whole.clone(), |_, _| Answer::Slow(4_000))?;
    for millis in [20, 60, 110, 170, 260, 400] {
        let args = [&["run", &server.url, "-p", PROMPT, "--cache", "cache"], &RUN[..]].concat();
        let mut child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(millis));
        // SIGKILL
        child.kill()?;
        child.wait()?;
    }
    while !is_whole(&place)? {
        answer(&place, &server.url, &["--cache", "cache"])?;
    }
    let name = std::fs::read_dir(place.path("cache"))?.next().ok_or("nothing")??.path();
    assert!(std::fs::read(name)? == whole);
    Ok(())
}

#[test]
fn evaluates_experts_on_demand() -> Outcome {
    for qwen in [false, true] {
        let place = mixture(qwen)?;
        let base = [
            "eval",
            "m.cmf",
            "--text",
            "text.txt",
            "--ctx",
            "16",
            "--baseline",
            "m.cmf",
            "--baseline-budget",
            "max",
            "--json",
        ];
        let eval = |more: &[&str]| -> Outcome<Value> { place.cmf(&[&base[..], more].concat())?.json() };
        let all = eval(&["--experts", "all"])?;
        let result = &all["results"][0];
        assert!(
            result["kl_mean"].as_f64().is_some_and(|kl| kl.abs() < 1e-9) && result["experts"].is_null(),
            "{all}"
        );
        let (rest, aside) = parts(&place)?;
        let budget = (rest + aside).to_string();
        let report = eval(&["--budget", &budget])?;
        let result = &report["results"][0];
        assert!(result["kl_mean"].as_f64().is_some_and(|kl| kl.abs() < 1e-9), "{report}");
        assert_eq!(result["perplexity"], all["results"][0]["perplexity"]);
        assert!(number(result, &["experts", "bytes"])? <= aside, "{report}");
        // Each expert is read once a layer.
        assert!(number(result, &["experts", "required"])? <= (3 * EXPERTS * LAYERS) as u64, "{report}");
        let few = eval(&["--expert-levels", "1"])?;
        assert!(few["results"][0]["kl_mean"].as_f64().is_some_and(|kl| kl > 1e-6), "{few}");
        let table = place.good(&[&base[..10], &["--budget", &budget, "--quiet"]].concat())?;
        assert!(table.contains(" of experts ("), "{table}");
    }
    Ok(())
}

#[test]
fn a_mixture_is_calibrated_for_what_its_layers_share() -> Outcome {
    let place = mixture(true)?;
    place.good(&[
        "calibrate",
        "model",
        "--text",
        "text.txt",
        "--context",
        "16",
        "-o",
        "moments.cmf",
        "--quiet",
    ])?;
    let held = place.cmf(&["inspect", "moments.cmf", "--tensors", "--json"])?.json()?;
    let names: Vec<_> = held["tensors"].as_array().ok_or("no tensors")?.iter().map(|t| &t["name"]).collect();
    assert!(names.contains(&&"model.layers.1.self_attn.o_proj.weight".into()), "{names:?}");
    assert!(!names.iter().any(|name| name.as_str().is_some_and(|name| name.contains("mlp"))), "{names:?}");
    Ok(())
}

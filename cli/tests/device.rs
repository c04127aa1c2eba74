//! `--device gpu`, in a build with and in one without the feature `gpu`.

#![cfg(feature = "models")]

mod common;
#[cfg(all(feature = "gpu", target_os = "linux"))]
#[path = "../../kernels-wgpu/tests/layer/mod.rs"]
mod layer;
#[cfg(feature = "gpu")]
#[path = "../../sources/tests/server/mod.rs"]
#[allow(dead_code, reason = "its other answers are for the tests of the crate")]
mod server;

use common::{Outcome, Place};

#[cfg(not(feature = "gpu"))]
#[test]
fn a_build_without_the_feature_names_it() -> Outcome {
    let place = Place::new()?;
    for command in [&["run", "m.cmf"][..], &["eval", "m.cmf", "--text", "t"], &["bench", "m.cmf"]] {
        let said = place.refused(&[command, &["--device", "gpu"]].concat())?;
        assert!(said.contains("feature `gpu` of cmf-cli"), "{said}");
    }
    Ok(())
}

#[test]
fn a_budget_of_a_device_is_for_a_device() -> Outcome {
    let said = Place::new()?.refused(&["run", "m.cmf", "--device-budget", "1MB", "--prompt", "w1"])?;
    assert!(said.contains("--device-budget is for --device gpu"), "{said}");
    Ok(())
}

#[cfg(feature = "gpu")]
mod gpu {
    use super::*;
    use common::llama::{Shape, write};
    use serde_json::Value;
    use server::{Answer, Server};
    use std::io::Write;
    use std::process::Stdio;

    const RECIPE: &str = r#"
name = "planes"
description = "planes between transforms"
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

    /// A model in planes, or `None` where the test is to be skipped.
    fn model() -> Outcome<Option<Place>> {
        let place = Place::new()?;
        write(&place, &Shape { vocab: 40, hidden: 64 })?;
        place.write("recipe.toml", RECIPE)?;
        place.good(&["convert", "model", "-o", "m.cmf", "--recipe", "recipe.toml"])?;
        let run = place.cmf(&["bench", "m.cmf", "--device", "gpu", "--millis", "1"])?;
        let missing = run.code == Some(2) && run.stderr.contains("no adapter");
        if missing && std::env::var_os("CMF_REQUIRE_GPU").is_none_or(|v| v != "1") {
            eprintln!("SKIPPED: {}", run.stderr);
            return Ok(None);
        }
        Ok(Some(place))
    }

    #[test]
    fn predictions_are_those_of_the_cpu() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        let args = ["eval", "m.cmf", "--text", "text.txt", "--ctx", "16", "--baseline", "m.cmf", "--json"];
        let mut perplexities = Vec::new();
        for budget in ["min", "max"] {
            let more = ["--device", "gpu", "--budget", budget, "--baseline-budget", budget];
            let report = place.cmf(&[&args[..], &more].concat())?.json()?;
            let result = &report["results"][0];
            assert!(result["kl_mean"].as_f64().is_some_and(|kl| kl.abs() < 1e-7), "{report}");
            perplexities.push(result["perplexity"].as_f64());
        }
        assert_ne!(perplexities[0], perplexities[1]);
        Ok(())
    }

    #[test]
    fn a_conversation_moves_units_on_the_device() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        let args = ["run", "m.cmf", "--raw", "--json", "-n", "4", "--device", "gpu", "--quiet"];
        let mut child = place.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().ok_or("no input")?;
        write!(input, "w1 w2 w3\n/budget min\nw1 w2 w3\n/budget max\nw1 w2 w3\n")?;
        drop(input);
        let output = child.wait_with_output()?;
        let lines = String::from_utf8(output.stdout)?;
        let lines = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let answers: Vec<_> = lines.iter().filter(|line| line["schema"] == 1).collect();
        assert_eq!(answers.len(), 3, "{lines:?}");
        let bytes: Vec<_> = answers.iter().map(|answer| answer["device_bytes"].as_u64()).collect();
        assert!(bytes[1] < bytes[0] && bytes[0] == bytes[2] && bytes[1] > Some(0), "{bytes:?}");
        for (answer, budget) in answers.into_iter().zip(["max", "min", "max"]) {
            let args = ["run", "m.cmf", "--raw", "--json", "-n", "4", "--budget", budget];
            let cpu = place.cmf(&[&args[..], &["--prompt", "w1 w2 w3"]].concat())?;
            let last = cpu.stdout.lines().last().ok_or("no summary")?;
            assert_eq!(serde_json::from_str::<Value>(last)?["text"], answer["text"], "under {budget}");
        }
        Ok(())
    }

    /// The summary of an answer to a prompt.
    fn answer(place: &Place, file: &str, more: &[&str]) -> Outcome<Value> {
        let args = ["run", file, "--cache", "cache", "--raw", "--json", "-n", "4", "-p", "w1 w2 w3"];
        let run = place.cmf(&[&args[..], more].concat())?;
        let last = run.stdout.lines().last().ok_or_else(|| format!("{run:?}"))?;
        Ok(serde_json::from_str(last)?)
    }

    #[test]
    fn main_memory_holds_what_the_device_does_not() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        for budget in ["min", "max"] {
            let cpu = answer(&place, "m.cmf", &["--budget", budget])?;
            let gpu = answer(&place, "m.cmf", &["--budget", budget, "--device", "gpu"])?;
            assert_eq!(gpu["text"], cpu["text"]);
            assert_eq!(gpu["resident_bytes"], cpu["resident_bytes"]);
            for key in ["held_bytes", "mapped_bytes"] {
                assert!(gpu[key].as_u64() <= cpu[key].as_u64(), "{key}: {gpu} and {cpu}");
                assert!(budget == "min" || gpu[key].as_u64() < cpu[key].as_u64(), "{key}: {gpu} and {cpu}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_device_with_a_budget_leaves_the_rest_to_main_memory() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        let cpu = answer(&place, "m.cmf", &[])?;
        let all = answer(&place, "m.cmf", &["--device", "gpu"])?;
        let whole = all["device_bytes"].as_u64().ok_or("no device")?;
        let mut before = all;
        for tenths in [9, 5, 0] {
            let limit = (whole * tenths / 10).to_string();
            let found = answer(&place, "m.cmf", &["--device", "gpu", "--device-budget", &limit])?;
            assert_eq!((&found["text"], &found["resident_bytes"]), (&cpu["text"], &cpu["resident_bytes"]));
            assert!(found["device_bytes"].as_u64() <= Some(limit.parse()?), "{found}");
            // What the device has not, main memory has.
            for key in ["held_bytes", "mapped_bytes"] {
                assert!(found[key].as_u64() >= before[key].as_u64(), "{key}: {found} after {before}");
            }
            before = found;
        }
        assert_eq!((&before["device_bytes"], &before["held_bytes"]), (&0.into(), &cpu["held_bytes"]));
        let args = ["run", "m.cmf", "--raw", "--json", "-n", "4", "--device", "gpu", "--quiet"];
        let mut child = place.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().ok_or("no input")?;
        write!(input, "w1 w2 w3\n/device-budget {}\nw1 w2 w3\n/device-budget 1GB\nw1 w2 w3\n", whole / 2)?;
        drop(input);
        let lines = String::from_utf8(child.wait_with_output()?.stdout)?;
        let lines = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let answers: Vec<_> = lines.iter().filter(|line| line["schema"] == 1).collect();
        let bytes: Vec<_> = answers.iter().map(|answer| answer["device_bytes"].as_u64()).collect();
        assert!(bytes[0] == Some(whole) && bytes[1] <= Some(whole / 2) && bytes[2] == bytes[0], "{bytes:?}");
        assert!(answers.iter().all(|answer| answer["text"] == cpu["text"]), "{lines:?}");
        Ok(())
    }

    #[test]
    fn the_budget_follows_memory() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        // Of a model this small all fits.
        let most = answer(&place, "m.cmf", &["--device", "gpu"])?;
        let auto = answer(&place, "m.cmf", &["--device", "gpu", "--budget", "auto"])?;
        assert_eq!((&auto["text"], &auto["device_bytes"]), (&most["text"], &most["device_bytes"]));
        Ok(())
    }

    #[test]
    fn the_budget_of_a_device_follows_main_memory_where_that_is_its_memory() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        let most = answer(&place, "m.cmf", &["--device", "gpu"])?;
        for more in [&["--device-budget", "auto"][..], &["--device-budget", "auto", "--budget", "auto"]] {
            let auto = answer(&place, "m.cmf", &[&["--device", "gpu"], more].concat())?;
            assert_eq!(
                (&auto["text"], &auto["device_bytes"]),
                (&most["text"], &most["device_bytes"]),
                "{more:?}"
            );
        }
        Ok(())
    }

    /// A conversation whose child and lines stay open.
    #[cfg(target_os = "linux")]
    struct Talk {
        child: std::process::Child,
        input: std::process::ChildStdin,
        lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    }

    #[cfg(target_os = "linux")]
    impl Talk {
        fn begin(command: &mut std::process::Command) -> Outcome<Self> {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let input = child.stdin.take().ok_or("no input")?;
            let lines = std::io::BufReader::new(child.stdout.take().ok_or("no output")?);
            Ok(Self { child, input, lines: std::io::BufRead::lines(lines) })
        }

        /// What it says of an answer.
        fn ask(&mut self) -> Outcome<Value> {
            writeln!(self.input, "w1 w2 w3")?;
            loop {
                let line = self.lines.next().ok_or("it ended")??;
                let value: Value = serde_json::from_str(&line)?;
                if value["schema"] == 1 {
                    return Ok(value);
                }
            }
        }

        /// Asks until the answer is as `wanted` says.
        fn ask_until(&mut self, wanted: impl Fn(&Value) -> bool) -> Outcome<Value> {
            let began = std::time::Instant::now();
            loop {
                let answer = self.ask()?;
                if wanted(&answer) {
                    return Ok(answer);
                }
                if began.elapsed().as_secs() > 60 {
                    return Err(format!("{answer}").into());
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_budget_of_a_device_follows_what_others_leave_of_its_memory() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        let layer = layer::Layer::new("../kernels-wgpu/tests".as_ref(), &place.path(""))?;
        let cpu = answer(&place, "m.cmf", &[])?;
        // As many bytes as a device with memory of its own takes: others may have larger tables.
        let args = ["run", "m.cmf", "--raw", "--json", "-n", "4", "--quiet", "--device", "gpu"];
        let mut talk = Talk::begin(layer.use_in(&mut place.command(&args), true))?;
        let whole = talk.ask()?["device_bytes"].as_u64().ok_or("no device")?;
        drop(talk.input);
        talk.child.wait()?;
        for budget in ["max", "auto"] {
            layer.set(4 * whole, 0)?;
            let args = ["run", "m.cmf", "--raw", "--json", "-n", "4", "--quiet", "--budget", budget];
            let mut command =
                place.command(&[&args[..], &["--device", "gpu", "--device-budget", "auto"]].concat());
            let mut talk = Talk::begin(layer.use_in(&mut command, true))?;
            let found = talk.ask()?;
            assert_eq!(found["device_bytes"], whole, "--budget {budget}: {found}");
            // Others take most of it, then all.
            for room in [whole / 2, 0] {
                layer.set(room, 0)?;
                let found = talk.ask_until(|found| found["device_bytes"].as_u64() <= Some(room * 3 / 4))?;
                assert_eq!(
                    (&found["text"], &found["resident_bytes"]),
                    (&cpu["text"], &cpu["resident_bytes"])
                );
            }
            assert_eq!(talk.ask()?["held_bytes"], cpu["held_bytes"]);
            // They leave it.
            layer.set(4 * whole, 0)?;
            let found = talk.ask_until(|found| found["device_bytes"] == whole)?;
            assert_eq!((&found["text"], &found["resident_bytes"]), (&cpu["text"], &cpu["resident_bytes"]));
            drop(talk.input);
            assert!(talk.child.wait()?.success());
        }
        layer.be_silent()?;
        let args = ["run", "m.cmf", "--raw", "-p", "w1", "--device", "gpu", "--device-budget", "auto"];
        let output = layer.use_in(&mut place.command(&args), true).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("does not say how much memory is left"), "{said}");
        Ok(())
    }

    #[test]
    fn a_model_comes_from_a_server() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        let server = Server::new(place.read("m.cmf")?, |_, _| Answer::Slow(8_000))?;
        let least = answer(&place, &server.url, &["--device", "gpu", "--budget", "min"])?;
        assert_eq!(least["text"], answer(&place, "m.cmf", &["--budget", "min"])?["text"]);
        // It gets better while it talks, and is whole at last.
        let file = || -> Outcome<bool> {
            let names: Vec<_> = std::fs::read_dir(place.path("cache"))?.collect::<Result<_, _>>()?;
            Ok(names.iter().all(|entry| entry.path().extension().is_some_and(|e| e == "cmf")))
        };
        while !file()? {
            answer(&place, &server.url, &["--device", "gpu"])?;
        }
        let whole = answer(&place, &server.url, &["--device", "gpu"])?;
        let local = answer(&place, "m.cmf", &["--device", "gpu"])?;
        assert_eq!((&whole["text"], &whole["device_bytes"]), (&local["text"], &local["device_bytes"]));
        assert!(least["device_bytes"].as_u64() < local["device_bytes"].as_u64());
        Ok(())
    }

    #[test]
    fn bench_says_which_device() -> Outcome {
        let Some(place) = model()? else { return Ok(()) };
        let args = ["bench", "m.cmf", "--device", "gpu", "--batch", "1,9", "--millis", "1"];
        let report = place.cmf(&[&args[..], &["--json"]].concat())?.json()?;
        let results = report["results"].as_array().ok_or("no results")?;
        assert!(report["adapter"].is_string() && results.len() >= 2, "{report}");
        assert!(results.iter().all(|row| row["device"] == "gpu" && row["threads"].is_null()), "{report}");
        assert!(place.refused(&[&args[..], &["--threads", "1"]].concat())?.contains("--threads"));
        Ok(())
    }
}

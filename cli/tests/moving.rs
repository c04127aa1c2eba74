//! A process that talks while its budget is moved, watched from outside.

#![cfg(all(feature = "models", target_os = "linux"))]

mod common;

use common::llama::{self, Shape};
use common::{Outcome, Place};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

/// Memory that a process takes beside what it says that it holds may grow by so much: activations,
/// buffers of the allocator, stacks of threads.
const BESIDE_BYTES: u64 = 12 << 20;
const CHANGES: u64 = 300;
const PROMPT: &str = "w1 w2 w3 w4";

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
    { encoding = "trellis", step_bits = 2, state_bits = 8, code = "table" },
]
"#;

/// A line in kilobytes of a file below `/proc/PID`, in bytes.
fn kilobytes(line: &str) -> Outcome<u64> {
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

/// Resident bytes of all of the process.
fn rollup(child: &Child) -> Outcome<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id()))?;
    kilobytes(text.lines().find_map(|line| line.strip_prefix("Rss:")).ok_or("no line")?)
}

/// Resident bytes of the maps of files called `name`.
fn mapped(child: &Child, name: &str) -> Outcome<u64> {
    let (mut ours, mut bytes) = (false, 0);
    for line in std::fs::read_to_string(format!("/proc/{}/smaps", child.id()))?.lines() {
        if let Some(resident) = line.strip_prefix("Rss:").filter(|_| ours) {
            bytes += kilobytes(resident)?;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c)) {
            ours = line.ends_with(name);
        }
    }
    Ok(bytes)
}

/// The summary of the next answer.
fn summary(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Outcome<Value> {
    loop {
        let value: Value = serde_json::from_str(&lines.next().ok_or("the process ended")??)?;
        if value["schema"] == 1 {
            return Ok(value);
        }
    }
}

fn number(value: &Value, key: &str) -> Outcome<u64> {
    value[key].as_u64().ok_or_else(|| format!("no {key}: {value}").into())
}

#[test]
fn a_process_lives_in_the_budget_that_it_is_given() -> Outcome {
    let place = Place::new()?;
    llama::write(&place, &Shape { vocab: 300, hidden: 128 })?;
    place.write("recipe.toml", RECIPE)?;
    place.good(&["convert", "model", "-o", "m.cmf", "--recipe", "recipe.toml"])?;
    let plan = place.cmf(&["plan", "m.cmf", "--budget", "min", "--json"])?.json()?;
    let overhead = number(&plan, "overhead_bytes")?;
    let (least, most) = (number(&plan, "minimum_bytes")?, number(&plan, "maximum_bytes")?);
    assert!(most - least > 20 * 4096, "a model of {least} to {most} bytes");
    let budgets: Vec<u64> = (0..12).map(|i| least + (most - least + 60_000) * i / 11).collect();

    let args = ["run", "m.cmf", "--raw", "--json", "-n", "3", "--budget", "max"];
    let mut child = place.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().ok_or("no input")?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    writeln!(input, "{PROMPT}")?;
    let mut before = summary(&mut lines)?;
    let beside = rollup(&child)? - number(&before, "held_bytes")?;
    let mut answers: HashMap<u64, Value> = HashMap::new();
    let mut state = 7u64;
    for _ in 0..CHANGES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let budget = budgets[(state >> 40) as usize % budgets.len()];
        writeln!(input, "/budget {budget}\n{PROMPT}")?;
        let now = summary(&mut lines)?;
        assert_eq!(number(&now, "budget_bytes")?, budget);
        let held = number(&now, "held_bytes")?;
        assert!(held <= budget || number(&now, "resident_bytes")? == least, "{now}");
        assert_eq!(mapped(&child, "/m.cmf")?, held - overhead, "pages of the file in memory");
        let all = rollup(&child)?;
        assert!(all <= held + beside + BESIDE_BYTES, "{all} bytes in memory for {held} and {beside}");
        // Plans are nested: what came is what there is more of, up to the end of the file.
        let came = held.saturating_sub(number(&before, "held_bytes")?);
        let read = number(&now, "moved_bytes")? - number(&before, "moved_bytes")?;
        assert!(read <= came && came - read < 4096, "{read} bytes read for {came}");
        match answers.get(&budget) {
            Some(answer) => assert_eq!(&now["text"], answer),
            None => drop(answers.insert(budget, now["text"].clone())),
        }
        before = now;
    }
    drop(input);
    assert!(child.wait()?.success());
    assert_eq!(answers.len(), budgets.len());
    for (budget, answer) in answers {
        let budget = budget.to_string();
        let args = ["run", "m.cmf", "--raw", "--json", "-n", "3", "--budget", &budget, "--prompt", PROMPT];
        let fresh = place.cmf(&args)?;
        let last = fresh.stdout.lines().last().ok_or("no summary")?;
        assert_eq!(serde_json::from_str::<Value>(last)?["text"], answer, "under {budget}");
    }
    Ok(())
}

#[test]
fn pinned_tensors_are_held_whatever_the_budget() -> Outcome {
    let place = Place::new()?;
    llama::write(&place, &Shape { vocab: 300, hidden: 128 })?;
    place.write("recipe.toml", RECIPE)?;
    place.good(&["convert", "model", "-o", "m.cmf", "--recipe", "recipe.toml"])?;
    let resident = |pin: &[&str]| -> Outcome<u64> {
        let args = ["run", "m.cmf", "--raw", "--json", "-n", "1", "--budget", "min", "--prompt", PROMPT];
        let run = place.cmf(&[args.as_slice(), pin].concat())?;
        number(&serde_json::from_str(run.stdout.lines().last().ok_or("no summary")?)?, "resident_bytes")
    };
    let (least, pinned) = (resident(&[])?, resident(&["--pin", "*.layers.0.*"])?);
    assert!(pinned > least, "{pinned} and {least}");
    assert_eq!(
        resident(&["--pin", "*"])?,
        number(&place.cmf(&["plan", "m.cmf", "--budget", "max", "--json"])?.json()?, "maximum_bytes")?
    );
    let refused = place.refused(&["run", "m.cmf", "--pin", "nothing.*", "--prompt", PROMPT])?;
    assert!(refused.contains("no tensor matches `nothing.*`"), "{refused}");
    Ok(())
}

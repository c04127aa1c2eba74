//! The gate that a change must pass: steps in a row, each timed, the first failure ends it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::{arm, asan, can_fail, checks, demo, deny, docs, fuzz, msrv, vectors};

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Path) -> Result<()>,
}

/// Cheap steps first. `.ci/run` and CONTRIBUTING.md point here.
const STEPS: &[Step] = &[
    Step { name: "fmt", about: "formatting of all crates", run: checks::fmt },
    Step { name: "docs", about: "links and versions in Markdown files", run: docs::check },
    Step { name: "can-fail", about: "the checks fail on scratch crates that are wrong", run: can_fail::run },
    Step {
        name: "deny",
        about: "licences, bans and sources of dependencies",
        run: |root| deny::check(root, &root.join("deny.toml")),
    },
    Step { name: "clippy", about: "lints, with warnings denied", run: checks::clippy },
    Step { name: "msrv", about: "the stated rust-version compiles", run: msrv::check },
    Step { name: "doc", about: "rustdoc, with warnings denied", run: checks::doc },
    Step { name: "test", about: "all tests, Rust and Python", run: checks::test },
    Step { name: "vectors", about: "spec/vectors are as generated", run: vectors::check },
    Step {
        name: "asan",
        about: "tests of cmf-format and cmf-kernels-cpu under AddressSanitizer",
        run: asan::test_all,
    },
    Step {
        name: "arm",
        about: "lints and tests of cmf-kernels-cpu for 64-bit Arm, emulated",
        run: arm::test,
    },
    Step {
        name: "fuzz",
        about: "seconds of each fuzz target",
        run: |root| fuzz::smoke(root, fuzz::DEFAULT_SECONDS),
    },
    Step {
        name: "demo",
        about: "the demo on a made-up model",
        run: |root| demo::run(root, &demo::Options::AFTER_TESTS),
    },
];

/// Prints the steps.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:<10} {}", step.name, step.about);
    }
}

/// Runs the steps named, or all of them. A run of all steps must leave the work tree as it was.
pub(crate) fn run(root: &Path, names: &[&str]) -> Result<()> {
    let steps = select(names)?;
    let before = tree_status(root)?;
    let start = Instant::now();
    let mut timings = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let head = format!("[{}/{}] {}", index + 1, steps.len(), step.name);
        println!("\n==> {head}: {}", step.about);
        let step_start = Instant::now();
        let result = (step.run)(root);
        let took = step_start.elapsed();
        timings.push((step.name, took));
        let outcome = if result.is_ok() { "ok" } else { "FAILED" };
        println!("<== {head}: {outcome} after {}", seconds(took));
        result.with_context(|| format!("step {} failed", step.name))?;
    }
    if names.is_empty() {
        let after = tree_status(root)?;
        if after != before {
            bail!("the steps changed the work tree:\nbefore:\n{before}after:\n{after}");
        }
    }
    println!("\n{} steps passed in {}:", timings.len(), seconds(start.elapsed()));
    for (name, took) in timings {
        println!("  {name:<10} {:>8}", seconds(took));
    }
    Ok(())
}

fn select(names: &[&str]) -> Result<Vec<&'static Step>> {
    if names.is_empty() {
        return Ok(STEPS.iter().collect());
    }
    let find = |name: &&str| {
        let step = STEPS.iter().find(|step| step.name == *name);
        step.with_context(|| format!("no step `{name}`: see cargo xtask ci --list"))
    };
    names.iter().map(find).collect()
}

/// Changed and untracked files, as git lists them.
fn tree_status(root: &Path) -> Result<String> {
    Cmd::new("git", root).args(["status", "--porcelain"]).output()
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

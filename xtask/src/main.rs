//! Chores that take more than one cargo command: `cargo xtask help` lists them.

mod arm;
mod asan;
mod can_fail;
mod checks;
mod ci;
mod cmd;
mod demo;
mod deny;
mod docs;
mod fuzz;
mod gpu;
mod msrv;
mod packages;
mod python;
mod sample;
mod stores;
mod tools;
mod vectors;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const HELP: &str = "\
usage: cargo xtask COMMAND

  test [--rust | --python]    run all tests (default: both halves)
  demo [--offline | --f32] [--quick]
                              download a sample model, convert, verify, inspect, export, compare,
                              then talk to it under three budgets (not with --quick)
  vectors [--check]           regenerate spec/vectors, or compare it with a fresh generation
  fuzz-smoke [--seconds N]    build the fuzz targets and run each from its seeds (default: 10 s)
  asan                        run the tests of cmf-format and cmf-kernels-cpu under AddressSanitizer
  arm                         lint and test cmf-kernels-cpu for 64-bit Arm, by emulation
  stores                      fetch from servers of the protocols of object stores (Python, npm)
  msrv                        compile with the toolchain that `rust-version` names
  docs                        check links and versions in the Markdown files
  can-fail [CASE right|wrong] prove on scratch crates that the checks of `ci` can fail
  ci [--list | STEP...]       the whole gate, or only the steps named
";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> Result<()> {
    let root = workspace_root()?;
    let mut args = args.iter().map(String::as_str);
    let command = args.next().unwrap_or("help");
    let rest: Vec<&str> = args.collect();
    match (command, rest.as_slice()) {
        ("help" | "--help" | "-h", _) => print!("{HELP}"),
        ("test", []) => checks::test(&root)?,
        ("test", ["--rust"]) => checks::rust_test(&root)?,
        ("test", ["--python"]) => python::test(&root)?,
        ("demo", flags) => demo::run(&root, &demo::Options::parse(flags)?)?,
        ("vectors", []) => vectors::regenerate(&root)?,
        ("vectors", ["--check"]) => vectors::check(&root)?,
        ("fuzz-smoke", []) => fuzz::smoke(&root, fuzz::DEFAULT_SECONDS)?,
        ("fuzz-smoke", ["--seconds", n]) => {
            fuzz::smoke(&root, n.parse().context("--seconds wants a whole number")?)?;
        }
        ("arm", []) => arm::test(&root)?,
        ("asan", []) => asan::test_all(&root)?,
        ("stores", []) => stores::check(&root)?,
        ("msrv", []) => msrv::check(&root)?,
        ("docs", []) => docs::check(&root)?,
        ("can-fail", []) => can_fail::run(&root)?,
        ("can-fail", [case, variant]) => can_fail::run_case(&root, case, variant)?,
        ("ci", ["--list"]) => ci::list(),
        ("ci", steps) => ci::run(&root, steps)?,
        _ => bail!("unknown command `{command} {}`\n\n{HELP}", rest.join(" ")),
    }
    Ok(())
}

/// The folder above this crate: `cargo xtask` works from any folder of the workspace.
fn workspace_root() -> Result<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().context("xtask has no parent folder")?;
    Ok(root.to_path_buf())
}

//! A few seconds of every fuzz target, so that targets keep compiling and seeds keep passing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::{asan, tools};

pub(crate) const DEFAULT_SECONDS: u32 = 10;

/// Builds all targets and runs each for `seconds`, starting from its committed seeds. Inputs that
/// libFuzzer finds on the way go to `target/fuzz-smoke`, crashes to `fuzz/artifacts`.
pub(crate) fn smoke(root: &Path, seconds: u32) -> Result<()> {
    tools::ensure(root, &tools::FUZZ)?;
    let host = asan::host(root)?;
    let fuzz = |command: &str| Cmd::cargo(root).args(["fuzz", command]).env("RUSTC_BOOTSTRAP", "1");
    let targets = Cmd::cargo(root).args(["fuzz", "list"]).output()?;
    let targets: Vec<&str> = targets.split_whitespace().collect();
    if targets.is_empty() {
        bail!("fuzz/ has no targets");
    }
    fuzz("build").args(["--target", &host]).run()?;
    for target in &targets {
        let found = root.join("target/fuzz-smoke").join(target);
        std::fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
        fuzz("run")
            .args(["--target", &host, target])
            .arg(&found)
            .args(seeds(root, target)?)
            .args(["--", "-verbosity=0", "-print_final_stats=1"])
            .arg(format!("-max_total_time={seconds}"))
            .run()?;
    }
    println!("{} fuzz targets, {seconds} s each, no crash", targets.len());
    Ok(())
}

/// The committed seed folder of a target. A target without seeds is an error: from nothing,
/// seconds of fuzzing reach no further than the magic number.
fn seeds(root: &Path, target: &str) -> Result<Vec<PathBuf>> {
    let seeds = root.join("fuzz/seeds").join(target);
    if !seeds.is_dir() || std::fs::read_dir(&seeds)?.next().is_none() {
        bail!("fuzz target {target} has no seeds in {}", seeds.display());
    }
    Ok(vec![seeds])
}

//! The checks that are cargo commands. Each takes the workspace it works on, so that the
//! `can-fail` step can point it at scratch crates that must fail.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::Cmd;
use crate::{gpu, python};

/// The fuzz crate is a workspace of its own, which `--workspace` does not reach.
pub(crate) const FUZZ_MANIFEST: &str = "fuzz/Cargo.toml";

/// Formatting of every crate, the fuzz crate included.
pub(crate) fn fmt(root: &Path) -> Result<()> {
    Cmd::cargo(root).args(["fmt", "--all", "--check"]).run()?;
    if root.join(FUZZ_MANIFEST).exists() {
        Cmd::cargo(root).args(["fmt", "--manifest-path", FUZZ_MANIFEST, "--check"]).run()?;
    }
    Ok(())
}

/// Clippy with warnings denied: everything with all features at once, then each crate that has
/// features alone and without them, then the fuzz crate. Tests run with the default ones.
pub(crate) fn clippy(root: &Path) -> Result<()> {
    let clippy = |args: &[&str]| {
        Cmd::cargo(root).args(["clippy", "--locked"]).args(args).args(["--", "-D", "warnings"]).run()
    };
    clippy(&["--workspace", "--all-targets", "--all-features"])?;
    for package in packages_with_features(root)? {
        // Without tests: what those depend on would be compiled anew for each crate.
        clippy(&["-p", &package, "--no-default-features"])?;
    }
    if root.join(FUZZ_MANIFEST).exists() {
        clippy(&["--all-targets", "--manifest-path", FUZZ_MANIFEST])?;
    }
    Ok(())
}

/// Names of the workspace's packages that declare at least one feature.
fn packages_with_features(root: &Path) -> Result<Vec<String>> {
    let text =
        Cmd::cargo(root).args(["metadata", "--locked", "--no-deps", "--format-version", "1"]).output()?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let with_features = packages
        .iter()
        .filter(|package| package["features"].as_object().is_some_and(|features| !features.is_empty()));
    with_features
        .map(|package| package["name"].as_str().map(str::to_owned).context("package has no name"))
        .collect()
}

/// Rustdoc with warnings denied.
pub(crate) fn doc(root: &Path) -> Result<()> {
    Cmd::cargo(root)
        .args(["doc", "--locked", "--workspace", "--all-features", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()
}

/// Unit, integration and documentation tests of the whole workspace.
pub(crate) fn cargo_test(root: &Path) -> Result<()> {
    workspace_test(root).run()
}

fn workspace_test(root: &Path) -> Cmd {
    Cmd::cargo(root).args(["test", "--locked", "--workspace"])
}

/// The Rust half of the tests: all of them, then those of the encoders again as users run encoders.
/// What the compiler makes of their loops differs between profiles, and once was wrong in one alone.
/// The release build shares its dependencies with that of `cmf`, which the Python half needs.
pub(crate) fn rust_test(root: &Path) -> Result<()> {
    let required = if gpu::provide(root)? { "1" } else { "0" };
    workspace_test(root).env("CMF_REQUIRE_GPU", required).run()?;
    // What the default features leave out: models on a GPU, and buckets. The program's own test of
    // buckets (`fetch`, with its feature) builds the models' dependencies once more: it stays out.
    let device = ["--features", "cmf-cli/gpu", "--test", "device"];
    workspace_test(root).args(device).env("CMF_REQUIRE_GPU", required).run()?;
    let stores = ["-p", "cmf-sources", "--features", "object-store", "--test", "stores"];
    Cmd::cargo(root).args(["test", "--locked"]).args(stores).run()?;
    Cmd::cargo(root).args(["test", "--locked", "--release", "-p", "cmf-converters", "--lib"]).run()
}

/// All tests: the Rust half, then the Python half.
pub(crate) fn test(root: &Path) -> Result<()> {
    rust_test(root)?;
    python::test(root)
}

//! The checks that are cargo commands. Each takes the workspace it works on, so that the
//! `can-fail` step can point it at scratch crates that must fail.

use std::path::{Path, PathBuf};

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

/// Clippy with warnings denied: everything with all features at once, then the crates that have features
/// without them, then the fuzz crate. Tests run with the default ones.
pub(crate) fn clippy(root: &Path) -> Result<()> {
    let clippy = |args: &[&str]| {
        Cmd::cargo(root).args(["clippy", "--locked"]).args(args).args(["--", "-D", "warnings"]).run()
    };
    clippy(&["--workspace", "--all-targets", "--all-features"])?;
    // One build for all: each set of packages has its own features of what it depends on, compiled anew.
    let packages = packages_with_features(root)?;
    if !packages.is_empty() {
        let packages = packages.iter().flat_map(|package| ["-p", package]);
        clippy(&packages.chain(["--no-default-features"]).collect::<Vec<_>>())?;
    }
    if root.join(FUZZ_MANIFEST).exists() {
        clippy(&["--all-targets", "--manifest-path", FUZZ_MANIFEST, "--target-dir", "target"])?;
    }
    Ok(())
}

/// Names of the workspace's packages that declare at least one feature, without those of which another
/// package wants one: `asan` compiles `cmf-format` without its features, and the fuzz crate `cmf-loader`.
fn packages_with_features(root: &Path) -> Result<Vec<String>> {
    let text =
        Cmd::cargo(root).args(["metadata", "--locked", "--no-deps", "--format-version", "1"]).output()?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let wanted = |name: &str| {
        let dependencies = packages.iter().filter_map(|package| package["dependencies"].as_array()).flatten();
        let mut of_name = dependencies.filter(|dependency| dependency["name"] == name);
        of_name.any(|dependency| dependency["features"].as_array().is_some_and(|wanted| !wanted.is_empty()))
    };
    let mut names = Vec::new();
    for package in packages {
        let name = package["name"].as_str().context("package has no name")?;
        if package["features"].as_object().is_some_and(|features| !features.is_empty()) && !wanted(name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
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

/// Program `name` as the tests have it: after them there is nothing to compile. Building it alone wants
/// other features of what it depends on, and so all of that once more.
pub(crate) fn test_program(root: &Path, name: &str) -> Result<PathBuf> {
    workspace_test(root).arg("--no-run").run()?;
    Ok(root.join("target/debug").join(name))
}

/// The Rust half of the tests: all of them, then those of the encoders again as users run encoders.
/// What the compiler makes of their loops differs between profiles, and once was wrong in one alone.
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

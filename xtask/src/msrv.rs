//! The minimum supported Rust version: stated once, in the workspace's Cargo.toml, and compiled.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;

/// Compiles everything with the stated version. Where neither the compiler in use nor one of rustup's
/// is that, the one in use must not be older, and the output says that the stated version was not tried.
pub(crate) fn check(root: &Path) -> Result<()> {
    let stated = stated(root)?;
    // All features, as clippy has them: what others wrote is compiled already.
    let check = ["check", "--locked", "--workspace", "--all-targets", "--all-features"];
    let text = Cmd::new("rustc", root).arg("--version").output()?;
    let current = text.split_whitespace().nth(1).context("rustc --version prints no version")?;
    if minor(current)? == minor(&stated)? {
        println!("rust-version {stated}: compiling with rustc {current}, which is that version");
        return Cmd::cargo(root).args(check).run();
    }
    if let Some(toolchain) = installed_toolchain(root, &stated) {
        println!("rust-version {stated}: compiling with the installed toolchain {toolchain}");
        return Cmd::new("rustup", root).args(["run", &toolchain, "cargo"]).args(check).run();
    }
    if minor(current)? < minor(&stated)? {
        bail!("rustc {current} is older than the stated rust-version {stated}");
    }
    println!("rust-version {stated}: NOT compiled with it (no such toolchain); rustc {current} used");
    Cmd::cargo(root).args(check).run()
}

/// `rust-version` of the workspace's Cargo.toml, such as `1.95`.
pub(crate) fn stated(root: &Path) -> Result<String> {
    let path = root.join("Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let version = line.context("Cargo.toml states no rust-version")?.trim_matches('"');
    minor(version)?;
    Ok(version.to_owned())
}

/// The rustup toolchain for a version such as `1.95`, by its name (`1.95.0-x86_64-…`).
fn installed_toolchain(root: &Path, stated: &str) -> Option<String> {
    let list = Cmd::new("rustup", root).args(["toolchain", "list"]).output().ok()?;
    let prefix = format!("{stated}.");
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.into_iter().find(|name| name.starts_with(&prefix)).map(str::to_owned)
}

/// The 95 of `1.95.0`.
fn minor(version: &str) -> Result<u32> {
    let mut parts = version.split(['.', '-']);
    match (parts.next(), parts.next().map(str::parse)) {
        (Some("1"), Some(Ok(minor))) => Ok(minor),
        _ => bail!("`{version}` is not a Rust version"),
    }
}

//! Cargo subcommands that the gate needs and a fresh machine lacks.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::Cmd;

/// A cargo subcommand, installed from the registry at a fixed version when it is missing.
pub(crate) struct Tool {
    subcommand: &'static str,
    package: &'static str,
    version: &'static str,
}

pub(crate) const DENY: Tool = Tool { subcommand: "deny", package: "cargo-deny", version: "0.20.2" };
pub(crate) const FUZZ: Tool = Tool { subcommand: "fuzz", package: "cargo-fuzz", version: "0.13.2" };

/// Makes sure that `cargo SUBCOMMAND` runs. A version that is already there is kept.
pub(crate) fn ensure(root: &Path, tool: &Tool) -> Result<()> {
    if Cmd::cargo(root).args([tool.subcommand, "--version"]).succeeds() {
        return Ok(());
    }
    println!("{} is missing, installing it (minutes)", tool.package);
    Cmd::cargo(root)
        .args(["install", "--locked", "--quiet", tool.package, "--version", tool.version])
        .run()
        .with_context(|| format!("{} could not be installed", tool.package))
}

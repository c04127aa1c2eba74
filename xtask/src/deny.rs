//! Licences, banned crates and crate sources of the dependencies, by cargo-deny.

use std::path::Path;

use anyhow::Result;

use crate::checks::FUZZ_MANIFEST;
use crate::cmd::Cmd;
use crate::tools;

/// Checks the lock files of `root` and of its fuzz crate against `config`. Advisories need a
/// download of the advisory database, which a gate without network cannot have: they are a
/// command of their own (CONTRIBUTING.md).
pub(crate) fn check(root: &Path, config: &Path) -> Result<()> {
    tools::ensure(root, &tools::DENY)?;
    let manifests = ["Cargo.toml", FUZZ_MANIFEST];
    for manifest in manifests.into_iter().filter(|manifest| root.join(manifest).exists()) {
        Cmd::cargo(root)
            .args(["deny", "--locked", "--manifest-path", manifest, "--config"])
            .arg(config)
            .args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"])
            .run()?;
    }
    Ok(())
}

//! Packages of the distribution, where this program may install them.

use std::path::Path;

use anyhow::Result;

use crate::cmd::Cmd;

/// Installs `packages` as root with apt-get; does nothing where that is not what runs this.
pub(crate) fn install(root: &Path, packages: &[&str]) -> Result<()> {
    if !may_install(root) {
        return Ok(());
    }
    let apt = || Cmd::new("apt-get", root).env("DEBIAN_FRONTEND", "noninteractive");
    apt().args(["update", "-qq"]).run()?;
    apt().args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages).run()
}

fn may_install(root: &Path) -> bool {
    let is_root = Cmd::new("id", root).args(["-u"]).output().is_ok_and(|id| id.trim() == "0");
    is_root && Cmd::new("apt-get", root).args(["--version"]).output().is_ok()
}

//! Tests under AddressSanitizer. The flag is unstable, so RUSTC_BOOTSTRAP opens it on the stable
//! compiler, which ships the runtime.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::Cmd;

/// The crate that reads untrusted bytes, and the one that reads them through pointers.
const PACKAGES: [&str; 2] = ["cmf-format", "cmf-kernels-cpu"];

/// Tests of these crates.
pub(crate) fn test_all(root: &Path) -> Result<()> {
    PACKAGES.iter().try_for_each(|package| test(root, package))
}

/// Unit and integration tests of `package` under AddressSanitizer, in a target folder of its own.
/// Documentation tests are left out: rustdoc does not pass the flag on.
pub(crate) fn test(root: &Path, package: &str) -> Result<()> {
    Cmd::cargo(root)
        .args(["test", "--locked", "-p", package, "--lib", "--tests", "--target", &host(root)?])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", root.join("target/asan"))
        .run()
}

/// The host's target triple. Naming it keeps the flag away from build scripts and macros.
pub(crate) fn host(root: &Path) -> Result<String> {
    let text = Cmd::new("rustc", root).arg("-vV").output()?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

//! Kernels of 64-bit Arm on a machine that has another processor: tests under QEMU.

use std::path::Path;

use anyhow::Result;

use crate::cmd::Cmd;
use crate::packages;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const QEMU: &str = "qemu-aarch64";
/// Where the packages below put the C library of the target.
const C_LIBRARY: &str = "/usr/aarch64-linux-gnu";
const PACKAGES: [&str; 3] = ["qemu-user", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];

/// Processors that are emulated: one with every extension, and one with NEON alone, on which an
/// instruction that it lacks ends a test.
const PROCESSORS: [&str; 2] = ["max", "cortex-a53"];

/// Lints and tests of cmf-kernels-cpu for 64-bit Arm, by emulation. Where what that needs is neither
/// there nor can be installed, the output says that nothing was tried.
pub(crate) fn test(root: &Path) -> Result<()> {
    if cfg!(target_arch = "aarch64") {
        println!("this machine is 64-bit Arm: its kernels are tested with all others");
        return Ok(());
    }
    if let Some(missing) = missing(root) {
        println!("kernels of 64-bit Arm: NOT COMPILED and NOT TESTED: {missing}");
        return Ok(());
    }
    let package = ["--locked", "-p", "cmf-kernels-cpu", "--target", TARGET];
    let linker = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER";
    let clippy = Cmd::cargo(root).arg("clippy").args(package).env(linker, LINKER);
    clippy.args(["--", "-D", "warnings"]).run()?;
    PROCESSORS.iter().try_for_each(|processor| {
        let runner = format!("{QEMU} -cpu {processor} -L {C_LIBRARY}");
        Cmd::cargo(root)
            .arg("test")
            .args(package)
            .args(["--lib", "--tests"])
            .env(linker, LINKER)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner)
            .run()
    })
}

/// What is missing after all has been installed that can be.
fn missing(root: &Path) -> Option<String> {
    let has = |program: &str| Cmd::new(program, root).arg("--version").succeeds();
    let has_tools = || has(QEMU) && has(LINKER) && Path::new(C_LIBRARY).join("include").is_dir();
    if !has_tools() && (packages::install(root, &PACKAGES).is_err() || !has_tools()) {
        return Some(format!("no {QEMU}, {LINKER} or {C_LIBRARY}, from packages {}", PACKAGES.join(", ")));
    }
    let has_library = || {
        let folder = Cmd::new("rustc", root).args(["--print", "target-libdir", "--target", TARGET]).output();
        folder.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
    };
    let add = || Cmd::new("rustup", root).args(["target", "add", TARGET]).succeeds();
    if !(has_library() || add() && has_library()) {
        return Some(format!("rustc has no standard library for {TARGET}, and rustup cannot add it"));
    }
    None
}

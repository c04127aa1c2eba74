//! Proof that the checks check something: each must pass on a scratch crate that is right, and
//! fail on the same crate with one thing wrong.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::{asan, checks, deny, msrv};

type Check = fn(&Path, &Path) -> Result<()>;

struct Case {
    name: &'static str,
    /// Gets the scratch crate and the real workspace.
    check: Check,
    /// The file that is changed, what it says when all is right, and when one thing is wrong.
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// Part of what is printed about the wrong one, so that it fails for its own reason.
    complaint: &'static str,
}

const LIB: &str = "src/lib.rs";

const CASES: &[Case] = &[
    Case {
        name: "formatting",
        check: |scratch, _| checks::fmt(scratch),
        file: LIB,
        right: "//! Scratch.\n\n/// Does nothing.\npub fn f() {}\n",
        wrong: "//! Scratch.\n\n/// Does nothing.\npub fn f( )   {}\n",
        complaint: "Diff in",
    },
    Case {
        name: "lint",
        check: |scratch, _| checks::clippy(scratch),
        file: LIB,
        right: "//! Scratch.\n\n/// Negates.\npub fn f(x: bool) -> bool {\n    !x\n}\n",
        wrong: "//! Scratch.\n\n/// Negates.\npub fn f(x: bool) -> bool {\n    x == false\n}\n",
        complaint: "equality checks against false",
    },
    Case {
        name: "lint behind a feature",
        check: |scratch, _| checks::clippy(scratch),
        file: LIB,
        right: "//! Scratch.\n\n/// Negates.\n#[cfg(feature = \"extra\")]\npub fn f(x: bool) -> bool {\n    !x\n}\n",
        wrong: "//! Scratch.\n\n/// Negates.\n#[cfg(feature = \"extra\")]\npub fn f(x: bool) -> bool {\n    x == false\n}\n",
        complaint: "equality checks against false",
    },
    Case {
        name: "link in documentation",
        check: |scratch, _| checks::doc(scratch),
        file: LIB,
        right: "//! See [`f`].\n\n/// Does nothing.\npub fn f() {}\n",
        wrong: "//! See [`g`].\n\n/// Does nothing.\npub fn f() {}\n",
        complaint: "unresolved link to `g`",
    },
    Case {
        name: "unit test",
        check: |scratch, _| checks::cargo_test(scratch),
        file: LIB,
        right: "//! Scratch.\n#[test]\nfn adds() {\n    assert_eq!(1 + 1, 2);\n}\n",
        wrong: "//! Scratch.\n#[test]\nfn adds() {\n    assert_eq!(1 + 1, 3);\n}\n",
        complaint: "left == right",
    },
    Case {
        name: "documentation test",
        check: |scratch, _| checks::cargo_test(scratch),
        file: LIB,
        right: "//! ```\n//! assert_eq!(1 + 1, 2);\n//! ```\n",
        wrong: "//! ```\n//! assert_eq!(1 + 1, 3);\n//! ```\n",
        complaint: "left == right",
    },
    Case {
        name: "rust-version",
        check: |scratch, _| msrv::check(scratch),
        file: "Cargo.toml",
        right: MANIFEST,
        wrong: MANIFEST_FROM_THE_FUTURE,
        complaint: "older than the stated rust-version",
    },
    Case {
        name: "licence",
        check: |scratch, root| deny::check(scratch, &root.join("deny.toml")),
        file: "dependency/Cargo.toml",
        right: "[package]\nname = \"dependency\"\nversion = \"0.0.0\"\nedition = \"2024\"\nlicense = \"MIT\"\n",
        wrong: "[package]\nname = \"dependency\"\nversion = \"0.0.0\"\nedition = \"2024\"\nlicense = \"AGPL-3.0-only\"\n",
        complaint: "AGPL-3.0",
    },
    Case {
        name: "read past the end",
        check: |scratch, _| asan::test(scratch, "scratch"),
        file: LIB,
        right: "//! Scratch.\n#[test]\nfn reads() {\n    let v = std::hint::black_box(vec![1_u8; 8]);\n    assert!(unsafe { v.as_ptr().add(7).read_volatile() } < 255);\n}\n",
        wrong: "//! Scratch.\n#[test]\nfn reads() {\n    let v = std::hint::black_box(vec![1_u8; 8]);\n    assert!(unsafe { v.as_ptr().add(8).read_volatile() } <= 255);\n}\n",
        complaint: "heap-buffer-overflow",
    },
];

/// `rust-version` is what the newest compiler in use could have; 1.85 brought the edition.
const MANIFEST: &str = "\
[workspace]
[package]
name = \"scratch\"
version = \"0.0.0\"
edition = \"2024\"
rust-version = \"1.85\"
license = \"MIT\"
[features]
extra = []
[dependencies]
dependency = { path = \"dependency\", version = \"0.0.0\" }
";
const MANIFEST_FROM_THE_FUTURE: &str = "\
[workspace]
[package]
name = \"scratch\"
version = \"0.0.0\"
edition = \"2024\"
rust-version = \"1.9999\"
license = \"MIT\"
[features]
extra = []
[dependencies]
dependency = { path = \"dependency\", version = \"0.0.0\" }
";
const LOCK: &str = "\
version = 4

[[package]]
name = \"dependency\"
version = \"0.0.0\"

[[package]]
name = \"scratch\"
version = \"0.0.0\"
dependencies = [\"dependency\"]
";
const DEPENDENCY: &str = "\
[package]
name = \"dependency\"
version = \"0.0.0\"
edition = \"2024\"
license = \"MIT\"
";

/// Runs all cases, each in a process of its own whose output is shown only when it surprises:
/// a gate that passes prints no failed tests.
pub(crate) fn run(root: &Path) -> Result<()> {
    let own = std::env::current_exe().context("path of this program")?;
    for case in CASES {
        let outcome = |variant: &str| Cmd::new(&own, root).args(["can-fail", case.name, variant]).outcome();
        let (passed, printed) = outcome("right")?;
        if !passed {
            bail!("{}: the check fails on a crate that is right:\n{printed}", case.name);
        }
        let (passed, printed) = outcome("wrong")?;
        if passed {
            bail!("{}: the check passes on a crate that is wrong:\n{printed}", case.name);
        }
        if !printed.contains(case.complaint) {
            bail!("{}: `{}` is not what the check says:\n{printed}", case.name, case.complaint);
        }
        println!("{}: passes when right, fails when wrong", case.name);
    }
    Ok(())
}

/// Runs the check of one case on its `right` or `wrong` crate.
pub(crate) fn run_case(root: &Path, name: &str, variant: &str) -> Result<()> {
    let case = CASES.iter().find(|case| case.name == name).context("no such case")?;
    let text = match variant {
        "right" => case.right,
        "wrong" => case.wrong,
        _ => bail!("`{variant}` is neither right nor wrong"),
    };
    let dir = root.join("target/can-fail").join(case.name.replace(' ', "-"));
    (case.check)(&scratch(&dir, case.file, text)?, root)
}

/// A workspace with one crate and one dependency at `dir`, with `file` replaced by `text`.
fn scratch(dir: &Path, file: &str, text: &str) -> Result<PathBuf> {
    let files = [
        ("Cargo.toml", MANIFEST),
        ("Cargo.lock", LOCK),
        (LIB, "//! Scratch.\n"),
        ("dependency/Cargo.toml", DEPENDENCY),
        ("dependency/src/lib.rs", "//! Scratch.\n"),
        (file, text),
    ];
    for (name, contents) in files {
        let path = dir.join(name);
        let parent = path.parent().context("a file has a folder")?;
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        std::fs::write(&path, contents).with_context(|| path.display().to_string())?;
    }
    Ok(dir.to_path_buf())
}

//! `cmf fetch` and `cmf run` against servers that others wrote for the protocols of object stores:
//! `tests/stores/stores.py` has them, and says what is checked. Not a step of the gate: it installs some 400
//! packages of two registries.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::Cmd;
use crate::{python, sample};

const REQUIREMENTS: &str = "tests/stores/requirements.txt";
const SERVERS: [&str; 2] = ["azurite@3.37.0", "s3rver@3.7.1"];

/// Builds the command with the feature `object-store`, installs the servers in `target/`, and runs the script.
pub(crate) fn check(root: &Path) -> Result<()> {
    Cmd::cargo(root).args(["build", "--locked", "-p", "cmf-cli", "--features", "object-store"]).run()?;
    let (cmf, place) = (root.join("target/debug/cmf"), root.join("target/stores"));
    let source = place.join("random-llama");
    sample::write(&source)?;
    let model = place.join("model.cmf");
    let convert = Cmd::new(&cmf, root).arg("convert").arg(&source).arg("-o").arg(&model);
    convert.args(["--recipe", "any-size", "--force", "--quiet"]).run()?;
    let packages = python::packages(root, REQUIREMENTS, "target/stores/python")?;
    let install = Cmd::new("npm", root).args(["install", "--no-save", "--no-fund", "--no-audit"]);
    let installed = install.args(["--loglevel=error", "--prefix"]).arg(&place).args(SERVERS).run();
    installed.with_context(|| {
        format!("the servers of Azure and S3 are packages of npm: {}", SERVERS.join(", "))
    })?;
    let script = Cmd::new(python::interpreter(root)?, root).env("PYTHONPATH", &packages);
    script.arg("tests/stores/stores.py").arg(&cmf).arg(&model).arg(place.join("node_modules")).run()
}

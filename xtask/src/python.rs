//! The Python half of the tests: the reference reader of the specification over the vectors.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;

/// What the reference reader imports, one requirement a line.
const REQUIREMENTS: &str = "spec/reference/requirements.txt";

/// Runs the reference reader over all vectors.
pub(crate) fn test(root: &Path) -> Result<()> {
    let packages = packages(root)?;
    Cmd::new(interpreter(root)?, root)
        .args(["spec/reference/cmf_ref.py", "spec/vectors"])
        .env("PYTHONPATH", packages)
        .run()
}

/// The name under which Python 3 is installed.
pub(crate) fn interpreter(root: &Path) -> Result<&'static str> {
    let is_python3 = |name: &&str| {
        Cmd::new(name, root).args(["-c", "import sys; assert sys.version_info[0] == 3"]).succeeds()
    };
    ["python3", "python"]
        .into_iter()
        .find(is_python3)
        .context("Python 3 is needed and neither `python3` nor `python` is one")
}

/// A folder in `target/` with the reference reader's requirements. `pip install --target` needs
/// neither the venv module, which some distributions split off, nor the right to change the
/// system's packages.
fn packages(root: &Path) -> Result<PathBuf> {
    let python = interpreter(root)?;
    let requirements = root.join(REQUIREMENTS);
    let wanted =
        std::fs::read_to_string(&requirements).with_context(|| requirements.display().to_string())?;
    let version = Cmd::new(python, root)
        .args([
            "-c",
            "import sysconfig; print(sysconfig.get_config_var('SOABI') or sysconfig.get_python_version())",
        ])
        .output()?;
    let dir = root.join("target/python").join(version.trim());
    // Written last, so that an interrupted installation is repeated.
    let stamp = dir.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(dir);
    }
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    let installed = Cmd::new(python, root)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--only-binary=:all:", "--requirement", REQUIREMENTS, "--target"])
        .arg(&dir)
        // The folder is this workspace's own, so it does not matter who installs into it.
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .run();
    if let Err(error) = installed {
        bail!("the Python checks need the packages in {REQUIREMENTS}: {error:#}");
    }
    std::fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
    Ok(dir)
}

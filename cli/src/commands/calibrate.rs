//! `cmf calibrate`

use crate::progress::{Bar, Unit};
use crate::{Answer, print, size, text};
use cmf_candle::moments::{self, Note};
use cmf_candle::weights::Dense;
use cmf_candle::{AnyModel, Windows};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf calibrate SmolLM2-135M-Instruct/ --text calibration.txt -o moments.cmf
  cmf convert SmolLM2-135M-Instruct/ -o smollm2.cmf --recipe any-size --calibration moments.cmf
The output holds, under the name of each matrix, the second moments of what it reads, and how much
an error of the matrix, and of each row of the embedding, changes what the model predicts.")]
pub(crate) struct Args {
    /// A model that `cmf convert` reads
    model: PathBuf,
    /// The text to run through it
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of the text that are used
    #[arg(long, default_value_t = 32_768)]
    tokens: usize,
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Tokens by which the sensitivity of each matrix is measured; 0 measures none
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    sensitivity: usize,
    /// The .cmf to write
    #[arg(short, long, value_name = "MOMENTS.cmf")]
    output: PathBuf,
    /// Replace an output that exists
    #[arg(short, long)]
    force: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    note: Note,
    file_bytes: u64,
    seconds: f64,
}

/// How much of a text is used.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    tokens: usize,
    context: usize,
    sensitivity: usize,
}

impl Default for Extent {
    fn default() -> Self {
        Self { tokens: 32_768, context: 512, sensitivity: 1024 }
    }
}

/// Runs `text` through `model` and writes what was measured to `output`; gives its bytes.
pub(crate) fn measure(
    model: &Path,
    text: &Path,
    extent: Extent,
    output: &Path,
    force: bool,
    quiet: bool,
) -> anyhow::Result<(Note, u64)> {
    let Extent { tokens, context, sensitivity } = extent;
    let opened = AnyModel::open(model)?;
    let card = opened.card()?;
    let windows = Windows::read(text, card.text()?, tokens, context)?;
    let note = Note::new(model, text, &windows)?;
    let weights = card.weights(Dense(opened));
    let mut measured = None;
    if sensitivity > 0 {
        let windows = Windows::read(text, card.text()?, sensitivity.max(context), context)?;
        let bar = Bar::new(quiet, Unit::Matrices);
        let progress = |done, total| bar.set("sensitivity", done, total);
        measured = Some(cmf_candle::eval::sensitivity(weights.as_ref(), card.config(), &windows, &progress)?);
    }
    let bar = Bar::new(quiet, Unit::Layers);
    let progress = |done, total| bar.set("layers", done, total);
    let measured = measured.as_ref();
    let moments = moments::collect(weights.as_ref(), card.config(), &windows, &note, measured, &progress)?;
    drop(bar);
    Ok((note, moments::write(&moments, output, force)?))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let started = Instant::now();
    if !args.force && args.output.exists() {
        anyhow::bail!("{}: exists; --force replaces it", args.output.display());
    }
    let extent = Extent { tokens: args.tokens, context: args.context, sensitivity: args.sensitivity };
    let (note, file_bytes) = measure(&args.model, &args.text, extent, &args.output, args.force, args.quiet)?;
    let report = Report { note, file_bytes, seconds: started.elapsed().as_secs_f64() };
    if args.json {
        print(&text::json(&report)?)?;
    } else {
        print(&format!(
            "{}: moments of {} tokens, {}, {:.1} s\n",
            args.output.display(),
            report.note.tokens,
            size::show(file_bytes),
            report.seconds,
        ))?;
    }
    Ok(Answer::Yes)
}

//! `cmf diff`

use crate::progress::Bar;
use crate::{Answer, print, text};
use cmf_converters::compare::{Differences, TensorDifference, compare};
use cmf_converters::source;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf diff SmolLM2-135M-Instruct/ smollm2.cmf
  cmf diff model.safetensors model.cmf --min-snr 20     exit 0 if every tensor has 20 dB or more
Exit code 0: the same (or within --min-snr); 1: different.")]
pub(crate) struct Args {
    /// The original: any format that `cmf convert` reads
    a: PathBuf,
    /// The other: any format that `cmf convert` reads
    b: PathBuf,
    /// Accept tensors whose signal to noise ratio is at least this many dB
    #[arg(long, value_name = "DB")]
    min_snr: Option<f64>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let (a, b) = (source::open(&args.a)?, source::open(&args.b)?);
    let bar = Bar::new(args.quiet);
    let differences = compare(a.as_ref(), b.as_ref(), &|done, total| bar.set("comparing", done, total))?;
    drop(bar);
    print(&match args.json {
        true => text::json(&differences)?,
        false => show(&differences),
    })?;
    Ok(match differences.is_within(args.min_snr.unwrap_or(f64::INFINITY)) {
        true => Answer::Yes,
        false => Answer::No,
    })
}

fn show(differences: &Differences) -> String {
    let row = |t: &TensorDifference| {
        let snr = t.snr_db.map_or_else(|| "same".into(), |snr| format!("{snr:.2}"));
        vec![
            text::name(&t.name),
            t.elements.to_string(),
            snr,
            format!("{:.3e}", t.relative_error),
            format!("{:.3e}", t.max_abs_error),
        ]
    };
    let rows: Vec<_> = differences.tensors.iter().map(row).collect();
    let mut out = text::table(&["tensor", "elements", "SNR dB", "relative error", "max error"], &rows);
    for name in &differences.only_in_first {
        out += &format!("only in the first: {}\n", text::name(name));
    }
    for name in &differences.only_in_second {
        out += &format!("only in the second: {}\n", text::name(name));
    }
    for (name, a, b) in &differences.shapes_differ {
        out += &format!("shapes differ: {} {a:?} {b:?}\n", text::name(name));
    }
    out
}

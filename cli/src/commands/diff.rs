//! `cmf diff`

use crate::progress::{Bar, Unit};
use crate::{Answer, print, text};
use cmf_converters::compare::{Differences, TensorDifference, compare};
use cmf_converters::source;
use cmf_loader::Budget;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf diff SmolLM2-135M-Instruct/ smollm2.cmf
  cmf diff model.safetensors model.cmf --min-snr 20     exit 0 if every tensor has 20 dB or more
  cmf diff SmolLM2-135M-Instruct/ smollm2.cmf --budget 3bpw      what is left of it within 3 bits per weight
Exit code 0: the same (or within --min-snr); 1: different.")]
pub(crate) struct Args {
    /// The original: any format that `cmf convert` reads
    a: PathBuf,
    /// The other: any format that `cmf convert` reads
    b: PathBuf,
    /// Accept tensors whose signal to noise ratio is at least this many dB
    #[arg(long, value_name = "DB")]
    min_snr: Option<f64>,
    /// Take of B what fits: 123456, 90MiB, 2bpw, min, max or auto (see `cmf plan`) [default: max]
    #[arg(long, value_name = "BUDGET")]
    budget: Option<Budget>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let (a, b) = (source::open(&args.a)?, source::open_within(&args.b, args.budget)?);
    let bar = Bar::new(args.quiet, Unit::Elements);
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
    let snr = |t: &TensorDifference| match t.snr_db {
        _ if t.identical => "same".into(),
        Some(snr) => format!("{snr:.2}"),
        None => "-".to_owned(),
    };
    let row = |t: &TensorDifference| {
        let (relative, most) = (text::number(t.relative_error), text::number(t.max_abs_error));
        vec![text::name(&t.name), text::elements(t.elements), snr(t), relative, most]
    };
    let mut out = String::new();
    if !differences.tensors.is_empty() {
        let rows: Vec<_> = differences.tensors.iter().map(row).collect();
        out += &text::table(&["tensor", ">elements", ">SNR dB", ">relative error", ">max error"], &rows);
        out += "\n";
    }
    for name in &differences.only_in_first {
        out += &format!("only in the first: {}\n", text::name(name));
    }
    for name in &differences.only_in_second {
        out += &format!("only in the second: {}\n", text::name(name));
    }
    for shapes in &differences.shapes_differ {
        out +=
            &format!("shapes differ: {} {:?} {:?}\n", text::name(&shapes.name), shapes.first, shapes.second);
    }
    for t in differences.tensors.iter().filter(|t| t.not_finite > 0) {
        let (name, count) = (text::name(&t.name), text::elements(t.not_finite));
        out += &format!("NaN or infinite in one alone: {name}, {count} elements, not in its numbers\n");
    }
    let same = differences.tensors.iter().filter(|t| t.identical).count();
    let tensors = text::count(differences.tensors.len(), "tensor");
    out += &match differences.tensors.len() - same {
        0 => format!("{tensors} in both, all the same\n"),
        _ => format!(
            "{tensors} in both, {same} the same; all weights together: SNR {} dB, relative error {}\n",
            snr(&differences.all),
            text::number(differences.all.relative_error),
        ),
    };
    out
}

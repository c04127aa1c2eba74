//! `cmf fetch`

use crate::commands::arrivals::{self, Arrivals};
use crate::progress::{Bar, Unit};
use crate::wanted::Patterns;
use crate::{Answer, print, size, text};
use anyhow::bail;
use cmf_loader::{Budget, Want};
use cmf_sources::{Fetch, FetchOptions};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
#[command(
    after_help = "A fetch that ended early goes on where it was. Meanwhile OUT.part is a .cmf that can be run
under the budgets that have come.

Examples:
  cmf fetch https://example.com/model.cmf -o model.cmf
  cmf fetch https://example.com/model.cmf -o model.cmf --budget 90MiB
  cmf fetch s3://bucket/model.cmf -o model.cmf"
)]
pub(crate) struct Args {
    /// Where the file is: http://, https://; in builds with object stores s3://, gs://, az://, file://,
    /// with the credentials of the environment
    url: String,
    /// Where it goes; it grows as OUT.part
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Only what a model under this budget needs: 90MiB, 2bpw, min, max or auto
    #[arg(short, long, value_name = "SIZE", default_value = "max")]
    budget: String,
    /// Only tensors of this name; * is any text, ? any character
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Requests at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Draw how good the model is while it comes, against waiting for the whole file, as SVG
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
    /// Replace an output that exists
    #[arg(long)]
    force: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Report {
    file: String,
    complete: bool,
    file_bytes: u64,
    have_bytes: u64,
    wanted_bytes: u64,
    received_bytes: u64,
    units: usize,
    seconds: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    if args.output.exists() && !args.force {
        bail!("{}: exists; --force replaces it", args.output.display());
    }
    arrivals::check(args.plot.as_deref(), args.force)?;
    let started = Instant::now();
    let arrivals = Arrivals::new();
    let options = FetchOptions { connections: args.connections.into(), ..FetchOptions::default() };
    let remote = cmf_sources::open(&args.url, &options)?;
    let mut fetch = Fetch::begin(remote, &args.output, options)?;
    let only = Patterns::new(&args.only);
    if !only.is_empty() {
        only.check(fetch.model().tensors().map(|tensor| tensor.name()).collect::<Vec<_>>().into_iter())?;
        fetch.want(&|name| only.want(name, Want::Budget, Want::Never))?;
    }
    let units = fetch.schedule().plan(Budget::parse(&args.budget)?)?.units();
    let complete = only.is_empty() && units == fetch.schedule().steps();
    fetch.limit(units);
    let bar = Bar::new(args.quiet, Unit::Bytes);
    fetch.run(&|progress| {
        arrivals.came(progress);
        bar.set("fetching", progress.have_bytes, progress.wanted_bytes);
    })?;
    drop(bar);
    let (progress, file_bytes) = (fetch.progress(), fetch.model().file_bytes());
    if let Some(path) = &args.plot {
        arrivals.write(path, arrivals::name_of(&args.url), fetch.schedule(), file_bytes)?;
    }
    let file = match complete {
        true => fetch.finish()?,
        false => fetch.part().to_owned(),
    };
    let report = Report {
        file: file.display().to_string(),
        complete,
        file_bytes,
        have_bytes: progress.have_bytes,
        wanted_bytes: progress.wanted_bytes,
        received_bytes: progress.received_bytes,
        units,
        seconds: started.elapsed().as_secs_f64(),
    };
    match args.json {
        true => print(&text::json(&report)?)?,
        false => print(&show(&report))?,
    }
    Ok(Answer::Yes)
}

fn show(report: &Report) -> String {
    let received = size::show(report.received_bytes);
    let what = match report.complete {
        true => size::show(report.file_bytes),
        false => format!(
            "{} of {}, all that {} need",
            size::show(report.have_bytes),
            size::show(report.file_bytes),
            text::count(report.units, "unit")
        ),
    };
    format!("{}: {what}, {received} received, {:.1} s\n", report.file, report.seconds)
}

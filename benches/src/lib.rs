//! Benchmarks of CMF, each against a peer in the same run.
//!
//! ```text
//! cargo bench -p cmf-benches                        all tables
//! cargo bench -p cmf-benches -- decode/grouped      rows whose name holds the text
//! cargo bench -p cmf-benches -- --list              the names
//! cargo bench -p cmf-benches -- open --json         one JSON document
//! ```
//!
//! # What a row says
//!
//! Ours and the peer take turns in many short rounds, so that whatever else the machine does meets
//! both. A row gives the best round of each, the ratio of their speeds (above 1: ours is faster),
//! and by how much the median of the peer's rounds is slower than its best: the machine's variation.
//!
//! What runs on one thread is timed by the processor time of the process, which on a quiet machine is
//! the time that passes and on a busy one leaves out the others; what runs on several threads, by the
//! time that passes.
//!
//! # Names
//!
//! A name is `suite/what`, and stays what it is. Rows of the `decode` suite are
//! `decode/ENCODING/variant`, with the encoding's name in the format ([`names`]).

mod clock;
mod data;
mod files;
mod report;
mod row;
mod suites;

use anyhow::Result;
use clap::Parser;
use clock::Clock;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "cmf-benches", about = "Benchmarks of CMF, each against a peer in the same run")]
struct Cli {
    /// Rows whose name holds any of these texts; without one, all
    filters: Vec<String>,
    /// Print the names of the rows and run none
    #[arg(long)]
    list: bool,
    /// Print one JSON document in place of tables
    #[arg(long)]
    json: bool,
    /// Time for the rounds of a row, in milliseconds
    #[arg(long, default_value_t = 400)]
    millis: u64,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// Names of all rows.
pub fn names() -> Vec<String> {
    suites::all().into_iter().flat_map(|suite| suite.rows).map(|row| row.name).collect()
}

/// Runs the command line `args`, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match print(&cli, &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn print(cli: &Cli, out: &mut impl Write) -> Result<()> {
    let wanted = |name: &str| cli.filters.is_empty() || cli.filters.iter().any(|f| name.contains(f.as_str()));
    let clock = Clock { budget: Duration::from_millis(cli.millis) };
    let mut results = Vec::new();
    if !cli.list && !cli.json {
        writeln!(out, "{}", report::machine())?;
    }
    for mut suite in suites::all() {
        suite.rows.retain(|row| wanted(&row.name));
        if suite.rows.is_empty() {
            continue;
        }
        if cli.list {
            suite.rows.iter().try_for_each(|row| writeln!(out, "{}", row.name))?;
            continue;
        }
        if !cli.json {
            report::head(out, &suite)?;
        }
        for row in &suite.rows {
            let result = row.measure(&clock)?;
            match cli.json {
                true => results.push(result),
                false => report::line(out, &result)?,
            }
        }
    }
    if cli.json {
        let document = serde_json::json!({ "schema": 1, "machine": report::machine(), "results": results });
        writeln!(out, "{document:#}")?;
    }
    Ok(())
}

//! `cmf verify`

use crate::progress::{Bar, Unit};
use crate::{Answer, print, size, text};
use cmf_loader::{Backend, ErrorKind, Levels, Model, OpenOptions, Verification, VerifyOptions};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf verify model.cmf
  cmf verify model.cmf --hashes-only --json
Exit code 0: valid; 1: not valid, with every error found; 2: cannot be read.")]
pub(crate) struct Args {
    /// The .cmf; its shards are verified with it
    file: PathBuf,
    /// Check hashes and padding, but not every code and index
    #[arg(long)]
    hashes_only: bool,
    /// Read the file by position instead of mapping it
    #[arg(long)]
    pread: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    errors: Vec<ErrorReport>,
    errors_left_out: u64,
    files: usize,
    bytes: u64,
    unknown_terms: u64,
    unreadable: Vec<Unreadable>,
}

/// A tensor that is whole, as far as hashes tell, but not for this version to decode.
#[derive(Serialize)]
struct Unreadable {
    tensor: String,
    message: String,
}

#[derive(Serialize)]
struct ErrorReport {
    kind: &'static str,
    message: String,
    tensor: Option<String>,
    segment: Option<u32>,
    offset: Option<u64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let backend = if args.pread { Backend::Pread } else { Backend::Mmap };
    let mut unreadable = Vec::new();
    let found = match Model::open_with(&args.file, &OpenOptions { backend, ..OpenOptions::default() }) {
        Ok(model) => {
            let bar = Bar::new(args.quiet, Unit::Bytes);
            let options = VerifyOptions { values: !args.hashes_only, ..VerifyOptions::default() };
            unreadable = unreadable_tensors(&model);
            model.verify_with(&options, |done, total| bar.set("verifying", done, total))
        }
        // What cannot be opened because of its bytes is an answer, not a failure; what is too new
        // or too large for this reader is neither good nor bad.
        Err(error) if is_answer(error.kind()) => {
            Verification { errors: vec![error], files: 1, ..Verification::default() }
        }
        Err(error) => return Err(error.into()),
    };
    let report = Report {
        ok: found.is_ok(),
        errors: found.errors.iter().map(error_report).collect(),
        errors_left_out: found.errors_left_out,
        files: found.files,
        bytes: found.bytes,
        unknown_terms: found.unknown_terms,
        unreadable,
    };
    print(&match args.json {
        true => text::json(&report)?,
        false => show(args, &report),
    })?;
    Ok(if report.ok { Answer::Yes } else { Answer::No })
}

/// Tensors with a required part that this version does not know. Other errors are the
/// verification's to find.
fn unreadable_tensors(model: &Model) -> Vec<Unreadable> {
    let problem = |tensor: cmf_loader::Tensor<'_>| {
        let rows = tensor.matrix_shape().ok()?.all_rows().min(1);
        let error = tensor.open_rows(Levels::All, 0..rows).err()?;
        matches!(error.kind(), ErrorKind::Format(cmf_format::ErrorKind::Unsupported))
            .then(|| Unreadable { tensor: tensor.name().into(), message: error.to_string() })
    };
    model.tensors().filter_map(problem).collect()
}

fn is_answer(kind: ErrorKind) -> bool {
    use cmf_format::ErrorKind as Format;
    matches!(kind, ErrorKind::Format(kind) if !matches!(kind, Format::Unsupported | Format::Limit))
}

fn error_report(error: &cmf_loader::Error) -> ErrorReport {
    let format = error.format_error();
    ErrorReport {
        kind: error.kind().name(),
        message: error.to_string(),
        tensor: format.and_then(|e| e.tensor()).map(str::to_owned),
        segment: format.and_then(cmf_format::Error::segment),
        offset: format.and_then(cmf_format::Error::offset),
    }
}

fn show(args: &Args, report: &Report) -> String {
    let mut out = String::new();
    for error in &report.errors {
        out += &format!("{}\n", error.message);
    }
    if report.errors_left_out > 0 {
        out += &format!("and {} more errors\n", report.errors_left_out);
    }
    for unreadable in &report.unreadable {
        out += &format!("this version cannot read it: {}\n", unreadable.message);
    }
    let unknown = usize::try_from(report.unknown_terms).unwrap_or(usize::MAX);
    if unknown > 0 {
        out += &format!(
            "hashes checked, values not: {} of encodings unknown here\n",
            text::count(unknown, "term")
        );
    }
    match report.ok {
        true => {
            let what = match (args.hashes_only, unknown > 0 || !report.unreadable.is_empty()) {
                (true, _) => "every hash",
                (false, true) => "every hash, and every rule and code that this version knows,",
                (false, false) => "every hash, rule and code",
            };
            let size = size::show(report.bytes);
            let files = text::count(report.files, "file");
            out + &format!("{}: valid: {what} of {size} in {files}\n", args.file.display())
        }
        false => out + &format!("{}: not valid\n", args.file.display()),
    }
}

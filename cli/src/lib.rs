//! The `cmf` command as a library: the same arguments, the same exit codes.
//!
//! Exit code 0 is good, 1 is "the answer is no" (invalid, differs), 2 is usage, I/O and what this
//! version does not support. Data goes to standard output, progress to standard error.

mod commands;
mod device;
#[cfg(feature = "models")]
mod experts;
mod plot;
mod progress;
mod size;
mod text;
mod wanted;

use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cmf",
    version,
    about = "One compressed model file for any memory size",
    after_help = "Exit codes: 0 good, 1 the answer is no (invalid, differs), 2 usage, I/O, unsupported."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Convert a model to .cmf
    Convert(commands::convert::Args),
    /// Show what a .cmf holds
    Inspect(commands::inspect::Args),
    /// Check every hash, every rule and every code of a .cmf
    Verify(commands::verify::Args),
    /// Say what fits a budget: units, exact bytes, expected quality
    Plan(commands::plan::Args),
    /// Write a model back as safetensors or as a Hugging Face directory
    Export(commands::export::Args),
    /// Get a .cmf from a server: resumable, verified, usable while it grows
    Fetch(commands::fetch::Args),
    /// Compare two models tensor by tensor
    Diff(commands::diff::Args),
    /// List the built-in recipes, or print one
    Recipe(commands::recipe::Args),
    /// Take the second moments of activations, for conversions that weigh errors by them
    #[cfg(feature = "models")]
    Calibrate(commands::calibrate::Args),
    /// Talk to a model, under a budget
    #[cfg(feature = "models")]
    Run(commands::run::Args),
    /// Measure how well a model predicts a text, under each of several budgets
    #[cfg(feature = "models")]
    Eval(commands::eval::Args),
    /// Measure how fast the CPU multiplies with the matrices of a model
    Bench(commands::bench::Args),
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What a command answers.
pub(crate) enum Answer {
    /// Good.
    Yes,
    /// Invalid, or different.
    No,
}

/// Runs the command line `args`, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. A pipe that closed early is none either.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let answer = match cli.command {
        Command::Convert(args) => commands::convert::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Fetch(args) => commands::fetch::run(&args),
        Command::Diff(args) => commands::diff::run(&args),
        Command::Recipe(args) => commands::recipe::run(&args),
        #[cfg(feature = "models")]
        Command::Calibrate(args) => commands::calibrate::run(&args),
        #[cfg(feature = "models")]
        Command::Run(args) => commands::run::run(&args),
        #[cfg(feature = "models")]
        Command::Eval(args) => commands::eval::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "cmf", &mut script);
            print(&String::from_utf8_lossy(&script)).map(|()| Answer::Yes)
        }
    };
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "cmf: {}", text::error(&error));
            ExitCode::from(2)
        }
    }
}

/// Writes data to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // Only what this program prints itself: an error of a library names a file.
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

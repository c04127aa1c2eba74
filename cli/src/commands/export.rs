//! `cmf export`

use crate::progress::{Bar, Unit};
use crate::{Answer, print, size, text};
use cmf_converters::export::{ExportOptions, export_directory, export_safetensors};
use cmf_converters::source;
use cmf_format::DType;
use cmf_loader::Budget;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf export model.cmf -o model.safetensors
  cmf export model.cmf -o SmolLM2-135M-Instruct/        with config, tokenizer and templates
  cmf export model.cmf -o model.safetensors --dtype f32
  cmf export model.cmf -o small.safetensors --budget 90MiB   what a reader within 90 MiB decodes")]
pub(crate) struct Args {
    /// The .cmf (or any other model that `cmf convert` reads)
    file: PathBuf,
    /// A .safetensors file, or a directory in the layout of Hugging Face
    #[arg(short, long, value_name = "OUT.safetensors|DIR")]
    output: PathBuf,
    /// Element type of floating-point tensors [default: each tensor's own]
    #[arg(long, value_parser = dtype, value_name = "f32|f16|bf16")]
    dtype: Option<DType>,
    /// Write what fits: 123456, 90MiB, 2bpw, min, max or auto (see `cmf plan`) [default: max]
    #[arg(long, value_name = "B")]
    budget: Option<Budget>,
    /// Replace files that exist
    #[arg(short, long)]
    force: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

fn dtype(text: &str) -> Result<DType, String> {
    match DType::from_name(text) {
        Some(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => Ok(dtype),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let extension = args.output.extension().and_then(|e| e.to_str());
    if extension == Some("gguf") {
        anyhow::bail!(
            "{}: export to GGUF is not supported; write .safetensors or a directory",
            args.output.display()
        );
    }
    let source = source::open_within(&args.file, args.budget)?;
    let options = ExportOptions { dtype: args.dtype, force: args.force };
    let bar = Bar::new(args.quiet, Unit::Bytes);
    let progress = |done, total| bar.set("writing", done, total);
    let report = match extension {
        Some("safetensors") => export_safetensors(source.as_ref(), &args.output, &options, &progress)?,
        _ => export_directory(source.as_ref(), &args.output, &options, &progress)?,
    };
    drop(bar);
    if args.json {
        print(&text::json(&report)?)?;
    } else {
        print(&format!(
            "{}: {}, {} in {}\n",
            args.output.display(),
            text::count(report.tensors, "tensor"),
            size::show(report.file_bytes),
            text::count(report.files.len(), "file"),
        ))?;
    }
    Ok(Answer::Yes)
}

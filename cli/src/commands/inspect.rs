//! `cmf inspect`

use crate::{Answer, print, size, text};
use anyhow::Context;
use cmf_format::archive::{Segment, Step};
use cmf_loader::{FileSource, Model, TensorSummary, Totals};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf inspect model.cmf                          totals, encodings, attributes
  cmf inspect model.cmf --tensors                every tensor
  cmf inspect model.cmf --json                   everything, for scripts
  cmf inspect model.cmf --attribute config.json  the bytes of an attribute")]
pub(crate) struct Args {
    /// The .cmf
    file: PathBuf,
    /// List every tensor with its terms
    #[arg(long)]
    tensors: bool,
    /// List the units in the order in which a budget takes them
    #[arg(long)]
    schedule: bool,
    /// Write the bytes of this attribute to standard output, and nothing else
    #[arg(long, value_name = "NAME", conflicts_with_all = ["tensors", "schedule", "json"])]
    attribute: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    format_version: String,
    edition: u32,
    identity: String,
    file_bytes: u64,
    /// Of this file and its shards.
    total_bytes: u64,
    files: usize,
    elements: u64,
    bits_per_weight: f64,
    tensors: Vec<TensorReport>,
    attributes: Vec<AttributeReport>,
    references: Vec<ReferenceReport>,
    segments: Vec<SegmentReport>,
    schedule: Vec<StepReport>,
}

#[derive(Serialize)]
struct TensorReport {
    name: String,
    shape: Vec<u64>,
    dtype: &'static str,
    elements: u64,
    stored_bytes: u64,
    bits_per_weight: f64,
    shard: Option<String>,
    base: Option<String>,
    terms: Vec<TermReport>,
}

#[derive(Serialize)]
struct TermReport {
    encoding: String,
    level: u16,
    count: usize,
    optional: bool,
    known: bool,
    stored_bytes: u64,
    bits_per_weight: f64,
}

#[derive(Serialize)]
struct AttributeReport {
    name: String,
    media_type: String,
    bytes: u64,
    stored_bytes: u64,
}

#[derive(Serialize)]
struct ReferenceReport {
    name: String,
    kind: &'static str,
    identity: String,
    file_bytes: u64,
}

#[derive(Serialize)]
struct SegmentReport {
    offset: u64,
    stored_bytes: u64,
    decoded_bytes: u64,
    compression: &'static str,
    hash: String,
}

#[derive(Serialize)]
struct StepReport {
    unit: u32,
    /// The first tensor that has the matrix.
    tensor: String,
    /// Which of its matrices, where it has several.
    number: Option<usize>,
    matrix: u32,
    level: u16,
    row_start: u64,
    rows: u64,
    resident_bytes: u64,
    cumulative_bytes: u64,
    expected_loss: Option<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let model = Model::open(&args.file)?;
    if let Some(name) = &args.attribute {
        let attribute = model
            .attribute(name)
            .with_context(|| format!("{}: no attribute `{name}`", args.file.display()))?;
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        out.write_all(&attribute.bytes()?)?;
        out.flush()?;
        return Ok(Answer::Yes);
    }
    let totals = model.totals()?;
    let report = report(&model, &totals)?;
    print(&match args.json {
        true => text::json(&report)?,
        false => show(args, &report),
    })?;
    Ok(Answer::Yes)
}

fn report(model: &Model, totals: &Totals) -> anyhow::Result<Report> {
    let archive = model.archive();
    let header = archive.header();
    let mut owners = vec![None; archive.matrices().len()];
    for tensor in archive.tensors() {
        let several = tensor.matrices().len() > 1;
        for (number, matrix) in tensor.matrices().enumerate() {
            if let Some(owner) = owners.get_mut(matrix.index() as usize) {
                owner.get_or_insert((tensor.name(), several.then_some(number)));
            }
        }
    }
    let step = |step: Step<'_, FileSource>| {
        let record = step.record();
        let unit = step.unit()?;
        let unit = unit.record();
        let (tensor, number) = owners.get(unit.matrix.get() as usize).copied().flatten().unwrap_or_default();
        Some(StepReport {
            unit: record.unit.get(),
            tensor: tensor.into(),
            number,
            matrix: unit.matrix.get(),
            level: unit.level.get(),
            row_start: unit.row_start.get(),
            rows: unit.rows.get(),
            resident_bytes: unit.resident_bytes.get(),
            cumulative_bytes: record.cumulative_bytes.get(),
            expected_loss: step.expected_loss(),
        })
    };
    Ok(Report {
        format_version: format!("{}.{}", header.major.get(), header.minor.get()),
        edition: header.edition.get(),
        identity: hex(&model.identity()),
        file_bytes: model.file_bytes(),
        total_bytes: totals.file_bytes,
        files: totals.files,
        elements: totals.elements,
        bits_per_weight: totals.bits_per_weight,
        tensors: model.tensors().map(|t| Ok(tensor(t.summary()?))).collect::<anyhow::Result<_>>()?,
        attributes: model
            .attributes()
            .map(|a| AttributeReport {
                name: a.name().into(),
                media_type: a.media_type().into(),
                bytes: a.bytes_len(),
                stored_bytes: a.stored_bytes(),
            })
            .collect(),
        references: archive
            .references()
            .map(|r| ReferenceReport {
                name: r.name().into(),
                kind: match r.kind() {
                    cmf_format::archive::ReferenceKind::Shard => "shard",
                    cmf_format::archive::ReferenceKind::Base => "base",
                },
                identity: hex(&r.record().identity),
                file_bytes: r.record().file_bytes.get(),
            })
            .collect(),
        segments: archive.segments().map(segment).collect(),
        schedule: archive.schedule().filter_map(step).collect(),
    })
}

fn tensor(summary: TensorSummary) -> TensorReport {
    TensorReport {
        name: summary.name,
        shape: summary.shape,
        dtype: summary.dtype.name(),
        elements: summary.elements,
        stored_bytes: summary.stored_bytes,
        bits_per_weight: summary.bits_per_weight,
        shard: summary.shard,
        base: summary.base,
        terms: summary
            .terms
            .into_iter()
            .map(|t| TermReport {
                encoding: t.encoding,
                level: t.level,
                count: t.count,
                optional: t.optional,
                known: t.known,
                stored_bytes: t.stored_bytes,
                bits_per_weight: t.bits_per_weight,
            })
            .collect(),
    }
}

fn segment(segment: Segment<'_, FileSource>) -> SegmentReport {
    let record = segment.record();
    SegmentReport {
        offset: record.offset.get(),
        stored_bytes: record.stored_bytes.get(),
        decoded_bytes: record.decoded_bytes.get(),
        compression: match segment.compression() {
            Some(cmf_format::Compression::Raw) => "raw",
            Some(cmf_format::Compression::Zstd) => "zstd",
            None => "unknown",
        },
        hash: hex(&record.hash),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn show(args: &Args, report: &Report) -> String {
    let mut out = format!(
        "{}: CMF {}, {}, {} elements, {:.3} bits per weight, {} in {}\nidentity {}\n",
        args.file.display(),
        report.format_version,
        text::count(report.tensors.len(), "tensor"),
        text::elements(report.elements),
        report.bits_per_weight,
        size::show(report.total_bytes),
        text::count(report.files, "file"),
        report.identity,
    );
    if args.tensors {
        let rows: Vec<_> = report.tensors.iter().map(tensor_row).collect();
        out += "\n";
        out += &text::table(&["tensor", "shape", "dtype", ">size", ">bits/weight", "encoding"], &rows);
    } else if !report.tensors.is_empty() {
        out += "\n";
        out += &text::table(
            &["encoding", ">tensors", ">elements", ">size", ">bits/weight"],
            &encoding_rows(report),
        );
    }
    if args.schedule {
        let row = |s: &StepReport| {
            vec![
                s.unit.to_string(),
                s.number.map_or_else(|| text::name(&s.tensor), |n| format!("{}[{n}]", text::name(&s.tensor))),
                s.level.to_string(),
                format!("{}..{}", s.row_start, s.row_start + s.rows),
                size::show(s.resident_bytes),
                size::show(s.cumulative_bytes),
                s.expected_loss.map_or_else(String::new, text::number),
            ]
        };
        let rows: Vec<_> = report.schedule.iter().map(row).collect();
        out += "\n";
        out += &match rows.is_empty() {
            true => "no schedule: units lie in the order of tensors\n".into(),
            false => {
                text::table(&[">unit", "tensor", ">level", ">rows", ">size", ">size so far", ">loss"], &rows)
            }
        };
    }
    for (title, rows) in [
        (
            "attribute",
            report.attributes.iter().map(|a| (&a.name, &*a.media_type, a.bytes)).collect::<Vec<_>>(),
        ),
        ("reference", report.references.iter().map(|r| (&r.name, r.kind, r.file_bytes)).collect()),
    ] {
        if !rows.is_empty() {
            let rows: Vec<_> = rows
                .into_iter()
                .map(|(name, kind, bytes)| vec![text::name(name), kind.into(), size::show(bytes)])
                .collect();
            out += "\n";
            out += &text::table(&[title, "type", ">size"], &rows);
        }
    }
    out
}

/// What the terms of a tensor are called together.
fn encodings(tensor: &TensorReport) -> String {
    let mut names: Vec<_> = tensor.terms.iter().map(|t| t.encoding.as_str()).collect();
    names.dedup();
    names.join(" + ")
}

fn tensor_row(tensor: &TensorReport) -> Vec<String> {
    vec![
        text::name(&tensor.name),
        format!("{:?}", tensor.shape),
        tensor.dtype.into(),
        size::show(tensor.stored_bytes),
        format!("{:.3}", tensor.bits_per_weight),
        encodings(tensor),
    ]
}

/// One row for each combination of encodings, the largest first.
fn encoding_rows(report: &Report) -> Vec<Vec<String>> {
    let mut sums = std::collections::BTreeMap::<String, (u64, u64, u64)>::new();
    for tensor in &report.tensors {
        let sum = sums.entry(encodings(tensor)).or_default();
        *sum = (sum.0 + 1, sum.1 + tensor.elements, sum.2 + tensor.stored_bytes);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, (_, _, bytes))| std::cmp::Reverse(*bytes));
    let row = |(name, (tensors, elements, bytes)): (String, (u64, u64, u64))| {
        let bits = if elements == 0 { 0.0 } else { bytes as f64 * 8.0 / elements as f64 };
        let name = if name.is_empty() { "no elements".into() } else { name };
        vec![name, tensors.to_string(), text::elements(elements), size::show(bytes), format!("{bits:.3}")]
    };
    sums.into_iter().map(row).collect()
}

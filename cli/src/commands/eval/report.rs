//! What `cmf eval` says: a table, JSON, a picture.

use crate::experts::Held;
use crate::plot::{Chart, Kind, Legend, Note, Series};
use crate::text;
use anyhow::Context;
use cmf_candle::eval::Scores;
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) text: String,
    pub(super) windows: usize,
    pub(super) context: usize,
    pub(super) baseline: Option<Scores>,
    pub(super) results: Vec<Row>,
    pub(super) seconds: f64,
}

#[derive(Serialize)]
pub(super) struct Row {
    pub(super) budget: Option<String>,
    pub(super) budget_bytes: Option<u64>,
    pub(super) resident_bytes: u64,
    pub(super) bits_per_weight: f64,
    /// Experts of a mixture that came when they were chosen, beside the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) experts: Option<Held>,
    #[serde(flatten)]
    pub(super) scores: Scores,
    /// Of the layers alone, decoding included.
    pub(super) seconds_per_window: f64,
}

/// A result of another file, to stand in the picture: `--points`.
#[derive(Deserialize)]
pub(super) struct Point {
    name: String,
    bytes: u64,
    kl_mean: Option<f64>,
    perplexity: Option<f64>,
}

/// Reads the results of other files: a JSON list.
pub(super) fn points(path: &Path) -> anyhow::Result<Vec<Point>> {
    let json = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&json)
        .with_context(|| format!("{}: expected a list of name, bytes, kl_mean, perplexity", path.display()))
}

/// Divergence against bytes, or perplexity where there is no baseline. `others_name` is the name of
/// all `points` together.
pub(super) fn chart(name: &str, report: &Report, others_name: &str, points: &[Point]) -> Chart {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let compared = report.baseline.is_some();
    let value = |kl: Option<f64>, perplexity: Option<f64>| if compared { kl } else { perplexity };
    let own = report.results.iter().filter_map(|row| {
        let bytes = row.resident_bytes.saturating_add(row.experts.map_or(0, |experts| experts.bytes));
        Some((megabytes(bytes), value(row.scores.kl_mean, Some(row.scores.perplexity))?))
    });
    let others: Vec<_> = points
        .iter()
        .filter_map(|p| {
            Some(Note { x: megabytes(p.bytes), y: value(p.kl_mean, p.perplexity)?, text: p.name.clone() })
        })
        .filter(|note| note.y.is_finite())
        .collect();
    let dots = others.iter().map(|note| (note.x, note.y)).collect();
    let mut series = vec![
        Series { name: name.into(), kind: Kind::Knots, points: own.collect() },
        Series { name: others_name.into(), kind: Kind::Dots, points: dots },
    ];
    if others.is_empty() {
        series.truncate(1);
    }
    Chart {
        title: format!(
            "{name}: one file, {} windows of {} tokens of {}",
            report.windows, report.context, report.text
        ),
        x_label: "bytes, MB".into(),
        y_label: if compared { "mean KL divergence, nats" } else { "perplexity" }.into(),
        series,
        marks: Vec::new(),
        notes: others,
        legend: Legend::Right,
    }
}

pub(super) fn table(report: &Report) -> String {
    let head = [
        "budget",
        ">resident bytes",
        ">bits",
        ">perplexity",
        ">bits/byte",
        ">KL mean",
        ">KL 99%",
        ">top-1 %",
        ">s/window",
    ];
    let show = |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
    let cells = |budget: &str, resident: Option<u64>, bits: Option<f64>, s: &Scores, seconds: Option<f64>| {
        vec![
            budget.to_owned(),
            resident.map_or(String::new(), |b| b.to_string()),
            show(bits, 3),
            format!("{:.3}", s.perplexity),
            format!("{:.4}", s.bits_per_byte),
            show(s.kl_mean, 5),
            show(s.kl_p99, 4),
            show(s.top1_agreement.map(|share| share * 100.0), 2),
            show(seconds, 2),
        ]
    };
    let mut rows = Vec::new();
    if let Some(scores) = &report.baseline {
        rows.push(cells("(baseline)", None, None, scores, None));
    }
    rows.extend(report.results.iter().map(|row| {
        let budget = row.budget.as_deref().unwrap_or("(whole)");
        let (resident, bits) = (row.resident_bytes, row.bits_per_weight);
        cells(budget, Some(resident), Some(bits), &row.scores, Some(row.seconds_per_window))
    }));
    let mut out = text::table(&head, &rows);
    for row in &report.results {
        if let Some(experts) = &row.experts {
            let budget = row.budget.as_deref().unwrap_or("(whole)");
            out += &format!("{budget}: {} beside the plan\n", experts.size());
        }
    }
    out += &format!(
        "{}: {} windows of {} tokens, {:.1} s\n",
        report.text, report.windows, report.context, report.seconds
    );
    out
}

//! `cmf plan`

use crate::plot::{self, Chart, Kind, Legend, Mark, Series};
use crate::{Answer, print, size, text};
use anyhow::Context;
use cmf_loader::{Budget, Model, Plan, Schedule, plan};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf plan model.cmf                             the smallest and the largest
  cmf plan model.cmf --budget 90MiB
  cmf plan model.cmf --budget 2bpw,3bpw,4bpw --plot quality.svg
  cmf plan model.cmf --budget auto --json
A budget is a number of bytes (123456, 90MiB, 1.5GB), bits for each weight of the model (2bpw),
`min`, `max`, or `auto`: three quarters of the memory that this process may still take.")]
pub(crate) struct Args {
    /// The .cmf
    file: PathBuf,
    /// How much may be resident; several are planned one by one [default: min,max]
    #[arg(long = "budget", value_name = "B", value_delimiter = ',', value_parser = asked)]
    budgets: Vec<Asked>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Draw quality against bytes, with the budgets marked
    #[arg(long, value_name = "OUT.svg")]
    plot: Option<PathBuf>,
    /// Replace a picture that exists
    #[arg(short, long)]
    force: bool,
}

/// A budget as it was written.
#[derive(Clone, Debug)]
struct Asked {
    text: String,
    budget: Budget,
}

fn asked(text: &str) -> Result<Asked, plan::ParseBudgetError> {
    Ok(Asked { text: text.trim().to_owned(), budget: Budget::parse(text)? })
}

#[derive(Serialize)]
struct Report {
    /// The first of `plans`, for scripts that ask for one.
    #[serde(flatten)]
    first: Option<PlanReport>,
    /// What is held whatever the budget: header, directory, transforms, and bases.
    overhead_bytes: u64,
    elements: u64,
    /// Units of the model.
    all_units: usize,
    /// Largest unit above level 0: what a budget can have left over is less.
    largest_step_bytes: u64,
    /// Bytes of a page, for `mapped_bytes`.
    page_bytes: u64,
    plans: Vec<PlanReport>,
}

#[derive(Clone, Serialize)]
struct PlanReport {
    budget: String,
    budget_bytes: u64,
    resident_bytes: u64,
    /// With raw segments on whole pages, as in a map.
    mapped_bytes: u64,
    minimum_bytes: u64,
    maximum_bytes: u64,
    units: usize,
    bits_per_weight: f64,
    expected_loss: Option<f64>,
    /// What one unit more would take.
    next_unit_bytes: Option<u64>,
}

/// Pages of nearly all systems.
const PAGE_BYTES: u64 = 4096;

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    if let Some(path) = &args.plot {
        anyhow::ensure!(args.force || !path.exists(), "{}: exists; --force replaces it", path.display());
    }
    let model = Model::open(&args.file)?;
    let mut budgets = args.budgets.clone();
    if budgets.is_empty() {
        budgets.extend(["min", "max"].map(asked).into_iter().flatten());
    }
    let plans = budgets.iter().map(|asked| model.plan(asked.budget).map(|plan| (asked.text.clone(), plan)));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let schedule = model.schedule()?;
    if let Some(path) = &args.plot {
        let name = args.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let picture = plot::svg(&chart(&name, schedule, &plans))?;
        std::fs::write(path, picture).with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    let report = report(schedule, &plans);
    print(&match args.json {
        true => text::json(&report)?,
        false => show(&args.file.display().to_string(), schedule, &report),
    })?;
    Ok(Answer::Yes)
}

fn report(schedule: &Schedule, plans: &[(String, Plan)]) -> Report {
    let plan = |(text, plan): &(String, Plan)| PlanReport {
        budget: text.clone(),
        budget_bytes: plan.budget_bytes(),
        resident_bytes: plan.resident_bytes(),
        mapped_bytes: plan.mapped_bytes(PAGE_BYTES),
        minimum_bytes: plan.minimum_bytes(),
        maximum_bytes: plan.maximum_bytes(),
        units: plan.units(),
        bits_per_weight: plan.bits_per_weight(),
        expected_loss: plan.expected_loss(),
        next_unit_bytes: plan.next_bytes(),
    };
    let plans: Vec<_> = plans.iter().map(plan).collect();
    let step = |steps| schedule.resident_bytes(steps + 1).saturating_sub(schedule.resident_bytes(steps));
    Report {
        first: plans.first().cloned(),
        overhead_bytes: schedule.overhead_bytes(),
        elements: schedule.elements(),
        all_units: schedule.steps(),
        largest_step_bytes: (schedule.required_steps()..schedule.steps()).map(step).max().unwrap_or(0),
        page_bytes: PAGE_BYTES,
        plans,
    }
}

fn show(file: &str, schedule: &Schedule, report: &Report) -> String {
    let bits = |bytes: u64| match report.elements {
        0 => String::new(),
        elements => format!(" ({:.3} bits per weight)", bytes as f64 * 8.0 / elements as f64),
    };
    let (least, most) = (schedule.minimum_bytes(), schedule.maximum_bytes());
    let mut out = format!(
        "{file}: {}, {} elements\nminimum {least} bytes{}, maximum {most} bytes{}; {} of them always\n\n",
        text::count(report.all_units, "unit"),
        text::elements(report.elements),
        bits(least),
        bits(most),
        size::show(report.overhead_bytes),
    );
    let row = |plan: &PlanReport| {
        vec![
            plan.budget.clone(),
            plan.budget_bytes.to_string(),
            plan.resident_bytes.to_string(),
            format!("{:.3}", plan.bits_per_weight),
            plan.units.to_string(),
            plan.expected_loss.map_or_else(|| "-".into(), text::number),
            plan.mapped_bytes.to_string(),
        ]
    };
    let head = ["budget", ">bytes", ">resident", ">bits/weight", ">units", ">expected loss", ">mapped"];
    out += &text::table(&head, &report.plans.iter().map(row).collect::<Vec<_>>());
    out
}

/// Expected loss of every prefix over its bytes; without losses, the units held.
fn chart(name: &str, schedule: &Schedule, plans: &[(String, Plan)]) -> Chart {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let prefixes = schedule.required_steps()..=schedule.steps();
    let stated = prefixes.clone().all(|steps| schedule.expected_loss(steps).is_some());
    let value = |steps: usize| match stated {
        true => schedule.expected_loss(steps),
        false => Some(steps as f64),
    };
    let points =
        prefixes.filter_map(|steps| Some((megabytes(schedule.resident_bytes(steps)), value(steps)?)));
    let mark = |(asked, plan): &(String, Plan)| Mark {
        x: megabytes(plan.resident_bytes()),
        y: value(plan.units()),
        covered: false,
        label: match plan.expected_loss() {
            Some(loss) if stated => format!("{asked}: {}, loss {}", held(plan), text::number(loss)),
            _ => format!("{asked}: {}, {:.2} bits", held(plan), plan.bits_per_weight()),
        },
    };
    Chart {
        title: format!(
            "{name}: one file, every size from {} to {}",
            size::show(schedule.minimum_bytes()),
            size::show(schedule.maximum_bytes())
        ),
        x_label: "resident bytes, MB".into(),
        y_label: if stated { "expected loss" } else { "units held" }.into(),
        series: vec![Series { name: String::new(), kind: Kind::Line, points: points.collect() }],
        marks: plans.iter().map(mark).collect(),
        notes: Vec::new(),
        legend: Legend::Right,
    }
}

fn held(plan: &Plan) -> String {
    size::show(plan.resident_bytes())
}

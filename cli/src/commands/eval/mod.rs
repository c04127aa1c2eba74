//! `cmf eval`

mod report;

use crate::device::{DeviceArgs, Gpu};
use crate::experts::{ExpertArgs, Held, OnDemand};
use crate::progress::{Bar, Unit};
use crate::{Answer, plot, print, text};
use anyhow::Context;
use cmf_candle::cut::{self, CutModel, ResidentCut};
use cmf_candle::eval::kept::{self, Key};
use cmf_candle::eval::{self, States, Subject};
use cmf_candle::weights::{Dense, Weights};
use cmf_candle::{AnyModel, Card, Windows};
use cmf_loader::{Budget, Model, Plan, Want};
use report::{Report, Row};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf eval model.cmf --text wiki.txt --budget 30MiB --budget 2bpw --budget max
  cmf eval model.cmf --text wiki.txt --budget 30MiB,60MiB --baseline SmolLM2-135M-Instruct/
The second half of each window is scored, each token from all before it in its window.")]
pub(crate) struct Args {
    /// A .cmf, or any other model that `cmf convert` reads
    file: PathBuf,
    /// The text to predict
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of the text that are used
    #[arg(long, default_value_t = 20_480)]
    tokens: usize,
    /// Tokens of a window
    #[arg(long, alias = "context", default_value_t = 512)]
    ctx: usize,
    /// Bytes that may be resident, as `cmf plan` takes them; may be repeated [default: max]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', num_args = 1..)]
    budget: Vec<String>,
    #[command(flatten)]
    experts: ExpertArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// The model to compare predictions with
    #[arg(long, value_name = "MODEL")]
    baseline: Option<PathBuf>,
    /// What of a baseline that is a .cmf may be resident [default: max]
    #[arg(long, value_name = "SIZE", requires = "baseline")]
    baseline_budget: Option<String>,
    /// Keep what the baseline's layers make of the text in a file, and take it from there next time
    #[arg(long, value_name = "FILE.cmf", requires = "baseline")]
    keep_baseline: Option<PathBuf>,
    /// Draw divergence (perplexity without a baseline) against bytes
    #[arg(long, value_name = "OUT.svg")]
    plot: Option<PathBuf>,
    /// Results of other files for the picture: a JSON list of name, bytes, kl_mean, perplexity
    #[arg(long, value_name = "FILE.json", requires = "plot")]
    points: Option<PathBuf>,
    /// Replace a picture that exists
    #[arg(short, long)]
    force: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// A model and what belongs to it.
struct Opened<'m> {
    weights: Box<dyn Weights + 'm>,
    card: Card,
    fingerprint: String,
    /// What experts take that are on demand.
    experts: Option<Box<dyn Fn() -> Held + 'm>>,
}

fn open_any(path: &Path) -> anyhow::Result<Opened<'static>> {
    let model = AnyModel::open(path)?;
    let (card, fingerprint) = (model.card()?, model.fingerprint());
    Ok(Opened { weights: card.weights(Dense(model)), card, fingerprint, experts: None })
}

fn is_cmf(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start.get(1..) == Some(b"CMF")
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let started = Instant::now();
    if let Some(path) = args.plot.as_ref().filter(|path| path.exists() && !args.force) {
        anyhow::bail!("{}: exists; --force replaces it", path.display());
    }
    let points = args.points.as_deref().map(report::points).transpose()?.unwrap_or_default();
    let budgets = args.budget.iter().map(|b| Budget::parse(b)).collect::<Result<Vec<_>, _>>()?;
    let gpu = args.device.gpu()?;
    let model = is_cmf(&args.file).then(|| Model::open(&args.file)).transpose()?;
    let base = args.baseline.as_deref().zip(args.baseline_budget.as_deref());
    let base =
        base.map(|(path, budget)| Ok::<_, anyhow::Error>((Model::open(path)?, Budget::parse(budget)?)));
    let base = base.transpose()?;
    let baseline = match (&base, args.baseline.as_deref()) {
        (Some((model, budget)), _) => Some(open_cut(model, model.plan(*budget)?, None)?),
        (None, path) => path.map(open_any).transpose()?,
    };
    let (opened, rows) = match &model {
        Some(model) => open_cuts(args, model, &budgets, gpu.as_ref())?,
        None if gpu.is_some() => anyhow::bail!("{}: --device gpu needs a .cmf", args.file.display()),
        None if budgets.is_empty() => {
            let elements = cmf_converters::source::open(&args.file)?;
            let (elements, bytes) = elements.tensors().iter().fold((0, 0), |(elements, bytes), tensor| {
                let n = tensor.elements().unwrap_or(0);
                (
                    n.saturating_add(elements),
                    n.saturating_mul(tensor.dtype.bytes() as u64).saturating_add(bytes),
                )
            });
            let bits = bytes as f64 * 8.0 / elements.max(1) as f64;
            (vec![open_any(&args.file)?], vec![(None, None, bytes, bits)])
        }
        None => anyhow::bail!("{}: --budget needs a .cmf", args.file.display()),
    };
    // Texts of the same models are cut alike; a file without a tokenizer takes the baseline's.
    let first = opened.first().context("no model")?;
    let tokenizer = match (first.card.text(), &baseline) {
        (Err(_), Some(baseline)) => baseline.card.text()?,
        (own, _) => own?,
    };
    let windows = Windows::read(&args.text, tokenizer, args.tokens, args.ctx)?;
    let bar = Bar::new(args.quiet, Unit::Layers);
    let states = |opened: &'_ Opened<'_>| {
        let begun = Instant::now();
        let states = subject(opened).states(&windows, &|done, total| bar.set("layers", done, total))?;
        Ok::<_, anyhow::Error>((states, begun.elapsed().as_secs_f64()))
    };
    let base = match &baseline {
        Some(opened) => Some((subject(opened), kept_states(args, opened, &windows, &states)?)),
        None => None,
    };
    let (mut subjects, mut seconds, mut experts) = (Vec::new(), Vec::new(), Vec::new());
    for opened in &opened {
        let (states, taken) = states(opened)?;
        subjects.push((subject(opened), states));
        seconds.push(taken / windows.iter().len() as f64);
        experts.push(opened.experts.as_ref().map(|held| held()));
    }
    let progress = |done, total| bar.set("scores", done, total);
    let (own, scores) = eval::score(&subjects, base.as_ref(), &windows, &progress)?;
    drop(bar);
    let results = rows.into_iter().zip(scores).zip(seconds).zip(experts);
    let report = Report {
        text: args.text.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        windows: windows.iter().len(),
        context: windows.context(),
        baseline: own,
        results: results
            .map(|(((size, scores), seconds_per_window), experts)| {
                let (budget, budget_bytes, resident_bytes, bits_per_weight) = size;
                Row {
                    budget,
                    budget_bytes,
                    resident_bytes,
                    bits_per_weight,
                    experts,
                    scores,
                    seconds_per_window,
                }
            })
            .collect(),
        seconds: started.elapsed().as_secs_f64(),
    };
    if let Some(path) = &args.plot {
        let name = args.file.file_name().unwrap_or_default().to_string_lossy();
        let others = args.points.as_deref().and_then(Path::file_stem).unwrap_or_default().to_string_lossy();
        let picture = plot::svg(&report::chart(&name, &report, &others, &points))?;
        std::fs::write(path, picture).with_context(|| path.display().to_string())?;
    }
    print(&if args.json { text::json(&report)? } else { report::table(&report) })?;
    Ok(Answer::Yes)
}

/// The baseline's states: those that were kept, or new ones, which are.
fn kept_states(
    args: &Args,
    opened: &Opened<'_>,
    windows: &Windows,
    states: &dyn Fn(&Opened<'_>) -> anyhow::Result<(States, f64)>,
) -> anyhow::Result<States> {
    let Some(path) = &args.keep_baseline else { return Ok(states(opened)?.0) };
    let key = Key::new(&opened.fingerprint, windows);
    if let Some(states) = kept::load(path, &key, opened.card.config(), windows)? {
        return Ok(states);
    }
    let states = states(opened)?.0;
    kept::save(path, &key, &states)?;
    Ok(states)
}

fn subject<'s>(opened: &'s Opened<'_>) -> Subject<'s> {
    Subject { weights: opened.weights.as_ref(), config: opened.card.config() }
}

/// A model under a plan.
fn open_cut<'m>(model: &'m Model, plan: Plan, gpu: Option<&Gpu>) -> anyhow::Result<Opened<'m>> {
    let card = cut::card(model)?;
    let fingerprint = format!("{:?} {}", model.identity(), plan.units());
    let weights = match gpu {
        Some(gpu) => card.weights(gpu.weights(model, plan)),
        None => card.weights(Dense(CutModel::new(model, Some(plan))?)),
    };
    Ok(Opened { weights, card, fingerprint, experts: None })
}

/// A model whose experts come on demand, within a budget.
fn open_on_demand<'m>(
    model: &'m Model,
    card: Card,
    experts: &OnDemand,
    budget: Budget,
    gpu: Option<&Gpu>,
) -> anyhow::Result<(Opened<'m>, Plan)> {
    let budget = experts.budget(model, budget)?;
    let resident = model.resident_with(budget, experts.options(|_| Want::Budget))?;
    let plan = resident.snapshot().plan().clone();
    let fingerprint = format!("{:?} {} {experts:?}", model.identity(), plan.units());
    let experts = experts.clone();
    let (weights, experts): (_, Box<dyn Fn() -> Held>) = match gpu {
        Some(gpu) => {
            let moving = Arc::new(gpu.moving(resident));
            (card.weights(Arc::clone(&moving)), Box::new(move || experts.held(&moving.status())))
        }
        None => {
            let cut = Arc::new(ResidentCut::new(resident)?);
            (card.weights(Arc::clone(&cut)), Box::new(move || experts.held(&cut.resident().status())))
        }
    };
    Ok((Opened { weights, card, fingerprint, experts: Some(experts) }, plan))
}

type Size = (Option<String>, Option<u64>, u64, f64);

/// The model under each budget.
fn open_cuts<'m>(
    args: &Args,
    model: &'m Model,
    budgets: &[Budget],
    gpu: Option<&Gpu>,
) -> anyhow::Result<(Vec<Opened<'m>>, Vec<Size>)> {
    let default = [Budget::Maximum];
    let budgets = if budgets.is_empty() { &default } else { budgets };
    let (mut opened, mut rows) = (Vec::new(), Vec::new());
    let experts = args.experts.on_demand(model, cut::card(model)?.config(), &|_| false)?;
    for (i, budget) in budgets.iter().enumerate() {
        let (next, plan) = match &experts {
            Some(experts) => open_on_demand(model, cut::card(model)?, experts, *budget, gpu)?,
            None => {
                let plan = model.plan(*budget)?;
                (open_cut(model, plan.clone(), gpu)?, plan)
            }
        };
        rows.push((
            Some(args.budget.get(i).cloned().unwrap_or_else(|| budget.to_string())),
            Some(plan.budget_bytes()),
            plan.resident_bytes(),
            plan.bits_per_weight(),
        ));
        opened.push(next);
    }
    Ok((opened, rows))
}

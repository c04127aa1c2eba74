//! `cmf run`

mod following;
mod memory;
mod picture;
mod session;
mod stream;

use crate::Answer;
use crate::commands::arrivals::Arrivals;
use crate::device::{Device, DeviceArgs, Gpu};
use crate::experts::{ExpertArgs, OnDemand};
use crate::wanted::Patterns;
use anyhow::{Context, bail};
use cmf_candle::generate::Generator;
use cmf_candle::llama::Llama;
use cmf_candle::moving::Moving;
use cmf_candle::packed::PackedModel;
use cmf_candle::sample::{Sampler, Sampling};
use cmf_candle::weights::Weights;
use cmf_candle::{Card, cut};
use cmf_loader::resident::{Resident, ResidentOptions, WantOf};
use cmf_loader::{Budget, Model, Want};
use following::Following;
use picture::Picture;
use session::{Session, message};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf run model.cmf --prompt 'What is a glacier?' --budget 40MiB
  cmf run model.cmf                    talks; a line `/budget 30MiB` changes the budget meanwhile
  cmf run model.cmf --raw --prompt 'Once upon a time' --temperature 0.8 --seed 7
  cmf run model.cmf --budget auto --watch
  cmf run mixtral.cmf --budget 8GiB --experts 2GiB
  cmf run https://example.com/model.cmf --prompt 'What is a glacier?'")]
pub(crate) struct Args {
    /// A .cmf with a model of the Llama family, its tokenizer and its configuration; or the address of
    /// one, which talks as soon as its smallest size has come and gets better meanwhile
    file: PathBuf,
    /// What to say to the model [default: lines of standard input]
    #[arg(short, long)]
    prompt: Option<String>,
    /// Bytes of weights that may be resident: 90MiB, 2bpw, min, max, or auto, which follows the memory
    /// that the system has left
    #[arg(short, long, value_name = "SIZE", default_value = "max")]
    budget: String,
    /// Hold tensors of this name whole whatever the budget; * is any text, ? any character
    #[arg(long, value_name = "PATTERN")]
    pin: Vec<String>,
    #[command(flatten)]
    experts: ExpertArgs,
    /// Most tokens of an answer
    #[arg(short = 'n', long, default_value_t = 256)]
    tokens: usize,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Divides the logits; 0 takes the likeliest token always
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Sample from so many of the likeliest tokens; 0 is all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    #[command(flatten)]
    device: DeviceArgs,
    /// How activations are multiplied
    #[arg(long, value_name = "P", value_enum, default_value_t = super::Activations::Exact)]
    activations: super::Activations,
    /// The system message
    #[arg(long)]
    system: Option<String>,
    /// Go on from the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Where files from servers are kept [default: cmf in the user's cache folder]
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// For an address: draw how good the model was at which time, against waiting for the whole file, as SVG
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
    /// Replace a picture that exists
    #[arg(long, requires = "plot")]
    force: bool,
    /// Show budget, memory, levels and speed on standard error; answers come when they are whole
    #[arg(long)]
    watch: bool,
    /// Print a line of JSON a token, and a summary
    #[arg(long)]
    json: bool,
    /// Say nothing on standard error
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let sampling =
        Sampling { temperature: args.temperature, top_p: args.top_p, top_k: args.top_k, seed: args.seed };
    Sampler::new(sampling)?;
    let budget = Budget::parse(&args.budget)?;
    if args.device.device == Device::Gpu && args.activations != super::Activations::Exact {
        bail!("--device gpu: only --activations exact")
    }
    let gpu = args.device.gpu()?;
    let gpu = gpu.as_ref();
    match args.file.to_str().is_some_and(cmf_sources::is_address) {
        true => stream::run(args, gpu, budget, sampling)?,
        false => {
            anyhow::ensure!(args.plot.is_none(), "--plot is for a model that comes from an address");
            local(args, gpu, &args.file, budget, sampling)?;
        }
    }
    Ok(Answer::Yes)
}

/// Talks with a file on this machine.
fn local(
    args: &Args,
    gpu: Option<&Gpu>,
    file: &Path,
    budget: Budget,
    sampling: Sampling,
) -> anyhow::Result<()> {
    let model = Model::open(file)?;
    let card = cut::card(&model)?;
    let pinned = pinned(args, &model)?;
    let experts = args.experts.on_demand(&model, card.config(), &|name| pinned.has(name))?;
    let (budget, options) = held(&model, pinned, experts.as_ref(), budget)?;
    let resident = model.resident_with(budget, options)?;
    let beside = Beside { experts: experts.as_ref(), ..Beside::default() };
    talk(args, gpu, &card, resident, sampling, &beside)
}

/// What is held whatever the budget.
fn pinned(args: &Args, model: &Model) -> anyhow::Result<Patterns> {
    let pinned = Patterns::new(&args.pin);
    pinned.check(model.tensors().map(|tensor| tensor.name()).collect::<Vec<_>>().into_iter())?;
    Ok(pinned)
}

/// The budget, and what is held under it: what is pinned, and experts on demand.
fn held(
    model: &Model,
    pinned: Patterns,
    experts: Option<&OnDemand>,
    budget: Budget,
) -> anyhow::Result<(Budget, ResidentOptions)> {
    let some = !pinned.is_empty();
    let want = move |name: &str| pinned.want(name, Want::Always, Want::Budget);
    Ok(match experts {
        Some(experts) => (experts.budget(model, budget)?, experts.options(want)),
        None => {
            let want: WantOf = Arc::new(want);
            (budget, ResidentOptions { want: some.then_some(want), ..ResidentOptions::default() })
        }
    })
}

/// What goes on beside a conversation, on a thread of its own, until the flag is set.
type Work<'b> = dyn Fn(&Moving<'_>, &AtomicBool) -> anyhow::Result<()> + Sync + 'b;

/// What a conversation has beside the model.
#[derive(Default)]
struct Beside<'b> {
    work: Option<&'b Work<'b>>,
    arrivals: Option<&'b Arrivals>,
    experts: Option<&'b OnDemand>,
}

/// A conversation with the model that `resident` holds.
fn talk(
    args: &Args,
    gpu: Option<&Gpu>,
    card: &Card,
    resident: Resident<'_>,
    sampling: Sampling,
    beside: &Beside<'_>,
) -> anyhow::Result<()> {
    let moving = match gpu {
        Some(gpu) => gpu.moving(resident),
        None => Moving::with(resident, |model, plan| {
            Box::new(PackedModel::new(model, plan).with_precision(args.activations.into()))
        }),
    };
    let weights = match beside.experts {
        // A pass that may wait for an expert is made by a thread of its own: what it waits for may need the pool.
        Some(_) => card.weights(&moving as &dyn Weights),
        None => card.weights(moving.packed()),
    };
    let llama = Llama::load(weights.as_ref(), card.config())?;
    moving.settle()?;
    let picture = args.watch.then(|| Picture::new(beside.experts));
    let system = args.system.iter().map(|content| message("system", content));
    let session = Session {
        args,
        moving: &moving,
        gpu,
        text: card.text()?,
        card,
        picture: picture.as_ref(),
        arrivals: beside.arrivals,
        experts: beside.experts,
        generator: Generator::new(&llama),
        messages: system.collect(),
    };
    let done = AtomicBool::new(false);
    let following = Following::of(&args.budget, gpu);
    std::thread::scope(|scope| {
        let mut helpers = Vec::new();
        if let Some(following) = &following {
            helpers.push(scope.spawn(|| following.follow(&moving, &done)));
        }
        if let Some(picture) = &picture {
            helpers.push(scope.spawn(|| picture.draw(&moving, &done)));
        }
        if let Some(work) = beside.work {
            helpers.push(scope.spawn(|| work(&moving, &done)));
        }
        let result = converse(args, session, sampling);
        done.store(true, Ordering::Relaxed);
        helpers.iter().for_each(|helper| helper.thread().unpark());
        let helped =
            helpers.into_iter().map(|helper| helper.join().unwrap_or_else(|_| bail!("a thread panicked")));
        helped.fold(result, |result, helped| result.and(helped))
    })
}

/// Answers the prompt, or line by line what comes on standard input.
fn converse(args: &Args, mut session: Session<'_, '_>, sampling: Sampling) -> anyhow::Result<()> {
    if let Some(prompt) = &args.prompt {
        return session.answer(prompt, sampling);
    }
    for line in std::io::stdin().lock().lines() {
        let line = line.context("standard input")?;
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("/budget", budget) => session.set_budget(budget)?,
            ("/device-budget", budget) => session.set_device_budget(budget)?,
            ("", "") => {}
            _ => session.answer(&line, sampling)?,
        }
    }
    Ok(())
}

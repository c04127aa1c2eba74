//! A model that is still coming from a server.

use super::following::patiently;
use super::{Args, Beside, held, local, pinned, talk};
use crate::commands::arrivals::{self, Arrivals};
use crate::device::Gpu;
use crate::experts::OnDemand;
use anyhow::Context;
use cmf_candle::cut;
use cmf_candle::moving::Moving;
use cmf_candle::sample::Sampling;
use cmf_format::hash::hash;
use cmf_loader::Budget;
use cmf_sources::{Fetch, FetchOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The least time between two plans of a model that gets better.
const STEP: Duration = Duration::from_millis(100);

/// Talks as soon as the smallest model is there.
pub(super) fn run(args: &Args, gpu: Option<&Gpu>, budget: Budget, sampling: Sampling) -> anyhow::Result<()> {
    let url = args.file.to_str().context("the address is no text")?;
    let target = place(args.cache.as_deref(), url)?;
    if target.exists() {
        anyhow::ensure!(args.plot.is_none(), "{}: is there: nothing comes to --plot", target.display());
        return local(args, gpu, &target, budget, sampling);
    }
    arrivals::check(args.plot.as_deref(), args.force)?;
    let arrivals = Arrivals::new();
    let fetching = FetchOptions::default();
    let mut fetch = Fetch::begin(cmf_sources::open(url, &fetching)?, &target, fetching)?;
    let pinned = pinned(args, fetch.model())?;
    let mixture = fetch.model().tensors().any(|tensor| tensor.name().contains(".experts."));
    let experts = match mixture || args.experts.are_given() {
        true => {
            // What says how many experts there are comes first.
            fetch.run_first(&|progress| arrivals.came(progress))?;
            let card = cut::card(fetch.model())?;
            args.experts.on_demand(fetch.model(), card.config(), &|name| pinned.has(name))?
        }
        false => None,
    };
    let (budget, options) = held(fetch.model(), pinned, experts.as_ref(), budget)?;
    if let Some(want) = &options.want {
        fetch.want(&|name| want(name))?;
    }
    let required = fetch.schedule().required_steps();
    limit(&fetch, budget, experts.as_ref())?;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let fetching = scope.spawn(|| fetch.run(&|progress| arrivals.came(progress)));
        let talked = fetch.wait_beyond(required.checked_sub(1)).filter(|arrived| *arrived >= required).map(
            |arrived| {
                let card = cut::card(fetch.model())?;
                let resident =
                    fetch.model().resident_of(budget, options.clone(), arrived)?.supplied_by(&fetch);
                let work = |moving: &Moving<'_>, done: &AtomicBool| refine(&fetch, moving, done);
                let beside =
                    Beside { work: Some(&work), arrivals: Some(&arrivals), experts: experts.as_ref() };
                talk(args, gpu, &card, resident, sampling, &beside)
            },
        );
        fetch.stop();
        let fetched = fetching.join().unwrap_or(Ok(()));
        talked.unwrap_or(Ok(()))?;
        Ok(fetched?)
    })?;
    let progress = fetch.progress();
    if let Some(path) = &args.plot {
        arrivals.write(path, arrivals::name_of(url), fetch.schedule(), fetch.model().file_bytes())?;
    }
    let part = fetch.part().display().to_string();
    match fetch.finish() {
        Ok(_) => Ok(()),
        Err(_) if args.quiet => Ok(()),
        Err(_) => {
            let (have, wanted) = (progress.have_bytes, progress.wanted_bytes);
            writeln!(std::io::stderr(), "[{have} of {wanted} bytes are in {part}; the next run goes on]")?;
            Ok(())
        }
    }
}

/// Has the fetch get what `budget` holds: units of the plan, and where there is room for all of the file all experts
/// too. Others come when they are chosen.
fn limit(fetch: &Fetch, budget: Budget, experts: Option<&OnDemand>) -> anyhow::Result<()> {
    let schedule = fetch.schedule();
    let plan = schedule.plan(budget)?;
    let Some(experts) = experts else {
        fetch.limit(plan.units());
        return Ok(());
    };
    let whole_bytes = fetch.model().schedule()?.maximum_bytes();
    if budget == Budget::Maximum || schedule.budget_bytes(budget) >= whole_bytes {
        fetch.want_demanded();
        return Ok(());
    }
    let planned_bytes =
        plan.budget_bytes().saturating_sub(experts.aside_bytes()).max(schedule.minimum_bytes());
    fetch.limit(schedule.plan(Budget::Bytes(planned_bytes))?.units());
    Ok(())
}

/// Takes what comes into the model.
fn refine(fetch: &Fetch, moving: &Moving<'_>, done: &AtomicBool) -> anyhow::Result<()> {
    let mut last = moving.resident().snapshot().plan().units();
    while !done.load(Ordering::Relaxed) {
        let Some(arrived) = fetch.wait_beyond(Some(last)).filter(|arrived| *arrived > last) else { break };
        patiently(done, || moving.set_arrived(arrived))?;
        last = arrived;
        std::thread::park_timeout(STEP);
    }
    Ok(())
}

/// Where the file of `url` is kept: its name, and what tells it from others of that name.
fn place(cache: Option<&Path>, url: &str) -> anyhow::Result<PathBuf> {
    let folder = match cache {
        Some(folder) => folder.to_owned(),
        None => {
            let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            let folder = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
            folder.context("--cache says where files from servers are kept, or HOME does")?.join("cmf")
        }
    };
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let last = url.split(['?', '#']).next().and_then(|path| path.rsplit('/').next()).unwrap_or("");
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    let name: String = last.trim_end_matches(".cmf").chars().filter(|c| plain(*c)).take(60).collect();
    let tag: String = hash(url.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(folder.join(format!("{name}-{tag}.cmf")))
}

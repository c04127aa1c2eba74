//! The experts of a mixture: `--experts`, `--expert-levels`.

use crate::size;
use anyhow::{bail, ensure};
use cmf_candle::Config;
use cmf_candle::experts::ExpertMemory;
use cmf_loader::resident::{ResidentOptions, Status, WantOf};
use cmf_loader::{Budget, Model, Want};
use serde::Serialize;
use std::sync::Arc;

#[derive(clap::Args)]
pub(crate) struct ExpertArgs {
    /// For a mixture of experts: bytes of the budget that are set aside for experts, each of which comes when a
    /// router chooses it and goes when others need the room; or all, which holds experts like other tensors, as
    /// far as the budget goes [default: the experts of one token]
    #[arg(long, value_name = "SIZE")]
    experts: Option<String>,
    /// For a mixture of experts: hold no more than so many levels of each [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    expert_levels: Option<u16>,
}

/// Experts that come when they are chosen.
#[derive(Clone, Debug)]
pub(crate) struct OnDemand {
    memory: Arc<ExpertMemory>,
    aside_bytes: u64,
    level: u16,
}

/// What experts take, for reports.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Held {
    /// Bytes that they have in memory, beside what the plan has.
    pub(crate) bytes: u64,
    /// Their matrices in memory, of which an expert has three.
    matrices: usize,
    all_matrices: usize,
    /// Times that a matrix was needed, and how often it had to be brought in for that.
    required: u64,
    brought: u64,
    /// Bytes of the budget that are set aside for them.
    aside_bytes: u64,
}

impl ExpertArgs {
    /// Bytes that are set aside, where that is said.
    fn set_aside(&self) -> Option<&str> {
        self.experts.as_deref().filter(|size| size.trim() != "all")
    }

    /// Whether anything is said about experts.
    pub(crate) fn are_given(&self) -> bool {
        self.experts.is_some() || self.expert_levels.is_some()
    }

    /// The experts of `model` that come when they are chosen, but for those that `pinned` takes; `None` for other
    /// models.
    pub(crate) fn on_demand(
        &self,
        model: &Model,
        config: &Config,
        pinned: &dyn Fn(&str) -> bool,
    ) -> anyhow::Result<Option<OnDemand>> {
        if config.mixture.is_none() {
            ensure!(
                !self.are_given(),
                "--experts and --expert-levels are for mixtures of experts, which this model is not"
            );
            return Ok(None);
        }
        let (all, set_aside) = (self.experts.is_some(), self.set_aside());
        if all && set_aside.is_none() {
            ensure!(
                self.expert_levels.is_none(),
                "--expert-levels: the budget says how many with --experts all"
            );
            return Ok(None);
        }
        let level = self.expert_levels.map_or(u16::MAX, |levels| levels - 1);
        let Some(memory) = ExpertMemory::of(model, config, level, &|name| !pinned(name))? else {
            return Ok(None);
        };
        let aside_bytes = match set_aside {
            None => memory.token_bytes(),
            Some(text) => size::parse(text).map_err(|e| anyhow::anyhow!("--experts: {e}"))?,
        };
        if aside_bytes < memory.one_bytes() {
            bail!(
                "--experts: expected at least {} bytes, the largest expert, found {aside_bytes}",
                memory.one_bytes()
            );
        }
        Ok(Some(OnDemand { memory: Arc::new(memory), aside_bytes, level }))
    }
}

impl OnDemand {
    /// Options that hold them so, and other tensors as `want` says.
    pub(crate) fn options(&self, want: impl Fn(&str) -> Want + Send + Sync + 'static) -> ResidentOptions {
        let memory = Arc::clone(&self.memory);
        let want: WantOf = Arc::new(move |name| if memory.has(name) { Want::Demand } else { want(name) });
        ResidentOptions {
            want: Some(want),
            demand_bytes: self.aside_bytes,
            least_demand_bytes: self.memory.one_bytes(),
            demand_level: self.level,
            ..ResidentOptions::default()
        }
    }

    /// The same budget where bits count for the elements of experts too.
    pub(crate) fn budget(&self, model: &Model, budget: Budget) -> anyhow::Result<Budget> {
        Ok(match budget {
            Budget::BitsPerWeight(_) => Budget::Bytes(model.schedule()?.budget_bytes(budget)),
            other => other,
        })
    }

    /// Bytes of the budget that are set aside for them.
    pub(crate) fn aside_bytes(&self) -> u64 {
        self.aside_bytes
    }

    /// What they take now.
    pub(crate) fn held(&self, status: &Status) -> Held {
        Held {
            bytes: status.demanded_bytes,
            matrices: status.demanded,
            all_matrices: self.memory.matrices(),
            required: status.required,
            brought: status.brought,
            aside_bytes: self.aside_bytes,
        }
    }
}

impl Held {
    /// What they take, for people.
    pub(crate) fn size(&self) -> String {
        let Self { bytes, matrices, all_matrices, .. } = self;
        format!("{bytes} of experts ({matrices} matrices of {all_matrices})")
    }

    /// The same, and how often one that was needed was there.
    pub(crate) fn show(&self) -> String {
        let found = self.required.saturating_sub(self.brought) as f64;
        let percent = found * 100.0 / self.required.max(1) as f64;
        format!("{}, there {percent:.0} % of the times", self.size())
    }
}

//! A conversation with a model.

use super::Args;
use super::memory::{mapped_bytes, process_bytes};
use super::picture::Picture;
use crate::commands::arrivals::Arrivals;
use crate::device::Gpu;
use crate::experts::{Held, OnDemand};
use crate::print;
use anyhow::Context;
use cmf_candle::chat::Message;
use cmf_candle::generate::{Generator, Stream};
use cmf_candle::moving::Moving;
use cmf_candle::sample::{Sampler, Sampling};
use cmf_candle::{Card, Text};
use cmf_loader::{Budget, Plan};
use serde::Serialize;
use std::io::Write;
use std::time::Instant;

#[derive(Serialize)]
struct Token<'t> {
    token: u32,
    text: &'t str,
}

#[derive(Serialize)]
struct Summary {
    schema: u32,
    text: String,
    prompt_tokens: usize,
    tokens: usize,
    tokens_per_second: f64,
    first_token_seconds: f64,
    budget_bytes: u64,
    resident_bytes: u64,
    /// Bytes that the weights take in main memory, in pages.
    held_bytes: u64,
    /// Bytes read from the file so far to hold them.
    moved_bytes: u64,
    /// Experts of a mixture that come when they are chosen: part of what is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Held>,
    /// Bytes of weights on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_bytes: Option<u64>,
    bits_per_weight: f64,
    cache_bytes: u64,
    scratch_bytes: u64,
    /// Bytes of the file that are in this process's memory, as the system counts them in pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    mapped_bytes: Option<u64>,
    /// Of the process, as the system counts it; absent where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    process_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_resident_bytes: Option<u64>,
}

/// A model that talks.
pub(super) struct Session<'s, 'm> {
    pub(super) args: &'s Args,
    pub(super) moving: &'s Moving<'m>,
    pub(super) gpu: Option<&'s Gpu>,
    pub(super) text: &'s Text,
    pub(super) card: &'s Card,
    pub(super) picture: Option<&'s Picture<'s>>,
    pub(super) arrivals: Option<&'s Arrivals>,
    pub(super) experts: Option<&'s OnDemand>,
    pub(super) generator: Generator<'s, 's>,
    pub(super) messages: Vec<Message>,
}

pub(super) fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

impl Session<'_, '_> {
    pub(super) fn set_budget(&self, budget: &str) -> anyhow::Result<()> {
        let changed = Budget::parse(budget).map_err(anyhow::Error::from).and_then(|budget| {
            let model = self.moving.resident().model();
            let budget = self.experts.map_or(Ok(budget), |experts| experts.budget(model, budget))?;
            Ok(self.moving.set_budget(budget)?)
        });
        match changed {
            Ok(_) => Ok(()),
            // A mistake in a conversation does not end it.
            Err(error) => self.say(&format!("{error}\n")),
        }
    }

    pub(super) fn set_device_budget(&self, budget: &str) -> anyhow::Result<()> {
        let change = || -> anyhow::Result<()> {
            let (gpu, there) = self
                .gpu
                .zip(self.moving.packed().device_bytes())
                .context("/device-budget is for --device gpu")?;
            Ok(self.moving.set_device_budget(gpu.bytes(budget, there)?)?)
        };
        change().or_else(|error| self.say(&format!("{error}\n")))
    }

    fn say(&self, text: &str) -> anyhow::Result<()> {
        if !self.args.quiet {
            std::io::stderr().write_all(text.as_bytes())?;
        }
        Ok(())
    }

    /// One pass through the model, under one plan.
    fn pass(
        &mut self,
        work: impl FnOnce(&mut Generator<'_, '_>) -> cmf_candle::Result<()>,
    ) -> anyhow::Result<()> {
        let _pass = self.moving.pass();
        Ok(work(&mut self.generator)?)
    }

    /// Answers `prompt` on standard output.
    pub(super) fn answer(&mut self, prompt: &str, sampling: Sampling) -> anyhow::Result<()> {
        let started = Instant::now();
        let text = match self.args.raw {
            true => prompt.to_owned(),
            false => {
                self.messages.push(message("user", prompt));
                self.card.chat().prompt(&self.messages)?
            }
        };
        let ids = self.text.encode(&text)?.ids;
        self.pass(|generator| generator.read(&ids))?;
        let mut sampler = Sampler::new(sampling)?;
        let mut stream = Stream::new(self.text);
        let (mut answer, mut tokens, mut first) = (String::new(), 0, None);
        let mut generating = Instant::now();
        while tokens < self.args.tokens {
            let id = self.generator.choose(&mut sampler)?;
            if let Some(arrivals) = self.arrivals {
                arrivals.token();
            }
            if first.is_none() {
                first = Some(started.elapsed().as_secs_f64());
                generating = Instant::now();
            }
            if self.card.ends().contains(&id) {
                break;
            }
            let part = stream.push(id)?;
            answer += &part;
            match self.args.json {
                true => print(&format!("{}\n", serde_json::to_string(&Token { token: id, text: &part })?))?,
                false if self.picture.is_some() => {}
                false => print(&part)?,
            }
            if let Some(picture) = self.picture {
                picture.token(&answer);
            }
            tokens += 1;
            self.pass(|generator| generator.accept(id))?;
        }
        let seconds = generating.elapsed().as_secs_f64();
        if !self.args.raw {
            self.messages.push(message("assistant", &answer));
        }
        let snapshot = self.moving.resident().snapshot();
        let (plan, status) = (snapshot.plan(), self.moving.status());
        let process = process_bytes();
        let summary = Summary {
            schema: 1,
            text: answer,
            prompt_tokens: ids.len(),
            tokens,
            tokens_per_second: if tokens > 0 { tokens as f64 / seconds.max(1e-9) } else { 0.0 },
            first_token_seconds: first.unwrap_or(0.0),
            budget_bytes: plan.budget_bytes(),
            resident_bytes: plan.resident_bytes(),
            held_bytes: status.held_bytes.saturating_sub(status.elsewhere_bytes),
            moved_bytes: status.read_bytes,
            experts: self.experts.map(|experts| experts.held(&status)),
            device_bytes: self.moving.packed().device_bytes(),
            bits_per_weight: plan.bits_per_weight(),
            cache_bytes: self.generator.cache_bytes(),
            scratch_bytes: self.moving.scratch_bytes(),
            mapped_bytes: mapped_bytes(self.moving.resident().model().path()),
            process_bytes: process.map(|(now, _)| now),
            peak_resident_bytes: process.map(|(_, peak)| peak),
        };
        match self.args.json {
            true => print(&format!("{}\n", serde_json::to_string(&summary)?)),
            false => {
                if self.picture.is_some() {
                    print(&summary.text)?;
                }
                print("\n")?;
                self.say(&held(&summary, plan))
            }
        }
    }
}

/// What is held, to the byte.
fn held(summary: &Summary, plan: &Plan) -> String {
    let mut text = format!(
        "[{} bytes of weights resident, {} in pages ({} units of {}, {:.2} bits a weight), {} of keys and values, {} of scratch",
        summary.resident_bytes,
        summary.held_bytes,
        plan.units(),
        plan.schedule().steps(),
        summary.bits_per_weight,
        summary.cache_bytes,
        summary.scratch_bytes,
    );
    if let Some(experts) = &summary.experts {
        text += &format!(", {}", experts.show());
    }
    if let Some(device) = summary.device_bytes {
        text += &format!(", {device} of weights on the GPU");
    }
    if let Some((now, peak)) = summary.process_bytes.zip(summary.peak_resident_bytes) {
        text += &format!("; process {now}, at most {peak}");
    }
    if let Some(mapped) = summary.mapped_bytes {
        text += &format!(", {mapped} of them mapped from the file");
    }
    text + &format!(
        "; {} tokens, {:.2} a second, the first after {:.2} s]\n",
        summary.tokens, summary.tokens_per_second, summary.first_token_seconds
    )
}

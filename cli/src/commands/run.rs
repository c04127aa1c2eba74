//! `cmf run`

use crate::{Answer, print};
use anyhow::Context;
use cmf_candle::chat::Message;
use cmf_candle::generate::{Generator, Stream};
use cmf_candle::llama::Llama;
use cmf_candle::packed::PackedModel;
use cmf_candle::sample::{Sampler, Sampling};
use cmf_candle::{Card, Text, cut};
use cmf_loader::{Budget, Model, Plan};
use serde::Serialize;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf run model.cmf --prompt 'What is a glacier?' --budget 40MiB
  cmf run model.cmf                    talks; a line `/budget 30MiB` changes the budget meanwhile
  cmf run model.cmf --raw --prompt 'Once upon a time' --temperature 0.8 --seed 7")]
pub(crate) struct Args {
    /// A .cmf with a model of the Llama family, its tokenizer and its configuration
    file: PathBuf,
    /// What to say to the model [default: lines of standard input]
    #[arg(short, long)]
    prompt: Option<String>,
    /// Bytes of weights that may be resident: 90MiB, 2bpw, min, max or auto
    #[arg(short, long, value_name = "SIZE", default_value = "max")]
    budget: String,
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
    /// The system message
    #[arg(long)]
    system: Option<String>,
    /// Go on from the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Print a line of JSON a token, and a summary
    #[arg(long)]
    json: bool,
    /// Say nothing on standard error
    #[arg(short, long)]
    quiet: bool,
}

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
struct Session<'s, 'm> {
    args: &'s Args,
    model: &'m Model,
    packed: &'s PackedModel<'m>,
    text: &'s Text,
    card: &'s Card,
    generator: Generator<'s, 's>,
    messages: Vec<Message>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let sampling =
        Sampling { temperature: args.temperature, top_p: args.top_p, top_k: args.top_k, seed: args.seed };
    Sampler::new(sampling)?;
    let model = Model::open(&args.file)?;
    let plan = model.plan(Budget::parse(&args.budget)?)?;
    let card = cut::card(&model)?;
    let text = card.text()?;
    let packed = PackedModel::new(&model, plan);
    let weights = card.weights(&packed);
    let llama = Llama::load(weights.as_ref(), card.config())?;
    let system = args.system.iter().map(|content| message("system", content));
    let mut session = Session {
        args,
        model: &model,
        packed: &packed,
        text,
        card: &card,
        generator: Generator::new(&llama),
        messages: system.collect(),
    };
    if let Some(prompt) = &args.prompt {
        session.answer(prompt, sampling)?;
        return Ok(Answer::Yes);
    }
    for line in std::io::stdin().lock().lines() {
        let line = line.context("standard input")?;
        match line.trim().strip_prefix("/budget") {
            Some(budget) => session.set_budget(budget)?,
            None if line.trim().is_empty() => {}
            None => session.answer(&line, sampling)?,
        }
    }
    Ok(Answer::Yes)
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

impl Session<'_, '_> {
    fn set_budget(&self, budget: &str) -> anyhow::Result<()> {
        let plan = Budget::parse(budget).map_err(anyhow::Error::from).and_then(|b| Ok(self.model.plan(b)?));
        match plan {
            Ok(plan) => Ok(self.packed.set_plan(plan)?),
            // A mistake in a conversation does not end it.
            Err(error) => self.say(&format!("{error}\n")),
        }
    }

    fn say(&self, text: &str) -> anyhow::Result<()> {
        if !self.args.quiet {
            std::io::stderr().write_all(text.as_bytes())?;
        }
        Ok(())
    }

    /// Answers `prompt` on standard output.
    fn answer(&mut self, prompt: &str, sampling: Sampling) -> anyhow::Result<()> {
        let started = Instant::now();
        let text = match self.args.raw {
            true => prompt.to_owned(),
            false => {
                self.messages.push(message("user", prompt));
                self.card.chat().prompt(&self.messages)?
            }
        };
        let ids = self.text.encode(&text)?.ids;
        self.generator.read(&ids)?;
        let mut sampler = Sampler::new(sampling)?;
        let mut stream = Stream::new(self.text);
        let (mut answer, mut tokens, mut first) = (String::new(), 0, None);
        let mut generating = Instant::now();
        while tokens < self.args.tokens {
            let id = self.generator.choose(&mut sampler)?;
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
                false => print(&part)?,
            }
            tokens += 1;
            self.generator.accept(id)?;
        }
        let seconds = generating.elapsed().as_secs_f64();
        if !self.args.raw {
            self.messages.push(message("assistant", &answer));
        }
        let plan = self.packed.plan();
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
            bits_per_weight: plan.bits_per_weight(),
            cache_bytes: self.generator.cache_bytes(),
            scratch_bytes: cmf_candle::packed::scratch_bytes(),
            mapped_bytes: mapped_bytes(self.model.path()),
            process_bytes: process.map(|(now, _)| now),
            peak_resident_bytes: process.map(|(_, peak)| peak),
        };
        match self.args.json {
            true => print(&format!("{}\n", serde_json::to_string(&summary)?)),
            false => {
                print("\n")?;
                self.say(&held(&summary, &plan))
            }
        }
    }
}

/// What is held, to the byte.
fn held(summary: &Summary, plan: &Plan) -> String {
    let mut text = format!(
        "[{} bytes of weights resident ({} units of {}, {:.2} bits a weight), {} of keys and values, {} of scratch",
        summary.resident_bytes,
        plan.units(),
        plan.schedule().steps(),
        summary.bits_per_weight,
        summary.cache_bytes,
        summary.scratch_bytes,
    );
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

/// Resident bytes of the maps of the file at `path`.
fn mapped_bytes(path: &Path) -> Option<u64> {
    let path = std::fs::canonicalize(path).ok()?;
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let (mut ours, mut bytes) = (false, 0u64);
    for line in maps.lines() {
        if let Some(resident) = line.strip_prefix("Rss:").filter(|_| ours) {
            let kibibytes = resident.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?;
            bytes = bytes.saturating_add(kibibytes.saturating_mul(1024));
        } else if line.starts_with(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c)) {
            ours = line.ends_with(path.to_str()?);
        }
    }
    Some(bytes)
}

/// Resident bytes of this process, now and at most.
fn process_bytes() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

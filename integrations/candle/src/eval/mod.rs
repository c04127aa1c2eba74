//! Perplexity, and how far one model's predictions are from another's.
//!
//! The second half of each window is scored, as llama.cpp does: of `context` tokens, those from
//! `context / 2 + 1` on, each predicted from all before it in its window.

pub mod kept;
mod score;
mod sensitivity;

pub use score::Scores;
pub use sensitivity::{Sensitivity, sensitivity};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{Hidden, Progress};
use crate::llama::{Block, final_norm, head};
use crate::text::Windows;
use crate::weights::Weights;
use candle_core::Tensor;
pub(crate) use score::Distribution;
use score::Tally;

/// Models whose heads are in memory at once.
const HEADS_AT_ONCE: usize = 6;

/// A model to be evaluated.
#[derive(Clone, Copy)]
pub struct Subject<'s> {
    /// Its weights.
    pub weights: &'s dyn Weights,
    /// Its configuration.
    pub config: &'s Config,
}

/// What a model makes of the scored positions of all windows, before its head.
pub struct States(Vec<Tensor>);

impl Subject<'_> {
    /// Runs all windows through the layers, one layer in memory at a time. Progress is in layers.
    ///
    /// # Errors
    /// What the weights and the layers give.
    pub fn states(&self, windows: &Windows, progress: &Progress<'_>) -> Result<States> {
        let mut hidden = Hidden::embed(self.weights, self.config, windows)?;
        for layer in 0..self.config.layers {
            hidden.through(&Block::load(self.weights, self.config, layer)?)?;
            progress(layer as u64 + 1, self.config.layers as u64);
        }
        let norm = final_norm(self.weights, self.config)?;
        let (first, scored) = scored(windows.context());
        let part = |x: &Tensor| norm.forward(&x.narrow(0, first, scored)?);
        Ok(States(hidden.states().iter().map(part).collect::<Result<_>>()?))
    }
}

/// The first position whose prediction is scored, and how many are.
fn scored(context: usize) -> (usize, usize) {
    let first = context / 2;
    (first, context - 1 - first)
}

/// Scores `subjects`, whose states over `windows` are given, and compares them with `baseline`
/// where there is one, whose own scores come first.
///
/// # Errors
/// `BadArgument` when vocabularies differ, and what the weights and the layers give.
pub fn score(
    subjects: &[(Subject<'_>, States)],
    baseline: Option<&(Subject<'_>, States)>,
    windows: &Windows,
    progress: &Progress<'_>,
) -> Result<(Option<Scores>, Vec<Scores>)> {
    let (first, scored) = scored(windows.context());
    let base_head = baseline.map(|(base, _)| head(base.weights, base.config)).transpose()?;
    for (subject, _) in subjects {
        if let Some((base, _)) = baseline.filter(|(base, _)| base.config.vocab != subject.config.vocab) {
            let (expected, found) = (base.config.vocab, subject.config.vocab);
            return Err(Error::argument(format!(
                "vocabulary: baseline has {expected} tokens, model {found}"
            )));
        }
    }
    let (mut done, total) = (0, (subjects.len() * windows.iter().len()) as u64);
    let mut scores = Vec::new();
    let mut own = base_head.as_ref().map(|_| Tally::default());
    let bytes = windows.bytes_from(windows.context() - scored);
    for group in subjects.chunks(HEADS_AT_ONCE) {
        let heads = group.iter().map(|(s, _)| head(s.weights, s.config)).collect::<Result<Vec<_>>>()?;
        let mut tallies: Vec<_> = group.iter().map(|_| Tally::default()).collect();
        for (index, ids) in windows.iter().enumerate() {
            let targets = ids.get(first + 1..).unwrap_or(&[]);
            let logits = |head: &dyn crate::weights::Linear, states: &States| -> Result<Vec<f32>> {
                let states = states.0.get(index).ok_or_else(|| Error::argument("states of other windows"))?;
                let logits = head.forward(states)?;
                Ok(logits.first().ok_or_else(|| Error::model("no head"))?.flatten_all()?.to_vec1()?)
            };
            let base = match (&base_head, baseline) {
                (Some(head), Some((base, states))) => {
                    let logits = logits(head.as_ref(), states)?;
                    if let Some(own) = own.as_mut().filter(|_| scores.is_empty()) {
                        own.add(&logits, base.config.vocab, targets, None)?;
                    }
                    Some(Distribution::new(logits, base.config.vocab))
                }
                _ => None,
            };
            for (((subject, states), head), tally) in group.iter().zip(&heads).zip(&mut tallies) {
                let logits = logits(head.as_ref(), states)?;
                tally.add(&logits, subject.config.vocab, targets, base.as_ref())?;
                done += 1;
                progress(done, total);
            }
        }
        scores.extend(tallies.into_iter().map(|tally| tally.scores(bytes)));
    }
    Ok((own.map(|own| own.scores(bytes)), scores))
}

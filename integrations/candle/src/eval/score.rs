//! Scores of single predictions, and their means.

use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;

/// How well a model predicts a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// exp of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_error: f64,
    /// Negative log-likelihood of the text in bits, by its bytes.
    pub bits_per_byte: f64,
    /// Mean Kullback-Leibler divergence of a prediction from the baseline's, in nats.
    pub kl_mean: Option<f64>,
    /// Its 99th percentile.
    pub kl_p99: Option<f64>,
    /// Share of predictions whose likeliest token is the baseline's.
    pub top1_agreement: Option<f64>,
    /// Predictions that were scored.
    pub tokens: usize,
}

/// Predictions of one window.
pub(crate) struct Distribution {
    logits: Vec<f32>,
    /// Probabilities.
    likely: Vec<f32>,
    /// Of each prediction: log of the sum of exp, and the likeliest token.
    rows: Vec<(f64, usize)>,
}

impl Distribution {
    pub(crate) fn new(logits: Vec<f32>, vocab: usize) -> Self {
        let mut likely = vec![0.0; logits.len()];
        let rows = likely.par_chunks_exact_mut(vocab).zip(logits.par_chunks_exact(vocab));
        let rows = rows.map(|(likely, logits)| {
            let (top, max) = likeliest(logits);
            let log_sum = log_sum(logits, max);
            for (p, logit) in likely.iter_mut().zip(logits) {
                *p = (f64::from(*logit) - log_sum) as f32;
            }
            likely.iter_mut().for_each(|p| *p = p.exp());
            (log_sum, top)
        });
        let rows = rows.collect();
        Self { logits, likely, rows }
    }

    /// The probabilities of all tokens, one prediction after the other.
    pub(crate) fn probabilities(&self) -> &[f32] {
        &self.likely
    }
}

fn likeliest(logits: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (i, *logit);
        }
    }
    best
}

/// log of the sum of exp.
fn log_sum(logits: &[f32], max: f32) -> f64 {
    let sum: f64 =
        logits.chunks(64).map(|part| f64::from(part.iter().map(|l| (l - max).exp()).sum::<f32>())).sum();
    f64::from(max) + sum.ln()
}

/// One prediction.
struct Prediction {
    nll: f64,
    kl: f64,
    agrees: bool,
}

/// Predictions of all windows so far.
#[derive(Default)]
pub(super) struct Tally {
    predictions: Vec<Prediction>,
    compared: bool,
}

impl Tally {
    /// Adds the predictions `logits`, `[targets, vocab]`.
    pub(super) fn add(
        &mut self,
        logits: &[f32],
        vocab: usize,
        targets: &[u32],
        base: Option<&Distribution>,
    ) -> Result<()> {
        let rows = logits.par_chunks_exact(vocab).zip(targets.par_iter()).enumerate();
        let predictions = rows.map(|(row, (logits, target))| {
            let (top, max) = likeliest(logits);
            let log_sum = log_sum(logits, max);
            let target = logits.get(*target as usize).copied().unwrap_or(f32::NEG_INFINITY);
            let nll = log_sum - f64::from(target);
            if !nll.is_finite() {
                return Err(Error::model("predictions are not finite: the weights are damaged"));
            }
            let (mut kl, mut agrees) = (0.0, false);
            if let Some((base, (base_sum, base_top))) = base.and_then(|b| Some((b, b.rows.get(row)?))) {
                let part = row * vocab..(row + 1) * vocab;
                let base_logits = base.logits.get(part.clone()).unwrap_or(&[]).chunks(64);
                let likely = base.likely.get(part).unwrap_or(&[]).chunks(64);
                let cross = base_logits.zip(likely).zip(logits.chunks(64)).map(|((b, p), q)| {
                    let terms = b.iter().zip(p).zip(q).map(|((b, p), q)| p * (b - q));
                    f64::from(terms.sum::<f32>())
                });
                kl = cross.sum::<f64>() - base_sum + log_sum;
                agrees = *base_top == top;
            }
            Ok(Prediction { nll, kl, agrees })
        });
        self.predictions.extend(predictions.collect::<Result<Vec<_>>>()?);
        self.compared = base.is_some();
        Ok(())
    }

    /// The means, over a text of `bytes` bytes.
    pub(super) fn scores(self, bytes: u64) -> Scores {
        let n = self.predictions.len().max(1) as f64;
        let sum = self.predictions.iter().map(|p| p.nll).sum::<f64>();
        let mean = sum / n;
        let variance = self.predictions.iter().map(|p| (p.nll - mean).powi(2)).sum::<f64>() / n;
        let mut kl: Vec<_> = self.predictions.iter().map(|p| p.kl).collect();
        kl.sort_by(f64::total_cmp);
        let compared = |value: f64| self.compared.then_some(value);
        let rank = (0.99 * (n - 1.0)).round() as usize;
        Scores {
            perplexity: mean.exp(),
            perplexity_error: mean.exp() * (variance / n).sqrt(),
            bits_per_byte: sum / std::f64::consts::LN_2 / bytes.max(1) as f64,
            kl_mean: compared(kl.iter().sum::<f64>() / n),
            kl_p99: compared(kl.get(rank).copied().unwrap_or(0.0)),
            top1_agreement: compared(self.predictions.iter().filter(|p| p.agrees).count() as f64 / n),
            tokens: self.predictions.len(),
        }
    }
}

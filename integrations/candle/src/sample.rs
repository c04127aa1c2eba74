//! Choosing the next token.

use crate::error::{Error, Result};
use std::cmp::Ordering;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token always.
    pub temperature: f64,
    /// Of the likeliest tokens, those that together have this probability.
    pub top_p: f64,
    /// At most so many of the likeliest tokens; 0 is all.
    pub top_k: usize,
    /// The same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

/// Chooses tokens, one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// `BadArgument` for a temperature below 0 or a `top_p` that is no probability.
    pub fn new(sampling: Sampling) -> Result<Self> {
        if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
            return Err(Error::argument(format!(
                "temperature: expected 0 or more, found {}",
                sampling.temperature
            )));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return Err(Error::argument(format!(
                "top-p: expected above 0 and up to 1, found {}",
                sampling.top_p
            )));
        }
        Ok(Self { sampling, state: sampling.seed })
    }

    /// The next token for `logits`.
    ///
    /// # Errors
    /// `BadModel` when there is no finite logit.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        let finite = logits.iter().enumerate().filter(|(_, logit)| logit.is_finite());
        let mut likely: Vec<(usize, f32)> = finite.map(|(i, logit)| (i, *logit)).collect();
        // Equal logits go by id, so that the order is one.
        let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let best = likely.iter().copied().min_by(order);
        let (best, max) = best.ok_or_else(|| Error::model("no logit is finite: the weights are damaged"))?;
        let Sampling { temperature, top_p, top_k, .. } = self.sampling;
        if temperature == 0.0 {
            return Ok(best as u32);
        }
        if top_k > 0 && top_k < likely.len() {
            likely.select_nth_unstable_by(top_k, order);
            likely.truncate(top_k);
        }
        let weight = |logit: f32| (f64::from(logit - max) / temperature).exp();
        let mut kept: f64 = likely.iter().map(|(_, logit)| weight(*logit)).sum();
        if top_p < 1.0 {
            let wanted = top_p * kept;
            (kept, likely) = likeliest(likely, order, wanted, weight);
        }
        let mut left = self.uniform() * kept;
        for (id, logit) in &likely {
            left -= weight(*logit);
            if left < 0.0 {
                return Ok(*id as u32);
            }
        }
        Ok(likely.last().map_or(best, |(id, _)| *id) as u32)
    }

    /// A number from 0 to below 1: SplitMix64 (Steele, Lea and Flood, 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The first tokens by `order` that together weigh `wanted`, at least one, and what they weigh. Only as
/// many are put in order as it takes.
fn likeliest(
    mut tokens: Vec<(usize, f32)>,
    order: impl Fn(&(usize, f32), &(usize, f32)) -> Ordering,
    wanted: f64,
    weight: impl Fn(f32) -> f64,
) -> (f64, Vec<(usize, f32)>) {
    let (mut kept, mut count, mut sorted) = (0.0, 0, 0);
    while count < tokens.len() && (count == 0 || kept < wanted) {
        if count == sorted {
            let rest = tokens.get_mut(sorted..).unwrap_or(&mut []);
            let more = (sorted * 3).max(64).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable_by(more, &order);
            }
            rest.get_mut(..more).unwrap_or(&mut []).sort_unstable_by(&order);
            sorted += more;
        }
        kept += tokens.get(count).map_or(0.0, |(_, logit)| weight(*logit));
        count += 1;
    }
    tokens.truncate(count);
    (kept, tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(sampling: Sampling, logits: &[f32], n: usize) -> Result<Vec<u32>> {
        let mut sampler = Sampler::new(sampling)?;
        (0..n).map(|_| sampler.next(logits)).collect()
    }

    #[test]
    fn temperature_0_takes_the_likeliest_and_the_first_of_equals() -> Result<()> {
        assert_eq!(drawn(Sampling::default(), &[0.0, 2.0, 2.0, f32::NAN], 2)?, [1, 1]);
        Ok(())
    }

    #[test]
    fn same_seed_same_tokens() -> Result<()> {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let logits = [0.0; 100];
        assert_eq!(drawn(sampling, &logits, 50)?, drawn(sampling, &logits, 50)?);
        assert_ne!(drawn(sampling, &logits, 50)?, drawn(Sampling { seed: 8, ..sampling }, &logits, 50)?);
        Ok(())
    }

    #[test]
    fn frequencies_are_the_probabilities() -> Result<()> {
        let sampling = Sampling { temperature: 1.0, seed: 1, ..Sampling::default() };
        let tokens = drawn(sampling, &[0.0, 3f32.ln()], 4000)?;
        let share = tokens.iter().filter(|t| **t == 1).count() as f64 / 4000.0;
        assert!((share - 0.75).abs() < 0.03, "{share}");
        Ok(())
    }

    #[test]
    fn top_k_and_top_p_leave_out_the_unlikely() -> Result<()> {
        let logits = [0.0, 1.0, 2.0, 3.0];
        let all = Sampling { temperature: 2.0, seed: 3, ..Sampling::default() };
        assert!(drawn(Sampling { top_k: 2, ..all }, &logits, 200)?.iter().all(|t| *t >= 2));
        assert!(drawn(Sampling { top_p: 0.3, ..all }, &logits, 200)?.iter().all(|t| *t == 3));
        Ok(())
    }

    #[test]
    fn top_p_takes_the_first_of_many_in_order() {
        let tokens: Vec<(usize, f32)> = (0..1000).map(|i| (i, (i * 7919 % 1000) as f32)).collect();
        let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1);
        for wanted in [0.0, 1.0, 5e4, 4e5, 1e9] {
            let mut all = tokens.clone();
            all.sort_unstable_by(order);
            let (kept, found) = likeliest(tokens.clone(), order, wanted, f64::from);
            assert_eq!(found, all[..found.len()]);
            assert_eq!(kept, found.iter().map(|(_, logit)| f64::from(*logit)).sum::<f64>());
            let last = found.last().map_or(0.0, |(_, logit)| f64::from(*logit));
            assert!(found.len() == 1 || kept - last < wanted);
            assert!(found.len() == 1000 || kept >= wanted);
        }
    }

    #[test]
    fn rejects_logits_without_a_number() {
        assert!(drawn(Sampling::default(), &[f32::NAN], 1).is_err());
    }
}

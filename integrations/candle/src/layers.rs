//! Many windows through a model, one layer of which is in memory at a time.

use crate::config::Config;
use crate::error::Result;
use crate::llama::{Block, Observe, RopeTable, Site, embedding};
use crate::text::Windows;
use crate::weights::Weights;
use candle_core::Tensor;
use rayon::prelude::*;

/// Is called with steps done and in all.
pub type Progress<'p> = dyn Fn(u64, u64) + Sync + 'p;

/// Hidden states of all windows.
#[derive(Clone)]
pub struct Hidden {
    /// `[tokens, hidden]` for each window.
    states: Vec<Tensor>,
    rope: RopeTable,
}

impl Hidden {
    /// The embedded tokens of `windows`.
    ///
    /// # Errors
    /// `BadArgument` for a token that the embedding does not have, and what `weights` gives.
    pub fn embed(weights: &dyn Weights, config: &Config, windows: &Windows) -> Result<Self> {
        let embedding = embedding(weights, config)?;
        let states = windows.iter().map(|ids| embedding.gather(ids)).collect::<Result<_>>()?;
        Ok(Self { states, rope: RopeTable::new(config, 0, windows.context())? })
    }

    /// The states of each window.
    pub fn states(&self) -> &[Tensor] {
        &self.states
    }

    /// Something else made of the states of each window.
    pub(crate) fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let states = self.states.iter().map(change).collect::<Result<_>>()?;
        Ok(Self { states, rope: self.rope.clone() })
    }

    /// Runs all windows through a layer.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn through(&mut self, block: &Block<'_>) -> Result<()> {
        let next = self.states.par_iter().map(|x| {
            let x = block.attend(x, &self.rope, None, &mut |_, _| Ok(()))?;
            if block.is_mixture() { Ok(x) } else { block.after_attention(&x, &mut |_, _| Ok(())) }
        });
        self.states = next.collect::<Result<_>>()?;
        if block.is_mixture() {
            self.states = block.mix(&self.states)?;
        }
        Ok(())
    }

    /// [`Hidden::through`], while `reduce` makes something of each input of each matrix. `take` gets
    /// it in the order of the windows; at most `at_once` windows' are held.
    pub(crate) fn through_observed(
        &mut self,
        block: &Block<'_>,
        at_once: usize,
        reduce: &(dyn Fn(&Tensor) -> Result<Tensor> + Sync),
        take: &mut dyn FnMut(Site, Tensor) -> Result<()>,
    ) -> Result<()> {
        let rope = &self.rope;
        for states in self.states.chunks_mut(at_once.max(1)) {
            let run = |x: &mut Tensor| {
                let mut seen = Vec::new();
                let observe: &mut Observe<'_> = &mut |site, x| {
                    seen.push((site, reduce(x)?));
                    Ok(())
                };
                *x = block.attend(x, rope, None, observe)?;
                if !block.is_mixture() {
                    *x = block.after_attention(x, observe)?;
                }
                Ok(seen)
            };
            let seen = states.par_iter_mut().map(run).collect::<Result<Vec<_>>>()?;
            if block.is_mixture() {
                states.clone_from_slice(&block.mix(states)?);
            }
            for (site, reduced) in seen.into_iter().flatten() {
                take(site, reduced)?;
            }
        }
        Ok(())
    }
}

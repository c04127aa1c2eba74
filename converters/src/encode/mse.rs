//! Search for the scale and zero point of least squared error.
//!
//! As ggml's `make_qx_quants` and `make_qkx2_quants`: codes are made for a grid of clipping ratios,
//! and for each the scale (and zero point) that fits those codes best follows in closed form.
//!
//! All of a search is one function to the compiler, with the vectors of the machine: groups are so
//! small that calls would take longer than sums.

use super::levels::Levels;
use super::params::Zero;
use super::rule::{Fit, Rule};
use super::vectors::{Group, PowerSums};
use fearless_simd::prelude::*;
use fearless_simd::{Level as Isa, dispatch};

/// Rounds of codes for the fit, then fit for the codes, after the grid.
const REFITS: usize = 4;
/// Coarsest step of the grid, cut off at each end, in parts of the range of levels.
const COARSE: f32 = 0.035;
/// What is cut off at each end, in coarsest steps. From `FIRST_INWARD` on, the grid is left when the
/// error has grown.
const CUTS: [f32; 13] = [0.0, -1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0];
const FIRST_INWARD: usize = 2;
/// The grid is left when the error has grown to this multiple of the least.
const GIVE_UP: f64 = 1.2;
/// How the best cut is moved next, below and above, in coarsest steps: first both ends, then, where
/// zero points are no codes, one alone. Of two moves that are opposite the second is not tried when the
/// first was good.
const MOVES: [[f32; 2]; 12] = [
    [-0.5, -0.5],
    [0.5, 0.5],
    [-0.25, -0.25],
    [0.25, 0.25],
    [-1.5, 0.0],
    [1.5, 0.0],
    [0.0, -1.5],
    [0.0, 1.5],
    [-0.6, 0.0],
    [0.6, 0.0],
    [0.0, -0.6],
    [0.0, 0.6],
];
const MOVES_OF_BOTH_ENDS: usize = 4;

/// A fit with the error it has before it is rounded for storage.
#[derive(Clone, Copy, Debug)]
struct Trial {
    error: f64,
    fit: Fit,
}

/// The fit of least error, never worse than `rtn` once stored where stores keep one element a
/// value. `steps` is the number of steps between the lowest and the highest level.
pub(super) fn search<L: Levels>(levels: L, rule: &Rule<'_>, steps: f32, group: Group<'_>, rtn: Fit) -> Fit {
    if rtn.scale == 0.0 {
        return rtn;
    }
    dispatch!(Isa::new(), simd => {
        let search = Search::new(simd, levels, rule, group);
        search.least_stored(rtn, search.grid(steps, rtn))
    })
}

/// Refits the value of the lowest level to a scale that is already stored.
pub(super) fn refit_base<L: Levels>(
    levels: L,
    rule: &Rule<'_>,
    group: Group<'_>,
    scale: f32,
    base: f32,
) -> f32 {
    dispatch!(Isa::new(), simd => Search::new(simd, levels, rule, group).base(scale, base))
}

struct Search<'a, S, L> {
    simd: S,
    levels: L,
    rule: &'a Rule<'a>,
    group: Group<'a>,
    sums: PowerSums,
    /// 1 over the sum of weights.
    per_weight: f64,
}

impl<'a, S: Simd, L: Levels> Search<'a, S, L> {
    #[inline(always)]
    fn new(simd: S, levels: L, rule: &'a Rule<'a>, group: Group<'a>) -> Self {
        let sums = group.power_sums(simd);
        Self { simd, levels, rule, group, sums, per_weight: 1.0 / sums.n }
    }

    /// The best of clippings around round to nearest, refined.
    #[inline(always)]
    fn grid(&self, steps: f32, rtn: Fit) -> Fit {
        let (width, per_step) = (COARSE * steps, 1.0 / steps);
        let mut best = Trial { error: f64::INFINITY, fit: rtn };
        let mut best_cut = [0.0; 2];
        let moves = match self.rule.zero {
            Zero::Subtract | Zero::Add => MOVES.len(),
            Zero::None | Zero::Code => MOVES_OF_BOTH_ENDS,
        };
        let (mut cuts, mut moves) = (0..CUTS.len(), 0..moves);
        // One loop for both, so that a trial is compiled once.
        while let Some((cut, i)) = cuts.next().map(|i| (true, i)).or_else(|| moves.next().map(|i| (false, i)))
        {
            let [below, above] = match cut {
                true => [CUTS[i] * width; 2],
                false => [0, 1].map(|end| best_cut[end] + MOVES[i][end] * width),
            };
            let ratio = 1.0 - (below + above) * per_step;
            let trial = self.trial(Fit { scale: rtn.scale * ratio, base: rtn.base + below * rtn.scale });
            let better = trial.error < best.error;
            if better {
                (best, best_cut) = (trial, [below, above]);
            }
            match cut {
                true if i >= FIRST_INWARD && trial.error >= GIVE_UP * best.error => cuts = 0..0,
                false if i.is_multiple_of(2) && better => _ = moves.next(),
                _ => {}
            }
        }
        for _ in 0..REFITS {
            let trial = self.trial(best.fit);
            if trial.error >= best.error {
                break;
            }
            best = trial;
        }
        best.fit
    }

    /// Rounds by `fit` and fits scale and zero point to those codes.
    #[inline(always)]
    fn trial(&self, fit: Fit) -> Trial {
        let rule = self.rule;
        let zero = match rule.zero {
            Zero::Add => fit.base - fit.scale * rule.low,
            Zero::Subtract => rule.low - fit.base / fit.scale,
            Zero::Code | Zero::None => rule.zero_point(fit.scale, fit.base),
        };
        let m = self.group.moments(self.simd, self.levels, rule.affine(fit.scale, zero));
        let PowerSums { n, x, xx } = self.sums;
        match rule.zero {
            Zero::None | Zero::Code => {
                let zero = f64::from(zero);
                let xl = m.xl - zero * x;
                let ll = m.ll - zero * (2.0 * m.l - zero * n);
                if ll <= 0.0 {
                    return Trial { error: f64::INFINITY, fit };
                }
                let scale = xl / ll;
                let error = xx - xl * scale;
                let base = (rule.low - zero as f32) * scale as f32;
                Trial { error, fit: Fit { scale: scale as f32, base } }
            }
            Zero::Subtract | Zero::Add => {
                let mean_level = m.l * self.per_weight;
                let spread = m.ll - m.l * mean_level;
                let shared = m.xl - x * mean_level;
                if spread <= 0.0 {
                    return Trial { error: f64::INFINITY, fit };
                }
                let mean = x * self.per_weight;
                let scale = shared / spread;
                let base = mean - scale * (mean_level - f64::from(rule.low));
                Trial {
                    error: xx - x * mean - shared * scale,
                    fit: Fit { scale: scale as f32, base: base as f32 },
                }
            }
        }
    }

    /// The better of two fits, and of their neighbours in a coarse store, as the decoder will see
    /// them.
    #[inline(always)]
    fn least_stored(&self, rtn: Fit, best: Fit) -> Fit {
        let half = |fit: Fit| Fit { scale: fit.scale * 0.5, ..fit };
        let coarse = self.rule.scale_store.dtype() == Some(cmf_format::DType::F8E8M0);
        let mut least = (f64::INFINITY, rtn);
        for fit in &[rtn, best, half(rtn), half(best)][..if coarse { 4 } else { 2 }] {
            let error = self.group.squared_error(self.simd, self.levels, self.rule.stored(*fit));
            if error < least.0 {
                least = (error, *fit);
            }
        }
        least.1
    }

    /// [`refit_base`].
    #[inline(always)]
    fn base(&self, scale: f32, base: f32) -> f32 {
        let mut best = (f64::INFINITY, base);
        let mut next = base;
        for _ in 0..=REFITS {
            let stored = self.rule.affine(scale, self.rule.zero_point(scale, next));
            let error = self.group.squared_error(self.simd, self.levels, stored);
            if error >= best.0 {
                break;
            }
            best = (error, next);
            let m = self.group.moments(self.simd, self.levels, stored);
            let mean_level = m.l * self.per_weight - f64::from(self.rule.low);
            next = (self.sums.x * self.per_weight - f64::from(scale) * mean_level) as f32;
        }
        best.1
    }
}

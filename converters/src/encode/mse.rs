//! Search for the scale and zero point of least squared error.
//!
//! As ggml's `make_qx_quants` and `make_qkx2_quants`: codes are made for a grid of clipping ratios,
//! and for each the scale (and zero point) that fits those codes best follows in closed form.

use super::kernels::{Sums, moments, squared_error};
use super::levels::Levels;
use super::params::Zero;
use super::rule::{Fit, Rule};
use fearless_simd::Level as Isa;

/// Rounds of codes for the fit, then fit for the codes, after the grid.
const REFITS: usize = 4;
/// Coarsest step of the grid, cut off at each end, in parts of the range of levels.
const COARSE: f32 = 0.035;
/// The grid is left when the error has grown to this multiple of the least.
const GIVE_UP: f64 = 1.2;

/// One group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    /// Its values.
    pub(super) values: &'a [f32],
    /// Their weights.
    pub(super) weights: Option<&'a [f32]>,
}

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
    let isa = Isa::new();
    let sums = Sums::new(isa, group.values, group.weights);
    let search = Search { isa, levels, rule, group, sums, per_weight: 1.0 / sums.n };
    let best = search.grid(steps, rtn);
    search.least_stored(rtn, best)
}

/// Refits the value of the lowest level to a scale that is already stored.
pub(super) fn refit_base<L: Levels>(
    levels: L,
    rule: &Rule<'_>,
    group: Group<'_>,
    scale: f32,
    base: f32,
) -> f32 {
    let isa = Isa::new();
    let sums = Sums::new(isa, group.values, group.weights);
    let stored = |base: f32| rule.affine(scale, rule.zero_point(scale, base));
    let error = |base: f32| squared_error(isa, levels, stored(base), group.values, group.weights);
    let mut best = (error(base), base);
    for _ in 0..REFITS {
        let m = moments(isa, levels, stored(best.1), group.values, group.weights);
        let mean_level = m.l / sums.n - f64::from(rule.low);
        let base = (sums.x / sums.n - f64::from(scale) * mean_level) as f32;
        let trial = (error(base), base);
        if trial.0 >= best.0 {
            break;
        }
        best = trial;
    }
    best.1
}

struct Search<'a, L> {
    isa: Isa,
    levels: L,
    rule: &'a Rule<'a>,
    group: Group<'a>,
    sums: Sums,
    /// 1 over the sum of weights.
    per_weight: f64,
}

impl<L: Levels> Search<'_, L> {
    /// The best of clippings around round to nearest, refined.
    fn grid(&self, steps: f32, rtn: Fit) -> Trial {
        let per_step = 1.0 / steps;
        // So many steps are cut off below and above.
        let clipped = |[below, above]: [f32; 2]| {
            let ratio = 1.0 - (below + above) * per_step;
            Fit { scale: rtn.scale * ratio, base: rtn.base + below * rtn.scale }
        };
        let mut best = self.trial(rtn);
        let mut best_cut = [0.0; 2];
        let mut attempt = |cut: [f32; 2], best_cut: &mut [f32; 2]| {
            let trial = self.trial(clipped(cut));
            if trial.error < best.error {
                (best, *best_cut) = (trial, cut);
            }
            trial.error < GIVE_UP * best.error
        };
        let width = COARSE * steps;
        attempt([-width; 2], &mut best_cut);
        let mut cut = width;
        while cut < 0.4 * steps && attempt([cut; 2], &mut best_cut) {
            cut += width;
        }
        for width in [0.5 * width, 0.25 * width] {
            let [below, above] = best_cut;
            for side in [-width, width] {
                attempt([below + side, above + side], &mut best_cut);
            }
        }
        if matches!(self.rule.zero, Zero::Subtract | Zero::Add) {
            for width in [1.5 * width, 0.6 * width] {
                for (end, side) in [(0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0)] {
                    let mut cut = best_cut;
                    cut[end] += side * width;
                    attempt(cut, &mut best_cut);
                }
            }
        }
        for _ in 0..REFITS {
            let trial = self.trial(best.fit);
            if trial.error >= best.error {
                break;
            }
            best = trial;
        }
        best
    }

    /// Rounds by `fit` and fits scale and zero point to those codes.
    fn trial(&self, fit: Fit) -> Trial {
        let rule = self.rule;
        let zero = match rule.zero {
            Zero::Add => fit.base - fit.scale * rule.low,
            Zero::Subtract => rule.low - fit.base / fit.scale,
            Zero::Code | Zero::None => rule.zero_point(fit.scale, fit.base),
        };
        let affine = rule.affine(fit.scale, zero);
        let m = moments(self.isa, self.levels, affine, self.group.values, self.group.weights);
        let Sums { n, x, xx } = self.sums;
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
    fn least_stored(&self, rtn: Fit, best: Trial) -> Fit {
        let error = |fit: Fit| {
            squared_error(self.isa, self.levels, self.rule.stored(fit), self.group.values, self.group.weights)
        };
        let half = |fit: Fit| Fit { scale: fit.scale * 0.5, ..fit };
        let mut least = (error(rtn), rtn);
        let coarse = self.rule.scale_store.dtype() == Some(cmf_format::DType::F8E8M0);
        let more = [half(rtn), half(best.fit)];
        for fit in core::iter::once(best.fit).chain(more.into_iter().filter(|_| coarse)) {
            let error = error(fit);
            if error < least.0 {
                least = (error, fit);
            }
        }
        least.1
    }
}

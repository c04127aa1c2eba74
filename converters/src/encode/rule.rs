//! How scale and zero point of a group follow from its extremes: round to nearest.

use super::kernels::Affine;
use super::levels::LevelSet;
use super::params::{GroupedParams, Store, Zero};
use crate::error::{Error, Result};

/// Scale of a group and the value of its lowest level. The zero point follows once the scale is
/// stored; without a zero point `base` has no meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fit {
    pub(super) scale: f32,
    pub(super) base: f32,
}

/// What is the same for all groups of a term.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule<'a> {
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) zero: Zero,
    pub(super) scale_store: &'a Store,
    pub(super) zero_store: &'a Store,
}

impl<'a> Rule<'a> {
    /// # Errors
    /// `BadArgument` for powers of two as zero points, and for levels that cannot represent zero
    /// points or scales.
    pub(super) fn new(params: &'a GroupedParams, levels: &LevelSet) -> Result<Self> {
        let adds_zero = matches!(params.zero, Zero::Subtract | Zero::Add);
        if adds_zero && params.zero_store == Store::F8E8m0 {
            return Err(Error::bad_argument("zero_store")
                .expected("a type that holds zero")
                .found("f8_e8m0"));
        }
        Ok(Self {
            low: levels.low,
            high: levels.high,
            zero: params.zero,
            scale_store: &params.scale,
            zero_store: &params.zero_store,
        })
    }

    /// Round to nearest for a group with these extremes. The scale is not rounded yet.
    pub(super) fn rounding(&self, least: f32, greatest: f32) -> Fit {
        match self.zero {
            Zero::None => Fit { scale: self.symmetric(least, greatest), base: 0.0 },
            Zero::Code => self.spread(least.min(0.0), greatest.max(0.0)),
            Zero::Add => self.spread(least, greatest),
            Zero::Subtract => {
                let fit = self.spread(least, greatest);
                let kept = self.scale_store.round_scale(fit.scale);
                // A zero point far outside of the codes loses the digits that tell them apart, and
                // without a scale nothing but zero is left.
                if kept != 0.0 && fit.base.abs() <= 8.0 * (self.high - self.low + 1.0) * fit.scale {
                    return fit;
                }
                self.spread(least.min(0.0), greatest.max(0.0))
            }
        }
    }

    /// Lowest level at `least`, highest at `greatest`.
    fn spread(&self, least: f32, greatest: f32) -> Fit {
        let span = self.high - self.low;
        // Divided first: the difference of two finite numbers may overflow.
        Fit { scale: greatest / span - least / span, base: least }
    }

    fn symmetric(&self, least: f32, greatest: f32) -> f32 {
        if self.scale_store.is_signed() && -self.low != self.high {
            // The longer end of the levels takes the value of largest magnitude.
            let end = if -self.low > self.high { self.low } else { self.high };
            let extreme = if -least > greatest { least } else { greatest };
            return extreme / end;
        }
        let above = if self.high > 0.0 { greatest.max(0.0) / self.high } else { 0.0 };
        let below = if self.low < 0.0 { least.min(0.0) / self.low } else { 0.0 };
        above.max(below)
    }

    /// The zero point, as stored where the store keeps one element a value, under a stored scale.
    pub(super) fn zero_point(&self, scale: f32, base: f32) -> f32 {
        let levels_below = |base: f32| if scale == 0.0 { 0.0 } else { base / scale };
        match self.zero {
            Zero::None => 0.0,
            Zero::Code => (self.low - levels_below(base)).round_ties_even().clamp(self.low, self.high),
            Zero::Subtract => self.zero_store.round(self.low - levels_below(base)),
            Zero::Add => self.zero_store.round(base - scale * self.low),
        }
    }

    /// What the decoder does with a scale and a zero point.
    pub(super) fn affine(&self, scale: f32, zero: f32) -> Affine {
        match self.zero {
            Zero::None => Affine { scale, subtract: 0.0, add: 0.0 },
            Zero::Code | Zero::Subtract => Affine { scale, subtract: zero, add: 0.0 },
            Zero::Add => Affine { scale, subtract: 0.0, add: zero },
        }
    }

    /// The same for a fit, rounded as far as the stores allow.
    pub(super) fn stored(&self, fit: Fit) -> Affine {
        let scale = self.scale_store.round_scale(fit.scale);
        self.affine(scale, self.zero_point(scale, fit.base))
    }
}

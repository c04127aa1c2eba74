//! Sums over a group on vectors of eight values: groups are so small that a loop which the compiler
//! turns into vectors takes twice as long.
//!
//! Eight partial sums in a fixed order, as in [`super::kernels`]: the same bits on every machine.

use super::kernels::{Affine, CHUNK, LANES};
use super::levels::Levels;
use fearless_simd::prelude::*;
use fearless_simd::{dispatch, f32x8};

/// Values that share a scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    pub(super) values: &'a [f32],
    /// A weight for each value, or 1 for all.
    pub(super) weights: Option<&'a [f32]>,
}

/// Weighted sums over the values `x` of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct PowerSums {
    /// Weights.
    pub(super) n: f64,
    pub(super) x: f64,
    pub(super) xx: f64,
}

/// Weighted sums over the values `x` of a group and their levels `l`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) l: f64,
    pub(super) ll: f64,
    pub(super) xl: f64,
}

/// Weighted squared error of a group as the decoder will see it.
pub(super) fn squared_error<L: Levels>(levels: L, affine: Affine, group: Group<'_>) -> f64 {
    dispatch!(fearless_simd::Level::new(), simd => group.squared_error(simd, levels, affine))
}

impl Group<'_> {
    #[inline(always)]
    pub(super) fn power_sums<S: Simd>(self, simd: S) -> PowerSums {
        let [n, x, xx] = self.sum(simd, Powers);
        PowerSums { n, x, xx }
    }

    /// Sums with each value rounded by `affine`.
    #[inline(always)]
    pub(super) fn moments<S: Simd, L: Levels>(self, simd: S, levels: L, affine: Affine) -> Moments {
        let [l, ll, xl] = self.sum(simd, MomentTerms(Rounding::new(simd, levels, affine)));
        Moments { l, ll, xl }
    }

    /// [`squared_error`].
    #[inline(always)]
    pub(super) fn squared_error<S: Simd, L: Levels>(self, simd: S, levels: L, affine: Affine) -> f64 {
        let [error] = self.sum(simd, ErrorTerms(Rounding::new(simd, levels, affine)));
        error
    }

    #[inline(always)]
    fn sum<S: Simd, const N: usize>(self, simd: S, terms: impl Terms<S, N>) -> [f64; N] {
        let mut totals = [0.0; N];
        for (i, values) in self.values.chunks(CHUNK).enumerate() {
            let weights = self.weights.map(|weights| &weights[i * CHUNK..][..values.len()]);
            let mut sums = [f32x8::splat(simd, 0.0); N];
            let (chunks, rest) = values.as_chunks::<LANES>();
            match weights {
                Some(weights) => {
                    for (x, weight) in chunks.iter().zip(weights.as_chunks::<LANES>().0) {
                        let weight = f32x8::simd_from(simd, *weight);
                        terms.add(&mut sums, f32x8::simd_from(simd, *x), Some(weight));
                    }
                }
                None => {
                    for x in chunks {
                        terms.add(&mut sums, f32x8::simd_from(simd, *x), None);
                    }
                }
            }
            if !rest.is_empty() {
                // Lanes without a value weigh nothing.
                let [mut x, mut weight] = [[0.0; LANES]; 2];
                x[..rest.len()].copy_from_slice(rest);
                match weights {
                    Some(weights) => weight[..rest.len()].copy_from_slice(&weights[chunks.len() * LANES..]),
                    None => weight[..rest.len()].fill(1.0),
                }
                terms.add(&mut sums, f32x8::simd_from(simd, x), Some(f32x8::simd_from(simd, weight)));
            }
            for (total, lanes) in totals.iter_mut().zip(sums) {
                let (low, high) = simd.widen_f32x8(lanes);
                let [a, b, c, d] = <[f64; LANES / 2]>::from(low + high);
                *total += (a + c) + (b + d);
            }
        }
        totals
    }
}

/// What takes eight values to their levels, and back.
#[derive(Clone, Copy)]
struct Rounding<S: Simd, L> {
    levels: L,
    factor: f32x8<S>,
    scale: f32x8<S>,
    subtract: f32x8<S>,
    add: f32x8<S>,
}

impl<S: Simd, L: Levels> Rounding<S, L> {
    #[inline(always)]
    fn new(simd: S, levels: L, affine: Affine) -> Self {
        Self {
            levels,
            factor: f32x8::splat(simd, affine.factor()),
            scale: f32x8::splat(simd, affine.scale),
            subtract: f32x8::splat(simd, affine.subtract),
            add: f32x8::splat(simd, affine.add),
        }
    }

    #[inline(always)]
    fn level(&self, x: f32x8<S>) -> f32x8<S> {
        self.levels.levels((x - self.add) * self.factor + self.subtract)
    }
}

/// `N` terms of eight values. A method, not a closure: closures do not take over the instruction set
/// that they are called with.
trait Terms<S: Simd, const N: usize> {
    fn add(&self, sums: &mut [f32x8<S>; N], x: f32x8<S>, weight: Option<f32x8<S>>);
}

struct Powers;

impl<S: Simd> Terms<S, 3> for Powers {
    #[inline(always)]
    fn add(&self, [n, x, xx]: &mut [f32x8<S>; 3], value: f32x8<S>, weight: Option<f32x8<S>>) {
        let weighted = match weight {
            Some(weight) => value * weight,
            None => value,
        };
        *n += weight.unwrap_or_else(|| f32x8::splat(value.simd, 1.0));
        *x += weighted;
        *xx += weighted * value;
    }
}

struct MomentTerms<S: Simd, L>(Rounding<S, L>);

impl<S: Simd, L: Levels> Terms<S, 3> for MomentTerms<S, L> {
    #[inline(always)]
    fn add(&self, [l, ll, xl]: &mut [f32x8<S>; 3], x: f32x8<S>, weight: Option<f32x8<S>>) {
        let level = self.0.level(x);
        let weighted = match weight {
            Some(weight) => level * weight,
            None => level,
        };
        *l += weighted;
        *ll += weighted * level;
        *xl += weighted * x;
    }
}

struct ErrorTerms<S: Simd, L>(Rounding<S, L>);

impl<S: Simd, L: Levels> Terms<S, 1> for ErrorTerms<S, L> {
    #[inline(always)]
    fn add(&self, [sum]: &mut [f32x8<S>; 1], x: f32x8<S>, weight: Option<f32x8<S>>) {
        let Rounding { scale, subtract, add, .. } = self.0;
        let error = x - ((self.0.level(x) - subtract) * scale + add);
        let square = error * error;
        *sum += match weight {
            Some(weight) => square * weight,
            None => square,
        };
    }
}

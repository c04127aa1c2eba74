//! Half-quadratic fitting of the zero point, after Badri & Shaji, "Half-Quadratic Quantization of
//! Large Machine Learning Models", 2023.
//!
//! With the scale fixed, the zero point that minimises `sum |w - w'|^p`, p < 1, is found by
//! splitting the error into a part `e` that the norm pays for and a quadratic remainder:
//! `e = shrink(w - w')`, then `zero = mean(w - e - level * scale)`, in turns while the weight of
//! the quadratic part grows.

use super::kernels::{CHUNK, sum_by};
use super::levels::Levels;
use super::params::HqqParams;
use super::rule::Rule;
use crate::error::{Error, Result};
use core::f32::consts::LN_2;
use multiversion::multiversion;

impl HqqParams {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.norm > 0.0 && self.norm <= 1.0) {
            return Err(Error::bad_argument("hqq.norm").expected("above 0, at most 1").found(self.norm));
        }
        if !(self.beta > 0.0 && self.beta.is_finite() && self.kappa >= 1.0 && self.kappa.is_finite()) {
            return Err(Error::bad_argument("hqq").expected("a positive beta and a kappa of 1 or more"));
        }
        Ok(())
    }
}

/// The value of the lowest level for a stored scale. As in the authors' code, iterations go on while
/// the sum of absolute errors falls, so that it is never above that of `base`.
#[multiversion(targets("x86_64+avx2"))]
pub(super) fn fit_base<L: Levels>(
    levels: L,
    rule: &Rule<'_>,
    params: &HqqParams,
    values: &[f32],
    scale: f32,
    base: f32,
) -> f32 {
    if scale == 0.0 || values.is_empty() {
        return base;
    }
    let mut best = (f64::INFINITY, base);
    let mut base = base;
    let mut beta = params.beta;
    for _ in 0..params.iterations.max(1) {
        let affine = rule.affine(scale, rule.zero_point(scale, base));
        let factor = affine.factor();
        let (exponent, inverse_beta) = (params.norm - 1.0, 1.0 / beta);
        let (mut norm, mut shift) = (0f64, 0f64);
        let mut buffers = [[0f32; CHUNK]; 2];
        for values in values.chunks(CHUNK) {
            let [norms, shifts] = &mut buffers;
            let (norms, shifts) = (&mut norms[..values.len()], &mut shifts[..values.len()]);
            for ((value, norm), shift) in values.iter().zip(norms.iter_mut()).zip(shifts.iter_mut()) {
                let level = levels.level((value - affine.add) * factor + affine.subtract);
                // In units of the scale, so that beta means the same for every tensor.
                let error = (value - affine.value(level)) * factor;
                let size = error.abs();
                let power = power(size, exponent);
                *norm = size;
                // shrink(e) = sign(e) * max(0, |e| - |e|^(p-1) / beta)
                let kept = size - power * inverse_beta;
                let kept = if kept > 0.0 { kept } else { 0.0 };
                *shift = error - kept.copysign(error);
            }
            norm += sum_by(norms, norms, |v, _| v);
            shift += sum_by(shifts, shifts, |v, _| v);
        }
        if norm.is_nan() || norm >= best.0 {
            break;
        }
        best = (norm, base);
        // mean(w - e - level * scale) is the present base plus the mean of what was shrunk away.
        base += (shift / values.len() as f64) as f32 * scale;
        beta *= params.kappa;
    }
    best.1
}

/// `x^exponent` for `x >= 0` and an exponent of -1 to 0, to 4 digits, by operations that give the
/// same bits on every machine, which a library's `powf` does not; 0^exponent is large.
#[inline(always)]
fn power(x: f32, exponent: f32) -> f32 {
    let x = if x > 1e-9 { x } else { 1e-9 };
    exp2(log2(x) * exponent)
}

/// Binary logarithm of a positive normal number; error below 1e-4.
#[inline(always)]
fn log2(x: f32) -> f32 {
    let bits = x.to_bits();
    // Exponent and a mantissa in [2/3, 4/3).
    let shifted = bits.wrapping_sub(0x3F2A_AAAB) as i32;
    let exponent = shifted >> 23;
    let t = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32)) - 1.0;
    // ln(1 + t) = 2 atanh(t / (2 + t)), the series to its third term.
    let u = t / (2.0 + t);
    let uu = u * u;
    exponent as f32 + u * (2.885_39 + uu * (0.961_796_7 + uu * 0.577_078))
}

/// 2^y for y of -120 to 120; relative error below 1e-4.
#[inline(always)]
fn exp2(y: f32) -> f32 {
    let rounded = (y + 12_582_912.0) - 12_582_912.0;
    let t = y - rounded;
    let fraction = 1.0 + t * (LN_2 + t * (0.240_226_5 + t * (0.055_504_1 + t * 0.009_618_1)));
    f32::from_bits(fraction.to_bits().wrapping_add(((rounded as i32) << 23) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_close_to_the_library() {
        for exponent in [-1.0f32, -0.5, -0.3, 0.0] {
            for i in 1..4000 {
                let x = (i as f32 * 0.003).powi(3) + 1e-8;
                let (found, expected) =
                    (f64::from(power(x, exponent)), f64::from(x).powf(f64::from(exponent)));
                assert!((found / expected - 1.0).abs() < 2e-4, "{x}^{exponent}: {found} {expected}");
            }
        }
    }
}

//! Uniform codes of which every prefix is good: codes and the grids of all levels in turns.
//!
//! A level of b bits makes `(code_b - zero_b) * scale_b` of the first b bits of a code. Grids follow
//! from codes by least squares, codes from grids one weight at a time: the code of least error
//! summed over the levels, each level's error in units of what it is now. A step that lowers that
//! sum lowers the product of the levels' errors, so that no level is paid for with another's
//! decibels.

use super::{Coded, level};
use crate::encode::matrix::Matrix;
use crate::encode::params::NestedParams;
use crate::error::Result;
use cmf_format::encoding::nested::Map;
use rayon::prelude::*;

/// Prefixes that are kept while a code is chosen level by level.
const BEAM: usize = 4;
/// Ranges that are tried, in parts of the largest magnitude of a group.
const RANGES: [f32; 8] = [1.0, 0.85, 0.72, 0.61, 0.52, 0.44, 0.37, 0.31];
/// Rounds after which ranges are compared.
const TRIAL_ROUNDS: u32 = 2;
/// Rounds go on while they lower the mean of the errors' logarithms by so much.
const WORTHWHILE: f64 = 1e-3;

/// Encodes codes, and a scale and a zero point for each group and level.
pub(super) fn encode(matrix: &Matrix<'_>, params: &NestedParams) -> Result<Coded> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let group_cols = match params.group_cols as usize {
        0 => cols,
        group => group.min(cols),
    };
    let across = cols.div_ceil(group_cols);
    let mut codes = vec![0; rows * cols];
    let grids: Vec<Vec<Grid>> = codes
        .par_chunks_exact_mut(cols)
        .zip(matrix.values().par_chunks_exact(cols))
        .map(|(codes, values)| {
            let mut row = Vec::new();
            for (index, codes) in codes.chunks_mut(group_cols).enumerate() {
                let span = index * group_cols..index * group_cols + codes.len();
                let group = Group {
                    values: &values[span.clone()],
                    weights: matrix.weights().map(|weights| &weights[span]),
                    bits: &params.bits,
                };
                row.extend(group.encode(params, codes));
            }
            row
        })
        .collect();
    let mut levels = Vec::new();
    let count = params.bits.len();
    for (index, bits) in params.bits.iter().enumerate() {
        let of_level: Vec<&Grid> =
            grids.iter().flat_map(|row| row.iter().skip(index).step_by(count)).collect();
        let scales: Vec<f32> = of_level.iter().map(|grid| grid.scale).collect();
        let zeros: Vec<f32> = of_level.iter().map(|grid| grid.zero).collect();
        let scale = params.scale.pack("scale", &scales, rows, across)?;
        let zero = params.zero.pack("zero point", &zeros, rows, across)?;
        levels.push(level(*bits, Map::Integer, params.group_cols, vec![scale.node, zero.node]));
    }
    Ok(Coded { codes, levels })
}

/// What a level makes of its codes.
#[derive(Clone, Copy, Debug, Default)]
struct Grid {
    scale: f32,
    zero: f32,
}

impl Grid {
    fn value(&self, code: i32) -> f32 {
        (code as f32 - self.zero) * self.scale
    }
}

/// The weights that share their grids.
#[derive(Clone, Copy)]
struct Group<'a> {
    values: &'a [f32],
    weights: Option<&'a [f32]>,
    bits: &'a [u8],
}

/// Codes and grids with the mean logarithm of the levels' errors.
struct Trial {
    codes: Vec<u8>,
    grids: Vec<Grid>,
    errors: Vec<f64>,
    goodness: f64,
}

impl Group<'_> {
    /// Chooses codes, and gives the grid of each level.
    fn encode(&self, params: &NestedParams, codes: &mut [u8]) -> Vec<Grid> {
        let largest = self.values.iter().fold(0f32, |most, v| most.max(v.abs()));
        if largest == 0.0 {
            return vec![Grid::default(); self.bits.len()];
        }
        let mut best: Option<Trial> = None;
        for range in RANGES {
            let mut trial = self.begin(params, range * largest);
            for _ in 1..TRIAL_ROUNDS {
                trial = self.round(params, &trial);
            }
            if best.as_ref().is_none_or(|best| trial.goodness < best.goodness) {
                best = Some(trial);
            }
        }
        let Some(mut best) = best else { return vec![Grid::default(); self.bits.len()] };
        for _ in 0..params.iterations {
            let trial = self.round(params, &best);
            let gain = best.goodness - trial.goodness;
            if gain > 0.0 {
                best = trial;
            }
            if gain < WORTHWHILE {
                break;
            }
        }
        codes.copy_from_slice(&best.codes);
        best.grids
    }

    /// Uniform grids over `-range..range`, each level's in the middle of what its codes hold.
    fn begin(&self, params: &NestedParams, range: f32) -> Trial {
        let grids: Vec<Grid> = self
            .bits
            .iter()
            .map(|bits| {
                let count = (1u32 << bits) as f32;
                Grid { scale: 2.0 * range / count, zero: (count - 1.0) / 2.0 }
            })
            .collect();
        // Errors of uniform noise within the steps.
        let errors: Vec<f64> = grids.iter().map(|grid| f64::from(grid.scale).powi(2)).collect();
        let codes = self.codes(&grids, &errors);
        self.fitted(params, codes)
    }

    /// Codes for the grids of a trial, then grids for these codes.
    fn round(&self, params: &NestedParams, last: &Trial) -> Trial {
        self.fitted(params, self.codes(&last.grids, &last.errors))
    }

    /// Grids of least squares for codes, as they are stored, and their errors.
    fn fitted(&self, params: &NestedParams, codes: Vec<u8>) -> Trial {
        let highest = self.bits.last().copied().unwrap_or(0);
        let mut trial = Trial { codes, grids: Vec::new(), errors: Vec::new(), goodness: 0.0 };
        for bits in self.bits {
            let code = |code: u8| f64::from(code >> (highest - bits));
            let mut s = [0f64; 5];
            for (i, (value, own)) in self.values.iter().zip(&trial.codes).enumerate() {
                let (c, x, w) = (code(*own), f64::from(*value), self.weight(i));
                s[0] += w;
                s[1] += w * c;
                s[2] += w * x;
                s[3] += w * c * c;
                s[4] += w * c * x;
            }
            let [w, c, x, cc, cx] = s;
            let variance = cc * w - c * c;
            let scale = if variance > 1e-9 * cc * w { (cx * w - c * x) / variance } else { 0.0 };
            let mut scale = params.scale.round_scale(scale as f32);
            if scale == 0.0 {
                // All codes are the same; any scale does for the mean alone.
                scale = params.scale.round_scale((x / w).abs().max(1e-6) as f32);
            }
            let zero = c / w - x / w / f64::from(scale);
            let grid = Grid { scale, zero: params.zero.round(zero as f32) };
            let error: f64 = self
                .values
                .iter()
                .zip(&trial.codes)
                .enumerate()
                .map(|(i, (value, own))| {
                    let error = f64::from(value - grid.value(i32::from(own >> (highest - bits))));
                    self.weight(i) * error * error
                })
                .sum();
            trial.grids.push(grid);
            trial.errors.push(error / w);
        }
        let floor = 1e-12 * self.power();
        let logs: f64 = trial.errors.iter().map(|error| error.max(floor).ln()).sum();
        trial.goodness = logs / trial.errors.len().max(1) as f64;
        trial.errors.iter_mut().for_each(|error| *error = error.max(floor));
        trial
    }

    /// The mean square of the values.
    fn power(&self) -> f64 {
        let sum: f64 = self.values.iter().map(|v| f64::from(*v).powi(2)).sum();
        (sum / self.values.len().max(1) as f64).max(f64::MIN_POSITIVE)
    }

    /// A column of weight 0 counts for a little.
    fn weight(&self, index: usize) -> f64 {
        self.weights.map_or(1.0, |weights| f64::from(weights[index]).max(1e-30))
    }

    /// The code of each weight, of least error summed over the levels; `errors` are the units.
    fn codes(&self, grids: &[Grid], errors: &[f64]) -> Vec<u8> {
        let levels: Vec<(u8, Grid, f32)> = self
            .bits
            .iter()
            .zip(grids)
            .zip(errors)
            .map(|((bits, grid), error)| (*bits, *grid, (1.0 / error).min(f64::from(f32::MAX)) as f32))
            .collect();
        self.values.iter().map(|value| code(*value, &levels)).collect()
    }
}

/// The code of a value, level by level: of each kept prefix the two nearest continuations, and of
/// all of them the best few.
fn code(value: f32, levels: &[(u8, Grid, f32)]) -> u8 {
    let mut kept = [(0f32, 0i32); BEAM];
    let (mut count, mut bits_before) = (1, 0);
    for (bits, grid, unit) in levels {
        let shift = bits - bits_before;
        bits_before = *bits;
        let exact = value / grid.scale + grid.zero;
        let mut found = [(f32::INFINITY, 0i32); 2 * BEAM];
        let mut new = 0;
        for (error, prefix) in &kept[..count] {
            let (low, high) = (prefix << shift, ((prefix + 1) << shift) - 1);
            // Saturates, and takes NaN to 0, before it is brought within the prefix.
            let nearest = (exact.round() as i32).clamp(low, high);
            let second = if exact > nearest as f32 { nearest + 1 } else { nearest - 1 };
            for code in [nearest, second].into_iter().filter(|code| (low..=high).contains(code)) {
                let off = value - grid.value(code);
                found[new] = (error + off * off * unit, code);
                new += 1;
            }
        }
        found[..new].sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        count = new.min(BEAM);
        kept[..count].copy_from_slice(&found[..count]);
    }
    kept[0].1.clamp(0, 255) as u8
}

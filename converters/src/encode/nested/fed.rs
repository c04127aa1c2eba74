//! Nested codes chosen with error feedback for all levels at once: the grids stay as they were
//! fitted, the codes follow.
//!
//! Each level is a quantiser with errors of its own, and so has a target of its own for each weight:
//! the weight and what the level's errors in the columns before feed back (GPTQ, Frantar et al.
//! 2023). One code serves them all: that of the least sum over levels of squared distances from the
//! targets, each in units of the level's mean squared error before.

use super::super::feedback::Feedback;
use super::super::matrix::Matrix;
use super::Values;
use crate::error::Result;

/// Prefixes that are kept while a code is chosen level by level.
const BEAM: usize = 4;
/// Most continuations of the kept prefixes: of all bits at once, or of some after some.
const FOUND: usize = 256;

/// Chooses `codes`, `[rows, cols]`, again. `levels` are the bits of each level, ascending, and what
/// it makes of them.
///
/// # Errors
/// As [`Feedback::run`].
pub(super) fn choose(
    matrix: &Matrix<'_>,
    feedback: &Feedback,
    levels: &[(u8, Values)],
    codes: &mut [u8],
) -> Result<()> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let highest = levels.last().map_or(0, |(bits, _)| *bits);
    let units: Vec<f32> = levels
        .iter()
        .map(|(bits, values)| {
            let errors = matrix.values().iter().zip(&*codes).enumerate().map(|(k, (value, code))| {
                f64::from(value - values.of(k / cols, k % cols, code >> (highest - bits))).powi(2)
            });
            let mean = errors.sum::<f64>() / matrix.values().len() as f64;
            // A level without errors has no say that a finite number could state.
            (1.0 / mean.max(1e-30)) as f32
        })
        .collect();
    // Column-major; the levels of a row lie next to each other.
    let count = levels.len();
    let mut columns = vec![0.0; rows * cols * count];
    for (j, column) in columns.chunks_exact_mut(rows * count).enumerate() {
        for (i, own) in column.chunks_exact_mut(count).enumerate() {
            own.fill(matrix.values()[i * cols + j]);
        }
    }
    let mut found = Vec::with_capacity(FOUND);
    let mut kept = Vec::with_capacity(BEAM);
    feedback.run(&mut columns, rows * count, |column, targets, chosen| {
        for (i, (targets, chosen)) in
            targets.chunks_exact(count).zip(chosen.chunks_exact_mut(count)).enumerate()
        {
            kept.clear();
            kept.push((0.0f32, 0u8));
            let mut bits_before = 0;
            for (((bits, values), unit), target) in levels.iter().zip(&units).zip(targets) {
                let shift = bits - bits_before;
                bits_before = *bits;
                found.clear();
                for (error, prefix) in &kept {
                    for low in 0..1u16 << shift {
                        let code = (u16::from(*prefix) << shift | low) as u8;
                        let off = target - values.of(i, column, code);
                        found.push((error + off * off * unit, code));
                    }
                }
                found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                kept.clear();
                kept.extend(found.iter().take(BEAM));
            }
            let code = kept.first().map_or(0, |(_, code)| *code);
            codes[i * cols + column] = code;
            for ((bits, values), chosen) in levels.iter().zip(chosen) {
                *chosen = values.of(i, column, code >> (highest - bits));
            }
        }
        Ok(())
    })
}

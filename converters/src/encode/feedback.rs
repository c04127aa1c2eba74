//! Error feedback: columns are quantised one after the other, and each takes in what the errors of
//! the columns before it cost the product with the activations.
//!
//! With second moments H of the activations, the error E of a matrix costs tr(E H Eᵀ). For
//! H = R Rᵀ, R upper triangular in the order of quantising, that is |E R|², and column j of E R is
//! `r_jj (e_j + sum_i<j e_i r_ij / r_jj)`: quantising `w_j + sum_i<j e_i r_ij / r_jj` instead of
//! `w_j` makes each column's share as small as its quantiser can (GPTQ, Frantar et al. 2023; LDLQ,
//! Chee et al. 2023, section 3.1: the same procedure, Theorem 6).
//!
//! That is right when the quantiser reaches every target. One of few bits does not: its values have a
//! power, and what the feedback adds to a target beyond that is lost. So their power gets a price m, and
//! tr(E H Eᵀ) + m |W - E|² is what columns make small that are not yet quantised: with H + m I = R Rᵀ,
//! the target of column j becomes `w_j - m y_j / r_jj² + sum_i<j e_i r_ij / r_jj`, where
//! `y_i = w_i - sum_j>i y_j r_ij / r_ii`. Its own power is the quantiser's business: it sees the target
//! times `r_jj² / (r_jj² - m)`. For codes drawn at random from a normal source of k bits a weight, the
//! best m is where the mean of log2(1 + h / m) / 2 over the eigenvalues h of H is k (docs: quality).
//!
//! Sums run in a fixed order without fused operations: the same bytes on every machine.

use crate::error::{Error, Result};
use multiversion::multiversion;

/// Columns whose feedback from all columns before them is gathered in one pass.
const BLOCK: usize = 16;
/// Rows that a pass works on at a time.
const LANES: usize = 32;
/// Least damping: second moments of few tokens are singular.
const LEAST_DAMPING: f64 = 1e-3;

/// What is needed of the second moments to quantise with feedback.
#[derive(Debug)]
pub struct Feedback {
    /// Columns in the order of quantising.
    order: Vec<u32>,
    /// `r_ij / r_jj` for i < j: for each j its j factors.
    factors: Vec<f32>,
    /// What later columns are expected to do, in the order of quantising; nothing where power is free.
    outlook: Vec<Outlook>,
    /// How much the quantising noise of all columns raises the mean square of what a column's
    /// quantiser sees, per unit of noise.
    inflation: f32,
}

/// What a price of power changes in a column's target.
#[derive(Clone, Copy, Debug)]
struct Outlook {
    /// `m / r_jj²`: the share of what no later column can make up for that is given up.
    given_up: f32,
    /// `r_jj² / (r_jj² - m)`.
    factor: f32,
}

impl Feedback {
    /// Feedback for second moments `moments` `[cols, cols]`, symmetric, to whose diagonal `damping`
    /// times its mean is added. Strong damping spends some of the gain to keep the error small in
    /// all directions, which a later plane must encode. `power_cost` is what the square of each value
    /// that is chosen costs, in the same unit: it keeps targets within a quantiser's reach, and is the
    /// greater, the fewer bits that has.
    ///
    /// # Errors
    /// `BadArgument` when there are not `cols * cols` moments or they are no second moments.
    pub fn new(moments: &[f32], cols: usize, damping: f64, power_cost: f64) -> Result<Self> {
        if cols == 0 || cols.checked_mul(cols) != Some(moments.len()) {
            return Err(Error::bad_argument("second moments")
                .expected(format_args!("{cols} x {cols} values"))
                .found(moments.len()));
        }
        let diagonal: Vec<f64> = moments.iter().step_by(cols + 1).map(|h| f64::from(*h)).collect();
        let mean = diagonal.iter().sum::<f64>() / cols as f64;
        if !mean.is_finite() || diagonal.iter().any(|h| *h < 0.0) {
            return Err(Error::bad_argument("second moments").expected("a diagonal of finite numbers from 0"));
        }
        if !(power_cost >= 0.0 && power_cost.is_finite()) {
            return Err(Error::bad_argument("power_cost")
                .expected("a finite number from 0")
                .found(power_cost));
        }
        let price = mean * power_cost;
        let added = if mean > 0.0 { mean * damping.max(LEAST_DAMPING) + price } else { 1.0 };
        let mut order: Vec<u32> = (0..cols as u32).collect();
        // The columns that matter most first: the others make up for their errors.
        order.sort_by(|a, b| diagonal[*b as usize].total_cmp(&diagonal[*a as usize]).then(a.cmp(b)));
        // R of the order is the Cholesky factor of the reversed order, reversed.
        let mut lower = vec![0.0f64; cols * (cols + 1) / 2];
        for i in 0..cols {
            let row = order[cols - 1 - i] as usize * cols;
            for j in 0..=i {
                let h = f64::from(moments[row + order[cols - 1 - j] as usize]);
                lower[i * (i + 1) / 2 + j] = if i == j { h + added } else { h };
            }
        }
        if !cholesky(&mut lower, cols) {
            return Err(Error::bad_argument("second moments").expected("a positive semidefinite matrix"));
        }
        let mut factors = Vec::with_capacity(cols * (cols - 1) / 2);
        let mut outlook = Vec::new();
        for j in 0..cols {
            let b = cols - 1 - j;
            let pivot = lower[b * (b + 1) / 2 + b];
            factors.extend((0..j).map(|i| {
                let a = cols - 1 - i;
                (lower[a * (a + 1) / 2 + b] / pivot) as f32
            }));
            if price > 0.0 {
                let square = pivot * pivot;
                outlook.push(Outlook {
                    given_up: (price / square) as f32,
                    factor: (square / (square - price)) as f32,
                });
            }
        }
        let mut feedback = Self { order, factors, outlook, inflation: 0.0 };
        if feedback.power_is_free() {
            feedback.inflation = feedback.measure_inflation()?;
        }
        Ok(feedback)
    }

    /// Whether what is chosen may have any power.
    pub fn power_is_free(&self) -> bool {
        self.outlook.is_empty()
    }

    /// By how much feedback raises the mean square of what a quantiser sees, per unit of the mean
    /// square of its own errors, where power is free.
    pub fn inflation(&self) -> f32 {
        self.inflation
    }

    /// Sends fixed noise of unit mean square through the recursion.
    fn measure_inflation(&self) -> Result<f32> {
        let cols = self.order.len();
        let mut random = super::random::SplitMix64::new(1);
        let mut matrix = vec![0.0; cols * LANES];
        let mut sum = 0.0f64;
        self.run(&mut matrix, LANES, |_, targets, values| {
            for (target, value) in targets.iter().zip(values) {
                sum += f64::from(target * target);
                // The error is uniform with mean square 1.
                *value = target - ((random.unit() - 0.5) * 12f64.sqrt()) as f32;
            }
            Ok(())
        })?;
        Ok((sum / (cols * LANES) as f64) as f32)
    }

    /// The ratio of the mean square of what a quantiser sees to that of `matrix`, column-major with
    /// `rows` rows, where the quantiser leaves the share `distortion` of it: from some rows, with noise
    /// in the place of a quantiser.
    ///
    /// # Errors
    /// As [`Feedback::run`].
    pub fn gain(&self, matrix: &[f32], rows: usize, distortion: f32) -> Result<f32> {
        let power = |values: &[f32]| values.iter().map(|v| f64::from(v * v)).sum::<f64>();
        let count = rows.min(LANES);
        let mut sample: Vec<f32> = matrix
            .chunks_exact(rows.max(1))
            .flat_map(|column| (0..count).map(|i| column[i * rows / count]))
            .collect();
        let source = power(&sample);
        let mut random = super::random::SplitMix64::new(1);
        let mut seen = 0.0;
        self.run(&mut sample, count, |_, targets, values| {
            let own = power(targets);
            seen += own;
            // The best quantiser's error is uncorrelated with its values.
            let noise = (12.0 * f64::from(distortion * (1.0 - distortion)) * own / count as f64).sqrt();
            for (target, value) in targets.iter().zip(values) {
                *value = (1.0 - distortion) * target + (noise * (random.unit() - 0.5)) as f32;
            }
            Ok(())
        })?;
        Ok(if source > 0.0 { (seen / source) as f32 } else { 1.0 })
    }

    /// Quantises `matrix`, column-major with `rows` rows, and leaves its errors in its place.
    ///
    /// `quantise` is called for each column, in the order of quantising, with its index and what is
    /// to be encoded, and gives the values that stand for it.
    ///
    /// # Errors
    /// `BadArgument` when the matrix has another number of columns; what `quantise` gives.
    pub fn run(
        &self,
        matrix: &mut [f32],
        rows: usize,
        mut quantise: impl FnMut(usize, &[f32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let cols = self.order.len();
        if rows.checked_mul(cols) != Some(matrix.len()) {
            return Err(Error::bad_argument("matrix")
                .expected(format_args!("{rows} x {cols} values"))
                .found(matrix.len()));
        }
        if rows == 0 {
            return Ok(());
        }
        let alone = self.alone(matrix, rows);
        // Errors in the order of quantising.
        let mut errors: Vec<f32> = Vec::with_capacity(matrix.len());
        let mut gathered = vec![0.0; BLOCK * rows];
        let (mut targets, mut values) = (vec![0.0; rows], vec![0.0; rows]);
        for start in (0..cols).step_by(BLOCK) {
            let end = (start + BLOCK).min(cols);
            gathered.fill(0.0);
            gather(&errors, rows, &self.factors, start, end, &mut gathered);
            for j in start..end {
                let column = self.order[j] as usize;
                let own = &mut matrix[column * rows..][..rows];
                let before = &gathered[(j - start) * rows..][..rows];
                targets.iter_mut().zip(&*own).zip(before).for_each(|((t, w), g)| *t = w + g);
                let factors = &self.factors[j * j.saturating_sub(1) / 2..][..j];
                for (error, factor) in errors[start * rows..].chunks_exact(rows).zip(&factors[start..]) {
                    targets.iter_mut().zip(error).for_each(|(t, e)| *t += e * factor);
                }
                if let (Some(outlook), Some(alone)) = (self.outlook.get(j), alone.get(j * rows..)) {
                    let Outlook { given_up, factor } = *outlook;
                    targets.iter_mut().zip(alone).for_each(|(t, y)| *t = (*t - given_up * y) * factor);
                }
                quantise(column, &targets, &mut values)?;
                own.iter_mut().zip(&values).for_each(|(w, v)| *w -= v);
                errors.extend_from_slice(own);
            }
        }
        Ok(())
    }

    /// Of each column, in the order of quantising, what no later column makes up for: `y` of the
    /// module's head. Nothing where power is free.
    fn alone(&self, matrix: &[f32], rows: usize) -> Vec<f32> {
        if self.power_is_free() {
            return Vec::new();
        }
        let column = |of: &u32| &matrix[*of as usize * rows..][..rows];
        let mut columns: Vec<f32> = self.order.iter().flat_map(column).copied().collect();
        let cols = self.order.len();
        for start in (0..cols).step_by(BLOCK).rev() {
            let end = (start + BLOCK).min(cols);
            for j in (start..end).rev() {
                let (before, own) = columns.split_at_mut(j * rows);
                let factors = &self.factors[j * j.saturating_sub(1) / 2..][..j];
                for (to, factor) in before[start * rows..].chunks_exact_mut(rows).zip(&factors[start..]) {
                    to.iter_mut().zip(&*own).for_each(|(to, y)| *to -= y * factor);
                }
            }
            scatter(&mut columns, rows, &self.factors, start, end);
        }
        columns
    }
}

/// Subtracts from each of the columns before `start`, in the order of quantising, what the columns
/// `start..end` make up for.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn scatter(columns: &mut [f32], rows: usize, factors: &[f32], start: usize, end: usize) {
    /// Columns in work at a time.
    const TILE: usize = 4;
    let (before, block) = columns.split_at_mut(start * rows);
    let factors_of = |j: usize| &factors[j * j.saturating_sub(1) / 2..][..start];
    for (columns, i) in before.chunks_mut(TILE * rows).zip((0..).step_by(TILE)) {
        let tile = columns.len() / rows;
        for first in (0..rows).step_by(LANES) {
            let lanes = (rows - first).min(LANES);
            let mut sums = [[0.0f32; LANES]; TILE];
            for (own, j) in block.chunks_exact(rows).zip(start..end) {
                let mut of = [0.0; TILE];
                of[..tile].copy_from_slice(&factors_of(j)[i..i + tile]);
                match own[first..].first_chunk::<LANES>() {
                    Some(own) => {
                        for (sums, factor) in sums.iter_mut().zip(of) {
                            for (sum, y) in sums.iter_mut().zip(own) {
                                *sum += y * factor;
                            }
                        }
                    }
                    None => {
                        for (sums, factor) in sums.iter_mut().zip(of) {
                            for (sum, y) in sums.iter_mut().zip(&own[first..]) {
                                *sum += y * factor;
                            }
                        }
                    }
                }
            }
            for (column, sums) in columns.chunks_exact_mut(rows).zip(&sums) {
                column[first..first + lanes].iter_mut().zip(sums).for_each(|(to, sum)| *to -= sum);
            }
        }
    }
}

/// Adds to each of the columns `start..end` what the errors of the columns before `start` feed back.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn gather(errors: &[f32], rows: usize, factors: &[f32], start: usize, end: usize, out: &mut [f32]) {
    /// Columns in work at a time.
    const TILE: usize = 4;
    for first in (0..rows).step_by(LANES) {
        let lanes = (rows - first).min(LANES);
        for j in (start..end).step_by(TILE) {
            let tile = (end - j).min(TILE);
            let mut sums = [[0.0f32; LANES]; TILE];
            let of: [&[f32]; TILE] = core::array::from_fn(|t| {
                let j = (j + t).min(end - 1);
                &factors[j * j.saturating_sub(1) / 2..][..start]
            });
            if lanes == LANES {
                for (i, error) in errors.chunks_exact(rows).enumerate().take(start) {
                    let error: &[f32; LANES] = match error[first..].first_chunk() {
                        Some(error) => error,
                        None => continue,
                    };
                    for (sums, of) in sums.iter_mut().zip(of) {
                        let factor = of[i];
                        for (sum, error) in sums.iter_mut().zip(error) {
                            *sum += error * factor;
                        }
                    }
                }
            } else {
                for (i, error) in errors.chunks_exact(rows).enumerate().take(start) {
                    for (sums, of) in sums.iter_mut().zip(of) {
                        let factor = of[i];
                        for (sum, error) in sums.iter_mut().zip(&error[first..first + lanes]) {
                            *sum += error * factor;
                        }
                    }
                }
            }
            for (t, sums) in sums.iter().take(tile).enumerate() {
                let out = &mut out[(j - start + t) * rows + first..][..lanes];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            }
        }
    }
}

/// The Cholesky factor of a symmetric matrix, in place; both packed by rows. False when the matrix
/// is not positive definite.
fn cholesky(lower: &mut [f64], size: usize) -> bool {
    for i in 0..size {
        let (done, row) = lower.split_at_mut(i * (i + 1) / 2);
        let row = &mut row[..=i];
        let mut at = 0;
        for j in 0..i {
            let other = &done[at..=at + j];
            at += j + 1;
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let pivot = row[i] - dot(&row[..i], &row[..i]);
        if pivot.is_nan() || pivot <= 0.0 {
            return false;
        }
        row[i] = pivot.sqrt();
    }
    true
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0f64; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// The cost tr(E H Eᵀ) of errors `[rows, cols]`, row-major, under second moments `[cols, cols]`.
pub fn cost(errors: &[f32], moments: &[f32], cols: usize) -> f64 {
    let mut product = vec![0.0f32; cols];
    let mut sum = 0.0;
    for row in errors.chunks_exact(cols.max(1)) {
        product.fill(0.0);
        multiply(row, moments, &mut product);
        sum += row.iter().zip(&product).map(|(e, p)| f64::from(e * p)).sum::<f64>();
    }
    sum
}

/// Adds row * matrix to `out`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn multiply(row: &[f32], matrix: &[f32], out: &mut [f32]) {
    let cols = out.len();
    let mut rows = row.chunks_exact(4).zip(matrix.chunks_exact(4 * cols));
    for (e, m) in &mut rows {
        let (m0, m) = m.split_at(cols);
        let (m1, m) = m.split_at(cols);
        let (m2, m3) = m.split_at(cols);
        for ((((out, m0), m1), m2), m3) in out.iter_mut().zip(m0).zip(m1).zip(m2).zip(m3) {
            *out += (e[0] * m0 + e[1] * m1) + (e[2] * m2 + e[3] * m3);
        }
    }
    let done = row.len() / 4 * 4;
    for (e, m) in row[done..].iter().zip(matrix[done * cols..].chunks_exact(cols)) {
        out.iter_mut().zip(m).for_each(|(out, m)| *out += e * m);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::random::SplitMix64;

    /// Second moments of activations that share a direction.
    fn moments(cols: usize) -> Vec<f32> {
        let mut random = SplitMix64::new(5);
        let mut sum = vec![0.0f32; cols * cols];
        for _ in 0..3 * cols {
            let shared = random.unit() as f32 * 3.0;
            let x: Vec<f32> = (0..cols).map(|_| random.unit() as f32 - 0.5 + shared).collect();
            for (row, a) in sum.chunks_exact_mut(cols).zip(&x) {
                row.iter_mut().zip(&x).for_each(|(h, b)| *h += a * b / (3 * cols) as f32);
            }
        }
        sum
    }

    fn rounded(_: usize, targets: &[f32], values: &mut [f32]) -> Result<()> {
        values.iter_mut().zip(targets).for_each(|(v, t)| *v = t.round());
        Ok(())
    }

    fn row_major(columns: &[f32], rows: usize) -> Vec<f32> {
        let cols = columns.len() / rows;
        (0..rows).flat_map(|i| (0..cols).map(move |j| columns[j * rows + i])).collect()
    }

    #[test]
    fn feedback_lowers_the_cost() -> Result<()> {
        let (rows, cols) = (45, 37);
        let moments = moments(cols);
        let mut random = SplitMix64::new(9);
        let matrix: Vec<f32> = (0..rows * cols).map(|_| (random.unit() as f32 - 0.5) * 8.0).collect();
        let plain: Vec<f32> = matrix.iter().map(|w| w - w.round()).collect();
        let mut errors = matrix.clone();
        Feedback::new(&moments, cols, 0.01, 0.0)?.run(&mut errors, rows, rounded)?;
        let (with, without) =
            (cost(&row_major(&errors, rows), &moments, cols), cost(&row_major(&plain, rows), &moments, cols));
        assert!(with < without / 2.0, "{with} {without}");
        // What is left is the matrix less values that the quantiser gave.
        assert!(errors.iter().zip(&matrix).all(|(e, w)| ((w - e) - (w - e).round()).abs() < 1e-5));
        Ok(())
    }

    #[test]
    fn follows_the_definition() -> Result<()> {
        let (rows, cols) = (3, 40);
        let moments = moments(cols);
        let feedback = Feedback::new(&moments, cols, 0.05, 0.0)?;
        let mut random = SplitMix64::new(2);
        let matrix: Vec<f32> = (0..rows * cols).map(|_| (random.unit() as f32 - 0.5) * 8.0).collect();
        let mut errors = matrix.clone();
        feedback.run(&mut errors, rows, rounded)?;
        for i in 0..rows {
            for j in 0..cols {
                let column = feedback.order[j] as usize * rows + i;
                let factors = &feedback.factors[j * j.saturating_sub(1) / 2..][..j];
                let fed: f32 = factors
                    .iter()
                    .zip(&feedback.order)
                    .map(|(f, before)| f * errors[*before as usize * rows + i])
                    .sum();
                let expected = (matrix[column] + fed).round();
                assert!((matrix[column] - errors[column] - expected).abs() < 1e-4);
            }
        }
        Ok(())
    }

    #[test]
    fn without_correlation_there_is_nothing_to_feed_back() -> Result<()> {
        let cols = 20;
        let unit: Vec<f32> = (0..cols * cols).map(|i| if i % (cols + 1) == 0 { 2.0 } else { 0.0 }).collect();
        let feedback = Feedback::new(&unit, cols, 0.0, 0.0)?;
        assert!(feedback.factors.iter().all(|f| *f == 0.0));
        assert!(feedback.inflation() == 0.0);
        let matrix: Vec<f32> = (0..7 * cols).map(|i| (i % 5) as f32).collect();
        assert!((feedback.gain(&matrix, 7, 0.3)? - 1.0).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn values_that_cost_power_are_those_of_least_cost() -> Result<()> {
        let (rows, cols, damping, power_cost) = (37, 40, 0.05, 0.3);
        let moments = moments(cols);
        let feedback = Feedback::new(&moments, cols, damping, power_cost)?;
        let mut random = SplitMix64::new(2);
        let matrix: Vec<f32> = (0..rows * cols).map(|_| (random.unit() as f32 - 0.5) * 8.0).collect();
        let mut errors = matrix.clone();
        let mut column = 0;
        // Values of any size: each column takes its target, whose own power is not free here.
        feedback.run(&mut errors, rows, |_, targets, values| {
            let factor = feedback.outlook[column].factor;
            values.iter_mut().zip(targets).for_each(|(v, t)| *v = t / factor);
            column += 1;
            Ok(())
        })?;
        // The gradient of tr(E (H + d I) E^T) + m |W - E|^2 is nothing.
        let mean = moments.iter().step_by(cols + 1).sum::<f32>() / cols as f32;
        for i in 0..rows {
            for j in 0..cols {
                let of = |k: usize| errors[k * rows + i];
                let product: f32 = (0..cols).map(|k| of(k) * moments[k * cols + j]).sum();
                let kept = matrix[j * rows + i] - of(j);
                let gradient = product + mean * (damping as f32 * of(j) - power_cost as f32 * kept);
                assert!(gradient.abs() < 1e-3 * mean, "row {i}, column {j}: {gradient}");
            }
        }
        Ok(())
    }

    #[test]
    fn gain_is_what_a_quantiser_sees() -> Result<()> {
        let (rows, cols) = (100, 37);
        let moments = moments(cols);
        let mut random = SplitMix64::new(9);
        let matrix: Vec<f32> =
            (0..rows * cols).map(|_| (random.unit() as f32 - 0.5) * 12f32.sqrt()).collect();
        for power_cost in [0.0, 0.3] {
            let feedback = Feedback::new(&moments, cols, 0.1, power_cost)?;
            // Two values for a uniform source: a quarter of its power is left.
            let gain = feedback.gain(&matrix, rows, 0.25)?;
            let mut seen = 0.0;
            feedback.run(&mut matrix.clone(), rows, |_, targets, values| {
                seen += targets.iter().map(|t| t * t).sum::<f32>() / (rows * cols) as f32;
                values.iter_mut().zip(targets).for_each(|(v, t)| *v = t.signum() * 0.866 * gain.sqrt());
                Ok(())
            })?;
            assert!((gain / seen - 1.0).abs() < 0.1, "{gain} {seen}");
        }
        Ok(())
    }

    #[test]
    fn rejects_what_is_no_matrix_of_second_moments() {
        assert!(Feedback::new(&[1.0; 5], 2, 0.0, 0.0).is_err());
        assert!(Feedback::new(&[1.0, 9.0, 9.0, 1.0], 2, 0.0, 0.0).is_err());
        assert!(Feedback::new(&[f32::NAN; 4], 2, 0.0, 0.0).is_err());
        assert!(Feedback::new(&[1.0, 0.0, 0.0, 1.0], 2, 0.0, f64::INFINITY).is_err());
    }
}

//! Tables for each row and level: clusters of the row's weights that split in two from level to
//! level.
//!
//! Park et al., "Any-Precision LLM" (arXiv:2402.10517), section 3.2: weighted k-means at the lowest
//! precision (there that of SqueezeLLM), then every cluster is split by weighted 2-means. In one
//! dimension clusters are ranges of the sorted weights, so that both steps are exact here.

use super::{Coded, level};
use crate::encode::matrix::Matrix;
use crate::encode::params::NestedParams;
use crate::error::Result;
use cmf_format::encoding::nested::Map;
use rayon::prelude::*;

/// Encodes codes and one table a level.
pub(super) fn encode(matrix: &Matrix<'_>, params: &NestedParams) -> Result<Coded> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut codes = vec![0; rows * cols];
    let tables: Vec<Vec<Vec<f32>>> = codes
        .par_chunks_exact_mut(cols)
        .zip(matrix.values().par_chunks_exact(cols))
        .map(|(codes, values)| Row::new(values, matrix.weights()).encode(&params.bits, codes))
        .collect();
    let mut levels = Vec::new();
    for (index, bits) in params.bits.iter().enumerate() {
        let table: Vec<f32> =
            tables.iter().filter_map(|levels| levels.get(index)).flatten().copied().collect();
        let stored = params.table.pack("table", &table, rows, 1 << bits)?;
        levels.push(level(*bits, Map::Table, 0, vec![stored.node]));
    }
    Ok(Coded { codes, levels })
}

/// A row's weights in ascending order, with sums over their prefixes.
struct Row {
    /// Column of each.
    order: Vec<usize>,
    /// Sums of weight, weight times value and weight times its square before each.
    sums: Vec<[f64; 3]>,
}

impl Row {
    fn new(values: &[f32], weights: Option<&[f32]>) -> Self {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| values[*a].total_cmp(&values[*b]).then(a.cmp(b)));
        // Columns of weight 0 still get the nearest cluster's code, and clusters of such columns
        // alone a mean.
        let greatest = weights.map_or(0.0, |w| w.iter().copied().fold(0.0, f32::max));
        let least = if greatest > 0.0 { f64::from(greatest) * 1e-9 } else { 1.0 };
        let mut sums = Vec::with_capacity(order.len() + 1);
        let mut sum = [0.0; 3];
        sums.push(sum);
        for col in &order {
            let (value, weight) =
                (f64::from(values[*col]), weights.map_or(1.0, |w| f64::from(w[*col]).max(least)));
            sum = [sum[0] + weight, sum[1] + weight * value, sum[2] + weight * value * value];
            sums.push(sum);
        }
        Self { order, sums }
    }

    /// Codes of the row, and the table of each level.
    fn encode(&self, bits: &[u8], codes: &mut [u8]) -> Vec<Vec<f32>> {
        let mut tables = Vec::new();
        let (seed, highest) = match bits {
            [seed, ..] => (*seed, bits[bits.len() - 1]),
            [] => return tables,
        };
        let mut ends = self.clusters(1 << seed);
        for count in seed..=highest {
            if count > seed {
                ends = self.split(&ends);
            }
            if bits.contains(&count) {
                tables.push(self.means(&ends));
            }
        }
        let mut start = 0;
        for (code, end) in ends.iter().enumerate() {
            self.order[start..*end].iter().for_each(|col| codes[*col] = code as u8);
            start = *end;
        }
        tables
    }

    /// Weighted squared error of values `from..to` around their mean.
    fn error(&self, from: usize, to: usize) -> f64 {
        let [w, x, xx] = self.between(from, to);
        if w > 0.0 { (xx - x * x / w).max(0.0) } else { 0.0 }
    }

    fn between(&self, from: usize, to: usize) -> [f64; 3] {
        let (a, b) = (self.sums[from], self.sums[to]);
        [b[0] - a[0], b[1] - a[1], b[2] - a[2]]
    }

    /// Ends of the `count` clusters of least error, by dynamic programming over their number; the
    /// best last cluster begins later for later ends, which halves the choices from end to end.
    fn clusters(&self, count: usize) -> Vec<usize> {
        let n = self.order.len();
        let mut errors: Vec<f64> = (0..=n).map(|to| self.error(0, to)).collect();
        // Where the last of so many clusters begins, for each end.
        let mut starts: Vec<Vec<u32>> = vec![vec![0; n + 1]];
        for _ in 1..count {
            let mut step =
                Step { row: self, before: &errors, errors: vec![0.0; n + 1], starts: vec![0; n + 1] };
            step.solve((0, n), (0, n));
            starts.push(step.starts);
            errors = step.errors;
        }
        let mut ends = vec![n; count];
        for k in (1..count).rev() {
            ends[k - 1] = starts[k][ends[k]] as usize;
        }
        ends
    }

    /// Splits every cluster in the two of least error; the second of a cluster of one is empty.
    fn split(&self, ends: &[usize]) -> Vec<usize> {
        let mut split = Vec::with_capacity(2 * ends.len());
        let mut start = 0;
        for end in ends {
            let mut best = (self.error(start, *end), *end);
            for middle in start + 1..*end {
                let error = self.error(start, middle) + self.error(middle, *end);
                if error < best.0 {
                    best = (error, middle);
                }
            }
            split.extend([best.1, *end]);
            start = *end;
        }
        split
    }

    /// The mean of each cluster; that of an empty one is the mean of the cluster before it.
    fn means(&self, ends: &[usize]) -> Vec<f32> {
        let (mut start, mut last) = (0, 0.0);
        ends.iter()
            .map(|end| {
                let [w, x, _] = self.between(start, *end);
                if w > 0.0 {
                    last = x / w;
                }
                start = *end;
                last as f32
            })
            .collect()
    }
}

/// One more cluster for every end.
struct Step<'r> {
    row: &'r Row,
    /// Least errors with one cluster fewer.
    before: &'r [f64],
    errors: Vec<f64>,
    starts: Vec<u32>,
}

impl Step<'_> {
    /// Solves for ends `ends.0..=ends.1`, whose last clusters begin within `starts`.
    fn solve(&mut self, ends: (usize, usize), starts: (usize, usize)) {
        let end = ends.0 + (ends.1 - ends.0) / 2;
        let mut best = (f64::INFINITY, starts.0);
        for start in starts.0..=starts.1.min(end) {
            let error = self.before[start] + self.row.error(start, end);
            if error < best.0 {
                best = (error, start);
            }
        }
        (self.errors[end], self.starts[end]) = (best.0, best.1 as u32);
        if end > ends.0 {
            self.solve((ends.0, end - 1), (starts.0, best.1));
        }
        if end < ends.1 {
            self.solve((end + 1, ends.1), (best.1, starts.1));
        }
    }
}

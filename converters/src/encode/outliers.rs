//! Outliers: the few values that a term of its own keeps, so that the rest is easier to quantise.

use super::grid::Grid;
use super::levels::{LevelSet, Levels, with_levels};
use super::matrix::Matrix;
use super::params::{Select, SparseLayout, SparseOp, SparseParams, Store};
use super::rule::Rule;
use super::vectors::{Group, squared_error};
use super::{GroupedParams, format_error, node_shape};
use crate::error::{Error, Result};
use cmf_format::NodeData;
use cmf_format::encoding::sparse::{self, Block, Positions};
use rayon::prelude::*;

/// Largest group that is searched for outliers by error: the search is quadratic.
const MAX_GROUP: usize = 1 << 14;

/// Positions and values of the entries of a sparse matrix, row by row (CSR).
#[derive(Clone, Debug, PartialEq)]
pub struct Outliers {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_offsets: Vec<u32>,
    pub(super) columns: Vec<u32>,
    pub(super) values: Vec<f32>,
}

impl Outliers {
    /// The entries at ascending row-major `indices`.
    fn at(matrix: &Matrix<'_>, indices: &[usize]) -> Result<Self> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        if u32::try_from(indices.len()).is_err() || u32::try_from(cols).is_err() {
            return Err(Error::unsupported("outliers")
                .expected("fewer than 2^32 entries and columns")
                .found(indices.len()));
        }
        let mut row_offsets = Vec::with_capacity(rows + 1);
        let mut end = 0;
        row_offsets.push(0);
        for row in 0..rows {
            end += indices[end..].partition_point(|index| *index < (row + 1) * cols);
            row_offsets.push(end as u32);
        }
        Ok(Self {
            rows,
            cols,
            row_offsets,
            columns: indices.iter().map(|index| (index % cols) as u32).collect(),
            values: indices.iter().map(|index| matrix.values()[*index]).collect(),
        })
    }

    /// First entry of each row, and the number of entries at the end.
    pub fn row_offsets(&self) -> &[u32] {
        &self.row_offsets
    }

    /// Column of each entry, ascending within a row.
    pub fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// Value of each entry.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Row-major index of each entry, ascending.
    pub fn indices(&self) -> impl Iterator<Item = usize> {
        self.row_offsets.windows(2).enumerate().flat_map(move |(row, ends)| {
            self.columns[ends[0] as usize..ends[1] as usize]
                .iter()
                .map(move |col| row * self.cols + *col as usize)
        })
    }

    /// The matrix with 0 in place of each entry.
    pub fn removed(&self, matrix: &Matrix<'_>) -> Vec<f32> {
        let mut rest = matrix.values().to_vec();
        self.indices().for_each(|index| rest[index] = 0.0);
        rest
    }

    /// The matrix with the mean of what remains of its group in place of each entry, so that the
    /// entry does not widen its group's range, whatever the zero point.
    pub(super) fn replaced_by_mean(&self, matrix: &Matrix<'_>, group_rows: u32, group_cols: u32) -> Vec<f32> {
        let grid = Grid::new(self.rows, self.cols, group_rows, group_cols);
        let mut outlying = vec![0u32; grid.groups()];
        let group_of = |index: usize| {
            (index / self.cols / grid.group_rows) * grid.across + index % self.cols / grid.group_cols
        };
        self.indices().for_each(|index| outlying[group_of(index)] += 1);
        let rest = self.removed(matrix);
        let mut means = vec![0f32; grid.groups()];
        let mut buffer = Vec::new();
        for (group, mean) in means.iter_mut().enumerate().filter(|(group, _)| outlying[*group] > 0) {
            let values = grid.group(&rest, group / grid.across, group % grid.across, &mut buffer);
            let sum: f64 = values.iter().copied().map(f64::from).sum();
            let count = values.len() - outlying[group] as usize;
            *mean = if count == 0 { 0.0 } else { (sum / count as f64) as f32 };
        }
        let mut filled = rest;
        self.indices().for_each(|index| filled[index] = means[group_of(index)]);
        filled
    }
}

/// The entries that `select` names. `base` is the term whose error [`Select::Error`] means.
///
/// Ties go to the entry that comes first in row-major order.
///
/// # Errors
/// `BadArgument` for a fraction outside 0 to 1 or for errors of no `grouped` term, `Unsupported` for
/// errors of very large groups.
pub fn outliers(matrix: &Matrix<'_>, select: &Select, base: Option<&GroupedParams>) -> Result<Outliers> {
    let indices = match *select {
        Select::Fraction(fraction) => largest(matrix, share(matrix, fraction)?),
        Select::Sigmas(sigmas) => beyond(matrix, sigmas)?,
        Select::Error(fraction) => {
            let base = base.ok_or_else(|| {
                Error::bad_argument("select").expected("a `grouped` term before outliers by its error")
            })?;
            costliest(matrix, share(matrix, fraction)?, base)?
        }
        Select::Nonzero => {
            let values = matrix.values().iter().enumerate();
            values.filter(|(_, v)| **v != 0.0).map(|(index, _)| index).collect()
        }
    };
    Outliers::at(matrix, &indices)
}

/// Number of entries that a fraction stands for.
fn share(matrix: &Matrix<'_>, fraction: f64) -> Result<usize> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(Error::bad_argument("select").expected("a fraction of 0 to 1").found(fraction));
    }
    Ok((fraction * matrix.values().len() as f64).round() as usize)
}

/// The `count` entries of largest magnitude, by a radix search for the least of them.
fn largest(matrix: &Matrix<'_>, count: usize) -> Vec<usize> {
    const LOW_BITS: u32 = 15;
    let key = |value: f32| value.to_bits() & 0x7FFF_FFFF;
    if count == 0 {
        return Vec::new();
    }
    let mut high = vec![0usize; 1 << 16];
    matrix.values().iter().for_each(|v| high[(key(*v) >> LOW_BITS) as usize] += 1);
    let (bucket, above) = cut(&high, count);
    let mut low = vec![0usize; 1 << LOW_BITS];
    for key in matrix.values().iter().map(|v| key(*v)) {
        if (key >> LOW_BITS) as usize == bucket {
            low[(key & ((1 << LOW_BITS) - 1)) as usize] += 1;
        }
    }
    let (rest, above_in_bucket) = cut(&low, count - above);
    let least = (bucket as u32) << LOW_BITS | rest as u32;
    let mut ties = count - above - above_in_bucket;
    let mut taken = Vec::with_capacity(count);
    for (index, key) in matrix.values().iter().map(|v| key(*v)).enumerate() {
        if key > least {
            taken.push(index);
        } else if key == least && ties > 0 {
            ties -= 1;
            taken.push(index);
        }
    }
    taken
}

/// The highest bin from which `count` are at or above it, and the number above it.
fn cut(histogram: &[usize], count: usize) -> (usize, usize) {
    let mut above = 0;
    for (bin, entries) in histogram.iter().enumerate().rev() {
        if above + entries >= count {
            return (bin, above);
        }
        above += entries;
    }
    (0, above)
}

/// Entries further from the mean than so many standard deviations.
fn beyond(matrix: &Matrix<'_>, sigmas: f64) -> Result<Vec<usize>> {
    if !(sigmas >= 0.0 && sigmas.is_finite()) {
        return Err(Error::bad_argument("select").expected("0 or more sigmas").found(sigmas));
    }
    let values = || matrix.values().iter().copied().map(f64::from);
    let count = matrix.values().len().max(1) as f64;
    let mean = values().sum::<f64>() / count;
    let variance = values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
    let limit = sigmas * variance.sqrt();
    Ok(values().enumerate().filter(|(_, v)| (v - mean).abs() > limit).map(|(index, _)| index).collect())
}

/// What removing an entry, after those of the same group with a lower `step`, gains.
#[derive(Clone, Copy, Debug)]
struct Removal {
    gain: f64,
    step: u32,
    index: usize,
}

/// The `count` entries whose removal lowers the (weighted) squared error of round to nearest most,
/// in the manner of SpQR (Dettmers et al. 2023): an entry may gain by its own error or by the range
/// that its group no longer needs.
fn costliest(matrix: &Matrix<'_>, count: usize, base: &GroupedParams) -> Result<Vec<usize>> {
    let levels = LevelSet::new(base)?;
    let rule = Rule::new(base, &levels)?;
    let grid = Grid::new(matrix.rows(), matrix.cols(), base.group_rows, base.group_cols);
    if grid.group_rows * grid.group_cols > MAX_GROUP {
        return Err(Error::unsupported("outliers by error")
            .expected(format_args!("groups of at most {MAX_GROUP} elements"))
            .found(grid.group_rows * grid.group_cols));
    }
    let removals: Vec<Vec<Removal>> = (0..grid.down)
        .into_par_iter()
        .map_init(Default::default, |buffers: &mut (Vec<f32>, Vec<f32>), i| {
            let mut all = Vec::new();
            for j in 0..grid.across {
                let mut members = Members {
                    values: grid.group(matrix.values(), i, j, &mut buffers.0).to_vec(),
                    weights: matrix.weights().map(|w| grid.weights(w, i, j, &mut buffers.1).to_vec()),
                    indices: grid
                        .band(i)
                        .flat_map(|row| grid.span(j).map(move |col| row * matrix.cols() + col))
                        .collect(),
                };
                // Eight times a group's fair share, so that bad groups can take from good ones.
                let most =
                    (8.0 * count as f64 / matrix.values().len() as f64 * members.values.len() as f64).ceil();
                with_levels!(&levels.kind, levels =>
                    members.removals(levels, &rule, most as usize, &mut all));
            }
            all
        })
        .collect();
    let mut removals = removals.concat();
    removals.retain(|removal| removal.gain > 0.0);
    removals.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.step.cmp(&b.step)).then(a.index.cmp(&b.index)));
    let mut taken: Vec<usize> = removals.iter().take(count).map(|removal| removal.index).collect();
    taken.sort_unstable();
    Ok(taken)
}

/// What is left of a group.
struct Members {
    values: Vec<f32>,
    weights: Option<Vec<f32>>,
    indices: Vec<usize>,
}

impl Members {
    fn error<L: Levels>(&self, levels: L, rule: &Rule<'_>) -> f64 {
        let (least, greatest) = super::kernels::extremes(&self.values);
        let affine = rule.stored(rule.rounding(least, greatest));
        let group = Group { values: &self.values, weights: self.weights.as_deref() };
        squared_error(levels, affine, group)
    }

    /// Takes out the entry at `k`; the last one takes its place.
    fn remove(&mut self, k: usize) -> (f32, Option<f32>, usize) {
        (
            self.values.swap_remove(k),
            self.weights.as_mut().map(|weights| weights.swap_remove(k)),
            self.indices.swap_remove(k),
        )
    }

    /// Undoes [`Members::remove`].
    fn restore(&mut self, k: usize, (value, weight, index): (f32, Option<f32>, usize)) {
        self.values.push(value);
        self.indices.push(index);
        let last = self.values.len() - 1;
        self.values.swap(k, last);
        self.indices.swap(k, last);
        if let (Some(weights), Some(weight)) = (&mut self.weights, weight) {
            weights.push(weight);
            weights.swap(k, last);
        }
    }

    /// The least, the greatest and the worst rounded entry.
    fn candidates<L: Levels>(&self, levels: L, rule: &Rule<'_>) -> [usize; 3] {
        let (least, greatest) = super::kernels::extremes(&self.values);
        let affine = rule.stored(rule.rounding(least, greatest));
        let position = |value: f32| self.values.iter().position(|v| *v == value).unwrap_or(0);
        let mut worst = (0, -1.0);
        for (k, value) in self.values.iter().enumerate() {
            let weight = self.weights.as_ref().map_or(1.0, |weights| weights[k]);
            let level = levels.level((value - affine.add) * affine.factor() + affine.subtract);
            let error = value - affine.value(level);
            if error * error * weight > worst.1 {
                worst = (k, error * error * weight);
            }
        }
        [position(least), position(greatest), worst.0]
    }

    /// Removes up to `most` entries one by one, each time the one of three candidates that gains
    /// most. Gains that rise are averaged with those before them, so that taking removals in
    /// order of gain takes them in order of step.
    fn removals<L: Levels>(&mut self, levels: L, rule: &Rule<'_>, most: usize, all: &mut Vec<Removal>) {
        let first = all.len();
        let mut error = self.error(levels, rule);
        for step in 0..most as u32 {
            if self.values.len() < 2 || error == 0.0 {
                break;
            }
            let mut best = (f64::INFINITY, 0);
            for k in self.candidates(levels, rule) {
                let removed = self.remove(k);
                let without = self.error(levels, rule);
                self.restore(k, removed);
                if without < best.0 {
                    best = (without, k);
                }
            }
            let (_, _, index) = self.remove(best.1);
            all.push(Removal { gain: error - best.0, step, index });
            error = best.0;
        }
        pool(&mut all[first..]);
    }
}

/// Makes gains non-increasing by averaging neighbours (pool adjacent violators).
fn pool(removals: &mut [Removal]) {
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for removal in removals.iter() {
        let mut block = (removal.gain, 1);
        while let Some(last) = blocks.last().copied() {
            if last.0 / last.1 as f64 >= block.0 / block.1 as f64 {
                break;
            }
            blocks.pop();
            block = (last.0 + block.0, last.1 + block.1);
        }
        blocks.push(block);
    }
    let mut rest = removals;
    for (sum, count) in blocks {
        let (block, tail) = rest.split_at_mut(count);
        block.iter_mut().for_each(|removal| removal.gain = sum / count as f64);
        rest = tail;
    }
}

/// Encodes the entries as a `sparse` node.
///
/// # Errors
/// `BadArgument` for values quantised with groups over rows, `Unsupported` for a value that the
/// store cannot hold.
pub fn sparse(outliers: &Outliers, params: &SparseParams) -> Result<NodeData> {
    sparse_stored(outliers, params).map(|(node, _)| node)
}

/// The node with the values of its entries as stored.
pub(super) fn sparse_stored(outliers: &Outliers, params: &SparseParams) -> Result<(NodeData, Vec<f32>)> {
    let op = match params.op {
        SparseOp::Add => sparse::Op::Add,
        SparseOp::Replace => sparse::Op::Replace,
    };
    // Values quantised in groups lie in rows of whole groups: one row has no padding to pay for.
    let width = match &params.values {
        Store::Grouped(inner) if inner.group_cols > 0 => (inner.group_cols as usize).next_multiple_of(32),
        Store::Grouped(_) => 4096,
        _ => 1,
    };
    let mut values = outliers.values.clone();
    values.resize(values.len().next_multiple_of(width), 0.0);
    let stored = params.values.pack("value", &values, values.len() / width, width)?;
    values = stored.values;
    values.truncate(outliers.len());
    let child = stored.node;
    let positions = Positions {
        block: Block::ONE,
        row_offsets: outliers.row_offsets.clone(),
        columns: outliers.columns.clone(),
    };
    let (rows, cols) = node_shape(outliers.rows, outliers.cols);
    let index_bits = if outliers.cols <= 1 << 16 { 16 } else { 32 };
    let as_bitmap = match params.layout {
        SparseLayout::Csr => false,
        SparseLayout::Bitmap => true,
        SparseLayout::Smallest => {
            outliers.rows * outliers.cols.next_multiple_of(32) < outliers.len() * index_bits
        }
    };
    match as_bitmap {
        true => sparse::pack_bitmap(op, rows, cols, &positions, child),
        false => sparse::pack_csr(op, rows, cols, &positions, child),
    }
    .map(|node| (node, values))
    .map_err(format_error)
}

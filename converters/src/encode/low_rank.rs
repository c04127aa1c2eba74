//! Low-rank factors: a truncated singular value decomposition.

use super::format_error;
use super::matrix::Matrix;
use super::params::LowRankParams;
use super::random::SplitMix64;
use crate::error::{Error, Result};
use cmf_format::NodeData;
use cmf_format::encoding::low_rank as format;
use faer::Mat;
use multiversion::multiversion;
use rayon::prelude::*;

/// Matrices of up to this many elements are decomposed whole.
const WHOLE_ELEMENTS: usize = 1 << 20;
/// Seed of the sketch.
const SEED: u64 = 0x434D_465F_5356_4400;
/// Column weights are raised to this part of the greatest, so that factors stay bounded.
const LEAST_WEIGHT: f64 = 1e-6;

/// Factors of a matrix of small rank: `sum_k a_t[k][i] * b[k][j]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    pub(super) rank: usize,
    pub(super) a_t: Vec<f32>,
    pub(super) b: Vec<f32>,
}

impl Factors {
    /// Number of components, at least 1, the strongest first.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// `[rank, rows]`, row-major.
    pub fn a_t(&self) -> &[f32] {
        &self.a_t
    }

    /// `[rank, cols]`, row-major.
    pub fn b(&self) -> &[f32] {
        &self.b
    }
}

/// The best factors of a rank in the (weighted) squared error, each with the square root of the
/// singular values.
///
/// Small matrices are decomposed whole, others by a sketch of random signs with power iterations
/// (Halko, Martinsson & Tropp 2011). A quantisation error has no gap between singular values, so
/// the sketch is half as wide again as the rank. Decompositions are made in f64 and the sign of
/// each component is fixed (its largest entry of `b` is positive), so that what differs between
/// machines is far below what storage keeps.
///
/// # Errors
/// `BadArgument` for rank 0 or an empty matrix, `Unsupported` when the decomposition does not
/// converge.
pub fn factors(matrix: &Matrix<'_>, params: &LowRankParams) -> Result<Factors> {
    let least_side = matrix.rows().min(matrix.cols());
    let rank = (params.rank as usize).min(least_side);
    let sketch = rank + rank / 2 + 8;
    let whole = matrix.values().len() <= WHOLE_ELEMENTS || 2 * sketch >= least_side;
    factors_by(matrix, rank, (!whole).then_some((sketch, params.power_iterations)))
}

/// Factors from the whole matrix, or from a sketch of so many columns and power iterations.
pub(super) fn factors_by(matrix: &Matrix<'_>, rank: usize, sketch: Option<(usize, u32)>) -> Result<Factors> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    if rank == 0 {
        return Err(Error::bad_argument("rank")
            .expected("1 or more, of a matrix that is not empty")
            .found(format_args!("0 of {rows} x {cols}")));
    }
    let weighted = Weighted::new(matrix);
    // An orthonormal basis [rows, sketch] of the strongest directions, and the matrix in it.
    let basis = sketch.map(|(width, power_iterations)| weighted.basis(width, power_iterations));
    let projected = match &basis {
        Some(basis) => weighted.transposed_times(basis),
        None => Mat::from_fn(cols, rows, |j, i| weighted.element(i, j)),
    };
    // projected = V S U'^T, and U = basis U'.
    let svd = projected
        .thin_svd()
        .map_err(|error| Error::unsupported(format!("singular value decomposition: {error:?}")))?;
    let left = match &basis {
        Some(basis) => basis * svd.V(),
        None => svd.V().to_owned(),
    };
    let right = svd.U();

    let mut factors =
        Factors { rank, a_t: Vec::with_capacity(rank * rows), b: Vec::with_capacity(rank * cols) };
    for k in 0..rank {
        let largest =
            (0..cols).map(|j| right[(j, k)]).fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
        let root = svd.S().column_vector()[k].max(0.0).sqrt().copysign(largest);
        factors.a_t.extend((0..rows).map(|i| (left[(i, k)] * root) as f32));
        factors.b.extend((0..cols).map(|j| (right[(j, k)] * root / weighted.root(j)) as f32));
    }
    Ok(factors)
}

/// Encodes factors as a `low_rank` node.
///
/// # Errors
/// As the store of the factors.
pub fn low_rank(factors: &Factors, params: &LowRankParams) -> Result<NodeData> {
    let Factors { rank, a_t, b } = factors;
    let a_t = params.factors.pack("a_t", a_t, *rank, a_t.len() / rank)?;
    let b = params.factors.pack("b", b, *rank, b.len() / rank)?;
    format::pack(a_t.node, b.node).map_err(format_error)
}

/// A matrix with each column times the root of its weight.
struct Weighted<'a> {
    matrix: &'a Matrix<'a>,
    roots: Option<Vec<f64>>,
}

impl<'a> Weighted<'a> {
    fn new(matrix: &'a Matrix<'a>) -> Self {
        let roots = matrix.weights().map(|weights| {
            let greatest = weights.iter().copied().map(f64::from).fold(0.0, f64::max);
            let least = if greatest == 0.0 { 1.0 } else { LEAST_WEIGHT * greatest };
            weights.iter().map(|w| f64::from(*w).max(least).sqrt()).collect()
        });
        Self { matrix, roots }
    }

    fn root(&self, col: usize) -> f64 {
        self.roots.as_ref().map_or(1.0, |roots| roots[col])
    }

    fn element(&self, row: usize, col: usize) -> f64 {
        f64::from(self.matrix.values()[row * self.matrix.cols() + col]) * self.root(col)
    }

    /// Orthonormal columns that span the strongest left directions.
    fn basis(&self, sketch: usize, power_iterations: u32) -> Mat<f64> {
        let mut random = SplitMix64::new(SEED);
        let mut right = Mat::zeros(self.matrix.cols(), sketch);
        for j in 0..self.matrix.cols() {
            for k in 0..sketch {
                right[(j, k)] = if random.next() >> 63 == 0 { 1.0 } else { -1.0 };
            }
        }
        let mut left = self.times(&right).qr().compute_thin_Q();
        for _ in 0..power_iterations {
            let right = self.transposed_times(&left).qr().compute_thin_Q();
            left = self.times(&right).qr().compute_thin_Q();
        }
        left
    }

    /// `[rows, k]` from `[cols, k]`.
    fn times(&self, right: &Mat<f64>) -> Mat<f64> {
        let (rows, cols, width) = (self.matrix.rows(), self.matrix.cols(), right.ncols());
        let right: Vec<f64> =
            (0..cols).flat_map(|j| (0..width).map(move |k| right[(j, k)] * self.root(j))).collect();
        let mut product = vec![0.0; rows * width];
        product
            .par_chunks_exact_mut(width)
            .with_min_len(16)
            .zip(self.matrix.values().par_chunks_exact(cols))
            .for_each(|(out, row)| add_rows(row, &right, out));
        Mat::from_fn(rows, width, |i, k| product[i * width + k])
    }

    /// `[cols, k]` from `[rows, k]`.
    fn transposed_times(&self, left: &Mat<f64>) -> Mat<f64> {
        const STRIPE: usize = 64;
        let (rows, cols, width) = (self.matrix.rows(), self.matrix.cols(), left.ncols());
        let left: Vec<f64> = (0..rows).flat_map(|i| (0..width).map(move |k| left[(i, k)])).collect();
        let mut product = vec![0.0; cols * width];
        // Each task sums over all rows in order, so that the sum does not depend on the tasks.
        product.par_chunks_mut(STRIPE * width).enumerate().for_each(|(stripe, out)| {
            let columns = stripe * STRIPE..stripe * STRIPE + out.len() / width;
            let rows = self.matrix.values().chunks_exact(cols).zip(left.chunks_exact(width));
            for (row, left) in rows {
                add_outer(&row[columns.clone()], left, out);
            }
        });
        Mat::from_fn(cols, width, |j, k| product[j * width + k] * self.root(j))
    }
}

/// `out[k] += sum_j row[j] * right[j][k]`
#[multiversion(targets("x86_64+avx2"))]
fn add_rows(row: &[f32], right: &[f64], out: &mut [f64]) {
    for (value, right) in row.iter().zip(right.chunks_exact(out.len())) {
        let value = f64::from(*value);
        for (out, right) in out.iter_mut().zip(right) {
            *out += value * right;
        }
    }
}

/// `out[j][k] += row[j] * left[k]`
#[multiversion(targets("x86_64+avx2"))]
fn add_outer(row: &[f32], left: &[f64], out: &mut [f64]) {
    for (value, out) in row.iter().zip(out.chunks_exact_mut(left.len())) {
        let value = f64::from(*value);
        for (out, left) in out.iter_mut().zip(left) {
            *out += value * left;
        }
    }
}

//! Encoders: which codes, scales, outliers, factors and codebooks stand for a matrix of weights.
//!
//! Each takes a [`Matrix`] and the parameters of one term and gives a [`NodeData`] ready to be
//! written; [`decode`] gives back the values that a reader will see. All are pure functions: the
//! same input gives the same bytes for every number of threads.

mod codebook;
mod feedback;
mod gptq;
mod grid;
mod grouped;
mod hqq;
mod kernels;
mod kmeans;
mod levels;
mod low_rank;
mod matrix;
mod mse;
mod nested;
mod outliers;
mod params;
mod planes;
mod random;
mod rule;
mod search;
mod sign_low_rank;
mod store;
mod terms;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests;
pub mod trellis;
mod vectors;

pub use codebook::{Codebooks, codebook, codebook_with, codebooks};
pub use feedback::{Feedback, cost};
pub use grouped::grouped;
pub use low_rank::{Factors, factors, low_rank};
pub use matrix::Matrix;
pub use nested::nested;
pub use outliers::{Outliers, outliers, sparse};
pub use params::{
    CodebookParams, Codes, DenseParams, Element, FeedbackParams, GroupedParams, HqqParams, LosslessParams,
    LowRankParams, Method, NestedMap, NestedParams, PathAxis, Range, Select, SignLowRankParams, SparseLayout,
    SparseOp, SparseParams, Store, TermParams, TrellisCode, TrellisParams, Zero,
};
pub use planes::{Calibration, Plane, planes};
pub use sign_low_rank::sign_low_rank;
pub use terms::terms;
pub use trellis::{Scratch, Trellis};

use crate::error::{Error, Result};
use cmf_format::NodeData;

/// The values that a node decodes to, row-major: the reference decode of the format.
///
/// # Errors
/// As [`cmf_format::encoding::View::decode_rows`].
pub fn decode(node: &NodeData) -> Result<Vec<f32>> {
    let view = node.view().map_err(format_error)?;
    let mut values = vec![0.0; view.rows() * view.cols()];
    view.decode_rows(0..view.rows(), &mut values).map_err(format_error)?;
    Ok(values)
}

/// What the format crate refuses to pack or decode is a bad argument of ours.
fn format_error(error: cmf_format::Error) -> Error {
    Error::bad_argument(error.to_string()).caused_by(error)
}

fn node_shape(rows: usize, cols: usize) -> (u64, u64) {
    (rows as u64, cols as u64)
}

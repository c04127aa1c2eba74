//! Planes of signs with a magnitude of low rank: BitStack's decomposition.

use super::format_error;
use super::low_rank::{Factors, factors_by};
use super::matrix::Matrix;
use super::params::SignLowRankParams;
use super::terms::subtract;
use crate::error::{Error, Result};
use cmf_format::NodeData;
use cmf_format::encoding::sign_low_rank as format;

/// Most planes of one term.
const MAX_PLANES: u32 = 16;

/// Iterative absolute value decomposition (Wang et al., "BitStack", arXiv:2410.23918, section 3.1):
/// each plane keeps the signs of what the planes before it leave, and the best factors of a rank of
/// its absolute values, as they are stored.
///
/// With column weights the factors are the best in the weighted error. That is the decomposition of
/// the matrix whose columns are scaled by the roots of the weights, with the scales divided out of
/// `b` again: a scale of a column changes no sign, so BitStack's activation scaling (the weight of a
/// column is the mean square of its activation) needs no place in the file.
///
/// # Errors
/// `BadArgument` for a number of planes that is not 1 to 16; as [`super::factors`] and the store of the
/// factors.
pub fn sign_low_rank(matrix: &Matrix<'_>, params: &SignLowRankParams) -> Result<Vec<NodeData>> {
    if !(1..=MAX_PLANES).contains(&params.planes) {
        return Err(Error::bad_argument("planes")
            .expected(format_args!("1 to {MAX_PLANES}"))
            .found(params.planes));
    }
    // Of absolute values the first component holds most; the others need no more than a sketch.
    let least_side = matrix.rows().min(matrix.cols());
    let rank = (params.rank as usize).min(least_side);
    let sketch = rank + rank / 2 + 8;
    let sketch = (2 * sketch < least_side).then_some((sketch, params.power_iterations));
    let mut residual = matrix.values().to_vec();
    let mut magnitude = vec![0.0; residual.len()];
    let mut nodes = Vec::new();
    for _ in 0..params.planes {
        magnitude.iter_mut().zip(&residual).for_each(|(m, r)| *m = r.abs());
        let positive: Vec<bool> = residual.iter().map(|r| *r >= 0.0).collect();
        let Factors { rank, a_t, b } = factors_by(&matrix.with_values(&magnitude)?, rank, sketch)?;
        let a_t = params.factors.pack("a_t", &a_t, rank, matrix.rows())?;
        let b = params.factors.pack("b", &b, rank, matrix.cols())?;
        let node = format::pack(&positive, a_t.node, b.node).map_err(format_error)?;
        subtract(&mut residual, &node)?;
        nodes.push(node);
    }
    Ok(nodes)
}

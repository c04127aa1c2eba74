//! Nested codes: bit planes of which every prefix is a code that was fitted for.

mod fed;
mod integers;
mod tables;

use super::feedback::Feedback;
use super::matrix::Matrix;
use super::params::{NestedMap, NestedParams};
use super::{format_error, node_shape};
use crate::error::{Error, Result};
use cmf_format::NodeData;
use cmf_format::encoding::nested as format;
use cmf_format::encoding::nested::{Level, LevelData, Map, Rounding};
use std::sync::Arc;

/// Codes of the highest level, one a byte, and what each level makes of them.
struct Coded {
    codes: Vec<u8>,
    levels: Vec<LevelData>,
    /// Of each level, as it is stored.
    values: Vec<Values>,
}

/// What a level makes of its codes.
enum Values {
    /// Row-major, `[rows, groups]`.
    Integer { scales: Vec<f32>, zeros: Vec<f32>, group_cols: usize, groups: usize },
    /// `[rows, entries]`.
    Table { table: Vec<f32>, entries: usize },
}

impl Values {
    /// The value of a code at a place.
    fn of(&self, row: usize, col: usize, code: u8) -> f32 {
        match self {
            Values::Integer { scales, zeros, group_cols, groups } => {
                let group = row * groups + col / group_cols;
                (f32::from(code) - zeros[group]) * scales[group]
            }
            Values::Table { table, entries } => table[row * entries + usize::from(code)],
        }
    }
}

/// Encodes a matrix as codes of which the first `bits[0]`, `bits[1]`, ... bits are codes too; gives
/// a node for each of these levels, each over the one before.
///
/// With [`NestedMap::Table`] each row and level has a table of its own; codes come from splitting
/// clusters upward (Any-Precision). With [`NestedMap::Integer`] each group and level has a scale and
/// a zero point, and codes are chosen so that all levels together are best. With `feedback` the codes
/// are then chosen again, column after column, by what the errors of each level cost.
///
/// # Errors
/// `BadArgument` for second moments of another number of columns, for bits that do not ascend within 1 to 8 and for an empty matrix, `Unsupported`
/// for a scale, zero point or table entry that its store cannot hold.
pub fn nested(
    matrix: &Matrix<'_>,
    params: &NestedParams,
    feedback: Option<&Feedback>,
) -> Result<Vec<NodeData>> {
    let ascends = params.bits.windows(2).all(|pair| pair[0] < pair[1]);
    let highest = params.bits.last().copied().unwrap_or(0);
    if !ascends || params.bits.first().is_none_or(|bits| *bits == 0) || highest > 8 {
        let found = format!("{:?}", params.bits);
        return Err(Error::bad_argument("bits").expected("numbers from 1 to 8 that ascend").found(found));
    }
    if matrix.values().is_empty() {
        return Err(Error::bad_argument("matrix").expected("one that is not empty"));
    }
    let Coded { mut codes, levels, values } = match params.map {
        NestedMap::Table => tables::encode(matrix, params)?,
        NestedMap::Integer => integers::encode(matrix, params)?,
    };
    if let Some(feedback) = feedback {
        let levels: Vec<_> = params.bits.iter().copied().zip(values).collect();
        fed::choose(matrix, feedback, &levels, &mut codes)?;
    }
    let (rows, cols) = node_shape(matrix.rows(), matrix.cols());
    let planes = format::planes(&codes, matrix.cols(), highest).map_err(format_error)?;
    format::pack_levels(rows, cols, &planes, &levels).map_err(format_error)
}

/// A level whose codes are the first bits as they are.
fn level(bits: u8, map: Map, group_cols: u32, children: Vec<NodeData>) -> LevelData {
    LevelData {
        level: Level { bits, map, rounding: Rounding::Floor, group_cols },
        children: children.into_iter().map(Arc::new).collect(),
    }
}

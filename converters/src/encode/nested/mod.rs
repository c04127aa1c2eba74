//! Nested codes: bit planes of which every prefix is a code that was fitted for.

mod integers;
mod tables;

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
}

/// Encodes a matrix as codes of which the first `bits[0]`, `bits[1]`, ... bits are codes too; gives
/// a node for each of these levels, each over the one before.
///
/// With [`NestedMap::Table`] each row and level has a table of its own; codes come from splitting
/// clusters upward (Any-Precision). With [`NestedMap::Integer`] each group and level has a scale and
/// a zero point, and codes are chosen so that all levels together are best.
///
/// # Errors
/// `BadArgument` for bits that do not ascend within 1 to 8 and for an empty matrix, `Unsupported`
/// for a scale, zero point or table entry that its store cannot hold.
pub fn nested(matrix: &Matrix<'_>, params: &NestedParams) -> Result<Vec<NodeData>> {
    let ascends = params.bits.windows(2).all(|pair| pair[0] < pair[1]);
    let highest = params.bits.last().copied().unwrap_or(0);
    if !ascends || params.bits.first().is_none_or(|bits| *bits == 0) || highest > 8 {
        let found = format!("{:?}", params.bits);
        return Err(Error::bad_argument("bits").expected("numbers from 1 to 8 that ascend").found(found));
    }
    if matrix.values().is_empty() {
        return Err(Error::bad_argument("matrix").expected("one that is not empty"));
    }
    let coded = match params.map {
        NestedMap::Table => tables::encode(matrix, params)?,
        NestedMap::Integer => integers::encode(matrix, params)?,
    };
    let (rows, cols) = node_shape(matrix.rows(), matrix.cols());
    let planes = format::planes(&coded.codes, matrix.cols(), highest).map_err(format_error)?;
    format::pack_levels(rows, cols, &planes, &coded.levels).map_err(format_error)
}

/// A level whose codes are the first bits as they are.
fn level(bits: u8, map: Map, group_cols: u32, children: Vec<NodeData>) -> LevelData {
    LevelData {
        level: Level { bits, map, rounding: Rounding::Floor, group_cols },
        children: children.into_iter().map(Arc::new).collect(),
    }
}

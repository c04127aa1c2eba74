//! `grouped` codes chosen with error feedback: the grids stay as they were fitted, the codes follow
//! (GPTQ, Frantar et al. 2023, with static groups).

use super::feedback::Feedback;
use super::format_error;
use super::matrix::Matrix;
use crate::error::{Error, Result};
use cmf_format::NodeData;
use cmf_format::encoding::View;
use cmf_format::encoding::grouped::{self, Children};
use std::sync::Arc;

/// Weights whose grids are spelled out at a time.
const ELEMENTS: usize = 1 << 15;

/// The node with the codes that cost the product with the activations least, column after column.
///
/// # Errors
/// As [`Feedback::run`], and `BadArgument` for a node of another encoding.
pub(super) fn with_feedback(matrix: &Matrix<'_>, node: &NodeData, feedback: &Feedback) -> Result<NodeData> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let view = node.view().map_err(format_error)?;
    let View::Grouped(view) = &view else { return Err(Error::bad_argument("encoding with feedback")) };
    let descriptor = *view.descriptor();
    let children = |codes: &[u8]| -> Result<NodeData> {
        let mut of = node.children.iter().map(|child| NodeData::clone(child));
        let mut next = |is_there: bool| if is_there { of.next() } else { None };
        let children = Children {
            scale: next(view.scale().is_some()),
            zero: next(view.zero().is_some()),
            table: next(view.table().is_some()),
        };
        grouped::pack(&descriptor, rows as u64, cols as u64, codes, children).map_err(format_error)
    };
    let levels = 1usize << descriptor.bits;
    // What each code stands for, at every place.
    let grids = (0..levels)
        .map(|code| children(&vec![code as u8; rows * cols]).map(Arc::new))
        .collect::<Result<Vec<_>>>()?;
    let grids = grids.iter().map(|node| node.view().map_err(format_error)).collect::<Result<Vec<_>>>()?;
    let mut codes = vec![0u8; rows * cols];
    let step = (ELEMENTS / (cols * levels).max(1)).max(1);
    for start in (0..rows).step_by(step) {
        let count = step.min(rows - start);
        let mut values = vec![vec![0.0f32; count * cols]; levels];
        for (grid, values) in grids.iter().zip(&mut values) {
            grid.decode_rows(start..start + count, values).map_err(format_error)?;
        }
        let mut columns: Vec<f32> =
            (0..cols * count).map(|k| matrix.values()[(start + k % count) * cols + k / count]).collect();
        feedback.run(&mut columns, count, |column, targets, chosen| {
            for (i, (target, chosen)) in targets.iter().zip(chosen).enumerate() {
                let at = i * cols + column;
                let mut best = (f32::INFINITY, 0u8, 0.0f32);
                for (code, values) in (0u8..=u8::MAX).zip(&values) {
                    let error = (target - values[at]).abs();
                    if error < best.0 {
                        best = (error, code, values[at]);
                    }
                }
                codes[start * cols + at] = best.1;
                *chosen = best.2;
            }
            Ok(())
        })?;
    }
    children(&codes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::random::SplitMix64;
    use crate::encode::{GroupedParams, cost, decode, grouped};

    #[test]
    fn feedback_lowers_the_cost_on_the_same_grids() -> Result<()> {
        let (rows, cols) = (40, 48);
        let mut random = SplitMix64::new(3);
        let mut normal = || (0..6).map(|_| random.unit() - 0.5).sum::<f64>() as f32;
        let values: Vec<f32> = (0..rows * cols).map(|_| normal()).collect();
        let mut moments = vec![0.0f32; cols * cols];
        for _ in 0..4 * cols {
            let shared = 2.0 * normal();
            let x: Vec<f32> = (0..cols).map(|_| normal() + shared).collect();
            for (row, a) in moments.chunks_exact_mut(cols).zip(&x) {
                row.iter_mut().zip(&x).for_each(|(h, b)| *h += a * b);
            }
        }
        let matrix = Matrix::new(&values, rows, cols)?;
        let plain = grouped(&matrix, &GroupedParams { bits: 3, group_cols: 16, ..GroupedParams::default() })?;
        let fed = with_feedback(&matrix, &plain, &Feedback::new(&moments, cols, 0.01, 0.0)?)?;
        let cost_of = |node: &NodeData| -> Result<f64> {
            let errors: Vec<f32> = values.iter().zip(decode(node)?).map(|(w, v)| w - v).collect();
            Ok(cost(&errors, &moments, cols))
        };
        let (with, without) = (cost_of(&fed)?, cost_of(&plain)?);
        assert!(with < 0.7 * without, "{with} {without}");
        assert_eq!(fed.stored_bytes(), plain.stored_bytes());
        Ok(())
    }
}

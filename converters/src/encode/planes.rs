//! Levels of a matrix: each term encodes what all before it leave, and states what its own error
//! costs.

use super::feedback::{Feedback, cost};
use super::format_error;
use super::gptq::with_feedback;
use super::matrix::Matrix;
use super::params::{FeedbackParams, PathAxis, TermParams, TrellisCode, TrellisParams};
use super::store::Stored;
use super::terms::{single, subtract};
use super::trellis::{Scratch, Trellis};
use crate::error::Result;
use cmf_format::encoding::dense;
use cmf_format::encoding::trellis::{self, Axis, Code, Descriptor};
use cmf_format::{DType, NodeData};
use std::sync::Arc;

/// Second moments of the activations that a matrix meets, ready to encode with.
#[derive(Debug)]
pub struct Calibration {
    /// The mean square of each input.
    pub diagonal: Vec<f32>,
    /// The mean of x xᵀ, `[cols, cols]`, where it is known.
    pub moments: Option<Vec<f32>>,
    /// Feedback by what terms ask of it.
    pub feedback: Vec<(FeedbackParams, Arc<Feedback>)>,
}

impl Calibration {
    fn feedback(&self, term: &TermParams) -> Option<&Feedback> {
        let wanted = term.feedback()?;
        self.feedback.iter().find(|(of, _)| *of == wanted).map(|(_, feedback)| feedback.as_ref())
    }
}

/// One level of a matrix.
#[derive(Debug)]
pub struct Plane {
    /// Its term.
    pub node: NodeData,
    /// What the error costs that this level and all below leave: tr(R E H Eᵀ), with the moments H and
    /// the weights of rows R that are known; without any, the sum of its squares.
    pub cost: f64,
}

/// Encodes each term as a level of its own, or as several where the term has several. Gives the cost
/// of leaving out everything, too. Costs of rows are weighted by `row_weights`, `[rows]`.
///
/// # Errors
/// As the encoders of the terms.
pub fn planes(
    matrix: &Matrix<'_>,
    params: &[TermParams],
    calibration: Option<&Calibration>,
    row_weights: Option<&[f32]>,
) -> Result<(f64, Vec<Plane>)> {
    let mut residual = matrix.values().to_vec();
    let cost = |residual: &[f32]| cost_of(residual, matrix.cols(), calibration, row_weights);
    let whole = cost(&residual);
    let mut planes = Vec::with_capacity(params.len());
    for term in params {
        let rest = Matrix::new(&residual, matrix.rows(), matrix.cols())?;
        match term {
            TermParams::Trellis(own) => {
                let feedback = calibration.and_then(|c| c.feedback(term));
                let (node, errors) = trellis(&rest, own, feedback, planes.is_empty())?;
                residual = errors;
                planes.push(Plane { node, cost: cost(&residual) });
            }
            _ => {
                let rest = match calibration {
                    Some(calibration) => rest.with_weights(&calibration.diagonal)?,
                    None => rest,
                };
                let nodes = match term {
                    TermParams::Grouped(_) => {
                        let fed = |node| match calibration.and_then(|c| c.feedback(term)) {
                            Some(feedback) => with_feedback(&rest, &node, feedback),
                            None => Ok(node),
                        };
                        single(&rest, term)?.into_iter().map(fed).collect::<Result<_>>()?
                    }
                    _ => single(&rest, term)?,
                };
                for node in nodes {
                    subtract(&mut residual, &node)?;
                    planes.push(Plane { node, cost: cost(&residual) });
                }
            }
        }
    }
    Ok((whole, planes))
}

fn cost_of(
    errors: &[f32],
    cols: usize,
    calibration: Option<&Calibration>,
    row_weights: Option<&[f32]>,
) -> f64 {
    let squares = |row: &[f32], weights: Option<&[f32]>| -> f64 {
        match weights {
            Some(weights) => super::kernels::sum_by(row, weights, |e, w| e * e * w),
            None => super::kernels::sum_by(row, row, |e, _| e * e),
        }
    };
    let of_row = |(i, row): (usize, &[f32])| {
        let own = match calibration {
            Some(Calibration { moments: Some(moments), .. }) => cost(row, moments, cols),
            Some(Calibration { diagonal, .. }) => squares(row, Some(diagonal)),
            None => squares(row, None),
        };
        own * row_weights.and_then(|weights| weights.get(i)).map_or(1.0, |w| f64::from(*w))
    };
    errors.chunks_exact(cols.max(1)).enumerate().map(of_row).sum()
}

/// Share of a source's power that a plane leaves, about: 5.5 dB a bit.
fn distortion(step_bits: u8) -> f32 {
    0.28f32.powi(step_bits.into())
}

/// Encodes one plane; gives what it leaves, row-major, too.
pub(super) fn trellis(
    matrix: &Matrix<'_>,
    params: &TrellisParams,
    feedback: Option<&Feedback>,
    is_first: bool,
) -> Result<(NodeData, Vec<f32>)> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let (state_bits, step_bits) = (u32::from(params.state_bits), u32::from(params.step_bits));
    let (windows, code) = match params.code {
        TrellisCode::ByteSum => (Trellis::byte_sum(state_bits, step_bits)?, Code::BYTE_SUM),
        TrellisCode::Table => (Trellis::trained(state_bits, step_bits)?, Code::Table),
        TrellisCode::Hashed => (Trellis::hashed(state_bits, step_bits)?, Code::Table),
    };
    let group = if params.scale_rows == 0 { rows } else { params.scale_rows as usize }.max(1);
    let feedback = feedback.filter(|_| params.axis == PathAxis::Down);
    let mut columns = match params.axis {
        PathAxis::Down => transposed(matrix.values(), rows, cols),
        PathAxis::Along => Vec::new(),
    };
    // The residual's share of the power that the quantiser sees: feedback adds noise to it. Where the
    // noise may have any power, hardly any is added to a residual that feedback has shaped already.
    let distortion = distortion(params.step_bits);
    let share = match feedback {
        Some(feedback) if !feedback.power_is_free() => 1.0 / feedback.gain(&columns, rows, distortion)?,
        Some(feedback) if is_first => 1.0 - (feedback.inflation() * distortion).min(0.5),
        _ => 1.0,
    };
    let wanted: Vec<f32> = matrix
        .values()
        .chunks(group.saturating_mul(cols).max(1))
        .map(|part| {
            let squares = super::kernels::sum_by(part, part, |v, _| v * v) / part.len() as f64;
            windows.best_scale((squares / f64::from(share)).sqrt() as f32) * params.spread
        })
        .collect();
    let Stored { node: scale, values: scales } = params.scale.pack("scale", &wanted, wanted.len(), 1)?;
    let path = |all: usize| match params.path_elems {
        0 => all.max(1),
        elems => elems as usize,
    };
    let mut codes = vec![0u8; matrix.values().len()];
    let mut scratch = Scratch::default();
    let errors = match params.axis {
        PathAxis::Along => {
            let mut errors = matrix.values().to_vec();
            let (mut targets, mut values) = (vec![0.0; cols], vec![0.0; cols]);
            for (i, (row, codes)) in
                errors.chunks_exact_mut(cols).zip(codes.chunks_exact_mut(cols)).enumerate()
            {
                let scale = scales.get(i / group).copied().unwrap_or(0.0);
                divide(row, &mut targets, |_| scale);
                for ((t, c), v) in targets
                    .chunks(path(cols))
                    .zip(codes.chunks_mut(path(cols)))
                    .zip(values.chunks_mut(path(cols)))
                {
                    windows.encode(t, &mut scratch, c, v);
                }
                row.iter_mut().zip(&values).for_each(|(w, v)| *w -= v * scale);
            }
            errors
        }
        PathAxis::Down => {
            let (mut scaled, mut own) = (vec![0.0; rows], vec![0u8; rows]);
            let scale_of = |i: usize| scales.get(i / group).copied().unwrap_or(0.0);
            let mut quantise = |column: usize, targets: &[f32], values: &mut [f32]| {
                divide(targets, &mut scaled, scale_of);
                for ((t, c), v) in scaled
                    .chunks(path(rows))
                    .zip(own.chunks_mut(path(rows)))
                    .zip(values.chunks_mut(path(rows)))
                {
                    windows.encode(t, &mut scratch, c, v);
                }
                values.iter_mut().enumerate().for_each(|(i, v)| *v *= scale_of(i));
                codes.iter_mut().skip(column).step_by(cols).zip(&own).for_each(|(all, own)| *all = *own);
                Ok(())
            };
            match feedback {
                Some(feedback) => feedback.run(&mut columns, rows, quantise)?,
                None => {
                    let mut values = vec![0.0; rows];
                    for (j, column) in columns.chunks_exact_mut(rows.max(1)).enumerate() {
                        quantise(j, column, &mut values)?;
                        column.iter_mut().zip(&values).for_each(|(w, v)| *w -= v);
                    }
                }
            }
            transposed(&columns, cols, rows)
        }
    };
    let descriptor = Descriptor {
        state_bits: params.state_bits,
        step_bits: params.step_bits,
        code,
        axis: match params.axis {
            PathAxis::Down => Axis::Down,
            PathAxis::Along => Axis::Along,
        },
        path_elems: params.path_elems,
        scale_rows: params.scale_rows,
        scale_cols: 0,
    };
    let table = match params.code {
        TrellisCode::ByteSum => None,
        TrellisCode::Table | TrellisCode::Hashed => {
            let values = windows.values();
            Some(Arc::new(
                dense::pack_values(DType::I8, 1, values.len() as u64, values).map_err(format_error)?,
            ))
        }
    };
    let node =
        trellis::pack(&descriptor, rows as u64, cols as u64, &codes, scale, table).map_err(format_error)?;
    Ok((node, errors))
}

/// Values over their scales; a scale of 0 stands for values of 0.
fn divide(values: &[f32], out: &mut [f32], scale: impl Fn(usize) -> f32) {
    for (i, (out, value)) in out.iter_mut().zip(values).enumerate() {
        let scale = scale(i);
        *out = if scale == 0.0 { 0.0 } else { value / scale };
    }
}

/// The transpose of a row-major matrix.
fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    /// Rows and columns of a tile that stays in the nearest cache.
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for i0 in (0..rows).step_by(TILE) {
        for j0 in (0..cols).step_by(TILE) {
            for i in i0..(i0 + TILE).min(rows) {
                for j in j0..(j0 + TILE).min(cols) {
                    out[j * rows + i] = values[i * cols + j];
                }
            }
        }
    }
    out
}

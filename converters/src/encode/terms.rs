//! Several terms for one matrix: each encodes what the terms before it leave.

use super::codebook::codebook;
use super::grouped::grouped;
use super::low_rank::{factors, low_rank};
use super::matrix::Matrix;
use super::nested::nested;
use super::outliers::{Outliers, outliers, sparse, sparse_stored};
use super::params::{LowRankParams, SparseOp, SparseParams, TermParams};
use super::planes::trellis;
use super::sign_low_rank::sign_low_rank;
use super::{decode, format_error, node_shape};
use crate::error::{Error, Result};
use cmf_format::encoding::{dense, lossless};
use cmf_format::{DType, NodeData};

/// Rows times columns that are decoded in one go while a residual is formed.
const DECODE_ELEMENTS: usize = 1 << 18;

/// Encodes a matrix as the sum of the terms that `params` lists, in order.
///
/// A term encodes the residual: the matrix less what the terms before it decode to. Two kinds look
/// around themselves:
/// - `sparse` right behind `grouped` or `codebook` takes its positions before that term is encoded,
///   which then sees the mean of the group in their place;
/// - `low_rank` with alternations encodes the terms before it again, without what it holds itself,
///   as long as that lowers the error.
///
/// # Errors
/// As the encoders of the terms, and `BadArgument` for no terms.
pub fn terms(matrix: &Matrix<'_>, params: &[TermParams]) -> Result<Vec<NodeData>> {
    if params.is_empty() {
        return Err(Error::bad_argument("terms").expected("at least one"));
    }
    let mut chain = Chain::new(matrix, false);
    chain.encode(params)?;
    Ok(chain.nodes)
}

/// Terms encoded so far.
struct Chain<'a> {
    matrix: &'a Matrix<'a>,
    nodes: Vec<NodeData>,
    /// What they leave, where a term has asked for it.
    residual: Option<Vec<f32>>,
    /// Whether the residual is wanted after the last term too.
    keep_residual: bool,
}

impl<'a> Chain<'a> {
    fn new(matrix: &'a Matrix<'a>, keep_residual: bool) -> Self {
        Self { matrix, nodes: Vec::new(), residual: None, keep_residual }
    }

    fn encode(&mut self, params: &[TermParams]) -> Result<()> {
        let mut taken: Option<Outliers> = None;
        for (index, term) in params.iter().enumerate() {
            let before = &params[..index];
            let residual = self.residual.take();
            let rest = match &residual {
                Some(residual) => self.matrix.with_values(residual)?,
                None => *self.matrix,
            };
            let wanted = self.keep_residual || index + 1 < params.len();
            let keep = |residual: Option<Vec<f32>>| {
                wanted.then(|| residual.unwrap_or_else(|| self.matrix.values().to_vec()))
            };
            match (term, params.get(index + 1)) {
                (TermParams::LowRank(own), _) if own.alternations > 0 && index > 0 => {
                    self.residual = Some(rest.values().to_vec());
                    self.alternate(before, own)?;
                }
                (TermParams::Sparse(own), _) => {
                    let (node, entries) = self.outlying(&rest, own, taken.take(), before)?;
                    self.residual = keep(residual);
                    if let Some(residual) = &mut self.residual {
                        for (index, stored) in entries.indices().zip(&entries.values) {
                            residual[index] = match own.op {
                                SparseOp::Add => residual[index] - stored,
                                SparseOp::Replace => self.matrix.values()[index] - stored,
                            };
                        }
                    }
                    self.nodes.push(node);
                }
                (_, next) => {
                    let nodes = match (term, next) {
                        (
                            TermParams::Grouped(_) | TermParams::Codebook(_),
                            Some(TermParams::Sparse(next)),
                        ) => {
                            let (entries, masked) = mask(&rest, term, next)?;
                            taken = Some(entries);
                            single(&rest.with_values(&masked)?, term)?
                        }
                        _ => single(&rest, term)?,
                    };
                    self.residual = keep(residual);
                    if let Some(residual) = &mut self.residual {
                        nodes.iter().try_for_each(|node| subtract(residual, node))?;
                    }
                    self.nodes.extend(nodes);
                }
            }
        }
        Ok(())
    }

    /// The node of a `sparse` term at positions taken before, or at those selected now, and its
    /// entries as stored.
    fn outlying(
        &self,
        rest: &Matrix<'_>,
        own: &SparseParams,
        taken: Option<Outliers>,
        before: &[TermParams],
    ) -> Result<(NodeData, Outliers)> {
        let base = before.iter().rev().find_map(|term| match term {
            TermParams::Grouped(base) => Some(base),
            _ => None,
        });
        let mut entries = match taken {
            Some(taken) => taken,
            None => outliers(rest, &own.select, base)?,
        };
        let from = match own.op {
            SparseOp::Add => rest.values(),
            SparseOp::Replace => self.matrix.values(),
        };
        entries.values = entries.indices().map(|index| from[index]).collect();
        let (node, stored) = sparse_stored(&entries, own)?;
        entries.values = stored;
        Ok((node, entries))
    }

    /// Fits factors to the residual, then the terms before to what the factors leave, in turns.
    fn alternate(&mut self, before: &[TermParams], low: &LowRankParams) -> Result<()> {
        let mut best: Option<(f64, Vec<NodeData>, Vec<f32>)> = None;
        let mut nodes = core::mem::take(&mut self.nodes);
        let mut residual = match self.residual.take() {
            Some(residual) => residual,
            None => self.matrix.values().to_vec(),
        };
        for round in 0..=low.alternations {
            // The residual of the terms before alone, here.
            let node = low_rank(&factors(&self.matrix.with_values(&residual)?, low)?, low)?;
            subtract(&mut residual, &node)?;
            let error = squares(self.matrix, &residual);
            if best.as_ref().is_some_and(|best| error >= best.0) {
                break;
            }
            nodes.push(node);
            let held = decode(&nodes[nodes.len() - 1])?;
            best = Some((error, nodes, residual));
            nodes = Vec::new();
            residual = Vec::new();
            if round < low.alternations {
                let target: Vec<f32> = self.matrix.values().iter().zip(&held).map(|(w, h)| w - h).collect();
                let target = self.matrix.with_values(&target)?;
                let mut chain = Chain::new(&target, true);
                chain.encode(before)?;
                nodes = chain.nodes;
                residual = chain.residual.unwrap_or_default();
                residual.iter_mut().zip(&held).for_each(|(r, h)| *r += h);
            }
        }
        if let Some((_, nodes, residual)) = best {
            self.nodes = nodes;
            self.residual = Some(residual);
        }
        Ok(())
    }
}

/// Encodes one term that needs no other: in one node, or in the levels that it has of its own.
pub(super) fn single(matrix: &Matrix<'_>, term: &TermParams) -> Result<Vec<NodeData>> {
    let (rows, cols) = node_shape(matrix.rows(), matrix.cols());
    let node = match term {
        TermParams::SignLowRank(own) => return sign_low_rank(matrix, own),
        TermParams::Nested(own) => return nested(matrix, own),
        TermParams::Dense(own) => {
            dense::pack_values(own.dtype.into(), rows, cols, matrix.values()).map_err(format_error)
        }
        TermParams::Grouped(own) => grouped(matrix, own),
        TermParams::Codebook(own) => codebook(matrix, own),
        TermParams::LowRank(own) => low_rank(&factors(matrix, own)?, own),
        TermParams::Sparse(own) => sparse(&outliers(matrix, &own.select, None)?, own),
        TermParams::Trellis(own) => Ok(trellis(matrix, own, None, true)?.0),
        TermParams::Lossless(own) => {
            let bytes = DType::from(own.dtype).encode(matrix.values()).map_err(format_error)?;
            lossless::pack(own.dtype.into(), rows, cols, &bytes).map_err(format_error)
        }
    };
    Ok(vec![node?])
}

/// The outliers to be kept beside a term, and what the term is to see.
fn mask(rest: &Matrix<'_>, term: &TermParams, next: &SparseParams) -> Result<(Outliers, Vec<f32>)> {
    Ok(match term {
        TermParams::Grouped(base) => {
            let entries = outliers(rest, &next.select, Some(base))?;
            let masked = entries.replaced_by_mean(rest, base.group_rows, base.group_cols);
            (entries, masked)
        }
        _ => {
            let entries = outliers(rest, &next.select, None)?;
            let masked = entries.removed(rest);
            (entries, masked)
        }
    })
}

/// Takes the values of a node from a residual.
pub(super) fn subtract(residual: &mut [f32], node: &NodeData) -> Result<()> {
    let view = node.view().map_err(format_error)?;
    let (rows, cols) = (view.rows(), view.cols());
    let step = (DECODE_ELEMENTS / cols.max(1)).max(1);
    let mut values = vec![0.0; step.min(rows) * cols];
    for start in (0..rows).step_by(step) {
        let end = (start + step).min(rows);
        let values = &mut values[..(end - start) * cols];
        view.decode_rows(start..end, values).map_err(format_error)?;
        residual[start * cols..].iter_mut().zip(values).for_each(|(r, v)| *r -= *v);
    }
    Ok(())
}

/// The (weighted) sum of squares of a residual.
fn squares(matrix: &Matrix<'_>, residual: &[f32]) -> f64 {
    residual
        .chunks(matrix.cols().max(1))
        .map(|row| match matrix.weights() {
            Some(weights) => super::kernels::sum_by(row, weights, |r, w| r * r * w),
            None => super::kernels::sum_by(row, row, |r, _| r * r),
        })
        .sum()
}

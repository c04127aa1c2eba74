//! Packed experts that are opened when they are multiplied with.

use super::multiply::Pool;
use crate::cut::check_expansion;
use crate::error::{Error, Result};
use crate::weights::{ExpertName, Experts, check_shape, expert_output, missing};
use candle_core::Tensor;
use cmf_format::archive::{Cut, Matrix, MatrixView};
use cmf_kernels_cpu::{Isa, Linear, Precision};
use cmf_loader::{FileSource, Model};

/// Experts of one layer, up to a level.
pub(crate) struct OpenedOnUse<'w, 'm> {
    experts: Vec<[Matrix<'m, FileSource>; 3]>,
    hidden: usize,
    wide: usize,
    level: u16,
    precision: Precision,
    isa: Isa,
    buffers: &'w Pool,
}

impl<'w, 'm> OpenedOnUse<'w, 'm> {
    /// Experts of `model`, of `hidden` inputs and outputs and `wide` between, with levels up to `level`.
    pub(crate) fn new(
        model: &'m Model,
        experts: &[ExpertName],
        [hidden, wide]: [usize; 2],
        level: u16,
        precision: Precision,
        buffers: &'w Pool,
    ) -> Result<Self> {
        check_expansion(model)?;
        let matrix = |name: &str, rows: usize, cols: usize| -> Result<Matrix<'m, FileSource>> {
            let tensor = model.tensor(name).ok_or_else(|| missing(name))?;
            check_shape(name, &tensor.shape(), &[rows, cols])?;
            let matrix = tensor.stored()?.matrices().next().ok_or_else(|| missing(name))?;
            check_shape(name, &[matrix.rows(), matrix.cols()], &[rows, cols])?;
            Ok(matrix)
        };
        let experts = experts.iter().map(|expert| {
            Ok([
                matrix(&expert.gate, wide, hidden)?,
                matrix(&expert.up, wide, hidden)?,
                matrix(&expert.down, hidden, wide)?,
            ])
        });
        let experts = experts.collect::<Result<_>>()?;
        Ok(Self { experts, hidden, wide, level, precision, isa: Isa::detect(), buffers })
    }
}

impl<'m> Experts for OpenedOnUse<'_, 'm> {
    fn forward(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        let open = |matrix: &Matrix<'m, FileSource>| -> Result<Linear<'m>> {
            Ok(Linear::new(MatrixView::open(matrix, Cut::Level(self.level))?, self.isa)?)
        };
        let [gate, up, down] = self.experts.get(expert).ok_or_else(|| Error::argument("no such expert"))?;
        let (gate, up, down) = (open(gate)?, open(up)?, open(down)?);
        self.buffers.with(|buffers| {
            let mut multiply = |matrices: &[&Linear<'_>], x: &Tensor, inputs| {
                buffers.multiply(matrices, x, inputs, self.precision)
            };
            let between = multiply(&[&gate, &up], x, self.hidden)?;
            expert_output(|| Ok(between), |x| multiply(&[&down], x, self.wide))
        })
    }
}

//! Packed experts that come into memory when they are chosen.

use super::multiply::Buffers;
use crate::error::{Error, Result};
use crate::weights::{ExpertName, Experts, check_shape, missing};
use candle_core::Tensor;
use cmf_format::archive::{Cut, Matrix, MatrixView};
use cmf_kernels_cpu::{Isa, Linear, Precision};
use cmf_loader::FileSource;
use cmf_loader::resident::Resident;
use std::sync::{Mutex, PoisonError};

/// Experts of one layer, each of which is required of a [`Resident`] for as long as it is multiplied with.
pub(crate) struct OnDemand<'r, 'm> {
    resident: &'r Resident<'m>,
    experts: Vec<[OneMatrix<'m>; 3]>,
    hidden: usize,
    wide: usize,
    isa: Isa,
    buffers: Mutex<Buffers>,
}

struct OneMatrix<'m> {
    name: String,
    matrix: Matrix<'m, FileSource>,
}

/// Whether `experts` are on demand in `resident`: all of them, or none.
pub(crate) fn on_demand(resident: &Resident<'_>, experts: &[ExpertName]) -> Result<bool> {
    let names = experts.iter().flat_map(|expert| [&expert.gate, &expert.up, &expert.down]);
    let demanded = names.clone().filter(|name| resident.holds(name.as_str()).is_ok()).count();
    match demanded {
        0 => Ok(false),
        n if n == names.count() => Ok(true),
        n => Err(Error::argument(format!("{n} matrices of a layer's experts are on demand, and others not"))),
    }
}

impl<'r, 'm> OnDemand<'r, 'm> {
    pub(crate) fn new(
        resident: &'r Resident<'m>,
        experts: &[ExpertName],
        hidden: usize,
        wide: usize,
    ) -> Result<Self> {
        let matrix = |name: &str, rows: usize, cols: usize| -> Result<OneMatrix<'m>> {
            let tensor = resident.model().tensor(name).ok_or_else(|| missing(name))?;
            check_shape(name, &tensor.shape(), &[rows, cols])?;
            let matrix = tensor.stored()?.matrices().next().ok_or_else(|| missing(name))?;
            check_shape(name, &[matrix.rows(), matrix.cols()], &[rows, cols])?;
            Ok(OneMatrix { name: name.to_owned(), matrix })
        };
        let experts = experts.iter().map(|expert| -> Result<[OneMatrix<'m>; 3]> {
            Ok([
                matrix(&expert.gate, wide, hidden)?,
                matrix(&expert.up, wide, hidden)?,
                matrix(&expert.down, hidden, wide)?,
            ])
        });
        let experts = experts.collect::<Result<_>>()?;
        Ok(Self { resident, experts, hidden, wide, isa: Isa::detect(), buffers: Mutex::default() })
    }
}

impl<'m> Experts for OnDemand<'_, 'm> {
    fn forward(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        let matrices = self.experts.get(expert).ok_or_else(|| Error::argument("no such expert"))?;
        // In memory until it has been multiplied with.
        let _required = self.resident.require(matrices.each_ref().map(|one| one.name.as_str()))?;
        let level = self.resident.demand_level();
        let open = |one: &OneMatrix<'m>| -> Result<Linear<'m>> {
            let view = MatrixView::open(&one.matrix, Cut::Level(level))?;
            Ok(Linear::new(view, self.isa)?)
        };
        let [gate, up, down] = matrices;
        let (gate, up, down) = (open(gate)?, open(up)?, open(down)?);
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let exact = Precision::Exact;
        let products = buffers.multiply(&[&gate, &up], x, self.hidden, exact)?;
        let [gate, up] = products.as_slice() else { return Err(Error::model("expected two products")) };
        let wide = (candle_nn::ops::silu(gate)? * up)?;
        let product = buffers.multiply(&[&down], &wide, self.wide, exact)?;
        product.into_iter().next().ok_or_else(|| Error::model("expected a product"))
    }
}

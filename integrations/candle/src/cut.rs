//! Dense weights of a `.cmf` under a plan.

use crate::card::Card;
use crate::error::{Error, ErrorKind, Result};
use crate::experts::on_demand;
use crate::weights::{Dense, DenseValues, ExpertName, Experts, Linear, MatrixName, Rows, Weights, missing};
use candle_core::Tensor;
use cmf_loader::resident::Resident;
use cmf_loader::{Levels, Model, Plan};

/// Most bytes of f32 values for each byte of the file.
const MAX_EXPANSION: u64 = 4096;
/// Bytes of f32 values that any file may have.
const ALWAYS_BYTES: u64 = 1 << 30;

/// Refuses a file of far more elements than anybody's weights fit in so few bytes: zeros take no space
/// in some encodings.
pub(crate) fn check_expansion(model: &Model) -> Result<()> {
    let most = model.file_bytes().saturating_mul(MAX_EXPANSION).max(ALWAYS_BYTES);
    let found = model.tensors().fold(0u64, |sum, t| sum.saturating_add(t.elements().saturating_mul(4)));
    if model.references().len() > 0 || found <= most {
        return Ok(());
    }
    let path = model.path().display();
    let problem = format!("{path}: expected at most {most} bytes of plain elements, found {found}");
    Err(Error::new(ErrorKind::Limit, problem))
}

/// The tensors of a `.cmf`, as the units of a plan make them.
pub struct CutModel<'m> {
    model: &'m Model,
    cut: Cut,
}

enum Cut {
    Plan(Plan),
    UpTo(u16),
}

impl<'m> CutModel<'m> {
    /// The tensors of `model` under `plan`; at their best without one.
    ///
    /// # Errors
    /// `Limit` for a file of far more elements than anybody's weights fit in so few bytes.
    pub fn new(model: &'m Model, plan: Option<Plan>) -> Result<Self> {
        check_expansion(model)?;
        Ok(Self { model, cut: plan.map_or(Cut::UpTo(u16::MAX), Cut::Plan) })
    }
}

/// Dense tensors of what a [`Resident`] holds: under its plan, and experts that are on demand in it, each of
/// which comes into memory when it is multiplied with.
pub struct ResidentCut<'m> {
    resident: Resident<'m>,
    plan: Dense<CutModel<'m>>,
    demanded: Dense<CutModel<'m>>,
}

impl<'m> ResidentCut<'m> {
    /// The tensors of the plan that is in force now.
    ///
    /// # Errors
    /// As [`CutModel::new`].
    pub fn new(resident: Resident<'m>) -> Result<Self> {
        let model = resident.model();
        let plan = Dense(CutModel::new(model, Some(resident.snapshot().plan().clone()))?);
        let demanded = Dense(CutModel { model, cut: Cut::UpTo(resident.demand_level()) });
        Ok(Self { resident, plan, demanded })
    }

    /// What is in memory.
    pub fn resident(&self) -> &Resident<'m> {
        &self.resident
    }
}

impl Weights for ResidentCut<'_> {
    fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
        self.plan.vector(name, elements)
    }

    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
        self.plan.linear(matrices, inputs)
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        self.plan.rows(name, rows, cols)
    }

    fn experts<'w>(
        &'w self,
        experts: &[ExpertName],
        hidden: usize,
        wide: usize,
    ) -> Result<Box<dyn Experts + 'w>> {
        let planned = |experts: &[ExpertName]| self.plan.experts(experts, hidden, wide);
        let demanded = |experts: &[ExpertName]| self.demanded.experts(experts, hidden, wide);
        on_demand(&self.resident, experts, &planned, &demanded)
    }
}

impl DenseValues for CutModel<'_> {
    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        self.model.tensor(name).map(|tensor| tensor.shape())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.model.tensor(name).ok_or_else(|| missing(name))?;
        let elements = usize::try_from(tensor.elements()).unwrap_or(usize::MAX);
        let mut values = Vec::new();
        values.try_reserve_exact(elements).map_err(|_| {
            let name = name.escape_debug();
            Error::new(ErrorKind::Limit, format!("tensor `{name}`: {elements} values do not fit memory"))
        })?;
        values.resize(elements, 0.0);
        let levels = match &self.cut {
            Cut::Plan(plan) => Levels::Plan(plan),
            Cut::UpTo(level) => Levels::UpTo(*level),
        };
        tensor.decode_parallel(levels, &mut values)?;
        Ok(values)
    }
}

/// The file called `name` that travels with `model`.
///
/// # Errors
/// `BadModel` when it is damaged, `Io`.
pub fn attribute(model: &Model, name: &str) -> Result<Option<Vec<u8>>> {
    model.attribute(name).map(|attribute| Ok(attribute.bytes()?.into_owned())).transpose()
}

/// Configuration, tokenizer and chat template of `model`.
///
/// # Errors
/// As [`Card::read`].
pub fn card(model: &Model) -> Result<Card> {
    Card::read(&|name| attribute(model, name), &|name| model.tensor(name).map(|tensor| tensor.shape()))
        .map_err(|e| Error::new(e.kind(), format!("{}: {e}", model.path().display())))
}

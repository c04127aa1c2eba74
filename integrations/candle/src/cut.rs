//! Dense weights of a `.cmf` under a plan.

use crate::card::Card;
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{DenseValues, missing};
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
    plan: Option<Plan>,
}

impl<'m> CutModel<'m> {
    /// The tensors of `model` under `plan`; at their best without one.
    ///
    /// # Errors
    /// `Limit` for a file of far more elements than anybody's weights fit in so few bytes.
    pub fn new(model: &'m Model, plan: Option<Plan>) -> Result<Self> {
        check_expansion(model)?;
        Ok(Self { model, plan })
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
        let levels = self.plan.as_ref().map_or(Levels::All, Levels::Plan);
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

//! Second moments of activations: what calibration knows about the input of each matrix.

mod imatrix;

use crate::error::{Error, Result};
use crate::source::{CmfSource, InputFile, Source};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Second moments of the activations that meet the columns of matrices, by name of the weight.
pub trait Moments: Send + Sync {
    /// What is known of the input of the weight `name`, which has `cols` columns; `None` where
    /// nothing is.
    ///
    /// # Errors
    /// `Io`; `BadFile` for moments of another size, or that are not finite.
    fn of(&self, name: &str, cols: usize) -> Result<Option<SecondMoments>>;

    /// How much an error of this weight raises the model's loss: nats per token for each unit of
    /// `tr(E H Eᵀ) / tr(W H Wᵀ)`; `None` where it was not measured.
    fn sensitivity(&self, name: &str) -> Option<f64>;

    /// What an error of each of the `rows` rows of the weight `name` costs, relative to errors of the
    /// same size in other rows; `None` where that was not measured.
    ///
    /// # Errors
    /// `Io`; `BadFile` for another number of rows, or numbers that are not finite and at least 0.
    fn row_weights(&self, name: &str, rows: usize) -> Result<Option<Vec<f32>>>;

    /// The files they are read from.
    fn inputs(&self) -> &[InputFile];
}

/// Second moments of the activations x that one matrix meets.
#[derive(Clone, Debug, PartialEq)]
pub enum SecondMoments {
    /// The mean of x xᵀ, `[cols, cols]`.
    Full(Vec<f32>),
    /// Its diagonal, `[cols]`.
    Diagonal(Vec<f32>),
}

impl SecondMoments {
    /// The mean square of each input.
    pub fn diagonal(&self) -> Vec<f32> {
        match self {
            SecondMoments::Diagonal(diagonal) => diagonal.clone(),
            SecondMoments::Full(all) => {
                let cols = all.len().isqrt();
                all.iter().step_by(cols + 1).copied().collect()
            }
        }
    }

    fn checked(self, name: &str, cols: usize) -> Result<Self> {
        let (found, expected) = match &self {
            SecondMoments::Full(all) => (all.len(), cols.saturating_mul(cols)),
            SecondMoments::Diagonal(all) => (all.len(), cols),
        };
        if found != expected {
            return Err(Error::bad_file("second moments").tensor(name).expected(expected).found(found));
        }
        let (SecondMoments::Full(values) | SecondMoments::Diagonal(values)) = &self;
        if !values.iter().all(|v| v.is_finite()) || self.diagonal().iter().any(|v| *v < 0.0) {
            return Err(Error::bad_file("second moments")
                .tensor(name)
                .expected("finite values and a diagonal of at least 0"));
        }
        Ok(self)
    }
}

/// Opens second moments: a `.cmf` as `cmf calibrate` writes it, or an importance matrix of llama.cpp
/// (its GGUF form or the older `.dat`).
///
/// # Errors
/// `Io`, `BadFile`.
pub fn open(path: &Path) -> Result<Box<dyn Moments>> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut start))
        .map_err(|e| Error::io("cannot be read", e).file(path))?;
    if start.get(1..4) == Some(b"CMF") {
        return Ok(Box::new(Archived::open(path)?));
    }
    Ok(Box::new(imatrix::Importance::open(path, start.starts_with(b"GGUF"))?))
}

/// Attribute with the sensitivity of each weight: a JSON object from name to number.
pub const SENSITIVITY_ATTRIBUTE: &str = "cmf.sensitivity.json";

/// Before the name of a weight: the tensor `[1, rows]` with what an error of each of its rows costs.
pub const ROW_WEIGHTS_PREFIX: &str = "cmf.row_weights/";

/// Most bytes of [`SENSITIVITY_ATTRIBUTE`].
const SENSITIVITY_LIMIT_BYTES: usize = 64 << 20;

/// A `.cmf` with a square matrix under the name of each weight.
struct Archived {
    source: CmfSource,
    sensitivity: HashMap<String, f64>,
}

impl Archived {
    fn open(path: &Path) -> Result<Self> {
        let source = CmfSource::open(path)?;
        let attributes = source.attributes()?;
        let sensitivity = match attributes.iter().find(|a| a.name == SENSITIVITY_ATTRIBUTE) {
            Some(a) if a.bytes.len() > SENSITIVITY_LIMIT_BYTES => {
                return Err(Error::limit(SENSITIVITY_ATTRIBUTE).file(path));
            }
            Some(a) => serde_json::from_slice(&a.bytes).map_err(|e| {
                Error::bad_file(format!("{SENSITIVITY_ATTRIBUTE}: {e}")).file(path).caused_by(e)
            })?,
            None => HashMap::new(),
        };
        Ok(Self { source, sensitivity })
    }
}

impl Archived {
    /// Values of the tensor `name`, which must have the shape `expected`; `None` when there is none.
    fn values(&self, name: &str, expected: [u64; 2]) -> Result<Option<Vec<f32>>> {
        let tensors = self.source.tensors();
        let Ok(index) = tensors.binary_search_by(|t| t.name.as_str().cmp(name)) else { return Ok(None) };
        let shape = tensors.get(index).map_or(&[][..], |t| &t.shape);
        if shape != expected {
            return Err(Error::bad_file("calibration")
                .tensor(name)
                .expected(format_args!("{expected:?}"))
                .found(format_args!("{shape:?}")));
        }
        let mut values = Vec::new();
        self.source.read_values(index, 0..expected[0].saturating_mul(expected[1]), &mut values)?;
        Ok(Some(values))
    }
}

impl Moments for Archived {
    fn of(&self, name: &str, cols: usize) -> Result<Option<SecondMoments>> {
        let values = self.values(name, [cols as u64; 2])?;
        values.map(|values| SecondMoments::Full(values).checked(name, cols)).transpose()
    }

    fn row_weights(&self, name: &str, rows: usize) -> Result<Option<Vec<f32>>> {
        let weights = self.values(&format!("{ROW_WEIGHTS_PREFIX}{name}"), [1, rows as u64])?;
        if weights.iter().flatten().any(|w| !w.is_finite() || *w < 0.0) {
            return Err(Error::bad_file("weights of rows")
                .tensor(name)
                .expected("finite values of at least 0"));
        }
        Ok(weights)
    }

    fn sensitivity(&self, name: &str) -> Option<f64> {
        self.sensitivity.get(name).copied().filter(|s| s.is_finite() && *s > 0.0)
    }

    fn inputs(&self) -> &[InputFile] {
        self.source.inputs()
    }
}

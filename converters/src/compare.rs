//! Comparison of two models, tensor by tensor.

use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::source::{Source, TensorInfo};
use rayon::prelude::*;
use serde::Serialize;

/// Elements compared at a time.
const STEP_ELEMENTS: u64 = 1 << 20;

/// How a tensor of the second model differs from that of the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDifference {
    /// The name.
    pub name: String,
    /// Number of elements.
    pub elements: u64,
    /// Signal to noise ratio, `10 log10(sum a^2 / sum (a - b)^2)`, in dB; none without noise.
    pub snr_db: Option<f64>,
    /// `sqrt(sum (a - b)^2 / sum a^2)`; 0 when all values are the same, infinite when only the
    /// first model's are all zero.
    pub relative_error: f64,
    /// Largest `|a - b|`.
    pub max_abs_error: f64,
    /// Whether all values are the same.
    pub identical: bool,
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Differences {
    /// Tensors that both models have, by name.
    pub tensors: Vec<TensorDifference>,
    /// Names that only the first model has.
    pub only_in_first: Vec<String>,
    /// Names that only the second model has.
    pub only_in_second: Vec<String>,
    /// Names whose shapes differ, with both shapes.
    pub shapes_differ: Vec<(String, Vec<u64>, Vec<u64>)>,
}

impl Differences {
    /// Whether both models have the same tensors with the same values.
    pub fn is_empty(&self) -> bool {
        self.is_within(f64::INFINITY)
    }

    /// Whether both models have the same tensors, each identical or with a signal to noise ratio
    /// of at least `snr_db`.
    pub fn is_within(&self, snr_db: f64) -> bool {
        self.only_in_first.is_empty()
            && self.only_in_second.is_empty()
            && self.shapes_differ.is_empty()
            && self.tensors.iter().all(|t| t.identical || t.snr_db.is_some_and(|snr| snr >= snr_db))
    }
}

/// Compares all tensors of `a` with those of the same name of `b`, in bounded memory.
///
/// Sums are f64, in element order within steps of 2^20 elements, so the result does not depend on
/// the number of threads. `progress` is called with elements done and in all.
///
/// # Errors
/// What reading either model gives.
pub fn compare(a: &dyn Source, b: &dyn Source, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Differences> {
    let mut result = Differences::default();
    let mut pairs = Vec::new();
    for (i, first) in a.tensors().iter().enumerate() {
        match find(b, &first.name) {
            None => result.only_in_first.push(first.name.clone()),
            Some((_, second)) if second.shape != first.shape => {
                result.shapes_differ.push((first.name.clone(), first.shape.clone(), second.shape.clone()));
            }
            Some((j, _)) => pairs.push((i, j, first)),
        }
    }
    for second in b.tensors() {
        if find(a, &second.name).is_none() {
            result.only_in_second.push(second.name.clone());
        }
    }
    let total = pairs.iter().filter_map(|(_, _, t)| t.elements()).sum();
    let done = std::sync::atomic::AtomicU64::new(0);
    result.tensors = pairs
        .into_par_iter()
        .with_max_len(1)
        .map(|(i, j, tensor)| {
            tensor_difference(a, b, i, j, tensor, &|step| {
                progress(done.fetch_add(step, std::sync::atomic::Ordering::Relaxed) + step, total);
            })
        })
        .collect::<Result<_>>()?;
    Ok(result)
}

fn find<'s>(source: &'s dyn Source, name: &str) -> Option<(usize, &'s TensorInfo)> {
    let index = source.tensors().binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
    Some((index, source.tensors().get(index)?))
}

fn tensor_difference(
    a: &dyn Source,
    b: &dyn Source,
    i: usize,
    j: usize,
    tensor: &TensorInfo,
    progress: &dyn Fn(u64),
) -> Result<TensorDifference> {
    let elements = tensor.elements().ok_or_else(|| Error::bad_file("element count overflows").tensor(&tensor.name))?;
    let (mut signal, mut noise, mut most, mut identical) = (0.0f64, 0.0f64, 0.0f64, true);
    if elements > 0 {
        let cols = Geometry::of(&tensor.shape).cols.max(1);
        let step = (STEP_ELEMENTS / cols).max(1) * cols;
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let mut start = 0;
        while start < elements {
            let end = start.saturating_add(step).min(elements);
            a.read_values(i, start..end, &mut x)?;
            b.read_values(j, start..end, &mut y)?;
            let (mut step_signal, mut step_noise) = (0.0f64, 0.0f64);
            for (x, y) in x.iter().zip(&y) {
                let (value, error) = (f64::from(*x), f64::from(*x) - f64::from(*y));
                if x == y || (x.is_nan() && y.is_nan()) {
                    step_signal += if value.is_finite() { value * value } else { 0.0 };
                    continue;
                }
                identical = false;
                step_signal += value * value;
                step_noise += error * error;
                most = most.max(error.abs());
            }
            signal += step_signal;
            noise += step_noise;
            progress(end - start);
            start = end;
        }
    }
    Ok(TensorDifference {
        name: tensor.name.clone(),
        elements,
        snr_db: (noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
        relative_error: if noise > 0.0 { (noise / signal).sqrt() } else { 0.0 },
        max_abs_error: most,
        identical,
    })
}

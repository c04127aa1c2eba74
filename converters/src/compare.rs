//! Comparison of two models, tensor by tensor.

use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::source::{Source, TensorInfo};
use cmf_format::DType;
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Elements compared at a time.
const STEP_ELEMENTS: u64 = 1 << 19;

/// How a tensor of the second model differs from that of the first.
///
/// Values are taken as f64. Pairs of which one value is NaN or infinite and the other is not the
/// same are counted in `not_finite` and left out of the sums.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDifference {
    /// The name.
    pub name: String,
    /// Number of elements.
    pub elements: u64,
    /// Signal to noise ratio, `10 log10(sum a^2 / sum (a - b)^2)`, in dB; none without noise.
    pub snr_db: Option<f64>,
    /// `sqrt(sum (a - b)^2 / sum a^2)`; 0 without noise, infinite when only the first model's
    /// values are all zero.
    pub relative_error: f64,
    /// Largest `|a - b|`.
    pub max_abs_error: f64,
    /// Pairs that differ by what is no number.
    pub not_finite: u64,
    /// Whether all values are the same.
    pub identical: bool,
}

/// The outcome of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Differences {
    /// All tensors of a floating type that both models have, as if they were one. Integers may be
    /// so large that nothing else would count.
    pub all: TensorDifference,
    /// Tensors that both models have, by name.
    pub tensors: Vec<TensorDifference>,
    /// Names that only the first model has.
    pub only_in_first: Vec<String>,
    /// Names that only the second model has.
    pub only_in_second: Vec<String>,
    /// Tensors whose shapes differ.
    pub shapes_differ: Vec<ShapeDifference>,
}

/// A tensor that has another shape in the second model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShapeDifference {
    /// The name.
    pub name: String,
    /// Its shape in the first model.
    pub first: Vec<u64>,
    /// Its shape in the second.
    pub second: Vec<u64>,
}

impl Differences {
    /// Whether both models have the same tensors with the same values.
    pub fn is_empty(&self) -> bool {
        self.is_within(f64::INFINITY)
    }

    /// Whether both models have the same tensors, each identical or with a signal to noise ratio
    /// of at least `snr_db`.
    pub fn is_within(&self, snr_db: f64) -> bool {
        let is_near = |t: &TensorDifference| t.not_finite == 0 && t.snr_db.is_some_and(|snr| snr >= snr_db);
        self.only_in_first.is_empty()
            && self.only_in_second.is_empty()
            && self.shapes_differ.is_empty()
            && self.tensors.iter().all(|t| t.identical || is_near(t))
    }
}

/// Compares all tensors of `a` with those of the same name of `b`, in bounded memory.
///
/// Sums are f64, in element order within steps of 2^19 elements, so the result does not depend on
/// the number of threads. `progress` is called with elements done and in all.
///
/// # Errors
/// What reading either model gives.
pub fn compare(a: &dyn Source, b: &dyn Source, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Differences> {
    let (mut only_in_first, mut shapes_differ, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    for (i, first) in a.tensors().iter().enumerate() {
        match find(b, &first.name) {
            None => only_in_first.push(first.name.clone()),
            Some((_, second)) if second.shape != first.shape => shapes_differ.push(ShapeDifference {
                name: first.name.clone(),
                first: first.shape.clone(),
                second: second.shape.clone(),
            }),
            Some((j, second)) => pairs.push(Pair { a, b, i, j, first, second }),
        }
    }
    let names = b.tensors().iter().map(|second| &second.name);
    let only_in_second = names.filter(|name| find(a, name).is_none()).cloned().collect();
    let total = pairs.iter().filter_map(|pair| pair.first.elements()).sum();
    let done = AtomicU64::new(0);
    let advance = |step| progress(done.fetch_add(step, Ordering::Relaxed) + step, total);
    let sums =
        pairs.par_iter().with_max_len(1).map(|pair| pair.sums(&advance)).collect::<Result<Vec<_>>>()?;
    let mut all = Sums::default();
    let floats = pairs.iter().zip(&sums).filter(|(pair, _)| pair.first.dtype.is_float());
    floats.for_each(|(_, sums)| all.add(sums));
    let tensors = pairs.iter().zip(&sums).map(|(pair, sums)| sums.difference(&pair.first.name));
    Ok(Differences {
        all: all.difference(""),
        tensors: tensors.collect(),
        only_in_first,
        only_in_second,
        shapes_differ,
    })
}

fn find<'s>(source: &'s dyn Source, name: &str) -> Option<(usize, &'s TensorInfo)> {
    let index = source.tensors().binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
    Some((index, source.tensors().get(index)?))
}

/// A tensor that both have, in the same shape.
struct Pair<'s> {
    a: &'s dyn Source,
    b: &'s dyn Source,
    i: usize,
    j: usize,
    first: &'s TensorInfo,
    second: &'s TensorInfo,
}

impl Pair<'_> {
    fn sums(&self, advance: &dyn Fn(u64)) -> Result<Sums> {
        let elements = self.first.elements();
        let elements =
            elements.ok_or_else(|| Error::bad_file("element count overflows").tensor(&self.first.name))?;
        let cols = Geometry::of(&self.first.shape).cols.max(1);
        let step = (STEP_ELEMENTS / cols).max(1).saturating_mul(cols);
        let mut sums = Sums::default();
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let mut start = 0;
        while start < elements {
            let end = start.saturating_add(step).min(elements);
            read(self.a, self.i, start..end, &mut x)?;
            read(self.b, self.j, start..end, &mut y)?;
            let mut own = Sums::of(&x, &y);
            own.elements = end - start;
            own.differs |= x.len() != y.len() || self.bytes_differ(start..end)?;
            sums.add(&own);
            advance(end - start);
            start = end;
        }
        Ok(sums)
    }

    /// Whether 64-bit integers differ, which f64 may not tell apart.
    fn bytes_differ(&self, range: Range<u64>) -> Result<bool> {
        if self.first.dtype != self.second.dtype || !matches!(self.first.dtype, DType::I64 | DType::U64) {
            return Ok(false);
        }
        let (mut x, mut y) = (Vec::new(), Vec::new());
        self.a.read_elements(self.i, range.clone(), &mut x)?;
        self.b.read_elements(self.j, range, &mut y)?;
        Ok(x != y)
    }
}

#[derive(Default)]
struct Sums {
    elements: u64,
    signal: f64,
    noise: f64,
    most: f64,
    not_finite: u64,
    differs: bool,
}

impl Sums {
    fn of(x: &[f64], y: &[f64]) -> Self {
        let mut sums = Self::default();
        for (x, y) in x.iter().zip(y) {
            let error = x - y;
            if error.is_finite() {
                sums.signal += x * x;
                sums.noise += error * error;
                sums.most = sums.most.max(error.abs());
            } else if x != y && !(x.is_nan() && y.is_nan()) {
                sums.not_finite += 1;
            }
        }
        sums.differs = sums.noise > 0.0 || sums.most > 0.0 || sums.not_finite > 0;
        sums
    }

    fn add(&mut self, other: &Self) {
        self.elements = self.elements.saturating_add(other.elements);
        self.signal += other.signal;
        self.noise += other.noise;
        self.most = self.most.max(other.most);
        self.not_finite += other.not_finite;
        self.differs |= other.differs;
    }

    fn difference(&self, name: &str) -> TensorDifference {
        let noisy = self.noise > 0.0;
        TensorDifference {
            name: name.into(),
            elements: self.elements,
            snr_db: noisy.then(|| 10.0 * (self.signal / self.noise).log10()),
            relative_error: if noisy { (self.noise / self.signal).sqrt() } else { 0.0 },
            max_abs_error: self.most,
            not_finite: self.not_finite,
            identical: !self.differs,
        }
    }
}

/// Reads elements as f64, which holds all but integers beyond 2^53.
fn read(source: &dyn Source, index: usize, range: Range<u64>, out: &mut Vec<f64>) -> Result<()> {
    macro_rules! wide {
        ($ty:ty, $bytes:literal) => {{
            let mut bytes = Vec::new();
            source.read_elements(index, range, &mut bytes)?;
            let (elements, _) = bytes.as_chunks::<$bytes>();
            out.extend(elements.iter().map(|element| <$ty>::from_le_bytes(*element) as f64));
        }};
    }
    out.clear();
    match source.tensors().get(index).map(|t| t.dtype) {
        Some(DType::F64) => wide!(f64, 8),
        Some(DType::I64) => wide!(i64, 8),
        Some(DType::U64) => wide!(u64, 8),
        Some(DType::I32) => wide!(i32, 4),
        Some(DType::U32) => wide!(u32, 4),
        // Real and imaginary parts.
        Some(DType::C64) => wide!(f32, 4),
        _ => {
            let mut values = Vec::new();
            source.read_values(index, range, &mut values)?;
            out.extend(values.iter().map(|value| f64::from(*value)));
        }
    }
    Ok(())
}

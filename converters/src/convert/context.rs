//! What all blocks of a tensor share: transforms, and the second moments of what they leave of the
//! activations.

use super::Block;
use crate::encode::{Calibration, Feedback, FeedbackParams, TermParams};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::moments::{Moments, SecondMoments};
use crate::recipe::Rule;
use crate::source::Source;
use cmf_format::encoding::dense;
use cmf_format::transform::{Side, Transform, hadamard_block};
use cmf_format::write::TransformEntry;
use cmf_format::{DType, NodeData, SegmentData};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Longest Hadamard block of the output side: row blocks are whole multiples of it.
const OUTPUT_BLOCK: u64 = 64;
/// Least second moment that counts, in units of the mean: an input that calibration never saw may
/// still be used.
const LEAST_MOMENT: f64 = 1e-3;
/// Values of a tensor in memory at once while its columns are measured.
const ELEMENTS_AT_ONCE: usize = 1 << 20;

/// The length of the Hadamard blocks on the output side of a matrix with `rows` rows.
pub(super) fn output_block(rule: &Rule, rows: u64) -> u64 {
    match rule.transforms.output_hadamard {
        true => hadamard_block(rows).min(OUTPUT_BLOCK),
        false => 1,
    }
}

/// Transforms and calibration of one tensor.
#[derive(Debug)]
pub(super) struct Context {
    input: Vec<Transform>,
    input_entries: Vec<TransformEntry>,
    output: Option<Output>,
    /// Moments of the transformed activations.
    pub(super) calibration: Option<Calibration>,
    /// What an error of each row costs, in the order of the rows that are encoded.
    row_weights: Option<Vec<f32>>,
    /// The rows of the source in the order in which they are encoded, where that is another.
    order: Option<Vec<u32>>,
}

#[derive(Debug)]
struct Output {
    transform: Transform,
    block: u64,
    seed: u64,
}

impl Context {
    fn new(
        source: &dyn Source,
        index: u64,
        rule: &Rule,
        moments: Option<&dyn Moments>,
        encodes: bool,
    ) -> Result<Self> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let tensor = source.tensors().get(index).ok_or_else(|| Error::bad_argument("tensor index"))?;
        let Geometry { rows, cols, count } = Geometry::of(&tensor.shape);
        let cols_index = usize::try_from(cols).map_err(|_| Error::limit(format!("extent {cols}")))?;
        // Only they are needed of the moments where nothing is to be encoded.
        let scaled = rule.transforms.scale > 0.0;
        let mut known = match moments {
            Some(moments) if encodes || scaled => moments.of(&tensor.name, cols_index)?,
            _ => None,
        };
        let mut context = Self {
            input: Vec::new(),
            input_entries: Vec::new(),
            output: None,
            calibration: None,
            row_weights: None,
            order: None,
        };
        let seed = rule.transforms.seed;
        let mut factors = vec![1.0; cols_index];
        if let (true, Some(known)) = (scaled, &known) {
            multiply_powers(
                &mut factors,
                known.diagonal().into_iter().map(f64::from),
                -rule.transforms.scale,
            );
        }
        if rule.transforms.equalise > 0.0 {
            let squares = column_squares(source, index, count.saturating_mul(rows), cols_index)?;
            multiply_powers(&mut factors, squares.into_iter(), rule.transforms.equalise);
        }
        if factors.iter().any(|factor| *factor != 1.0) {
            let (factors, node) = stored_factors(&factors)?;
            if let Some(known) = &mut known {
                rescale(known, &factors);
            }
            context.input.push(Transform::scale(factors));
            context.input_entries.push(TransformEntry::Scale(node.into()));
        }
        let block = hadamard_block(cols);
        if rule.transforms.input_hadamard && block > 1 {
            let transform = Transform::sign_hadamard(cols_index, block, seed).map_err(format_error)?;
            known = known.filter(|_| encodes).map(|known| rotate(known, &transform)).transpose()?;
            context.input.push(transform);
            context.input_entries.push(TransformEntry::SignHadamard { block, seed });
        }
        let block = output_block(rule, rows);
        if block > 1 {
            let size = usize::try_from(rows).map_err(|_| Error::limit(format!("extent {rows}")))?;
            // Another stream than that of the input side.
            let seed = seed.wrapping_add(1);
            let transform = Transform::sign_hadamard(size, block, seed).map_err(format_error)?;
            context.output = Some(Output { transform, block, seed });
        }
        let ordered = rule.transforms.order_rows;
        if let (Some(moments), true, 1) = (moments, encodes || ordered, count) {
            let rows = usize::try_from(rows).map_err(|_| Error::limit(format!("extent {rows}")))?;
            context.row_weights = moments.row_weights(&tensor.name, rows)?;
            if let (true, Some(weights)) = (ordered, &mut context.row_weights) {
                let mut order: Vec<(u32, f32)> = (0..).zip(weights.iter().copied()).collect();
                order.sort_by(|a, b| b.1.total_cmp(&a.1));
                weights.iter_mut().zip(&order).for_each(|(weight, (_, own))| *weight = *own);
                context.order = Some(order.into_iter().map(|(row, _)| row).collect());
            }
            // A Hadamard transform spreads errors over the rows of its block.
            let block = usize::try_from(block).unwrap_or(1).max(1);
            for part in context.row_weights.iter_mut().flat_map(|all| all.chunks_mut(block)) {
                let mean = part.iter().sum::<f32>() / part.len() as f32;
                part.fill(mean);
            }
        }
        let known = known.filter(|_| encodes);
        context.calibration = known.map(|known| calibration(known, &rule.terms, cols_index)).transpose()?;
        Ok(context)
    }

    /// What an error of each of the rows `rows` costs; none when all cost the same.
    pub(super) fn row_weights(&self, rows: &Range<u64>) -> Option<&[f32]> {
        let at = |row: u64| usize::try_from(row).unwrap_or(usize::MAX);
        self.row_weights.as_ref()?.get(at(rows.start)..at(rows.end))
    }

    /// The records of both sides, in order of application.
    fn entries(&self) -> (Vec<TransformEntry>, Vec<TransformEntry>) {
        let output =
            self.output.iter().map(|o| TransformEntry::SignHadamard { block: o.block, seed: o.seed });
        let order = self.order.iter().map(|order| {
            let indices: Vec<u8> = order.iter().flat_map(|row| row.to_le_bytes()).collect();
            TransformEntry::Permute(SegmentData::from(indices))
        });
        (self.input_entries.clone(), output.chain(order).collect())
    }

    /// The rows of the source, within its matrix, that a block encodes, as runs that follow each other.
    pub(super) fn source_rows(&self, rows: &Range<u64>) -> Vec<Range<u64>> {
        let at = |row: u64| usize::try_from(row).unwrap_or(usize::MAX);
        match self.order.as_ref().and_then(|order| order.get(at(rows.start)..at(rows.end))) {
            Some(order) => order.iter().map(|row| u64::from(*row)..u64::from(*row) + 1).collect(),
            None => vec![rows.clone()],
        }
    }

    /// Takes the values of a block of rows to what its terms are to encode, in place.
    pub(super) fn apply(&self, values: &mut [f32], block: &Block) -> Result<()> {
        let cols = usize::try_from(block.cols).unwrap_or(usize::MAX).max(1);
        for transform in &self.input {
            for row in values.chunks_exact_mut(cols) {
                match transform.kind() {
                    // The inverse of the diagonal; the Hadamard transform is orthogonal.
                    cmf_format::transform::Kind::Scale(factors) => {
                        row.iter_mut().zip(factors).for_each(|(v, factor)| *v /= factor);
                    }
                    _ => transform.apply(Side::Input, row).map_err(format_error)?,
                }
            }
        }
        let Some(output) = &self.output else { return Ok(()) };
        // The part of the transform that acts on these rows: they are whole Hadamard blocks.
        let rows = values.len() / cols;
        let start = usize::try_from(block.rows.start).unwrap_or(usize::MAX);
        let mut signs = vec![0u8; rows.div_ceil(32) * 4];
        if let cmf_format::transform::Kind::SignHadamard { signs: all, .. } = output.transform.kind() {
            for i in (0..rows).filter(|i| all.is_negative(start.saturating_add(*i))) {
                if let Some(byte) = signs.get_mut(i / 8) {
                    *byte |= 1 << (i % 8);
                }
            }
        }
        let own = Transform::stored_sign_hadamard(rows, output.block, &signs).map_err(format_error)?;
        let mut column = vec![0.0; rows];
        for j in 0..cols {
            let of = |i: usize| i * cols + j;
            column.iter_mut().enumerate().for_each(|(i, v)| *v = values.get(of(i)).copied().unwrap_or(0.0));
            own.apply(Side::Input, &mut column).map_err(format_error)?;
            for (i, v) in column.iter().enumerate() {
                if let Some(value) = values.get_mut(of(i)) {
                    *value = *v;
                }
            }
        }
        Ok(())
    }
}

/// Multiplies factors by `values`, in units of their mean, to a power.
fn multiply_powers(factors: &mut [f64], values: impl Iterator<Item = f64> + Clone, power: f64) {
    let mean = values.clone().sum::<f64>() / factors.len().max(1) as f64;
    let mean = if mean > 0.0 { mean } else { 1.0 };
    for (factor, value) in factors.iter_mut().zip(values) {
        *factor *= (value / mean).max(LEAST_MOMENT).powf(power);
    }
}

/// The sum of squares of each column of a tensor's `rows` rows.
fn column_squares(source: &dyn Source, index: usize, rows: u64, cols: usize) -> Result<Vec<f64>> {
    let mut sums = vec![0.0f64; cols];
    let mut values = Vec::new();
    let step = (ELEMENTS_AT_ONCE / cols.max(1)).max(1) as u64;
    for start in (0..rows).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let end = start.saturating_add(step).min(rows);
        source.read_values(index, start * cols as u64..end * cols as u64, &mut values)?;
        for row in values.chunks_exact(cols.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(v * v));
        }
    }
    if sums.iter().any(|sum| !sum.is_finite()) {
        return Err(Error::unsupported("a value").expected("a finite number"));
    }
    Ok(sums)
}

/// Factors of the activations as a reader multiplies by them, and the node that states them.
fn stored_factors(factors: &[f64]) -> Result<(Vec<f32>, NodeData)> {
    let factors: Vec<f32> = factors.iter().map(|factor| *factor as f32).collect();
    let node = dense::pack_values(DType::F16, 1, factors.len() as u64, &factors).map_err(format_error)?;
    let factors = crate::encode::decode(&node)?;
    Ok((factors, node))
}

/// Moments of the activations times `factors`.
fn rescale(moments: &mut SecondMoments, factors: &[f32]) {
    match moments {
        SecondMoments::Diagonal(diagonal) => {
            diagonal.iter_mut().zip(factors).for_each(|(h, factor)| *h *= factor * factor);
        }
        SecondMoments::Full(all) => {
            for (row, a) in all.chunks_exact_mut(factors.len().max(1)).zip(factors) {
                row.iter_mut().zip(factors).for_each(|(h, b)| *h *= a * b);
            }
        }
    }
}

/// Moments of rotated activations. Of a diagonal, what the rotation leaves of it: the mean of each
/// Hadamard block.
fn rotate(moments: SecondMoments, transform: &Transform) -> Result<SecondMoments> {
    let size = transform.size();
    Ok(match moments {
        SecondMoments::Full(mut all) => {
            for _ in 0..2 {
                for row in all.chunks_exact_mut(size.max(1)) {
                    transform.apply(Side::Input, row).map_err(format_error)?;
                }
                transpose(&mut all, size);
            }
            SecondMoments::Full(all)
        }
        SecondMoments::Diagonal(mut diagonal) => {
            if let cmf_format::transform::Kind::SignHadamard { block, .. } = transform.kind() {
                for part in diagonal.chunks_exact_mut(*block) {
                    let mean = part.iter().sum::<f32>() / *block as f32;
                    part.fill(mean);
                }
            }
            SecondMoments::Diagonal(diagonal)
        }
    })
}

fn transpose(square: &mut [f32], size: usize) {
    for i in 0..size {
        for j in 0..i {
            square.swap(i * size + j, j * size + i);
        }
    }
}

fn calibration(known: SecondMoments, terms: &[TermParams], cols: usize) -> Result<Calibration> {
    let diagonal = known.diagonal();
    let SecondMoments::Full(moments) = known else {
        return Ok(Calibration { diagonal, moments: None, feedback: Vec::new() });
    };
    let mut feedback: Vec<(FeedbackParams, Arc<Feedback>)> = Vec::new();
    for wanted in terms.iter().filter_map(TermParams::feedback) {
        if !feedback.iter().any(|(of, _)| *of == wanted) {
            let FeedbackParams { damping, power_cost } = wanted;
            feedback.push((wanted, Arc::new(Feedback::new(&moments, cols, damping, power_cost)?)));
        }
    }
    Ok(Calibration { diagonal, moments: Some(moments), feedback })
}

/// The contexts of the tensors in work.
pub(super) struct Contexts<'a> {
    source: &'a dyn Source,
    moments: Option<&'a dyn Moments>,
    recent: Mutex<VecDeque<(u64, Arc<Slot>)>>,
    kept: usize,
}

/// Filled by the first block that asks.
type Slot = Mutex<Option<Arc<Context>>>;

impl<'a> Contexts<'a> {
    /// Keeps the contexts of the last `kept` tensors.
    pub(super) fn new(source: &'a dyn Source, moments: Option<&'a dyn Moments>, kept: usize) -> Self {
        Self { source, moments, recent: Mutex::default(), kept: kept.max(1) }
    }

    /// The transform records of both sides of a tensor's matrices.
    pub(super) fn entries(
        &self,
        index: u64,
        rule: &Rule,
    ) -> Result<(Vec<TransformEntry>, Vec<TransformEntry>)> {
        Ok(Context::new(self.source, index, rule, self.moments, false)?.entries())
    }

    /// The context of tensor `index`.
    pub(super) fn of(&self, index: u64, rule: &Rule) -> Result<Arc<Context>> {
        let slot = {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            match recent.iter().find(|(of, _)| *of == index) {
                Some((_, slot)) => Arc::clone(slot),
                None => {
                    let slot = Arc::new(Slot::default());
                    recent.push_back((index, Arc::clone(&slot)));
                    if recent.len() > self.kept {
                        recent.pop_front();
                    }
                    slot
                }
            }
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(context) => Ok(Arc::clone(context)),
            None => {
                let context = Arc::new(Context::new(self.source, index, rule, self.moments, true)?);
                *slot = Some(Arc::clone(&context));
                Ok(context)
            }
        }
    }
}

fn format_error(error: cmf_format::Error) -> Error {
    Error::bad_argument(error.to_string()).caused_by(error)
}

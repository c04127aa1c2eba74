//! One row block: from the source's elements to nodes.

use super::Block;
use super::context::Context;
use super::spool::{Encoded, Level};
use crate::encode::{self, NestedMap, Store, TermParams};
use crate::error::{Error, Result};
use crate::recipe::{Exact, Rule, Storage};
use crate::source::Source;
use cmf_format::encoding::{dense, lossless};
use cmf_format::{DType, NodeData};

/// Bytes that a thread takes whatever its block, compressors above all.
const THREAD_BYTES: u64 = 4 << 20;
/// Bytes a weight while one term is fitted: the value, its code, what they are packed to.
const SINGLE_BYTES: u64 = 10;
/// Bytes a weight while a residual is kept beside that.
const SEVERAL_BYTES: u64 = 18;
/// Bytes a weight while factors are fitted to a residual, with copies to try again.
const LOW_RANK_BYTES: u64 = 40;

/// Encodes a block of tensor `index`; `context` is that of the tensor, where it has terms.
pub(super) fn encode(
    source: &dyn Source,
    index: usize,
    storage: Storage<'_>,
    block: &Block,
    context: Option<&Context>,
) -> Result<Encoded> {
    let (rule, context) = match (storage, context) {
        (Storage::Terms(rule), Some(context)) => (rule, context),
        (Storage::Exact(exact), _) => {
            let level = Level { nodes: exactly(source, index, exact, block)?, cost: 0.0 };
            return Ok(Encoded { levels: vec![level], cost: 0.0 });
        }
        (Storage::Terms(_), None) => return Err(Error::bad_argument("context of a block")),
    };
    let (mut values, mut part) = (Vec::new(), Vec::new());
    let matrix_start = block.elements.start - block.rows.start * block.cols;
    for rows in context.source_rows(&block.rows) {
        let elements = matrix_start + rows.start * block.cols..matrix_start + rows.end * block.cols;
        source.read_values(index, elements, &mut part)?;
        if values.is_empty() {
            std::mem::swap(&mut values, &mut part);
        } else {
            values.append(&mut part);
        }
    }
    let extent = |n: u64| usize::try_from(n).map_err(|_| Error::limit(format!("extent {n}")));
    let (rows, cols) = (extent(block.rows.end - block.rows.start)?, extent(block.cols)?);
    // Named by its own place, before anything is mixed.
    encode::Matrix::new(&values, rows, cols)?;
    context.apply(&mut values, block)?;
    let matrix = encode::Matrix::new(&values, rows, cols)?;
    let calibration = context.calibration.as_ref();
    let fed = matches!(rule.terms[..], [TermParams::Grouped(_)]) && calibration.is_some();
    if !rule.progressive && !fed {
        let matrix = match calibration {
            Some(calibration) => matrix.with_weights(&calibration.diagonal)?,
            None => matrix,
        };
        let level = Level { nodes: encode::terms(&matrix, &rule.terms)?, cost: 0.0 };
        return Ok(Encoded { levels: vec![level], cost: 0.0 });
    }
    let (cost, planes) = encode::planes(&matrix, &rule.terms, calibration, context.row_weights(&block.rows))?;
    let level = |plane: encode::Plane| Level { nodes: vec![plane.node], cost: plane.cost };
    Ok(Encoded { levels: planes.into_iter().map(level).collect(), cost })
}

/// The elements themselves.
fn exactly(source: &dyn Source, index: usize, exact: Exact, block: &Block) -> Result<Vec<NodeData>> {
    let dtype = source.tensors().get(index).map_or(DType::F32, |t| t.dtype);
    let (range, rows, cols) = (block.elements.clone(), block.rows.end - block.rows.start, block.cols);
    if block.native
        && let Some(nodes) = source.native_nodes(index, range.clone(), rows, cols)?
    {
        return Ok(nodes);
    }
    let mut bytes = Vec::new();
    source.read_elements(index, range, &mut bytes)?;
    let compressible = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    let node = match exact {
        Exact::Lossless if compressible => lossless::pack(dtype, rows, cols, &bytes),
        _ => dense::pack(dtype, rows, cols, bytes),
    };
    Ok(vec![node.map_err(|e| Error::bad_argument(e.to_string()).caused_by(e))?])
}

/// About how many bytes of memory the encoding of a block takes, as measured on real models.
pub(super) fn working_bytes(storage: Storage<'_>, dtype: DType, block: &Block) -> u64 {
    let elements = block.elements.end.saturating_sub(block.elements.start);
    let terms = match storage {
        // The elements, their planes, and what these become.
        Storage::Exact(_) => {
            return elements.saturating_mul(4 * dtype.bytes() as u64).saturating_add(THREAD_BYTES);
        }
        Storage::Terms(rule) => &rule.terms[..],
    };
    let factors =
        terms.iter().any(|term| matches!(term, TermParams::LowRank(_) | TermParams::SignLowRank(_)));
    let bytes = match (factors, terms) {
        (true, _) => LOW_RANK_BYTES,
        (false, [_]) => SINGLE_BYTES,
        (false, _) => SEVERAL_BYTES,
    };
    elements.saturating_mul(bytes + dtype.bytes() as u64).saturating_add(THREAD_BYTES)
}

/// About how many bits per weight a tensor takes, to size its row blocks.
pub(super) fn bits_per_weight(storage: Storage<'_>, dtype: DType, cols: u64) -> f64 {
    match storage {
        Storage::Exact(_) => f64::from(dtype.bits()),
        // A unit is one level: the largest.
        Storage::Terms(Rule { progressive: true, terms, .. }) => {
            terms.iter().map(|term| term_bits(term, cols) / term.nodes().max(1) as f64).fold(0.0, f64::max)
        }
        Storage::Terms(rule) => rule.terms.iter().map(|term| term_bits(term, cols)).sum(),
    }
}

fn term_bits(term: &TermParams, cols: u64) -> f64 {
    match term {
        TermParams::Dense(own) => f64::from(DType::from(own.dtype).bits()),
        TermParams::Lossless(_) => 32.0,
        TermParams::Grouped(own) => {
            let group = match (own.group_rows, own.group_cols) {
                (rows, 0) => f64::from(rows.max(1)) * cols as f64,
                (rows, cols) => f64::from(rows.max(1)) * f64::from(cols),
            };
            f64::from(own.bits) + (store_bits(&own.scale) + store_bits(&own.zero_store)) / group
        }
        // A position and a value for each; positions take up to 16 bits.
        TermParams::Sparse(_) => 0.5,
        TermParams::LowRank(own) => f64::from(own.rank) * store_bits(&own.factors) / cols as f64,
        TermParams::Codebook(own) => {
            let vector = f64::from(own.vector_rows.max(1)) * f64::from(own.vector_cols.max(1));
            f64::from(own.bits) * f64::from(own.codebooks) / vector
        }
        TermParams::Trellis(own) => {
            let group = f64::from(own.scale_rows.max(1)) * cols as f64;
            f64::from(own.step_bits) + store_bits(&own.scale) / group
        }
        TermParams::SignLowRank(own) => {
            let factor = f64::from(own.rank) * store_bits(&own.factors) / cols as f64;
            f64::from(own.planes) * (1.0 + factor)
        }
        TermParams::Nested(own) => {
            let side = |bits: &u8| match (own.map, own.group_cols) {
                (NestedMap::Table, _) => 2f64.powi((*bits).into()) * store_bits(&own.table) / cols as f64,
                (NestedMap::Integer, 0) => (store_bits(&own.scale) + store_bits(&own.zero)) / cols as f64,
                (NestedMap::Integer, group) => {
                    (store_bits(&own.scale) + store_bits(&own.zero)) / f64::from(group)
                }
            };
            own.bits.last().map_or(0.0, |bits| f64::from(*bits)) + own.bits.iter().map(side).sum::<f64>()
        }
    }
}

fn store_bits(store: &Store) -> f64 {
    match store {
        Store::F32 => 32.0,
        Store::F16 | Store::Bf16 => 16.0,
        Store::F8E4m3 | Store::F8E8m0 => 8.0,
        Store::Grouped(own) => f64::from(own.bits) + 1.0,
    }
}

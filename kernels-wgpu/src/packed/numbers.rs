//! Numbers beside the codes: decoded children, in 16 bits where that is exact.

use crate::error::{Error, Result, index};
use cmf_format::encoding::View;
use core::ops::Range;
use half::{bf16, f16};

/// Most values of a child that are decoded here.
const VALUES_MAX: usize = 1 << 28;

/// Number kinds of `numbers.wgsl`.
const F32: i64 = 1;
const F16: i64 = 2;
const BF16: i64 = 3;

/// Values of a child where the kernels find them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Placed {
    /// A number kind, 0 for nothing.
    pub(super) kind: i64,
    /// The first, in elements of the kind.
    pub(super) at: u32,
    /// Elements from row to row and column to column; 0 for a child that is broadcast.
    pub(super) row_stride: u32,
    pub(super) col_stride: u32,
}

/// Appends rows `rows` of `view` (its only row, where it is broadcast) to `side`.
pub(super) fn place(
    side: &mut Vec<u8>,
    view: &View<'_>,
    rows: Range<usize>,
    kind: Option<i64>,
) -> Result<Placed> {
    let rows = if view.rows() == 1 { 0..1 } else { rows };
    let values = decode(view, rows)?;
    let row_stride = if view.rows() == 1 { 0 } else { index("columns", view.cols() as u64)? };
    let placed = place_values(side, &values, kind)?;
    Ok(Placed { row_stride, col_stride: u32::from(view.cols() != 1), ..placed })
}

/// Appends values to `side`, of the kind asked for or the smallest that is exact.
pub(super) fn place_values(side: &mut Vec<u8>, values: &[f32], kind: Option<i64>) -> Result<Placed> {
    side.resize(side.len().next_multiple_of(4), 0);
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits();
    // Subnormals of 16 bits are not sure to survive a device's conversion.
    let is_f16 =
        |v: &f32| same(f16::from_f32(*v).to_f32(), *v) && (*v == 0.0 || f16::from_f32(*v).is_normal());
    let kind = match kind {
        Some(kind) => kind,
        None if values.iter().all(is_f16) => F16,
        None if values.iter().all(|v| same(bf16::from_f32(*v).to_f32(), *v)) => BF16,
        None => F32,
    };
    let at = index("numbers", side.len() as u64 / if kind == F32 { 4 } else { 2 })?;
    match kind {
        F16 => side.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
        BF16 => side.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
        _ => side.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
    Ok(Placed { kind, at, row_stride: 0, col_stride: 0 })
}

/// Appends a table of f32.
pub(super) fn place_table(side: &mut Vec<u8>, view: &View<'_>, rows: Range<usize>) -> Result<Placed> {
    place(side, view, rows, Some(F32))
}

pub(super) fn decode(view: &View<'_>, rows: Range<usize>) -> Result<Vec<f32>> {
    let count = rows.len().checked_mul(view.cols()).filter(|n| *n <= VALUES_MAX);
    let count = count.ok_or_else(|| Error::limit("a child has too many values"))?;
    let mut values = vec![0.0; count];
    view.decode_rows(rows, &mut values)?;
    Ok(values)
}

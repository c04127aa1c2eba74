//! Whole lists of transforms: on an activation, and on the rows of a matrix.

use super::{Kind, Side, Transform, hadamard};
use crate::error::{Error, ErrorKind, Result};
use core::ops::Range;

/// Transforms an activation in place by a whole list, in order of application.
///
/// # Errors
/// `Argument` when a transform has another size than `x`.
pub fn apply_all(transforms: &[Transform], side: Side, x: &mut [f32]) -> Result<()> {
    let mut scratch = Vec::new();
    transforms.iter().try_for_each(|transform| transform.apply_with(side, x, &mut scratch))
}

/// Multiplies rows of `cols` values by `T_in` from the right, in place.
///
/// `transforms` is the input-side list in order of application; rows meet the last one first.
///
/// # Errors
/// `Argument` when a transform has another size than `cols`.
pub fn right_multiply(transforms: &[Transform], cols: usize, rows: &mut [f32]) -> Result<()> {
    if cols == 0 {
        return Ok(());
    }
    let mut scratch = Vec::new();
    for row in rows.chunks_exact_mut(cols) {
        for transform in transforms.iter().rev() {
            transform.apply_with(Side::Output, row, &mut scratch)?;
        }
    }
    Ok(())
}

/// What gives rows of the matrix that [`left_multiply`] multiplies.
pub type RowSource<'s> = dyn FnMut(Range<usize>, &mut [f32]) -> Result<()> + 's;

/// Rows `rows` of `T_out` times the matrix whose rows `source` gives, into `out`.
///
/// `transforms` is the output-side list in order of application. `source` is asked for the rows
/// that these need: whole Hadamard blocks, the rows that a permutation brings in, or all rows where
/// a permutation brings in many.
///
/// # Errors
/// `Argument` when `rows` goes beyond a transform's size or `out` is not `rows.len() * cols` long,
/// and what `source` returns.
pub fn left_multiply(
    transforms: &[Transform],
    rows: Range<usize>,
    cols: usize,
    out: &mut [f32],
    source: &mut RowSource<'_>,
) -> Result<()> {
    let Some((transform, before)) = transforms.split_last() else {
        return source(rows, out);
    };
    if rows.start > rows.end || rows.end > transform.size || out.len() != rows.len().saturating_mul(cols) {
        let problem = format!("{rows:?} of {} rows of {cols} into {}", transform.size, out.len());
        return Err(Error::new(ErrorKind::Argument, "rows", problem));
    }
    if out.is_empty() {
        return Ok(());
    }
    match &transform.kind {
        Kind::Scale(factors) => {
            left_multiply(before, rows.clone(), cols, out, source)?;
            let factors = factors.get(rows).unwrap_or(&[]);
            for (row, factor) in out.chunks_exact_mut(cols).zip(factors) {
                row.iter_mut().for_each(|v| *v *= factor);
            }
            Ok(())
        }
        Kind::SignHadamard { block, signs } => {
            let mut scratch = Vec::new();
            for start in (rows.start / block * block..rows.end).step_by(*block) {
                let covered = rows.start.max(start)..rows.end.min(start + block);
                let part = (covered.start - rows.start) * cols..(covered.end - rows.start) * cols;
                let out = out.get_mut(part).unwrap_or(&mut []);
                if covered.len() == *block {
                    left_multiply(before, covered.clone(), cols, out, source)?;
                    hadamard(out, cols);
                } else {
                    scratch.resize(block.saturating_mul(cols), 0.0);
                    left_multiply(before, start..start + block, cols, &mut scratch, source)?;
                    hadamard(&mut scratch, cols);
                    let from = (covered.start - start) * cols;
                    out.copy_from_slice(scratch.get(from..from + out.len()).unwrap_or(&[]));
                }
                for (row, out) in covered.zip(out.chunks_exact_mut(cols)) {
                    if signs.is_negative(row) {
                        out.iter_mut().for_each(|v| *v = -*v);
                    }
                }
            }
            Ok(())
        }
        Kind::Permute(indices) => {
            let mut origin = vec![0; transform.size];
            for (i, index) in indices.iter().enumerate() {
                if let Some(origin) = origin.get_mut(*index as usize) {
                    *origin = i;
                }
            }
            let origin = origin.get(rows).unwrap_or(&[]);
            let is_cheap = |t: &Transform| matches!(t.kind, Kind::Scale(_));
            let few = origin.len() < transform.size / 4 && before.iter().all(is_cheap);
            if few || origin.len() == 1 {
                for (out, row) in out.chunks_exact_mut(cols).zip(origin) {
                    left_multiply(before, *row..row + 1, cols, out, source)?;
                }
                return Ok(());
            }
            // One by one, rows would cost a Hadamard block or a compressed frame each.
            let mut whole = vec![0.0; transform.size.saturating_mul(cols)];
            left_multiply(before, 0..transform.size, cols, &mut whole, source)?;
            for (out, row) in out.chunks_exact_mut(cols).zip(origin) {
                out.copy_from_slice(whole.get(row * cols..(row + 1) * cols).unwrap_or(&[]));
            }
            Ok(())
        }
    }
}

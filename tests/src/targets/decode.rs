//! Decoding: whatever parses decodes to the same values however it is sliced, or gives an error.

use super::{file, limits};
use cmf_format::archive::TensorView;
use cmf_format::encoding::View;
use cmf_format::{Archive, DType, ErrorKind, Result};
use std::hint::black_box;
use std::ops::Range;

/// Most values that are decoded at once.
const MAX_VALUES: usize = 1 << 16;
/// Most rows that are read one by one.
const MAX_ROWS: usize = 64;

/// Verifies a file and decodes all that is in it, whole and in slices.
pub fn decode(input: &[u8]) {
    let Some(bytes) = file(input) else { return };
    let Ok(archive) = Archive::parse(&bytes, &limits()) else { return };
    let sound = archive.verify_values();
    let _ = black_box(archive.verify());
    for segment in archive.segments() {
        let stored = segment.record().stored_bytes.get();
        let whole = segment.verify();
        let parts = [0..stored / 2, stored / 2..stored].map(|range| segment.verify_range(range));
        assert!(whole.is_err() || parts.iter().all(|part| part.is_ok()), "a part of a sound segment fails");
        assert!(
            whole.is_ok() || stored == 0 || parts.iter().any(|part| part.is_err()),
            "a damaged part passes"
        );
    }
    for tensor in archive.tensors() {
        let levels = tensor.matrices().map(|m| m.highest_level()).max().unwrap_or(0);
        for level in [0, levels / 2, u16::MAX] {
            let Ok(view) = TensorView::open(&tensor, level) else { continue };
            assert_eq!(view.matrices().iter().map(|m| m.rows()).sum::<usize>(), view.rows());
            let outcome = slices(view.rows(), view.cols(), |rows, out| view.decode_rows(rows, out));
            if sound.is_ok() {
                assert!(is_value_free(&outcome), "verified, but: {outcome:?}");
            }
            elements(&view, tensor.dtype(), &outcome);
        }
    }
    for node in archive.nodes() {
        if let Ok(view) = node.view() {
            decode_view(&view);
        }
    }
}

/// Decodes a node in slices. Gives whether it verifies.
pub(super) fn decode_view(view: &View<'_>) -> bool {
    let sound = view.verify().is_ok();
    let outcome = slices(view.rows(), view.cols(), |rows, out| view.decode_rows(rows, out));
    assert!(!sound || is_value_free(&outcome), "verified, but: {outcome:?}");
    sound
}

/// Whether an outcome is not one that verification should have foretold.
fn is_value_free(outcome: &Option<Result<Vec<f32>>>) -> bool {
    match outcome {
        Some(Err(error)) => error.kind() != ErrorKind::Value,
        _ => true,
    }
}

/// The bytes of exact tensors come back, the others are rounded from the decoded values.
fn elements(view: &TensorView<'_>, dtype: DType, values: &Option<Result<Vec<f32>>>) {
    let Some(row_bytes) = view.cols().checked_mul(dtype.bytes()) else { return };
    let Some(bytes) = row_bytes.checked_mul(view.rows()).filter(|bytes| *bytes <= MAX_VALUES) else { return };
    let mut out = vec![0xA5; bytes];
    let outcome = view.read_elements(0..view.rows(), &mut out);
    if let (Ok(()), Some(Ok(values)), true) = (&outcome, values, view.is_exact()) {
        let mut again = vec![0.0; values.len()];
        if dtype.decode(&out, &mut again).is_ok() {
            assert!(same(&again, values), "exact bytes are not the values");
        }
    }
    if view.rows() > 1 && outcome.is_ok() {
        let mut row = vec![0x5A; row_bytes];
        let last = view.rows() - 1;
        let part = view.read_elements(last..view.rows(), &mut row);
        assert!(part.is_ok() && out.ends_with(&row), "the last row differs from that of the whole");
    }
}

/// Decodes the whole and slices of it, which must agree. `None` when the whole is too large.
fn slices(
    rows: usize,
    cols: usize,
    decode: impl Fn(Range<usize>, &mut [f32]) -> Result<()>,
) -> Option<Result<Vec<f32>>> {
    assert!(decode(0..0, &mut [1.0]).is_err(), "takes more values than there are");
    let past = rows..rows.saturating_add(1);
    assert!(
        past.is_empty() || decode(past, &mut vec![0.0; cols.min(MAX_VALUES)]).is_err(),
        "reads past the end"
    );
    let nothing = decode(0..0, &mut []);
    if rows > 0 && cols <= MAX_VALUES {
        let mut row = vec![f32::NAN; cols];
        let _ = black_box(decode(rows - 1..rows, &mut row));
    }
    let values = rows.checked_mul(cols).filter(|values| *values <= MAX_VALUES)?;
    if cols == 0 && rows > MAX_VALUES {
        return None;
    }
    let mut whole = vec![f32::NAN; values];
    if let Err(error) = decode(0..rows, &mut whole) {
        black_box(error.to_string());
        return Some(Err(error));
    }
    assert!(nothing.is_ok(), "reads all and refuses to read nothing: {nothing:?}");
    let ones = (0..rows.min(MAX_ROWS)).map(|row| row..row + 1);
    for slice in ones.chain([0..rows / 2, rows / 3..rows, rows..rows]) {
        let mut part = vec![-f32::NAN; slice.len() * cols];
        let outcome = decode(slice.clone(), &mut part);
        assert!(outcome.is_ok(), "rows {slice:?} fail and the whole does not: {outcome:?}");
        let expected = whole.get(slice.start * cols..slice.end * cols).unwrap_or(&[]);
        assert!(same(&part, expected), "rows {slice:?} differ from those of the whole");
    }
    Some(Ok(whole))
}

/// Whether two arrays have the same bits, all NaN being one value.
pub fn same(a: &[f32], b: &[f32]) -> bool {
    let bits = |v: &f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| bits(a) == bits(b))
}

//! `dense`: elements multiplied with as they lie.

use super::Wanted;
use crate::arch;
use crate::error::Result;
use crate::operands::{Element, Elements, Input};
use cmf_format::DType;
use cmf_format::encoding::dense::View;
use core::ops::Range;

/// The type, if there is a kernel for it.
pub(super) fn element(dtype: DType) -> Option<Element> {
    match dtype {
        DType::F16 => Some(Element::F16),
        DType::BF16 => Some(Element::Bf16),
        DType::F32 => Some(Element::F32),
        _ => None,
    }
}

pub(super) fn multiply(element: Element, view: &View<'_>, input: &Input<'_>, wanted: Wanted<'_>) {
    let Wanted { simd, rows, out, .. } = wanted;
    let (count, cols) = (rows.len(), view.cols());
    arch::elements(simd, &Elements { element, bytes: bytes(view, rows), rows: count, cols }, input, out);
}

pub(super) fn decode(view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
    let Wanted { simd, rows, out, .. } = wanted;
    let bytes = bytes(view, rows);
    match view.dtype() {
        DType::F16 => {
            arch::halves(simd, bytes.as_chunks().0, out);
            Ok(())
        }
        dtype => simd.run(
            #[inline(always)]
            || dtype.decode(bytes, out),
        ),
    }
}

fn bytes<'v>(view: &'v View<'_>, rows: Range<usize>) -> &'v [u8] {
    let row_bytes = view.cols() * view.dtype().bytes();
    view.bytes().get(rows.start * row_bytes..rows.end * row_bytes).unwrap_or(&[])
}

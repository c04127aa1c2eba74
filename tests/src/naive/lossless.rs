//! spec/encodings/lossless.md

use super::dense::{element, element_bytes};
use super::{Outcome, Reject, Tree, ceil, number, payload, require, zstd_frame};

const MAX_FRAME_ELEMENTS: u64 = 1 << 24;

struct Fields {
    dtype: u64,
    element_bytes: u64,
    rows_per_frame: u64,
    chunk_bytes: u64,
}

fn fields(node: &Tree) -> Outcome<Fields> {
    let at = |offset, length| number(&node.descriptor, offset, length);
    let dtype = at(0, 2);
    let element_bytes = element_bytes(dtype).ok_or(Reject::Unsupported)?;
    Ok(Fields { dtype, element_bytes, rows_per_frame: at(4, 4), chunk_bytes: at(8, 8) })
}

fn frames(node: &Tree, f: &Fields) -> u64 {
    if node.cols == 0 { 0 } else { ceil(node.rows, f.rows_per_frame) }
}

pub(super) fn check(node: &Tree) -> Outcome<()> {
    require(node.descriptor.len() == 16 && number(&node.descriptor, 2, 2) == 0)?;
    let f = fields(node)?;
    require(f.rows_per_frame >= 1)?;
    let elements = f.rows_per_frame.checked_mul(node.cols);
    require(f.rows_per_frame == 1 || elements.is_some_and(|n| n <= MAX_FRAME_ELEMENTS))?;
    node.parts(16, 2, 0)?;
    require(node.rows.checked_mul(node.cols).and_then(|n| n.checked_mul(f.element_bytes)).is_some())?;
    node.segment_bytes(0, frames(node, &f).checked_mul(f.element_bytes * 8))?;
    node.segment_bytes(1, Some(f.chunk_bytes))
}

/// The decoded bytes of plane `plane` of frame `frame`.
fn chunk(node: &Tree, f: &Fields, frame: u64, plane: u64) -> Outcome<Vec<u8>> {
    let index = frame * f.element_bytes + plane;
    if let Some(known) = node.chunks.borrow().get(&index) {
        return known.clone();
    }
    let decoded = decode_chunk(node, f, frame, index);
    node.chunks.borrow_mut().insert(index, decoded.clone());
    decoded
}

fn decode_chunk(node: &Tree, f: &Fields, frame: u64, index: u64) -> Outcome<Vec<u8>> {
    let first = frame * f.rows_per_frame;
    let n = (f.rows_per_frame.min(node.rows - first)) * node.cols;
    let end_of = |index: u64| number(node.segment(0), index * 8, 8);
    let start = if index == 0 { 0 } else { end_of(index - 1) };
    let end = end_of(index);
    payload(start <= end && end <= f.chunk_bytes)?;
    payload(index + 1 != frames(node, f) * f.element_bytes || end == f.chunk_bytes)?;
    let bytes = node.segment(1).get(start as usize..end as usize).unwrap_or(&[]);
    payload(end - start <= n)?;
    if end - start == n {
        return Ok(bytes.to_vec());
    }
    zstd_frame::decode(bytes, n).ok_or(Reject::Value)
}

pub(super) fn verify(node: &Tree) -> Outcome<()> {
    let f = fields(node)?;
    let frames = frames(node, &f);
    payload(frames != 0 || f.chunk_bytes == 0)?;
    let all = (0..frames).flat_map(|frame| (0..f.element_bytes).map(move |plane| (frame, plane)));
    all.into_iter().try_for_each(|(frame, plane)| chunk(node, &f, frame, plane).map(drop))
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    let f = fields(node)?;
    let frame = i / f.rows_per_frame;
    let k = i % f.rows_per_frame * node.cols + j;
    let mut r = 0u64;
    for plane in 0..f.element_bytes {
        r = r << 8 | number(&chunk(node, &f, frame, plane)?, k, 1);
    }
    let width = f.element_bytes * 8;
    element(f.dtype, r >> 1 | (r & 1) << (width - 1))
}

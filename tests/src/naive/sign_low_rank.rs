//! spec/encodings/sign_low_rank.md

use super::{Outcome, Reject, Tree, bits, number, payload, require, stream_row_bytes, tail_is_zero};

pub(super) fn check(node: &Tree) -> Outcome<()> {
    node.parts(8, 1, 2)?;
    let rank = number(&node.descriptor, 0, 4);
    require(rank >= 1 && number(&node.descriptor, 4, 4) == 0)?;
    let shapes: Vec<_> = node.children.iter().map(|c| (c.rows, c.cols)).collect();
    require(shapes == [(rank, node.rows), (rank, node.cols)])?;
    node.segment_bytes(0, stream_row_bytes(node.cols, 1).and_then(|n| n.checked_mul(node.rows)))
}

pub(super) fn verify(node: &Tree) -> Outcome<()> {
    let row_bytes = stream_row_bytes(node.cols, 1).unwrap_or(0);
    payload(tail_is_zero(node.segment(0), node.rows, row_bytes, node.cols))
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    let [a_t, b] = node.children.as_slice() else { return Err(Reject::Structure) };
    let mut v = 0.0;
    for k in 0..number(&node.descriptor, 0, 4) {
        let product = a_t.value(k, i)? * b.value(k, j)?;
        v += product;
    }
    let row = i * stream_row_bytes(node.cols, 1).unwrap_or(0);
    Ok(if bits(node.segment(0), row, j, 1) == 1 { v } else { -v })
}

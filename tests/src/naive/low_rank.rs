//! spec/encodings/low_rank.md

use super::{Outcome, Reject, Tree, number, require};

pub(super) fn check(node: &Tree) -> Outcome<()> {
    node.parts(8, 0, 2)?;
    let rank = number(&node.descriptor, 0, 4);
    require(rank >= 1 && number(&node.descriptor, 4, 4) == 0)?;
    let shapes: Vec<_> = node.children.iter().map(|c| (c.rows, c.cols)).collect();
    require(shapes == [(rank, node.rows), (rank, node.cols)])
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    let [a_t, b] = node.children.as_slice() else { return Err(Reject::Structure) };
    let mut v = 0.0;
    for k in 0..number(&node.descriptor, 0, 4) {
        let product = a_t.value(k, i)? * b.value(k, j)?;
        v += product;
    }
    Ok(v)
}

//! spec/encodings/codebook.md

use super::{Outcome, Reject, Tree, bits, ceil, number, payload, require, stream_row_bytes, tail_is_zero};

struct Fields {
    codebooks: u64,
    bits: u64,
    has_scale: u64,
    vector_rows: u64,
    vector_cols: u64,
    scale_cols: u64,
}

fn fields(node: &Tree) -> Fields {
    let at = |offset, length| number(&node.descriptor, offset, length);
    Fields {
        codebooks: at(0, 1),
        bits: at(1, 1),
        has_scale: at(2, 1),
        vector_rows: at(4, 4),
        vector_cols: at(8, 4),
        scale_cols: at(12, 4),
    }
}

/// Codes of a vector row.
fn codes_across(node: &Tree, f: &Fields) -> Option<u64> {
    ceil(node.cols, f.vector_cols).checked_mul(f.codebooks)
}

pub(super) fn check(node: &Tree) -> Outcome<()> {
    require(node.descriptor.len() == 16 && number(&node.descriptor, 3, 1) == 0)?;
    let f = fields(node);
    require(f.codebooks >= 1 && (1..=16).contains(&f.bits) && f.has_scale <= 1)?;
    let elements = f.vector_rows * f.vector_cols;
    require((1..=65_536).contains(&elements))?;
    require(f.scale_cols.is_multiple_of(f.vector_cols) && (f.has_scale == 1 || f.scale_cols == 0))?;
    node.parts(16, 1, 1 + f.has_scale as usize)?;
    let down = ceil(node.rows, f.vector_rows);
    let row_bytes = codes_across(node, &f).and_then(|codes| stream_row_bytes(codes, f.bits));
    node.segment_bytes(0, row_bytes.and_then(|n| n.checked_mul(down)))?;
    let scales_across = match (node.cols, f.scale_cols) {
        (0, _) => 0,
        (_, 0) => 1,
        _ => ceil(node.cols, f.scale_cols),
    };
    let mut children = node.children.iter();
    require(children.next().is_some_and(|c| (c.rows, c.cols) == (f.codebooks << f.bits, elements)))?;
    require(children.all(|scale| scale.broadcasts_to(down, scales_across)))
}

pub(super) fn verify(node: &Tree) -> Outcome<()> {
    let f = fields(node);
    let codes = codes_across(node, &f).unwrap_or(0);
    let row_bytes = stream_row_bytes(codes, f.bits).unwrap_or(0);
    let down = ceil(node.rows, f.vector_rows);
    payload(tail_is_zero(node.segment(0), down, row_bytes, codes * f.bits))
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    let f = fields(node);
    let Some(codebooks) = node.children.first() else { return Err(Reject::Structure) };
    let row_bytes = codes_across(node, &f).and_then(|codes| stream_row_bytes(codes, f.bits)).unwrap_or(0);
    let (down, across) = (i / f.vector_rows, j / f.vector_cols);
    let e = i % f.vector_rows * f.vector_cols + j % f.vector_cols;
    let entry = |m: u64| {
        let code = bits(node.segment(0), down * row_bytes, (across * f.codebooks + m) * f.bits, f.bits);
        codebooks.value((m << f.bits) + code, e)
    };
    let mut v = entry(0)?;
    for m in 1..f.codebooks {
        v += entry(m)?;
    }
    if let Some(scale) = node.children.get(1) {
        v *= scale.broadcast(down, j.checked_div(f.scale_cols).unwrap_or(0))?;
    }
    Ok(v)
}

//! spec/encodings/grouped.md

use super::{
    Outcome, Reject, Tree, bits, ceil, minifloat, number, payload, require, signed, stream_row_bytes,
    tail_is_zero,
};

struct Fields {
    bits: u64,
    code_map: u64,
    scale_op: u64,
    zero_op: u64,
    group_rows: u64,
    group_cols: u64,
    offset: i32,
    e_bits: u64,
    m_bits: u64,
    s_bits: u64,
    special: u64,
    bias: i32,
}

fn fields(node: &Tree) -> Fields {
    let at = |offset, length| number(&node.descriptor, offset, length);
    Fields {
        bits: at(0, 1),
        code_map: at(1, 1),
        scale_op: at(2, 1),
        zero_op: at(3, 1),
        group_rows: at(4, 4),
        group_cols: at(8, 4),
        offset: signed(&node.descriptor, 12),
        e_bits: at(16, 1),
        m_bits: at(17, 1),
        s_bits: at(18, 1),
        special: at(19, 1),
        bias: signed(&node.descriptor, 20),
    }
}

fn groups(extent: u64, group: u64) -> u64 {
    match (extent, group) {
        (0, _) => 0,
        (_, 0) => 1,
        _ => ceil(extent, group),
    }
}

pub(super) fn check(node: &Tree) -> Outcome<()> {
    require(node.descriptor.len() == 32 && number(&node.descriptor, 24, 8) == 0)?;
    let f = fields(node);
    require((1..=8).contains(&f.bits))?;
    if f.code_map > 2 || f.scale_op > 2 || f.zero_op > 2 {
        return Err(Reject::Unsupported);
    }
    if f.code_map == 1 {
        require(f.s_bits <= 1 && f.e_bits >= 1 && f.s_bits + f.e_bits + f.m_bits == f.bits)?;
        require((-127..=127).contains(&f.bias))?;
        if f.special > 2 {
            return Err(Reject::Unsupported);
        }
    } else {
        require(f.e_bits == 0 && f.m_bits == 0 && f.s_bits == 0 && f.special == 0 && f.bias == 0)?;
    }
    require(f.code_map == 0 || f.offset == 0)?;
    let present = [f.scale_op != 0, f.zero_op != 0, f.code_map == 2];
    node.parts(32, 1, present.iter().filter(|p| **p).count())?;
    let (down, across) = (groups(node.rows, f.group_rows), groups(node.cols, f.group_cols));
    let mut children = node.children.iter();
    for name in ["scale", "zero", "table"].iter().zip(present).filter(|(_, p)| *p).map(|(name, _)| name) {
        let child = children.next().ok_or(Reject::Structure)?;
        require(match *name {
            "table" => (child.rows == node.rows || child.rows == 1) && child.cols == 1 << f.bits,
            _ => child.broadcasts_to(down, across),
        })?;
    }
    let row_bytes = stream_row_bytes(node.cols, f.bits);
    node.segment_bytes(0, row_bytes.and_then(|n| n.checked_mul(node.rows)))
}

pub(super) fn verify(node: &Tree) -> Outcome<()> {
    let width = fields(node).bits;
    let row_bytes = stream_row_bytes(node.cols, width).unwrap_or(0);
    payload(tail_is_zero(node.segment(0), node.rows, row_bytes, node.cols * width))
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    let f = fields(node);
    let row_bytes = stream_row_bytes(node.cols, f.bits).unwrap_or(0);
    let code = bits(node.segment(0), i * row_bytes, j * f.bits, f.bits);
    let group = (i.checked_div(f.group_rows).unwrap_or(0), j.checked_div(f.group_cols).unwrap_or(0));
    let mut children = node.children.iter();
    let mut child = |present: bool| if present { children.next() } else { None };
    let (scale, zero, table) = (child(f.scale_op != 0), child(f.zero_op != 0), child(f.code_map == 2));
    let of = |child: Option<&Tree>| child.map_or(Ok(0.0), |c| c.broadcast(group.0, group.1));
    let (s, z) = (of(scale)?, of(zero)?);
    let mut v = match (f.code_map, table) {
        (0, _) => (code as i64 + i64::from(f.offset)) as f32,
        (2, Some(table)) => table.value(if table.rows == 1 { 0 } else { i }, code)?,
        _ => float(&f, code),
    };
    if f.zero_op == 1 {
        v -= z;
    }
    match f.scale_op {
        1 => v *= s,
        2 => v /= s,
        _ => {}
    }
    if f.zero_op == 2 {
        v += z;
    }
    Ok(v)
}

fn float(f: &Fields, code: u64) -> f32 {
    let m = code & ((1 << f.m_bits) - 1);
    let e = code >> f.m_bits & ((1 << f.e_bits) - 1);
    let negative = f.s_bits == 1 && code >> (f.e_bits + f.m_bits) & 1 == 1;
    let last = e == (1 << f.e_bits) - 1;
    match f.special {
        2 if last && m == (1 << f.m_bits) - 1 => f32::NAN,
        1 if last && m != 0 => f32::NAN,
        1 if last && negative => f32::NEG_INFINITY,
        1 if last => f32::INFINITY,
        _ => minifloat(code, f.e_bits, f.m_bits, f.bias.into()),
    }
}

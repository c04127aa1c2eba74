//! spec/encodings/trellis.md

use super::{Outcome, Reject, Tree, ceil, number, payload, require};

struct Fields {
    state_bits: u64,
    step_bits: u64,
    code: u64,
    axis: u64,
    path_elems: u64,
    multiplier: u64,
    addend: u64,
    scale_rows: u64,
    scale_cols: u64,
}

fn fields(node: &Tree) -> Fields {
    let at = |offset, length| number(&node.descriptor, offset, length);
    Fields {
        state_bits: at(0, 1),
        step_bits: at(1, 1),
        code: at(2, 1),
        axis: at(3, 1),
        path_elems: at(4, 4),
        multiplier: at(8, 4),
        addend: at(12, 4),
        scale_rows: at(16, 4),
        scale_cols: at(20, 4),
    }
}

/// E of the page, and the number of such lines.
fn axis(node: &Tree, f: &Fields) -> (u64, u64) {
    if f.axis == 0 { (node.rows, node.cols) } else { (node.cols, node.rows) }
}

/// P of the page.
fn path(node: &Tree, f: &Fields) -> u64 {
    if f.path_elems == 0 { axis(node, f).0 } else { f.path_elems }
}

fn words(n: u64, f: &Fields) -> Option<u64> {
    Some(ceil(n.checked_mul(f.step_bits)?, 32))
}

fn axis_words(node: &Tree, f: &Fields) -> Option<u64> {
    let (e, p) = (axis(node, f).0, path(node, f));
    match e {
        0 => Some(0),
        // Without a whole path its length counts for nothing.
        _ if e < p => words(e, f),
        _ => (e / p).checked_mul(words(p, f)?)?.checked_add(words(e % p, f)?),
    }
}

fn scales(extent: u64, group: u64) -> u64 {
    match (extent, group) {
        (0, _) => 0,
        (_, 0) => 1,
        _ => ceil(extent, group),
    }
}

pub(super) fn check(node: &Tree) -> Outcome<()> {
    require(node.descriptor.len() == 32 && number(&node.descriptor, 24, 8) == 0)?;
    let f = fields(node);
    require((6..=16).contains(&f.state_bits) && (1..=4).contains(&f.step_bits) && f.axis <= 1)?;
    if f.code > 1 {
        return Err(Reject::Unsupported);
    }
    require(f.code == 1 || (f.multiplier, f.addend) == (0, 0))?;
    node.parts(32, 1, if f.code == 0 { 2 } else { 1 })?;
    let bytes = axis_words(node, &f)
        .and_then(|words| words.checked_mul(axis(node, &f).1))
        .and_then(|words| words.checked_mul(4));
    node.segment_bytes(0, bytes)?;
    let mut children = node.children.iter();
    let (down, across) = (scales(node.rows, f.scale_rows), scales(node.cols, f.scale_cols));
    require(children.next().is_some_and(|scale| scale.broadcasts_to(down, across)))?;
    require(children.all(|table| (table.rows, table.cols) == (1, 1 << f.state_bits)))
}

/// The path of line `line` that holds weight `at` of the axis.
struct Path<'t> {
    node: &'t Tree,
    f: Fields,
    line: u64,
    /// First weight and number of weights.
    start: u64,
    n: u64,
}

impl<'t> Path<'t> {
    fn of(node: &'t Tree, line: u64, at: u64) -> Self {
        let f = fields(node);
        let (e, p) = (axis(node, &f).0, path(node, &f));
        let start = at / p * p;
        Self { node, f, line, start, n: p.min(e - start) }
    }

    /// Bit `p` of the path.
    fn bit(&self, p: u64) -> u64 {
        let first = match self.start {
            0 => 0,
            start => start / path(self.node, &self.f) * words(path(self.node, &self.f), &self.f).unwrap_or(0),
        };
        let index = match self.f.axis {
            0 => (first + p / 32) * self.node.cols + self.line,
            _ => self.line * axis_words(self.node, &self.f).unwrap_or(0) + first + p / 32,
        };
        number(self.node.segment(0), index * 4, 4) >> (p % 32) & 1
    }
}

pub(super) fn verify(node: &Tree) -> Outcome<()> {
    let f = fields(node);
    let (e, lines) = axis(node, &f);
    for line in 0..if e == 0 { 0 } else { lines } {
        let mut at = 0;
        while at < e {
            let path = Path::of(node, line, at);
            let used = path.n * f.step_bits;
            let all = words(path.n, &f).unwrap_or(0) * 32;
            payload((used..all).all(|p| path.bit(p) == 0))?;
            at += path.n;
        }
    }
    Ok(())
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    let f = fields(node);
    let (at, line) = if f.axis == 0 { (i, j) } else { (j, i) };
    let path = Path::of(node, line, at);
    let (t, ring) = ((at - path.start) as i64, (path.n * f.step_bits) as i64);
    let (k, l) = (f.step_bits as i64, f.state_bits as i64);
    let mut s = 0;
    for i in 0..l {
        s += path.bit((k * (t + 1) - l + i).rem_euclid(ring) as u64) << i;
    }
    let (Some(scale), table) = (node.children.first(), node.children.get(1)) else {
        return Err(Reject::Structure);
    };
    let v = match table {
        Some(table) => table.value(0, s)?,
        None => {
            let x = (s * f.multiplier + f.addend) % (1 << 32);
            let sum = x % 256 + x / 256 % 256 + x / 65_536 % 256 + x / 16_777_216;
            sum as f32 - 510.0
        }
    };
    let group = |at: u64, group: u64| at.checked_div(group).unwrap_or(0);
    Ok(v * scale.broadcast(group(i, f.scale_rows), group(j, f.scale_cols))?)
}

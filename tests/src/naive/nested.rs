//! spec/encodings/nested.md

use super::{Outcome, Reject, Tree, bits, ceil, number, payload, require, stream_row_bytes, tail_is_zero};

struct Level {
    bits: u64,
    map: u64,
    rounding: u64,
    group_cols: u64,
}

/// This level, and the one below if there is one.
fn levels(node: &Tree) -> Vec<Level> {
    let at = |offset, length| number(&node.descriptor, offset, length);
    let own = Level { bits: at(0, 1), map: at(1, 1), rounding: at(2, 1), group_cols: at(8, 4) };
    let lower = Level { bits: at(3, 1), map: at(4, 1), rounding: at(5, 1), group_cols: at(12, 4) };
    [own, lower].into_iter().filter(|level| level.bits > 0).collect()
}

pub(super) fn check(node: &Tree) -> Outcome<()> {
    let at = |offset, length| number(&node.descriptor, offset, length);
    require(node.descriptor.len() == 16 && at(6, 2) == 0)?;
    require((1..=8).contains(&at(0, 1)) && at(3, 1) < at(0, 1))?;
    require(at(3, 1) > 0 || (at(4, 2) == 0 && at(12, 4) == 0))?;
    let mut shapes = Vec::new();
    for level in levels(node) {
        if level.map > 1 || level.rounding > 1 {
            return Err(Reject::Unsupported);
        }
        require(level.map == 0 || level.group_cols == 0)?;
        let across = match (node.cols, level.group_cols) {
            (0, _) => 0,
            (_, 0) => 1,
            (cols, group) => ceil(cols, group),
        };
        match level.map {
            0 => shapes.extend([(across, true), (across, true)]),
            _ => shapes.push((1 << level.bits, false)),
        }
    }
    let planes = at(0, 1) + at(2, 1);
    require(planes <= 8)?;
    node.parts(16, planes as usize, shapes.len())?;
    for (child, (cols, broadcast)) in node.children.iter().zip(shapes) {
        require(child.rows == node.rows || child.rows == 1)?;
        require(child.cols == cols || (broadcast && child.cols == 1))?;
    }
    let bytes = stream_row_bytes(node.cols, 1).and_then(|n| n.checked_mul(node.rows));
    (0..planes).try_for_each(|plane| node.segment_bytes(plane as usize, bytes))
}

pub(super) fn verify(node: &Tree) -> Outcome<()> {
    let row_bytes = stream_row_bytes(node.cols, 1).unwrap_or(0);
    node.segments.iter().try_for_each(|plane| payload(tail_is_zero(plane, node.rows, row_bytes, node.cols)))
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    let row = i * stream_row_bytes(node.cols, 1).unwrap_or(0);
    let p = |plane: u64| bits(node.segment(plane as usize), row, j, 1);
    let mut children = node.children.iter();
    let mut child = || children.next().ok_or(Reject::Structure);
    let mut values = Vec::new();
    for level in levels(node) {
        let mut c = (0..level.bits).map(|k| p(k) << (level.bits - 1 - k)).sum::<u64>();
        if level.rounding == 1 {
            c = (c + p(level.bits)).min((1 << level.bits) - 1);
        }
        values.push(match level.map {
            0 => {
                let group = j.checked_div(level.group_cols).unwrap_or(0);
                let (scale, zero) = (child()?.broadcast(i, group)?, child()?.broadcast(i, group)?);
                (c as f32 - zero) * scale
            }
            _ => {
                let table = child()?;
                table.value(if table.rows == 1 { 0 } else { i }, c)?
            }
        });
    }
    match values.as_slice() {
        [own] => Ok(*own),
        [own, lower] => Ok(own - lower),
        _ => Err(Reject::Structure),
    }
}

//! spec/encodings/sparse.md

use super::{Outcome, Reject, Tree, bits, ceil, number, payload, require, stream_row_bytes, tail_is_zero};

struct Fields {
    op: u64,
    layout: u64,
    index_bits: u64,
    block_rows: u64,
    block_cols: u64,
    n: u64,
    m: u64,
    count: u64,
}

fn fields(node: &Tree) -> Fields {
    let at = |offset, length| number(&node.descriptor, offset, length);
    Fields {
        op: at(0, 1),
        layout: at(1, 1),
        index_bits: at(2, 1),
        block_rows: at(4, 4),
        block_cols: at(8, 4),
        n: at(12, 2),
        m: at(14, 2),
        count: at(16, 8),
    }
}

/// `ceil(log2 m)`.
fn position_bits(m: u64) -> u64 {
    (0..).find(|bits| 1u64 << bits >= m).unwrap_or(64)
}

pub(super) fn check(node: &Tree) -> Outcome<()> {
    require(node.descriptor.len() == 24 && number(&node.descriptor, 3, 1) == 0)?;
    let f = fields(node);
    if f.op > 1 || !(1..=3).contains(&f.layout) {
        return Err(Reject::Unsupported);
    }
    let block = f.block_rows * f.block_cols;
    require((1..=65_536).contains(&block))?;
    if f.layout == 3 {
        require(f.index_bits == 0 && block == 1 && f.m >= 2 && (1..=f.m).contains(&f.n))?;
        let kept = ceil(node.cols, f.m).checked_mul(f.n).ok_or(Reject::Structure)?;
        require(node.rows.checked_mul(kept) == Some(f.count))?;
        node.parts(24, 1, 1)?;
        node.segment_bytes(
            0,
            stream_row_bytes(kept, position_bits(f.m)).and_then(|n| n.checked_mul(node.rows)),
        )?;
        return require(node.children.iter().all(|c| (c.rows, c.cols) == (node.rows, kept)));
    }
    require(f.n == 0 && f.m == 0 && f.count <= u64::from(u32::MAX))?;
    node.parts(24, 2, 1)?;
    let (down, across) = (ceil(node.rows, f.block_rows), ceil(node.cols, f.block_cols));
    node.segment_bytes(0, down.checked_add(1).and_then(|n| n.checked_mul(4)))?;
    if f.layout == 1 {
        require(f.index_bits == 16 || f.index_bits == 32)?;
        node.segment_bytes(1, f.count.checked_mul(f.index_bits / 8))?;
    } else {
        require(f.index_bits == 0)?;
        node.segment_bytes(1, ceil(across, 32).checked_mul(4).and_then(|n| n.checked_mul(down)))?;
    }
    let elements = f.count.checked_mul(block).ok_or(Reject::Structure)?;
    require(node.children.iter().all(|c| (1..=65_536).contains(&c.cols) && c.rows == ceil(elements, c.cols)))
}

/// The checked block columns of block row I, and the number of its first entry.
fn block_row(node: &Tree, f: &Fields, block_row: u64) -> Outcome<(u64, Vec<u64>)> {
    let (down, across) = (ceil(node.rows, f.block_rows), ceil(node.cols, f.block_cols));
    let offset = |index: u64| number(node.segment(0), index * 4, 4);
    let (start, end) = (offset(block_row), offset(block_row + 1));
    payload(block_row != 0 || start == 0)?;
    payload(block_row + 1 != down || end == f.count)?;
    payload(start <= end && end <= f.count)?;
    let columns: Vec<u64> = if f.layout == 1 {
        let bytes = f.index_bits / 8;
        (start..end).map(|entry| number(node.segment(1), entry * bytes, bytes)).collect()
    } else {
        let row_bytes = ceil(across, 32) * 4;
        let row = block_row * row_bytes;
        (0..row_bytes * 8).filter(|bit| bits(node.segment(1), row, *bit, 1) == 1).collect()
    };
    payload(columns.len() as u64 == end - start)?;
    payload(columns.is_sorted_by(|a, b| a < b) && columns.iter().all(|column| *column < across))?;
    Ok((start, columns))
}

/// The checked positions of row i, group after group.
fn positions(node: &Tree, f: &Fields, i: u64) -> Outcome<Vec<u64>> {
    let width = position_bits(f.m);
    let kept = ceil(node.cols, f.m) * f.n;
    let row = i * stream_row_bytes(kept, width).unwrap_or(0);
    let codes: Vec<u64> = (0..kept).map(|k| bits(node.segment(0), row, k * width, width)).collect();
    for group in codes.chunks(f.n as usize) {
        payload(group.is_sorted_by(|a, b| a < b) && group.iter().all(|position| *position < f.m))?;
    }
    Ok(codes)
}

pub(super) fn verify(node: &Tree) -> Outcome<()> {
    let f = fields(node);
    if f.layout == 3 {
        let kept = ceil(node.cols, f.m) * f.n;
        let row_bytes = stream_row_bytes(kept, position_bits(f.m)).unwrap_or(0);
        payload(tail_is_zero(node.segment(0), node.rows, row_bytes, kept * position_bits(f.m)))?;
        return (0..node.rows).try_for_each(|i| positions(node, &f, i).map(drop));
    }
    let down = ceil(node.rows, f.block_rows);
    if down == 0 {
        // The one offset is both the first and the last.
        return payload(number(node.segment(0), 0, 4) == 0 && f.count == 0);
    }
    (0..down).try_for_each(|row| block_row(node, &f, row).map(drop))
}

/// The value at a listed position; `None` where none is listed.
fn listed(node: &Tree, i: u64, j: u64) -> Outcome<Option<f32>> {
    let f = fields(node);
    let Some(values) = node.children.first() else { return Err(Reject::Structure) };
    if f.layout == 3 {
        let codes = positions(node, &f, i)?;
        let (g, p) = (j / f.m, j % f.m);
        let found = (g * f.n..(g + 1) * f.n).find(|k| codes.get(*k as usize) == Some(&p));
        return found.map(|k| values.value(i, k)).transpose();
    }
    let (first, columns) = block_row(node, &f, i / f.block_rows)?;
    let Some(place) = columns.iter().position(|column| *column == j / f.block_cols) else { return Ok(None) };
    let entry = first + place as u64;
    let number = (entry * f.block_rows + i % f.block_rows) * f.block_cols + j % f.block_cols;
    values.value(number / values.cols, number % values.cols).map(Some)
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    Ok(listed(node, i, j)?.unwrap_or(0.0))
}

pub(super) fn add_to(node: &Tree, sum: f32, i: u64, j: u64) -> Outcome<f32> {
    Ok(match (listed(node, i, j)?, fields(node).op) {
        (listed, 0) => sum + listed.unwrap_or(0.0),
        (listed, _) => listed.unwrap_or(sum),
    })
}

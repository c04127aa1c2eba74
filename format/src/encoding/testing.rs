//! What the tests of all encodings share.

use super::dense;
use crate::dtype::DType;
use crate::error::Result;
use crate::node::NodeData;
use crate::segment::SegmentData;
use proptest::prelude::*;
use std::sync::Arc;

/// A dense f32 node.
pub(crate) fn dense_f32(rows: usize, cols: usize, values: &[f32]) -> Result<NodeData> {
    dense::pack_values(DType::F32, rows as u64, cols as u64, values)
}

/// Values that differ from place to place, with zeros of both signs among them.
pub(crate) fn pattern(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 + 11) % 251) as f32 * 0.125 - 15.0)
        .map(|v| if v == 1.0 { -0.0 } else { v })
        .collect()
}

/// Bit patterns, so that zeros of both signs and NaN compare.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Verifies and decodes a node, and checks that any slice of rows decodes to the same values.
pub(crate) fn decoded(node: &NodeData) -> Result<Vec<f32>> {
    let view = node.view()?;
    view.verify()?;
    let (rows, cols) = (view.rows(), view.cols());
    let mut whole = vec![f32::NAN; rows * cols];
    view.decode_rows(0..rows, &mut whole)?;
    let slices = (0..rows).map(|r| r..r + 1).chain([0..rows / 2, rows / 3..rows, rows..rows]);
    for slice in slices {
        let mut part = vec![f32::NAN; slice.len() * cols];
        view.decode_rows(slice.clone(), &mut part)?;
        assert_eq!(bits(&part), bits(&whole[slice.start * cols..slice.end * cols]), "rows {slice:?}");
    }
    Ok(whole)
}

/// One change to a node or to a node below it.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    path: Vec<u8>,
    part: u8,
    at: u16,
    byte: u8,
}

/// Up to three changes anywhere in a tree.
pub(crate) fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let path = proptest::collection::vec(any::<u8>(), 0..3);
    let one = (path, 0..6u8, any::<u16>(), prop_oneof![0..4u8, any::<u8>()])
        .prop_map(|(path, part, at, byte)| Damage { path, part, at, byte });
    proptest::collection::vec(one, 1..4)
}

fn apply(node: &mut NodeData, damage: &Damage, depth: usize) {
    if let Some(step) = damage.path.get(depth)
        && !node.children.is_empty()
    {
        let index = usize::from(*step) % node.children.len();
        let mut child = NodeData::clone(&node.children[index]);
        apply(&mut child, damage, depth + 1);
        node.children[index] = Arc::new(child);
        return;
    }
    let at = usize::from(damage.at);
    let set = |bytes: &mut [u8]| {
        if !bytes.is_empty() {
            bytes[at % bytes.len()] = damage.byte;
        }
    };
    match damage.part {
        0 | 1 => set(&mut node.descriptor),
        2 | 3 if !node.segments.is_empty() => {
            let index = at % node.segments.len();
            let mut bytes = node.segments[index].bytes().unwrap_or(&[]).to_vec();
            match damage.part {
                2 => set(&mut bytes),
                _ => bytes.truncate(usize::from(damage.byte)),
            }
            node.segments[index] = SegmentData::from(bytes);
        }
        4 => node.rows = damage.byte.into(),
        _ => node.cols = damage.byte.into(),
    }
}

/// Opens, verifies and decodes a damaged copy of `node`; whatever comes of it, it is no panic.
pub(crate) fn survives(node: &NodeData, damages: &[Damage]) {
    let mut node = node.clone();
    for damage in damages {
        apply(&mut node, damage, 0);
    }
    let Ok(view) = node.view() else { return };
    let _ = view.verify();
    let (rows, cols) = (view.rows(), view.cols());
    if rows.saturating_mul(cols) > 1 << 20 {
        return;
    }
    let mut out = vec![0.0; rows * cols];
    let _ = view.decode_rows(0..rows, &mut out);
    let _ = view.add_rows(0..rows, &mut out, cols.max(1), 0, &mut Vec::new());
    if rows > 0 {
        let _ = view.decode_rows(rows - 1..rows, &mut out[..cols]);
    }
}

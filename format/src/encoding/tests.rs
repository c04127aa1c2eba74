//! Tests of `dense` and `grouped`, and of what holds for every encoding.

use super::grouped::{Children, CodeMap, Descriptor, Minifloat, ScaleOp, Special, ZeroOp};
use super::testing::{bits, damages, decoded, dense_f32, pattern, survives};
use super::*;
use crate::dtype::DType;
use crate::node::NodeData;
use proptest::prelude::*;

const INTEGER: Descriptor = Descriptor {
    bits: 4,
    code_map: CodeMap::Integer { offset: -3 },
    scale_op: ScaleOp::None,
    zero_op: ZeroOp::None,
    group_rows: 1,
    group_cols: 4,
};

/// A child of the shape that groups have, or broadcast along the axes where `broadcast` says so.
fn group_child(
    d: &Descriptor,
    rows: usize,
    cols: usize,
    broadcast: (bool, bool),
    first: f32,
) -> Result<(NodeData, Vec<f32>)> {
    let extent = |n: usize, group: u32, broadcast: bool| match broadcast {
        true => 1,
        false => grouped::groups(n as u64, group) as usize,
    };
    let shape = (extent(rows, d.group_rows, broadcast.0), extent(cols, d.group_cols, broadcast.1));
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|i| first + 0.37 * i as f32).collect();
    let node = dense_f32(shape.0, shape.1, &values)?;
    let mut whole = vec![0.0; rows * cols];
    for (i, out) in whole.iter_mut().enumerate() {
        let index = |at: usize, group: u32, extent: usize| match group {
            _ if extent == 1 => 0,
            0 => 0,
            group => at / group as usize,
        };
        let at = (index(i / cols, d.group_rows, shape.0), index(i % cols, d.group_cols, shape.1));
        *out = values[at.0 * shape.1 + at.1];
    }
    Ok((node, whole))
}

/// A node with patterned codes, and its values by the formula of the spec.
fn grouped_and_values(
    d: Descriptor,
    rows: usize,
    cols: usize,
    broadcast: (bool, bool),
) -> Result<(NodeData, Vec<f32>)> {
    let codes: Vec<u8> = (0..rows * cols).map(|i| ((i * 73 + 5) % (1 << d.bits)) as u8).collect();
    let table = pattern(rows.max(1) << d.bits);
    let table_rows = if broadcast.0 { 1 } else { rows };
    let (scale, scales) = group_child(&d, rows, cols, broadcast, 0.3)?;
    let (zero, zeros) = group_child(&d, rows, cols, broadcast, 1.7)?;
    let mut values = Vec::new();
    for (i, code) in codes.iter().enumerate() {
        let mut v = match d.code_map {
            CodeMap::Integer { offset } => i32::from(*code) as f32 + offset as f32,
            CodeMap::Minifloat(float) => float.value(*code),
            CodeMap::Table => {
                let row = if table_rows == 1 { 0 } else { i / cols };
                table[(row << d.bits) + usize::from(*code)]
            }
        };
        if d.zero_op == ZeroOp::Subtract {
            v -= zeros[i];
        }
        match d.scale_op {
            ScaleOp::None => {}
            ScaleOp::Multiply => v *= scales[i],
            ScaleOp::Divide => v /= scales[i],
        }
        if d.zero_op == ZeroOp::Add {
            v += zeros[i];
        }
        values.push(v);
    }
    let children = Children {
        scale: (d.scale_op != ScaleOp::None).then_some(scale),
        zero: (d.zero_op != ZeroOp::None).then_some(zero),
        table: match d.code_map {
            CodeMap::Table => Some(dense_f32(table_rows, 1 << d.bits, &table[..table_rows << d.bits])?),
            _ => None,
        },
    };
    Ok((grouped::pack(&d, rows as u64, cols as u64, &codes, children)?, values))
}

fn minifloat(bits: u8) -> CodeMap {
    let exponent_bits = (bits / 2).max(1);
    let sign_bits = u8::from(bits > exponent_bits);
    CodeMap::Minifloat(Minifloat {
        sign_bits,
        exponent_bits,
        mantissa_bits: bits - sign_bits - exponent_bits,
        bias: 1,
        special: Special::None,
    })
}

#[test]
fn grouped_codes_of_every_width_and_map_decode() -> Result<()> {
    for bits in 1..=8 {
        for code_map in [CodeMap::Integer { offset: -3 }, minifloat(bits), CodeMap::Table] {
            for broadcast in [(false, false), (true, false)] {
                let d = Descriptor { bits, code_map, scale_op: ScaleOp::Multiply, ..INTEGER };
                let (node, values) = grouped_and_values(d, 3, 33, broadcast)?;
                assert_eq!(super::testing::bits(&decoded(&node)?), super::testing::bits(&values), "{d:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn grouped_tails_and_empty_sides_decode() -> Result<()> {
    for (group_rows, group_cols) in [(1, 0), (0, 1), (0, 0), (2, 4), (3, 32), (1, 64)] {
        for (rows, cols) in [(1, 1), (2, 3), (3, 4), (4, 5), (5, 31), (6, 32), (7, 33), (0, 4), (4, 0)] {
            let d = Descriptor {
                scale_op: ScaleOp::Multiply,
                zero_op: ZeroOp::Subtract,
                group_rows,
                group_cols,
                ..INTEGER
            };
            let (node, values) = grouped_and_values(d, rows, cols, (false, false))?;
            assert_eq!(bits(&decoded(&node)?), bits(&values), "{d:?} {rows} {cols}");
        }
    }
    Ok(())
}

#[test]
fn dense_rows_of_every_type_decode_like_the_type() -> Result<()> {
    for dtype in DType::ALL.iter().copied().filter(|d| *d != DType::C64) {
        for (rows, cols) in [(3, 5), (0, 2), (2, 0), (1, 1)] {
            let bytes: Vec<u8> = (0..rows * cols * dtype.bytes()).map(|i| (i * 29) as u8).collect();
            let mut expected = vec![0.0; rows * cols];
            dtype.decode(&bytes, &mut expected)?;
            let node = dense::pack(dtype, rows as u64, cols as u64, bytes)?;
            assert_eq!(bits(&decoded(&node)?), bits(&expected), "{}", dtype.name());
        }
    }
    Ok(())
}

#[test]
fn complex_elements_are_carried_and_not_decoded() -> Result<()> {
    let node = dense::pack(DType::C64, 1, 2, vec![0; 16])?;
    let view = node.view()?;
    assert_eq!(view.decode_rows(0..1, &mut [0.0; 2]).err().map(|e| e.kind()), Some(ErrorKind::Argument));
    Ok(())
}

#[test]
fn rows_out_of_range_are_the_callers_mistake() -> Result<()> {
    let node = dense_f32(2, 2, &[0.0; 4])?;
    let view = node.view()?;
    for (rows, len) in [(0..3, 6), (3..3, 0), (1..2, 1), (0..1, 3)] {
        let error = view.decode_rows(rows.clone(), &mut vec![0.0; len]).err().map(|e| e.kind());
        assert_eq!(error, Some(ErrorKind::Argument), "{rows:?}");
    }
    #[allow(clippy::reversed_empty_ranges, reason = "a caller's mistake is the point")]
    let error = view.decode_rows(2..1, &mut []).err().map(|e| e.kind());
    assert_eq!(error, Some(ErrorKind::Argument));
    Ok(())
}

#[test]
fn unknown_encodings_and_versions_are_unsupported() -> Result<()> {
    for (encoding, version) in [(0, 1), (99, 1), (u32::MAX, 1), (dense::ID, 2)] {
        let mut node = dense_f32(1, 1, &[0.0])?;
        (node.encoding, node.version) = (encoding, version);
        assert_eq!(node.view().err().map(|e| e.kind()), Some(ErrorKind::Unsupported));
    }
    Ok(())
}

proptest! {
    #[test]
    fn grouped_decodes_to_naive_values(
        (rows, cols) in (0usize..7, 0usize..70),
        (group_rows, group_cols) in (0u32..4, 0u32..20),
        bits in 1u8..9,
        (map, scale, zero) in (0usize..3, 0usize..3, 0usize..3),
        broadcast in (any::<bool>(), any::<bool>()),
    ) {
        let d = Descriptor {
            bits,
            code_map: [CodeMap::Integer { offset: -7 }, minifloat(bits), CodeMap::Table][map],
            scale_op: [ScaleOp::None, ScaleOp::Multiply, ScaleOp::Divide][scale],
            zero_op: [ZeroOp::None, ZeroOp::Subtract, ZeroOp::Add][zero],
            group_rows,
            group_cols,
        };
        let (node, values) = grouped_and_values(d, rows, cols, broadcast)?;
        prop_assert_eq!(super::testing::bits(&decoded(&node)?), super::testing::bits(&values));
    }

    #[test]
    fn damage_to_grouped_is_no_panic(damages in damages()) {
        let d = Descriptor {
            code_map: CodeMap::Table,
            scale_op: ScaleOp::Multiply,
            zero_op: ZeroOp::Add,
            ..INTEGER
        };
        survives(&grouped_and_values(d, 3, 9, (false, false))?.0, &damages);
    }

    #[test]
    fn damage_to_dense_is_no_panic(damages in damages()) {
        survives(&dense_f32(3, 2, &pattern(6))?, &damages);
    }

    #[test]
    fn no_bytes_make_opening_panic(
        encoding in 1u32..10,
        (rows, cols) in (0u64..5, 0u64..5),
        descriptor in proptest::collection::vec(prop_oneof![0..3u8, any::<u8>()], 0..41),
        segments in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..4),
        children in proptest::collection::vec((0usize..5, 0usize..5), 0..4),
    ) {
        let size = [
            (dense::ID, 8),
            (grouped::ID, 32),
            (sparse::ID, 24),
            (low_rank::ID, 8),
            (codebook::ID, 16),
            (lossless::ID, 16),
            (trellis::ID, 32),
            (sign_low_rank::ID, 8),
            (nested::ID, 16),
        ].into_iter().find(|(id, _)| *id == encoding);
        let mut descriptor = descriptor;
        if let Some((_, size)) = size
            && descriptor.len() > size
        {
            descriptor.truncate(size);
        }
        let children = children.iter().map(|(r, c)| dense_f32(*r, *c, &pattern(r * c)));
        let children: Vec<NodeData> = children.collect::<Result<_>>()?;
        let node = NodeData {
            encoding,
            version: 1,
            rows,
            cols,
            descriptor,
            segments: segments.into_iter().map(Into::into).collect(),
            children: children.into_iter().map(Into::into).collect(),
        };
        survives(&node, &[]);
    }
}

use super::*;
use crate::encoding::testing::{bits as value_bits, damages, decoded, dense_f32, pattern, survives};
use crate::error::ErrorKind;
use crate::node::NodeData;
use proptest::prelude::*;
use std::sync::Arc;

const BASE: Descriptor = Descriptor {
    state_bits: 12,
    step_bits: 2,
    code: Code::BYTE_SUM,
    axis: Axis::Down,
    path_elems: 0,
    scale_rows: 1,
    scale_cols: 0,
};

fn scale_shape(d: &Descriptor, rows: usize, cols: usize) -> (usize, usize) {
    let groups = |extent: usize, group: u32| match group {
        0 => extent.min(1),
        n => extent.div_ceil(n as usize),
    };
    (groups(rows, d.scale_rows), groups(cols, d.scale_cols))
}

fn code_of(i: usize, d: &Descriptor) -> u8 {
    ((i * i * 31 + i * 40_503 + i / 7) >> 3) as u8 & ((1 << d.step_bits) - 1)
}

/// The window of weight `t` of a path, by the formula of the spec.
fn window(path: &[u8], t: usize, d: &Descriptor) -> usize {
    let (k, length) = (i64::from(d.step_bits), i64::from(d.state_bits));
    let ring = path.len() as i64 * k;
    (0..length)
        .map(|i| {
            let at = (k * (t as i64 + 1) - length + i).rem_euclid(ring);
            let bit = path[(at / k) as usize] >> (at % k) & 1;
            usize::from(bit) << i
        })
        .sum()
}

/// A node with patterned codes, and its values by the formula of the spec.
fn node_and_values(d: Descriptor, rows: usize, cols: usize) -> Result<(NodeData, Vec<f32>)> {
    let codes: Vec<u8> = (0..rows * cols).map(|i| code_of(i, &d)).collect();
    let table: Vec<f32> = pattern(1 << d.state_bits).iter().map(|v| v * 0.37).collect();
    let (down, across) = scale_shape(&d, rows, cols);
    let scales: Vec<f32> = (0..down * across).map(|i| 0.3 + i as f32 * 0.7).collect();
    let mut values = vec![0.0; rows * cols];
    let (elems, _) = d.axis_and_lines(rows, cols);
    let path_elems = match d.path_elems as usize {
        0 => elems.max(1),
        n => n,
    };
    for row in 0..rows {
        for col in 0..cols {
            let (at, _) = d.axis_and_lines(row, col);
            let start = at / path_elems * path_elems;
            let path: Vec<u8> = (start..elems.min(start + path_elems))
                .map(|i| match d.axis {
                    Axis::Down => codes[i * cols + col],
                    Axis::Along => codes[row * cols + i],
                })
                .collect();
            let s = window(&path, at - start, &d);
            let v = match d.code {
                Code::Table => table[s],
                Code::ByteSum { multiplier, addend } => {
                    let x = (s as u64 * u64::from(multiplier) + u64::from(addend)) as u32;
                    (x.to_le_bytes().iter().map(|b| i32::from(*b)).sum::<i32>() - 510) as f32
                }
            };
            let group = |at: usize, group: u32| if group == 0 { 0 } else { at / group as usize };
            let scale = scales[group(row, d.scale_rows) * across + group(col, d.scale_cols)];
            values[row * cols + col] = v * scale;
        }
    }
    let table = match d.code {
        Code::Table => Some(Arc::new(dense_f32(1, table.len(), &table)?)),
        Code::ByteSum { .. } => None,
    };
    let scale = dense_f32(down, across, &scales)?;
    Ok((pack(&d, rows as u64, cols as u64, &codes, scale, table)?, values))
}

fn agrees(d: Descriptor, rows: usize, cols: usize) -> Result<()> {
    let (node, values) = node_and_values(d, rows, cols)?;
    assert_eq!(value_bits(&decoded(&node)?), value_bits(&values), "{d:?} {rows} {cols}");
    Ok(())
}

const SHAPES: [(usize, usize); 10] =
    [(1, 1), (1, 2), (2, 1), (3, 5), (8, 9), (17, 7), (33, 16), (64, 3), (0, 3), (3, 0)];

#[test]
fn windows_of_every_width_decode() -> Result<()> {
    for axis in [Axis::Down, Axis::Along] {
        for state_bits in STATE_BITS {
            for step_bits in STEP_BITS {
                agrees(Descriptor { state_bits, step_bits, axis, ..BASE }, 23, 21)?;
            }
        }
    }
    Ok(())
}

#[test]
fn paths_of_every_length_decode_at_every_edge() -> Result<()> {
    for axis in [Axis::Down, Axis::Along] {
        for path_elems in [0, 1, 2, 7, 8, 11, 16, 32, 100] {
            for step_bits in [2, 3] {
                for (rows, cols) in SHAPES {
                    agrees(Descriptor { axis, path_elems, step_bits, ..BASE }, rows, cols)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn tables_and_groups_of_scales_decode() -> Result<()> {
    for axis in [Axis::Down, Axis::Along] {
        for (scale_rows, scale_cols) in [(0, 0), (1, 1), (0, 1), (2, 3), (5, 100), (3, 0)] {
            let d = Descriptor { axis, scale_rows, scale_cols, state_bits: 8, ..BASE };
            for (rows, cols) in SHAPES {
                agrees(d, rows, cols)?;
                agrees(Descriptor { code: Code::Table, ..d }, rows, cols)?;
            }
        }
    }
    Ok(())
}

#[test]
fn more_columns_than_a_tile_decode() -> Result<()> {
    for axis in [Axis::Down, Axis::Along] {
        for (step_bits, path_elems) in [(1, 0), (3, 0), (4, 1029)] {
            agrees(Descriptor { axis, step_bits, path_elems, ..BASE }, 4, 2 * TILE + 11)?;
        }
    }
    Ok(())
}

#[test]
fn words_of_a_block_lie_column_by_column() -> Result<()> {
    // 17 weights of 2 bits are two words; the third column of the second block starts at byte 28.
    let codes: Vec<u8> = (0..18 * 3).map(|i| u8::from(i == 17 * 3 + 2)).collect();
    let d = Descriptor { path_elems: 17, scale_rows: 0, ..BASE };
    let node = pack(&d, 18, 3, &codes, dense_f32(1, 1, &[1.0])?, None)?;
    let bytes = node.segments[0].bytes().unwrap_or(&[]);
    let set: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] != 0).collect();
    assert_eq!((bytes.len(), set), (36, vec![32]));
    Ok(())
}

#[test]
fn byte_sums_are_those_of_qtip() {
    let values = code_values(&BASE).unwrap_or_default();
    // 76625530 = 0x0491367A: 4 + 145 + 54 + 122.
    assert_eq!((values.len(), values.first()), (4096, Some(&-185.0)));
    let mean = values.iter().sum::<f32>() / 4096.0;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / 4096.0;
    assert!(mean.abs() < 3.0 && (variance.sqrt() - 147.8).abs() < 2.0, "{mean} {}", variance.sqrt());
    assert_eq!(code_values(&Descriptor { code: Code::Table, ..BASE }), None);
    assert_eq!(code_values(&Descriptor { state_bits: 40, ..BASE }), None);
}

#[test]
fn rejects_codes_that_do_not_fit() -> Result<()> {
    for codes in [&[0u8, 4][..], &[0]] {
        let error = pack(&BASE, 1, 2, codes, dense_f32(1, 1, &[1.0])?, None).err().map(|e| e.kind());
        assert_eq!(error, Some(ErrorKind::Argument));
    }
    Ok(())
}

#[test]
fn rejects_fields_out_of_range() -> Result<()> {
    let node = pack(&BASE, 1, 2, &[0; 2], dense_f32(1, 1, &[1.0])?, None)?;
    // Offset in the descriptor, byte, and what comes of it.
    for (at, byte, kind) in [
        (0, 5, ErrorKind::Structure),
        (0, 17, ErrorKind::Structure),
        (1, 0, ErrorKind::Structure),
        (1, 5, ErrorKind::Structure),
        (2, 0, ErrorKind::Structure),
        (2, 2, ErrorKind::Unsupported),
        (3, 2, ErrorKind::Structure),
        (4, 1, ErrorKind::Structure),
        (24, 1, ErrorKind::Structure),
        (31, 1, ErrorKind::Structure),
    ] {
        let mut node = node.clone();
        node.descriptor[at] = byte;
        // Down a single row, paths of one weight are as long as the axis.
        let expected = if at == 4 { None } else { Some(kind) };
        assert_eq!(node.view().err().map(|e| e.kind()), expected, "{at} {byte}");
    }
    Ok(())
}

#[test]
fn sizes_that_overflow_are_structure() {
    let d = BASE.to_bytes();
    for axis in [0, 1] {
        let mut descriptor = d.clone();
        descriptor[3] = axis;
        for (rows, cols) in [(u64::MAX, u64::MAX), (u64::MAX, 1), (1, u64::MAX), (1 << 40, 1 << 40)] {
            let shape = super::super::Shape {
                rows,
                cols,
                descriptor: &descriptor,
                segments: &[4],
                children: &[(1, 1)],
            };
            assert_eq!(Descriptor::parse(&shape).err().map(|e| e.kind()), Some(ErrorKind::Structure));
        }
    }
}

#[test]
fn verify_sees_padding_of_any_path() -> Result<()> {
    for axis in [Axis::Down, Axis::Along] {
        let (node, _) = node_and_values(Descriptor { axis, path_elems: 7, ..BASE }, 10, 10)?;
        let words = node.segments[0].decoded_bytes as usize / 4;
        assert_eq!(words, 20);
        for word in 0..words {
            let mut node = node.clone();
            let mut bytes = node.segments[0].bytes().unwrap_or(&[]).to_vec();
            bytes[word * 4 + 3] |= 0x80;
            node.segments[0] = bytes.into();
            assert_eq!(node.view()?.verify().err().map(|e| e.kind()), Some(ErrorKind::Value), "{word}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn decodes_to_values_of_the_formula(
        (rows, cols) in (0usize..40, 0usize..40),
        (state_bits, step_bits) in (STATE_BITS, STEP_BITS),
        (axis, table) in (any::<bool>(), any::<bool>()),
        path_elems in 0u32..50,
        (scale_rows, scale_cols) in (0u32..5, 0u32..5),
    ) {
        let axis = if axis { Axis::Down } else { Axis::Along };
        let code = if table { Code::Table } else { Code::BYTE_SUM };
        let d = Descriptor { state_bits, step_bits, code, axis, path_elems, scale_rows, scale_cols };
        let (node, values) = node_and_values(d, rows, cols)?;
        prop_assert_eq!(value_bits(&decoded(&node)?), value_bits(&values));
    }

    #[test]
    fn damage_is_no_panic(damages in damages(), axis in any::<bool>(), path_elems in 0u32..9) {
        let axis = if axis { Axis::Down } else { Axis::Along };
        let d = Descriptor { state_bits: 6, code: Code::Table, axis, path_elems, ..BASE };
        survives(&node_and_values(d, 5, 9)?.0, &damages);
    }
}

use super::*;
use crate::dtype::DType;
use crate::encoding::testing::{bits, damages, decoded, dense_f32, pattern, survives};
use crate::encoding::{dense, grouped};
use crate::error::ErrorKind;
use crate::node::NodeData;
use core::ops::Range;
use proptest::prelude::*;

type Pack = fn(Op, u64, u64, &Positions, NodeData) -> Result<NodeData>;
const PACKS: [Pack; 2] = [pack_csr, pack_bitmap];

/// Whether the pattern lists (row, col).
fn listed(row: usize, col: usize) -> bool {
    (row * 7 + col * 5) % 11 < 3
}

/// Row-major values where a block is listed, `None` elsewhere.
fn naive(rows: usize, cols: usize, block: Block, values: &[f32]) -> Vec<Option<f32>> {
    let (height, width) = (block.rows as usize, block.cols as usize);
    let mut out = vec![None; rows * cols];
    for row in 0..rows {
        for col in 0..cols {
            let (top, left) = (row / height * height, col / width * width);
            let hit =
                (top..rows.min(top + height)).any(|r| (left..cols.min(left + width)).any(|c| listed(r, c)));
            out[row * cols + col] = hit.then(|| values[row * cols + col]);
        }
    }
    out
}

/// Block values as rows of `width`, the last padded with 99.
fn values_node(gathered: &[f32], width: usize) -> Result<NodeData> {
    let rows = gathered.len().div_ceil(width);
    let mut padded = gathered.to_vec();
    padded.resize(rows * width, 99.0);
    dense_f32(rows, width, &padded)
}

#[test]
fn blocks_decode_to_listed_values_at_every_edge() -> Result<()> {
    for block in
        [Block::ONE, Block { rows: 1, cols: 4 }, Block { rows: 4, cols: 1 }, Block { rows: 2, cols: 3 }]
    {
        for (rows, cols) in [(1, 1), (3, 3), (4, 31), (5, 32), (7, 33), (2, 65), (0, 5), (5, 0), (0, 0)] {
            let values = pattern(rows * cols);
            let positions = Positions::from_mask(rows, cols, block, listed)?;
            let gathered = positions.gather(cols, &values);
            let expected: Vec<f32> =
                naive(rows, cols, block, &values).iter().map(|v| v.unwrap_or(0.0)).collect();
            for pack in PACKS {
                for width in [block.elements() as usize, 1, 7, 64] {
                    for op in [Op::Add, Op::Replace] {
                        let node =
                            pack(op, rows as u64, cols as u64, &positions, values_node(&gathered, width)?)?;
                        assert_eq!(bits(&decoded(&node)?), bits(&expected), "{block:?} {rows} {cols}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn many_values_are_read_in_several_pieces() -> Result<()> {
    let (rows, cols) = (3, 70_000);
    let values = pattern(rows * cols);
    let positions = Positions::from_mask(rows, cols, Block::ONE, |_, _| true)?;
    for pack in PACKS {
        for width in [1, 1000] {
            let node = pack(Op::Add, 3, 70_000, &positions, values_node(&values, width)?)?;
            assert_eq!(bits(&decoded(&node)?), bits(&values));
        }
    }
    Ok(())
}

#[test]
fn columns_take_16_bits_up_to_65536_and_32_above() -> Result<()> {
    for (cols, index_bits) in [(65_535u64, 16), (65_536, 16), (65_537, 32)] {
        let positions =
            Positions { block: Block::ONE, row_offsets: vec![0, 2], columns: vec![0, cols as u32 - 1] };
        let node = pack_csr(Op::Add, 1, cols, &positions, dense_f32(2, 1, &[1.0, 2.0])?)?;
        assert_eq!(node.segments[1].decoded_bytes, 2 * index_bits / 8);
        let out = decoded(&node)?;
        assert_eq!((out[0], out[cols as usize - 1]), (1.0, 2.0));
    }
    Ok(())
}

#[test]
fn grouped_values_share_a_row() -> Result<()> {
    let positions = Positions::from_mask(4, 50, Block::ONE, listed)?;
    let count = positions.columns.len();
    let descriptor = grouped::Descriptor {
        bits: 4,
        code_map: grouped::CodeMap::Integer { offset: -8 },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: 0,
    };
    let rows = count.div_ceil(16);
    let codes: Vec<u8> = (0..rows * 16).map(|i| (i % 16) as u8).collect();
    let scale = dense::pack_values(DType::F16, rows as u64, 1, &pattern(rows))?;
    let children = grouped::Children { scale: Some(scale), ..Default::default() };
    let values = grouped::pack(&descriptor, rows as u64, 16, &codes, children)?;
    let flat = decoded(&values)?;
    let mut expected = vec![0.0; 200];
    let places = (0..200).filter(|i| listed(i / 50, i % 50));
    for (place, value) in places.zip(flat) {
        expected[place] = value;
    }
    assert_eq!(decoded(&pack_csr(Op::Add, 4, 50, &positions, values)?)?, expected);
    Ok(())
}

#[test]
fn n_of_m_decodes_kept_values_and_ignores_padding() -> Result<()> {
    for (n, m) in [(2u16, 4u16), (1, 2), (1, 3), (4, 8), (3, 3), (1, 16), (5, 33), (1, 65_535)] {
        for cols in [0usize, 1, 3, 4, 5, 8, 31, 32, 33] {
            let rows = 3;
            let groups = cols.div_ceil(m.into());
            let kept = groups * usize::from(n);
            let positions: Vec<u16> = (0..rows * groups)
                .flat_map(|g| (0..n).map(move |k| k + (g as u16 * 3) % (m - n + 1)))
                .collect();
            let values = pattern(rows * kept);
            let mut expected = vec![0.0; rows * cols];
            for (i, (position, value)) in positions.iter().zip(&values).enumerate() {
                let (row, group) = (i / kept, i % kept / usize::from(n));
                let col = group * usize::from(m) + usize::from(*position);
                if col < cols {
                    expected[row * cols + col] = *value;
                }
            }
            let child = dense_f32(rows, kept, &values)?;
            let node = pack_n_m(Op::Add, rows as u64, cols as u64, (n, m), &positions, child)?;
            assert_eq!(bits(&decoded(&node)?), bits(&expected), "{n}:{m} of {cols}");
        }
    }
    Ok(())
}

#[test]
fn sums_are_those_of_whole_terms() -> Result<()> {
    let (rows, cols, stride, column) = (5, 9, 14, 3);
    let block = Block { rows: 2, cols: 2 };
    let values = pattern(rows * cols);
    let positions = Positions::from_mask(rows, cols, block, listed)?;
    let gathered = positions.gather(cols, &values);
    let expected = naive(rows, cols, block, &values);
    for pack in PACKS {
        for op in [Op::Add, Op::Replace] {
            let node = pack(op, 5, 9, &positions, values_node(&gathered, 4)?)?;
            check_sum(&node, op, 1..4, &expected, stride, column)?;
        }
    }
    let kept = pattern(5 * 6);
    let mut expected = vec![None; 45];
    for (i, value) in kept.iter().enumerate() {
        let col = i % 6 / 2 * 4 + [1, 3][i % 2];
        if col < cols {
            expected[i / 6 * cols + col] = Some(*value);
        }
    }
    for op in [Op::Add, Op::Replace] {
        let node = pack_n_m(op, 5, 9, (2, 4), &[1, 3].repeat(15), dense_f32(5, 6, &kept)?)?;
        check_sum(&node, op, 0..5, &expected, stride, column)?;
    }
    Ok(())
}

/// Adds rows to sums with zeros of both signs and compares with the formula.
fn check_sum(
    node: &NodeData,
    op: Op,
    rows: Range<usize>,
    values: &[Option<f32>],
    stride: usize,
    column: usize,
) -> Result<()> {
    let cols = node.cols as usize;
    let before: Vec<f32> = (0..rows.len() * stride).map(|i| [-0.0, 0.0, 7.5, -0.0, -3.25][i % 5]).collect();
    let mut sum = before.clone();
    node.view()?.add_rows(rows.clone(), &mut sum, stride, column, &mut Vec::new())?;
    for (i, (after, before)) in sum.iter().zip(before).enumerate() {
        let (row, col) = (rows.start + i / stride, (i % stride).wrapping_sub(column));
        let value = if col < cols { values[row * cols + col] } else { None };
        let expected = match (value, op) {
            (None, Op::Add) if col < cols => before + 0.0,
            (None, _) => before,
            (Some(value), Op::Add) => before + value,
            (Some(value), Op::Replace) => value,
        };
        assert_eq!(after.to_bits(), expected.to_bits(), "row {row}, column {col}");
    }
    Ok(())
}

/// The kind of error of decoding and of verifying a node with segment `index` replaced.
fn damaged(node: &NodeData, index: usize, bytes: Vec<u8>) -> Result<(Option<ErrorKind>, Option<ErrorKind>)> {
    let mut node = node.clone();
    node.segments[index] = bytes.into();
    let view = node.view()?;
    let mut out = vec![0.0; view.rows() * view.cols()];
    let decode = view.decode_rows(0..view.rows(), &mut out).err().map(|e| e.kind());
    Ok((decode, view.verify().err().map(|e| e.kind())))
}

const BOTH: (Option<ErrorKind>, Option<ErrorKind>) = (Some(ErrorKind::Value), Some(ErrorKind::Value));

fn two_rows(pack: Pack) -> Result<NodeData> {
    let positions = Positions { block: Block::ONE, row_offsets: vec![0, 2, 3], columns: vec![1, 4, 0] };
    pack(Op::Add, 2, 5, &positions, dense_f32(3, 1, &[1.0, 2.0, 3.0])?)
}

#[test]
fn rejects_offsets_that_do_not_ascend_from_0_to_count() -> Result<()> {
    for pack in PACKS {
        let node = two_rows(pack)?;
        for offsets in [[1u32, 2, 3], [0, 4, 3], [0, 2, 2], [0, 2, 4], [0, u32::MAX, 3]] {
            let bytes = offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
            assert_eq!(damaged(&node, 0, bytes)?, BOTH, "{offsets:?}");
        }
    }
    Ok(())
}

#[test]
fn rejects_columns_out_of_order_or_range() -> Result<()> {
    let node = two_rows(pack_csr)?;
    for columns in [[4u16, 1, 0], [1, 1, 0], [1, 5, 0], [1, 4, 5]] {
        let bytes = columns.iter().flat_map(|c| c.to_le_bytes()).collect();
        assert_eq!(damaged(&node, 1, bytes)?, BOTH, "{columns:?}");
    }
    Ok(())
}

#[test]
fn rejects_bitmaps_with_other_counts_or_padding() -> Result<()> {
    let node = two_rows(pack_bitmap)?;
    for (first, second) in [(0b10, 1), (0b10011, 1), (0b10_0010, 1), (0b1_0010, 0)] {
        let bytes = vec![first, 0, 0, 0, second, 0, 0, 0];
        assert_eq!(damaged(&node, 1, bytes)?, BOTH, "{first:b} {second:b}");
    }
    Ok(())
}

#[test]
fn rejects_positions_out_of_order_or_range() -> Result<()> {
    let node = pack_n_m(Op::Add, 1, 3, (2, 3), &[0, 2], dense_f32(1, 2, &[1.0, 2.0])?)?;
    for positions in [0b00_10, 0b01_01, 0b11_00] {
        assert_eq!(damaged(&node, 0, vec![positions, 0, 0, 0])?, BOTH, "{positions:b}");
    }
    assert_eq!(damaged(&node, 0, vec![0b1000, 1, 0, 0])?, (None, Some(ErrorKind::Value)));
    Ok(())
}

#[test]
fn rejects_positions_when_packing() -> Result<()> {
    let values = || dense_f32(2, 1, &[1.0, 2.0]);
    for (row_offsets, columns) in [
        (vec![0, 2], vec![1, 1]),
        (vec![0, 2], vec![0, 5]),
        (vec![0, 1], vec![0, 1]),
        (vec![1, 2], vec![0, 1]),
        (vec![0, 2, 2], vec![0, 1]),
    ] {
        let positions = Positions { block: Block::ONE, row_offsets, columns };
        for pack in PACKS {
            let error = pack(Op::Add, 1, 5, &positions, values()?).err().map(|e| e.kind());
            assert_eq!(error, Some(ErrorKind::Argument), "{positions:?}");
        }
    }
    Ok(())
}

#[test]
fn rejects_blocks_and_widths_beyond_the_limit() -> Result<()> {
    let positions =
        Positions { block: Block { rows: 257, cols: 256 }, row_offsets: vec![0, 0], columns: vec![] };
    let error = pack_csr(Op::Add, 1, 1, &positions, dense_f32(0, 1, &[])?).err().map(|e| e.kind());
    assert_eq!(error, Some(ErrorKind::Structure));
    let positions = Positions { block: Block::ONE, row_offsets: vec![0, 0], columns: vec![] };
    for (width, opens) in [(0, false), (1, true), (65_536, true), (65_537, false)] {
        let node = pack_csr(Op::Add, 1, 1, &positions, dense_f32(0, width, &[])?);
        assert_eq!(node.is_ok(), opens, "{width}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn blocks_decode_to_naive_values(
        (rows, cols) in (0usize..9, 0usize..70),
        (height, width) in (1u32..5, 1u32..6),
        value_width in 1usize..40,
        salt in 0usize..1000,
    ) {
        let block = Block { rows: height, cols: width };
        let values = pattern(rows * cols + salt)[salt..].to_vec();
        let positions = Positions::from_mask(rows, cols, block, listed)?;
        let gathered = positions.gather(cols, &values);
        let expected: Vec<f32> = naive(rows, cols, block, &values).iter().map(|v| v.unwrap_or(0.0)).collect();
        for pack in PACKS {
            let node =
                pack(Op::Add, rows as u64, cols as u64, &positions, values_node(&gathered, value_width)?)?;
            prop_assert_eq!(bits(&decoded(&node)?), bits(&expected));
        }
    }

    #[test]
    fn damage_is_no_panic(damages in damages(), layout in 0..3) {
        let node = match layout {
            0 => two_rows(pack_csr)?,
            1 => two_rows(pack_bitmap)?,
            _ => pack_n_m(Op::Replace, 1, 3, (2, 3), &[0, 2], dense_f32(1, 2, &[1.0, 2.0])?)?,
        };
        survives(&node, &damages);
    }
}

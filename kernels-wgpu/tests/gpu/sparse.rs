//! `sparse`.

use crate::common::{Near, Random, TestResult, bed, check, check_tiles, dense_node};
use cmf_format::DType;
use cmf_format::encoding::dense;
use cmf_format::encoding::sparse::{Block, Op, Positions, pack_bitmap, pack_csr, pack_n_m};
use std::sync::Arc;

#[test]
fn every_layout_adds_its_values() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let (rows, cols) = (13, 45);
    let mut random = Random::new(8);
    let under = Arc::new(dense_node(DType::F16, rows, cols, &mut random)?);
    for block in [Block::ONE, Block { rows: 2, cols: 3 }] {
        let listed = |i: usize, j: usize| (i * 7 + j * 5).is_multiple_of(11);
        let positions = Positions::from_mask(rows, cols, block, listed)?;
        let values = positions.gather(cols, &random.values(rows * cols));
        let values = Arc::new(dense::pack_values(DType::F32, 1, values.len() as u64, &values)?);
        let (rows, cols) = (rows as u64, cols as u64);
        let csr = Arc::new(pack_csr(Op::Add, rows, cols, &positions, Arc::clone(&values))?);
        let bitmap = Arc::new(pack_bitmap(Op::Add, rows, cols, &positions, values)?);
        for (name, node) in [("csr", csr), ("bitmap", bitmap)] {
            check(&bed, &format!("{name}, {block:?}"), std::slice::from_ref(&node), Near::Exact)?;
            check_tiles(
                &bed,
                &format!("{name}, {block:?} on dense"),
                &[Arc::clone(&under), node],
                Near::Exact,
            )?;
        }
    }
    for (n, m) in [(2, 4), (1, 5)] {
        let kept = cols.div_ceil(m.into()) * usize::from(n);
        let positions: Vec<u16> = (0..rows * kept).map(|k| (k % usize::from(n) * 2) as u16 % m).collect();
        let values = dense_node(DType::F16, rows, kept, &mut random)?;
        let node = pack_n_m(Op::Add, rows as u64, cols as u64, (n, m), &positions, values)?;
        check(&bed, &format!("{n} of {m}"), &[Arc::clone(&under), Arc::new(node)], Near::Exact)?;
    }
    Ok(())
}

#[test]
fn values_replace_what_was_before_them() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let mut random = Random::new(9);
    // More elements than are decoded at a time, in rows that are no whole number of blocks.
    for (rows, cols) in [(6, 8), (33, 37), (300, 4096)] {
        let under = Arc::new(dense_node(DType::F32, rows, cols, &mut random)?);
        let later = Arc::new(dense_node(DType::F16, rows, cols, &mut random)?);
        let positions = Positions::from_mask(rows, cols, Block::ONE, |i, j| (i * 7 + j) % 37 == 3)?;
        let values: Vec<f32> = random.values(rows * cols).into_iter().map(|v| v + 2.0).collect();
        let values = positions.gather(cols, &values);
        let values = dense::pack_values(DType::F32, 1, values.len() as u64, &values)?;
        let over = Arc::new(pack_csr(Op::Replace, rows as u64, cols as u64, &positions, values)?);
        check_tiles(&bed, &format!("{rows}x{cols}"), &[under, over, later], Near::Exact)?;
    }
    Ok(())
}

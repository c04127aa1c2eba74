//! `low_rank` and `sign_low_rank`.

use crate::common::{Near, Random, TestResult, bed, check, check_tiles, dense_node};
use cmf_format::DType;
use cmf_format::encoding::{low_rank, sign_low_rank};
use std::sync::Arc;

#[test]
fn low_rank_multiplies_through_its_factors() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let mut random = Random::new(4);
    for (rank, rows, cols, dtype) in
        [(1, 9, 33, DType::F16), (5, 40, 64, DType::F16), (40, 17, 96, DType::F32)]
    {
        let a_t = dense_node(dtype, rank, rows, &mut random)?;
        let b = dense_node(dtype, rank, cols, &mut random)?;
        let name = format!("rank {rank} of {rows}x{cols}");
        let node = Arc::new(low_rank::pack(a_t, b)?);
        check(&bed, &name, std::slice::from_ref(&node), Near::Within(1e-6))?;
        let dense = Arc::new(dense_node(DType::BF16, rows, cols, &mut random)?);
        check_tiles(&bed, &format!("{name} on dense"), &[dense, node], Near::Within(1e-6))?;
    }
    Ok(())
}

#[test]
fn sign_low_rank_takes_signs_of_magnitudes() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let mut random = Random::new(5);
    for (rank, rows, cols) in [(1, 9, 33), (3, 40, 64), (16, 7, 5)] {
        let positive: Vec<bool> = (0..rows * cols).map(|_| random.below(2) == 1).collect();
        let a_t = dense_node(DType::F16, rank, rows, &mut random)?;
        let b = dense_node(DType::F32, rank, cols, &mut random)?;
        let node = sign_low_rank::pack(&positive, a_t, b)?;
        // A product and a sum may be fused.
        check(&bed, &format!("rank {rank} of {rows}x{cols}"), &[Arc::new(node)], Near::Within(1e-6))?;
    }
    Ok(())
}

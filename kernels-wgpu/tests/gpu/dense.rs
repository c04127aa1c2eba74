//! `dense` and `lossless`.

use crate::common::{Near, Random, TestResult, bed, check, check_many, check_tiles, dense_node};
use cmf_format::DType;
use cmf_format::encoding::lossless;
use std::sync::Arc;

#[test]
fn every_type_decodes_to_the_same_values() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    for dtype in DType::ALL {
        // These have no real value, or none in -1 to 1 but zero.
        if matches!(dtype, DType::C64 | DType::F8E8M0 | DType::Bool) {
            continue;
        }
        for (rows, cols) in [(9, 64), (5, 37), (1, 1)] {
            let node = dense_node(*dtype, rows, cols, &mut Random::new(1))?;
            let name = format!("{} {rows}x{cols}", dtype.name());
            check(&bed, &name, &[Arc::new(node)], Near::Exact)?;
        }
    }
    Ok(())
}

#[test]
fn lossless_is_decoded_at_upload() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let values = Random::new(2).values(11 * 40);
        let node = lossless::pack(dtype, 11, 40, &dtype.encode(&values)?)?;
        let node = [Arc::new(node)];
        check_tiles(&bed, dtype.name(), &node, Near::Exact)?;
        check_many(&bed, &format!("{}, several tiles", dtype.name()), &node, Near::Exact)?;
    }
    Ok(())
}

//! Laws over random shapes, on every instruction set.

mod common;

use cmf_format::encoding::grouped::{CodeMap, ZeroOp};
use common::*;
use proptest::prelude::*;

fn agree(parts: Parts, rows: usize, cols: usize, seed: u64, expect: Expect) -> Result<(), TestCaseError> {
    check(parts, rows, cols, seed, expect).map_err(|e| TestCaseError::fail(e.to_string()))
}

fn fail(error: Box<dyn std::error::Error>) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn grouped_is_the_reference(
        bits in 1u8..=8,
        rows in 1usize..40,
        cols in 1usize..300,
        group_cols in prop_oneof![Just(0u32), Just(16), Just(32), Just(64), Just(80), Just(7)],
        group_rows in 0u32..4,
        zero in prop_oneof![Just(ZeroOp::None), Just(ZeroOp::Subtract), Just(ZeroOp::Add)],
        offset in prop_oneof![Just(0i32), Just(-1), Just(-128), Just(77)],
        twice in any::<bool>(),
        scale in prop_oneof![Just(0.01f32), Just(1e-7)],
        seed in any::<u64>(),
    ) {
        let map = CodeMap::Integer { offset };
        let own = Grouped { bits, map, zero, group_rows, group_cols, twice, scale };
        let node = own.node(rows, cols, &mut Numbers(seed)).map_err(fail)?;
        // Zero points take away what is larger than the weight that is left.
        let expect = Expect { roundings: if zero == ZeroOp::None { 0 } else { 60_000 }, quantises: true };
        agree(Parts::of(node), rows, cols, seed, expect)?;
    }

    #[test]
    fn trellis_is_the_reference(
        state_bits in 6u8..=12,
        step_bits in 1u8..=4,
        rows in 1usize..100,
        cols in 1usize..200,
        path_elems in 0u32..70,
        scale_rows in 0u32..40,
        odd in any::<bool>(),
        hashed in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let own = Trellis { state_bits, step_bits, path_elems, scale_rows, odd, hashed, ..Trellis::PLAIN };
        let node = own.node(rows, cols, &mut Numbers(seed)).map_err(fail)?;
        agree(Parts::of(node), rows, cols, seed, Expect { roundings: 0, quantises: true })?;
    }
}

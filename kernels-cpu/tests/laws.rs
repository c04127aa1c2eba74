//! Laws over random shapes, on every instruction set.

mod common;

use cmf_format::DType;
use cmf_format::encoding::grouped::{CodeMap, ZeroOp};
use cmf_format::encoding::nested::Rounding;
use cmf_format::encoding::sparse::Block;
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
    fn signs_are_the_reference(rows in 1usize..80, cols in 1usize..300, rank in 1usize..35, seed in any::<u64>()) {
        let node = signs(rows, cols, rank, DType::F16).map_err(fail)?;
        agree(Parts::of(node), rows, cols, seed, Expect { roundings: 4000, quantises: false })?;
    }

    #[test]
    fn sparse_is_the_reference(
        listing in prop_oneof![
            Just(Listing::Csr(Block::ONE)),
            Just(Listing::Bitmap(Block::ONE)),
            (1u32..6, 1u32..20).prop_map(|(rows, cols)| Listing::Csr(Block { rows, cols })),
            (1u32..6, 1u32..20).prop_map(|(rows, cols)| Listing::Bitmap(Block { rows, cols })),
            (1u16..9, 0u16..30).prop_map(|(n, more)| Listing::Nm(n, (n + more).max(2))),
        ],
        rows in 1usize..40,
        cols in 1usize..300,
        one_in in 1usize..50,
        values in prop_oneof![Just(None), Just(Some(DType::F16)), Just(Some(DType::F32))],
        seed in any::<u64>(),
    ) {
        let own = Sparse { listing, one_in, values, ..Sparse::PLAIN };
        let node = own.node(rows, cols, &mut Numbers(seed)).map_err(fail)?;
        agree(Parts::of(node), rows, cols, seed, Expect { roundings: 0, quantises: false })?;
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

    #[test]
    fn nested_is_the_reference(
        bits in prop::collection::btree_set(1u8..=8, 1..4),
        is_table in any::<bool>(),
        rounds in any::<bool>(),
        is_lone in any::<bool>(),
        rows in 1usize..40,
        cols in 1usize..400,
        group_cols in prop_oneof![Just(0u32), Just(16), Just(32), Just(64), Just(128), Just(80), Just(7)],
        seed in any::<u64>(),
    ) {
        // Rounding half up takes a plane more.
        let bits: Vec<u8> = bits.into_iter().filter(|bits| !rounds || *bits < 8).collect();
        let bits = if bits.is_empty() { vec![7] } else { bits };
        let rounding = if rounds { Rounding::HalfUp } else { Rounding::Floor };
        let mut nodes = match is_table {
            true => tables(rows, cols, &bits, rounding),
            false => levels(rows, cols, &bits, rounding, group_cols),
        }.map_err(fail)?;
        if is_lone {
            nodes.drain(..nodes.len() - 1);
        }
        let terms = nodes.into_iter().map(|node| (0, 0, node)).collect();
        let expect = Expect { roundings: 60_000, quantises: true };
        agree(Parts { terms, ..Parts::default() }, rows, cols, seed, expect)?;
    }

    #[test]
    fn codebook_is_the_reference(
        bits in 3u8..=10,
        width in 1usize..=20,
        codebooks in 1u8..4,
        scale_vectors in prop_oneof![Just(0u32), Just(1), Just(8), Just(16)],
        rows in 1usize..100,
        cols in 1usize..300,
        seed in any::<u64>(),
    ) {
        let scale_cols = scale_vectors * width as u32;
        let node = vectors_of(bits, rows, cols, width, codebooks, scale_cols).map_err(fail)?;
        // Entries that are added may take each other away.
        agree(Parts::of(node), rows, cols, seed, Expect { roundings: 60_000, quantises: false })?;
    }
}

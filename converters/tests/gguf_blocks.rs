//! Every block type against values that the `gguf` Python package gave for the same bytes.
//!
//! `tests/gguf_oracle.py fixtures` writes the files.

use std::error::Error;
use std::path::{Path, PathBuf};

use cmf_converters::gguf::{GgmlType, GgufSource, TensorInfo, Value, block_node, decode};
use proptest::prelude::*;

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

/// Calls `check` with every tensor of the fixture, its bytes and its values.
fn for_each(mut check: impl FnMut(&TensorInfo, &[u8], &[f32]) -> Result) -> Result {
    let source = GgufSource::open(fixture("blocks.gguf"))?;
    let expected = std::fs::read(fixture("blocks.f32"))?;
    let (expected, _) = expected.as_chunks::<4>();
    let expected: Vec<_> = expected.iter().map(|&value| f32::from_le_bytes(value)).collect();
    let mut rest = expected.as_slice();
    let mut bytes = Vec::new();
    for tensor in source.tensors() {
        source.read_rows(tensor.name(), 0..tensor.rows(), &mut bytes)?;
        let elems = usize::try_from(tensor.rows() * tensor.cols())?;
        let (values, after) = rest.split_at_checked(elems).ok_or("too few expected values")?;
        check(tensor, &bytes, values)?;
        rest = after;
    }
    assert!(rest.is_empty(), "{} expected values are left", rest.len());
    Ok(())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn node_values(ty: GgmlType, rows: u64, cols: u64, bytes: &[u8]) -> Result<Vec<f32>> {
    let node = block_node(ty, rows, cols, bytes)?;
    let view = node.view()?;
    view.verify()?;
    let mut values = vec![f32::NAN; usize::try_from(rows * cols)?];
    view.decode_rows(0..usize::try_from(rows)?, &mut values)?;
    Ok(values)
}

#[test]
fn fixture_has_every_type_that_the_package_writes() -> Result {
    let mut missing: Vec<_> = GgmlType::ALL.to_vec();
    for_each(|tensor, _, _| {
        missing.retain(|&ty| ty != tensor.ty());
        Ok(())
    })?;
    assert_eq!(missing, [GgmlType::Q2_0]);
    Ok(())
}

#[test]
fn decodes_like_the_package() -> Result {
    for_each(|tensor, bytes, expected| {
        let mut values = vec![f32::NAN; expected.len()];
        decode(tensor.ty(), bytes, &mut values)?;
        assert_eq!(bits(&values), bits(expected), "{}", tensor.name());
        Ok(())
    })
}

#[test]
fn nodes_have_the_values_of_the_package() -> Result {
    for_each(|tensor, bytes, expected| {
        let values = node_values(tensor.ty(), tensor.rows(), tensor.cols(), bytes)?;
        assert_eq!(bits(&values), bits(expected), "{}", tensor.name());
        Ok(())
    })
}

#[test]
fn reads_the_metadata_that_the_package_wrote() -> Result {
    let source = GgufSource::open(fixture("blocks.gguf"))?;
    let metadata = source.metadata().ok_or("no metadata")?;
    assert_eq!(metadata.get("test.i64"), Some(Value::I64(-(1 << 40))));
    let json = metadata.to_json(16);
    let expected = serde_json::json!({
        "general.architecture": "oracle",
        "test.u8": 250, "test.i8": -5, "test.u16": 60000, "test.i16": -300, "test.i32": -70000,
        "test.f32": 1e-5, "test.f64": 0.1, "test.u64": 1u64 << 63, "test.i64": -(1i64 << 40),
        "test.bool": true, "test.string": "grün", "test.strings": ["a", "", "ß"],
        "test.integers": [1, -2, 3],
    });
    assert_eq!(json, expected);
    Ok(())
}

#[test]
fn keeps_the_bytes_of_the_metadata() -> Result {
    let path = fixture("blocks.gguf");
    let source = GgufSource::open(&path)?;
    let raw = source.metadata().ok_or("no metadata")?.raw();
    let file = std::fs::read(path)?;
    assert_eq!(file.get(24..24 + raw.len()), Some(&raw[..]));
    Ok(())
}

/// Blocks of any bytes; codes of f16 that are not numbers may decode to other NaNs.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nodes_decode_like_blocks_of_any_bytes(
        seed in any::<u64>(),
        rows in 0u64..4,
        blocks in 1u64..4,
    ) {
        for &ty in GgmlType::ALL {
            let len = usize::try_from(rows * blocks * ty.block_bytes()).unwrap_or(0);
            let bytes = noise(seed, len);
            let cols = blocks * ty.block_elems();
            let mut expected = vec![0.0; usize::try_from(rows * cols).unwrap_or(0)];
            decode(ty, &bytes, &mut expected).map_err(fail)?;
            let values = node_values(ty, rows, cols, &bytes).map_err(fail)?;
            let differ = values.iter().zip(&expected).position(|(&a, &b)| !same(a, b));
            prop_assert_eq!(differ, None, "{}", ty.name());
        }
    }

    #[test]
    fn row_ranges_decode_like_the_whole(seed in any::<u64>(), start in 0usize..5, end in 0usize..5) {
        let (start, end) = (start.min(end), start.max(end));
        for &ty in GgmlType::ALL {
            let cols = ty.block_elems() * 2;
            let bytes = noise(seed, usize::try_from(ty.block_bytes() * 2 * 5).unwrap_or(0));
            let all = node_values(ty, 5, cols, &bytes).map_err(fail)?;
            let node = block_node(ty, 5, cols, &bytes).map_err(fail)?;
            let cols = all.len() / 5;
            let mut part = vec![0.0; (end - start) * cols];
            node.view().and_then(|view| view.decode_rows(start..end, &mut part)).map_err(fail)?;
            let expected = &all[start * cols..end * cols];
            prop_assert!(part.iter().zip(expected).all(|(&a, &b)| same(a, b)), "{}", ty.name());
        }
    }
}

fn fail(error: impl ToString) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

/// SplitMix64.
fn noise(mut state: u64, len: usize) -> Vec<u8> {
    let words = std::iter::from_fn(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some((word ^ word >> 31).to_le_bytes())
    });
    words.flatten().take(len).collect()
}

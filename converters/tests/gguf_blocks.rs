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

#[test]
fn nodes_take_the_space_of_blocks() -> Result {
    let cols = 4096;
    for &ty in GgmlType::ALL {
        let block_bytes = ty.row_bytes(cols)? * 16;
        let node = block_node(ty, 16, cols, &noise(251, usize::try_from(block_bytes)?))?;
        // Codebooks are shared by all tensors, and tables do not grow with them.
        let fixed: u64 = node
            .children
            .iter()
            .filter(|child| child.rows > 16 || child.rows == 1)
            .map(|child| child.stored_bytes())
            .sum();
        let ratio = (node.stored_bytes() - fixed) as f64 / block_bytes as f64;
        // Trits are not packed five to a byte, and not all grids have as many vectors as codes.
        let most = match ty {
            GgmlType::TQ1_0 | GgmlType::IQ2_S => 1.23,
            GgmlType::IQ3_XXS | GgmlType::IQ1_S => 1.07,
            // Tables of bytes that only noise needs.
            GgmlType::MXFP4 | GgmlType::NVFP4 => 1.05,
            _ => 1.005,
        };
        assert!(ratio <= most, "{}: {ratio}", ty.name());
    }
    Ok(())
}

#[test]
fn nodes_of_a_type_share_their_codebook() -> Result {
    let [first, second] = [1, 2].map(|seed| block_node(GgmlType::IQ2_XS, 1, 256, &noise(seed, 74)));
    let (first, second) = (first?, second?);
    assert!(first.children.iter().zip(&second.children).any(|(a, b)| std::sync::Arc::ptr_eq(a, b)));
    Ok(())
}

/// One row of blocks, each with one of these scales and all codes.
fn blocks_of_scales(ty: GgmlType, scales: impl Iterator<Item = u8>) -> Vec<u8> {
    let (scale_bytes, code_bytes) = if ty == GgmlType::MXFP4 { (1, 16) } else { (4, 32) };
    let codes = (0..16u8).map(|i| i << 4 | (15 - i)).cycle().take(code_bytes);
    scales.flat_map(|scale| std::iter::repeat_n(scale, scale_bytes).chain(codes.clone())).collect()
}

#[test]
fn scales_of_8_bits_stay_bytes_where_the_container_has_their_type() -> Result {
    for (ty, numbers) in [(GgmlType::MXFP4, 0..=254), (GgmlType::NVFP4, 0..=126)] {
        let bytes = blocks_of_scales(ty, numbers);
        let cols = bytes.len() as u64 / ty.block_bytes() * ty.block_elems();
        let node = block_node(ty, 1, cols, &bytes)?;
        let scale = node.children.first().ok_or("no scale")?;
        assert_eq!(scale.encoding, cmf_format::encoding::dense::ID, "{}", ty.name());
    }
    Ok(())
}

#[test]
fn every_scale_of_8_bits_has_its_value() -> Result {
    for (ty, last) in [(GgmlType::MXFP4, 254), (GgmlType::NVFP4, 126)] {
        for numbers in [0..=last, 0..=255] {
            let bytes = blocks_of_scales(ty, numbers);
            let cols = bytes.len() as u64 / ty.block_bytes() * ty.block_elems();
            let mut expected = vec![0.0; usize::try_from(cols)?];
            decode(ty, &bytes, &mut expected)?;
            assert_eq!(bits(&node_values(ty, 1, cols, &bytes)?), bits(&expected), "{}", ty.name());
        }
    }
    Ok(())
}

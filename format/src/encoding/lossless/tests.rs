use super::*;
use crate::encoding::testing::{bits, damages, decoded, survives};
use crate::node::NodeData;
use proptest::prelude::*;

/// Element bytes with the statistics of weights: a narrow range of exponents, sizes of all kinds.
fn weights(dtype: DType, len: usize) -> Result<Vec<u8>> {
    let mut state = 1u64;
    let values: Vec<f32> = (0..len)
        .map(|_| {
            let mut sum = -6.0;
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sum += (state >> 40) as f32 / (1 << 24) as f32;
            }
            sum * 0.02
        })
        .collect();
    dtype.encode(&values)
}

fn bytes_of(node: &NodeData) -> Result<Vec<u8>> {
    let super::super::View::Lossless(view) = node.view()? else { return Ok(Vec::new()) };
    let mut out = vec![0; view.rows() * view.cols() * view.dtype().bytes()];
    view.decode_bytes(0..view.rows(), &mut out)?;
    Ok(out)
}

#[test]
fn every_type_gives_back_its_bytes() -> Result<()> {
    for dtype in DType::ALL.iter().copied() {
        for (rows, cols) in [(0, 0), (0, 3), (3, 0), (1, 1), (3, 5), (700, 301)] {
            let bytes: Vec<u8> =
                (0..rows * cols * dtype.bytes()).map(|i| (i * i * 31 + i / 7) as u8).collect();
            let node = pack(dtype, rows as u64, cols as u64, &bytes)?;
            assert_eq!(bytes_of(&node)?, bytes, "{} {rows} {cols}", dtype.name());
            node.view()?.verify()?;
        }
    }
    Ok(())
}

#[test]
fn values_are_those_of_the_type() -> Result<()> {
    for dtype in [DType::BF16, DType::F16, DType::F32, DType::F64, DType::F8E4M3] {
        for (rows, cols) in [(9, 7), (300, 1000)] {
            let bytes = weights(dtype, rows * cols)?;
            let mut expected = vec![0.0; rows * cols];
            dtype.decode(&bytes, &mut expected)?;
            let node = pack(dtype, rows as u64, cols as u64, &bytes)?;
            let view = node.view()?;
            let mut out = vec![0.0; rows * cols];
            view.decode_rows(0..rows, &mut out)?;
            assert_eq!(bits(&out), bits(&expected), "{}", dtype.name());
            for row in [0, rows / 2, rows - 1] {
                view.decode_rows(row..row + 1, &mut out[..cols])?;
                assert_eq!(bits(&out[..cols]), bits(&expected[row * cols..][..cols]));
            }
        }
    }
    Ok(())
}

#[test]
fn gaussian_weights_shrink_to_the_entropy_of_their_exponents() -> Result<()> {
    for (dtype, most) in [(DType::BF16, 0.68), (DType::F16, 0.86), (DType::F32, 0.85)] {
        let bytes = weights(dtype, 1 << 18)?;
        let node = pack(dtype, 512, 512, &bytes)?;
        let share = node.stored_bytes() as f64 / bytes.len() as f64;
        assert!(share < most, "{}: {share}", dtype.name());
    }
    Ok(())
}

#[test]
fn constant_planes_cost_next_to_nothing() -> Result<()> {
    // bf16 weights kept as f32: a plane of zeros, and one of signs.
    let narrow = weights(DType::BF16, 1 << 18)?;
    let wide: Vec<u8> = narrow.chunks(2).flat_map(|b| [0, 0, b[0], b[1]]).collect();
    let node = pack(DType::F32, 512, 512, &wide)?;
    assert!(node.stored_bytes() < 12 * (1 << 18) / 8, "{}", node.stored_bytes());
    assert_eq!(bytes_of(&node)?, wide);
    Ok(())
}

#[test]
fn frames_hold_a_row_at_least_and_no_more_rows_than_there_are() -> Result<()> {
    for (rows, cols, expected) in
        [(5u64, 32_768u64, 1), (5, 32_769, 1), (5, 16_384, 2), (5, 1, 5), (0, 9, 1), (70_000, 1, 32_768)]
    {
        let node = pack(DType::U8, rows, cols, &vec![1; (rows * cols) as usize])?;
        let super::super::View::Lossless(view) = node.view()? else { continue };
        assert_eq!(view.rows_per_frame(), expected, "{rows} {cols}");
    }
    Ok(())
}

/// What decoding and verifying say once `ends` and `chunks` are replaced.
fn damaged(ends: &[u64], chunks: Vec<u8>) -> Result<[Option<ErrorKind>; 2]> {
    // Two frames of one row of two planes: each exponent plane compresses, the others do not.
    let mut node = pack(DType::BF16, 2, 70_000, &weights(DType::BF16, 140_000)?)?;
    let descriptor = Descriptor { dtype: DType::BF16, rows_per_frame: 1, chunk_bytes: chunks.len() as u64 };
    node.descriptor = descriptor.to_bytes();
    node.segments = vec![ends.iter().flat_map(|e| e.to_le_bytes()).collect::<Vec<_>>().into(), chunks.into()];
    let view = node.view()?;
    let mut out = vec![0.0; 140_000];
    Ok([view.decode_rows(0..2, &mut out).err().map(|e| e.kind()), view.verify().err().map(|e| e.kind())])
}

#[test]
fn rejects_chunks_that_are_not_one_exact_frame() -> Result<()> {
    let node = pack(DType::BF16, 2, 70_000, &weights(DType::BF16, 140_000)?)?;
    let chunks = node.segments[1].bytes().unwrap_or(&[]).to_vec();
    let ends: Vec<u64> = node.segments[0]
        .bytes()
        .unwrap_or(&[])
        .chunks(8)
        .map(|b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
        .collect();
    assert_eq!(damaged(&ends, chunks.clone())?, [None, None]);
    let bad = [Some(ErrorKind::Value); 2];
    let all = chunks.len() as u64;
    for ends in [
        vec![ends[0] - 1, ends[1], ends[2], all],
        vec![ends[0] + 1, ends[1], ends[2], all],
        vec![ends[1], ends[0], ends[2], all],
        vec![ends[0], ends[1], ends[2], all - 1],
        vec![ends[0], ends[1], ends[2], all + 1],
        vec![0, ends[1], ends[2], all],
        vec![u64::MAX, ends[1], ends[2], all],
    ] {
        assert_eq!(damaged(&ends, chunks.clone())?, bad, "{ends:?}");
    }
    let mut longer = chunks.clone();
    longer.push(0);
    assert_eq!(damaged(&ends, longer)?, bad);
    let mut other_size = chunks;
    other_size[6] ^= 1;
    assert_eq!(damaged(&ends, other_size)?, bad);
    Ok(())
}

#[test]
fn rejects_frames_of_no_rows_or_too_many() -> Result<()> {
    let node = pack(DType::U8, 3, 1 << 23, &vec![1; 3 << 23])?;
    for (rows_per_frame, frames, opens) in [(0u32, 3u64, false), (1, 3, true), (2, 2, true), (3, 1, false)] {
        let mut node = node.clone();
        let chunk_bytes = node.segments[1].decoded_bytes;
        node.descriptor = Descriptor { dtype: DType::U8, rows_per_frame, chunk_bytes }.to_bytes();
        node.segments[0] = vec![0; frames as usize * 8].into();
        assert_eq!(node.view().is_ok(), opens, "{rows_per_frame}");
    }
    Ok(())
}

#[test]
fn rejects_bytes_of_another_length() {
    let error = pack(DType::F16, 2, 3, &[0; 11]).err().map(|e| e.kind());
    assert_eq!(error, Some(ErrorKind::Structure));
}

proptest! {
    #[test]
    fn any_bytes_come_back(
        dtype in prop_oneof![Just(DType::F16), Just(DType::BF16), Just(DType::F32), Just(DType::F64)],
        (rows, cols) in (0usize..9, 0usize..20),
        bytes in proptest::collection::vec(any::<u8>(), 9 * 20 * 8),
        (from, to) in (0usize..9, 0usize..9),
    ) {
        let bytes = &bytes[..rows * cols * dtype.bytes()];
        let node = pack(dtype, rows as u64, cols as u64, bytes)?;
        prop_assert_eq!(bytes_of(&node)?, bytes);
        let rows = from.min(rows)..to.clamp(from.min(rows), rows);
        let stride = cols * dtype.bytes();
        if let super::super::View::Lossless(view) = node.view()? {
            let mut out = vec![0; rows.len() * stride];
            view.decode_bytes(rows.clone(), &mut out)?;
            prop_assert_eq!(&out, &bytes[rows.start * stride..rows.end * stride]);
        }
    }

    #[test]
    fn damage_is_no_panic(damages in damages()) {
        survives(&pack(DType::BF16, 4, 60, &weights(DType::BF16, 240)?)?, &damages);
    }

    #[test]
    fn slices_equal_the_whole(rows in 1usize..40, cols in 1usize..40, per_frame in 1u32..9) {
        // One-byte planes stored raw, in frames of any height.
        let bytes: Vec<u8> = (0..rows * cols).map(|i| (i * 37 % 251) as u8).collect();
        let mut node = pack(DType::I8, rows as u64, cols as u64, &bytes)?;
        let rotated: Vec<u8> = bytes.iter().map(|b| b.rotate_left(1)).collect();
        let frame = per_frame as usize * cols;
        let ends = (frame..rows * cols).step_by(frame).chain([rows * cols]);
        node.segments[0] = ends.flat_map(|e| (e as u64).to_le_bytes()).collect::<Vec<u8>>().into();
        let chunk_bytes = rotated.len() as u64;
        node.segments[1] = rotated.into();
        node.descriptor = Descriptor { dtype: DType::I8, rows_per_frame: per_frame, chunk_bytes }.to_bytes();
        let expected: Vec<f32> = bytes.iter().map(|b| f32::from(*b as i8)).collect();
        prop_assert_eq!(decoded(&node)?, expected);
    }
}

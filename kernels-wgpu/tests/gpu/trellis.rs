//! `trellis`.

use crate::common::{
    Near, Random, TestResult, bare_bed, bed, check, check_eights, check_many, check_tiles, context, scales,
    subgroup_bed,
};
use cmf_format::encoding::dense;
use cmf_format::encoding::grouped::groups;
use cmf_format::encoding::trellis::{Axis, Code, Descriptor, pack};
use cmf_format::{DType, NodeData};
use cmf_kernels_wgpu::{GpuMatrix, Kernels, Tuning, Uploader};
use std::sync::Arc;

const PLAIN: Descriptor = Descriptor {
    state_bits: 10,
    step_bits: 2,
    code: Code::Table,
    axis: Axis::Down,
    path_elems: 0,
    scale_rows: 32,
    scale_cols: 0,
};

fn node(descriptor: &Descriptor, rows: usize, cols: usize, seed: u64) -> Result<NodeData, cmf_format::Error> {
    let mut random = Random::new(seed);
    let values = random.values(1 << descriptor.state_bits);
    node_of(descriptor, rows, cols, &mut random, &values)
}

/// With a table of signed bytes.
fn node_of_bytes(
    descriptor: &Descriptor,
    rows: usize,
    cols: usize,
    seed: u64,
) -> Result<NodeData, cmf_format::Error> {
    let mut random = Random::new(seed);
    let values: Vec<f32> =
        (0..1 << descriptor.state_bits).map(|_| random.below(256) as f32 - 128.0).collect();
    node_of(descriptor, rows, cols, &mut random, &values)
}

fn node_of(
    descriptor: &Descriptor,
    rows: usize,
    cols: usize,
    random: &mut Random,
    values: &[f32],
) -> Result<NodeData, cmf_format::Error> {
    let codes: Vec<u8> = (0..rows * cols).map(|_| random.below(1 << descriptor.step_bits) as u8).collect();
    let down = groups(rows as u64, descriptor.scale_rows) as usize;
    let across = groups(cols as u64, descriptor.scale_cols) as usize;
    let scale = scales(DType::F16, down, across, random)?;
    let table = match descriptor.code {
        Code::Table => Some(Arc::new(dense::pack_values(DType::F16, 1, values.len() as u64, values)?)),
        Code::ByteSum { .. } => None,
    };
    pack(descriptor, rows as u64, cols as u64, &codes, scale, table)
}

#[test]
fn every_window_and_step_decodes_down_and_along() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let codes = [Code::Table, Code::BYTE_SUM, Code::BYTE_SUM].into_iter().cycle();
    for ((state_bits, step_bits), code) in
        [(6, 1), (8, 2), (10, 2), (12, 3), (16, 4), (16, 2), (7, 4)].into_iter().zip(codes)
    {
        for axis in [Axis::Down, Axis::Along] {
            let descriptor = Descriptor { state_bits, step_bits, axis, code, ..PLAIN };
            let name = format!("{state_bits}/{step_bits} bits, {axis:?}, {code:?}");
            check(&bed, &name, &[Arc::new(node(&descriptor, 64, 96, 1)?)], Near::Exact)?;
        }
    }
    Ok(())
}

#[test]
fn odd_paths_and_scales_decode() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    for axis in [Axis::Down, Axis::Along] {
        for (rows, cols, path_elems, scale_rows, scale_cols) in [
            (37, 29, 0, 1, 0),
            (48, 64, 16, 1, 7),
            (40, 40, 16, 0, 1),
            (2, 3, 0, 0, 0),
            (9, 8, 3, 4, 4),
            (1, 33, 0, 1, 0),
        ] {
            let descriptor = Descriptor { axis, path_elems, scale_rows, scale_cols, ..PLAIN };
            let name =
                format!("{axis:?} {rows}x{cols}, paths {path_elems}, scales {scale_rows}x{scale_cols}");
            check(&bed, &name, &[Arc::new(node(&descriptor, rows, cols, 2)?)], Near::Exact)?;
        }
    }
    Ok(())
}

#[test]
fn five_planes_add_up() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let planes = (0..5).map(|seed| node(&PLAIN, 64, 64, seed).map(Arc::new));
    let planes = planes.collect::<Result<Vec<_>, _>>()?;
    for held in 1..=planes.len() {
        check(&bed, &format!("{held} planes"), planes.get(..held).ok_or("planes")?, Near::Exact)?;
    }
    check_tiles(&bed, "planes in tiles", &planes, Near::Exact)?;
    check_eights(&bed, "planes in tiles of 8", &planes, Near::Exact)?;
    check_many(&bed, "planes in several tiles", &planes, Near::Exact)?;
    Ok(())
}

#[test]
fn tables_of_bytes_give_rows_at_once() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    for (state_bits, step_bits) in [(10, 2), (8, 2), (12, 1), (6, 4), (9, 3)] {
        let descriptor = Descriptor { state_bits, step_bits, ..PLAIN };
        let planes = (0..2).map(|seed| node_of_bytes(&descriptor, 96, 36, seed).map(Arc::new));
        let planes = planes.collect::<Result<Vec<_>, _>>()?;
        let name = format!("bytes, {state_bits}/{step_bits} bits");
        check(&bed, &name, planes.get(..1).ok_or("plane")?, Near::Exact)?;
        check_eights(&bed, &name, &planes, Near::Exact)?;
    }
    Ok(())
}

#[test]
fn tall_tiles_have_whole_words_of_paths() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    // Tiles of 64, 32 and 16 rows, the last not full; paths of one tile, of a part of one and of several.
    let shapes =
        [(4144, 0), (4160, 128), (1040, 0), (1040, 32), (1056, 48), (272, 0), (1120, 1024), (288, 128)];
    for (rows, path_elems) in shapes {
        for (state_bits, step_bits) in [(10, 2), (12, 1), (10, 3), (7, 4)] {
            let descriptor = Descriptor { state_bits, step_bits, path_elems, scale_rows: 16, ..PLAIN };
            let name = format!("{state_bits}/{step_bits} bits, {rows} rows, paths {path_elems}");
            check(&bed, &name, &[Arc::new(node_of_bytes(&descriptor, rows, 20, 3)?)], Near::Exact)?;
        }
        let descriptor = Descriptor { state_bits: 16, code: Code::BYTE_SUM, path_elems, ..PLAIN };
        let planes = (0..2).map(|seed| node(&descriptor, rows, 20, seed).map(Arc::new));
        let planes = planes.collect::<Result<Vec<_>, _>>()?;
        check(&bed, &format!("byte sums, {rows} rows, paths {path_elems}"), &planes, Near::Exact)?;
    }
    Ok(())
}

/// With a table of 64 signed bytes by the newest 6 bits of a window and a linear map of those before.
fn node_of_hashes(
    descriptor: &Descriptor,
    rows: usize,
    cols: usize,
    seed: u64,
) -> Result<NodeData, cmf_format::Error> {
    let mut random = Random::new(seed);
    let older = usize::from(descriptor.state_bits) - 6;
    let map: Vec<usize> = (0..older).map(|_| random.below(64)).collect();
    let by_index: Vec<f32> = (0..64).map(|_| random.below(256) as f32 - 128.0).collect();
    let index = |window: usize| {
        let added = map.iter().enumerate().filter(|(bit, _)| window >> bit & 1 == 1);
        added.fold(window >> older, |index, (_, more)| index ^ more)
    };
    let values: Vec<f32> =
        (0..1usize << descriptor.state_bits).map(|window| by_index[index(window)]).collect();
    node_of(descriptor, rows, cols, &mut random, &values)
}

#[test]
fn hashed_tables_are_asked_for_in_a_subgroup() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    for (rows, path_elems, state_bits) in
        [(1040, 0, 12), (272, 0, 12), (1056, 32, 14), (304, 16, 12), (96, 0, 12), (1056, 0, 10), (288, 0, 14)]
    {
        let descriptor = Descriptor { state_bits, path_elems, scale_rows: 16, ..PLAIN };
        let planes = (0..2).map(|seed| node_of_hashes(&descriptor, rows, 36, seed).map(Arc::new));
        let planes = planes.collect::<Result<Vec<_>, _>>()?;
        let name = format!("hashed, {state_bits} bits, {rows} rows, paths {path_elems}");
        check(&bed, &name, planes.get(..1).ok_or("plane")?, Near::Exact)?;
        check(&bed, &name, &planes, Near::Exact)?;
    }
    Ok(())
}

#[test]
fn words_of_32_bits_are_enough() -> TestResult {
    let Some(bed) = subgroup_bed()? else { return Ok(()) };
    for state_bits in [10, 12] {
        let descriptor = Descriptor { state_bits, ..PLAIN };
        let planes = [
            Arc::new(node_of_hashes(&descriptor, 1040, 36, 1)?),
            Arc::new(node_of_bytes(&descriptor, 1040, 36, 2)?),
        ];
        for plane in &planes {
            check(&bed, &format!("{state_bits} bits"), std::slice::from_ref(plane), Near::Exact)?;
        }
    }
    Ok(())
}

#[test]
fn a_device_without_features_gives_the_same() -> TestResult {
    let Some(bed) = bare_bed()? else { return Ok(()) };
    let descriptor = Descriptor { state_bits: 12, ..PLAIN };
    let planes = (0..2).map(|seed| node_of_hashes(&descriptor, 272, 40, seed).map(Arc::new));
    let planes = planes.collect::<Result<Vec<_>, _>>()?;
    check(&bed, "hashed, no features", &planes, Near::Exact)?;
    check_tiles(&bed, "hashed, no features", &planes, Near::Exact)?;
    Ok(())
}

#[test]
fn units_share_their_table() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let kernels = Kernels::with_tuning(context.device(), Tuning { lanes: 1, width: 16 })?;
    let mut uploader = Uploader::new(context.device(), context.queue());
    let mut matrix = GpuMatrix::new(&kernels, &mut uploader, 64, 32, &[], &[])?;
    let node = node_of_bytes(&PLAIN, 64, 32, 1)?;
    let view = node.view()?;
    for unit in 0..3 {
        matrix.insert(&kernels, &mut uploader, unit, std::iter::once((0, 0, &view)))?;
    }
    uploader.finish()?;
    assert_eq!(kernels.shared_bytes(), 4 << 14);
    for unit in 0..3 {
        assert!(matrix.remove(unit));
    }
    assert_eq!(kernels.shared_bytes(), 0);
    Ok(())
}

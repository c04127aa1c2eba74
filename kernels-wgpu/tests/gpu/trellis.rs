//! `trellis`.

use crate::common::{Near, Random, TestResult, bed, check, check_eights, check_tiles, dense_node, scales};
use cmf_format::encoding::grouped::groups;
use cmf_format::encoding::trellis::{Axis, Code, Descriptor, pack};
use cmf_format::{DType, NodeData};
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
    let codes: Vec<u8> = (0..rows * cols).map(|_| random.below(1 << descriptor.step_bits) as u8).collect();
    let down = groups(rows as u64, descriptor.scale_rows) as usize;
    let across = groups(cols as u64, descriptor.scale_cols) as usize;
    let scale = scales(DType::F16, down, across, &mut random)?;
    let table = match descriptor.code {
        Code::Table => Some(Arc::new(dense_node(DType::F16, 1, 1 << descriptor.state_bits, &mut random)?)),
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
    Ok(())
}

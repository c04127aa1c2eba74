//! Small devices, large matrices, hostile bytes, no adapter.

use crate::common::{
    Near, Random, TestResult, bare_bed, bed, check, check_products, check_tiles, compare_with, context,
    dense_node, narrow_bed, scales,
};
use cmf_format::encoding::grouped;
use cmf_format::encoding::sparse::{Block, Op, Positions, pack_bitmap, pack_csr, pack_n_m};
use cmf_format::encoding::trellis::{self, Axis, Code};
use cmf_format::encoding::{dense, low_rank};
use cmf_format::{DType, NodeData};
use cmf_kernels_wgpu::{Activations, ErrorKind, GpuMatrix, Picked, Rows, Uploader, Workspace};
use std::process::Command;
use std::sync::Arc;

fn grouped_node(rows: usize, cols: usize, random: &mut Random) -> Result<NodeData, cmf_format::Error> {
    let descriptor = grouped::Descriptor {
        bits: 4,
        code_map: grouped::CodeMap::Integer { offset: -8 },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: 32,
    };
    let codes: Vec<u8> = (0..rows * cols).map(|_| random.below(16) as u8).collect();
    let scale = Some(scales(DType::F16, rows, cols.div_ceil(32), random)?);
    let children = grouped::Children { scale, ..Default::default() };
    grouped::pack(&descriptor, rows as u64, cols as u64, &codes, children)
}

fn trellis_node(
    axis: Axis,
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> Result<NodeData, cmf_format::Error> {
    let descriptor = trellis::Descriptor {
        state_bits: 16,
        step_bits: 2,
        code: Code::BYTE_SUM,
        axis,
        path_elems: 64,
        scale_rows: 32,
        scale_cols: 0,
    };
    let codes: Vec<u8> = (0..rows * cols).map(|_| random.below(4) as u8).collect();
    let scale = scales(DType::F16, rows.div_ceil(32), 1, random)?;
    trellis::pack(&descriptor, rows as u64, cols as u64, &codes, scale, None)
}

/// A node, what it is called, and how near the decoded values are.
type Named = (&'static str, Arc<NodeData>, Near);

/// One node of each encoding that is read four columns at a time or through its factors.
fn one_of_each(rows: usize, cols: usize) -> Result<Vec<Named>, Box<dyn std::error::Error>> {
    let random = &mut Random::new(12);
    let factors =
        low_rank::pack(dense_node(DType::F16, 3, rows, random)?, dense_node(DType::F16, 3, cols, random)?)?;
    Ok(vec![
        ("dense", Arc::new(dense_node(DType::F32, rows, cols, random)?), Near::Exact),
        ("grouped", Arc::new(grouped_node(rows, cols, random)?), Near::Exact),
        ("trellis down", Arc::new(trellis_node(Axis::Down, rows, cols, random)?), Near::Exact),
        ("trellis along", Arc::new(trellis_node(Axis::Along, rows, cols, random)?), Near::Exact),
        ("low_rank", Arc::new(factors), Near::Within(1e-6)),
    ])
}

#[test]
fn terms_larger_than_a_binding_are_cut_by_rows() -> TestResult {
    let bytes = 64 << 10;
    let Some(bed) = narrow_bed(bytes)? else { return Ok(()) };
    // Paths down the columns are not cut.
    for (name, node, _) in one_of_each(512, 640)?.into_iter().filter(|(name, ..)| *name != "trellis down") {
        check_products(&bed, &format!("{name}, bindings of {bytes} bytes"), &node)?;
    }
    Ok(())
}

#[test]
fn a_term_that_cannot_be_cut_is_an_error() -> TestResult {
    let Some(bed) = narrow_bed(4 << 10)? else { return Ok(()) };
    let context = &bed.context;
    let positions = Positions::from_mask(64, 64, Block::ONE, |_, _| true)?;
    let values = Arc::new(dense_node(DType::F32, 1, 4096, &mut Random::new(3))?);
    let node = pack_csr(Op::Add, 64, 64, &positions, values)?;
    let view = node.view()?;
    let mut uploader = Uploader::new(context.device(), context.queue());
    let mut matrix = GpuMatrix::new(context.kernels(), &mut uploader, 64, 64, &[], &[])?;
    let found = matrix.insert(context.kernels(), &mut uploader, 0, std::iter::once((0, 0, &view)));
    assert_eq!(found.map_err(|e| e.kind()), Err(ErrorKind::Limit));
    assert_eq!(matrix.units().count(), 0);
    Ok(())
}

#[test]
fn webgpus_defaults_are_enough() -> TestResult {
    let Some(bed) = bare_bed()? else { return Ok(()) };
    for (name, node, near) in one_of_each(64, 96)? {
        check(&bed, &format!("{name}, no features"), std::slice::from_ref(&node), near)?;
        if name == "grouped" {
            check_tiles(&bed, "grouped, no features, tiles", &[Arc::clone(&node), node], near)?;
        }
    }
    Ok(())
}

#[test]
fn more_rows_than_a_dispatch_has_groups() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    // 65535 groups of eight rows each, and some more.
    let node = dense_node(DType::F16, 8 * 65535 + 21, 4, &mut Random::new(13))?;
    check(&bed, "rows", &[Arc::new(node)], Near::Exact)
}

#[test]
fn indices_that_32_bits_do_not_hold_are_an_error() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let kernels = context.kernels();
    let mut uploader = Uploader::new(context.device(), context.queue());
    let node = dense_node(DType::F16, 4, 4, &mut Random::new(14))?;
    let view = node.view()?;
    let mut matrix = GpuMatrix::new(kernels, &mut uploader, 1 << 20, 1 << 20, &[], &[])?;
    matrix.insert(kernels, &mut uploader, 0, std::iter::once((0, 0, &view)))?;
    uploader.finish()?;
    let (x, y) = (context.buffer(1 << 20)?, context.buffer(1 << 20)?);
    // More rows than any buffer holds, and more activations.
    let found = context.submit(|pass| {
        let picked = Picked::Range { first: 0, count: 1 << 20 };
        kernels.decode_sum(pass, &mut Workspace::default(), &matrix, picked, Rows::of(&y, 1 << 20))
    });
    assert_eq!(found.map_err(|e| e.kind()), Err(ErrorKind::Argument));
    let found = context.submit(|pass| {
        let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
        let rows = Rows::of(&x, 1 << 20);
        kernels.activate(pass, &mut workspace, matrix.input(), rows, u32::MAX, &mut activations)
    });
    assert!(matches!(found.map_err(|e| e.kind()), Err(ErrorKind::Argument | ErrorKind::Limit)));
    let found = GpuMatrix::new(kernels, &mut uploader, 1 << 33, 4, &[], &[]);
    assert_eq!(found.map_err(|e| e.kind()).err(), Some(ErrorKind::Limit));
    Ok(())
}

/// Little-endian numbers of `bytes` bytes each.
fn numbers(segment: &[u8], bytes: usize) -> Vec<usize> {
    segment.chunks(bytes).map(|n| n.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte))).collect()
}

#[test]
fn hostile_columns_and_offsets_are_left_out() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let (rows, cols) = (16, 40);
    let positions = Positions::from_mask(rows, cols, Block::ONE, |i, j| (i * 3 + j) % 5 == 0)?;
    let values = positions.gather(cols, &Random::new(15).values(rows * cols));
    let child = Arc::new(dense::pack_values(DType::F32, 1, values.len() as u64, &values)?);
    let node = pack_csr(Op::Add, rows as u64, cols as u64, &positions, child)?;
    let view = node.view()?;
    let cmf_format::encoding::View::Sparse(sparse) = &view else { return Err("not sparse".into()) };
    let (offsets, columns) = (sparse.row_offsets().to_vec(), sparse.positions().to_vec());
    let index_bytes = columns.len() / values.len();

    // Columns beyond the matrix, and nearly so; offsets that go down, and beyond what is stored.
    let mut wrong_columns = columns.clone();
    for (at, byte) in wrong_columns.iter_mut().enumerate() {
        if at / index_bytes % 7 == 2 {
            *byte = 0xff;
        }
        if at / index_bytes % 7 == 5 {
            *byte = if at % index_bytes == 0 { cols as u8 } else { 0 };
        }
    }
    let mut wrong_offsets = offsets.clone();
    wrong_offsets.iter_mut().skip(4 * 5).take(4).for_each(|byte| *byte = 0xff);
    wrong_offsets.iter_mut().skip(4 * 9).take(4).for_each(|byte| *byte = 0);
    for (name, offsets, columns) in [
        ("columns", &offsets, &wrong_columns),
        ("offsets", &wrong_offsets, &columns),
        ("both", &wrong_offsets, &wrong_columns),
    ] {
        let mut hostile = node.clone();
        hostile.segments = vec![offsets.clone().into(), columns.clone().into()];
        let (offsets, columns) = (numbers(offsets, 4), numbers(columns, index_bytes));
        let mut expected = vec![0.0f32; rows * cols];
        for (row, expected) in expected.chunks_mut(cols).enumerate() {
            let end = offsets[row + 1].min(values.len());
            for entry in offsets[row].min(end)..end {
                if let Some(place) = expected.get_mut(columns[entry]) {
                    *place += values[entry];
                }
            }
        }
        // A column may be listed twice: the sums differ by their roundings then.
        compare_with(&bed, name, &[Arc::new(hostile)], &expected, Some(Near::Within(1e-6)), [&[1, 5], &[1]])?;
    }
    Ok(())
}

#[test]
fn any_bits_of_bitmaps_and_positions_stay_inside() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let context = &bed.context;
    let (rows, cols) = (16usize, 40usize);
    let random = &mut Random::new(16);
    let positions = Positions::from_mask(rows, cols, Block { rows: 2, cols: 3 }, |i, j| (i + j) % 4 == 0)?;
    let values = positions.gather(cols, &random.values(rows * cols));
    let child = dense::pack_values(DType::F32, 1, values.len() as u64, &values)?;
    let bitmap = pack_bitmap(Op::Add, rows as u64, cols as u64, &positions, child)?;
    let kept = cols.div_ceil(5) * 3;
    let child = dense_node(DType::F16, rows, kept, random)?;
    let ascending: Vec<u16> = (0..rows * kept).map(|k| k as u16 % 3).collect();
    let n_m = pack_n_m(Op::Replace, rows as u64, cols as u64, (3, 5), &ascending, child)?;
    for node in [bitmap, n_m] {
        let mut hostile = node.clone();
        let segments = node.segments.iter().map(|segment| {
            (0..segment.decoded_bytes).map(|_| random.below(256) as u8).collect::<Vec<_>>().into()
        });
        hostile.segments = segments.collect();
        let view = hostile.view()?;
        let kernels = context.kernels();
        let mut uploader = Uploader::new(context.device(), context.queue());
        let mut matrix = GpuMatrix::new(kernels, &mut uploader, rows, cols, &[], &[])?;
        matrix.insert(kernels, &mut uploader, 0, std::iter::once((0, 0, &view)))?;
        uploader.finish()?;
        // What is beside the rows is not touched; what is read is of the matrix.
        let stride = cols + 3;
        let out = context.upload(&vec![7.0; rows * stride])?;
        context.submit(|pass| {
            let picked = Picked::Range { first: 0, count: rows as u32 };
            let to = Rows { buffer: &out, offset_bytes: 0, stride: stride as u32 };
            kernels.decode_sum(pass, &mut Workspace::default(), &matrix, picked, to)
        })?;
        for row in context.download(&out, rows * stride)?.chunks(stride) {
            assert!(row[..cols].iter().all(|v| v.is_finite() && *v != 7.0), "{row:?}");
            assert!(row[cols..].iter().all(|v| *v == 7.0), "{row:?}");
        }
    }
    Ok(())
}

#[test]
fn without_an_adapter_tests_say_so_or_fail() -> TestResult {
    // A backend that this system does not have: no adapter.
    let backend = if cfg!(windows) { "metal" } else { "dx12" };
    let run = |require: &str| {
        Command::new(std::env::current_exe()?)
            .args(["device::pipelines_are_compiled_once", "--exact", "--nocapture"])
            .env("WGPU_BACKEND", backend)
            .env("CMF_REQUIRE_GPU", require)
            .output()
    };
    let skipped = run("0")?;
    let said = String::from_utf8_lossy(&skipped.stderr);
    assert!(skipped.status.success() && said.contains("SKIPPED: no adapter"), "{said}");
    assert!(!run("1")?.status.success());
    Ok(())
}

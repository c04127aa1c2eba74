//! `sparse`.

use crate::common::{Near, Random, TestResult, bed, check, check_tiles, compare, context, dense_node};
use cmf_format::DType;
use cmf_format::encoding::dense;
use cmf_format::encoding::sparse::{Block, Op, Positions, pack_bitmap, pack_csr, pack_n_m};
use cmf_kernels_wgpu::{Activations, ErrorKind, GpuMatrix, Picked, Rows, Uploader, Workspace};
use std::sync::Arc;

#[test]
fn every_layout_adds_its_values() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let (rows, cols) = (13, 45);
    let mut random = Random::new(8);
    let under = Arc::new(dense_node(DType::F16, rows, cols, &mut random)?);
    for block in [Block::ONE, Block { rows: 2, cols: 3 }] {
        let listed = |i: usize, j: usize| (i * 7 + j * 5).is_multiple_of(11);
        let positions = Positions::from_mask(rows, cols, block, listed)?;
        let values = positions.gather(cols, &random.values(rows * cols));
        let values = Arc::new(dense::pack_values(DType::F32, 1, values.len() as u64, &values)?);
        let (rows, cols) = (rows as u64, cols as u64);
        let csr = Arc::new(pack_csr(Op::Add, rows, cols, &positions, Arc::clone(&values))?);
        let bitmap = Arc::new(pack_bitmap(Op::Add, rows, cols, &positions, values)?);
        for (name, node) in [("csr", csr), ("bitmap", bitmap)] {
            check(&bed, &format!("{name}, {block:?}"), std::slice::from_ref(&node), Near::Exact)?;
            check_tiles(
                &bed,
                &format!("{name}, {block:?} on dense"),
                &[Arc::clone(&under), node],
                Near::Exact,
            )?;
        }
    }
    for (n, m) in [(2, 4), (1, 5)] {
        let kept = cols.div_ceil(m.into()) * usize::from(n);
        let positions: Vec<u16> = (0..rows * kept).map(|k| (k % usize::from(n) * 2) as u16 % m).collect();
        let values = dense_node(DType::F16, rows, kept, &mut random)?;
        let node = pack_n_m(Op::Add, rows as u64, cols as u64, (n, m), &positions, values)?;
        check(&bed, &format!("{n} of {m}"), &[Arc::clone(&under), Arc::new(node)], Near::Exact)?;
    }
    Ok(())
}

#[test]
fn replacing_values_decode_and_are_refused_in_products() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let (rows, cols) = (6, 8);
    let mut random = Random::new(9);
    let under = dense_node(DType::F32, rows, cols, &mut random)?;
    let positions = Positions::from_mask(rows, cols, Block::ONE, |i, j| i == j)?;
    let values = positions.gather(cols, &[2.0; 48]);
    let values = dense::pack_values(DType::F32, 1, values.len() as u64, &values)?;
    let over = pack_csr(Op::Replace, rows as u64, cols as u64, &positions, values)?;
    let mut uploader = Uploader::new(context.device(), context.queue());
    let kernels = context.kernels();
    let mut matrix = GpuMatrix::new(kernels, &mut uploader, rows, cols, &[], &[])?;
    let (under, over) = (under.view()?, over.view()?);
    matrix.insert(kernels, &mut uploader, 0, [(0, 0, &under), (0, 0, &over)].into_iter())?;
    uploader.finish()?;
    let out = context.buffer(rows * cols)?;
    context.submit(|pass| {
        let picked = Picked::Range { first: 0, count: rows as u32 };
        kernels.decode_sum(pass, &mut Workspace::default(), &matrix, picked, Rows::of(&out, cols as u32))
    })?;
    let mut expected = vec![0.0; rows * cols];
    under.decode_rows(0..rows, &mut expected)?;
    (0..rows).for_each(|i| expected[i * cols + i] = 2.0);
    compare("replace", "decoded", cols, &context.download(&out, rows * cols)?, &expected, Near::Exact)?;

    let x = context.upload(&[1.0; 8])?;
    let refused = context.submit(|pass| {
        let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
        let x = Rows::of(&x, cols as u32);
        kernels.activate(pass, &mut workspace, matrix.input(), x, 1, &mut activations)?;
        kernels.multiply(pass, &mut workspace, &matrix, &activations, Rows::of(&out, rows as u32))
    });
    assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Unsupported));
    Ok(())
}

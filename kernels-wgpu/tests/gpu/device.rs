//! What a device refuses, and what a caller gets wrong.

use crate::common::{Random, TestResult, context, dense_node};
use cmf_format::DType;
use cmf_kernels_wgpu::{Activations, Context, ErrorKind, GpuMatrix, Rows, Uploader, Workspace};

fn small(context: &Context) -> Result<GpuMatrix, Box<dyn std::error::Error>> {
    let kernels = context.kernels();
    let mut uploader = Uploader::new(context.device(), context.queue());
    let mut matrix = GpuMatrix::new(kernels, &mut uploader, 8, 32, &[], &[])?;
    let node = dense_node(DType::F16, 8, 32, &mut Random::new(1))?;
    let view = node.view()?;
    matrix.insert(kernels, &mut uploader, 0, std::iter::once((0, 0, &view)))?;
    uploader.finish()?;
    Ok(matrix)
}

fn multiply(context: &Context, matrix: &GpuMatrix, x: Rows<'_>, y: Rows<'_>) -> cmf_kernels_wgpu::Result<()> {
    context.submit(|pass| {
        let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
        context.kernels().activate(pass, &mut workspace, matrix.input(), x, 2, &mut activations)?;
        context.kernels().multiply(pass, &mut workspace, matrix, &activations, y)
    })
}

#[test]
fn rejects_rows_beyond_a_buffer() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let matrix = small(&context)?;
    let (x, y) = (context.buffer(64)?, context.buffer(16)?);
    let good = |buffer, stride| Rows { buffer, offset_bytes: 0, stride };
    multiply(&context, &matrix, good(&x, 32), good(&y, 8))?;
    let bad = [
        (Rows { offset_bytes: 4, ..good(&x, 32) }, good(&y, 8)),
        (good(&x, 32), Rows { offset_bytes: 4, ..good(&y, 8) }),
        (good(&x, 33), good(&y, 8)),
        (good(&x, 31), good(&y, 8)),
        (Rows { offset_bytes: 2, ..good(&x, 32) }, good(&y, 8)),
        (Rows { offset_bytes: u64::MAX - 3, ..good(&x, 32) }, good(&y, 8)),
    ];
    for (i, (x, y)) in bad.into_iter().enumerate() {
        let error = multiply(&context, &matrix, x, y).map_err(|e| e.kind());
        assert_eq!(error, Err(ErrorKind::Argument), "{i}");
    }
    Ok(())
}

#[test]
fn a_lost_device_is_an_error() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let matrix = small(&context)?;
    let (x, y) = (context.buffer(64)?, context.buffer(16)?);
    context.device().destroy();
    let _ = context.wait();
    let error = multiply(&context, &matrix, Rows::of(&x, 32), Rows::of(&y, 8)).map_err(|e| e.kind());
    assert_eq!(error, Err(ErrorKind::Device));
    assert_eq!(context.download(&y, 16).map_err(|e| e.kind()), Err(ErrorKind::Device));
    assert_eq!(context.buffer(16).map_err(|e| e.kind()).err(), Some(ErrorKind::Device));
    Ok(())
}

#[test]
fn memory_that_is_not_there_is_an_error() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let error = context.buffer(usize::MAX / 8).map_err(|e| e.kind());
    assert_eq!(error.err(), Some(ErrorKind::Limit));
    Ok(())
}

#[test]
fn pipelines_are_compiled_once() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let matrix = small(&context)?;
    let (x, y) = (context.buffer(64)?, context.buffer(16)?);
    multiply(&context, &matrix, Rows::of(&x, 32), Rows::of(&y, 8))?;
    let compiled = context.kernels().compiled();
    multiply(&context, &matrix, Rows::of(&x, 32), Rows::of(&y, 8))?;
    assert_eq!((compiled, context.kernels().compiled()), (2, 2));
    // Units that come when there have been products: alone and beside others.
    small(&context)?;
    let compiled = context.kernels().compiled();
    multiply(&context, &small(&context)?, Rows::of(&x, 32), Rows::of(&y, 8))?;
    assert_eq!(context.kernels().compiled(), compiled);
    Ok(())
}

//! What a device refuses, and what a caller gets wrong.

use crate::common::{Random, TestResult, context, dense_node};
#[cfg(target_os = "linux")]
use crate::layer::Layer;
use cmf_format::DType;
use cmf_kernels_wgpu::{
    Activations, Context, DeviceMemory, ErrorKind, GpuMatrix, Rows, Uploader, Workspace, wgpu,
};
#[cfg(target_os = "linux")]
use std::{path::Path, process::Command};

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
fn uploads_to_a_lost_device_are_errors() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    small(&context)?;
    context.device().destroy();
    let _ = context.wait();
    let error = small(&context).err().ok_or("it is there")?;
    let error = error.downcast::<cmf_kernels_wgpu::Error>()?;
    assert_eq!(error.kind(), ErrorKind::Device);
    Ok(())
}

#[test]
fn units_that_go_give_their_memory_back() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let taken = || context.device().generate_allocator_report().map(|report| report.total_allocated_bytes);
    let Some(before) = taken() else {
        eprintln!("SKIPPED: wgpu does not say");
        return Ok(());
    };
    let mut matrix = small(&context)?;
    let bytes = matrix.bytes();
    let with = taken().unwrap_or(0);
    assert!((bytes..bytes + 4096).contains(&(with - before)), "{before}, {with} with {bytes}");
    assert!(matrix.remove(0));
    context.wait()?;
    assert_eq!((matrix.bytes(), taken()), (0, Some(before)));
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
fn a_driver_that_says_what_memory_is_left_is_believed_within_its_heap() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let Some(memory) = context.memory() else {
        eprintln!("SKIPPED: the driver says nothing");
        return Ok(());
    };
    assert!(memory.heap_bytes > 1 << 26 && memory.budget_bytes <= memory.heap_bytes, "{memory:?}");
    assert!(memory.used_bytes <= memory.heap_bytes, "{memory:?}");
    assert_eq!(memory.is_main_memory, context.shares_memory());
    Ok(())
}

/// Figures that are made up come from below the loader: see `layer/mod.rs`.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_what_the_driver_says() -> TestResult {
    let Some(figures) = std::env::var_os("CMF_LAYER_MEMORY") else {
        if context()?.is_none() {
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let layer = Layer::new(Path::new("tests"), folder.path())?;
        let mut same = Command::new(std::env::current_exe()?);
        same.args(["--exact", "device::memory_is_what_the_driver_says"]);
        let output = layer.use_in(&mut same, true).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return Ok(());
    };
    let context = context()?.ok_or("no device")?;
    let figures = |text| std::fs::write(&figures, text);
    figures("5000 300")?;
    let memory = context.memory().ok_or("the driver says nothing")?;
    assert!(memory.heap_bytes > 1 << 28 && !memory.is_main_memory, "{memory:?}");
    assert_eq!((memory.budget_bytes, memory.used_bytes), (5000, 300));
    figures("4000 200")?;
    // Of a device that somebody else has opened too.
    let opened = Context::with_features(&Context::adapter()?, wgpu::Features::empty())?;
    let memory = DeviceMemory::of(opened.device()).ok_or("the driver says nothing")?;
    assert_eq!((memory.budget_bytes, memory.used_bytes), (4000, 200));
    // A hole that a buffer leaves in a block is what the next one takes.
    let buffers = [1 << 16, 1 << 18].map(|elements| context.buffer(elements));
    let [kept, gone] = buffers;
    let (kept, gone) = (kept?, gone?);
    let before = context.memory().ok_or("the driver says nothing")?;
    drop(gone);
    context.wait()?;
    let after = context.memory().ok_or("the driver says nothing")?;
    assert!(after.free_bytes >= before.free_bytes + (1 << 20), "{before:?}, then {after:?}");
    drop(kept);
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

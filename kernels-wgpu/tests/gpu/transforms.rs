//! Products of whole matrices: transforms on both sides of a sum.

use crate::common::{Near, Random, TestResult, compare, context, dense_node};
use cmf_format::DType;
use cmf_format::transform::{Side, Transform, apply_all, hadamard_block};
use cmf_kernels_wgpu::{Activations, Context, GpuMatrix, GpuTransforms, Rows, Uploader, Workspace};

fn permutation(n: usize, step: usize) -> Result<Transform, cmf_format::Error> {
    Transform::permute((0..n).map(|i| ((i * step + 3) % n) as u32).collect())
}

/// Transforms as the reference does, and as the device does when no product is between.
fn check(context: &Context, name: &str, size: usize, list: &[Transform]) -> TestResult {
    let batch = 3;
    let x = Random::new(size as u64).values(batch * size);
    for side in [Side::Input, Side::Output] {
        let mut expected = x.clone();
        for row in expected.chunks_mut(size) {
            apply_all(list, side, row)?;
        }
        let mut uploader = Uploader::new(context.device(), context.queue());
        let kernels = context.kernels();
        let transforms = GpuTransforms::new(kernels, &mut uploader, size, list, side)?;
        uploader.finish()?;
        let x_buffer = context.upload(&x)?;
        let mut activations = Activations::default();
        let rows = Rows::of(&x_buffer, size as u32);
        context.submit(|pass| {
            kernels.activate(
                pass,
                &mut Workspace::default(),
                &transforms,
                rows,
                batch as u32,
                &mut activations,
            )
        })?;
        // Tiles of four activations, each element's next to each other.
        let padded = size.next_multiple_of(32);
        let tiles = context.download(activations.buffer().ok_or("no buffer")?, padded * 4)?;
        for (b, expected) in expected.chunks(size).enumerate() {
            let found: Vec<f32> = tiles.iter().skip(b).step_by(4).copied().collect();
            let (found, padding) = found.split_at(size);
            compare(name, &format!("{side:?} {b}"), size, found, expected, Near::Exact)?;
            assert!(padding.iter().all(|v| *v == 0.0), "{name}: padding");
        }
        assert!(tiles.iter().skip(3).step_by(4).all(|v| *v == 0.0), "{name}: activations that fill up");
    }
    Ok(())
}

#[test]
fn lists_act_as_the_reference_does() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    for size in [1usize, 5, 64, 96, 576, 1536, 2048, 8192, 24576] {
        let mut random = Random::new(size as u64);
        let block = hadamard_block(size as u64);
        let scale = Transform::scale(random.values(size));
        let rotation = Transform::sign_hadamard(size, block, 7)?;
        let plain = Transform::sign_hadamard(size, block, 0)?;
        let turn = permutation(size, if size % 5 == 0 { 7 } else { 5 })?;
        check(&context, &format!("nothing, {size}"), size, &[])?;
        check(&context, &format!("rotation, {size}"), size, std::slice::from_ref(&rotation))?;
        let all =
            [turn.clone(), scale.clone(), rotation.clone(), scale.clone(), scale, turn, plain, rotation];
        check(&context, &format!("all, {size}"), size, &all)?;
    }
    Ok(())
}

#[test]
fn products_are_those_of_the_matrix() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    [1, 5, 12].into_iter().try_for_each(|batch| products(&context, batch))
}

fn products(context: &Context, batch: usize) -> TestResult {
    let (rows, cols) = (48, 96);
    let mut random = Random::new(3);
    let node = dense_node(DType::F16, rows, cols, &mut random)?;
    let input = [Transform::scale(random.values(cols)), Transform::sign_hadamard(cols, 32, 5)?];
    let output = [Transform::sign_hadamard(rows, 16, 9)?, permutation(rows, 5)?];
    let kernels = context.kernels();
    let mut uploader = Uploader::new(context.device(), context.queue());
    let mut matrix = GpuMatrix::new(kernels, &mut uploader, rows, cols, &input, &output)?;
    let view = node.view()?;
    matrix.insert(kernels, &mut uploader, 0, std::iter::once((0, 0, &view)))?;
    uploader.finish()?;
    let x = random.values(batch * cols);
    let (x_buffer, y) = (context.upload(&x)?, context.buffer(batch * rows)?);
    context.submit(|pass| {
        let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
        let from = Rows::of(&x_buffer, cols as u32);
        kernels.activate(pass, &mut workspace, matrix.input(), from, batch as u32, &mut activations)?;
        kernels.multiply(pass, &mut workspace, &matrix, &activations, Rows::of(&y, rows as u32))
    })?;
    let mut values = vec![0.0; rows * cols];
    view.decode_rows(0..rows, &mut values)?;
    let mut expected = Vec::new();
    for x in x.chunks(cols) {
        let mut x = x.to_vec();
        apply_all(&input, Side::Input, &mut x)?;
        let dot =
            |w: &[f32]| w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32;
        let mut y: Vec<f32> = values.chunks(cols).map(dot).collect();
        apply_all(&output, Side::Output, &mut y)?;
        expected.extend(y);
    }
    compare("W", "product", rows, &context.download(&y, batch * rows)?, &expected, Near::Within(2e-6))
}

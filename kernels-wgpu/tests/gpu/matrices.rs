//! Units that come and go, terms that cover part of a matrix, files.

use crate::common::{Near, Random, TestResult, compare, context, dense_node};
use cmf_format::DType;
use cmf_kernels_wgpu::{Activations, Context, GpuMatrix, Rows, Uploader, Workspace};

fn product(context: &Context, matrix: &GpuMatrix, x: &[f32]) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let kernels = context.kernels();
    let rows = matrix.rows();
    let (x_buffer, y) = (context.upload(x)?, context.upload(&vec![f32::NAN; rows as usize])?);
    context.submit(|pass| {
        let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
        let from = Rows::of(&x_buffer, matrix.cols());
        kernels.activate(pass, &mut workspace, matrix.input(), from, 1, &mut activations)?;
        kernels.multiply(pass, &mut workspace, matrix, &activations, Rows::of(&y, rows))
    })?;
    Ok(context.download(&y, rows as usize)?)
}

#[test]
fn terms_of_some_rows_and_columns_add_up_as_units_come_and_go() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let (rows, cols) = (40, 64);
    let mut random = Random::new(10);
    // Row, column and extents of the one term of each unit.
    let regions = [(0, 0, 16, 64), (16, 0, 24, 64), (0, 0, 16, 64), (8, 4, 11, 37), (39, 60, 1, 4)];
    let nodes =
        regions.iter().map(|(_, _, height, width)| dense_node(DType::F32, *height, *width, &mut random));
    let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    let x = random.values(cols);
    let kernels = context.kernels();
    let mut uploader = Uploader::new(context.device(), context.queue());
    let mut matrix = GpuMatrix::new(kernels, &mut uploader, rows, cols, &[], &[])?;
    for held in [vec![], vec![0], vec![0, 1], vec![0, 1, 2], vec![0, 1, 2, 3, 4], vec![1, 3], vec![4], vec![]]
    {
        let before: Vec<u32> = matrix.units().collect();
        for unit in before {
            if !held.contains(&unit) {
                assert!(matrix.remove(unit));
            }
        }
        let mut expected = vec![0.0f64; rows];
        for unit in &held {
            let (row, col, height, width) = regions[*unit as usize];
            let view = nodes[*unit as usize].view()?;
            if matrix.unit_bytes(*unit).is_none() {
                matrix.insert(kernels, &mut uploader, *unit, std::iter::once((row, col, &view)))?;
            }
            let mut values = vec![0.0; height * width];
            view.decode_rows(0..height, &mut values)?;
            for (i, w) in values.chunks(width).enumerate() {
                let terms = w.iter().zip(&x[col..]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                expected[row + i] += terms.sum::<f64>();
            }
        }
        uploader.finish()?;
        let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
        let found = product(&context, &matrix, &x)?;
        compare(&format!("units {held:?}"), "product", rows, &found, &expected, Near::Within(2e-6))?;
    }
    assert_eq!(matrix.bytes(), 0);
    Ok(())
}

#[test]
fn units_are_accounted_to_the_byte() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let kernels = context.kernels();
    let mut uploader = Uploader::new(context.device(), context.queue());
    let mut matrix = GpuMatrix::new(kernels, &mut uploader, 10, 10, &[], &[])?;
    let node = dense_node(DType::F16, 10, 10, &mut Random::new(1))?;
    let view = node.view()?;
    matrix.insert(kernels, &mut uploader, 3, std::iter::once((0, 0, &view)))?;
    // 200 bytes of elements, up to the next multiple of 256, and an empty place for numbers.
    assert_eq!((matrix.unit_bytes(3), matrix.bytes()), (Some(260), 260));
    Ok(())
}

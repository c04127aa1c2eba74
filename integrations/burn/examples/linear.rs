//! A compressed linear between two of burn's own layers, on burn's device, against the same model on
//! the CPU. `cargo run --example linear`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig, Relu};
use burn::tensor::{Device, Tensor};
use cmf_burn::{PackedLinear, Shared};
use cmf_format::archive::MatrixView;
use cmf_format::encoding::{dense, grouped};
use cmf_format::write::{ArchiveBuilder, Content, MatrixEntry, TensorEntry};
use cmf_format::{Archive, DType, Limits, WriteOptions};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const WIDTH: usize = 256;
const HIDDEN: usize = 512;
const BATCH: usize = 5;

/// A burn model: burn's linear, ReLU, a compressed linear, burn's linear.
#[derive(Module, Debug)]
struct Model {
    first: Linear,
    relu: Relu,
    packed: PackedLinear,
    last: Linear,
}

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// A [HIDDEN, HIDDEN] matrix of 4 bits with a scale for each 32, as a file.
fn packed() -> Outcome<Vec<u8>> {
    let descriptor = grouped::Descriptor {
        bits: 4,
        code_map: grouped::CodeMap::Integer { offset: -8 },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: 32,
    };
    let (rows, across) = (HIDDEN as u64, HIDDEN as u64 / 32);
    let scales: Vec<f32> =
        numbers((rows * across) as usize, 3).into_iter().map(|v| (v + 2.0) * 0.01).collect();
    let scale = dense::pack_values(DType::F16, rows, across, &scales)?;
    let children = grouped::Children { scale: Some(scale), ..Default::default() };
    let codes: Vec<u8> = (0..HIDDEN * HIDDEN).map(|i| (i * 2_654_435_761 >> 13) as u8 & 15).collect();
    let node = grouped::pack(&descriptor, rows, rows, &codes, children)?;
    let mut builder = ArchiveBuilder::new(WriteOptions::default());
    builder.tensor(TensorEntry {
        name: "w".into(),
        dtype: DType::F16,
        shape: vec![rows, rows],
        content: Content::Matrices(vec![MatrixEntry::from_node(node)]),
    });
    Ok(builder.to_vec()?)
}

/// y = x W + b with a burn linear's weights, which are [inputs, outputs], in f64.
fn dense(linear: &Linear, x: &[f64]) -> Outcome<Vec<f64>> {
    let weight = linear.weight.val();
    let [inputs, outputs] = weight.dims();
    let w = weight.into_data().try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?;
    let bias = linear.bias.as_ref().ok_or("no bias")?.val().into_data();
    let bias = bias.try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?;
    let mut y = Vec::new();
    for x in x.chunks(inputs) {
        for (o, bias) in bias.iter().enumerate().take(outputs) {
            let products = x.iter().enumerate().map(|(i, x)| x * f64::from(w[i * outputs + o]));
            y.push(f64::from(*bias) + products.sum::<f64>());
        }
    }
    Ok(y)
}

fn main() -> Outcome<()> {
    // Burn makes the device; the kernels work on it.
    let (device, setup) = Device::wgpu_options().init_with_setup()?;
    println!("burn's device: {}", setup.adapter.get_info().name);
    let shared = Shared::new(&setup)?;

    let bytes = packed()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    let tensor = archive.tensor("w").ok_or("no such tensor")?;
    let matrix = tensor.matrices().next().ok_or("no matrix")?;
    let view = MatrixView::open(&matrix, u16::MAX)?;

    let model = Model {
        first: LinearConfig::new(WIDTH, HIDDEN).init(&device),
        relu: Relu::new(),
        packed: PackedLinear::new(&shared, &view)?,
        last: LinearConfig::new(HIDDEN, WIDTH).init(&device),
    };
    println!("compressed matrix: {} bytes of {} in f32", model.packed.bytes(), HIDDEN * HIDDEN * 4);

    let x = numbers(BATCH * WIDTH, 1);
    let input = Tensor::<1>::from_floats(x.as_slice(), &device).reshape([BATCH, WIDTH]);
    let mut y = Vec::new();
    // Also when burn's memory is used again.
    for _ in 0..20 {
        let hidden = model.relu.forward(model.first.forward(input.clone()));
        let hidden = model.packed.forward(hidden)?;
        let data = model.last.forward(hidden).into_data();
        let again = data.try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?;
        assert!(y.is_empty() || y == again, "another answer");
        y = again;
    }

    // The same on the CPU, in f64.
    let mut w = vec![0.0f32; HIDDEN * HIDDEN];
    view.decode_rows(0..HIDDEN, &mut w)?;
    let x: Vec<f64> = x.into_iter().map(f64::from).collect();
    let hidden: Vec<f64> = dense(&model.first, &x)?.into_iter().map(|v| v.max(0.0)).collect();
    let product = |x: &[f64], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum::<f64>();
    let hidden: Vec<f64> = hidden
        .chunks(HIDDEN)
        .flat_map(|x| w.chunks(HIDDEN).map(|row| product(x, row)).collect::<Vec<_>>())
        .collect();
    let expected = dense(&model.last, &hidden)?;
    let largest = expected.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    let error = expected.iter().zip(&y).fold(0.0f64, |max, (a, b)| max.max((a - f64::from(*b)).abs()));
    println!("{} outputs of at most {largest:.3}, largest error {error:.2e}", y.len());
    assert!(y.len() == expected.len() && error <= 1e-5 * largest, "not what the CPU gives");
    Ok(())
}

//! A device for a test, and the comparison of a term with its reference.

use cmf_format::encoding::sparse::Op;
use cmf_format::encoding::{View, dense};
use cmf_format::{DType, NodeData};
use cmf_kernels_wgpu::{
    Activations, Context, GpuMatrix, Kernels, Picked, Rows, Tuning, Uploader, Workspace, wgpu,
};
use std::sync::Arc;

pub(crate) type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Products differ from those in f64 by at most this share of the sum of their terms' magnitudes.
const PRODUCT_BOUND: f64 = 2e-6;

/// A device with both ways in which threads share rows.
pub(crate) struct Bed {
    pub(crate) context: Context,
    kernels: [Kernels; 2],
}

/// The device, or `None` where the test is to be skipped.
pub(crate) fn bed() -> Result<Option<Bed>, Box<dyn std::error::Error>> {
    let Some(context) = context()? else { return Ok(None) };
    bed_on(context).map(Some)
}

/// As [`bed`], on a device with none of its adapter's features.
pub(crate) fn bare_bed() -> Result<Option<Bed>, Box<dyn std::error::Error>> {
    if context()?.is_none() {
        return Ok(None);
    }
    let context = Context::with_features(&Context::adapter()?, wgpu::Features::empty())?;
    bed_on(context).map(Some)
}

/// As [`bare_bed`], with subgroups if the adapter has them.
pub(crate) fn subgroup_bed() -> Result<Option<Bed>, Box<dyn std::error::Error>> {
    if context()?.is_none() {
        return Ok(None);
    }
    let adapter = Context::adapter()?;
    let features = wgpu::Features::SUBGROUP & adapter.features();
    bed_on(Context::with_features(&adapter, features)?).map(Some)
}

/// As [`bare_bed`], with bindings of storage buffers of so many bytes at most.
pub(crate) fn narrow_bed(bytes: u64) -> Result<Option<Bed>, Box<dyn std::error::Error>> {
    if context()?.is_none() {
        return Ok(None);
    }
    let limits = wgpu::Limits { max_storage_buffer_binding_size: bytes, ..Default::default() };
    bed_on(Context::with_limits(&Context::adapter()?, wgpu::Features::empty(), limits)?).map(Some)
}

fn bed_on(context: Context) -> Result<Bed, Box<dyn std::error::Error>> {
    let [one, many] = [Tuning { lanes: 1, width: 16 }, Tuning { lanes: 32, width: 64 }];
    let kernels = |tuning| Kernels::with_tuning(context.device(), tuning);
    Ok(Bed { kernels: [kernels(one)?, kernels(many)?], context })
}

/// As [`bed`], with the tuning of the adapter alone.
pub(crate) fn context() -> Result<Option<Context>, Box<dyn std::error::Error>> {
    match Context::new() {
        Ok(context) => Ok(Some(context)),
        Err(error) if std::env::var_os("CMF_REQUIRE_GPU").is_some_and(|v| v == "1") => Err(error.into()),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            Ok(None)
        }
    }
}

/// Numbers without a pattern, the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    /// -1 to 1.
    pub(crate) fn value(&mut self) -> f32 {
        self.below(20_001) as f32 / 10_000.0 - 1.0
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

pub(crate) fn dense_node(
    dtype: DType,
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> Result<NodeData, cmf_format::Error> {
    dense::pack_values(dtype, rows as u64, cols as u64, &random.values(rows * cols))
}

/// Positive values of about 0.5 to 1, as scales are.
pub(crate) fn scales(
    dtype: DType,
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> Result<NodeData, cmf_format::Error> {
    let values: Vec<f32> = random.values(rows * cols).into_iter().map(|v| v * 0.25 + 0.75).collect();
    dense::pack_values(dtype, rows as u64, cols as u64, &values)
}

/// How near decoded values are to the reference.
#[derive(Clone, Copy)]
pub(crate) enum Near {
    /// The same numbers.
    Exact,
    /// Within this share of the largest of the row.
    Within(f32),
}

/// Compares a sum of nodes, one unit each, with the reference: decoded, gathered and multiplied.
pub(crate) fn check(bed: &Bed, name: &str, nodes: &[Arc<NodeData>], near: Near) -> TestResult {
    compare_with_reference(bed, name, nodes, near, [&[1], &[]])
}

/// [`check`], in tiles of 1, 4 and 16 activations, by one thread a row and by several.
pub(crate) fn check_tiles(bed: &Bed, name: &str, nodes: &[Arc<NodeData>], near: Near) -> TestResult {
    compare_with_reference(bed, name, nodes, near, [&[1, 9], &[3]])
}

/// [`check`], in tiles of 8 activations, by one thread a row and by several.
pub(crate) fn check_eights(bed: &Bed, name: &str, nodes: &[Arc<NodeData>], near: Near) -> TestResult {
    compare_with_reference(bed, name, nodes, near, [&[5], &[5]])
}

/// [`check`], in several tiles of 8 and of 16 activations, by one thread a row and by several.
pub(crate) fn check_many(bed: &Bed, name: &str, nodes: &[Arc<NodeData>], near: Near) -> TestResult {
    compare_with_reference(bed, name, nodes, near, [&[3, 40, 47], &[21]])
}

/// Batches are those of each kernels of the bed.
fn compare_with_reference(
    bed: &Bed,
    name: &str,
    nodes: &[Arc<NodeData>],
    near: Near,
    batches: [&[usize]; 2],
) -> TestResult {
    let first = nodes.first().ok_or("no node")?;
    let (rows, cols) = (first.rows as usize, first.cols as usize);
    let expected = reference(nodes, rows, cols)?;
    compare_with(bed, name, nodes, &expected, Some(near), batches)
}

/// [`check`] of products alone, whose results are smaller than the matrix.
pub(crate) fn check_products(bed: &Bed, name: &str, node: &Arc<NodeData>) -> TestResult {
    let nodes = std::slice::from_ref(node);
    let expected = reference(nodes, node.rows as usize, node.cols as usize)?;
    compare_with(bed, name, nodes, &expected, None, [&[1, 3], &[1]])
}

/// The sum of nodes, one unit each.
fn reference(
    nodes: &[Arc<NodeData>],
    rows: usize,
    cols: usize,
) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let mut expected = vec![0.0f32; rows * cols];
    for (i, node) in nodes.iter().enumerate() {
        let mut values = vec![0.0; rows * cols];
        let view = node.view()?;
        view.decode_rows(0..rows, &mut values)?;
        if let View::Sparse(view) = &view
            && view.descriptor().op == Op::Replace
        {
            // Of values that are not 0.
            let listed = expected.iter_mut().zip(values).filter(|(_, value)| *value != 0.0);
            listed.for_each(|(sum, value)| *sum = value);
            continue;
        }
        for (sum, value) in expected.iter_mut().zip(values) {
            *sum = if i == 0 { value } else { *sum + value };
        }
    }
    Ok(expected)
}

/// Compares a sum of nodes, one unit each, with stated values: decoded and gathered, if it is said how near
/// these are to be, and multiplied with batches of each kernels of the bed.
pub(crate) fn compare_with(
    bed: &Bed,
    name: &str,
    nodes: &[Arc<NodeData>],
    expected: &[f32],
    near: Option<Near>,
    batches: [&[usize]; 2],
) -> TestResult {
    let first = nodes.first().ok_or("no node")?;
    let (rows, cols) = (first.rows as usize, first.cols as usize);
    let context = &bed.context;
    for (kernels, batches) in bed.kernels.iter().zip(batches) {
        let mut uploader = Uploader::new(context.device(), context.queue());
        let mut matrix = GpuMatrix::new(kernels, &mut uploader, rows, cols, &[], &[])?;
        for (unit, node) in nodes.iter().enumerate() {
            let view = node.view()?;
            matrix.insert(kernels, &mut uploader, unit as u32, std::iter::once((0, 0, &view)))?;
        }
        uploader.finish()?;
        let case = Case { context, kernels, matrix: &matrix, name, expected };
        if let (1, Some(near)) = (kernels.tuning().lanes, near) {
            case.decode(near)?;
            case.gather(near)?;
        }
        for batch in batches {
            case.multiply(*batch)?;
        }
    }
    Ok(())
}

struct Case<'c> {
    context: &'c Context,
    kernels: &'c Kernels,
    matrix: &'c GpuMatrix,
    name: &'c str,
    expected: &'c [f32],
}

impl Case<'_> {
    fn decode(&self, near: Near) -> TestResult {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let first = rows / 3;
        let count = rows - first;
        let out = self.context.buffer((count * cols) as usize)?;
        self.context.submit(|pass| {
            let picked = Picked::Range { first, count };
            self.kernels.decode_sum(
                pass,
                &mut Workspace::default(),
                self.matrix,
                picked,
                Rows::of(&out, cols),
            )
        })?;
        let found = self.context.download(&out, (count * cols) as usize)?;
        let expected = self.expected.get((first * cols) as usize..).ok_or("rows")?;
        compare(self.name, "decoded", cols as usize, &found, expected, near)
    }

    fn gather(&self, near: Near) -> TestResult {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols() as usize);
        let ids = [rows - 1, 0, rows, u32::MAX, rows / 2];
        // Rows start in the middle of a buffer and have a gap between them.
        let (offset, stride) = (3, cols + 5);
        let as_floats: Vec<f32> = ids.iter().map(|id| f32::from_bits(*id)).collect();
        let ids_buffer = self.context.upload(&as_floats)?;
        let out = self.context.upload(&vec![7.0; offset + ids.len() * stride])?;
        self.context.submit(|pass| {
            let picked = Picked::Ids { buffer: &ids_buffer, offset_bytes: 0, count: ids.len() as u32 };
            let to = Rows { buffer: &out, offset_bytes: offset as u64 * 4, stride: stride as u32 };
            self.kernels.decode_sum(pass, &mut Workspace::default(), self.matrix, picked, to)
        })?;
        let found = self.context.download(&out, offset + ids.len() * stride)?;
        for (i, id) in ids.iter().enumerate() {
            let start = offset + i * stride;
            let found = found.get(start..start + cols).ok_or("row")?;
            let at = *id as usize * cols;
            let zeros = vec![0.0; cols];
            let expected = self.expected.get(at..at + cols).unwrap_or(&zeros);
            compare(self.name, "gathered", cols, found, expected, near)?;
        }
        Ok(())
    }

    fn multiply(&self, batch: usize) -> TestResult {
        let (rows, cols) = (self.matrix.rows() as usize, self.matrix.cols() as usize);
        let x = Random::new(batch as u64).values(batch * cols);
        // Rows start in the middle of a buffer.
        // Activations are read four by four where they begin at a multiple of four elements.
        let offset = if batch.is_multiple_of(2) { 8 } else { 5 };
        let x_buffer = self.context.upload(&[vec![f32::NAN; offset], x.clone()].concat())?;
        let y_buffer = self.context.upload(&vec![f32::NAN; offset + batch * rows])?;
        let from = Rows { buffer: &x_buffer, offset_bytes: offset as u64 * 4, stride: cols as u32 };
        let to = Rows { buffer: &y_buffer, offset_bytes: offset as u64 * 4, stride: rows as u32 };
        self.context.submit(|pass| {
            let mut workspace = Workspace::default();
            let mut activations = Activations::default();
            let input = self.matrix.input();
            self.kernels.activate(pass, &mut workspace, input, from, batch as u32, &mut activations)?;
            self.kernels.multiply(pass, &mut workspace, self.matrix, &activations, to)
        })?;
        let found = self.context.download(&y_buffer, offset + batch * rows)?;
        for (b, x) in x.chunks(cols).enumerate() {
            for (r, w) in self.expected.chunks(cols).enumerate() {
                let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (sum, size) = terms.fold((0.0, 1e-30), |(s, m): (f64, f64), t| (s + t, m + t.abs()));
                let found = found.get(offset + b * rows + r).copied().ok_or("product")?;
                let error = (f64::from(found) - sum).abs();
                let tuning = self.kernels.tuning();
                assert!(
                    error <= PRODUCT_BOUND * size,
                    "{}: {tuning:?}, product {b} of {batch}, row {r}: expected {sum}, found {found}",
                    self.name
                );
            }
        }
        Ok(())
    }
}

pub(crate) fn compare(
    name: &str,
    what: &str,
    cols: usize,
    found: &[f32],
    expected: &[f32],
    near: Near,
) -> TestResult {
    assert_eq!(found.len(), expected.len(), "{name}: {what}");
    for (r, (found, expected)) in found.chunks(cols).zip(expected.chunks(cols)).enumerate() {
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (j, (f, e)) in found.iter().zip(expected).enumerate() {
            let same = match near {
                Near::Exact => f == e || (f.is_nan() && e.is_nan()),
                Near::Within(share) => (f - e).abs() <= share * largest,
            };
            assert!(same, "{name}: {what} row {r}, column {j}: expected {e}, found {f}");
        }
    }
    Ok(())
}

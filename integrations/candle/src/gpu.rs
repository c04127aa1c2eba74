//! Packed weights on a GPU: units are uploaded as a plan holds them, and products are taken there by
//! `cmf-kernels-wgpu`. What is between the products stays on candle's CPU tensors.

use crate::cut::check_expansion;
use crate::error::{Error, ErrorKind, Result};
use crate::packed::vector;
use crate::weights::{Linear, MatrixName, Rows, Weights, check_shape, missing};
use candle_core::{Device, Tensor};
use cmf_format::archive::{Cut, Matrix, MatrixView};
use cmf_kernels_wgpu::{Activations, GpuMatrix, Uploader, Workspace, wgpu};
use cmf_loader::{FileSource, Levels, Model, Plan};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use cmf_kernels_wgpu::Context;

/// A `.cmf` whose matrices are on a GPU.
///
/// The embedding's rows are read from the file, a few for each token.
pub struct GpuModel<'m> {
    model: &'m Model,
    context: Arc<Context>,
    state: Mutex<State<'m>>,
}

struct State<'m> {
    plan: Plan,
    slots: Vec<Slot<'m>>,
    uploader: Uploader,
    workspace: Workspace,
    /// For each place in a group of matrices, activations behind its transforms.
    activations: Vec<Activations>,
    /// Inputs and outputs of a group.
    buffers: [Option<wgpu::Buffer>; 2],
}

/// A matrix that is in use.
struct Slot<'m> {
    matrix: Matrix<'m, FileSource>,
    gpu: GpuMatrix,
}

impl From<cmf_kernels_wgpu::Error> for Error {
    fn from(error: cmf_kernels_wgpu::Error) -> Self {
        use cmf_kernels_wgpu::ErrorKind as Kind;
        let kind = match error.kind() {
            Kind::Unsupported => ErrorKind::Unsupported,
            Kind::Limit => ErrorKind::Limit,
            Kind::Argument => ErrorKind::BadArgument,
            Kind::Format => ErrorKind::BadModel,
            _ => ErrorKind::Compute,
        };
        Self::new(kind, format!("gpu: {error}"))
    }
}

impl<'m> GpuModel<'m> {
    /// The matrices of `model` under `plan`, on the device of `context`.
    pub fn new(model: &'m Model, plan: Plan, context: Arc<Context>) -> Self {
        let state = State {
            plan,
            slots: Vec::new(),
            uploader: Uploader::new(context.device(), context.queue()),
            workspace: Workspace::default(),
            activations: Vec::new(),
            buffers: [None, None],
        };
        Self { model, context, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<'m>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan that is in force.
    pub fn plan(&self) -> Plan {
        self.state().plan.clone()
    }

    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.state().slots.iter().map(|slot| slot.gpu.bytes()).sum()
    }

    /// Bytes beside weights that products take on the device.
    pub fn scratch_bytes(&self) -> u64 {
        let state = self.state();
        let activations: u64 = state.activations.iter().map(Activations::bytes).sum();
        let buffers: u64 = state.buffers.iter().flatten().map(wgpu::Buffer::size).sum();
        state.workspace.bytes() + activations + buffers
    }

    /// Changes what is resident: first gives back units that the plan does not hold, then uploads
    /// those that are missing. No pipeline is compiled for it.
    ///
    /// # Errors
    /// `BadArgument` for the plan of another model, `BadModel` for units that cannot be opened,
    /// `Compute` when the device refuses. The plan before stays in force then, with the units that
    /// were still there; a plan that can be held repairs it.
    pub fn set_plan(&self, plan: Plan) -> Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        for slot in &mut state.slots {
            let held = units(&slot.matrix, &plan)?;
            let gone: Vec<u32> = slot.gpu.units().filter(|unit| !held.contains(unit)).collect();
            gone.into_iter().for_each(|unit| {
                slot.gpu.remove(unit);
            });
        }
        for slot in &mut state.slots {
            upload(&self.context, &mut state.uploader, slot, &units(&slot.matrix, &plan)?)?;
        }
        state.uploader.finish()?;
        state.plan = plan;
        Ok(())
    }

    /// A slot for the matrix called `name`, which is tied to one that is in use or a new one.
    fn slot(&self, name: &str, rows: usize, cols: usize) -> Result<usize> {
        let tensor = self.model.tensor(name).ok_or_else(|| missing(name))?;
        check_shape(name, &tensor.shape(), &[rows, cols])?;
        check_expansion(self.model)?;
        let refuse = |what: &str| Error::unsupported(format!("tensor `{}` is {what}", name.escape_debug()));
        if tensor.is_delta() {
            return Err(refuse("a delta, which cannot stay packed"));
        }
        let mut matrices = tensor.stored()?.matrices();
        let (Some(matrix), 0) = (matrices.next(), matrices.len()) else {
            return Err(refuse("no single matrix"));
        };
        check_shape(name, &[matrix.rows(), matrix.cols()], &[rows, cols])?;
        let mut state = self.state();
        let state = &mut *state;
        let same = |slot: &Slot<'_>| {
            slot.matrix.index() == matrix.index()
                && std::ptr::eq(slot.matrix.archive().source(), matrix.archive().source())
        };
        if let Some(found) = state.slots.iter().position(same) {
            return Ok(found);
        }
        let held = units(&matrix, &state.plan)?;
        let bare = MatrixView::open(&matrix, Cut::Units(&|_| false))?;
        let (input, output) = (bare.input_transforms(), bare.output_transforms());
        let kernels = self.context.kernels();
        let gpu = GpuMatrix::new(kernels, &mut state.uploader, rows, cols, input, output)?;
        let mut slot = Slot { matrix, gpu };
        upload(&self.context, &mut state.uploader, &mut slot, &held)?;
        state.uploader.finish()?;
        state.slots.push(slot);
        Ok(state.slots.len() - 1)
    }
}

/// Units of a matrix that a plan holds.
fn units(matrix: &Matrix<'_, FileSource>, plan: &Plan) -> Result<Vec<u32>> {
    let planned = plan.of(matrix.archive()).ok_or_else(|| Error::argument("plan of another model"))?;
    let held = matrix.units().map(|unit| unit.index()).filter(|unit| planned.includes(*unit));
    Ok(held.collect())
}

fn upload(context: &Context, uploader: &mut Uploader, slot: &mut Slot<'_>, held: &[u32]) -> Result<()> {
    for unit in held {
        if slot.gpu.unit_bytes(*unit).is_none() {
            let view = MatrixView::open(&slot.matrix, Cut::Units(&|other| other == *unit))?;
            slot.gpu.insert(context.kernels(), uploader, *unit, view.terms())?;
        }
    }
    Ok(())
}

impl<'m> Weights for GpuModel<'m> {
    /// A vector is read once, under the plan that is in force when the model is loaded.
    fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
        vector(self.model, &self.plan(), name, elements)
    }

    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
        let slots = matrices.iter().map(|m| self.slot(&m.name, m.outputs, inputs));
        let slots = slots.collect::<Result<Vec<_>>>()?;
        let state = self.state();
        let records = slots.iter().map(|slot| {
            let slot = state.slots.get(*slot).ok_or_else(|| Error::argument("no such matrix"))?;
            let view = MatrixView::open(&slot.matrix, Cut::Units(&|_| false))?;
            Ok(view.input_transforms().to_vec())
        });
        let transforms = records.collect::<Result<Vec<_>>>()?;
        let first = |own| transforms.iter().position(|other| other == own).unwrap_or(0);
        let inputs = transforms.iter().map(first).collect();
        Ok(Box::new(GpuLinear { model: self, slots, inputs }))
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        let tensor = self.model.tensor(name).ok_or_else(|| missing(name))?;
        check_shape(name, &tensor.shape(), &[rows, cols])?;
        Ok(Box::new(FileRows { model: self, name: name.to_owned(), rows, cols }))
    }
}

/// Matrices on the device that read the same input.
struct GpuLinear<'w, 'm> {
    model: &'w GpuModel<'m>,
    slots: Vec<usize>,
    /// For each, the first whose input-side transforms are the same.
    inputs: Vec<usize>,
}

impl Linear for GpuLinear<'_, '_> {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let (tokens, cols) = x.dims2()?;
        let batch = u32::try_from(tokens).map_err(|_| Error::argument("too many tokens"))?;
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let context = &self.model.context;
        let mut state = self.model.state();
        let State { slots, workspace, activations, buffers: [input, output], .. } = &mut *state;
        let slots =
            self.slots.iter().map(|slot| slots.get(*slot).map(|s| &s.gpu)).collect::<Option<Vec<_>>>();
        let matrices = slots.ok_or_else(|| Error::argument("no such matrix"))?;
        if matrices.iter().any(|m| m.cols() as usize != cols) {
            return Err(Error::argument(format!("{cols} inputs of other matrices")));
        }
        activations.resize_with(activations.len().max(matrices.len()), Activations::default);
        let products = matrices.iter().map(|m| m.rows() as usize * tokens).collect::<Vec<_>>();
        let all: usize = products.iter().sum();
        let x = room(context, input, values.len())?;
        let y = room(context, output, all)?;
        context.write(&x, &values)?;
        context.submit(|pass| {
            let kernels = context.kernels();
            for (place, matrix) in matrices.iter().enumerate() {
                if self.inputs.get(place) == Some(&place)
                    && let Some(activations) = activations.get_mut(place)
                {
                    let rows = cmf_kernels_wgpu::Rows::of(&x, matrix.cols());
                    kernels.activate(pass, workspace, matrix.input(), rows, batch, activations)?;
                }
            }
            let mut offset = 0;
            for (matrix, (place, products)) in matrices.iter().zip(self.inputs.iter().zip(&products)) {
                let Some(activations) = activations.get(*place) else { continue };
                let rows = cmf_kernels_wgpu::Rows { buffer: &y, offset_bytes: offset, stride: matrix.rows() };
                kernels.multiply(pass, workspace, matrix, activations, rows)?;
                offset += *products as u64 * 4;
            }
            Ok(())
        })?;
        let values = context.download(&y, all)?;
        let mut rest = values.as_slice();
        let mut tensors = Vec::new();
        for (matrix, products) in matrices.iter().zip(products) {
            let (own, after) = rest.split_at_checked(products).ok_or_else(|| Error::argument("products"))?;
            tensors.push(Tensor::from_slice(own, (tokens, matrix.rows() as usize), &Device::Cpu)?);
            rest = after;
        }
        Ok(tensors)
    }
}

/// The buffer in `place`, of at least `elements` f32.
fn room(context: &Context, place: &mut Option<wgpu::Buffer>, elements: usize) -> Result<wgpu::Buffer> {
    if let Some(buffer) = place.as_ref().filter(|b| b.size() >= elements as u64 * 4) {
        return Ok(buffer.clone());
    }
    let buffer = context.buffer(elements)?;
    *place = Some(buffer.clone());
    Ok(buffer)
}

/// Rows of a tensor, decoded from the file.
struct FileRows<'w, 'm> {
    model: &'w GpuModel<'m>,
    name: String,
    rows: usize,
    cols: usize,
}

impl Rows for FileRows<'_, '_> {
    fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.rows) {
            return Err(Error::argument(format!("token {id} of an embedding of {}", self.rows)));
        }
        let tensor = self.model.model.tensor(&self.name).ok_or_else(|| missing(&self.name))?;
        let plan = self.model.plan();
        let opened = tensor.open(Levels::Plan(&plan))?;
        let mut values = vec![0.0; ids.len().saturating_mul(self.cols)];
        for (out, id) in values.chunks_exact_mut(self.cols.max(1)).zip(ids) {
            opened.decode_rows(*id as usize..*id as usize + 1, out)?;
        }
        Ok(Tensor::from_vec(values, (ids.len(), self.cols), &Device::Cpu)?)
    }
}

//! Packed weights on a GPU: units are uploaded as a plan holds them, and products are taken there by
//! `cmf-kernels-wgpu`. What is between the products stays on candle's CPU tensors.

use crate::cut::check_expansion;
use crate::error::{Error, ErrorKind, Result};
use crate::moving::{Held, Install};
use crate::packed::PackedModel;
use crate::weights::{Linear, MatrixName, Rows, Weights, check_shape, missing};
use candle_core::{Device, Tensor};
use cmf_format::archive::{Cut, Matrix, MatrixView};
use cmf_kernels_wgpu::{Activations, GpuMatrix, GpuUnit, Uploader, Workspace, wgpu};
use cmf_loader::{FileSource, Model, Plan};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

pub use cmf_kernels_wgpu::Context;

/// Most values that go to the device or come from it at once, where that is at least a token's: half of
/// what WebGPU's bindings hold at least.
const BUFFER_VALUES: usize = 16 << 20;

/// A `.cmf` whose matrices are on a GPU, each as long as somebody multiplies with it.
///
/// Rows of the embedding and vectors are read from the file, on the CPU.
pub struct GpuModel<'m> {
    model: &'m Model,
    host: PackedModel<'m>,
    context: Arc<Context>,
    uploader: Mutex<Uploader>,
    /// Tensors that are read from the file, in main memory.
    on_host: Mutex<HashSet<String>>,
    state: Mutex<State<'m>>,
}

struct State<'m> {
    plan: Plan,
    slots: Vec<Weak<Slot<'m>>>,
    workspace: Workspace,
    /// For each place in a group of matrices, activations behind its transforms.
    activations: Vec<Activations>,
    /// Inputs and outputs of a group.
    buffers: [Option<wgpu::Buffer>; 2],
}

/// A matrix that is in use.
struct Slot<'m> {
    matrix: Matrix<'m, FileSource>,
    rows: usize,
    cols: usize,
    /// Read under the lock of the state, except for which units it has.
    gpu: RwLock<GpuMatrix>,
}

/// Units that are on the device, and not yet in their matrix.
struct Fresh<'m> {
    slot: Arc<Slot<'m>>,
    units: Vec<(u32, GpuUnit)>,
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'m> State<'m> {
    /// The matrices that are in use.
    fn slots(&self) -> impl Iterator<Item = Arc<Slot<'m>>> {
        self.slots.iter().filter_map(Weak::upgrade)
    }
}

impl<'m> Slot<'m> {
    fn read(&self) -> RwLockReadGuard<'_, GpuMatrix> {
        self.gpu.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, GpuMatrix> {
        self.gpu.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Units of the matrix that `plan` holds.
    fn held(&self, plan: &Plan) -> Result<Vec<u32>> {
        let planned =
            plan.of(self.matrix.archive()).ok_or_else(|| Error::argument("plan of another model"))?;
        let held = self.matrix.units().map(|unit| unit.index()).filter(|unit| planned.includes(*unit));
        Ok(held.collect())
    }

    /// Uploads what `plan` holds and the device does not.
    fn missing(
        &self,
        plan: &Plan,
        context: &Context,
        uploader: &mut Uploader,
    ) -> Result<Vec<(u32, GpuUnit)>> {
        let held = self.held(plan)?;
        let missing: Vec<u32> = {
            let gpu = self.read();
            held.into_iter().filter(|unit| gpu.unit_bytes(*unit).is_none()).collect()
        };
        let upload = |unit: u32| {
            let view = MatrixView::open(&self.matrix, Cut::Units(&|other| other == unit))?;
            let (rows, cols) = (self.rows, self.cols);
            Ok((unit, GpuUnit::new(context.kernels(), uploader, rows, cols, view.terms())?))
        };
        missing.into_iter().map(upload).collect()
    }

    /// Drops what `plan` does not hold.
    fn drop_beyond(&self, plan: &Plan) -> Result<()> {
        let held = self.held(plan)?;
        let mut gpu = self.write();
        let gone: Vec<u32> = gpu.units().filter(|unit| held.binary_search(unit).is_err()).collect();
        for unit in gone {
            gpu.remove(unit);
        }
        Ok(())
    }
}

impl<'m> GpuModel<'m> {
    /// The matrices of `model` under `plan`, on the device of `context`.
    pub fn new(model: &'m Model, plan: Plan, context: Arc<Context>) -> Self {
        let state = State {
            plan: plan.clone(),
            slots: Vec::new(),
            workspace: Workspace::default(),
            activations: Vec::new(),
            buffers: [None, None],
        };
        Self {
            model,
            host: PackedModel::new(model, plan),
            uploader: Mutex::new(Uploader::new(context.device(), context.queue())),
            context,
            on_host: Mutex::default(),
            state: Mutex::new(state),
        }
    }

    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        let own: u64 = lock(&self.state).slots().map(|slot| slot.read().bytes()).sum();
        own + self.context.kernels().shared_bytes()
    }

    /// Changes what is resident. No pipeline is compiled for it.
    ///
    /// # Errors
    /// As [`Held::prepare`], after which all is as it was.
    pub fn set_plan(&self, plan: Plan) -> Result<()> {
        self.prepare(plan)?()
    }

    fn uploaded<T>(&self, upload: impl FnOnce(&mut Uploader) -> Result<T>) -> Result<T> {
        let mut uploader = lock(&self.uploader);
        let result = upload(&mut uploader);
        // Also after an error: nothing stays staged.
        uploader.finish()?;
        result
    }

    /// The matrix called `name`, which is one that is in use or a new one.
    fn slot(&self, name: &str, rows: usize, cols: usize) -> Result<Arc<Slot<'m>>> {
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
        let mut state = lock(&self.state);
        let same = |slot: &Arc<Slot<'_>>| {
            slot.matrix.index() == matrix.index()
                && std::ptr::eq(slot.matrix.archive().source(), matrix.archive().source())
        };
        if let Some(found) = state.slots().find(same) {
            return Ok(found);
        }
        let slot = self.uploaded(|uploader| {
            let bare = MatrixView::open(&matrix, Cut::Units(&|_| false))?;
            let (input, output) = (bare.input_transforms(), bare.output_transforms());
            let gpu = GpuMatrix::new(self.context.kernels(), uploader, rows, cols, input, output)?;
            let slot = Slot { matrix, rows, cols, gpu: RwLock::new(gpu) };
            for (number, unit) in slot.missing(&state.plan, &self.context, uploader)? {
                slot.write().put(number, unit)?;
            }
            Ok(Arc::new(slot))
        })?;
        state.slots.retain(|slot| slot.strong_count() > 0);
        state.slots.push(Arc::downgrade(&slot));
        Ok(slot)
    }
}

impl<'m> Held for GpuModel<'m> {
    fn plan(&self) -> Plan {
        lock(&self.state).plan.clone()
    }

    fn scratch_bytes(&self) -> u64 {
        let state = lock(&self.state);
        let activations: u64 = state.activations.iter().map(Activations::bytes).sum();
        let buffers: u64 = state.buffers.iter().flatten().map(wgpu::Buffer::size).sum();
        state.workspace.bytes() + activations + buffers + self.host.scratch_bytes()
    }

    fn is_elsewhere(&self, name: &str) -> bool {
        let of = |name: &str| {
            let tensor = self.model.tensor(name).and_then(|tensor| tensor.stored().ok());
            tensor.into_iter().flat_map(|tensor| tensor.matrices()).collect::<Vec<_>>()
        };
        let same = |a: &Matrix<'_, FileSource>, b: &Matrix<'_, FileSource>| {
            a.index() == b.index() && std::ptr::eq(a.archive().source(), b.archive().source())
        };
        let slots: Vec<_> = lock(&self.state).slots().collect();
        let read: Vec<_> = lock(&self.on_host).iter().flat_map(|name| of(name)).collect();
        let matrices = of(name);
        let is_elsewhere = |matrix| {
            slots.iter().any(|slot| same(&slot.matrix, matrix))
                && !read.iter().any(|other| same(other, matrix))
        };
        !matrices.is_empty() && matrices.iter().all(is_elsewhere)
    }

    fn device_bytes(&self) -> Option<u64> {
        Some(self.weight_bytes())
    }

    /// Uploads what is missing, while the device goes on; buffers of what goes are given back when the
    /// change comes into force.
    fn prepare<'p>(&'p self, plan: Plan) -> Result<Install<'p>> {
        let slots: Vec<_> = lock(&self.state).slots().collect();
        let host = self.host.prepare(plan.clone())?;
        let fresh = self.uploaded(|uploader| {
            let missing = |slot: Arc<Slot<'m>>| {
                let units = slot.missing(&plan, &self.context, uploader)?;
                Ok(Fresh { slot, units })
            };
            slots.into_iter().map(missing).collect::<Result<Vec<_>>>()
        })?;
        Ok(Box::new(move || {
            let mut state = lock(&self.state);
            // Matrices that have come into use since.
            let late = self.uploaded(|uploader| {
                let known = |slot: &Arc<Slot<'_>>| fresh.iter().any(|fresh| Arc::ptr_eq(&fresh.slot, slot));
                let late = state.slots().filter(|slot| !known(slot)).map(|slot| {
                    let units = slot.missing(&plan, &self.context, uploader)?;
                    Ok(Fresh { slot, units })
                });
                late.collect::<Result<Vec<_>>>()
            })?;
            self.host.install(host)?;
            for Fresh { slot, units } in fresh.into_iter().chain(late) {
                slot.drop_beyond(&plan)?;
                for (number, unit) in units {
                    slot.write().put(number, unit)?;
                }
            }
            state.plan = plan;
            Ok(())
        }))
    }
}

impl<'m> Weights for GpuModel<'m> {
    fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
        lock(&self.on_host).insert(name.to_owned());
        self.host.vector(name, elements)
    }

    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
        let slots = matrices.iter().map(|m| self.slot(&m.name, m.outputs, inputs));
        let slots = slots.collect::<Result<Vec<_>>>()?;
        let transforms = slots.iter().map(|slot| {
            let view = MatrixView::open(&slot.matrix, Cut::Units(&|_| false))?;
            Ok(view.input_transforms().to_vec())
        });
        let transforms = transforms.collect::<Result<Vec<_>>>()?;
        let first = |own| transforms.iter().position(|other| other == own).unwrap_or(0);
        let inputs = transforms.iter().map(first).collect();
        Ok(Box::new(GpuLinear { model: self, slots, inputs }))
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        lock(&self.on_host).insert(name.to_owned());
        self.host.rows(name, rows, cols)
    }
}

/// Matrices on the device that read the same input.
struct GpuLinear<'w, 'm> {
    model: &'w GpuModel<'m>,
    slots: Vec<Arc<Slot<'m>>>,
    /// For each, the first whose input-side transforms are the same.
    inputs: Vec<usize>,
}

impl Linear for GpuLinear<'_, '_> {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let (tokens, cols) = x.dims2()?;
        if self.slots.iter().any(|slot| slot.cols != cols) {
            return Err(Error::argument(format!("{cols} inputs of other matrices")));
        }
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let outputs: usize = self.slots.iter().map(|slot| slot.rows).sum();
        let at_once = (BUFFER_VALUES / outputs.max(cols).max(1)).max(1);
        let mut state = lock(&self.model.state);
        let mut products = vec![Vec::new(); self.slots.len()];
        for values in values.chunks(at_once.saturating_mul(cols).max(1)) {
            self.multiply(&mut state, values, &mut products)?;
        }
        let tensors = self
            .slots
            .iter()
            .zip(products)
            .map(|(slot, products)| Ok(Tensor::from_vec(products, (tokens, slot.rows), &Device::Cpu)?));
        tensors.collect()
    }
}

impl<'m> GpuLinear<'_, 'm> {
    /// Appends to `products` those of each matrix with the rows of `values`.
    fn multiply(&self, state: &mut State<'m>, values: &[f32], products: &mut [Vec<f32>]) -> Result<()> {
        let context = &self.model.context;
        let State { workspace, activations, buffers: [input, output], .. } = state;
        let matrices: Vec<_> = self.slots.iter().map(|slot| slot.read()).collect();
        let cols = matrices.first().map_or(1, |matrix| matrix.cols());
        let tokens = values.len() / cols as usize;
        let batch = u32::try_from(tokens).map_err(|_| Error::argument("too many tokens"))?;
        let outputs: usize = self.slots.iter().map(|slot| slot.rows).sum();
        activations.resize_with(activations.len().max(matrices.len()), Activations::default);
        let x = room(context, input, values.len())?;
        let y = room(context, output, outputs.saturating_mul(tokens))?;
        context.write(&x, values)?;
        context.submit(|pass| {
            let kernels = context.kernels();
            for (place, (matrix, activations)) in matrices.iter().zip(&mut *activations).enumerate() {
                if self.inputs.get(place) == Some(&place) {
                    let rows = cmf_kernels_wgpu::Rows::of(&x, cols);
                    kernels.activate(pass, workspace, matrix.input(), rows, batch, activations)?;
                }
            }
            let mut offset_bytes = 0;
            for (matrix, place) in matrices.iter().zip(&self.inputs) {
                let Some(activations) = activations.get(*place) else { continue };
                let stride = matrix.rows();
                let rows = cmf_kernels_wgpu::Rows { buffer: &y, offset_bytes, stride };
                kernels.multiply(pass, workspace, matrix, activations, rows)?;
                offset_bytes += u64::from(stride) * u64::from(batch) * 4;
            }
            Ok(())
        })?;
        let all = context.download(&y, outputs * tokens)?;
        let mut rest = all.as_slice();
        for (slot, products) in self.slots.iter().zip(products) {
            let (own, after) =
                rest.split_at_checked(slot.rows * tokens).ok_or_else(|| Error::argument("products"))?;
            products.extend_from_slice(own);
            rest = after;
        }
        Ok(())
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

//! Packed weights on a GPU: units are uploaded as a plan holds them, and products are taken there by
//! `cmf-kernels-wgpu`. What is between the products stays on candle's CPU tensors.

mod linear;
mod slot;

use crate::cut::check_expansion;
use crate::error::{Error, ErrorKind, Result};
use crate::moving::{Held, Install};
use crate::packed::PackedModel;
use crate::weights::{Linear, MatrixName, Rows, Weights, check_shape, missing};
use candle_core::Tensor;
use cmf_format::archive::{Cut, Matrix, MatrixView};
use cmf_kernels_wgpu::{Activations, Uploader, Workspace, wgpu};
use cmf_loader::{FileSource, Model, Plan};
use linear::GpuLinear;
use slot::{Fresh, Group, Slot};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub use cmf_kernels_wgpu::Context;

/// A `.cmf` whose matrices are on a GPU, each as long as somebody multiplies with it.
///
/// Where the device has a budget of its own ([`GpuModel::with_budget`]), those that it has no room for are
/// multiplied with in main memory: those that were asked for last, of a model those of its last layers.
///
/// Rows of the embedding and vectors are read from the file, on the CPU.
pub struct GpuModel<'m> {
    model: &'m Model,
    host: PackedModel<'m>,
    context: Arc<Context>,
    uploader: Mutex<Uploader>,
    /// Bytes of weights that may be on the device.
    budget_bytes: AtomicU64,
    /// Tensors that are read from the file, in main memory.
    on_host: Mutex<HashSet<String>>,
    state: Mutex<State<'m>>,
}

struct State<'m> {
    plan: Plan,
    /// In the order in which they were asked for.
    groups: Vec<Weak<Group<'m>>>,
    workspace: Workspace,
    /// For each place in a group of matrices, activations behind its transforms.
    activations: Vec<Activations>,
    /// Inputs and outputs of a group.
    buffers: [Option<wgpu::Buffer>; 2],
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
    /// The groups that are in use.
    fn groups(&self) -> Vec<Arc<Group<'m>>> {
        self.groups.iter().filter_map(Weak::upgrade).collect()
    }

    /// Their matrices, each once.
    fn slots(&self) -> Vec<Arc<Slot<'m>>> {
        let mut slots: Vec<Arc<Slot<'m>>> = Vec::new();
        for slot in self.groups().iter().flat_map(|group| &group.slots) {
            if !slots.iter().any(|other| Arc::ptr_eq(other, slot)) {
                slots.push(Arc::clone(slot));
            }
        }
        slots
    }

    fn slot_bytes(&self) -> u64 {
        self.slots().iter().map(|slot| slot.bytes()).fold(0, u64::saturating_add)
    }

    /// Takes the matrices of `group` from the device, but for those of other groups that are there.
    fn drop_from_device(&self, group: &Group<'m>) {
        for slot in &group.slots {
            let others = self.groups();
            let others = others.iter().filter(|other| other.on_host().is_none());
            if !others.into_iter().any(|other| !std::ptr::eq(&**other, group) && other.has(slot)) {
                *slot.write() = None;
            }
        }
    }
}

impl<'m> GpuModel<'m> {
    /// The matrices of `model` under `plan`, on the device of `context`.
    pub fn new(model: &'m Model, plan: Plan, context: Arc<Context>) -> Self {
        let state = State {
            plan: plan.clone(),
            groups: Vec::new(),
            workspace: Workspace::default(),
            activations: Vec::new(),
            buffers: [None, None],
        };
        Self {
            model,
            host: PackedModel::new(model, plan),
            uploader: Mutex::new(Uploader::new(context.device(), context.queue())),
            context,
            budget_bytes: AtomicU64::new(u64::MAX),
            on_host: Mutex::default(),
            state: Mutex::new(state),
        }
    }

    /// The same with at most so many bytes of weights on the device.
    pub fn with_budget(self, budget_bytes: u64) -> Self {
        Self { budget_bytes: AtomicU64::new(budget_bytes), ..self }
    }

    fn budget_bytes(&self) -> u64 {
        self.budget_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        let own = lock(&self.state).slot_bytes();
        own.saturating_add(self.context.kernels().shared_bytes())
    }

    /// Changes what is resident. No pipeline is compiled for it.
    ///
    /// # Errors
    /// As [`Held::prepare`], after which all is as it was, but for matrices that the device has no room for any
    /// more.
    pub fn set_plan(&self, plan: Plan) -> Result<()> {
        self.prepare(plan)?()?;
        self.fill();
        Ok(())
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
        let found = lock(&self.state).slots().into_iter().find(|slot| slot.is(&matrix));
        Ok(found.unwrap_or_else(|| Arc::new(Slot::new(matrix, rows, cols))))
    }

    /// Puts the matrices of `group` on the device, where they fit its budget; whether they do.
    fn enter(&self, group: &Group<'m>) -> Result<bool> {
        let (plan, taken) = {
            let state = lock(&self.state);
            (state.plan.clone(), state.slot_bytes())
        };
        let budget = self.budget_bytes();
        let fits = |bytes: u64| {
            let shared = self.context.kernels().shared_bytes();
            taken.saturating_add(bytes).saturating_add(shared) <= budget
        };
        let absent: Vec<_> = group.slots.iter().filter(|slot| slot.read().is_none()).collect();
        let mut stored = 0u64;
        for slot in &absent {
            stored = stored.saturating_add(slot.bytes_under(&plan)?);
        }
        if !fits(stored) {
            return Ok(false);
        }
        let matrices = self.uploaded(|uploader| {
            absent.iter().map(|slot| slot.upload(&plan, &self.context, uploader)).collect::<Result<Vec<_>>>()
        })?;
        let state = lock(&self.state);
        // It may take more there than in the file, and share tables with others that there were none of.
        let bytes = matrices.iter().map(|matrix| matrix.bytes()).fold(0, u64::saturating_add);
        if !fits(bytes) || state.plan != plan {
            return Ok(false);
        }
        for (slot, matrix) in absent.into_iter().zip(matrices) {
            slot.write().get_or_insert(matrix);
        }
        group.set_on_host(None);
        Ok(true)
    }

    /// Has main memory multiply with the matrices of `group`.
    fn leave(&self, group: &Group<'m>) -> Result<()> {
        let places = group.names.iter().zip(&group.slots);
        let places = places.map(|(name, slot)| self.host.slot(&name.name, name.outputs, slot.cols));
        let places = places.collect::<Result<Arc<[usize]>>>()?;
        let state = lock(&self.state);
        group.set_on_host(Some(places));
        state.drop_from_device(group);
        Ok(())
    }

    /// Takes from the device the groups that it has no room for under `plan`: of those that are there the last.
    fn make_room(&self, plan: &Plan) -> Result<()> {
        let budget = self.budget_bytes();
        if budget == u64::MAX {
            return Ok(());
        }
        let mut taken = self.context.kernels().shared_bytes();
        let mut counted: Vec<*const Slot<'m>> = Vec::new();
        let groups = lock(&self.state).groups();
        for group in groups {
            if group.on_host().is_some() {
                continue;
            }
            let mut with = taken;
            for slot in group.slots.iter().filter(|slot| !counted.contains(&Arc::as_ptr(slot))) {
                // Both what it has now and what it will have.
                with = with.saturating_add(slot.bytes_under(plan)?.max(slot.bytes()));
            }
            match with > budget {
                true => self.leave(&group)?,
                false => {
                    taken = with;
                    counted.extend(group.slots.iter().map(Arc::as_ptr));
                }
            }
        }
        Ok(())
    }
}

impl<'m> GpuModel<'m> {
    /// Takes the last groups from the device while that and `fresh`, which is there, are more than its budget:
    /// units may take more there than in the file. Gives what is left of `fresh`.
    fn make_room_for(&self, mut fresh: Vec<Fresh<'m>>) -> Result<Vec<Fresh<'m>>> {
        loop {
            let units = fresh.iter().flat_map(|fresh| &fresh.units).map(|(_, unit)| unit.bytes());
            if units.fold(self.weight_bytes(), u64::saturating_add) <= self.budget_bytes() {
                return Ok(fresh);
            }
            let groups = lock(&self.state).groups();
            let Some(last) = groups.iter().rfind(|group| group.on_host().is_none()) else { return Ok(fresh) };
            self.leave(last)?;
            fresh.retain(|fresh| fresh.slot.read().is_some());
        }
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
        let (on_host, on_device): (Vec<_>, Vec<_>) =
            lock(&self.state).groups().into_iter().partition(|group| group.on_host().is_some());
        let has = |groups: &[Arc<Group<'m>>], matrix: &Matrix<'m, FileSource>| {
            groups.iter().flat_map(|group| &group.slots).any(|slot| slot.is(matrix))
        };
        let read: Vec<_> = lock(&self.on_host).iter().flat_map(|name| of(name)).collect();
        let matrices = of(name);
        let is_elsewhere = |matrix: &Matrix<'m, FileSource>| {
            has(&on_device, matrix) && !has(&on_host, matrix) && !read.iter().any(|other| same(other, matrix))
        };
        !matrices.is_empty() && matrices.iter().all(is_elsewhere)
    }

    fn device_bytes(&self) -> Option<u64> {
        Some(self.weight_bytes())
    }

    fn set_device_budget(&self, budget_bytes: u64) {
        self.budget_bytes.store(budget_bytes, Ordering::Relaxed);
    }

    /// Uploads what is missing, while the device goes on; buffers of what goes are given back when the
    /// change comes into force. What the device has no room for beside that leaves it at once.
    fn prepare<'p>(&'p self, plan: Plan) -> Result<Install<'p>> {
        self.make_room(&plan)?;
        let mut slots = lock(&self.state).slots();
        slots.retain(|slot| slot.read().is_some());
        let host = self.host.prepare(plan.clone())?;
        let fresh = self.uploaded(|uploader| {
            let missing = |slot: Arc<Slot<'m>>| {
                let units = slot.missing(&plan, &self.context, uploader)?;
                Ok(Fresh { slot, units })
            };
            slots.into_iter().map(missing).collect::<Result<Vec<_>>>()
        })?;
        let fresh = self.make_room_for(fresh)?;
        Ok(Box::new(move || {
            let mut state = lock(&self.state);
            // Matrices that have come to the device since.
            let late = self.uploaded(|uploader| {
                let known = |slot: &Arc<Slot<'_>>| fresh.iter().any(|fresh| Arc::ptr_eq(&fresh.slot, slot));
                let late = state.slots().into_iter().filter(|slot| !known(slot)).map(|slot| {
                    let units = slot.missing(&plan, &self.context, uploader)?;
                    Ok(Fresh { slot, units })
                });
                late.collect::<Result<Vec<_>>>()
            })?;
            self.host.install(host)?;
            for Fresh { slot, units } in fresh.into_iter().chain(late) {
                slot.follow(&plan, units)?;
            }
            state.plan = plan;
            Ok(())
        }))
    }

    /// Puts what is multiplied with in main memory on the device, as far as there is room now.
    fn fill(&self) {
        let groups = lock(&self.state).groups();
        for group in groups {
            // What cannot be uploaded stays where it is.
            let _ = group.on_host().is_none() || self.enter(&group).unwrap_or(false);
        }
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
        let group = Arc::new(Group::new(slots, matrices));
        {
            let mut state = lock(&self.state);
            state.groups.retain(|group| group.strong_count() > 0);
            state.groups.push(Arc::downgrade(&group));
        }
        // The plan may change meanwhile, and then there is another try.
        loop {
            let plan = self.plan();
            if self.enter(&group)? {
                break;
            }
            if self.plan() == plan {
                self.leave(&group)?;
                break;
            }
        }
        Ok(Box::new(GpuLinear { model: self, group, inputs }))
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        lock(&self.on_host).insert(name.to_owned());
        self.host.rows(name, rows, cols)
    }
}

//! Packed weights: the CPU kernels multiply with the bytes of the file, as far as a plan holds them. The
//! plan can be changed between tokens.

mod demand;
mod multiply;

pub(crate) use demand::OpenedOnUse;
pub(crate) use multiply::Pool;

use crate::cut::check_expansion;
use crate::error::{Error, Result};
use crate::moving::{Held, Install, Pin};
use crate::weights::{Linear, MatrixName, Rows, Weights, check_shape, missing};
use candle_core::{Device, Tensor};
use cmf_format::archive::{Cut, Matrix, MatrixView};
use cmf_kernels_cpu::{Isa, Precision};
use cmf_loader::{FileSource, Levels, Model, Plan};
use rayon::prelude::*;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, ThreadId};

/// A `.cmf` whose matrices stay packed.
///
/// What is resident is a snapshot: [`PackedModel::set_plan`] makes the next one and puts it in the
/// place of the old one, which lives until the multiplications that use it are done and no thread has it
/// pinned.
pub struct PackedModel<'m> {
    model: &'m Model,
    current: RwLock<Arc<Snapshot<'m>>>,
    /// What threads have pinned, each for itself.
    pinned: RwLock<Vec<(ThreadId, Arc<Snapshot<'m>>)>>,
    precision: Precision,
    isa: Isa,
    /// Of the passes that run at a time.
    buffers: Pool,
}

/// The matrices of a [`PackedModel`] under another plan.
pub struct Prepared<'m>(Snapshot<'m>);

/// The matrices of a [`PackedModel`] before a change.
pub struct Replaced<'m> {
    _before: Arc<Snapshot<'m>>,
}

/// Keeps what a thread multiplies with.
struct Pinned<'p, 'm> {
    model: &'p PackedModel<'m>,
    thread: ThreadId,
}

impl Drop for Pinned<'_, '_> {
    fn drop(&mut self) {
        let mut pinned = self.model.pinned.write().unwrap_or_else(PoisonError::into_inner);
        let last = pinned.iter().rposition(|(thread, _)| *thread == self.thread);
        let unpinned = last.map(|last| pinned.remove(last));
        drop(pinned);
        // Outside of the lock: this may be the last that holds it.
        drop(unpinned);
    }
}

/// Which units are resident.
#[derive(Clone)]
struct Snapshot<'m> {
    plan: Plan,
    /// Of each matrix that is in use.
    slots: Vec<Slot<'m>>,
}

/// A matrix that is in use.
#[derive(Clone)]
struct Slot<'m> {
    matrix: Matrix<'m, FileSource>,
    /// Units of the matrix that are held, by their place in it.
    held: Vec<bool>,
    linear: Arc<cmf_kernels_cpu::Linear<'m>>,
}

impl<'m> Slot<'m> {
    fn held(matrix: &Matrix<'m, FileSource>, plan: &Plan) -> Result<Vec<bool>> {
        let units = plan.of(matrix.archive()).ok_or_else(|| Error::argument("plan of another model"))?;
        Ok(matrix.units().map(|unit| units.includes(unit.index())).collect())
    }

    /// The same matrix under `plan`.
    fn under(&self, plan: &Plan) -> Result<Self> {
        let held = Self::held(&self.matrix, plan)?;
        if held == self.held { Ok(self.clone()) } else { Self::open(self.matrix, held, self.linear.isa()) }
    }

    fn open(matrix: Matrix<'m, FileSource>, held: Vec<bool>, isa: Isa) -> Result<Self> {
        let first = matrix.record().first_unit.get();
        let holds = |unit: u32| {
            unit.checked_sub(first).and_then(|place| held.get(place as usize)).copied().unwrap_or(false)
        };
        let view = MatrixView::open(&matrix, Cut::Units(&holds))?;
        let linear = Arc::new(cmf_kernels_cpu::Linear::new(view, isa)?);
        Ok(Self { matrix, held, linear })
    }
}

impl<'m> PackedModel<'m> {
    /// The matrices of `model` under `plan`, multiplied with exactly.
    pub fn new(model: &'m Model, plan: Plan) -> Self {
        Self {
            model,
            current: RwLock::new(Arc::new(Snapshot { plan, slots: Vec::new() })),
            pinned: RwLock::default(),
            precision: Precision::Exact,
            isa: Isa::detect(),
            buffers: Pool::default(),
        }
    }

    /// The same with another precision of activations.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Changes what is resident. Only matrices whose units change are opened again; nothing is
    /// read or decoded here. After an error all is as it was.
    ///
    /// # Errors
    /// `BadArgument` for the plan of another model, `BadModel` for units that cannot be opened.
    pub fn set_plan(&self, plan: Plan) -> Result<()> {
        self.install(self.prepare(plan)?).map(drop)
    }

    /// Opens what a plan changes, for [`PackedModel::install`]: readers go on meanwhile.
    ///
    /// # Errors
    /// As [`PackedModel::set_plan`].
    pub fn prepare(&self, plan: Plan) -> Result<Prepared<'m>> {
        let current = self.current();
        let slots = current.slots.par_iter().map(|slot| slot.under(&plan));
        let slots = slots.collect::<Result<_>>()?;
        Ok(Prepared(Snapshot { plan, slots }))
    }

    /// Puts what was prepared in the place of what is in force, and gives that, to be dropped when there
    /// is time.
    ///
    /// # Errors
    /// As [`PackedModel::set_plan`], for matrices that have come into use since.
    pub fn install(&self, prepared: Prepared<'m>) -> Result<Replaced<'m>> {
        let Prepared(mut next) = prepared;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        for slot in current.slots.get(next.slots.len()..).unwrap_or(&[]) {
            next.slots.push(slot.under(&next.plan)?);
        }
        Ok(Replaced { _before: core::mem::replace(&mut *current, Arc::new(next)) })
    }

    fn current(&self) -> Arc<Snapshot<'m>> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What this thread multiplies with.
    fn snapshot(&self) -> Arc<Snapshot<'m>> {
        let thread = thread::current().id();
        let pinned = self.pinned.read().unwrap_or_else(PoisonError::into_inner);
        let own = pinned.iter().rev().find(|(pinned, _)| *pinned == thread);
        own.map_or_else(|| self.current(), |(_, snapshot)| Arc::clone(snapshot))
    }

    /// Has this thread multiply with `snapshot`.
    fn pin_snapshot(&self, snapshot: Arc<Snapshot<'m>>) -> Pinned<'_, 'm> {
        let thread = thread::current().id();
        self.pinned.write().unwrap_or_else(PoisonError::into_inner).push((thread, snapshot));
        Pinned { model: self, thread }
    }

    /// The matrix of slot `slot` as it is now.
    fn matrix(&self, slot: usize) -> Result<Arc<cmf_kernels_cpu::Linear<'m>>> {
        let snapshot = self.snapshot();
        let slot = snapshot.slots.get(slot).ok_or_else(|| Error::argument("no such matrix"))?;
        Ok(Arc::clone(&slot.linear))
    }

    /// The products of `x` with the matrices in `slots`, which read the same input.
    pub(crate) fn multiply(&self, slots: &[usize], x: &Tensor, inputs: usize) -> Result<Vec<Tensor>> {
        let snapshot = self.snapshot();
        let slots = slots.iter().map(|slot| snapshot.slots.get(*slot));
        let slots = slots.map(|slot| slot.map(|s| s.linear.as_ref()));
        let matrices = slots.collect::<Option<Vec<_>>>().ok_or_else(|| Error::argument("no such matrix"))?;
        self.buffers.with(|buffers| buffers.multiply(&matrices, x, inputs, self.precision))
    }

    /// A slot for the matrix called `name`, which is tied to one that is in use or a new one.
    pub(crate) fn slot(&self, name: &str, rows: usize, cols: usize) -> Result<usize> {
        let tensor = self.model.tensor(name).ok_or_else(|| missing(name))?;
        check_shape(name, &tensor.shape(), &[rows, cols])?;
        check_expansion(self.model)?;
        if tensor.is_delta() {
            let name = name.escape_debug();
            return Err(Error::unsupported(format!("tensor `{name}` is a delta, which cannot stay packed")));
        }
        let mut matrices = tensor.stored()?.matrices();
        let matrix = match (matrices.next(), matrices.len()) {
            (Some(matrix), 0) => matrix,
            _ => {
                return Err(Error::unsupported(format!(
                    "tensor `{}` is no single matrix",
                    name.escape_debug()
                )));
            }
        };
        check_shape(name, &[matrix.rows(), matrix.cols()], &[rows, cols])?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let same = |slot: &Slot<'_>| {
            slot.matrix.index() == matrix.index()
                && std::ptr::eq(slot.matrix.archive().source(), matrix.archive().source())
        };
        if let Some(found) = current.slots.iter().position(same) {
            return Ok(found);
        }
        let opened = Slot::open(matrix, Slot::held(&matrix, &current.plan)?, self.isa)?;
        let mut next = Snapshot::clone(&current);
        next.slots.push(opened);
        *current = Arc::new(next);
        Ok(current.slots.len().saturating_sub(1))
    }
}

impl<'m> Held for PackedModel<'m> {
    fn plan(&self) -> Plan {
        self.current().plan.clone()
    }

    fn pin(&self) -> Option<Pin<'_>> {
        Some(Box::new(self.pin_snapshot(self.current())))
    }

    fn prepare<'p>(&'p self, plan: Plan) -> Result<Install<'p>> {
        let prepared = PackedModel::prepare(self, plan)?;
        Ok(Box::new(|| self.install(prepared).map(drop)))
    }

    /// They grow with the largest matrix and the most tokens that there have been at a time.
    fn scratch_bytes(&self) -> u64 {
        self.buffers.bytes()
    }

    fn precision(&self) -> Precision {
        self.precision
    }
}

/// The vector `name` under a plan, f32.
fn vector(model: &Model, plan: &Plan, name: &str, elements: usize) -> Result<Tensor> {
    let tensor = model.tensor(name).ok_or_else(|| missing(name))?;
    check_shape(name, &tensor.shape(), &[elements])?;
    let mut values = vec![0.0; elements];
    tensor.decode(Levels::Plan(plan), &mut values)?;
    Ok(Tensor::from_vec(values, elements, &Device::Cpu)?)
}

impl<'m> Weights for PackedModel<'m> {
    /// All of the pass multiplies with what this thread would at its beginning.
    fn run(&self, pass: &mut (dyn FnMut() + Send)) {
        let snapshot = self.snapshot();
        cmf_kernels_cpu::awake(|| {
            let _pinned = self.pin_snapshot(snapshot);
            pass();
        });
    }

    /// A vector is read once, under the plan that is in force when the model is loaded.
    fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
        vector(self.model, &self.plan(), name, elements)
    }

    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
        let slots = matrices.iter().map(|m| self.slot(&m.name, m.outputs, inputs));
        let slots = slots.collect::<Result<Vec<_>>>()?;
        Ok(Box::new(PackedLinear { model: self, slots, inputs }))
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        Ok(Box::new(PackedRows { model: self, slot: self.slot(name, rows, cols)?, cols }))
    }
}

/// Packed matrices that read the same input.
struct PackedLinear<'w, 'm> {
    model: &'w PackedModel<'m>,
    slots: Vec<usize>,
    inputs: usize,
}

impl Linear for PackedLinear<'_, '_> {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.model.multiply(&self.slots, x, self.inputs)
    }
}

/// A packed embedding.
struct PackedRows<'w, 'm> {
    model: &'w PackedModel<'m>,
    slot: usize,
    cols: usize,
}

impl Rows for PackedRows<'_, '_> {
    fn gather(&self, ids: &[u32]) -> Result<Tensor> {
        let matrix = self.model.matrix(self.slot)?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= matrix.rows()) {
            return Err(Error::argument(format!("token {id} of an embedding of {}", matrix.rows())));
        }
        let mut values = vec![0.0; ids.len().saturating_mul(self.cols)];
        self.model.buffers.with(|buffers| buffers.gather(&matrix, ids, &mut values))?;
        Ok(Tensor::from_vec(values, (ids.len(), self.cols), &Device::Cpu)?)
    }
}

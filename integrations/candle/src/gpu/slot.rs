//! Matrices that are in use, and which of them are on the device.

use crate::error::{Error, Result};
use crate::weights::MatrixName;
use cmf_format::archive::{Cut, Matrix, MatrixView};
use cmf_kernels_wgpu::{Context, GpuMatrix, GpuUnit, Uploader};
use cmf_loader::{FileSource, Plan};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A matrix that is in use.
pub(super) struct Slot<'m> {
    pub(super) matrix: Matrix<'m, FileSource>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// `None` while it is not on the device. Read under the lock of the state, except for which units it has.
    gpu: RwLock<Option<GpuMatrix>>,
}

/// Units that are on the device, and not yet in their matrix.
pub(super) struct Fresh<'m> {
    pub(super) slot: Arc<Slot<'m>>,
    pub(super) units: Vec<(u32, GpuUnit)>,
}

/// Matrices that read the same input: all of them are on the device, or none is.
pub(super) struct Group<'m> {
    pub(super) slots: Vec<Arc<Slot<'m>>>,
    pub(super) names: Vec<MatrixName>,
    /// Their places in what main memory multiplies with, while they are not on the device.
    on_host: Mutex<Option<Arc<[usize]>>>,
}

impl<'m> Group<'m> {
    pub(super) fn new(slots: Vec<Arc<Slot<'m>>>, names: &[MatrixName]) -> Self {
        Self { slots, names: names.to_vec(), on_host: Mutex::default() }
    }

    pub(super) fn on_host(&self) -> Option<Arc<[usize]>> {
        self.on_host.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_on_host(&self, places: Option<Arc<[usize]>>) {
        *self.on_host.lock().unwrap_or_else(PoisonError::into_inner) = places;
    }

    pub(super) fn has(&self, slot: &Arc<Slot<'_>>) -> bool {
        self.slots.iter().any(|own| std::ptr::addr_eq(Arc::as_ptr(own), Arc::as_ptr(slot)))
    }
}

impl<'m> Slot<'m> {
    pub(super) fn new(matrix: Matrix<'m, FileSource>, rows: usize, cols: usize) -> Self {
        Self { matrix, rows, cols, gpu: RwLock::default() }
    }

    pub(super) fn is(&self, matrix: &Matrix<'_, FileSource>) -> bool {
        self.matrix.index() == matrix.index()
            && std::ptr::eq(self.matrix.archive().source(), matrix.archive().source())
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Option<GpuMatrix>> {
        self.gpu.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Option<GpuMatrix>> {
        self.gpu.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> u64 {
        self.read().as_ref().map_or(0, GpuMatrix::bytes)
    }

    /// Units of the matrix that `plan` holds.
    fn held(&self, plan: &Plan) -> Result<Vec<u32>> {
        let planned =
            plan.of(self.matrix.archive()).ok_or_else(|| Error::argument("plan of another model"))?;
        let held = self.matrix.units().map(|unit| unit.index()).filter(|unit| planned.includes(*unit));
        Ok(held.collect())
    }

    /// About what it takes on the device under `plan`: exact for units that are there, and for others what the
    /// file has of them.
    pub(super) fn bytes_under(&self, plan: &Plan) -> Result<u64> {
        let (held, archive, gpu) = (self.held(plan)?, self.matrix.archive(), self.read());
        let stored = |unit: u32| {
            let found = self.matrix.units().find(|other| other.index() == unit);
            let segments = found.into_iter().flat_map(|unit| unit.segments());
            let bytes =
                segments.filter_map(|index| archive.segment(index)).map(|s| s.record().decoded_bytes.get());
            bytes.fold(0, u64::saturating_add)
        };
        let there = |unit: u32| gpu.as_ref().and_then(|gpu| gpu.unit_bytes(unit));
        let beside = gpu.as_ref().map_or(0, |gpu| {
            let units = gpu.units().filter_map(|unit| gpu.unit_bytes(unit)).fold(0, u64::saturating_add);
            gpu.bytes().saturating_sub(units)
        });
        let units = held.into_iter().map(|unit| there(unit).unwrap_or_else(|| stored(unit)));
        Ok(units.fold(beside, u64::saturating_add))
    }

    /// Uploads what `plan` holds, and nothing is on the device of.
    pub(super) fn upload(
        &self,
        plan: &Plan,
        context: &Context,
        uploader: &mut Uploader,
    ) -> Result<GpuMatrix> {
        let bare = MatrixView::open(&self.matrix, Cut::Units(&|_| false))?;
        let (input, output) = (bare.input_transforms(), bare.output_transforms());
        let mut gpu = GpuMatrix::new(context.kernels(), uploader, self.rows, self.cols, input, output)?;
        for unit in self.held(plan)? {
            gpu.put(unit, self.unit(unit, context, uploader)?)?;
        }
        Ok(gpu)
    }

    fn unit(&self, unit: u32, context: &Context, uploader: &mut Uploader) -> Result<GpuUnit> {
        let view = MatrixView::open(&self.matrix, Cut::Units(&|other| other == unit))?;
        Ok(GpuUnit::new(context.kernels(), uploader, self.rows, self.cols, view.terms())?)
    }

    /// Uploads what `plan` holds and the device does not, of a matrix that is there.
    pub(super) fn missing(
        &self,
        plan: &Plan,
        context: &Context,
        uploader: &mut Uploader,
    ) -> Result<Vec<(u32, GpuUnit)>> {
        let held = self.held(plan)?;
        let missing: Vec<u32> = match self.read().as_ref() {
            Some(gpu) => held.into_iter().filter(|unit| gpu.unit_bytes(*unit).is_none()).collect(),
            None => Vec::new(),
        };
        missing.into_iter().map(|unit| Ok((unit, self.unit(unit, context, uploader)?))).collect()
    }

    /// Drops what `plan` does not hold, and puts `units` in.
    pub(super) fn follow(&self, plan: &Plan, units: Vec<(u32, GpuUnit)>) -> Result<()> {
        let held = self.held(plan)?;
        let mut gpu = self.write();
        let Some(gpu) = gpu.as_mut() else { return Ok(()) };
        let gone: Vec<u32> = gpu.units().filter(|unit| held.binary_search(unit).is_err()).collect();
        for unit in gone {
            gpu.remove(unit);
        }
        units.into_iter().try_for_each(|(number, unit)| Ok(gpu.put(number, unit)?))
    }
}

//! Packed weights whose budget moves between passes through a model.

use crate::error::Result;
use crate::experts::on_demand;
use crate::packed::{OpenedOnUse, PackedModel, Pool};
use crate::weights::{ExpertName, Experts, Linear, MatrixName, Rows, Weights};
use candle_core::Tensor;
use cmf_kernels_cpu::Precision;
use cmf_loader::resident::{Change, Resident, Status};
use cmf_loader::{Budget, Model, Plan, Snapshot, Want};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Packed weights whose plan can be changed.
pub trait Held: Weights + Send {
    /// The plan that is in force.
    fn plan(&self) -> Plan;

    /// Keeps the plan that is in force for this thread, whatever plans come, until what this gives is dropped.
    /// `None` when plans can come into force between passes alone.
    fn pin(&self) -> Option<Pin<'_>> {
        None
    }

    /// Makes ready for another plan, while readers go on, and gives what brings it into force, which is
    /// called when no pass is under way that has not pinned its own. If that is not called, or fails, the plan
    /// before stays.
    ///
    /// # Errors
    /// `BadArgument` for the plan of another model, `BadModel` for units that cannot be opened,
    /// `Compute` when a device refuses.
    fn prepare<'p>(&'p self, plan: Plan) -> Result<Install<'p>>;

    /// Bytes that are held beside weights to multiply with them.
    fn scratch_bytes(&self) -> u64;

    /// Whether the matrices of the tensor called `name` are multiplied with elsewhere alone: main memory need
    /// not have them once they are there.
    fn is_elsewhere(&self, _name: &str) -> bool {
        false
    }

    /// Says how many bytes of weights may be on that device: from the next [`Held::prepare`] on.
    fn set_device_budget(&self, _budget_bytes: u64) {}

    /// Is called when what was prepared has come into force: puts on the device what has room there.
    fn fill(&self) {}

    /// How activations are multiplied with experts that are on demand.
    fn precision(&self) -> Precision {
        Precision::Exact
    }

    /// Bytes of weights on a device other than the CPU, where there is one.
    fn device_bytes(&self) -> Option<u64> {
        None
    }
}

/// Keeps a plan for a thread.
pub type Pin<'p> = Box<dyn Send + 'p>;

/// Brings a plan into force.
pub type Install<'p> = Box<dyn FnOnce() -> Result<()> + 'p>;

/// [`Held`] weights that follow what a [`Resident`] holds: nothing is loaded again when the budget
/// changes.
///
/// A pass through the model (a token, or a part of a prompt) sees one plan from its first layer to its
/// last, and is made by one thread. Changes may be asked for at any time and from any thread, and on the CPU
/// no pass waits for them: a pass that begins takes the plan that is in force, and memory that a smaller
/// budget takes is given back after the last pass that still reads it. On a GPU changes come into force
/// between passes.
pub struct Moving<'m> {
    weights: Box<dyn Held + 'm>,
    resident: Resident<'m>,
    /// For weights that cannot pin a plan.
    turns: Option<Turns>,
    /// For products with experts that are on demand.
    buffers: Pool,
    /// Held by whoever changes what the weights hold.
    following: Mutex<()>,
}

/// Passes and changes in turn: a change that waits is the next one, however many passes follow each
/// other. (A lock of the standard library goes to whoever asks while it is free, and that is the
/// thread that has just ended a pass.)
#[derive(Default)]
struct Turns {
    state: Mutex<Turn>,
    moved: Condvar,
}

#[derive(Default)]
struct Turn {
    passes: usize,
    changing: bool,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, mut wait: impl FnMut(&Turn) -> bool) -> MutexGuard<'_, Turn> {
        let turn = self.moved.wait_while(self.lock(), |turn| wait(turn));
        turn.unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_pass(&self) {
        let mut turn = self.wait_while(|turn| turn.changing);
        turn.passes = turn.passes.saturating_add(1);
    }

    fn end_pass(&self) {
        let mut turn = self.lock();
        turn.passes = turn.passes.saturating_sub(1);
        self.moved.notify_all();
    }

    /// Calls `change` when no pass is under way. One change at a time.
    fn between<T>(&self, change: impl FnOnce() -> T) -> T {
        self.lock().changing = true;
        let mut turn = self.wait_while(|turn| turn.passes > 0);
        let result = change();
        turn.changing = false;
        self.moved.notify_all();
        result
    }
}

/// A pass: what this thread reads stays in memory, and stays the same, until it is dropped.
#[must_use = "a pass lasts as long as this lives"]
pub struct Pass<'p> {
    // In this order: the bytes stay until nothing is read any more.
    _pin: Option<Pin<'p>>,
    turns: Option<&'p Turns>,
    _snapshot: Snapshot,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(turns) = self.turns {
            turns.end_pass();
        }
    }
}

/// The weights, and experts that are on demand in the [`Resident`] ([`Want::Demand`](cmf_loader::Want)): each
/// comes into memory, on the CPU, when a router has chosen it.
impl Weights for Moving<'_> {
    fn vector(&self, name: &str, elements: usize) -> Result<Tensor> {
        self.weights.vector(name, elements)
    }

    fn linear<'w>(&'w self, matrices: &[MatrixName], inputs: usize) -> Result<Box<dyn Linear + 'w>> {
        self.weights.linear(matrices, inputs)
    }

    fn rows<'w>(&'w self, name: &str, rows: usize, cols: usize) -> Result<Box<dyn Rows + 'w>> {
        self.weights.rows(name, rows, cols)
    }

    fn experts<'w>(
        &'w self,
        experts: &[ExpertName],
        hidden: usize,
        wide: usize,
    ) -> Result<Box<dyn Experts + 'w>> {
        let loaded = |experts: &[ExpertName]| self.weights.experts(experts, hidden, wide);
        let demanded = |experts: &[ExpertName]| -> Result<Box<dyn Experts + 'w>> {
            let (model, level) = (self.resident.model(), self.resident.demand_level());
            let precision = self.weights.precision();
            let sizes = [hidden, wide];
            Ok(Box::new(OpenedOnUse::new(model, experts, sizes, level, precision, &self.buffers)?))
        };
        on_demand(&self.resident, experts, &loaded, &demanded)
    }

    fn stored_name(&self, name: &str) -> String {
        self.weights.stored_name(name)
    }
}

impl<'m> Moving<'m> {
    /// The matrices of what `resident` holds, on the CPU.
    pub fn new(resident: Resident<'m>) -> Self {
        Self::with(resident, |model, plan| Box::new(PackedModel::new(model, plan)))
    }

    /// The weights that `make` makes of what `resident` holds.
    pub fn with(resident: Resident<'m>, make: impl FnOnce(&'m Model, Plan) -> Box<dyn Held + 'm>) -> Self {
        let weights = make(resident.model(), resident.snapshot().plan().clone());
        let turns = weights.pin().is_none().then(Turns::default);
        Self { weights, resident, turns, buffers: Pool::default(), following: Mutex::default() }
    }

    /// The weights.
    pub fn packed(&self) -> &(dyn Held + 'm) {
        self.weights.as_ref()
    }

    /// What is in memory.
    pub fn resident(&self) -> &Resident<'m> {
        &self.resident
    }

    /// What is held, wanted and under way.
    pub fn status(&self) -> Status {
        self.resident.status()
    }

    /// Bytes that are held beside weights to multiply with them.
    pub fn scratch_bytes(&self) -> u64 {
        self.weights.scratch_bytes().saturating_add(self.buffers.bytes())
    }

    /// Begins a pass of this thread, under the plan that is in force. Where plans come into force between
    /// passes, this waits while one waits for the passes that are under way.
    pub fn pass(&self) -> Pass<'_> {
        let turns = self.turns.as_ref().inspect(|turns| turns.begin_pass());
        // In this order: the matrices are of this plan or of a later one, which is smaller or all in memory
        // already. What a later change takes, it takes when this snapshot is gone.
        let snapshot = self.resident.snapshot();
        Pass { _pin: self.weights.pin(), turns, _snapshot: snapshot }
    }

    /// Gives back what main memory has of the matrices that are on a device, once the model is loaded; a
    /// change of budget does so by itself. Gives the bytes.
    ///
    /// # Errors
    /// As [`Resident::give_back`].
    pub fn settle(&self) -> Result<u64> {
        self.give_back(&self.resident.snapshot())
    }

    fn give_back(&self, snapshot: &Snapshot) -> Result<u64> {
        if self.weights.device_bytes().is_none() {
            return Ok(0);
        }
        let want = |name: &str| if self.weights.is_elsewhere(name) { Want::Never } else { Want::Budget };
        let kept = self.resident.model().schedule_for(&want)?;
        Ok(self.resident.give_back(snapshot, &kept)?)
    }

    /// Changes the budget, and returns when memory is as it says: a smaller budget waits for the passes
    /// that are under way, so a thread that is in a pass must end it first.
    ///
    /// # Errors
    /// As [`Resident::set_budget`] and [`Held::prepare`]: what was in force before stays so.
    pub fn set_budget(&self, budget: Budget) -> Result<Change> {
        self.resident.set_budget_with(budget, |snapshot| self.follow(snapshot))
    }

    /// Says that the first `steps` units of the file are there now: see [`Resident::set_arrived`].
    ///
    /// # Errors
    /// As [`Moving::set_budget`].
    pub fn set_arrived(&self, steps: usize) -> Result<Change> {
        self.resident.set_arrived(steps, |snapshot| self.follow(snapshot))
    }

    /// Changes how many bytes of weights a device may have, and returns when it has no more: what it has no room
    /// for is multiplied with in main memory. Nothing where there is no device.
    ///
    /// # Errors
    /// As [`Held::prepare`].
    pub fn set_device_budget(&self, budget_bytes: u64) -> Result<()> {
        self.weights.set_device_budget(budget_bytes);
        let _following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        self.install(self.weights.plan())?;
        self.give_back(&self.resident.snapshot()).map(drop)
    }

    fn follow(&self, snapshot: &Snapshot) -> Result<()> {
        let _following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        if self.weights.plan() == *snapshot.plan() {
            return Ok(());
        }
        self.install(snapshot.plan().clone())?;
        self.give_back(snapshot).map(drop)
    }

    /// Brings a plan into force in the weights.
    fn install(&self, plan: Plan) -> Result<()> {
        let install = self.weights.prepare(plan)?;
        match &self.turns {
            Some(turns) => turns.between(install),
            None => install(),
        }?;
        self.weights.fill();
        Ok(())
    }
}

//! Where products are taken: `--device`.

/// Where products are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Device {
    // This processor.
    #[default]
    Cpu,
    // The adapter that wgpu prefers.
    Gpu,
}

impl Device {
    /// The GPU, if that is the device.
    pub(crate) fn gpu(self) -> anyhow::Result<Option<Gpu>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Gpu => Gpu::open().map(Some),
        }
    }
}

/// What multiplies, and how much of the weights it may have.
#[cfg(feature = "models")]
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// What multiplies with the weights
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: Device,
    /// With --device gpu: bytes of weights that may be there, or auto, which follows the memory that the device has
    /// left; the CPU multiplies with the rest, from main memory [default: all that --budget has]
    #[arg(long, value_name = "SIZE")]
    device_budget: Option<String>,
}

#[cfg(feature = "models")]
impl DeviceArgs {
    /// The GPU, if that is the device.
    pub(crate) fn gpu(&self) -> anyhow::Result<Option<Gpu>> {
        if let Some(budget) = self.device_budget.as_deref() {
            if !is_auto(budget) {
                device_size(budget)?;
            }
            anyhow::ensure!(self.device == Device::Gpu, "--device-budget is for --device gpu");
        }
        let gpu = self.device.gpu()?;
        gpu.map(|gpu| gpu.with_budget(self.device_budget.as_deref())).transpose()
    }
}

#[cfg(feature = "models")]
fn is_auto(budget: &str) -> bool {
    budget.trim() == "auto"
}

#[cfg(feature = "models")]
fn device_size(budget: &str) -> anyhow::Result<u64> {
    crate::size::parse(budget).map_err(|e| anyhow::anyhow!("--device-budget: {e}"))
}

#[cfg(feature = "gpu")]
pub(crate) use present::Gpu;

#[cfg(feature = "gpu")]
mod present {
    use super::{device_size, is_auto};
    use anyhow::Context as _;
    use cmf_candle::gpu::{Context, GpuModel};
    use cmf_candle::moving::Moving;
    use cmf_loader::resident::Resident;
    use cmf_loader::resident::pressure::{DeviceBudget, DeviceReading, Pressure};
    use cmf_loader::{Model, Plan};
    use std::sync::Arc;

    /// A device that is open.
    pub(crate) struct Gpu {
        context: Arc<Context>,
        budget: DeviceBudget,
        budget_bytes: u64,
    }

    impl Gpu {
        pub(super) fn open() -> anyhow::Result<Self> {
            let context = Arc::new(Context::new()?);
            Ok(Self { context, budget: DeviceBudget::Plan, budget_bytes: u64::MAX })
        }

        /// The same with at most so many bytes of weights of a model.
        pub(super) fn with_budget(self, budget: Option<&str>) -> anyhow::Result<Self> {
            let Some(text) = budget else { return Ok(self) };
            let budget = if is_auto(text) { DeviceBudget::Follows } else { DeviceBudget::Fixed };
            Ok(Self { budget, budget_bytes: self.bytes(text, 0)?, ..self })
        }

        /// Whether its budget follows what memory it has left, and how many bytes of weights it may have.
        pub(crate) fn budget(&self) -> (DeviceBudget, u64) {
            (self.budget, self.budget_bytes)
        }

        /// A budget as somebody wrote it, when `weight_bytes` are on the device.
        pub(crate) fn bytes(&self, budget: &str, weight_bytes: u64) -> anyhow::Result<u64> {
            if !is_auto(budget) {
                return device_size(budget);
            }
            let reading = self.reading(weight_bytes);
            let mut room = reading.room_bytes;
            if reading.is_main_memory {
                let main = Pressure::read(weight_bytes)?.room_bytes;
                room = Some(room.unwrap_or(u64::MAX).min(main));
            }
            let room = room.with_context(|| {
                let name = self.context.device().adapter_info().name;
                format!(
                    "--device-budget auto: the driver of {name} does not say how much memory is left \
                     (VK_EXT_memory_budget); give the bytes"
                )
            })?;
            Ok(Pressure::default().device_bytes(room))
        }

        /// What the device says of its memory, when `weight_bytes` of weights are there.
        fn reading(&self, weight_bytes: u64) -> DeviceReading {
            let memory = self.context.memory();
            DeviceReading {
                room_bytes: memory.map(|memory| memory.room_bytes(weight_bytes)),
                weight_bytes,
                is_main_memory: self.context.shares_memory(),
            }
        }

        /// The same for the weights that `moving` has there.
        pub(crate) fn reading_of(&self, moving: &Moving<'_>) -> DeviceReading {
            self.reading(moving.packed().device_bytes().unwrap_or(0))
        }

        /// The device and kernels on it.
        pub(crate) fn context(&self) -> &Context {
            &self.context
        }

        /// The matrices of `model` under `plan`.
        pub(crate) fn weights<'m>(&self, model: &'m Model, plan: Plan) -> GpuModel<'m> {
            GpuModel::new(model, plan, Arc::clone(&self.context)).with_budget(self.budget_bytes)
        }

        /// The matrices of what `resident` holds.
        pub(crate) fn moving<'m>(&self, resident: Resident<'m>) -> Moving<'m> {
            Moving::with(resident, |model, plan| Box::new(self.weights(model, plan)))
        }
    }
}

/// There is none in a build without the feature.
#[cfg(not(feature = "gpu"))]
pub(crate) enum Gpu {}

#[cfg(not(feature = "gpu"))]
impl Gpu {
    fn open() -> anyhow::Result<Self> {
        anyhow::bail!("--device gpu: this cmf was built without feature `gpu` of cmf-cli")
    }
}

#[cfg(all(not(feature = "gpu"), feature = "models"))]
impl Gpu {
    fn with_budget(self, _: Option<&str>) -> anyhow::Result<Self> {
        match self {}
    }

    pub(crate) fn budget(&self) -> (cmf_loader::resident::pressure::DeviceBudget, u64) {
        match *self {}
    }

    pub(crate) fn bytes(&self, _: &str, _: u64) -> anyhow::Result<u64> {
        match *self {}
    }

    pub(crate) fn reading_of(
        &self,
        _: &cmf_candle::moving::Moving<'_>,
    ) -> cmf_loader::resident::pressure::DeviceReading {
        match *self {}
    }

    pub(crate) fn weights<'m>(
        &self,
        _: &'m cmf_loader::Model,
        _: cmf_loader::Plan,
    ) -> cmf_candle::packed::PackedModel<'m> {
        match *self {}
    }

    pub(crate) fn moving<'m>(&self, _: cmf_loader::resident::Resident<'m>) -> cmf_candle::moving::Moving<'m> {
        match *self {}
    }
}

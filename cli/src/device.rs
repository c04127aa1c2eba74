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
    /// With --device gpu: bytes of weights that may be there; the CPU multiplies with the rest, from main memory
    /// [default: all that --budget has]
    #[arg(long, value_name = "SIZE")]
    device_budget: Option<String>,
}

#[cfg(feature = "models")]
impl DeviceArgs {
    /// The GPU, if that is the device.
    pub(crate) fn gpu(&self) -> anyhow::Result<Option<Gpu>> {
        let budget = self.device_budget.as_deref().map(crate::size::parse).transpose();
        let budget = budget.map_err(|e| anyhow::anyhow!("--device-budget: {e}"))?;
        if budget.is_some() && self.device != Device::Gpu {
            anyhow::bail!("--device-budget is for --device gpu");
        }
        let gpu = self.device.gpu()?;
        Ok(gpu.map(|gpu| gpu.with_budget(budget)))
    }
}

#[cfg(feature = "gpu")]
pub(crate) use present::Gpu;

#[cfg(feature = "gpu")]
mod present {
    use cmf_candle::gpu::{Context, GpuModel};
    use cmf_candle::moving::Moving;
    use cmf_loader::resident::Resident;
    use cmf_loader::{Model, Plan};
    use std::sync::Arc;

    /// A device that is open.
    pub(crate) struct Gpu {
        context: Arc<Context>,
        budget_bytes: u64,
    }

    impl Gpu {
        pub(super) fn open() -> anyhow::Result<Self> {
            Ok(Self { context: Arc::new(Context::new()?), budget_bytes: u64::MAX })
        }

        /// The same with at most so many bytes of weights of a model.
        pub(super) fn with_budget(self, budget_bytes: Option<u64>) -> Self {
            Self { budget_bytes: budget_bytes.unwrap_or(u64::MAX), ..self }
        }

        /// The device and kernels on it.
        pub(crate) fn context(&self) -> &Context {
            &self.context
        }

        /// Bytes of main memory that `weights` take on the device.
        pub(crate) fn owned_bytes(&self, moving: &Moving<'_>) -> u64 {
            let bytes = moving.packed().device_bytes().filter(|_| self.context.shares_memory());
            bytes.unwrap_or(0)
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
    fn with_budget(self, _: Option<u64>) -> Self {
        self
    }

    pub(crate) fn weights<'m>(
        &self,
        _: &'m cmf_loader::Model,
        _: cmf_loader::Plan,
    ) -> cmf_candle::packed::PackedModel<'m> {
        match *self {}
    }

    pub(crate) fn owned_bytes(&self, _: &cmf_candle::moving::Moving<'_>) -> u64 {
        match *self {}
    }

    pub(crate) fn moving<'m>(&self, _: cmf_loader::resident::Resident<'m>) -> cmf_candle::moving::Moving<'m> {
        match *self {}
    }
}

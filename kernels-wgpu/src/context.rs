//! A device of one's own, for programs that have none.

use crate::device::{ready, scoped};
use crate::error::{Error, Result};
use crate::kernels::{Kernels, own_memory};
use crate::memory::DeviceMemory;
use std::sync::{Arc, OnceLock};

/// A device, its queue, and kernels on it.
#[derive(Debug)]
pub struct Context {
    device: wgpu::Device,
    queue: wgpu::Queue,
    kernels: Kernels,
    lost: Arc<OnceLock<String>>,
}

/// The features of `adapter` that make something faster.
fn faster(adapter: &wgpu::Adapter) -> wgpu::Features {
    let mut wanted = wgpu::Features::SUBGROUP;
    if own_memory(&adapter.get_info()) {
        wanted |= wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
    }
    // Threads of a processor read one by one, the more at a time the better.
    if adapter.get_info().device_type == wgpu::DeviceType::Cpu {
        wanted |= wgpu::Features::SHADER_INT64;
    }
    wanted & adapter.features()
}

impl Context {
    /// Opens the adapter that wgpu prefers, with WebGPU's default limits, which are enough for these kernels
    /// on any adapter, and of its features those that make them or uploads faster.
    ///
    /// # Errors
    /// `Device` when there is no adapter, or none that gives a device.
    pub fn new() -> Result<Self> {
        Self::with_adapter(&Self::adapter()?)
    }

    /// The adapter that wgpu prefers.
    ///
    /// # Errors
    /// `Device` when there is none.
    pub fn adapter() -> Result<wgpu::Adapter> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = ready(instance.request_adapter(&wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        }))?;
        adapter.map_err(|e| Error::device(format!("no adapter: {e}")))
    }

    /// Opens `adapter` as [`Context::new`] does.
    ///
    /// # Errors
    /// `Device` when the adapter gives no device.
    pub fn with_adapter(adapter: &wgpu::Adapter) -> Result<Self> {
        Self::with_features(adapter, faster(adapter))
    }

    /// Opens `adapter` with these of its features.
    ///
    /// # Errors
    /// As [`Context::with_adapter`], and `Device` for a feature that the adapter lacks.
    pub fn with_features(adapter: &wgpu::Adapter, required_features: wgpu::Features) -> Result<Self> {
        Self::with_limits(adapter, required_features, wgpu::Limits::default())
    }

    /// Opens `adapter` with these of its features and these limits: larger bindings than WebGPU's defaults
    /// hold larger terms in one piece, smaller ones cut them into more.
    ///
    /// # Errors
    /// As [`Context::with_features`], and `Device` for a limit that is better than the adapter's.
    pub fn with_limits(
        adapter: &wgpu::Adapter,
        required_features: wgpu::Features,
        required_limits: wgpu::Limits,
    ) -> Result<Self> {
        let opened = ready(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("cmf"),
            required_features,
            required_limits,
            // Blocks of memory are no larger than what they are for, or than a few units: some drivers write zeros
            // into all of a block, and a budget counts what is left of it.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        }))?;
        let (device, queue) = opened.map_err(Error::device)?;
        let lost = Arc::new(OnceLock::new());
        let tell = Arc::clone(&lost);
        device.set_device_lost_callback(move |reason, message| {
            let _ = tell.set(format!("{reason:?}: {message}"));
        });
        Ok(Self { kernels: Kernels::new(&device)?, device, queue, lost })
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// Its queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// Whether the device's memory is that of the processor.
    pub fn shares_memory(&self) -> bool {
        own_memory(&self.device.adapter_info())
    }

    /// How much memory the device has, and has left; `None` where its driver does not say.
    pub fn memory(&self) -> Option<DeviceMemory> {
        DeviceMemory::of(&self.device)
    }

    /// Kernels on it.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Records into a compute pass and submits it.
    ///
    /// # Errors
    /// `Device` for a lost device or what it finds invalid, and what `record` gives.
    pub fn submit<T>(&self, record: impl FnOnce(&mut wgpu::ComputePass<'_>) -> Result<T>) -> Result<T> {
        self.check()?;
        scoped(&self.device, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let recorded = {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                record(&mut pass)?
            };
            self.queue.submit([encoder.finish()]);
            Ok(recorded)
        })?
    }

    /// A buffer of `values` that kernels read.
    ///
    /// # Errors
    /// `Device` for a lost device and one without the memory.
    pub fn upload(&self, values: &[f32]) -> Result<wgpu::Buffer> {
        let buffer = self.buffer(values.len())?;
        self.write(&buffer, values)?;
        Ok(buffer)
    }

    /// A buffer of `elements` f32 that kernels read and write.
    ///
    /// # Errors
    /// As [`Context::upload`].
    pub fn buffer(&self, elements: usize) -> Result<wgpu::Buffer> {
        self.check()?;
        self.kernels.storage(elements as u64 * 4, wgpu::BufferUsages::COPY_SRC)
    }

    /// Writes `values` to the start of a buffer, ahead of what is submitted next.
    ///
    /// # Errors
    /// `Argument` when the buffer is too small, `Device` for a lost device.
    pub fn write(&self, buffer: &wgpu::Buffer, values: &[f32]) -> Result<()> {
        self.check()?;
        if buffer.size() < values.len() as u64 * 4 {
            return Err(Error::argument(format!("{} values for {} bytes", values.len(), buffer.size())));
        }
        scoped(&self.device, || self.queue.write_buffer(buffer, 0, bytemuck::cast_slice(values)))
    }

    /// The first `elements` f32 of a buffer, once all that was submitted is done.
    ///
    /// # Errors
    /// `Device` for a lost device.
    pub fn download(&self, buffer: &wgpu::Buffer, elements: usize) -> Result<Vec<f32>> {
        self.check()?;
        let bytes = (elements as u64 * 4).min(buffer.size());
        if bytes == 0 {
            return Ok(Vec::new());
        }
        scoped(&self.device, || {
            let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("cmf download"),
                size: bytes,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
            self.queue.submit([encoder.finish()]);
            staging.slice(..).map_async(wgpu::MapMode::Read, |_| ());
            self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(Error::device)?;
            let mapped = staging.slice(..).get_mapped_range().map_err(Error::device)?;
            Ok(bytemuck::pod_collect_to_vec(&mapped))
        })?
    }

    /// Waits until all that was submitted is done.
    ///
    /// # Errors
    /// `Device` for a lost device.
    pub fn wait(&self) -> Result<()> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(Error::device)?;
        self.check()
    }

    fn check(&self) -> Result<()> {
        match self.lost.get() {
            None => Ok(()),
            Some(reason) => Err(Error::device(format!("the device is lost: {reason}"))),
        }
    }
}

//! Pipelines of a device, compiled when they are first used, and how they are dispatched.

use crate::device::scoped;
use crate::error::{Error, Result};
use crate::mapped;
use crate::packed::{Numbers, Reader};
use crate::template::compose;
use crate::windows::{HASHED_THREADS, Tables, Together};
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most workgroups along a dimension.
pub(crate) const GROUPS_MAX: u32 = 65535;

/// How kernels are laid out on an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Threads that share the columns of a row in a multiplication: 1, or 2 to 64. A processor that
    /// runs shaders wants 1, a GPU as many as it has lanes.
    pub lanes: u32,
    /// Threads of a workgroup of those that share nothing.
    pub width: u32,
}

impl Tuning {
    /// What suits an adapter of this kind.
    pub fn for_adapter(info: &wgpu::AdapterInfo) -> Self {
        match info.device_type {
            wgpu::DeviceType::Cpu => Self { lanes: 1, width: 16 },
            _ => Self { lanes: 64, width: 64 },
        }
    }
}

/// Whether an adapter's memory is that of the processor.
pub(crate) fn own_memory(info: &wgpu::AdapterInfo) -> bool {
    matches!(info.device_type, wgpu::DeviceType::Cpu | wgpu::DeviceType::IntegratedGpu)
}

/// A permutation of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Permutation {
    pub(crate) kernel: &'static str,
    pub(crate) numbers: Numbers,
}

impl Permutation {
    /// The number called `name`, 0 if there is none.
    pub(crate) fn number(&self, name: &str) -> i64 {
        self.numbers.iter().find(|(n, _)| *n == name).map_or(0, |(_, value)| *value)
    }

    /// Changes the number called `name`.
    pub(crate) fn set(&mut self, name: &str, value: i64) {
        self.numbers.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, place)| *place = value);
    }

    /// The bindings from number 1 on.
    fn bindings(&self) -> Vec<wgpu::BufferBindingType> {
        const READ: wgpu::BufferBindingType = wgpu::BufferBindingType::Storage { read_only: true };
        const WRITTEN: wgpu::BufferBindingType = wgpu::BufferBindingType::Storage { read_only: false };
        match self.kernel {
            "transform" => vec![READ, WRITTEN, READ, READ, READ],
            "layout" | "hadamard" => vec![READ, WRITTEN, READ, READ],
            "butterfly" | "fill" => vec![WRITTEN],
            "outer" => vec![READ, READ, WRITTEN, READ],
            _ => {
                let terms = usize::try_from(self.number("TERMS")).unwrap_or(0);
                let tables = if matches!(self.number("LUT"), 1 | 3 | 4) { terms } else { 0 };
                let x = if self.number("X_VECTORS") > 0 { wgpu::BufferBindingType::Uniform } else { READ };
                let mut all = vec![x, WRITTEN];
                all.resize(2 + 2 * terms, READ);
                all.resize(2 + 2 * terms + tables, wgpu::BufferBindingType::Uniform);
                all
            }
        }
    }

    /// The WGSL.
    pub(crate) fn source(&self) -> Result<String> {
        compose(self.kernel, &self.numbers)
    }
}

/// Part of a buffer that a kernel sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound<'b> {
    pub(crate) buffer: &'b wgpu::Buffer,
    /// A multiple of the device's alignment.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl<'b> Bound<'b> {
    pub(crate) fn all(buffer: &'b wgpu::Buffer) -> Self {
        Self { buffer, offset: 0, bytes: buffer.size() }
    }
}

/// What the pipelines that multiply with a node depend on beside its shape, and for which tiles of activations
/// they are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) tiles: u32,
    pub(crate) is_hashed: bool,
    /// Weights of a path, and of the axis that it is along.
    pub(crate) path: (u32, u32),
    pub(crate) reader: Reader,
    pub(crate) numbers: Numbers,
}

#[derive(Debug)]
pub(crate) struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// The kernels on a device. Each pipeline is compiled at its first use and kept.
#[derive(Debug)]
pub struct Kernels {
    device: wgpu::Device,
    limits: wgpu::Limits,
    tuning: Tuning,
    maps: bool,
    subgroups: Option<(u32, u32)>,
    pipelines: Mutex<HashMap<Permutation, Arc<Pipeline>>>,
    /// By rows and columns, what pipelines have been compiled ahead for.
    ahead: Mutex<HashMap<(u32, u32), Vec<Ahead>>>,
    /// Two bits for each size of the tiles of activations that there were, a power of two: alone, several.
    tiles: AtomicU32,
    tables: Tables,
    /// Bound where a kernel reads nothing.
    nothing: wgpu::Buffer,
}

impl Kernels {
    /// Kernels on `device`, tuned for its adapter. Nothing is compiled yet.
    ///
    /// # Errors
    /// `Device` when the device is lost.
    pub fn new(device: &wgpu::Device) -> Result<Self> {
        Self::with_tuning(device, Tuning::for_adapter(&device.adapter_info()))
    }

    /// Kernels on `device` with a stated layout.
    ///
    /// # Errors
    /// `Argument` for more than 64 lanes or 256 threads, or none; `Device` when the device is lost.
    pub fn with_tuning(device: &wgpu::Device, tuning: Tuning) -> Result<Self> {
        if !(1..=64).contains(&tuning.lanes) || !(1..=256).contains(&tuning.width) {
            return Err(Error::argument(format!("{tuning:?}")));
        }
        let nothing = scoped(device, || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("cmf nothing"),
                size: 256,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        })?;
        let info = device.adapter_info();
        // A browser wants another text for them.
        let subgroups = device.features().contains(wgpu::Features::SUBGROUP)
            && info.backend != wgpu::Backend::BrowserWebGpu;
        Ok(Self {
            subgroups: subgroups.then_some((info.subgroup_min_size.max(1), info.subgroup_max_size)),
            limits: device.limits(),
            device: device.clone(),
            tuning,
            maps: device.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS) && own_memory(&info),
            pipelines: Mutex::default(),
            ahead: Mutex::default(),
            tiles: AtomicU32::new(0),
            tables: Tables::default(),
            nothing,
        })
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// How kernels are laid out.
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Pipelines that are compiled.
    pub fn compiled(&self) -> usize {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Bytes of tables on the device that units share, beside those that each has.
    pub fn shared_bytes(&self) -> u64 {
        self.tables.bytes()
    }

    /// A table of several rows at once, of `values`, f32 values as bytes.
    pub(crate) fn windows(&self, together: Together, values: &[u8]) -> Result<Arc<wgpu::Buffer>> {
        self.tables.get(Some(together), values, || {
            let table = together.table(&bytemuck::pod_collect_to_vec(values));
            self.uniform(&table)
        })
    }

    /// What threads of a subgroup have of a hashed table.
    pub(crate) fn hashed(&self, table: &[u8]) -> Result<Arc<wgpu::Buffer>> {
        self.tables.get(None, table, || self.uniform(table))
    }

    /// Threads of a subgroup at least and at most, where kernels may use them.
    pub(crate) fn subgroups(&self) -> Option<(u32, u32)> {
        self.subgroups
    }

    /// Whether kernels may use integers of 64 bits.
    pub(crate) fn has_words_of_64_bits(&self) -> bool {
        self.device.features().contains(wgpu::Features::SHADER_INT64)
    }

    /// Threads of every subgroup, where threads share no columns and subgroups are all of one size.
    pub(crate) fn subgroup_size(&self) -> Option<u32> {
        let (least, most) = self.subgroups.filter(|_| self.tuning.lanes == 1)?;
        (least == most && (2..=64).contains(&most) && most.is_power_of_two()).then_some(most)
    }

    /// Threads of a workgroup whose subgroups have hashed tables, where threads share nothing else.
    pub(crate) fn subgroup_width(&self) -> Option<u32> {
        let (least, most) = self.subgroups.filter(|_| self.tuning.lanes == 1)?;
        (least as usize >= HASHED_THREADS && most <= 64).then_some(most)
    }

    /// A uniform buffer with `bytes`.
    fn uniform(&self, bytes: &[u8]) -> Result<wgpu::Buffer> {
        scoped(&self.device, || {
            let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("cmf params"),
                size: (bytes.len() as u64).next_multiple_of(16),
                usage: wgpu::BufferUsages::UNIFORM,
                mapped_at_creation: true,
            });
            let mapped = buffer.slice(..).get_mapped_range_mut();
            mapped.map_err(Error::device)?.slice(..bytes.len()).copy_from_slice(bytes);
            buffer.unmap();
            Ok(buffer)
        })?
    }

    pub(crate) fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    pub(crate) fn nothing(&self) -> Bound<'_> {
        Bound::all(&self.nothing)
    }

    /// Whether buffers may be mapped whatever they are for, and lie in the processor's own memory.
    pub(crate) fn maps(&self) -> bool {
        self.maps
    }

    /// A storage buffer, zeroed.
    pub(crate) fn storage(&self, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let descriptor = self.storage_descriptor(bytes, usage)?;
        scoped(&self.device, || self.device.create_buffer(&descriptor))
    }

    /// A storage buffer with `parts`, each where it says, in ascending order, and zeros between them, on a device
    /// that [`Kernels::maps`] buffers.
    pub(crate) fn storage_of(
        &self,
        bytes: u64,
        usage: wgpu::BufferUsages,
        parts: &[(u64, &[u8])],
    ) -> Result<wgpu::Buffer> {
        let descriptor = self.storage_descriptor(bytes, usage | wgpu::BufferUsages::MAP_WRITE)?;
        if let Some(buffer) = mapped::filled(&self.device, &descriptor, parts)? {
            return Ok(buffer);
        }
        let descriptor = wgpu::BufferDescriptor { mapped_at_creation: true, ..descriptor };
        scoped(&self.device, || {
            let buffer = self.device.create_buffer(&descriptor);
            let mut mapped = buffer.slice(..).get_mapped_range_mut().map_err(Error::device)?;
            for (offset, part) in parts {
                let range =
                    usize::try_from(*offset).ok().and_then(|at| Some(at..at.checked_add(part.len())?));
                let range = range.filter(|range| range.end as u64 <= buffer.size());
                mapped.slice(range.ok_or_else(|| Error::argument("a part"))?).copy_from_slice(part);
            }
            drop(mapped);
            buffer.unmap();
            Ok(buffer)
        })?
    }

    fn storage_descriptor(
        &self,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::BufferDescriptor<'static>> {
        let size = bytes.max(4).next_multiple_of(4);
        if size > self.limits.max_buffer_size {
            return Err(Error::limit(format!("a buffer of {size} bytes")));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | usage;
        Ok(wgpu::BufferDescriptor { label: Some("cmf"), size, usage, mapped_at_creation: false })
    }

    /// The part of `buffer` from element `at` on, `elements` long, and where in it the first is.
    pub(crate) fn bind<'b>(
        &self,
        buffer: &'b wgpu::Buffer,
        offset_bytes: u64,
        elements: u64,
    ) -> Result<(Bound<'b>, u32)> {
        let alignment = u64::from(self.limits.min_storage_buffer_offset_alignment.max(4));
        if !offset_bytes.is_multiple_of(4) {
            return Err(Error::argument(format!("offset {offset_bytes} is no multiple of 4")));
        }
        let start = offset_bytes / alignment * alignment;
        let end = elements.checked_mul(4).and_then(|n| n.checked_add(offset_bytes));
        match end {
            Some(end) if end <= buffer.size() && elements > 0 => {
                let bound = Bound { buffer, offset: start, bytes: end - start };
                Ok((bound, ((offset_bytes - start) / 4) as u32))
            }
            _ => Err(Error::argument(format!(
                "{elements} values from byte {offset_bytes} of a buffer of {}",
                buffer.size()
            ))),
        }
    }

    /// The pipeline of a permutation. Others can be looked up while it is compiled.
    pub(crate) fn pipeline(&self, permutation: Permutation) -> Result<Arc<Pipeline>> {
        let pipelines = || self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = pipelines().get(&permutation) {
            return Ok(Arc::clone(found));
        }
        let source = permutation.source()?;
        let compiled = Arc::new(scoped(&self.device, || self.compile(&permutation, source))?);
        Ok(Arc::clone(pipelines().entry(permutation).or_insert(compiled)))
    }

    /// Notes that there were products with a tile of `m` activations, or with several.
    pub(crate) fn multiplied_with(&self, m: u32, several: bool) {
        let bit = 2 * m.ilog2() + u32::from(several);
        self.tiles.fetch_or(1 << bit, Ordering::Relaxed);
    }

    /// The tiles of activations that there were, as one number.
    pub(crate) fn tiles_seen(&self) -> u32 {
        self.tiles.load(Ordering::Relaxed)
    }

    /// The tiles that [`Kernels::tiles_seen`] has, each with whether there were several.
    pub(crate) fn tiles_of(seen: u32) -> impl Iterator<Item = (u32, bool)> {
        (0..u32::BITS).filter(move |bit| seen >> bit & 1 == 1).map(|bit| (1 << (bit / 2), bit % 2 == 1))
    }

    /// Whether pipelines have been compiled for nodes like this one, of which there are `rows` and `cols`.
    pub(crate) fn is_ahead(&self, shape: (u32, u32), node: &Ahead) -> bool {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.get(&shape).is_some_and(|nodes| nodes.contains(node))
    }

    /// Notes that they have been.
    pub(crate) fn compiled_ahead(&self, shape: (u32, u32), node: Ahead) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.entry(shape).or_default().push(node);
    }

    fn compile(&self, permutation: &Permutation, source: String) -> Pipeline {
        let entry = |binding: usize, ty| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
        entries.extend(permutation.bindings().into_iter().enumerate().map(|(i, ty)| entry(i + 1, ty)));
        let label = Some(permutation.kernel);
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: &[Some(&layout)],
                ..Default::default()
            })),
            module: &module,
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        });
        Pipeline { pipeline, layout }
    }

    /// Records a dispatch. `bindings` are those from binding 1 on.
    pub(crate) fn dispatch(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        permutation: Permutation,
        params: &[u8],
        bindings: &[Bound<'_>],
        groups: [u32; 3],
    ) -> Result<()> {
        if groups.iter().any(|n| *n > self.limits.max_compute_workgroups_per_dimension) {
            return Err(Error::limit(format!("{groups:?} workgroups")));
        }
        if let Some(large) = bindings.iter().find(|b| b.bytes > self.limits.max_storage_buffer_binding_size) {
            return Err(Error::limit(format!("a binding of {} bytes", large.bytes)));
        }
        let pipeline = self.pipeline(permutation)?;
        let uniform = self.uniform(params)?;
        scoped(&self.device, || {
            let mut entries =
                vec![wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() }];
            entries.extend(bindings.iter().enumerate().map(|(i, bound)| wgpu::BindGroupEntry {
                binding: i as u32 + 1,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: bound.buffer,
                    offset: bound.offset,
                    size: core::num::NonZeroU64::new(bound.bytes),
                }),
            }));
            let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.layout,
                entries: &entries,
            });
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        })
    }
}

use crate::error::{Error, Result};
use burn::cubecl::wgpu::{AutoCompiler, WgpuServer};
use burn::module::Module;
use burn::tensor::wgpu::{WgpuSetup, wgpu};
use burn::tensor::{DType, Shape, Tensor};
use burn_wgpu::{CubeTensor, Wgpu, into_contiguous};
use cmf_format::archive::MatrixView;
use cmf_kernels_wgpu::{Activations, GpuMatrix, Kernels, Rows, Uploader, Workspace};
use core::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

/// Kernels on burn's device, and what they work in.
#[derive(Debug)]
pub struct Shared {
    device: wgpu::Device,
    queue: wgpu::Queue,
    kernels: Kernels,
    scratch: Mutex<(Workspace, Activations)>,
}

impl Shared {
    /// Kernels on the device of `setup`, which burn gave with its own device.
    ///
    /// # Errors
    /// `Kernels` when the device is lost.
    pub fn new(setup: &WgpuSetup) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            device: setup.device.clone(),
            queue: setup.queue.clone(),
            kernels: Kernels::new(&setup.device)?,
            scratch: Mutex::default(),
        }))
    }
}

/// y = x Wᵀ with a packed W. A burn module without parameters: nothing of it is trained or recorded.
#[derive(Module, Debug)]
pub struct PackedLinear {
    #[module(skip)]
    shared: Arc<Shared>,
    #[module(skip)]
    matrix: Arc<GpuMatrix>,
}

impl PackedLinear {
    /// Uploads what `view` has opened.
    ///
    /// # Errors
    /// `Kernels`.
    pub fn new(shared: &Arc<Shared>, view: &MatrixView<'_>) -> Result<Self> {
        let mut uploader = Uploader::new(&shared.device, &shared.queue);
        let matrix = GpuMatrix::from_view(&shared.kernels, &mut uploader, view)?;
        uploader.finish()?;
        Ok(Self { shared: Arc::clone(shared), matrix: Arc::new(matrix) })
    }

    /// Bytes of the matrix on the device.
    pub fn bytes(&self) -> u64 {
        self.matrix.bytes()
    }

    /// Multiplies the last dimension of `x`, which has the matrix's columns, to its rows.
    ///
    /// # Errors
    /// `Input` for another last dimension or other elements than f32, `Burn` for a tensor of another
    /// backend, `Kernels`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Result<Tensor<D>> {
        let x: CubeTensor = x.try_into_primitive::<Wgpu>().map_err(|e| Error::Burn(format!("{e:?}")))?;
        let x = into_contiguous(x);
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let mut extents = x.meta.shape().to_vec();
        if x.dtype != DType::F32 || extents.last() != Some(&(cols as usize)) {
            return Err(Error::Input(format!(
                "expected f32 of {cols} columns, found {:?} of {extents:?}",
                x.dtype
            )));
        }
        if let Some(last) = extents.last_mut() {
            *last = rows as usize;
        }
        let elements: usize = extents.iter().product();
        let batch = u32::try_from(elements / rows as usize)
            .map_err(|_| Error::Input(format!("{extents:?} products")))?;
        let client = x.client.clone();
        let y = client.empty(elements * 4);
        if batch > 0 {
            let buffer = |handle: &burn::cubecl::server::Handle| {
                client
                    .get_resource::<WgpuServer<AutoCompiler>>(handle.clone())
                    .map_err(|e| Error::Burn(format!("{e:?}")))
            };
            // Both stay where they are for as long as these live.
            let (from, to) = (buffer(&x.handle)?, buffer(&y)?);
            // What makes `x` is submitted before.
            client.flush().map_err(|e| Error::Burn(format!("{e:?}")))?;
            let (from, to) = (from.resource(), to.resource());
            let input = Rows { buffer: &from.buffer, offset_bytes: from.offset, stride: cols };
            let output = Rows { buffer: &to.buffer, offset_bytes: to.offset, stride: rows };
            self.submit(batch, input, output)?;
        }
        let y = CubeTensor::new_contiguous(client, x.device, Shape::from(extents), y, DType::F32);
        Ok(Tensor::from_primitive::<Wgpu>(y))
    }

    /// Records the product and submits it, ahead of what burn submits next.
    fn submit(&self, batch: u32, input: Rows<'_>, output: Rows<'_>) -> Result<()> {
        let Shared { device, queue, kernels, scratch } = self.shared.as_ref();
        // Held until it is submitted: the next product overwrites the same activations.
        let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let (workspace, activations) = &mut *scratch;
        let mut encoder = device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            kernels.activate(&mut pass, workspace, self.matrix.input(), input, batch, activations)?;
            kernels.multiply(&mut pass, workspace, &self.matrix, activations, output)?;
        }
        queue.submit([encoder.finish()]);
        Ok(())
    }
}

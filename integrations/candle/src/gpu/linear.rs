//! Products with matrices on the device.

use super::{Context, GpuModel, Group, State, lock};
use crate::error::{Error, Result};
use crate::weights::Linear;
use candle_core::{Device, Tensor};
use cmf_kernels_wgpu::{Activations, GpuMatrix, Rows, wgpu};
use std::sync::Arc;

/// Most values that go to the device or come from it at once, where that is at least a token's: half of
/// what WebGPU's bindings hold at least.
const BUFFER_VALUES: usize = 16 << 20;

/// Matrices on the device that read the same input.
pub(super) struct GpuLinear<'w, 'm> {
    pub(super) model: &'w GpuModel<'m>,
    pub(super) group: Arc<Group<'m>>,
    /// For each matrix, the first whose input-side transforms are the same.
    pub(super) inputs: Vec<usize>,
}

impl Linear for GpuLinear<'_, '_> {
    fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let (tokens, cols) = x.dims2()?;
        let slots = &self.group.slots;
        if slots.iter().any(|slot| slot.cols != cols) {
            return Err(Error::argument(format!("{cols} inputs of other matrices")));
        }
        if let Some(places) = self.group.on_host() {
            return self.model.host.multiply(&places, x, cols);
        }
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let outputs: usize = slots.iter().map(|slot| slot.rows).sum();
        let at_once = (BUFFER_VALUES / outputs.max(cols).max(1)).max(1);
        let mut state = lock(&self.model.state);
        // It may have left the device since.
        if let Some(places) = self.group.on_host() {
            drop(state);
            return self.model.host.multiply(&places, x, cols);
        }
        let mut products = vec![Vec::new(); slots.len()];
        for values in values.chunks(at_once.saturating_mul(cols).max(1)) {
            self.multiply(&mut state, values, &mut products)?;
        }
        let tensors = slots
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
        let slots = &self.group.slots;
        let held: Vec<_> = slots.iter().map(|slot| slot.read()).collect();
        let matrices: Option<Vec<&GpuMatrix>> = held.iter().map(|gpu| gpu.as_ref()).collect();
        let matrices = matrices.ok_or_else(|| Error::argument("a matrix that is not on the device"))?;
        let cols = matrices.first().map_or(1, |matrix| matrix.cols());
        let tokens = values.len() / cols as usize;
        let batch = u32::try_from(tokens).map_err(|_| Error::argument("too many tokens"))?;
        let outputs: usize = slots.iter().map(|slot| slot.rows).sum();
        activations.resize_with(activations.len().max(matrices.len()), Activations::default);
        let x = room(context, input, values.len())?;
        let y = room(context, output, outputs.saturating_mul(tokens))?;
        context.write(&x, values)?;
        context.submit(|pass| {
            let kernels = context.kernels();
            for (place, (matrix, activations)) in matrices.iter().zip(&mut *activations).enumerate() {
                if self.inputs.get(place) == Some(&place) {
                    let rows = Rows::of(&x, cols);
                    kernels.activate(pass, workspace, matrix.input(), rows, batch, activations)?;
                }
            }
            let mut offset_bytes = 0;
            for (matrix, place) in matrices.iter().zip(&self.inputs) {
                let Some(activations) = activations.get(*place) else { continue };
                let stride = matrix.rows();
                let rows = Rows { buffer: &y, offset_bytes, stride };
                kernels.multiply(pass, workspace, matrix, activations, rows)?;
                offset_bytes += u64::from(stride) * u64::from(batch) * 4;
            }
            Ok(())
        })?;
        let all = context.download(&y, outputs * tokens)?;
        let mut rest = all.as_slice();
        for (slot, products) in slots.iter().zip(products) {
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

//! Any model of candle-transformers from a `.cmf`: dense tensors for a `VarBuilder`.

use crate::cut::CutModel;
use crate::error::Result;
use crate::weights::DenseValues;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use cmf_loader::{Model, Plan};

/// Tensors of a `.cmf` by name, decoded when they are asked for.
struct Backend<'m>(CutModel<'m>);

/// A `VarBuilder` over the tensors of `model` under `plan`; at their best without one.
///
/// # Errors
/// As [`CutModel::new`].
pub fn var_builder<'m>(
    model: &'m Model,
    plan: Option<Plan>,
    dtype: DType,
    device: &Device,
) -> Result<VarBuilder<'m>> {
    let backend: Box<dyn SimpleBackend + 'm> = Box::new(Backend(CutModel::new(model, plan)?));
    Ok(VarBuilder::from_backend(backend, dtype, device.clone()))
}

impl SimpleBackend for Backend<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor =
            crate::weights::dense_tensor(&self.0, name, shape.dims()).map_err(candle_core::Error::wrap)?;
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let shape: Vec<_> = self.0.shape(name).unwrap_or_default().iter().map(|n| *n as usize).collect();
        self.get(shape.into(), name, Init::Const(0.0), dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.shape(name).is_some()
    }
}

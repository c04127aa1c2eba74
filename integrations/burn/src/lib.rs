//! Compressed linears of CMF inside burn models, on burn's own wgpu device.
//!
//! [`PackedLinear`] is a burn module whose matrix stays packed. It reads its input where burn has it and
//! writes its output where burn reads it: the same buffers, on the same queue, without a round trip
//! through the CPU and without a copy. `cargo run --example linear` shows one between two of burn's own
//! layers.
//!
//! ```no_run
//! use burn::tensor::{Device, Tensor};
//! use cmf_burn::{PackedLinear, Shared};
//! use cmf_format::archive::MatrixView;
//!
//! # fn load(view: &MatrixView<'_>) -> Result<(), Box<dyn std::error::Error>> {
//! let (device, setup) = Device::wgpu_options().init_with_setup()?;
//! let shared = Shared::new(&setup)?;
//! let linear = PackedLinear::new(&shared, view)?;
//! let y = linear.forward(Tensor::<2>::ones([8, view.cols()], &device))?;
//! # let _ = y;
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! f32, inference, and burn without its feature `fusion`, which keeps tensors that have no buffer yet.

mod error;
mod linear;

pub use error::{Error, Result};
pub use linear::{PackedLinear, Shared};

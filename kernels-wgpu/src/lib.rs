//! WGPU kernels of CMF: packed segments are put on a GPU as they are and multiplied with.
//!
//! [`Kernels`] works on the caller's `wgpu::Device`, records into the caller's compute pass and reads
//! and writes the caller's buffers at any offset; it makes no device and submits nothing. Programs that
//! have no device open a [`Context`].
//!
//! # Multiply
//!
//! ```
//! use cmf_format::encoding::dense;
//! use cmf_format::DType;
//! use cmf_kernels_wgpu::{Activations, Context, GpuMatrix, Rows, Uploader, Workspace};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Any wgpu device, queue and pass will do; a context has one of each.
//! let context = match Context::new() {
//!     Ok(context) => context,
//!     Err(error) => return Ok(eprintln!("SKIPPED: {error}")),
//! };
//! let (kernels, mut uploader) = (context.kernels(), Uploader::new(context.device(), context.queue()));
//!
//! // A unit is uploaded as its bytes are.
//! let node = dense::pack_values(DType::F16, 2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! let view = node.view()?;
//! let mut matrix = GpuMatrix::new(kernels, &mut uploader, 2, 3, &[], &[])?;
//! matrix.insert(kernels, &mut uploader, 0, std::iter::once((0, 0, &view)))?;
//! uploader.finish()?;
//!
//! // y = x Wᵀ.
//! let (x, y) = (context.upload(&[1.0, 0.0, 2.0])?, context.buffer(2)?);
//! let (mut workspace, mut activations) = (Workspace::default(), Activations::default());
//! context.submit(|pass| {
//!     let x = Rows::of(&x, 3);
//!     kernels.activate(pass, &mut workspace, matrix.input(), x, 1, &mut activations)?;
//!     kernels.multiply(pass, &mut workspace, &matrix, &activations, Rows::of(&y, 2))
//! })?;
//! assert_eq!(context.download(&y, 2)?, [7.0, 16.0]);
//! # Ok(())
//! # }
//! ```
//!
//! Activations are transformed and laid out once for all matrices that read them. A matrix is a sum of
//! units, which come and go with [`GpuMatrix::insert`] and [`GpuMatrix::remove`]; terms of the same
//! encoding that cover the same rows share a dispatch, three at a time, with a mask of those that are
//! there, so that a change of budget compiles nothing.
//!
//! # Kernels
//!
//! `wgsl/` holds one file for each kernel and encoding, composed by line into permutations ([`wgsl`]
//! shows the text, which any WebGPU takes). `multiply` and `decode` know an encoding by three macros:
//! what it needs once for a row, for a step of some columns, and for four columns.
//!
//! | encoding | decode, gather | multiply | on the device beside the packed bytes |
//! |---|---|---|---|
//! | `dense` | yes | yes | f32, f16, bf16 as they are; other types as the smallest of these that is exact |
//! | `grouped` | yes | yes | scales and zero points in 16 bits where that is exact, else f32 |
//! | `trellis` | yes | yes | the table in f32; of signed bytes, one for several rows at once, which units share |
//! | `codebook` | yes | yes | the codebooks in f32 |
//! | `nested` | yes | yes | scales, zero points and tables in f32 |
//! | `low_rank` | yes | through its factors | the left factor transposed |
//! | `sign_low_rank` | yes | yes | factors in 16 bits where that is exact |
//! | `sparse` | yes | yes; a matrix with values that replace is decoded some rows at a time | values in 16 bits where that is exact |
//! | `lossless` | as `dense` | as `dense` | the elements |
//!
//! # Limits
//!
//! WebGPU's defaults are enough: eight storage buffers, bindings of 128 MiB (larger terms are cut into
//! blocks of rows where their encoding can be), 16 KiB of workgroup memory, 256 threads, no features. Two are
//! used where a device has them: `SUBGROUP`, for sums, tables and words that threads share, and
//! `MAPPABLE_PRIMARY_BUFFERS`, for uploads without a copy on devices whose memory is the processor's.
//! Every index is checked to fit 32 bits before a dispatch. What a file says cannot make a kernel read
//! elsewhere: sizes are checked when a view is opened, positions are clamped in the shader, and wgpu
//! keeps accesses inside of the bindings.

mod context;
mod device;
mod error;
mod kernels;
mod mapped;
mod matrix;
mod memory;
mod packed;
mod params;
mod record;
mod template;
mod transforms;
mod upload;
mod windows;
mod workspace;

pub use context::Context;
pub use error::{Error, ErrorKind, Result};
pub use kernels::{Kernels, Tuning};
pub use matrix::{GpuMatrix, GpuUnit};
pub use memory::DeviceMemory;
pub use record::Picked;
pub use template::{ENCODINGS, wgsl};
pub use transforms::{Activations, GpuTransforms, Rows};
pub use upload::Uploader;
pub use wgpu;
pub use workspace::Workspace;

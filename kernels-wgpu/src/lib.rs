//! WGPU kernels of CMF.
//!
//! The crate keeps the name and place of the GPU kernels and has no API: reading weights goes
//! through `cmf-loader`, whose values any runtime can upload.

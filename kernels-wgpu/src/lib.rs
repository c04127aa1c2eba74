//! WGPU kernels of CMF.

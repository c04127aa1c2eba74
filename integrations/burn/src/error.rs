/// The result of this crate's functions.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Why there is no product.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the kernels say.
    #[error(transparent)]
    Kernels(#[from] cmf_kernels_wgpu::Error),
    /// Burn does not give a buffer.
    #[error("burn: {0}")]
    Burn(String),
    /// The input has other columns, or no f32.
    #[error("input: {0}")]
    Input(String),
}

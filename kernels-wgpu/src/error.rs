//! What goes wrong, split by who is at fault.

use core::fmt;

/// The result of this crate's functions.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No adapter, a lost device, memory that the device does not have, or what it found invalid.
    Device,
    /// The caller's arguments do not fit together.
    Argument,
    /// Beyond the device's limits or 32-bit indices.
    Limit,
    /// These kernels have no form of what is asked for.
    Unsupported,
    /// The bytes of the file are damaged.
    Format,
    /// A file of `wgsl/` or a permutation of it is wrong.
    Shader,
}

/// Why something could not be uploaded or recorded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct Error {
    kind: ErrorKind,
    problem: String,
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn new(kind: ErrorKind, problem: impl fmt::Display) -> Self {
        Self { kind, problem: problem.to_string() }
    }

    pub(crate) fn device(problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Device, problem)
    }

    pub(crate) fn argument(problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Argument, problem)
    }

    pub(crate) fn limit(problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Limit, problem)
    }

    pub(crate) fn unsupported(problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unsupported, problem)
    }

    pub(crate) fn shader(problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Shader, problem)
    }
}

impl From<cmf_format::Error> for Error {
    fn from(error: cmf_format::Error) -> Self {
        Self::new(ErrorKind::Format, error)
    }
}

/// A count as a 32-bit index.
pub(crate) fn index(part: &str, value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::limit(format!("{part}: {value} does not fit 32 bits")))
}

/// A product as a 32-bit index.
pub(crate) fn product(part: &str, factors: &[u64]) -> Result<u32> {
    let product = factors.iter().try_fold(1u64, |product, factor| product.checked_mul(*factor));
    index(part, product.unwrap_or(u64::MAX))
}

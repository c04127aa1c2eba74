//! The one error type of this crate.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

/// Who is at fault. Callers and exit codes follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused or broke off an operation.
    Io,
    /// The model's configuration, tokenizer or weights do not fit together.
    BadModel,
    /// The caller asked for something that does not make sense.
    BadArgument,
    /// A limit was reached.
    Limit,
    /// The model is well formed, but of a kind that this version does not run.
    Unsupported,
    /// A tensor operation failed.
    Compute,
}

/// What went wrong.
#[derive(Debug)]
pub struct Error(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind: lower case, no full stop.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self(Box::new(Details { kind, what: what.into(), source: None }))
    }

    pub(crate) fn model(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadModel, what)
    }

    pub(crate) fn argument(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadArgument, what)
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, what)
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{}: {source}", path.display())).caused_by(source)
    }

    fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Who is at fault.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::new(ErrorKind::Compute, error.to_string()).caused_by(error)
    }
}

impl From<cmf_format::Error> for Error {
    fn from(error: cmf_format::Error) -> Self {
        Self::new(ErrorKind::BadModel, error.to_string()).caused_by(error)
    }
}

impl From<cmf_loader::Error> for Error {
    fn from(error: cmf_loader::Error) -> Self {
        let kind = match error.kind() {
            cmf_loader::ErrorKind::Io | cmf_loader::ErrorKind::Supply => ErrorKind::Io,
            _ => ErrorKind::BadModel,
        };
        Self::new(kind, error.to_string()).caused_by(error)
    }
}

impl From<cmf_converters::error::Error> for Error {
    fn from(error: cmf_converters::error::Error) -> Self {
        use cmf_converters::error::ErrorKind as Kind;
        let kind = match error.kind() {
            Kind::Io => ErrorKind::Io,
            Kind::BadArgument => ErrorKind::BadArgument,
            Kind::Limit => ErrorKind::Limit,
            Kind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::BadModel,
        };
        Self::new(kind, error.to_string()).caused_by(error)
    }
}

//! What can go wrong, in which file.

use crate::plan::BelowMinimum;
use core::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

/// Who is at fault and what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file cannot be opened or read.
    Io,
    /// The bytes break a rule of the format, or the reader's limits.
    Format(cmf_format::ErrorKind),
    /// The file was cut, written to or replaced since it was opened.
    Changed,
    /// A shard or base is missing, cannot be opened, or is not the one that is referred to.
    Reference,
    /// The caller asked for something that is not there or does not fit.
    Argument,
    /// Readers still hold what is to be given back.
    Busy,
    /// What is still to come into the file does not come.
    Supply,
}

impl ErrorKind {
    /// The name in `--json` output; those of [`cmf_format::ErrorKind::name`] and a few more.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::Io => "io",
            ErrorKind::Format(kind) => kind.name(),
            ErrorKind::Changed => "changed",
            ErrorKind::Reference => "reference",
            ErrorKind::Argument => "argument",
            ErrorKind::Busy => "busy",
            ErrorKind::Supply => "supply",
        }
    }
}

/// An error with the path of the file, and the place in it where that is known.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    path: PathBuf,
    /// The part of the file or of the request, where the cause does not say.
    part: Option<String>,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Io(io::Error),
    #[error(transparent)]
    Format(cmf_format::Error),
    #[error(transparent)]
    OtherFile(Error),
    #[error(transparent)]
    Budget(BelowMinimum),
    #[error(transparent)]
    Supply(Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Problem(String),
}

impl Error {
    fn new(kind: ErrorKind, path: &Path, part: Option<String>, cause: Cause) -> Self {
        Self(Box::new(Inner { kind, path: path.to_owned(), part, cause }))
    }

    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::new(ErrorKind::Io, path, None, Cause::Io(error))
    }

    /// Takes the format's kind: I/O and arguments are this crate's own.
    pub(crate) fn format(path: &Path, error: cmf_format::Error) -> Self {
        let kind = match error.kind() {
            cmf_format::ErrorKind::Io => ErrorKind::Io,
            cmf_format::ErrorKind::Argument => ErrorKind::Argument,
            kind => ErrorKind::Format(kind),
        };
        Self::new(kind, path, None, Cause::Format(error))
    }

    pub(crate) fn changed_while(path: &Path, error: cmf_format::Error) -> Self {
        Self::new(ErrorKind::Changed, path, None, Cause::Format(error))
    }

    pub(crate) fn changed(path: &Path, problem: String) -> Self {
        Self::new(ErrorKind::Changed, path, None, Cause::Problem(problem))
    }

    pub(crate) fn argument(path: &Path, part: impl Into<String>, problem: String) -> Self {
        Self::new(ErrorKind::Argument, path, Some(part.into()), Cause::Problem(problem))
    }

    pub(crate) fn budget(path: &Path, error: BelowMinimum) -> Self {
        Self::new(ErrorKind::Argument, path, None, Cause::Budget(error))
    }

    pub(crate) fn busy(path: &Path, problem: String) -> Self {
        Self::new(ErrorKind::Busy, path, None, Cause::Problem(problem))
    }

    /// `part` is as in ``tensor `w` ``.
    pub(crate) fn supply(path: &Path, part: String, error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::new(ErrorKind::Supply, path, Some(part), Cause::Supply(error))
    }

    /// `reference` is as in ``shard `a.cmf` ``.
    pub(crate) fn reference(path: &Path, reference: String, problem: String) -> Self {
        Self::new(ErrorKind::Reference, path, Some(reference), Cause::Problem(problem))
    }

    pub(crate) fn in_reference(path: &Path, reference: String, error: Error) -> Self {
        Self::new(ErrorKind::Reference, path, Some(reference), Cause::OtherFile(error))
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file concerned, as it was named when it was opened.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The format's error with tensor, segment and offset, if it is one; for a shard or base, the
    /// error in that file.
    pub fn format_error(&self) -> Option<&cmf_format::Error> {
        match &self.0.cause {
            Cause::Format(error) => Some(error),
            Cause::OtherFile(error) => error.format_error(),
            Cause::Io(_) | Cause::Budget(_) | Cause::Supply(_) | Cause::Problem(_) => None,
        }
    }

    /// The budget and the model's minimum, when the budget is too small.
    pub fn below_minimum(&self) -> Option<BelowMinimum> {
        match &self.0.cause {
            Cause::Budget(error) => Some(*error),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.0.path.display())?;
        if let Some(part) = &self.0.part {
            write!(f, "{part}: ")?;
        }
        self.0.cause.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The cause is part of this error's own text; only what lies below it is a source.
        std::error::Error::source(&self.0.cause)
    }
}

//! What can go wrong.

use core::fmt;
use std::path::Path;

/// Result with this crate's [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

/// Who is at fault and what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The local file cannot be opened, read or written.
    Io,
    /// The source does not give the bytes; trying later may help.
    Unreachable,
    /// The source refuses, or there is no such file.
    Refused,
    /// The file at the source is no longer the one that was begun with.
    Changed,
    /// The source gives bytes that do not have their hashes.
    Corrupt,
    /// What the source has is no `.cmf`, or one that this version does not read.
    Format,
    /// Somebody else is fetching to the same place, or the fetch has ended.
    Busy,
}

/// An error with the source or the file that it is about.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, about: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self { kind, text: format!("{about}: {problem}") }
    }

    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::new(ErrorKind::Io, path.display(), error)
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<cmf_loader::Error> for Error {
    fn from(error: cmf_loader::Error) -> Self {
        let kind = match error.kind() {
            cmf_loader::ErrorKind::Io => ErrorKind::Io,
            _ => ErrorKind::Format,
        };
        Self { kind, text: error.to_string() }
    }
}

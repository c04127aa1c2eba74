//! The one error type of this crate.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};

/// Who is at fault. Callers and exit codes follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused or broke off an operation.
    Io,
    /// The input breaks the rules of its own format.
    BadFile,
    /// The caller asked for something that does not make sense.
    BadArgument,
    /// A limit that the caller can raise was reached.
    Limit,
    /// The input is well formed, but of a kind that this version does not handle.
    Unsupported,
}

/// What went wrong, and where.
///
/// Reads like ``model.gguf: tensor `w`: data at 0x1f400: expected 8192 bytes, found 4096``. Build
/// one with the constructor of its kind and add what is known:
///
/// ```
/// use cmf_converters::error::{Error, ErrorKind};
///
/// let error = Error::bad_file("data")
///     .tensor("w")
///     .at(0x1f400)
///     .expected("8192 bytes")
///     .found(4096);
/// assert_eq!(error.kind(), ErrorKind::BadFile);
/// assert_eq!(
///     error.to_string(),
///     "tensor `w`: data at 0x1f400: expected 8192 bytes, found 4096",
/// );
/// ```
#[derive(Debug)]
pub struct Error(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: ErrorKind,
    what: String,
    file: Option<PathBuf>,
    tensor: Option<String>,
    offset: Option<u64>,
    expected: Option<String>,
    found: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind about `what`: lower case, no full stop.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            what: what.into(),
            file: None,
            tensor: None,
            offset: None,
            expected: None,
            found: None,
            source: None,
        }))
    }

    /// A failed operating system call.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, what).caused_by(source)
    }

    /// An input that breaks its own format.
    pub fn bad_file(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadFile, what)
    }

    /// A request that does not make sense.
    pub fn bad_argument(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadArgument, what)
    }

    /// A limit that was reached.
    pub fn limit(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, what)
    }

    /// A well-formed input of a kind that is not handled.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, what)
    }

    /// Names the file. The first caller to do so wins, being nearest to the fault.
    #[must_use]
    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        self.0.file.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Names the tensor. The first caller to do so wins, being nearest to the fault.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        self.0.tensor.get_or_insert_with(|| name.into());
        self
    }

    /// The absolute byte offset in the file at which the fault lies.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// What should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// What was there.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    /// The error of a lower layer, given by [`StdError::source`].
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Who is at fault.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file at fault, if it is known.
    pub fn file_path(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// The name of the tensor at fault, if it is known.
    pub fn tensor_name(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The absolute byte offset of the fault in its file, if it is known.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = &self.0;
        if let Some(file) = &details.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(tensor) = &details.tensor {
            // Names come from untrusted files: control characters must not reach a terminal.
            write!(f, "tensor `{}`: ", tensor.escape_debug())?;
        }
        f.write_str(&details.what)?;
        if let Some(offset) = details.offset {
            write!(f, " at {offset:#x}")?;
        }
        match (&details.expected, &details.found) {
            (Some(expected), Some(found)) => write!(f, ": expected {expected}, found {found}"),
            (Some(expected), None) => write!(f, ": expected {expected}"),
            (None, Some(found)) => write!(f, ": found {found}"),
            (None, None) => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_file_tensor_offset_expected_and_found() {
        let error =
            Error::limit("tensor count").file("model.gguf").tensor("w").at(16).expected("at most 2").found(3);
        assert_eq!(
            error.to_string(),
            "model.gguf: tensor `w`: tensor count at 0x10: expected at most 2, found 3"
        );
    }

    #[test]
    fn keeps_the_innermost_context() {
        let error = Error::bad_file("data").tensor("inner").tensor("outer").at(1).at(2);
        assert_eq!((error.tensor_name(), error.offset()), (Some("inner"), Some(1)));
    }

    #[test]
    fn escapes_control_characters_of_names() {
        let error = Error::bad_file("data").tensor("a\u{1b}[2J");
        assert_eq!(error.to_string(), "tensor `a\\u{1b}[2J`: data");
    }

    #[test]
    fn gives_the_source_of_an_io_error() {
        let error = Error::io("cannot read", std::io::ErrorKind::UnexpectedEof.into());
        assert!(error.source().is_some_and(|source| source.is::<std::io::Error>()));
    }
}

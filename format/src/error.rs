//! What can be wrong with a file or with a request, and where.

use core::fmt;

/// Result with this crate's [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

/// Who is at fault and what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes are another format, or nothing known.
    NotCmf,
    /// The file ends before a range that it states.
    Truncated,
    /// Another container major version.
    UnsupportedVersion,
    /// A must-understand bit, table, encoding or encoding version that this reader does not know.
    Unsupported,
    /// A [`crate::Limits`] value is exceeded.
    Limit,
    /// A record of the header or directory breaks a rule of the spec.
    Structure,
    /// Bytes do not have the stated hash.
    Hash,
    /// Payload bytes break a rule: a column out of range, a bad frame, non-zero padding.
    Value,
    /// The source of the bytes failed.
    Io,
    /// The caller asked for something that is not there or does not fit.
    Argument,
}

impl ErrorKind {
    /// The name used for reject vectors and in `--json` output.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::NotCmf => "not_cmf",
            ErrorKind::Truncated => "truncated",
            ErrorKind::UnsupportedVersion => "unsupported_version",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Limit => "limit",
            ErrorKind::Structure => "structure",
            ErrorKind::Hash => "hash",
            ErrorKind::Value => "value",
            ErrorKind::Io => "io",
            ErrorKind::Argument => "argument",
        }
    }
}

/// An error with its place: tensor, part, segment and absolute file offset where they are known.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    tensor: Option<String>,
    part: String,
    segment: Option<u32>,
    offset: Option<u64>,
    problem: String,
}

impl Error {
    /// An error about `part`, such as `segments[3].offset`; `problem` says expected and found.
    pub fn new(kind: ErrorKind, part: impl Into<String>, problem: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            tensor: None,
            part: part.into(),
            segment: None,
            offset: None,
            problem: problem.into(),
        }))
    }

    /// An error of the form `expected X, found Y`.
    pub fn expected(
        kind: ErrorKind,
        part: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::new(kind, part, format!("expected {expected}, found {found}"))
    }

    /// Names the tensor, unless one is named already.
    pub fn in_tensor(mut self, tensor: &str) -> Self {
        self.0.tensor.get_or_insert_with(|| tensor.to_owned());
        self
    }

    /// Names the segment, unless one is named already.
    pub fn in_segment(mut self, segment: u32) -> Self {
        self.0.segment.get_or_insert(segment);
        self
    }

    /// States the absolute offset, unless one is stated already.
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Puts an enclosing part before this error's own, as in `term 2: grouped.scale.dense`.
    pub fn within(mut self, outer: impl fmt::Display) -> Self {
        self.0.part = format!("{outer}.{}", self.0.part);
        self
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The tensor concerned, if one is.
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The segment concerned, if one is.
    pub fn segment(&self) -> Option<u32> {
        self.0.segment
    }

    /// The absolute file offset concerned, if it is known.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tensor) = &self.0.tensor {
            write!(f, "tensor `{}`: ", tensor.escape_debug())?;
        }
        f.write_str(&self.0.part)?;
        if let Some(segment) = self.0.segment {
            write!(f, " in segment {segment}")?;
        }
        if let Some(offset) = self.0.offset {
            write!(f, " at {offset:#x}")?;
        }
        write!(f, ": {}", self.0.problem)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {}

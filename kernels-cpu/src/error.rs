//! Errors are those of `cmf-format`.

use cmf_format::{Error, ErrorKind};

pub(crate) use cmf_format::Result;

pub(crate) fn argument(part: &str, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Argument, part, problem)
}

//! Where the bytes of an archive come from.

use crate::error::{Error, ErrorKind, Result};
use std::borrow::Cow;

/// Bytes of a file that does not change while it is open.
///
/// Implemented for everything that is the whole file in memory or in a map. A source that reads
/// on demand implements it with a head that holds header and directory.
pub trait Source {
    /// The first bytes of the file: at least the header and the directory, once parsed.
    fn head(&self) -> &[u8];

    /// Length of the file.
    fn file_bytes(&self) -> u64;

    /// `bytes` bytes from `offset` on, borrowed where they are in memory already.
    ///
    /// # Errors
    /// `Truncated` when the file does not have them, `Io` when they cannot be read.
    fn read(&self, offset: u64, bytes: u64) -> Result<Cow<'_, [u8]>>;

    /// Whether [`Source::read`] borrows what it gives. What it does not is counted against
    /// [`Limits::decoded_tensor_bytes`](crate::Limits::decoded_tensor_bytes): many terms may share
    /// one segment, and each holds what it read.
    fn borrows(&self) -> bool {
        false
    }

    /// Calls `visit` with `bytes` bytes from `offset` on, in order, in parts of the source's choice.
    ///
    /// For bytes that are looked at once and not kept: a source that reads on demand needs one
    /// small buffer for it, however long the range is.
    ///
    /// # Errors
    /// As [`Source::read`], and the first error of `visit`.
    fn visit(&self, offset: u64, bytes: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        visit(&self.read(offset, bytes)?)
    }
}

impl<T: AsRef<[u8]>> Source for T {
    fn head(&self) -> &[u8] {
        self.as_ref()
    }

    fn file_bytes(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn borrows(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<Cow<'_, [u8]>> {
        let end = offset.checked_add(bytes).and_then(|end| usize::try_from(end).ok());
        usize::try_from(offset)
            .ok()
            .zip(end)
            .and_then(|(start, end)| self.as_ref().get(start..end))
            .map(Cow::Borrowed)
            .ok_or_else(|| {
                Error::expected(
                    ErrorKind::Truncated,
                    "file",
                    format_args!("{bytes} bytes"),
                    format_args!("a file of {:#x}", self.as_ref().len()),
                )
                .at(offset)
            })
    }
}

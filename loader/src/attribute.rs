//! Named opaque bytes.

use crate::error::Result;
use crate::source::FileSource;
use std::borrow::Cow;

/// A file that travels in the archive verbatim: model config, tokenizer, recipe, licence.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'m> {
    pub(crate) source: &'m FileSource,
    pub(crate) record: cmf_format::archive::Attribute<'m, FileSource>,
}

impl<'m> Attribute<'m> {
    /// Bare file name.
    pub fn name(&self) -> &'m str {
        self.record.name()
    }

    /// Media type.
    pub fn media_type(&self) -> &'m str {
        self.record.media_type()
    }

    /// Length of [`Attribute::bytes`].
    pub fn bytes_len(&self) -> u64 {
        self.record.segment().map_or(0, |s| s.record().decoded_bytes.get())
    }

    /// Bytes that it takes in the file.
    pub fn stored_bytes(&self) -> u64 {
        self.record.segment().map_or(0, |s| s.record().stored_bytes.get())
    }

    /// The bytes, borrowed when they are stored raw and the file is mapped.
    ///
    /// # Errors
    /// `Format` when they are damaged or larger than the limits, `Io`, `Changed`.
    pub fn bytes(&self) -> Result<Cow<'m, [u8]>> {
        self.record.bytes().map_err(|e| self.source.error(e))
    }
}

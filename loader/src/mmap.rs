//! Read-only maps of files: the only `unsafe` of this crate.
#![allow(unsafe_code, reason = "the system lets others write to a file that is mapped")]

use core::ops::Range;
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;

/// A read-only shared map of the first bytes of a file.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps the first `bytes` bytes, which the file has.
    pub(crate) fn new(file: &File, bytes: usize) -> io::Result<Self> {
        // SAFETY: `MmapOptions::map` demands that the file is not modified while it is mapped.
        // - This process does not modify it: `file` is opened for reading only (open.rs), the map
        //   is read-only, and `Map` gives out shared slices alone.
        // - Other processes: no system can promise it. The caller of `Model::open` does, by the
        //   contract in the crate's documentation; `Backend::Pread` is there for who cannot.
        // - Where the promise is broken: header and directory are copies (source.rs), so that no
        //   checked size or index changes. Payload is read as `u8`, of which every bit pattern is
        //   valid, by code that takes no length or position from it without checking it. Pages
        //   that were cut off raise SIGBUS, which `populate` and the length checks in source.rs
        //   make rare.
        let map = unsafe { MmapOptions::new().len(bytes).map(file) }?;
        Ok(Self(map))
    }

    /// The mapped bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Brings the pages of `range` in, so that a part of the file that is gone or cannot be read is
    /// an error here and not a signal when it is touched. Does nothing where the system cannot.
    pub(crate) fn populate(&self, range: Range<usize>) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if !range.is_empty() {
            let result = self.0.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
            return result.or_else(|e| match rustix::io::Errno::from_io_error(&e) {
                // Before Linux 5.14 the advice is unknown.
                Some(rustix::io::Errno::INVAL) => Ok(()),
                Some(rustix::io::Errno::FAULT) => {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut or cannot be read"))
                }
                _ => Err(e),
            });
        }
        let _ = range;
        Ok(())
    }
}

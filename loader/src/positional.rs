//! Reads at an offset that do not move the file's position, so that threads can share the file.

use std::fs::File;
use std::io;

/// Fills `out` with the bytes of `file` from `offset` on.
///
/// # Errors
/// `UnexpectedEof` where the file ends before, and what the system says.
#[cfg(unix)]
pub fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Fills `out` with the bytes of `file` from `offset` on.
///
/// # Errors
/// `UnexpectedEof` where the file ends before, and what the system says.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                out = out.get_mut(read..).unwrap_or(&mut []);
                offset = offset.saturating_add(read as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

//! The bodies of the fuzz targets: functions of arbitrary bytes that panic when a law is broken.
#![allow(clippy::panic, reason = "a fuzz target says what it found by panicking")]

mod converters;
mod decode;
mod differential;
mod open;
mod write_then_read;

pub use converters::converters;
pub use decode::{decode, same};
pub use differential::{compare, differential};
pub use open::open;
pub use write_then_read::write_then_read;

use crate::repair;
use cmf_format::Limits;

/// A fuzz target: its name in `fuzz/` and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: &[Target] = &[
    ("open", open),
    ("decode", decode),
    ("differential", differential),
    ("write_then_read", write_then_read),
    ("converters", converters),
];

/// Limits under which no input may make a reader allocate much more than its own length.
pub fn limits() -> Limits {
    Limits { directory_bytes: 1 << 20, records: 1 << 16, decoded_segment_bytes: 1 << 20, ..Limits::default() }
}

/// The file that an input stands for: the first byte says how the rest is repaired.
///
/// 0 mod 4: not at all; 1: file length and directory hash; 2: segment hashes as well; 3: segment
/// offsets and file length as well.
pub fn file(input: &[u8]) -> Option<Vec<u8>> {
    let (control, bytes) = input.split_first()?;
    let mut bytes = bytes.to_vec();
    match control % 4 {
        0 => {}
        1 => repair::header(&mut bytes),
        2 => repair::hashes(&mut bytes),
        _ => repair::layout(&mut bytes),
    }
    Some(bytes)
}

//! Files in memory.

use crate::remote::{Body, Failure, Remote};
use core::ops::Range;
use std::io::Cursor;
use std::sync::Arc;

/// A file whose bytes are in memory already: embedded in a program, or come by another way.
#[derive(Clone, Debug)]
pub struct Memory {
    name: String,
    bytes: Arc<[u8]>,
}

impl Memory {
    /// `bytes`, called `name` in errors.
    pub fn new(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl Remote for Memory {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn get(&self, range: Range<u64>) -> Result<Body, Failure> {
        let length = self.bytes.len() as u64;
        let (start, end) = (range.start.min(length), range.end.min(length));
        // Within the length, which fits.
        let part = Part { bytes: Arc::clone(&self.bytes), end: end as usize };
        let mut reader = Cursor::new(part);
        reader.set_position(start);
        Ok(Body { start, file_bytes: Some(length), validator: None, reader: Box::new(reader) })
    }
}

/// The bytes up to an end.
struct Part {
    bytes: Arc<[u8]>,
    end: usize,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.end).unwrap_or(&[])
    }
}

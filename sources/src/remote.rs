//! What a fetch needs of a place that has files.

use core::ops::Range;
use core::time::Duration;
use std::io::Read;

/// A file somewhere else, read in ranges.
pub trait Remote: Send + Sync {
    /// What it is called in errors.
    fn name(&self) -> String;

    /// Asks for bytes `range`.
    ///
    /// # Errors
    /// A [`Failure`] when there is no answer with bytes.
    fn get(&self, range: Range<u64>) -> Result<Body, Failure>;
}

/// Bytes of a file as they come.
pub struct Body {
    /// Where in the file the first byte lies: 0 when the whole file comes in place of a range.
    pub start: u64,
    /// Length of the whole file, where it is stated.
    pub file_bytes: Option<u64>,
    /// What changes when the file does.
    pub validator: Option<String>,
    /// The bytes.
    pub reader: Box<dyn Read + Send>,
}

/// Why there are no bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may go better another time, not before this pause where one is asked for.
    Temporary(String, Option<Duration>),
    /// Nobody is there: the host has no address, or takes no connection. It may go better another time when
    /// somebody was there before.
    Absent(String),
    /// It will not go better.
    Permanent(String),
}

//! Ceilings that a reader sets before it trusts a file.

use crate::encoding::KeepBudget;
use crate::error::{Error, ErrorKind, Result};

/// What a reader is willing to hold. A server and a laptop differ, so it is a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest directory in bytes.
    pub directory_bytes: u64,
    /// Most records in any one table.
    pub records: u64,
    /// Largest decoded size of one compressed segment in bytes.
    pub decoded_segment_bytes: u64,
    /// Most bytes that the segments of one opened tensor take in memory together: what compressed
    /// ones decode to, and raw ones of a source that does not lend its bytes.
    pub decoded_tensor_bytes: u64,
    /// Most bytes that an opened tensor keeps decoded between reads, so as not to decode them
    /// again: a tensor that would have more to keep is slower to read.
    pub kept_tensor_bytes: u64,
    /// Longest name in bytes.
    pub name_bytes: u32,
    /// Most extents of a tensor.
    pub rank: u16,
    /// Most transforms on one side of a matrix.
    pub transforms: u16,
    /// Deepest nesting of nodes, a leaf counting 1.
    pub node_depth: u32,
    /// Most nodes of one tree, a node with all below it; a node that is there twice counts twice.
    pub node_tree: u32,
}

impl Limits {
    /// Checks what the segments of an opened tensor take in memory.
    ///
    /// # Errors
    /// `Limit` above [`Limits::decoded_tensor_bytes`].
    pub(crate) fn check_decoded_tensor(&self, bytes: u64) -> Result<()> {
        if bytes <= self.decoded_tensor_bytes {
            return Ok(());
        }
        let expected = format!("at most {} decoded bytes", self.decoded_tensor_bytes);
        Err(Error::expected(ErrorKind::Limit, "segments", expected, bytes))
    }

    /// What nodes that are opened together may keep.
    pub(crate) fn keep_budget(&self) -> KeepBudget {
        KeepBudget::new(self.kept_tensor_bytes)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            directory_bytes: 1 << 30,
            records: 1 << 27,
            decoded_segment_bytes: 1 << 30,
            decoded_tensor_bytes: 1 << 32,
            kept_tensor_bytes: 1 << 28,
            name_bytes: 4096,
            rank: 16,
            transforms: 16,
            node_depth: 8,
            node_tree: 256,
        }
    }
}

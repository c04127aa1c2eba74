//! What of a node goes to the device: its packed bytes as they are, the numbers beside them, and the
//! permutation of the kernels that reads both.

mod nodes;
mod numbers;

use crate::error::Result;
use crate::params::TermParams;
use crate::windows::Together;
use cmf_format::encoding::View;
use core::ops::Range;
use std::borrow::Cow;

pub(crate) use nodes::{dense_of, dense_to_come, row_step, transposed};

/// Numbers of a permutation.
pub(crate) type Numbers = Vec<(&'static str, i64)>;

/// Which kernels read a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// `multiply` and `decode`, four columns at a time.
    Quads,
    /// `sparse`; with `replaces`, the values take the place of the sum so far.
    Sparse {
        /// Whether values replace.
        replaces: bool,
    },
}

/// Rows of a node as the device is to hold them.
#[derive(Debug)]
pub(crate) struct Packed<'v> {
    pub(crate) reader: Reader,
    /// What the permutation depends on.
    pub(crate) numbers: Numbers,
    /// Steps of a row.
    pub(crate) steps: u32,
    /// Segments, one after the other.
    pub(crate) codes: Vec<Cow<'v, [u8]>>,
    /// Scales, zero points and tables.
    pub(crate) side: Vec<u8>,
    /// Whether values of several rows may come out of one table.
    pub(crate) together: Option<Together>,
    /// What threads of a subgroup have of a hashed table.
    pub(crate) hashed: Option<Vec<u8>>,
    /// Of `side`: a table of the whole length that its index has, aligned as a uniform buffer.
    pub(crate) table: Option<Range<usize>>,
    pub(crate) term: TermParams,
    /// Of the level below, for `nested`.
    pub(crate) under: Option<TermParams>,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
}

impl<'v> Packed<'v> {
    /// Rows `rows` of a node. They start at a multiple of [`row_step`].
    ///
    /// # Errors
    /// `Unsupported` for a `low_rank` node, which is two; `Limit` for more than 32 bits can index;
    /// `Format` for damaged children.
    pub(crate) fn new(view: &'v View<'_>, rows: Range<usize>) -> Result<Self> {
        nodes::packed(view, rows)
    }

    /// Bytes of the codes.
    pub(crate) fn code_bytes(&self) -> u64 {
        self.codes.iter().map(|c| c.len() as u64).sum()
    }
}

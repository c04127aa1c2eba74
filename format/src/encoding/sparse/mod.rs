//! `sparse`: values at listed positions, added to or put in the place of what is there (spec:
//! encodings/sparse).
//!
//! Positions are a compressed sparse row list or a bitmap of blocks, or `n` of every `m` columns.
//! The values are a child node of any encoding.

mod decode;
mod descriptor;
mod pack;
#[cfg(test)]
mod tests;

pub use descriptor::{Block, Descriptor, DescriptorRecord, Layout, MAX_BLOCK_ELEMENTS, Op, position_bits};
pub use pack::{Positions, pack_bitmap, pack_csr, pack_n_m};

use super::{RawNode, extent, structure};
use crate::bits;
use crate::error::Result;
use std::borrow::Cow;

/// Id on disk.
pub const ID: u32 = 3;
/// Name in every layer.
pub const NAME: &str = "sparse";
/// Version written and read.
pub const VERSION: u16 = 1;

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    descriptor: Descriptor,
    rows: usize,
    cols: usize,
    /// `row_offsets` of `csr` and `bitmap`; empty for `n_m`.
    offsets: Cow<'a, [u8]>,
    /// `columns`, `bitmap` or `positions`.
    positions: Cow<'a, [u8]>,
    /// Bytes of one row of `positions`; 0 for `csr`.
    row_bytes: usize,
    values: Box<super::View<'a>>,
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let descriptor = raw.check(Descriptor::parse)?;
        let mut segments = raw.segments.into_iter();
        let mut segment =
            || segments.next().ok_or_else(|| structure("segment count", "expected more segments"));
        let (offsets, row_bits) = match descriptor.layout {
            Layout::Csr { .. } => (segment()?, Some((0, 1))),
            Layout::Bitmap { block } => (segment()?, Some((block.grid(raw.rows, raw.cols).1, 1))),
            Layout::Nm { n, m } => {
                let kept = raw.cols.div_ceil(m.into()).checked_mul(n.into());
                (Cow::Borrowed([].as_slice()), kept.map(|kept| (kept, position_bits(m))))
            }
        };
        if let Layout::Csr { block, .. } | Layout::Bitmap { block } = descriptor.layout {
            extent("count", descriptor.count.saturating_mul(block.elements()))?;
        }
        let row_bytes = row_bits.and_then(|(codes, bits)| bits::row_bytes(codes, bits));
        Ok(Self {
            descriptor,
            rows: extent("rows", raw.rows)?,
            cols: extent("cols", raw.cols)?,
            offsets,
            positions: segment()?,
            row_bytes: row_bytes
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| structure("cols", "row is too long"))?,
            values: raw
                .children
                .into_iter()
                .next()
                .map(Box::new)
                .ok_or_else(|| structure("child count", "expected 1, found 0"))?,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Checked descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Offsets of block rows, `u32` little-endian; empty for `n_m`.
    pub fn row_offsets(&self) -> &[u8] {
        &self.offsets
    }

    /// The `columns`, `bitmap` or `positions` segment.
    pub fn positions(&self) -> &[u8] {
        &self.positions
    }

    /// The values child.
    pub fn values(&self) -> &super::View<'a> {
        &self.values
    }
}

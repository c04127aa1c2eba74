//! Nodes as a writer holds them.

use crate::encoding::{self, KeepBudget, RawNode, Shape, View};
use crate::error::{Error, ErrorKind, Result};
use crate::segment::{Compression, SegmentData, decompress};
use std::borrow::Cow;
use std::sync::Arc;

/// An encoded array with its bytes and children, ready to be written.
#[derive(Clone, Debug)]
pub struct NodeData {
    /// Encoding id.
    pub encoding: u32,
    /// Version of the encoding.
    pub version: u16,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Descriptor bytes, a multiple of 8.
    pub descriptor: Vec<u8>,
    /// Segments in the encoding's order.
    pub segments: Vec<SegmentData>,
    /// Children in the encoding's order; one child may be shared by many nodes.
    pub children: Vec<Arc<NodeData>>,
}

impl NodeData {
    /// A node whose parts fit together as its encoding demands.
    ///
    /// # Errors
    /// `Structure` when they do not.
    pub fn new(
        encoding: u32,
        version: u16,
        rows: u64,
        cols: u64,
        descriptor: Vec<u8>,
        segments: Vec<SegmentData>,
        children: Vec<impl Into<Arc<NodeData>>>,
    ) -> Result<Self> {
        let node = Self {
            encoding,
            version,
            rows,
            cols,
            descriptor,
            segments,
            children: children.into_iter().map(Into::into).collect(),
        };
        let lengths: Vec<u64> = node.segments.iter().map(|s| s.decoded_bytes).collect();
        let shapes: Vec<_> = node.children.iter().map(|c| (c.rows, c.cols)).collect();
        let shape = Shape { rows, cols, descriptor: &node.descriptor, segments: &lengths, children: &shapes };
        encoding::check(encoding, version, &shape)
            .unwrap_or_else(|| Err(encoding::unknown(encoding, version)))?;
        Ok(node)
    }

    /// Opens the node over its own bytes, to decode what was encoded.
    ///
    /// # Errors
    /// `Argument` when a segment's bytes are not in memory; as [`View::open`] else.
    pub fn view(&self) -> Result<View<'_>> {
        self.open(&KeepBudget::new(u64::MAX))
    }

    fn open(&self, keep: &KeepBudget) -> Result<View<'_>> {
        View::open(RawNode {
            encoding: self.encoding,
            version: self.version,
            rows: self.rows,
            cols: self.cols,
            descriptor: &self.descriptor,
            segments: self.segments.iter().map(segment_bytes).collect::<Result<_>>()?,
            children: self.children.iter().map(|c| c.open(keep)).collect::<Result<_>>()?,
            keep: keep.clone(),
        })
    }

    /// Stored bytes of this node and its children.
    pub fn stored_bytes(&self) -> u64 {
        let own: u64 = self.segments.iter().map(SegmentData::stored_bytes).sum();
        own + self.children.iter().map(|c| c.stored_bytes()).sum::<u64>()
    }
}

fn segment_bytes(segment: &SegmentData) -> Result<Cow<'_, [u8]>> {
    let bytes = segment
        .bytes()
        .ok_or_else(|| Error::new(ErrorKind::Argument, "segment", "its bytes are not in memory"))?;
    Ok(match segment.compression {
        Compression::Raw => Cow::Borrowed(bytes),
        Compression::Zstd => Cow::Owned(decompress(bytes, segment.decoded_bytes, u64::MAX)?),
    })
}

//! Trees from nodes to be written, and from nodes of an archive.

use super::Tree;
use cmf_format::archive::Node;
use cmf_format::{Compression, NodeData, Result, SegmentData, Source, decompress};

impl From<&NodeData> for Tree {
    fn from(node: &NodeData) -> Self {
        Self {
            encoding: node.encoding,
            version: node.version,
            rows: node.rows,
            cols: node.cols,
            descriptor: node.descriptor.clone(),
            segments: node.segments.iter().map(decoded).collect(),
            children: node.children.iter().map(|child| Tree::from(child.as_ref())).collect(),
            ..Self::default()
        }
    }
}

/// The decoded bytes of a segment in memory.
pub fn decoded(segment: &SegmentData) -> Vec<u8> {
    let stored = segment.bytes().unwrap_or(&[]);
    match segment.compression {
        Compression::Raw => stored.to_vec(),
        Compression::Zstd => decompress(stored, segment.decoded_bytes, 1 << 20).unwrap_or_default(),
    }
}

impl Tree {
    /// The tree of a node of an archive.
    ///
    /// # Errors
    /// When a segment does not decode.
    pub fn of_archive<S: Source>(node: &Node<'_, S>) -> Result<Self> {
        let record = node.record();
        Ok(Self {
            encoding: record.encoding.get(),
            version: record.version.get(),
            rows: record.rows.get(),
            cols: record.cols.get(),
            descriptor: node.descriptor().to_vec(),
            segments: node.segments().map(|s| s.decoded().map(|b| b.into_owned())).collect::<Result<_>>()?,
            children: node.children().map(|c| Self::of_archive(&c)).collect::<Result<_>>()?,
            ..Self::default()
        })
    }
}

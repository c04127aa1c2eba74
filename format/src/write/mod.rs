//! The deterministic writer: lays out first, then streams (spec: container, 7).
//!
//! The same entries give the same bytes, in whatever order they were added: names are sorted,
//! equal segments, nodes and matrices are stored once, and every table has one order.

mod layout;
mod tables;

pub use layout::Layout;

use crate::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use crate::segment::SegmentData;
use crate::wire;
use std::sync::Arc;

/// Choices that an archive states in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// Alignment of segments: a power of two from 64 to 65 536.
    pub alignment_bytes: u32,
    /// Bytes of one chunk group: a power of two from 1 024 to 2^30.
    pub chunk_group_bytes: u32,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { alignment_bytes: 256, chunk_group_bytes: 65_536 }
    }
}

/// A term to be written.
#[derive(Clone, Debug)]
pub struct TermEntry {
    /// First row of its region in the matrix.
    pub row_start: u64,
    /// First column of its region.
    pub col_start: u64,
    /// Whether a reader that does not know the encoding may leave the term out.
    pub optional: bool,
    /// The values.
    pub node: Arc<NodeData>,
}

/// A unit to be written: one level of a block of rows.
#[derive(Clone, Debug)]
pub struct UnitEntry {
    /// Level, 0 for the required one.
    pub level: u16,
    /// First row.
    pub row_start: u64,
    /// Number of rows.
    pub rows: u64,
    /// Terms within these rows, in the order in which they are summed.
    pub terms: Vec<TermEntry>,
}

/// A transform to be written. Which side it is on follows from the list that it is in.
#[derive(Clone, Debug)]
pub enum TransformEntry {
    /// A factor each: a node `[1, size]`.
    Scale(Arc<NodeData>),
    /// Random signs from a seed and a block Hadamard matrix.
    SignHadamard {
        /// Power of two that divides the side.
        block: u64,
        /// Seed of the sign generator.
        seed: u64,
    },
    /// Stored signs (packed, set is -1) and a block Hadamard matrix.
    StoredSignHadamard {
        /// Power of two that divides the side.
        block: u64,
        /// One bit a sign, LSB first, padded to 4 bytes.
        signs: SegmentData,
    },
    /// A permutation: `u32` little-endian indices.
    Permute(SegmentData),
}

/// A matrix to be written.
#[derive(Clone, Debug, Default)]
pub struct MatrixEntry {
    /// Outputs.
    pub rows: u64,
    /// Inputs.
    pub cols: u64,
    /// Input-side transforms in order of application.
    pub input_transforms: Vec<TransformEntry>,
    /// Output-side transforms in order of application.
    pub output_transforms: Vec<TransformEntry>,
    /// Units by level and row.
    pub units: Vec<UnitEntry>,
}

impl MatrixEntry {
    /// A matrix of one unit of level 0 that is one node.
    pub fn from_node(node: NodeData) -> Self {
        let (rows, cols) = (node.rows, node.cols);
        Self::from_nodes(rows, cols, vec![node])
    }

    /// A matrix of one unit of level 0 that is the sum of `nodes`, each as large as the matrix.
    pub fn from_nodes(rows: u64, cols: u64, nodes: Vec<NodeData>) -> Self {
        let terms = nodes
            .into_iter()
            .map(|node| TermEntry { row_start: 0, col_start: 0, optional: false, node: node.into() })
            .collect();
        Self { rows, cols, units: vec![UnitEntry { level: 0, row_start: 0, rows, terms }], ..Self::default() }
    }
}

/// Where a tensor's values are.
#[derive(Clone, Debug)]
pub enum Content {
    /// Here, in matrices of the same shape; none for a tensor without elements.
    Matrices(Vec<MatrixEntry>),
    /// In the shard of this name.
    Shard(String),
    /// Here, to be added to the tensor of the same name in the base archive of this name.
    Delta(String, Vec<MatrixEntry>),
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    /// Unique name.
    pub name: String,
    /// Original element type.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Values.
    pub content: Content,
}

#[derive(Clone, Debug)]
struct AttributeEntry {
    name: String,
    media_type: String,
    segment: SegmentData,
}

#[derive(Clone, Debug)]
struct ReferenceEntry {
    name: String,
    kind: u32,
    identity: [u8; 32],
    file_bytes: u64,
}

/// Names one unit: `(tensor, matrix in the tensor, unit in the matrix)`.
pub type UnitName = (String, usize, usize);

/// A step of an explicit schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct StepEntry {
    /// The unit.
    pub unit: UnitName,
    /// Expected loss with it and all units before it, where it is known.
    pub expected_loss: Option<f64>,
}

/// Collects what an archive holds.
#[derive(Clone, Debug, Default)]
pub struct ArchiveBuilder {
    options: WriteOptions,
    attributes: Vec<AttributeEntry>,
    references: Vec<ReferenceEntry>,
    tensors: Vec<TensorEntry>,
    schedule: Option<Vec<StepEntry>>,
}

impl ArchiveBuilder {
    /// An empty archive.
    pub fn new(options: WriteOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, tensor: TensorEntry) -> &mut Self {
        self.tensors.push(tensor);
        self
    }

    /// Adds an attribute: opaque bytes under a bare file name.
    pub fn attribute(&mut self, name: &str, media_type: &str, segment: impl Into<SegmentData>) -> &mut Self {
        self.attributes.push(AttributeEntry {
            name: name.into(),
            media_type: media_type.into(),
            segment: segment.into(),
        });
        self
    }

    /// Adds a shard that tensors may lie in.
    pub fn shard(&mut self, name: &str, identity: [u8; 32], file_bytes: u64) -> &mut Self {
        self.reference(name, wire::ARCHIVE_SHARD, identity, file_bytes)
    }

    /// Adds a base archive that delta tensors are added to.
    pub fn base(&mut self, name: &str, identity: [u8; 32], file_bytes: u64) -> &mut Self {
        self.reference(name, wire::ARCHIVE_BASE, identity, file_bytes)
    }

    fn reference(&mut self, name: &str, kind: u32, identity: [u8; 32], file_bytes: u64) -> &mut Self {
        self.references.push(ReferenceEntry { name: name.into(), kind, identity, file_bytes });
        self
    }

    /// Sets the order of all units, in which their segments are laid out. Without it they go by level,
    /// then by tensor, matrix and row. Of tensors with equal matrices, which are stored once, the
    /// first step that names a unit counts.
    pub fn schedule(&mut self, steps: Vec<StepEntry>) -> &mut Self {
        self.schedule = Some(steps);
        self
    }

    /// Lays the archive out: header, directory and the place of every segment.
    ///
    /// # Errors
    /// `Argument` for entries that do not make a valid archive.
    pub fn layout(&self) -> Result<Layout> {
        layout::lay_out(self)
    }

    /// Writes the archive to memory. Every segment must be in memory.
    ///
    /// # Errors
    /// As [`ArchiveBuilder::layout`], and `Argument` for a segment kept elsewhere.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let layout = self.layout()?;
        let mut out = Vec::new();
        layout
            .write(&mut out, |segment, _| {
                Err(std::io::Error::other(format!("segment {} is not in memory", segment.key)))
            })
            .map_err(|e| argument("segment", e.to_string()))?;
        Ok(out)
    }
}

fn argument(part: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Argument, part, problem)
}

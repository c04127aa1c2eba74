//! Views of single records of a checked archive.

use super::Archive;
use crate::DType;
use crate::encoding::{self, KeepBudget, RawNode, View};
use crate::error::{Error, ErrorKind, Result};
use crate::segment::{Compression, decompress};
use crate::source::Source;
use crate::wire::*;
use core::ops::Range;
use std::borrow::Cow;
use std::collections::HashSet;

macro_rules! view {
    ($(#[$meta:meta])* $name:ident $record:ident) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub struct $name<'a, S> {
            archive: &'a Archive<S>,
            index: u32,
            record: &'a $record,
        }

        impl<S> Clone for $name<'_, S> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<S> Copy for $name<'_, S> {}

        impl<'a, S: Source> $name<'a, S> {
            /// Index in its table.
            pub fn index(&self) -> u32 {
                self.index
            }

            /// The record as stored.
            pub fn record(&self) -> &'a $record {
                self.record
            }

            /// The archive that holds it.
            pub fn archive(&self) -> &'a Archive<S> {
                self.archive
            }

            #[allow(dead_code, reason = "not every table is looked up by index")]
            pub(super) fn at(archive: &'a Archive<S>, table: Table, index: u32) -> Option<Self> {
                let record = archive.records(table).get(index as usize)?;
                Some(Self { archive, index, record })
            }

            /// The records of `range`; those beyond the table are left out.
            pub(super) fn range(
                archive: &'a Archive<S>,
                table: Table,
                range: Range<u32>,
            ) -> impl ExactSizeIterator<Item = Self> + use<'a, S> {
                let records = archive.records(table);
                let end = range.end.min(u32::try_from(records.len()).unwrap_or(u32::MAX));
                let start = range.start.min(end);
                let found = records.slice(start as usize..end as usize).iter();
                found.enumerate().map(move |(i, record)| Self {
                    archive,
                    index: start.saturating_add(i as u32),
                    record,
                })
            }
        }
    };
}

view!(
    /// A tensor of the directory.
    Tensor TensorRecord
);
view!(
    /// A matrix of a tensor.
    Matrix MatrixRecord
);
view!(
    /// A term of a matrix.
    Term TermRecord
);
view!(
    /// An encoded array.
    Node NodeRecord
);
view!(
    /// A range of payload.
    Segment SegmentRecord
);
view!(
    /// A residency unit.
    Unit UnitRecord
);
view!(
    /// A step of the schedule.
    Step ScheduleRecord
);
view!(
    /// A named opaque segment.
    Attribute AttributeRecord
);
view!(
    /// A reference to another archive.
    Reference ArchiveRecord
);

impl<S: Source> Archive<S> {
    pub(crate) fn string(&self, reference: StringRef) -> Option<&str> {
        let start = reference.offset.get() as usize;
        let end = start.checked_add(reference.bytes.get() as usize)?;
        core::str::from_utf8(self.heap(Table::Strings).get(start..end)?).ok()
    }

    pub(super) fn descriptor(&self, node: &NodeRecord) -> Option<&[u8]> {
        let (start, bytes) = (node.descriptor_offset.get() as usize, node.descriptor_bytes.get() as usize);
        if !start.is_multiple_of(8) || !bytes.is_multiple_of(8) {
            return None;
        }
        self.heap(Table::Descriptors).get(start..start.checked_add(bytes)?)
    }

    /// All tensors, ascending in name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_, S>> {
        Tensor::range(self, Table::Tensors, 0..NONE)
    }

    /// The tensor called `name`: a binary search.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_, S>> {
        let (mut low, mut high) = (0, self.span(Table::Tensors).count as u32);
        while low < high {
            let middle = low + (high - low) / 2;
            let tensor = Tensor::at(self, Table::Tensors, middle)?;
            match tensor.name().cmp(name) {
                core::cmp::Ordering::Equal => return Some(tensor),
                core::cmp::Ordering::Less => low = middle + 1,
                core::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// All matrices, in the order of the tensors that hold them first.
    pub fn matrices(&self) -> impl ExactSizeIterator<Item = Matrix<'_, S>> {
        Matrix::range(self, Table::Matrices, 0..NONE)
    }

    /// All nodes; children come before their parents.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = Node<'_, S>> {
        Node::range(self, Table::Nodes, 0..NONE)
    }

    /// Node `index`.
    pub fn node(&self, index: u32) -> Option<Node<'_, S>> {
        Node::at(self, Table::Nodes, index)
    }

    /// All segments, in file order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment<'_, S>> {
        Segment::range(self, Table::Segments, 0..NONE)
    }

    /// Segment `index`.
    pub fn segment(&self, index: u32) -> Option<Segment<'_, S>> {
        Segment::at(self, Table::Segments, index)
    }

    /// All units, by matrix, level and row.
    pub fn units(&self) -> impl ExactSizeIterator<Item = Unit<'_, S>> {
        Unit::range(self, Table::Units, 0..NONE)
    }

    /// Unit `index`.
    pub fn unit(&self, index: u32) -> Option<Unit<'_, S>> {
        Unit::at(self, Table::Units, index)
    }

    /// The schedule: units by gain per byte.
    pub fn schedule(&self) -> impl ExactSizeIterator<Item = Step<'_, S>> {
        Step::range(self, Table::Schedule, 0..NONE)
    }

    /// All attributes, ascending in name.
    pub fn attributes(&self) -> impl ExactSizeIterator<Item = Attribute<'_, S>> {
        Attribute::range(self, Table::Attributes, 0..NONE)
    }

    /// The attribute called `name`.
    pub fn attribute(&self, name: &str) -> Option<Attribute<'_, S>> {
        self.attributes().find(|a| a.name() == name)
    }

    /// The other archives that this one refers to, ascending in name.
    pub fn references(&self) -> impl ExactSizeIterator<Item = Reference<'_, S>> {
        Reference::range(self, Table::Archives, 0..NONE)
    }
}

impl<'a, S: Source> Tensor<'a, S> {
    /// The name.
    pub fn name(&self) -> &'a str {
        self.archive.string(self.record.name).unwrap_or("")
    }

    /// The element type that the tensor had before it was encoded.
    pub fn dtype(&self) -> DType {
        DType::from_number(self.record.dtype.get()).unwrap_or(DType::F32)
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> Vec<u64> {
        let first = self.record.first_extent.get() as usize;
        let extents = self.archive.records::<U64>(Table::Extents);
        (first..first + usize::from(self.record.rank.get()))
            .filter_map(|i| extents.get(i).map(|e| e.get()))
            .collect()
    }

    /// Product of the extents.
    pub fn elements(&self) -> u64 {
        self.record.elements.get()
    }

    /// Its matrices. Tied tensors have the same ones.
    pub fn matrices(&self) -> impl ExactSizeIterator<Item = Matrix<'a, S>> + use<'a, S> {
        let first = self.record.first_matrix.get();
        Matrix::range(
            self.archive,
            Table::Matrices,
            first..first.saturating_add(self.record.matrix_count.get()),
        )
    }

    /// The archive that holds the tensor, or whose tensor of this name the terms are added to.
    pub fn reference(&self) -> Option<Reference<'a, S>> {
        match self.record.archive.get() {
            NONE => None,
            index => Reference::at(self.archive, Table::Archives, index),
        }
    }

    /// Whether the tensor is a delta to that of the same name in [`Tensor::reference`].
    pub fn is_delta(&self) -> bool {
        self.record.flags.get() & TENSOR_DELTA != 0
    }

    pub(super) fn check_flags(&self) -> Result<()> {
        match self.record.flags.get() & 0xFFFF & !TENSOR_DELTA {
            0 => Ok(()),
            bits => {
                Err(Error::new(ErrorKind::Unsupported, "tensor.flags", format!("bits {bits:#x} are unknown"))
                    .in_tensor(self.name()))
            }
        }
    }
}

impl<'a, S: Source> Matrix<'a, S> {
    /// Outputs.
    pub fn rows(&self) -> u64 {
        self.record.rows.get()
    }

    /// Inputs.
    pub fn cols(&self) -> u64 {
        self.record.cols.get()
    }

    /// Terms, ascending in level.
    pub fn terms(&self) -> impl ExactSizeIterator<Item = Term<'a, S>> + use<'a, S> {
        let first = self.record.first_term.get();
        Term::range(self.archive, Table::Terms, first..first.saturating_add(self.record.term_count.get()))
    }

    /// Units, ascending in level and row.
    pub fn units(&self) -> impl ExactSizeIterator<Item = Unit<'a, S>> + use<'a, S> {
        let first = self.record.first_unit.get();
        Unit::range(self.archive, Table::Units, first..first.saturating_add(self.record.unit_count.get()))
    }

    /// Input-side and output-side transform records, each in order of application.
    pub fn transforms(&self) -> (Vec<&'a TransformRecord>, Vec<&'a TransformRecord>) {
        let first = self.record.first_transform.get() as usize;
        let inputs = usize::from(self.record.input_transforms.get());
        let outputs = usize::from(self.record.output_transforms.get());
        let records = self.archive.records::<TransformRecord>(Table::Transforms);
        let list = |range: Range<usize>| range.filter_map(|i| records.get(i)).collect();
        (list(first..first + inputs), list(first + inputs..first + inputs + outputs))
    }

    /// Highest level; 0 for a matrix without units.
    pub fn highest_level(&self) -> u16 {
        self.units().last().map_or(0, |u| u.record.level.get())
    }
}

impl<'a, S: Source> Term<'a, S> {
    /// The node with the values.
    pub fn node(&self) -> Option<Node<'a, S>> {
        Node::at(self.archive, Table::Nodes, self.record.node.get())
    }

    /// The level.
    pub fn level(&self) -> u16 {
        self.record.level.get()
    }

    /// Whether this reader can decode the term.
    pub fn is_known(&self) -> bool {
        self.record.flags.get() & 0xFF == 0
            && self.archive.known_nodes.get(self.record.node.get() as usize).copied().unwrap_or(false)
    }

    /// Whether a reader that does not know the encoding may leave the term out.
    pub fn is_optional(&self) -> bool {
        self.record.flags.get() & TERM_OPTIONAL != 0
    }
}

impl<'a, S: Source> Node<'a, S> {
    /// Name of the encoding, `id 12` when it is unknown.
    pub fn encoding_name(&self) -> Cow<'static, str> {
        let id = self.record.encoding.get();
        encoding::name(id).map_or_else(|| format!("id {id}").into(), Cow::Borrowed)
    }

    /// Whether this reader can decode the node and all below it.
    pub fn is_known(&self) -> bool {
        self.archive.known_nodes.get(self.index as usize).copied().unwrap_or(false)
    }

    /// Descriptor bytes.
    pub fn descriptor(&self) -> &'a [u8] {
        self.archive.descriptor(self.record).unwrap_or(&[])
    }

    fn refs(&self, skip: usize, count: u16) -> impl Iterator<Item = u32> + use<'a, S> {
        let refs = self.archive.records::<U32>(Table::Refs);
        let first = self.record.first_ref.get() as usize + skip;
        (first..first + usize::from(count)).filter_map(move |i| refs.get(i).map(|r| r.get()))
    }

    /// Segments of this node alone.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a, S>> + use<'a, S> {
        let archive = self.archive;
        self.refs(0, self.record.segment_count.get())
            .filter_map(move |i| Segment::at(archive, Table::Segments, i))
    }

    /// Children.
    pub fn children(&self) -> impl Iterator<Item = Node<'a, S>> + use<'a, S> {
        let archive = self.archive;
        self.refs(usize::from(self.record.segment_count.get()), self.record.child_count.get())
            .filter_map(move |i| Node::at(archive, Table::Nodes, i))
    }

    /// Opens the node over the payload.
    ///
    /// # Errors
    /// `Unsupported` for an unknown encoding, `Value` for a compressed segment that is damaged,
    /// `Limit` for segments that are too large to hold, alone or together, `Io` from the source.
    pub fn view(&self) -> Result<View<'a>> {
        self.archive.limits.check_decoded_tensor(self.held_bytes())?;
        self.open(&self.archive.limits.keep_budget())
    }

    /// What segments of this node and of all below it take in memory while they are open: those
    /// that are decompressed, and those that the source does not lend. Shared ones are counted each
    /// time, because they are held each time.
    pub(super) fn held_bytes(&self) -> u64 {
        let borrows = self.archive.source.borrows();
        let own = self.segments().filter(|s| s.record.compression != 0 || !borrows);
        let own = own.fold(0u64, |sum, s| sum.saturating_add(s.record.decoded_bytes.get()));
        self.children().fold(own, |sum, child| sum.saturating_add(child.held_bytes()))
    }

    /// [`Node::view`] after the limit has been checked, within what nodes that are opened together
    /// may keep.
    pub(super) fn open(&self, keep: &KeepBudget) -> Result<View<'a>> {
        if !self.is_known() && encoding::name(self.record.encoding.get()).is_none() {
            return Err(encoding::unknown(self.record.encoding.get(), self.record.version.get()));
        }
        if self.record.flags.get() & 0xFF != 0 {
            return Err(Error::new(ErrorKind::Unsupported, "node.flags", "has unknown bits"));
        }
        View::open(RawNode {
            encoding: self.record.encoding.get(),
            version: self.record.version.get(),
            rows: self.record.rows.get(),
            cols: self.record.cols.get(),
            descriptor: self.descriptor(),
            segments: self.segments().map(|s| s.decoded()).collect::<Result<_>>()?,
            children: self.children().map(|c| c.open(keep)).collect::<Result<_>>()?,
            keep: keep.clone(),
        })
    }

    /// Indices of this node's and all its children's segments, each once, ascending.
    pub fn all_segments(&self) -> Vec<u32> {
        segments_of(std::iter::once(*self))
    }
}

/// Indices of the segments of nodes and all below them, each once, ascending.
///
/// Each node is visited once: the paths through shared children can be exponentially many.
fn segments_of<'a, S: Source + 'a>(nodes: impl Iterator<Item = Node<'a, S>>) -> Vec<u32> {
    let mut found = Vec::new();
    let mut visited = HashSet::new();
    let mut pending: Vec<_> = nodes.collect();
    while let Some(node) = pending.pop() {
        if visited.insert(node.index) {
            found.extend(node.segments().map(|s| s.index));
            pending.extend(node.children());
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

impl<'a, S: Source> Segment<'a, S> {
    /// The stored bytes.
    ///
    /// # Errors
    /// From the source.
    pub fn stored(&self) -> Result<Cow<'a, [u8]>> {
        self.archive
            .source
            .read(self.record.offset.get(), self.record.stored_bytes.get())
            .map_err(|e| e.in_segment(self.index))
    }

    /// The decoded bytes, borrowed from the source when the segment is raw.
    ///
    /// # Errors
    /// `Unsupported` for an unknown compression or flag, `Limit`, `Value`, and from the source.
    pub fn decoded(&self) -> Result<Cow<'a, [u8]>> {
        let at = |e: Error| e.in_segment(self.index).at(self.record.offset.get());
        if self.record.flags.get() & 0xFF != 0 {
            return Err(at(Error::new(ErrorKind::Unsupported, "segment.flags", "has unknown bits")));
        }
        let stored = self.stored()?;
        match self.record.compression {
            0 => Ok(stored),
            1 => {
                let limit = self.archive.limits.decoded_segment_bytes;
                decompress(&stored, self.record.decoded_bytes.get(), limit).map(Cow::Owned).map_err(at)
            }
            other => Err(at(Error::new(
                ErrorKind::Unsupported,
                "segment.compression",
                format!("number {other} is unknown"),
            ))),
        }
    }

    /// How the stored bytes are compressed; `None` when this reader does not know.
    pub fn compression(&self) -> Option<Compression> {
        match self.record.compression {
            0 => Some(Compression::Raw),
            1 => Some(Compression::Zstd),
            _ => None,
        }
    }
}

impl<'a, S: Source> Unit<'a, S> {
    /// Its level.
    pub fn level(&self) -> u16 {
        self.record.level.get()
    }

    /// Its rows of the matrix.
    pub fn rows(&self) -> Range<u64> {
        let start = self.record.row_start.get();
        start..start.saturating_add(self.record.rows.get())
    }

    /// Its terms.
    pub fn terms(&self) -> impl ExactSizeIterator<Item = Term<'a, S>> + use<'a, S> {
        let first = self.record.first_term.get();
        Term::range(self.archive, Table::Terms, first..first.saturating_add(self.record.term_count.get()))
    }

    /// Indices of all its segments, each once, ascending.
    pub fn segments(&self) -> Vec<u32> {
        segments_of(self.terms().filter_map(|t| t.node()))
    }
}

impl<'a, S: Source> Step<'a, S> {
    /// The unit.
    pub fn unit(&self) -> Option<Unit<'a, S>> {
        self.archive.unit(self.record.unit.get())
    }

    /// Expected loss with this unit and all before it, where it is stated.
    pub fn expected_loss(&self) -> Option<f64> {
        (self.record.flags.get() & SCHEDULE_LOSS != 0).then(|| self.record.expected_loss.get())
    }
}

impl<'a, S: Source> Attribute<'a, S> {
    /// Bare file name.
    pub fn name(&self) -> &'a str {
        self.archive.string(self.record.name).unwrap_or("")
    }

    /// Media type.
    pub fn media_type(&self) -> &'a str {
        self.archive.string(self.record.media_type).unwrap_or("")
    }

    /// Its segment.
    pub fn segment(&self) -> Option<Segment<'a, S>> {
        Segment::at(self.archive, Table::Segments, self.record.segment.get())
    }

    /// The bytes, decoded.
    ///
    /// # Errors
    /// As [`Segment::decoded`].
    pub fn bytes(&self) -> Result<Cow<'a, [u8]>> {
        self.segment().map_or(Ok(Cow::Borrowed(&[])), |s| s.decoded())
    }
}

/// Why an archive refers to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceKind {
    /// It holds tensors of this model.
    Shard,
    /// Delta tensors here are added to its tensors.
    Base,
}

impl<'a, S: Source> Reference<'a, S> {
    /// Bare file name.
    pub fn name(&self) -> &'a str {
        self.archive.string(self.record.name).unwrap_or("")
    }

    /// Why it is referred to.
    pub fn kind(&self) -> ReferenceKind {
        match self.record.kind.get() {
            ARCHIVE_BASE => ReferenceKind::Base,
            _ => ReferenceKind::Shard,
        }
    }
}

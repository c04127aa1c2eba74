//! Archives record by record, for those that no builder would make.

use bytemuck::{Pod, Zeroable, bytes_of};
use cmf_format::hash;
use cmf_format::wire::*;
use std::collections::BTreeSet;

/// The tables of an archive. [`Raw::assemble`] lays them out; nothing else is made to fit.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    /// Bytes of the strings.
    pub strings: Vec<u8>,
    /// Extents.
    pub extents: Vec<u64>,
    /// Attributes.
    pub attributes: Vec<AttributeRecord>,
    /// Other archives.
    pub archives: Vec<ArchiveRecord>,
    /// Tensors.
    pub tensors: Vec<TensorRecord>,
    /// Matrices.
    pub matrices: Vec<MatrixRecord>,
    /// Transforms.
    pub transforms: Vec<TransformRecord>,
    /// Terms.
    pub terms: Vec<TermRecord>,
    /// Nodes.
    pub nodes: Vec<NodeRecord>,
    /// Refs.
    pub refs: Vec<u32>,
    /// Bytes of the descriptors.
    pub descriptors: Vec<u8>,
    /// Stored bytes, decoded length and compression of each segment.
    pub segments: Vec<(Vec<u8>, u64, u8)>,
    /// Units.
    pub units: Vec<UnitRecord>,
    /// Schedule.
    pub schedule: Vec<ScheduleRecord>,
}

fn length<T>(list: &[T]) -> u32 {
    list.len() as u32
}

impl Raw {
    /// Adds a string and refers to it.
    pub fn string(&mut self, text: &[u8]) -> StringRef {
        let offset = length(&self.strings).into();
        self.strings.extend_from_slice(text);
        StringRef { offset, bytes: length(text).into() }
    }

    /// Adds a raw segment.
    pub fn segment(&mut self, bytes: Vec<u8>) -> u32 {
        let decoded = bytes.len() as u64;
        self.segments.push((bytes, decoded, 0));
        length(&self.segments) - 1
    }

    /// Adds a zstd segment that states `decoded` bytes.
    pub fn zstd(&mut self, stored: Vec<u8>, decoded: u64) -> u32 {
        self.segments.push((stored, decoded, 1));
        length(&self.segments) - 1
    }

    /// Adds a node of version 1.
    pub fn node(
        &mut self,
        encoding: u32,
        (rows, cols): (u64, u64),
        descriptor: &[u8],
        segments: &[u32],
        children: &[u32],
    ) -> u32 {
        self.nodes.push(NodeRecord {
            encoding: encoding.into(),
            version: 1.into(),
            rows: rows.into(),
            cols: cols.into(),
            descriptor_offset: length(&self.descriptors).into(),
            descriptor_bytes: length(descriptor).into(),
            first_ref: length(&self.refs).into(),
            segment_count: (segments.len() as u16).into(),
            child_count: (children.len() as u16).into(),
            ..NodeRecord::zeroed()
        });
        self.descriptors.extend_from_slice(descriptor);
        self.refs.extend(segments.iter().chain(children));
        length(&self.nodes) - 1
    }

    /// Adds a dense node of u8 elements.
    pub fn bytes_node(&mut self, rows: u64, cols: u64) -> u32 {
        let segment = self.segment(vec![1; (rows * cols) as usize]);
        self.node(1, (rows, cols), &[15, 0, 0, 0, 0, 0, 0, 0], &[segment], &[])
    }

    /// Adds a matrix of one unit with these nodes as terms, each at the top left.
    pub fn matrix(&mut self, rows: u64, cols: u64, nodes: &[u32]) -> u32 {
        let matrix = length(&self.matrices);
        let (first_term, unit) = (length(&self.terms), length(&self.units));
        self.matrices.push(MatrixRecord {
            rows: rows.into(),
            cols: cols.into(),
            first_term: first_term.into(),
            term_count: length(nodes).into(),
            first_transform: length(&self.transforms).into(),
            first_unit: unit.into(),
            unit_count: 1.into(),
            ..MatrixRecord::zeroed()
        });
        self.terms
            .extend(nodes.iter().map(|node| TermRecord { node: (*node).into(), ..TermRecord::zeroed() }));
        self.units.push(UnitRecord {
            matrix: matrix.into(),
            first_term: first_term.into(),
            term_count: length(nodes).into(),
            rows: rows.into(),
            ..UnitRecord::zeroed()
        });
        self.schedule.push(ScheduleRecord { unit: unit.into(), ..ScheduleRecord::zeroed() });
        matrix
    }

    /// Adds a tensor of `count` matrices from `first` on. Names must ascend.
    pub fn tensor(&mut self, name: &[u8], shape: &[u64], first: u32, count: u32) {
        let name = self.string(name);
        self.tensors.push(TensorRecord {
            name,
            dtype: 2.into(),
            rank: (shape.len() as u16).into(),
            first_extent: length(&self.extents).into(),
            archive: NONE.into(),
            first_matrix: first.into(),
            matrix_count: count.into(),
            elements: shape.iter().fold(1u64, |n, e| n.wrapping_mul(*e)).into(),
            ..TensorRecord::zeroed()
        });
        self.extents.extend_from_slice(shape);
    }

    /// Adds a tensor of one matrix that is the sum of these nodes.
    pub fn sum(&mut self, name: &[u8], rows: u64, cols: u64, nodes: &[u32]) {
        let matrix = self.matrix(rows, cols, nodes);
        self.tensor(name, &[rows, cols], matrix, 1);
    }

    /// States the sizes of units and schedule, as verification wants them.
    pub fn state_sizes(&mut self) {
        let mut counted = BTreeSet::new();
        let sizes: Vec<BTreeSet<u32>> = self.units.iter().map(|unit| self.segments_of(unit)).collect();
        let decoded = |segments: &BTreeSet<u32>| -> u64 {
            let lengths = segments.iter().filter_map(|i| self.segments.get(*i as usize)).map(|s| s.1);
            lengths.fold(0, u64::saturating_add)
        };
        for (unit, segments) in self.units.iter_mut().zip(&sizes) {
            unit.resident_bytes = decoded(segments).into();
        }
        for step in &mut self.schedule {
            counted.extend(sizes.get(step.unit.get() as usize).into_iter().flatten().copied());
            step.cumulative_bytes = decoded(&counted).into();
        }
    }

    fn segments_of(&self, unit: &UnitRecord) -> BTreeSet<u32> {
        let (first, count) = (unit.first_term.get() as usize, unit.term_count.get() as usize);
        let mut pending: Vec<u32> = self.terms.iter().skip(first).take(count).map(|t| t.node.get()).collect();
        let (mut seen, mut segments) = (BTreeSet::new(), BTreeSet::new());
        while let Some(index) = pending.pop() {
            let Some(node) = self.nodes.get(index as usize).filter(|_| seen.insert(index)) else { continue };
            let refs = self.refs.iter().copied().skip(node.first_ref.get() as usize);
            let own = usize::from(node.segment_count.get());
            segments.extend(refs.clone().take(own));
            pending.extend(refs.skip(own).take(node.child_count.get().into()));
        }
        segments
    }

    /// The file.
    pub fn assemble(&self) -> Vec<u8> {
        let count: usize = Table::ALL.len() * size_of::<TableRecord>();
        let sizes = [
            self.strings.len(),
            self.extents.len() * 8,
            size_of_val(self.attributes.as_slice()),
            size_of_val(self.archives.as_slice()),
            size_of_val(self.tensors.as_slice()),
            size_of_val(self.matrices.as_slice()),
            size_of_val(self.transforms.as_slice()),
            size_of_val(self.terms.as_slice()),
            size_of_val(self.nodes.as_slice()),
            self.refs.len() * 4,
            self.descriptors.len(),
            self.segments.len() * size_of::<SegmentRecord>(),
            size_of_val(self.units.as_slice()),
            size_of_val(self.schedule.as_slice()),
        ];
        let end = sizes.iter().fold(count, |end, size| end.next_multiple_of(8) + size);
        let mut records = Vec::with_capacity(self.segments.len());
        let mut payload = Vec::new();
        for (stored, decoded, compression) in &self.segments {
            let offset = (256 + end + payload.len()).next_multiple_of(64);
            payload.resize(offset - 256 - end, 0);
            payload.extend_from_slice(stored);
            records.push(SegmentRecord {
                offset: (offset as u64).into(),
                stored_bytes: (stored.len() as u64).into(),
                decoded_bytes: (*decoded).into(),
                first_chunk_hash: NONE.into(),
                compression: *compression,
                hash: hash::hash(stored),
                ..SegmentRecord::zeroed()
            });
        }
        fn words<const N: usize>(list: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
            list.flatten().collect()
        }
        fn all<T: Pod>(list: &[T]) -> Vec<u8> {
            list.iter().flat_map(bytes_of).copied().collect()
        }
        let parts: [(u32, Vec<u8>); 14] = [
            (1, self.strings.clone()),
            (8, words(self.extents.iter().map(|n| n.to_le_bytes()))),
            (32, all(&self.attributes)),
            (64, all(&self.archives)),
            (48, all(&self.tensors)),
            (48, all(&self.matrices)),
            (48, all(&self.transforms)),
            (32, all(&self.terms)),
            (48, all(&self.nodes)),
            (4, words(self.refs.iter().map(|n| n.to_le_bytes()))),
            (1, self.descriptors.clone()),
            (64, all(&records)),
            (48, all(&self.units)),
            (32, all(&self.schedule)),
        ];
        let (mut tables, mut body) = (Vec::new(), Vec::new());
        for (kind, (record_bytes, bytes)) in (1u32..).zip(parts) {
            body.resize((count + body.len()).next_multiple_of(8) - count, 0);
            tables.extend_from_slice(bytes_of(&TableRecord {
                kind: kind.into(),
                flags: 1.into(),
                record_bytes: record_bytes.into(),
                reserved: 0.into(),
                offset: ((count + body.len()) as u64).into(),
                count: (bytes.len() as u64 / u64::from(record_bytes)).into(),
            }));
            body.extend_from_slice(&bytes);
        }
        let directory = [tables, body].concat();
        let header = Header {
            magic: MAGIC,
            major: MAJOR.into(),
            minor: MINOR.into(),
            edition: EDITION.into(),
            alignment_bytes: 64.into(),
            file_bytes: ((256 + directory.len() + payload.len()) as u64).into(),
            directory_offset: HEADER_BYTES.into(),
            directory_bytes: (directory.len() as u64).into(),
            directory_hash: hash::hash(&directory),
            // No segment is cut into chunk groups.
            chunk_group_bytes: (1 << 30).into(),
            chunk_hash_segment: NONE.into(),
            table_count: 14.into(),
            ..Header::zeroed()
        };
        [bytes_of(&header), &directory, &payload].concat()
    }
}

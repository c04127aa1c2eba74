//! The tables of the directory, built from the entries in canonical order.

use super::{ArchiveBuilder, Content, MatrixEntry, TensorEntry, TransformEntry, argument};
use crate::error::Result;
use crate::node::NodeData;
use crate::segment::{SegmentData, SegmentSource};
use crate::wire::*;
use bytemuck::Zeroable;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Identity of a segment's content: its hash, lengths and compression.
type SegmentKey = ([u8; 32], u64, u64, u8);

#[derive(Default)]
pub(super) struct Tables {
    strings: Vec<u8>,
    string_offsets: BTreeMap<String, u32>,
    extents: Vec<U64>,
    attributes: Vec<AttributeRecord>,
    archives: Vec<ArchiveRecord>,
    tensors: Vec<TensorRecord>,
    matrices: Vec<MatrixRecord>,
    transforms: Vec<TransformRecord>,
    terms: Vec<TermRecord>,
    nodes: Vec<NodeRecord>,
    refs: Vec<U32>,
    /// For each ref, whether it is a segment.
    segment_refs: Vec<bool>,
    descriptors: Vec<u8>,
    units: Vec<UnitRecord>,
    schedule: Vec<ScheduleRecord>,
    pub(super) segments: Vec<SegmentData>,
    segment_index: HashMap<SegmentKey, u32>,
    node_index: HashMap<Vec<u8>, u32>,
    shared_nodes: HashMap<*const NodeData, u32>,
    descriptor_index: HashMap<Vec<u8>, u32>,
}

fn small(part: &str, count: usize) -> Result<u32> {
    u32::try_from(count)
        .ok()
        .filter(|n| *n != NONE)
        .ok_or_else(|| argument(part, format!("{count} are more than 32 bits can count")))
}

impl Tables {
    pub(super) fn build(builder: &ArchiveBuilder) -> Result<Self> {
        let mut tables = Self::default();
        let mut tensors: Vec<&TensorEntry> = builder.tensors.iter().collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        tables.fill_strings(builder)?;
        tables.fill_references(builder)?;
        tables.fill_attributes(builder)?;
        // Matrices are laid out twice over: their segments in schedule order, their records in
        // tensor order. So the order of units is fixed first, and segments are taken in it.
        let matrices = unique_matrices(&tensors);
        let order = unit_order(builder, &tensors, &matrices)?;
        for matrix in &matrices.entries {
            for transform in matrix.input_transforms.iter().chain(&matrix.output_transforms) {
                match transform {
                    TransformEntry::Scale(node) => tables.take_segments(node)?,
                    TransformEntry::StoredSignHadamard { signs: segment, .. }
                    | TransformEntry::Permute(segment) => {
                        tables.segment(segment)?;
                    }
                    TransformEntry::SignHadamard { .. } => {}
                }
            }
        }
        for step in &order {
            let unit = matrices.entries.get(step.matrix).and_then(|m| m.units.get(step.unit));
            for term in unit.into_iter().flat_map(|u| &u.terms) {
                tables.take_segments(&term.node)?;
            }
        }
        for matrix in &matrices.entries {
            tables.matrix(matrix)?;
        }
        tables.fill_tensors(&tensors, &matrices)?;
        tables.fill_schedule(&order, &matrices)?;
        Ok(tables)
    }

    fn fill_strings(&mut self, builder: &ArchiveBuilder) -> Result<()> {
        let mut all = BTreeSet::new();
        all.extend(builder.tensors.iter().map(|t| t.name.as_str()));
        all.extend(builder.attributes.iter().flat_map(|a| [a.name.as_str(), a.media_type.as_str()]));
        all.extend(builder.references.iter().map(|r| r.name.as_str()));
        for text in all {
            self.string_offsets.insert(text.to_owned(), small("strings", self.strings.len())?);
            self.strings.extend_from_slice(text.as_bytes());
        }
        small("strings", self.strings.len()).map(drop)
    }

    fn string(&self, text: &str) -> StringRef {
        StringRef {
            offset: self.string_offsets.get(text).copied().unwrap_or(0).into(),
            bytes: (text.len() as u32).into(),
        }
    }

    fn fill_references(&mut self, builder: &ArchiveBuilder) -> Result<()> {
        let mut references: Vec<_> = builder.references.iter().collect();
        references.sort_by(|a, b| a.name.cmp(&b.name));
        for reference in references {
            self.archives.push(ArchiveRecord {
                name: self.string(&reference.name),
                identity: reference.identity,
                kind: reference.kind.into(),
                file_bytes: reference.file_bytes.into(),
                ..ArchiveRecord::zeroed()
            });
        }
        Ok(())
    }

    fn fill_attributes(&mut self, builder: &ArchiveBuilder) -> Result<()> {
        let mut attributes: Vec<_> = builder.attributes.iter().collect();
        attributes.sort_by(|a, b| a.name.cmp(&b.name));
        for attribute in attributes {
            let segment = self.segment(&attribute.segment)?;
            self.attributes.push(AttributeRecord {
                name: self.string(&attribute.name),
                media_type: self.string(&attribute.media_type),
                segment: segment.into(),
                ..AttributeRecord::zeroed()
            });
        }
        Ok(())
    }

    /// Index of a segment, which takes the next place in the file when it is new.
    fn segment(&mut self, segment: &SegmentData) -> Result<u32> {
        let hash = match &segment.source {
            SegmentSource::Bytes(bytes) => crate::hash::hash(bytes),
            SegmentSource::Stored(stored) => stored.hash,
        };
        let key = (hash, segment.stored_bytes(), segment.decoded_bytes, segment.compression as u8);
        if let Some(index) = self.segment_index.get(&key) {
            return Ok(*index);
        }
        let index = small("segments", self.segments.len() + 1)? - 1;
        self.segments.push(segment.clone());
        self.segment_index.insert(key, index);
        Ok(index)
    }

    /// Gives the segments of a node and its children their places: a node's own first.
    fn take_segments(&mut self, node: &Arc<NodeData>) -> Result<()> {
        if self.shared_nodes.insert(Arc::as_ptr(node), NONE).is_some() {
            return Ok(());
        }
        for segment in &node.segments {
            self.segment(segment)?;
        }
        node.children.iter().try_for_each(|child| self.take_segments(child))
    }

    fn node(&mut self, node: &Arc<NodeData>) -> Result<u32> {
        if let Some(index) = self.shared_nodes.get(&Arc::as_ptr(node)).filter(|i| **i != NONE) {
            return Ok(*index);
        }
        let segments = node.segments.iter().map(|s| self.segment(s)).collect::<Result<Vec<_>>>()?;
        let children = node.children.iter().map(|c| self.node(c)).collect::<Result<Vec<_>>>()?;
        let count =
            |n: usize| u16::try_from(n).map_err(|_| argument("node", format!("{n} segments or children")));
        let mut record = NodeRecord {
            encoding: node.encoding.into(),
            version: node.version.into(),
            rows: node.rows.into(),
            cols: node.cols.into(),
            descriptor_offset: self.descriptor(&node.descriptor)?.into(),
            descriptor_bytes: small("descriptors", node.descriptor.len())?.into(),
            segment_count: count(segments.len())?.into(),
            child_count: count(children.len())?.into(),
            ..NodeRecord::zeroed()
        };
        let mut key = bytemuck::bytes_of(&record).to_vec();
        key.extend(segments.iter().chain(&children).flat_map(|i| i.to_le_bytes()));
        let index = match self.node_index.get(&key) {
            Some(index) => *index,
            None => {
                record.first_ref = small("refs", self.refs.len())?.into();
                self.refs.extend(segments.iter().chain(&children).map(|i| U32::from(*i)));
                self.segment_refs.extend(segments.iter().map(|_| true).chain(children.iter().map(|_| false)));
                let index = small("nodes", self.nodes.len())?;
                self.nodes.push(record);
                self.node_index.insert(key, index);
                index
            }
        };
        self.shared_nodes.insert(Arc::as_ptr(node), index);
        Ok(index)
    }

    fn descriptor(&mut self, bytes: &[u8]) -> Result<u32> {
        if let Some(offset) = self.descriptor_index.get(bytes) {
            return Ok(*offset);
        }
        let offset = small("descriptors", self.descriptors.len())?;
        self.descriptors.extend_from_slice(bytes);
        self.descriptor_index.insert(bytes.to_vec(), offset);
        Ok(offset)
    }

    fn matrix(&mut self, matrix: &MatrixEntry) -> Result<()> {
        let side = |n: usize| u16::try_from(n).map_err(|_| argument("matrix", format!("{n} transforms")));
        let mut record = MatrixRecord {
            rows: matrix.rows.into(),
            cols: matrix.cols.into(),
            first_term: small("terms", self.terms.len())?.into(),
            first_transform: small("transforms", self.transforms.len())?.into(),
            input_transforms: side(matrix.input_transforms.len())?.into(),
            output_transforms: side(matrix.output_transforms.len())?.into(),
            first_unit: small("units", self.units.len())?.into(),
            unit_count: small("units", matrix.units.len())?.into(),
            ..MatrixRecord::zeroed()
        };
        for transform in &matrix.input_transforms {
            self.transform(transform, matrix.cols)?;
        }
        for transform in &matrix.output_transforms {
            self.transform(transform, matrix.rows)?;
        }
        let before = self.terms.len();
        for unit in &matrix.units {
            let first_term = small("terms", self.terms.len())?;
            let mut segments = BTreeSet::new();
            for term in &unit.terms {
                let node = self.node(&term.node)?;
                self.collect_segments(node, &mut segments);
                self.terms.push(TermRecord {
                    node: node.into(),
                    level: unit.level.into(),
                    flags: if term.optional { TERM_OPTIONAL } else { 0 }.into(),
                    row_start: term.row_start.into(),
                    col_start: term.col_start.into(),
                    ..TermRecord::zeroed()
                });
            }
            let held = segments.iter().filter_map(|i| self.segments.get(*i as usize));
            let resident = held.fold(0u64, |sum, s| sum.saturating_add(s.decoded_bytes));
            self.units.push(UnitRecord {
                matrix: small("matrices", self.matrices.len())?.into(),
                level: unit.level.into(),
                first_term: first_term.into(),
                term_count: small("terms", unit.terms.len())?.into(),
                row_start: unit.row_start.into(),
                rows: unit.rows.into(),
                resident_bytes: resident.into(),
                ..UnitRecord::zeroed()
            });
        }
        record.term_count = small("terms", self.terms.len() - before)?.into();
        self.matrices.push(record);
        Ok(())
    }

    fn transform(&mut self, transform: &TransformEntry, size: u64) -> Result<()> {
        let mut record = TransformRecord {
            size: size.into(),
            node: NONE.into(),
            segment: NONE.into(),
            ..TransformRecord::zeroed()
        };
        match transform {
            TransformEntry::Scale(node) => {
                record.kind = TRANSFORM_SCALE.into();
                record.node = self.node(node)?.into();
            }
            TransformEntry::SignHadamard { block, seed } => {
                record.kind = TRANSFORM_SIGN_HADAMARD.into();
                record.block = (*block).into();
                record.seed = (*seed).into();
            }
            TransformEntry::StoredSignHadamard { block, signs } => {
                record.kind = TRANSFORM_SIGN_HADAMARD.into();
                record.block = (*block).into();
                record.segment = self.segment(signs)?.into();
            }
            TransformEntry::Permute(indices) => {
                record.kind = TRANSFORM_PERMUTE.into();
                record.segment = self.segment(indices)?.into();
            }
        }
        self.transforms.push(record);
        Ok(())
    }

    /// Adds the segments of node `node` and all below it.
    fn collect_segments(&self, node: u32, found: &mut BTreeSet<u32>) {
        let Some(record) = self.nodes.get(node as usize) else { return };
        let first = record.first_ref.get() as usize;
        let count = usize::from(record.segment_count.get()) + usize::from(record.child_count.get());
        for i in first..first + count {
            match (self.refs.get(i), self.segment_refs.get(i)) {
                (Some(segment), Some(true)) => {
                    found.insert(segment.get());
                }
                (Some(child), _) => self.collect_segments(child.get(), found),
                _ => {}
            }
        }
    }

    fn fill_tensors(&mut self, tensors: &[&TensorEntry], matrices: &Matrices<'_>) -> Result<()> {
        for (tensor, first) in tensors.iter().zip(&matrices.first) {
            let elements = tensor
                .shape
                .iter()
                .try_fold(1u64, |n, extent| n.checked_mul(*extent))
                .ok_or_else(|| argument("shape", "overflows 64 bits").in_tensor(&tensor.name))?;
            let archive =
                match &tensor.content {
                    Content::Matrices(_) => None,
                    Content::Shard(name) | Content::Delta(name, _) => {
                        let name = self.string(name);
                        let found = self.archives.iter().position(|a| a.name == name);
                        Some(found.ok_or_else(|| {
                            argument("archive", "is not a reference").in_tensor(&tensor.name)
                        })?)
                    }
                };
            let delta = matches!(tensor.content, Content::Delta(..));
            let record = TensorRecord {
                name: self.string(&tensor.name),
                dtype: (tensor.dtype as u16).into(),
                rank: u16::try_from(tensor.shape.len())
                    .map_err(|_| argument("rank", tensor.shape.len().to_string()).in_tensor(&tensor.name))?
                    .into(),
                flags: if delta { TENSOR_DELTA } else { 0 }.into(),
                first_extent: small("extents", self.extents.len())?.into(),
                archive: archive.map_or(NONE, |i| i as u32).into(),
                first_matrix: first.0.into(),
                matrix_count: first.1.into(),
                elements: elements.into(),
                ..TensorRecord::zeroed()
            };
            self.extents.extend(tensor.shape.iter().map(|e| U64::from(*e)));
            self.tensors.push(record);
        }
        Ok(())
    }

    fn fill_schedule(&mut self, order: &[Step], matrices: &Matrices<'_>) -> Result<()> {
        let mut counted = BTreeSet::new();
        let mut cumulative = 0u64;
        debug_assert_eq!(self.matrices.len(), matrices.entries.len());
        for step in order {
            let unit = self
                .matrices
                .get(step.matrix)
                .map(|m| m.first_unit.get() + step.unit as u32)
                .ok_or_else(|| argument("schedule", "names no matrix"))?;
            let Some(record) = self.units.get(unit as usize) else { continue };
            let first = record.first_term.get() as usize;
            let mut segments = BTreeSet::new();
            for term in self.terms.iter().skip(first).take(record.term_count.get() as usize) {
                self.collect_segments(term.node.get(), &mut segments);
            }
            for i in segments {
                if counted.insert(i) {
                    let bytes = self.segments.get(i as usize).map_or(0, |s| s.decoded_bytes);
                    cumulative = cumulative.saturating_add(bytes);
                }
            }
            self.schedule.push(ScheduleRecord {
                unit: unit.into(),
                flags: if step.expected_loss.is_some() { SCHEDULE_LOSS } else { 0 }.into(),
                cumulative_bytes: cumulative.into(),
                expected_loss: step.expected_loss.unwrap_or(0.0).into(),
                ..ScheduleRecord::zeroed()
            });
        }
        Ok(())
    }

    /// Makes room for one more segment before all others.
    pub(super) fn shift_segments(&mut self) {
        let up = |field: &mut U32| {
            if field.get() != NONE {
                *field = (field.get() + 1).into();
            }
        };
        self.attributes.iter_mut().for_each(|a| up(&mut a.segment));
        self.transforms.iter_mut().for_each(|t| up(&mut t.segment));
        for (field, is_segment) in self.refs.iter_mut().zip(&self.segment_refs) {
            if *is_segment {
                up(field);
            }
        }
    }

    fn parts<'s>(&'s self, segments: &'s [u8]) -> [(Table, usize, &'s [u8]); Table::ALL.len()] {
        use bytemuck::cast_slice as bytes;
        [
            (Table::Strings, 1, &self.strings),
            (Table::Extents, 8, bytes(&self.extents)),
            (Table::Attributes, size_of::<AttributeRecord>(), bytes(&self.attributes)),
            (Table::Archives, size_of::<ArchiveRecord>(), bytes(&self.archives)),
            (Table::Tensors, size_of::<TensorRecord>(), bytes(&self.tensors)),
            (Table::Matrices, size_of::<MatrixRecord>(), bytes(&self.matrices)),
            (Table::Transforms, size_of::<TransformRecord>(), bytes(&self.transforms)),
            (Table::Terms, size_of::<TermRecord>(), bytes(&self.terms)),
            (Table::Nodes, size_of::<NodeRecord>(), bytes(&self.nodes)),
            (Table::Refs, 4, bytes(&self.refs)),
            (Table::Descriptors, 1, &self.descriptors),
            (Table::Segments, size_of::<SegmentRecord>(), segments),
            (Table::Units, size_of::<UnitRecord>(), bytes(&self.units)),
            (Table::Schedule, size_of::<ScheduleRecord>(), bytes(&self.schedule)),
        ]
    }

    /// Length of the directory with `segments` segment records.
    pub(super) fn directory_bytes(&self, segments: usize) -> u64 {
        let mut end = size_of::<TableRecord>() * Table::ALL.len();
        for (table, _, bytes) in self.parts(&[]) {
            let length =
                if table == Table::Segments { segments * size_of::<SegmentRecord>() } else { bytes.len() };
            end = end.next_multiple_of(8) + length;
        }
        end as u64
    }

    pub(super) fn directory(&self, segments: &[SegmentRecord]) -> Vec<u8> {
        let parts = self.parts(bytemuck::cast_slice(segments));
        let mut records = Vec::new();
        let mut body = Vec::new();
        let start = size_of::<TableRecord>() * parts.len();
        for (table, record_bytes, bytes) in parts {
            body.resize(body.len().next_multiple_of(8), 0);
            records.extend_from_slice(bytemuck::bytes_of(&TableRecord {
                kind: table.number().into(),
                flags: 1.into(),
                record_bytes: (record_bytes as u32).into(),
                reserved: 0.into(),
                offset: ((start + body.len()) as u64).into(),
                count: ((bytes.len() / record_bytes) as u64).into(),
            }));
            body.extend_from_slice(bytes);
        }
        records.extend_from_slice(&body);
        records
    }
}

/// The distinct matrices in record order, and for each tensor its first matrix and their number.
struct Matrices<'a> {
    entries: Vec<&'a MatrixEntry>,
    first: Vec<(u32, u32)>,
}

/// Finds tensors whose matrices are those of a tensor before: they are stored once.
fn unique_matrices<'a>(tensors: &[&'a TensorEntry]) -> Matrices<'a> {
    let mut entries = Vec::new();
    let mut first = Vec::new();
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    for tensor in tensors {
        let (Content::Matrices(list) | Content::Delta(_, list)) = &tensor.content else {
            first.push((entries.len() as u32, 0));
            continue;
        };
        let key: Vec<u8> = list.iter().flat_map(matrix_key).collect();
        let next = entries.len() as u32;
        let place = if list.is_empty() { next } else { *seen.entry(key).or_insert(next) };
        if place == next {
            entries.extend(list);
        }
        first.push((place, list.len() as u32));
    }
    Matrices { entries, first }
}

/// Bytes that are equal exactly when two matrices have the same content.
fn matrix_key(matrix: &MatrixEntry) -> Vec<u8> {
    let mut key = Vec::new();
    let mut put = |n: u64| key.extend_from_slice(&n.to_le_bytes());
    put(matrix.rows);
    put(matrix.cols);
    put(matrix.units.len() as u64);
    let mut parts = Vec::new();
    for list in [&matrix.input_transforms, &matrix.output_transforms] {
        put(list.len() as u64);
        for transform in list {
            match transform {
                TransformEntry::Scale(node) => {
                    put(1);
                    parts.extend(node_key(node));
                }
                TransformEntry::SignHadamard { block, seed } => {
                    [2, *block, *seed].into_iter().for_each(&mut put)
                }
                TransformEntry::StoredSignHadamard { block, signs } => {
                    [3, *block].into_iter().for_each(&mut put);
                    parts.extend(signs.hashes(usize::MAX).0);
                }
                TransformEntry::Permute(indices) => {
                    put(4);
                    parts.extend(indices.hashes(usize::MAX).0);
                }
            }
        }
    }
    for unit in &matrix.units {
        [u64::from(unit.level), unit.row_start, unit.rows, unit.terms.len() as u64]
            .into_iter()
            .for_each(&mut put);
        for term in &unit.terms {
            [term.row_start, term.col_start, u64::from(term.optional)].into_iter().for_each(&mut put);
            parts.extend(node_key(&term.node));
        }
    }
    key.extend(parts);
    key
}

fn node_key(node: &NodeData) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut put = |n: u64| {
        hasher.update(&n.to_le_bytes());
    };
    [node.encoding.into(), node.version.into(), node.rows, node.cols].into_iter().for_each(&mut put);
    [node.descriptor.len(), node.segments.len(), node.children.len()].into_iter().for_each(|n| put(n as u64));
    for segment in &node.segments {
        put(segment.stored_bytes());
        put(segment.decoded_bytes);
        put(segment.compression as u64);
    }
    hasher.update(&node.descriptor);
    for segment in &node.segments {
        hasher.update(&segment.hashes(usize::MAX).0);
    }
    for child in &node.children {
        hasher.update(&node_key(child));
    }
    hasher.finalize().into()
}

struct Step {
    /// Index in [`Matrices::entries`].
    matrix: usize,
    /// Unit in the matrix.
    unit: usize,
    expected_loss: Option<f64>,
}

fn unit_order(
    builder: &ArchiveBuilder,
    tensors: &[&TensorEntry],
    matrices: &Matrices<'_>,
) -> Result<Vec<Step>> {
    let Some(steps) = &builder.schedule else {
        let mut order: Vec<(u16, Step)> = Vec::new();
        for (matrix, entry) in matrices.entries.iter().enumerate() {
            order.extend(
                entry
                    .units
                    .iter()
                    .enumerate()
                    .map(|(unit, u)| (u.level, Step { matrix, unit, expected_loss: None })),
            );
        }
        // Stable: within a level, matrices and rows keep their order.
        order.sort_by_key(|(level, _)| *level);
        return Ok(order.into_iter().map(|(_, step)| step).collect());
    };
    // Tied tensors name the matrices of the first of them.
    let places: HashMap<(&str, usize), usize> = tensors
        .iter()
        .zip(&matrices.first)
        .flat_map(|(tensor, (first, count))| {
            let place = |m: usize| ((tensor.name.as_str(), m), *first as usize + m);
            (0..*count as usize).map(place)
        })
        .collect();
    let mut named: HashMap<(usize, usize), &str> = HashMap::with_capacity(steps.len());
    let mut order = Vec::with_capacity(steps.len());
    for step in steps {
        let (tensor, matrix, unit) = &step.unit;
        let matrix = places
            .get(&(tensor.as_str(), *matrix))
            .ok_or_else(|| argument("schedule", "names a matrix that is not stored").in_tensor(tensor))?;
        let units = matrices.entries.get(*matrix).map_or(0, |m| m.units.len());
        if *unit >= units {
            return Err(argument("schedule", format!("names unit {unit} of {units}")).in_tensor(tensor));
        }
        // A unit that a tied tensor named before is there already.
        if *named.entry((*matrix, *unit)).or_insert(tensor) != tensor {
            continue;
        }
        order.push(Step { matrix: *matrix, unit: *unit, expected_loss: step.expected_loss });
    }
    Ok(order)
}

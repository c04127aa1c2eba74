//! Where the fields of an archive lie, so that a test can damage each of them.
//!
//! Written from spec/container.md, sections 3 and 4; the reader has no part in it.

use cmf_format::archive::{Node, Tensor};
use cmf_format::{Archive, Source};
use std::ops::Range;

/// A field of the header or of a record, a string byte, an extent, a ref, a descriptor byte.
#[derive(Clone, Debug)]
pub struct Place {
    /// Such as `tensors[3].rank`.
    pub name: String,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// A table of the directory.
#[derive(Clone, Debug)]
pub struct TablePlace {
    /// Name in the spec.
    pub name: &'static str,
    /// Its bytes in the file.
    pub range: Range<usize>,
    /// Bytes from one record to the next.
    pub record_bytes: usize,
}

impl TablePlace {
    /// Bytes of record `index`.
    pub fn record(&self, index: usize) -> Range<usize> {
        let start = self.range.start + index * self.record_bytes;
        start..start + self.record_bytes
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        self.range.len() / self.record_bytes
    }
}

/// Name and size of each field, in order.
type Fields = &'static [(&'static str, usize)];

const HEADER: Fields = &[
    ("magic", 12),
    ("major", 2),
    ("minor", 2),
    ("edition", 4),
    ("alignment_bytes", 4),
    ("file_bytes", 8),
    ("directory_offset", 8),
    ("directory_bytes", 8),
    ("must_understand", 8),
    ("may_ignore", 8),
    ("directory_hash", 32),
    ("chunk_group_bytes", 4),
    ("chunk_hash_segment", 4),
    ("table_count", 4),
    ("reserved", 148),
];

const TABLE: Fields =
    &[("kind", 4), ("flags", 4), ("record_bytes", 4), ("reserved", 4), ("offset", 8), ("count", 8)];

const TABLES: [(&str, Fields); 14] = [
    ("strings", &[("byte", 1)]),
    ("extents", &[("extent", 8)]),
    (
        "attributes",
        &[
            ("name.offset", 4),
            ("name.bytes", 4),
            ("media_type.offset", 4),
            ("media_type.bytes", 4),
            ("segment", 4),
            ("flags", 4),
            ("reserved", 8),
        ],
    ),
    (
        "archives",
        &[
            ("name.offset", 4),
            ("name.bytes", 4),
            ("identity", 32),
            ("kind", 4),
            ("flags", 4),
            ("file_bytes", 8),
            ("reserved", 8),
        ],
    ),
    (
        "tensors",
        &[
            ("name.offset", 4),
            ("name.bytes", 4),
            ("dtype", 2),
            ("rank", 2),
            ("flags", 4),
            ("first_extent", 4),
            ("archive", 4),
            ("first_matrix", 4),
            ("matrix_count", 4),
            ("elements", 8),
            ("reserved", 8),
        ],
    ),
    (
        "matrices",
        &[
            ("rows", 8),
            ("cols", 8),
            ("first_term", 4),
            ("term_count", 4),
            ("first_transform", 4),
            ("input_transforms", 2),
            ("output_transforms", 2),
            ("first_unit", 4),
            ("unit_count", 4),
            ("reserved", 8),
        ],
    ),
    (
        "transforms",
        &[
            ("kind", 4),
            ("flags", 4),
            ("size", 8),
            ("block", 8),
            ("seed", 8),
            ("node", 4),
            ("segment", 4),
            ("reserved", 8),
        ],
    ),
    (
        "terms",
        &[("node", 4), ("level", 2), ("flags", 2), ("row_start", 8), ("col_start", 8), ("reserved", 8)],
    ),
    (
        "nodes",
        &[
            ("encoding", 4),
            ("version", 2),
            ("flags", 2),
            ("rows", 8),
            ("cols", 8),
            ("descriptor_offset", 4),
            ("descriptor_bytes", 4),
            ("first_ref", 4),
            ("segment_count", 2),
            ("child_count", 2),
            ("reserved", 8),
        ],
    ),
    ("refs", &[("ref", 4)]),
    ("descriptors", &[("byte", 1)]),
    (
        "segments",
        &[
            ("offset", 8),
            ("stored_bytes", 8),
            ("decoded_bytes", 8),
            ("first_chunk_hash", 4),
            ("compression", 1),
            ("reserved", 1),
            ("flags", 2),
            ("hash", 32),
        ],
    ),
    (
        "units",
        &[
            ("matrix", 4),
            ("level", 2),
            ("flags", 2),
            ("first_term", 4),
            ("term_count", 4),
            ("row_start", 8),
            ("rows", 8),
            ("resident_bytes", 8),
            ("reserved", 8),
        ],
    ),
    (
        "schedule",
        &[("unit", 4), ("flags", 4), ("cumulative_bytes", 8), ("expected_loss", 8), ("reserved", 8)],
    ),
];

fn number(bytes: &[u8], at: usize, length: usize) -> usize {
    let field = bytes.get(at..at + length).unwrap_or(&[]);
    field.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b))
}

/// The fourteen tables of an undamaged archive.
pub fn tables(bytes: &[u8]) -> Vec<TablePlace> {
    let records = (0..TABLES.len()).map(|i| 256 + i * 32);
    records
        .zip(TABLES)
        .map(|(at, (name, _))| {
            let record_bytes = number(bytes, at + 8, 4);
            let start = 256 + number(bytes, at + 16, 8);
            TablePlace { name, range: start..start + record_bytes * number(bytes, at + 24, 8), record_bytes }
        })
        .collect()
}

fn push(places: &mut Vec<Place>, name: &str, start: usize, fields: Fields) {
    let mut at = start;
    for (field, bytes) in fields {
        places.push(Place { name: format!("{name}.{field}"), range: at..at + bytes });
        at += bytes;
    }
}

/// Every field of the header and the directory of an undamaged archive, in file order.
pub fn fields(bytes: &[u8]) -> Vec<Place> {
    let mut places = Vec::new();
    push(&mut places, "header", 0, HEADER);
    for i in 0..TABLES.len() {
        push(&mut places, &format!("tables[{i}]"), 256 + i * 32, TABLE);
    }
    for (table, (name, fields)) in tables(bytes).iter().zip(TABLES) {
        for record in 0..table.count() {
            push(&mut places, &format!("{name}[{record}]"), table.record(record).start, fields);
        }
    }
    places
}

/// Stored bytes of every segment.
pub fn segments<S: Source>(archive: &Archive<S>) -> Vec<Range<usize>> {
    let range = |offset: u64, bytes: u64| offset as usize..(offset + bytes) as usize;
    archive.segments().map(|s| range(s.record().offset.get(), s.record().stored_bytes.get())).collect()
}

/// All bytes of header, directory and payload that the values of a tensor follow from, other than
/// header and table records.
pub fn footprint<S: Source>(bytes: &[u8], tensor: &Tensor<'_, S>) -> Vec<Range<usize>> {
    let tables = tables(bytes);
    let table = |name: &str| tables.iter().find(|t| t.name == name);
    let mut ranges = Vec::new();
    let mut add = |name: &str, first: usize, count: usize| {
        if let Some(table) = table(name) {
            ranges.extend((first..first + count).map(|i| table.record(i)));
        }
    };
    let record = tensor.record();
    add("tensors", tensor.index() as usize, 1);
    add("strings", record.name.offset.get() as usize, record.name.bytes.get() as usize);
    add("extents", record.first_extent.get() as usize, record.rank.get().into());
    let mut nodes: Vec<Node<'_, S>> = Vec::new();
    let mut used = Vec::new();
    for matrix in tensor.matrices() {
        let record = matrix.record();
        add("matrices", matrix.index() as usize, 1);
        let transforms = usize::from(record.input_transforms.get() + record.output_transforms.get());
        add("transforms", record.first_transform.get() as usize, transforms);
        let (inputs, outputs) = matrix.transforms();
        for transform in inputs.into_iter().chain(outputs) {
            used.push(transform.segment.get());
            nodes.extend(tensor.archive().nodes().nth(transform.node.get() as usize));
        }
        add("terms", record.first_term.get() as usize, record.term_count.get() as usize);
        add("units", record.first_unit.get() as usize, record.unit_count.get() as usize);
        nodes.extend(matrix.terms().filter_map(|t| t.node()));
    }
    while let Some(node) = nodes.pop() {
        let record = node.record();
        add("nodes", node.index() as usize, 1);
        let refs = usize::from(record.segment_count.get()) + usize::from(record.child_count.get());
        add("refs", record.first_ref.get() as usize, refs);
        add("descriptors", record.descriptor_offset.get() as usize, record.descriptor_bytes.get() as usize);
        used.extend(node.segments().map(|s| s.index()));
        nodes.extend(node.children());
    }
    let payload = segments(tensor.archive());
    used.retain(|segment| *segment != u32::MAX);
    used.iter().for_each(|segment| add("segments", *segment as usize, 1));
    ranges.extend(used.iter().filter_map(|segment| payload.get(*segment as usize).cloned()));
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use cmf_format::Limits;

    #[test]
    fn fields_fill_header_and_directory() -> cmf_format::Result<()> {
        for (name, bytes) in crate::samples::all()? {
            let archive = Archive::parse(&bytes, &Limits::default())?;
            let end = 256 + archive.header().directory_bytes.get() as usize;
            let mut at = 0;
            for place in fields(&bytes) {
                let gap = bytes.get(at..place.range.start);
                assert!(gap.is_some_and(|g| g.len() < 8 && g.iter().all(|b| *b == 0)), "{name}: {place:?}");
                at = place.range.end;
            }
            assert_eq!(at, end, "{name}");
        }
        Ok(())
    }
}

//! The rules that the header and the directory must keep (spec: container, 3 to 5).
//!
//! Every byte here may be hostile: no indexing, no unchecked arithmetic, no lossy conversion.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use super::{Archive, Span, foreign, transforms};
use crate::DType;
use crate::encoding::{self, Shape};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limits;
use crate::name;
use crate::source::Source;
use crate::wire::*;

/// An index or count as `usize`; one that does not fit is beyond any table.
fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn wide(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn structure(part: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Structure, part, problem)
}

pub(super) fn truncated(part: &str, offset: u64, expected_end: u64, file_bytes: u64) -> Error {
    Error::expected(
        ErrorKind::Truncated,
        part,
        format_args!("bytes up to {expected_end:#x}"),
        format_args!("a file of {file_bytes:#x}"),
    )
    .at(offset)
}

/// Checks the header of a file of `file_bytes` bytes that begins with `head`.
pub(super) fn header(head: &[u8], file_bytes: u64) -> Result<Header> {
    let magic = head.get(..MAGIC.len()).unwrap_or(head);
    if !MAGIC.starts_with(magic) || head.is_empty() {
        return Err(Error::expected(ErrorKind::NotCmf, "magic", "a .cmf file", foreign::describe(head)).at(0));
    }
    let header: Header = head
        .get(..256)
        .and_then(|bytes| bytemuck::try_pod_read_unaligned(bytes).ok())
        .ok_or_else(|| truncated("header", 0, HEADER_BYTES, wide(head.len())))?;
    if header.major.get() != MAJOR {
        let found = header.major.get();
        return Err(Error::expected(ErrorKind::UnsupportedVersion, "header.major", MAJOR, found).at(12));
    }
    if header.must_understand.get() != 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "header.must_understand",
            format!("bits {:#x} are unknown to this reader", header.must_understand.get()),
        )
        .at(48));
    }
    let expect = |part: &str, at: u64, expected: u64, found: u64| {
        if expected == found {
            return Ok(());
        }
        Err(Error::expected(ErrorKind::Structure, part, expected, found).at(at))
    };
    let power = |part: &str, at: u64, low: u32, high: u32, found: u32| {
        if found.is_power_of_two() && (low..=high).contains(&found) {
            return Ok(());
        }
        let expected = format!("a power of two from {low} to {high}");
        Err(Error::expected(ErrorKind::Structure, part, expected, found).at(at))
    };
    power("header.alignment_bytes", 20, 64, 65_536, header.alignment_bytes.get())?;
    expect("header.directory_offset", 32, HEADER_BYTES, header.directory_offset.get())?;
    power("header.chunk_group_bytes", 96, 1024, 1 << 30, header.chunk_group_bytes.get())?;
    if header.reserved.iter().any(|b| *b != 0) {
        return Err(structure("header.reserved", "expected zero bytes").at(108));
    }
    let stated = header.file_bytes.get();
    if file_bytes < stated {
        return Err(truncated("file", 24, stated, file_bytes));
    }
    expect("header.file_bytes", 24, file_bytes, stated)?;
    Ok(header)
}

const fn known_record_bytes(table: Table) -> usize {
    match table {
        Table::Strings | Table::Descriptors => 1,
        Table::Refs => 4,
        Table::Extents => 8,
        Table::Attributes | Table::Terms | Table::Schedule => 32,
        Table::Archives | Table::Segments => 64,
        Table::Tensors | Table::Matrices | Table::Transforms | Table::Nodes | Table::Units => 48,
    }
}

/// Checks the table records; gives the spans of the known tables and whether there are others.
pub(super) fn tables(
    directory: &[u8],
    header: &Header,
    limits: &Limits,
) -> Result<([Span; Table::ALL.len()], bool)> {
    let mut spans = [Span::default(); Table::ALL.len()];
    let mut found = 0usize;
    let mut unknown = false;
    let count = index(header.table_count.get());
    let records = count
        .checked_mul(size_of::<TableRecord>())
        .and_then(|bytes| directory.get(..bytes))
        .ok_or_else(|| structure("header.table_count", format!("{count} tables do not fit")).at(104))?;
    let mut end = wide(records.len());
    let mut previous_kind = 0;
    for (i, bytes) in records.chunks_exact(size_of::<TableRecord>()).enumerate() {
        let at = HEADER_BYTES.saturating_add(wide(i.saturating_mul(size_of::<TableRecord>())));
        let part = format!("tables[{i}]");
        let record: TableRecord = bytemuck::pod_read_unaligned(bytes);
        let kind = record.kind.get();
        if kind <= previous_kind {
            return Err(structure(part, format!("kind {kind} is not ascending")).at(at));
        }
        previous_kind = kind;
        if record.count.get() > limits.records && kind != 1 && kind != 11 {
            return Err(Error::expected(
                ErrorKind::Limit,
                format!("{part}.count"),
                format_args!("at most {}", limits.records),
                record.count.get(),
            )
            .at(at));
        }
        let aligned = end.checked_next_multiple_of(8).unwrap_or(u64::MAX);
        let gap = range(directory, end, aligned).unwrap_or(&[]);
        if record.offset.get() != aligned || gap.iter().any(|b| *b != 0) {
            return Err(Error::expected(
                ErrorKind::Structure,
                format!("{part}.offset"),
                format_args!("{aligned} after zero padding"),
                record.offset.get(),
            )
            .at(at));
        }
        end = record
            .count
            .get()
            .checked_mul(record.record_bytes.get().into())
            .and_then(|bytes| bytes.checked_add(aligned))
            .filter(|end| *end <= wide(directory.len()))
            .ok_or_else(|| {
                structure(format!("{part}.count"), "the table does not fit the directory").at(at)
            })?;
        let Some(slot) = Table::ALL.iter().position(|t| t.number() == kind) else {
            if record.flags.get() & 1 != 0 {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    part,
                    format!("kind {kind} must be understood and is unknown to this reader"),
                )
                .at(at));
            }
            unknown = true;
            continue;
        };
        let table = Table::ALL.get(slot).copied().unwrap_or(Table::Strings);
        let (record_bytes, known) = (index(record.record_bytes.get()), known_record_bytes(table));
        // Elements of heaps have one size for ever; records may grow at their end.
        let grows = !matches!(table, Table::Strings | Table::Extents | Table::Refs | Table::Descriptors);
        if record_bytes < known || (!grows && record_bytes != known) {
            return Err(Error::expected(
                ErrorKind::Structure,
                format!("{}.record_bytes", table.name()),
                known,
                record_bytes,
            )
            .at(at));
        }
        let span = Span {
            offset: usize::try_from(aligned.saturating_add(HEADER_BYTES)).unwrap_or(usize::MAX),
            record_bytes,
            count: usize::try_from(record.count.get()).unwrap_or(usize::MAX),
        };
        if let Some(place) = spans.get_mut(slot) {
            *place = span;
        }
        found = found.saturating_add(1);
    }
    if found != Table::ALL.len() {
        return Err(
            structure("header.table_count", format!("{found} of {} tables", Table::ALL.len())).at(104)
        );
    }
    if end != wide(directory.len()) {
        return Err(
            Error::expected(ErrorKind::Structure, "header.directory_bytes", end, directory.len()).at(40)
        );
    }
    Ok((spans, unknown))
}

fn range(bytes: &[u8], start: u64, end: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

/// Checks every record; gives for each node whether this reader can decode it.
pub(super) fn records<S: Source>(archive: &Archive<S>) -> Result<Vec<bool>> {
    let check = Check { archive };
    check.strings()?;
    check.segments()?;
    let mut used = Used {
        segments: vec![false; archive.span(Table::Segments).count],
        nodes: vec![false; archive.span(Table::Nodes).count],
    };
    let known = check.nodes(&mut used)?;
    let predecessors = check.matrices(&mut used)?;
    check.tensors()?;
    check.attributes(&mut used)?;
    check.archives()?;
    check.schedule(&predecessors)?;
    check.nothing_hidden(&used)?;
    Ok(known)
}

/// What something refers to.
struct Used {
    segments: Vec<bool>,
    nodes: Vec<bool>,
}

struct Check<'a, S> {
    archive: &'a Archive<S>,
}

impl<'a, S: Source> Check<'a, S> {
    /// A `Structure` error about a field of a record.
    fn bad(&self, table: Table, record: usize, field: &str, problem: impl Into<String>) -> Error {
        self.error(ErrorKind::Structure, table, record, field, problem)
    }

    fn error(
        &self,
        kind: ErrorKind,
        table: Table,
        record: usize,
        field: &str,
        problem: impl Into<String>,
    ) -> Error {
        Error::new(kind, format!("{}[{record}].{field}", table.name()), problem)
            .at(self.archive.record_offset(table, record))
    }

    fn same<T: PartialEq + core::fmt::Display>(
        &self,
        table: Table,
        record: usize,
        field: &str,
        expected: T,
        found: T,
    ) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(self.bad(table, record, field, format!("expected {expected}, found {found}")))
    }

    /// Marks `reference` as used; an error when it is out of range.
    fn mark(
        &self,
        used: &mut [bool],
        table: Table,
        record: usize,
        field: &str,
        reference: u32,
    ) -> Result<()> {
        let count = used.len();
        match used.get_mut(index(reference)) {
            Some(place) => {
                *place = true;
                Ok(())
            }
            None => Err(self.bad(table, record, field, format!("expected below {count}, found {reference}"))),
        }
    }

    fn must_understand(&self, table: Table, record: usize, flags: u32, known: u32) -> Result<()> {
        match flags & 0xFFFF & !known {
            0 => Ok(()),
            unknown => Err(self.error(
                ErrorKind::Unsupported,
                table,
                record,
                "flags",
                format!("bits {unknown:#x} are unknown to this reader"),
            )),
        }
    }

    fn strings(&self) -> Result<()> {
        let heap = self.archive.heap(Table::Strings);
        core::str::from_utf8(heap).map(drop).map_err(|e| {
            structure("strings", "is not UTF-8")
                .at(self.archive.record_offset(Table::Strings, e.valid_up_to()))
        })
    }

    /// The string of a record, within the limit and ascending after `previous`.
    fn name(
        &self,
        table: Table,
        record: usize,
        reference: StringRef,
        previous: Option<&str>,
        problem: fn(&str) -> Option<&'static str>,
    ) -> Result<&'a str> {
        if reference.bytes.get() > self.archive.limits.name_bytes {
            return Err(self.error(
                ErrorKind::Limit,
                table,
                record,
                "name",
                format!(
                    "expected at most {} bytes, found {}",
                    self.archive.limits.name_bytes,
                    reference.bytes.get()
                ),
            ));
        }
        let name = self
            .archive
            .string(reference)
            .ok_or_else(|| self.bad(table, record, "name", "is not a string of the heap"))?;
        if let Some(problem) = problem(name) {
            return Err(self.bad(table, record, "name", format!("`{}` {problem}", name.escape_debug())));
        }
        if previous.is_some_and(|previous| previous >= name) {
            return Err(self.bad(table, record, "name", format!("`{name}` is not unique and ascending")));
        }
        Ok(name)
    }

    fn segments(&self) -> Result<()> {
        let records = self.archive.records::<SegmentRecord>(Table::Segments);
        let header = &self.archive.header;
        let alignment = u64::from(header.alignment_bytes.get());
        let group = u64::from(header.chunk_group_bytes.get());
        let mut end = HEADER_BYTES.saturating_add(header.directory_bytes.get());
        let mut chunk_hashes = 0u64;
        for (i, segment) in records.iter().enumerate() {
            let t = Table::Segments;
            let stored = segment.stored_bytes.get();
            let offset = end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
            self.same(t, i, "offset", offset, segment.offset.get())?;
            end = offset.checked_add(stored).filter(|end| *end <= header.file_bytes.get()).ok_or_else(
                || {
                    let file = header.file_bytes.get();
                    self.bad(
                        t,
                        i,
                        "stored_bytes",
                        format!("{stored} bytes from {offset:#x} pass the end {file:#x}"),
                    )
                },
            )?;
            self.same(t, i, "reserved", 0, segment.reserved)?;
            if segment.compression == 0 {
                self.same(t, i, "decoded_bytes", stored, segment.decoded_bytes.get())?;
            }
            let groups = stored.div_ceil(group);
            if groups < 2 || Some(i) == self.archive.chunk_hash_segment() {
                self.same(t, i, "first_chunk_hash", NONE, segment.first_chunk_hash.get())?;
            } else {
                self.same(t, i, "first_chunk_hash", chunk_hashes, segment.first_chunk_hash.get().into())?;
                chunk_hashes = chunk_hashes.saturating_add(groups);
            }
        }
        if end != header.file_bytes.get() {
            return Err(structure(
                "header.file_bytes",
                format!("expected {end}, found {}", header.file_bytes.get()),
            )
            .at(24));
        }
        let stated = match header.chunk_hash_segment.get() {
            NONE => 0,
            i => match records.get(index(i)) {
                Some(segment) if segment.compression == 0 => segment.stored_bytes.get(),
                _ => return Err(structure("header.chunk_hash_segment", "is not a raw segment").at(100)),
            },
        };
        let expected = chunk_hashes.saturating_mul(32);
        if stated != expected {
            return Err(Error::expected(
                ErrorKind::Structure,
                "header.chunk_hash_segment",
                format_args!("{expected} bytes of hashes"),
                stated,
            )
            .at(100));
        }
        Ok(())
    }

    fn nodes(&self, used: &mut Used) -> Result<Vec<bool>> {
        let t = Table::Nodes;
        let records = self.archive.records::<NodeRecord>(t);
        let refs = self.archive.records::<U32>(Table::Refs);
        let segments = self.archive.records::<SegmentRecord>(Table::Segments);
        let mut known = Vec::with_capacity(records.len());
        let mut depths: Vec<u32> = Vec::with_capacity(records.len());
        let (mut lengths, mut shapes) = (Vec::new(), Vec::new());
        for (i, node) in records.iter().enumerate() {
            lengths.clear();
            shapes.clear();
            let mut knows = node.flags.get() & 0xFF == 0;
            let mut depth = 1u32;
            let mut next = index(node.first_ref.get());
            let mut reference = || {
                let found = refs.get(next).map(|r| r.get());
                next = next.saturating_add(1);
                found.ok_or_else(|| self.bad(t, i, "first_ref", "the refs are out of range"))
            };
            for _ in 0..node.segment_count.get() {
                let segment = reference()?;
                self.mark(&mut used.segments, t, i, "segment", segment)?;
                lengths.push(segments.get(index(segment)).map_or(0, |s| s.decoded_bytes.get()));
            }
            for _ in 0..node.child_count.get() {
                let child = reference()?;
                let (Some(depth_below), Some(knows_below), Some(record)) =
                    (depths.get(index(child)), known.get(index(child)), records.get(index(child)))
                else {
                    return Err(self.bad(t, i, "child", format!("expected below {i}, found {child}")));
                };
                self.mark(&mut used.nodes, t, i, "child", child)?;
                depth = depth.max(depth_below.saturating_add(1));
                knows &= *knows_below;
                shapes.push((record.rows.get(), record.cols.get()));
            }
            if depth > self.archive.limits.node_depth {
                let limit = self.archive.limits.node_depth;
                return Err(self.error(
                    ErrorKind::Limit,
                    t,
                    i,
                    "child",
                    format!("nodes nest deeper than {limit}"),
                ));
            }
            let descriptor = self
                .archive
                .descriptor(node)
                .ok_or_else(|| self.bad(t, i, "descriptor", "is out of range or not a multiple of 8"))?;
            let shape = Shape {
                rows: node.rows.get(),
                cols: node.cols.get(),
                descriptor,
                segments: &lengths,
                children: &shapes,
            };
            match encoding::check(node.encoding.get(), node.version.get(), &shape) {
                // A descriptor that states something newer fails its tensors only.
                Some(Err(error)) if error.kind() == ErrorKind::Unsupported => knows = false,
                Some(result) => result
                    .map_err(|e| e.within(format_args!("nodes[{i}]")).at(self.archive.record_offset(t, i)))?,
                None => knows = false,
            }
            known.push(knows);
            depths.push(depth);
        }
        Ok(known)
    }

    /// Checks matrices with their transforms, units and terms; gives for each unit the unit of the
    /// level below that it refines.
    fn matrices(&self, used: &mut Used) -> Result<Vec<u32>> {
        let t = Table::Matrices;
        let mut predecessors = Vec::with_capacity(self.archive.span(Table::Units).count);
        let (mut terms, mut units, mut transforms) = (0u32, 0u32, 0u32);
        for (i, matrix) in self.archive.records::<MatrixRecord>(t).iter().enumerate() {
            self.same(t, i, "first_term", terms, matrix.first_term.get())?;
            self.same(t, i, "first_unit", units, matrix.first_unit.get())?;
            self.same(t, i, "first_transform", transforms, matrix.first_transform.get())?;
            let sides = [
                (matrix.input_transforms.get(), matrix.cols.get()),
                (matrix.output_transforms.get(), matrix.rows.get()),
            ];
            for (count, size) in sides {
                for _ in 0..count {
                    self.transform(index(transforms), size, used)?;
                    transforms = transforms.saturating_add(1);
                }
            }
            let end = terms.saturating_add(matrix.term_count.get());
            for _ in 0..matrix.unit_count.get() {
                terms = self.unit(i, matrix, index(units), terms, &mut predecessors, used)?;
                units = units.saturating_add(1);
            }
            self.same(t, i, "term_count", end, terms)?;
        }
        for (table, found) in [(Table::Terms, terms), (Table::Units, units), (Table::Transforms, transforms)]
        {
            let count = self.archive.span(table).count;
            if count != index(found) {
                return Err(structure(
                    table.name(),
                    format!("{count} records, of which matrices hold {found}"),
                )
                .at(self.archive.record_offset(table, 0)));
            }
        }
        Ok(predecessors)
    }

    fn transform(&self, i: usize, size: u64, used: &mut Used) -> Result<()> {
        let t = Table::Transforms;
        let record = *self
            .archive
            .records::<TransformRecord>(t)
            .get(i)
            .ok_or_else(|| self.bad(t, i, "kind", "is beyond the table"))?;
        self.same(t, i, "size", size, record.size.get())?;
        let segment_bytes = match record.segment.get() {
            NONE => None,
            segment => {
                self.mark(&mut used.segments, t, i, "segment", segment)?;
                let records = self.archive.records::<SegmentRecord>(Table::Segments);
                records.get(index(segment)).map(|s| s.decoded_bytes.get())
            }
        };
        let node_shape = match record.node.get() {
            NONE => None,
            node => {
                self.mark(&mut used.nodes, t, i, "node", node)?;
                let records = self.archive.records::<NodeRecord>(Table::Nodes);
                records.get(index(node)).map(|n| (n.rows.get(), n.cols.get()))
            }
        };
        transforms::check(&record, segment_bytes, node_shape)
            .map_err(|e| e.within(format_args!("transforms[{i}]")).at(self.archive.record_offset(t, i)))
    }

    /// Checks one unit, whose terms start at `first_term`; gives the term after its last.
    fn unit(
        &self,
        matrix_index: usize,
        matrix: &MatrixRecord,
        i: usize,
        first_term: u32,
        predecessors: &mut Vec<u32>,
        used: &mut Used,
    ) -> Result<u32> {
        let t = Table::Units;
        let units = self.archive.records::<UnitRecord>(t);
        let unit = units.get(i).ok_or_else(|| self.bad(t, i, "matrix", "is beyond the table"))?;
        self.same(t, i, "matrix", wide(matrix_index), unit.matrix.get().into())?;
        self.same(t, i, "first_term", first_term, unit.first_term.get())?;
        self.must_understand(t, i, u32::from(unit.flags.get() & 0xFF), 0)?;
        let (start, rows) = (unit.row_start.get(), unit.rows.get());
        let end = start.checked_add(rows).filter(|end| *end <= matrix.rows.get()).ok_or_else(|| {
            self.bad(t, i, "rows", format!("{start} + {rows} pass the matrix's {}", matrix.rows.get()))
        })?;
        let previous = match i > index(matrix.first_unit.get()) {
            true => i.checked_sub(1).and_then(|p| units.get(p)),
            false => None,
        };
        let level = unit.level.get();
        let previous_level = previous.map_or(0, |p| p.level.get());
        if level < previous_level || level.saturating_sub(previous_level) > 1 {
            return Err(self.bad(t, i, "level", format!("{level} after {previous_level}")));
        }
        if let Some(previous) = previous
            && level == previous_level
            && start < previous.row_start.get().saturating_add(previous.rows.get())
        {
            return Err(self.bad(t, i, "row_start", format!("{start} overlaps or goes back")));
        }
        predecessors.push(self.predecessor(matrix, units, i, level, start, rows, predecessors)?);
        let terms = self.archive.records::<TermRecord>(Table::Terms);
        let nodes = self.archive.records::<NodeRecord>(Table::Nodes);
        let mut next = first_term;
        for _ in 0..unit.term_count.get() {
            let k = index(next);
            let term = terms.get(k).ok_or_else(|| self.bad(t, i, "term_count", "passes the terms table"))?;
            self.same(Table::Terms, k, "level", level, term.level.get())?;
            self.mark(&mut used.nodes, Table::Terms, k, "node", term.node.get())?;
            let (node_rows, node_cols) =
                nodes.get(index(term.node.get())).map_or((0, 0), |n| (n.rows.get(), n.cols.get()));
            let last_row = term.row_start.get().checked_add(node_rows).unwrap_or(u64::MAX);
            let last_col = term.col_start.get().checked_add(node_cols).unwrap_or(u64::MAX);
            if term.row_start.get() < start || last_row > end || last_col > matrix.cols.get() {
                return Err(self.bad(
                    Table::Terms,
                    k,
                    "row_start",
                    format!(
                        "rows {}..{last_row}, columns {}..{last_col} pass the unit's rows {start}..{end} or the matrix's {} columns",
                        term.row_start.get(),
                        term.col_start.get(),
                        matrix.cols.get()
                    ),
                ));
            }
            next = next.saturating_add(1);
        }
        Ok(next)
    }

    /// The unit one level below with the same rows. Within a level rows ascend, so the search for
    /// it goes on from where it ended for the unit before: O(units) in all.
    #[expect(clippy::too_many_arguments, reason = "one caller, and each is a plain value of the record")]
    fn predecessor(
        &self,
        matrix: &MatrixRecord,
        units: super::Records<'_, UnitRecord>,
        i: usize,
        level: u16,
        start: u64,
        rows: u64,
        predecessors: &[u32],
    ) -> Result<u32> {
        let Some(below) = level.checked_sub(1) else { return Ok(NONE) };
        let before = i.checked_sub(1).and_then(|p| units.get(p)).map(|p| p.level.get());
        let mut candidate = match predecessors.last() {
            Some(last) if before == Some(level) => last.saturating_add(1),
            _ => first_of_level(matrix, units, i, below),
        };
        while let Some(unit) = units.get(index(candidate)).filter(|u| u.level.get() == below) {
            if (unit.row_start.get(), unit.rows.get()) == (start, rows) {
                return Ok(candidate);
            }
            candidate = candidate.saturating_add(1);
        }
        Err(self.bad(
            Table::Units,
            i,
            "rows",
            format!("no unit of level {below} has exactly rows {start}..{}", start.saturating_add(rows)),
        ))
    }

    fn tensors(&self) -> Result<()> {
        let t = Table::Tensors;
        let extents = self.archive.records::<U64>(Table::Extents);
        let matrices = self.archive.records::<MatrixRecord>(Table::Matrices);
        let archives = self.archive.records::<ArchiveRecord>(Table::Archives);
        let (mut previous, mut extent_cursor, mut matrix_cursor) = (None, 0usize, 0u32);
        for (i, tensor) in self.archive.records::<TensorRecord>(t).iter().enumerate() {
            let name = self.name(t, i, tensor.name, previous, name::tensor_problem)?;
            previous = Some(name);
            let problem = |field: &str, text: String| self.bad(t, i, field, text).in_tensor(name);
            if DType::from_number(tensor.dtype.get()).is_none() {
                return Err(self
                    .error(
                        ErrorKind::Unsupported,
                        t,
                        i,
                        "dtype",
                        format!("{} is unknown", tensor.dtype.get()),
                    )
                    .in_tensor(name));
            }
            if tensor.rank.get() > self.archive.limits.rank {
                let limit = self.archive.limits.rank;
                return Err(self
                    .error(
                        ErrorKind::Limit,
                        t,
                        i,
                        "rank",
                        format!("expected at most {limit}, found {}", tensor.rank.get()),
                    )
                    .in_tensor(name));
            }
            self.same(t, i, "first_extent", extent_cursor, index(tensor.first_extent.get()))?;
            let mut elements = Some(1u64);
            for _ in 0..tensor.rank.get() {
                let extent = extents
                    .get(extent_cursor)
                    .ok_or_else(|| problem("rank", "passes the extents table".into()))?;
                elements = elements.and_then(|n| n.checked_mul(extent.get()));
                extent_cursor = extent_cursor.saturating_add(1);
            }
            let elements = elements.ok_or_else(|| problem("elements", "overflow 64 bits".into()))?;
            self.same(t, i, "elements", elements, tensor.elements.get())?;
            let (first, count) = (tensor.first_matrix.get(), tensor.matrix_count.get());
            let delta = tensor.flags.get() & TENSOR_DELTA != 0;
            match archives.get(index(tensor.archive.get())).map(|a| a.kind.get()) {
                None if tensor.archive.get() == NONE && !delta => {}
                Some(ARCHIVE_SHARD) if !delta => self.same(t, i, "matrix_count", 0, count)?,
                Some(ARCHIVE_BASE) if delta => {}
                _ => {
                    return Err(problem(
                        "archive",
                        "is not an archive of the kind that the tensor needs".into(),
                    ));
                }
            }
            let end = first.checked_add(count).ok_or_else(|| problem("matrix_count", "overflows".into()))?;
            if first == matrix_cursor {
                matrix_cursor = end;
            } else if end > matrix_cursor || count == 0 {
                return Err(problem(
                    "first_matrix",
                    format!("expected {matrix_cursor} or an alias below, found {first}"),
                ));
            }
            if count == 0 {
                if elements != 0 && tensor.archive.get() == NONE {
                    return Err(problem("matrix_count", format!("no matrix holds the {elements} elements")));
                }
                continue;
            }
            let mut shape = None;
            for m in first..end {
                let matrix = matrices
                    .get(index(m))
                    .ok_or_else(|| problem("matrix_count", "passes the matrices table".into()))?;
                let found = (matrix.rows.get(), matrix.cols.get());
                if *shape.get_or_insert(found) != found {
                    return Err(problem("first_matrix", "matrices differ in shape".into()));
                }
            }
            let held = shape
                .and_then(|(rows, cols)| rows.checked_mul(cols))
                .and_then(|n| n.checked_mul(count.into()));
            if held != Some(elements) || elements == 0 {
                return Err(problem("elements", format!("{elements}, but the matrices do not hold as many")));
            }
        }
        let (t, e) = (self.archive.span(Table::Matrices).count, self.archive.span(Table::Extents).count);
        if index(matrix_cursor) != t || extent_cursor != e {
            return Err(structure(
                "tensors",
                format!("hold {matrix_cursor} of {t} matrices, {extent_cursor} of {e} extents"),
            )
            .at(self.archive.record_offset(Table::Tensors, 0)));
        }
        Ok(())
    }

    fn attributes(&self, used: &mut Used) -> Result<()> {
        let t = Table::Attributes;
        let mut previous = None;
        for (i, attribute) in self.archive.records::<AttributeRecord>(t).iter().enumerate() {
            previous = Some(self.name(t, i, attribute.name, previous, name::file_problem)?);
            self.name(t, i, attribute.media_type, None, |text| {
                (!text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')).then_some("is no media type")
            })?;
            self.must_understand(t, i, attribute.flags.get(), 0)?;
            self.mark(&mut used.segments, t, i, "segment", attribute.segment.get())?;
        }
        Ok(())
    }

    fn archives(&self) -> Result<()> {
        let t = Table::Archives;
        let mut previous = None;
        for (i, archive) in self.archive.records::<ArchiveRecord>(t).iter().enumerate() {
            previous = Some(self.name(t, i, archive.name, previous, name::file_problem)?);
            self.must_understand(t, i, archive.flags.get(), 0)?;
            let kind = archive.kind.get();
            if kind != ARCHIVE_SHARD && kind != ARCHIVE_BASE {
                return Err(self.error(ErrorKind::Unsupported, t, i, "kind", format!("{kind} is unknown")));
            }
        }
        Ok(())
    }

    fn schedule(&self, predecessors: &[u32]) -> Result<()> {
        let t = Table::Schedule;
        let steps = self.archive.records::<ScheduleRecord>(t);
        let mut seen = vec![false; predecessors.len()];
        if steps.len() != seen.len() {
            return Err(structure("schedule", format!("{} steps for {} units", steps.len(), seen.len()))
                .at(self.archive.record_offset(t, 0)));
        }
        let mut cumulative = 0;
        for (i, step) in steps.iter().enumerate() {
            self.must_understand(t, i, step.flags.get(), SCHEDULE_LOSS)?;
            let unit = step.unit.get();
            let refines = predecessors.get(index(unit)).copied().unwrap_or(NONE);
            if refines != NONE && !seen.get(index(refines)).copied().unwrap_or(false) {
                return Err(self.bad(
                    t,
                    i,
                    "unit",
                    format!("{unit} comes before unit {refines}, which it refines"),
                ));
            }
            match seen.get_mut(index(unit)) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(self.bad(t, i, "unit", format!("{unit} is out of range or comes twice"))),
            }
            let bytes = step.cumulative_bytes.get();
            if bytes < cumulative {
                return Err(self.bad(t, i, "cumulative_bytes", format!("{bytes} after {cumulative}")));
            }
            cumulative = bytes;
            if !step.expected_loss.get().is_finite() {
                return Err(self.bad(t, i, "expected_loss", "is not finite"));
            }
        }
        Ok(())
    }

    /// Everything in the file is referred to by something, so that nothing can hide in it. A table
    /// that this reader does not know may refer to more.
    fn nothing_hidden(&self, used: &Used) -> Result<()> {
        if self.archive.unknown_tables {
            return Ok(());
        }
        let chunk_hashes = self.archive.chunk_hash_segment();
        for (table, used) in [(Table::Segments, &used.segments), (Table::Nodes, &used.nodes)] {
            let hidden = used
                .iter()
                .enumerate()
                .position(|(i, used)| !used && (table != Table::Segments || chunk_hashes != Some(i)));
            if let Some(i) = hidden {
                return Err(self.bad(table, i, "use", "nothing refers to it"));
            }
        }
        Ok(())
    }
}

/// First unit of level `below`, the level that ends just before unit `i`. Called once for each
/// level, and walks over the units of the level below it.
fn first_of_level(matrix: &MatrixRecord, units: super::Records<'_, UnitRecord>, i: usize, below: u16) -> u32 {
    let mut first = u32::try_from(i).unwrap_or(NONE);
    while first > matrix.first_unit.get()
        && units.get(index(first.saturating_sub(1))).is_some_and(|u| u.level.get() == below)
    {
        first = first.saturating_sub(1);
    }
    first
}

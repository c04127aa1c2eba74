//! The header and the table records (spec: container, 3).

use super::super::{Span, foreign};
use super::{index, structure, truncated, wide};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::Limits;
use crate::wire::*;

/// Checks the header of a file of `file_bytes` bytes that begins with `head`.
pub(in crate::archive) fn header(head: &[u8], file_bytes: u64) -> Result<Header> {
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

/// Checks the table records; gives the spans of the known tables, and whether there is more than
/// this reader knows: other tables, or longer records.
pub(in crate::archive) fn tables(
    directory: &[u8],
    header: &Header,
    limits: &Limits,
) -> Result<([Span; Table::ALL.len()], bool)> {
    let mut spans = [Span::default(); Table::ALL.len()];
    let mut found = 0usize;
    let mut more = false;
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
        let (kind, flags) = (record.kind.get(), record.flags.get());
        if kind <= previous_kind {
            return Err(structure(part, format!("kind {kind} is not ascending")).at(at));
        }
        previous_kind = kind;
        if record.reserved.get() != 0 {
            return Err(structure(format!("{part}.reserved"), "expected zero bytes").at(at));
        }
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
            if flags & TABLE_REQUIRED != 0 {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    part,
                    format!("kind {kind} must be understood and is unknown to this reader"),
                )
                .at(at));
            }
            more = true;
            continue;
        };
        let table = Table::ALL.get(slot).copied().unwrap_or(Table::Strings);
        let (record_bytes, known) = (index(record.record_bytes.get()), known_record_bytes(table));
        if flags & TABLE_REQUIRED == 0 {
            let problem = "expected bit 0: every reader must understand this table";
            return Err(structure(format!("{}.flags", table.name()), problem).at(at));
        }
        if flags & 0xFFFF & !TABLE_REQUIRED != 0 {
            let problem = format!("bits {:#x} are unknown to this reader", flags & 0xFFFF & !TABLE_REQUIRED);
            return Err(Error::new(ErrorKind::Unsupported, format!("{}.flags", table.name()), problem).at(at));
        }
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
        more |= record_bytes > known;
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
    Ok((spans, more))
}

fn range(bytes: &[u8], start: u64, end: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

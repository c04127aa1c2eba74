//! The rules that the header and the directory must keep (spec: container, 3 to 5).
//!
//! Every byte here may be hostile: no indexing, no unchecked arithmetic, no lossy conversion.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

mod head;
mod matrices;
mod payload;
mod strings;
mod tensors;

pub(super) use head::{header, tables};

use super::Archive;
use crate::error::{Error, ErrorKind, Result};
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

    /// The string of a record, within the limit and ascending after `previous`.
    fn name(
        &self,
        table: Table,
        record: usize,
        (field, reference): (&str, StringRef),
        previous: Option<&str>,
        problem: fn(&str) -> Option<&'static str>,
    ) -> Result<&'a str> {
        if reference.bytes.get() > self.archive.limits.name_bytes {
            return Err(self.error(
                ErrorKind::Limit,
                table,
                record,
                field,
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
            .ok_or_else(|| self.bad(table, record, field, "is not a string of the heap"))?;
        if let Some(problem) = problem(name) {
            return Err(self.bad(table, record, field, format!("`{}` {problem}", name.escape_debug())));
        }
        if previous.is_some_and(|previous| previous >= name) {
            return Err(self.bad(table, record, field, format!("`{name}` is not unique and ascending")));
        }
        Ok(name)
    }

    /// Everything in the file is referred to by something, so that nothing can hide in it. Tables
    /// and ends of records that this reader does not know may refer to more.
    fn nothing_hidden(&self, used: &Used) -> Result<()> {
        let chunk_hashes = self.archive.chunk_hash_segment();
        if let Some(i) = chunk_hashes
            && used.segments.get(i) == Some(&true)
        {
            return Err(self.bad(Table::Segments, i, "use", "holds chunk-group hashes and something else"));
        }
        if self.archive.more {
            return Ok(());
        }
        self.strings_are_used()?;
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

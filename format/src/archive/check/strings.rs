//! The string heap (spec: container, 4.1).

use super::{Check, index, structure};
use crate::error::Result;
use crate::source::Source;
use crate::wire::*;

impl<S: Source> Check<'_, S> {
    pub(super) fn strings(&self) -> Result<()> {
        let heap = self.archive.heap(Table::Strings);
        core::str::from_utf8(heap).map(drop).map_err(|e| {
            structure("strings", "is not UTF-8")
                .at(self.archive.record_offset(Table::Strings, e.valid_up_to()))
        })
    }

    /// Checks that the heap is the strings that records refer to, ascending, end to end.
    ///
    /// Tensor names ascend, and so do their offsets in such a heap: one walk over the tensors,
    /// merged with the few other strings.
    pub(super) fn strings_are_used(&self) -> Result<()> {
        let place = |s: StringRef| (index(s.offset.get()), index(s.bytes.get()));
        let attributes = self.archive.records::<AttributeRecord>(Table::Attributes);
        let archives = self.archive.records::<ArchiveRecord>(Table::Archives);
        let mut others: Vec<_> =
            attributes.iter().flat_map(|a| [place(a.name), place(a.media_type)]).collect();
        others.extend(archives.iter().map(|a| place(a.name)));
        others.sort_unstable();
        others.dedup();
        let mut others = others.into_iter().peekable();
        let tensors = self.archive.records::<TensorRecord>(Table::Tensors);
        let mut tensors = tensors.iter().map(|t| place(t.name)).peekable();
        let heap = self.archive.heap(Table::Strings);
        let bad = |at: usize, problem: &str| {
            Err(structure("strings", problem).at(self.archive.record_offset(Table::Strings, at)))
        };
        let (mut end, mut previous) = (0usize, &[][..]);
        loop {
            let next = match (tensors.peek().copied(), others.peek().copied()) {
                (Some(tensor), Some(other)) => tensor.min(other),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => break,
            };
            tensors.next_if_eq(&next);
            others.next_if_eq(&next);
            let (start, bytes) = next;
            if start != end {
                return bad(end, "expected the start of a string that a record refers to");
            }
            end = start.saturating_add(bytes);
            let text = heap.get(start..end).unwrap_or(&[]);
            if text <= previous {
                return bad(start, "the strings are not unique and ascending");
            }
            previous = text;
        }
        match end == heap.len() {
            true => Ok(()),
            false => bad(end, "no record refers to the bytes from here on"),
        }
    }
}

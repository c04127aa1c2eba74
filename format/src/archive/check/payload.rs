//! Segments and nodes (spec: container, 4.9 to 4.12).

use super::{Check, Used, index, structure};
use crate::encoding::{self, Shape};
use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;
use crate::wire::*;

impl<S: Source> Check<'_, S> {
    pub(super) fn segments(&self) -> Result<()> {
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
        self.chunk_hash_segment(chunk_hashes)
    }

    /// Checks that segment 0 holds `count` chunk-group hashes, or that there is none for none.
    fn chunk_hash_segment(&self, count: u64) -> Result<()> {
        let bad = |expected: &str, found: u64| {
            Err(Error::expected(ErrorKind::Structure, "header.chunk_hash_segment", expected, found).at(100))
        };
        let first = self.archive.records::<SegmentRecord>(Table::Segments).get(0).copied();
        match (self.archive.header.chunk_hash_segment.get(), first) {
            (NONE, _) if count == 0 => Ok(()),
            (0, Some(segment)) if count != 0 && segment.compression == 0 => {
                let (expected, stored) = (count.saturating_mul(32), segment.stored_bytes.get());
                match stored == expected {
                    true => Ok(()),
                    false => bad(&format!("{expected} bytes of hashes"), stored),
                }
            }
            (found, _) if count == 0 => bad("4294967295 (no chunk group has a hash)", found.into()),
            (found, _) => bad("0, a raw segment", found.into()),
        }
    }

    pub(super) fn nodes(&self, used: &mut Used) -> Result<Vec<bool>> {
        let t = Table::Nodes;
        let records = self.archive.records::<NodeRecord>(t);
        let refs = self.archive.records::<U32>(Table::Refs);
        let segments = self.archive.records::<SegmentRecord>(Table::Segments);
        let mut known = Vec::with_capacity(records.len());
        let mut depths: Vec<u32> = Vec::with_capacity(records.len());
        // Few nodes that share children can be exponentially many when each path is walked.
        let mut trees: Vec<u32> = Vec::with_capacity(records.len());
        let (mut lengths, mut shapes) = (Vec::new(), Vec::new());
        let (mut next, mut descriptors_end) = (0usize, 0u32);
        for (i, node) in records.iter().enumerate() {
            lengths.clear();
            shapes.clear();
            self.same(t, i, "reserved", 0, node.reserved.get())?;
            self.same(t, i, "first_ref", next, index(node.first_ref.get()))?;
            let flags_known = node.flags.get() & 0xFF == 0;
            let mut knows = flags_known;
            let (mut depth, mut tree) = (1u32, 1u32);
            let mut reference = || {
                let found = refs.get(next).map(|r| r.get());
                next = next.saturating_add(1);
                found.ok_or_else(|| self.bad(t, i, "first_ref", "the refs are out of range"))
            };
            for _ in 0..node.segment_count.get() {
                let segment = reference()?;
                self.mark(&mut used.segments, t, i, "segment", segment)?;
                let segment = segments.get(index(segment));
                knows &= segment.is_some_and(SegmentRecord::is_known);
                lengths.push(segment.map_or(0, |s| s.decoded_bytes.get()));
            }
            for _ in 0..node.child_count.get() {
                let child = reference()?;
                let below = (depths.get(index(child)), trees.get(index(child)), known.get(index(child)));
                let ((Some(depth_below), Some(tree_below), Some(knows_below)), Some(record)) =
                    (below, records.get(index(child)))
                else {
                    return Err(self.bad(t, i, "child", format!("expected below {i}, found {child}")));
                };
                self.mark(&mut used.nodes, t, i, "child", child)?;
                depth = depth.max(depth_below.saturating_add(1));
                tree = tree.saturating_add(*tree_below);
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
            if tree > self.archive.limits.node_tree {
                let problem = format!("a tree of more than {} nodes", self.archive.limits.node_tree);
                return Err(self.error(ErrorKind::Limit, t, i, "child", problem));
            }
            let descriptor = self
                .archive
                .descriptor(node)
                .ok_or_else(|| self.bad(t, i, "descriptor", "is out of range or not a multiple of 8"))?;
            let start = node.descriptor_offset.get();
            let end = start.saturating_add(node.descriptor_bytes.get());
            if start == descriptors_end {
                descriptors_end = end;
            } else if end > descriptors_end {
                let problem = format!("expected {descriptors_end} or one before, found {start}");
                return Err(self.bad(t, i, "descriptor_offset", problem));
            }
            let shape = Shape {
                rows: node.rows.get(),
                cols: node.cols.get(),
                descriptor,
                segments: &lengths,
                children: &shapes,
            };
            // What an unknown flag means, nobody can say: perhaps other segments or children.
            let outcome = match flags_known {
                true => encoding::check(node.encoding.get(), node.version.get(), &shape),
                false => None,
            };
            match outcome {
                // A descriptor that states something newer fails its tensors only.
                Some(Err(error)) if error.kind() == ErrorKind::Unsupported => knows = false,
                Some(result) => result
                    .map_err(|e| e.within(format_args!("nodes[{i}]")).at(self.archive.record_offset(t, i)))?,
                None => knows = false,
            }
            known.push(knows);
            depths.push(depth);
            trees.push(tree);
        }
        for (table, end) in [(Table::Refs, next), (Table::Descriptors, index(descriptors_end))] {
            let count = self.archive.span(table).count;
            if count != end && !self.archive.more {
                let problem = format!("{count} entries, of which nodes use {end}");
                return Err(structure(table.name(), problem).at(self.archive.record_offset(table, end)));
            }
        }
        Ok(known)
    }
}

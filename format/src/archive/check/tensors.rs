//! Tensors, attributes and references to other archives (spec: container, 4.2 to 4.5).

use super::super::Records;
use super::{Check, Used, index, structure};
use crate::DType;
use crate::error::{ErrorKind, Result};
use crate::name;
use crate::source::Source;
use crate::wire::*;

impl<S: Source> Check<'_, S> {
    pub(super) fn tensors(&self) -> Result<()> {
        let t = Table::Tensors;
        let extents = self.archive.records::<U64>(Table::Extents);
        let matrices = self.archive.records::<MatrixRecord>(Table::Matrices);
        let archives = self.archive.records::<ArchiveRecord>(Table::Archives);
        let runs = shape_runs(matrices);
        let (mut previous, mut extent_cursor, mut matrix_cursor) = (None, 0usize, 0u32);
        for (i, tensor) in self.archive.records::<TensorRecord>(t).iter().enumerate() {
            let name = self.name(t, i, ("name", tensor.name), previous, name::tensor_problem)?;
            previous = Some(name);
            self.same(t, i, "reserved", 0, tensor.reserved.get()).map_err(|e| e.in_tensor(name))?;
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
            let last = index(end).checked_sub(1).filter(|last| *last < matrices.len());
            let last = last.ok_or_else(|| problem("matrix_count", "passes the matrices table".into()))?;
            if runs.get(last).is_none_or(|run| *run > first) {
                return Err(problem("first_matrix", "matrices differ in shape".into()));
            }
            let held = matrices
                .get(last)
                .and_then(|m| m.rows.get().checked_mul(m.cols.get()))
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

    pub(super) fn attributes(&self, used: &mut Used) -> Result<()> {
        let t = Table::Attributes;
        let mut previous = None;
        for (i, attribute) in self.archive.records::<AttributeRecord>(t).iter().enumerate() {
            previous = Some(self.name(t, i, ("name", attribute.name), previous, name::file_problem)?);
            self.name(t, i, ("media_type", attribute.media_type), None, name::media_type_problem)?;
            self.same(t, i, "reserved", 0, attribute.reserved.get())?;
            self.must_understand(t, i, attribute.flags.get(), 0)?;
            self.mark(&mut used.segments, t, i, "segment", attribute.segment.get())?;
        }
        Ok(())
    }

    pub(super) fn archives(&self) -> Result<()> {
        let t = Table::Archives;
        let mut previous = None;
        for (i, archive) in self.archive.records::<ArchiveRecord>(t).iter().enumerate() {
            previous = Some(self.name(t, i, ("name", archive.name), previous, name::file_problem)?);
            self.must_understand(t, i, archive.flags.get(), 0)?;
            self.same(t, i, "reserved", 0, archive.reserved.get())?;
            let kind = archive.kind.get();
            if kind != ARCHIVE_SHARD && kind != ARCHIVE_BASE {
                return Err(self.error(ErrorKind::Unsupported, t, i, "kind", format!("{kind} is unknown")));
            }
        }
        Ok(())
    }
}

/// For each matrix, the first of the matrices of its shape that end with it. Many tied tensors may
/// each have many matrices; with this, each tensor takes one look.
fn shape_runs(matrices: Records<'_, MatrixRecord>) -> Vec<u32> {
    let mut runs = Vec::with_capacity(matrices.len());
    let (mut start, mut shape) = (0u32, None);
    for (i, matrix) in (0u32..).zip(matrices.iter()) {
        let found = Some((matrix.rows.get(), matrix.cols.get()));
        if found != shape {
            (start, shape) = (i, found);
        }
        runs.push(start);
    }
    runs
}

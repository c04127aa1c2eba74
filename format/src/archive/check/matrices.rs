//! Matrices with their transforms, units and terms, and the schedule (spec: container, 4.6 to 4.8,
//! 4.13 and 4.14).

use super::super::{Records, transforms};
use super::{Check, Used, index, structure, wide};
use crate::error::{ErrorKind, Result};
use crate::source::Source;
use crate::wire::*;

impl<S: Source> Check<'_, S> {
    /// Checks matrices with their transforms, units and terms; gives for each unit the unit of the
    /// level below that it refines.
    pub(super) fn matrices(&self, used: &mut Used) -> Result<Vec<u32>> {
        let t = Table::Matrices;
        let mut predecessors = Vec::with_capacity(self.archive.span(Table::Units).count);
        let (mut terms, mut units, mut transforms) = (0u32, 0u32, 0u32);
        for (i, matrix) in self.archive.records::<MatrixRecord>(t).iter().enumerate() {
            self.same(t, i, "reserved", 0, matrix.reserved.get())?;
            self.same(t, i, "first_term", terms, matrix.first_term.get())?;
            self.same(t, i, "first_unit", units, matrix.first_unit.get())?;
            self.same(t, i, "first_transform", transforms, matrix.first_transform.get())?;
            let sides = [
                (matrix.input_transforms.get(), matrix.cols.get()),
                (matrix.output_transforms.get(), matrix.rows.get()),
            ];
            for (count, size) in sides {
                if count > self.archive.limits.transforms {
                    let limit = self.archive.limits.transforms;
                    let problem = format!("expected at most {limit} on a side, found {count}");
                    return Err(self.error(ErrorKind::Limit, t, i, "transforms", problem));
                }
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
        self.same(t, i, "reserved", 0, record.reserved.get())?;
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
        self.same(t, i, "reserved", 0, unit.reserved.get())?;
        self.same(t, i, "matrix", wide(matrix_index), unit.matrix.get().into())?;
        self.same(t, i, "first_term", first_term, unit.first_term.get())?;
        self.must_understand(t, i, u32::from(unit.flags.get() & 0xFF), 0)?;
        let (start, rows) = (unit.row_start.get(), unit.rows.get());
        let end =
            start.checked_add(rows).filter(|end| rows > 0 && *end <= matrix.rows.get()).ok_or_else(|| {
                let all = matrix.rows.get();
                self.bad(t, i, "rows", format!("{rows} from {start} are none, or pass the matrix's {all}"))
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
            self.same(Table::Terms, k, "reserved", 0, term.reserved.get())?;
            self.same(Table::Terms, k, "level", level, term.level.get())?;
            self.mark(&mut used.nodes, Table::Terms, k, "node", term.node.get())?;
            let (node_rows, node_cols) =
                nodes.get(index(term.node.get())).map_or((0, 0), |n| (n.rows.get(), n.cols.get()));
            if node_rows == 0 || node_cols == 0 {
                let problem = format!("[{node_rows}, {node_cols}] is empty");
                return Err(self.bad(Table::Terms, k, "node", problem));
            }
            // None when the sum overflows: it then passes even an end of 2^64 - 1.
            let (row, col) = (term.row_start.get(), term.col_start.get());
            let fits = |from: u64, extent: u64, end: u64| from.checked_add(extent).is_some_and(|e| e <= end);
            if row < start || !fits(row, node_rows, end) || !fits(col, node_cols, matrix.cols.get()) {
                let problem = format!(
                    "{node_rows} rows from {row}, {node_cols} columns from {col} pass the unit's rows {start}..{end} or the matrix's {} columns",
                    matrix.cols.get()
                );
                return Err(self.bad(Table::Terms, k, "row_start", problem));
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
        units: Records<'_, UnitRecord>,
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

    pub(super) fn schedule(&self, predecessors: &[u32]) -> Result<()> {
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
            self.same(t, i, "reserved", 0, step.reserved.get())?;
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
            let loss = step.expected_loss.get();
            let stated = step.flags.get() & SCHEDULE_LOSS != 0;
            if !loss.is_finite() || (!stated && loss.to_bits() != 0) {
                return Err(self.bad(t, i, "expected_loss", format!("{loss} is not finite, or not stated")));
            }
        }
        Ok(())
    }
}

/// First unit of level `below`, the level that ends just before unit `i`. Called once for each
/// level, and walks over the units of the level below it.
fn first_of_level(matrix: &MatrixRecord, units: Records<'_, UnitRecord>, i: usize, below: u16) -> u32 {
    let mut first = u32::try_from(i).unwrap_or(NONE);
    while first > matrix.first_unit.get()
        && units.get(index(first.saturating_sub(1))).is_some_and(|u| u.level.get() == below)
    {
        first = first.saturating_sub(1);
    }
    first
}

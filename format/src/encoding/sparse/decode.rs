//! Walks stored positions, each checked before it is used, and puts their values in place.

use super::{Block, Layout, Op, View, position_bits};
use crate::bits;
use crate::encoding::{self, value};
use crate::error::Result;
use core::ops::Range;

/// Values that are decoded in one go where rows follow each other.
const READ_AHEAD_ELEMS: usize = 1 << 16;

/// What becomes of listed values, and of the positions between them.
trait Sink {
    /// The value of a listed position.
    fn put(&mut self, row: usize, col: usize, value: f32);

    /// Columns of a row that are not listed.
    fn skip(&mut self, row: usize, cols: Range<usize>);
}

impl View<'_> {
    pub(in crate::encoding) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.fill(0.0);
        let place = Place { out, stride: self.cols, column: 0, first_row: rows.start };
        self.each_value(rows, &mut Vec::new(), &mut Put(place))
    }

    /// Adds to or replaces in rows `stride` apart that start `column` into `out`.
    pub(in crate::encoding) fn add_rows(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        stride: usize,
        column: usize,
        scratch: &mut Vec<f32>,
    ) -> Result<()> {
        let place = Place { out, stride, column, first_row: rows.start };
        match self.descriptor.op {
            Op::Add => self.each_value(rows, scratch, &mut Add(place)),
            Op::Replace => self.each_value(rows, scratch, &mut Put(place)),
        }
    }

    pub(in crate::encoding) fn verify(&self) -> Result<()> {
        match self.descriptor.layout {
            Layout::Csr { block, .. } | Layout::Bitmap { block } => {
                let down = self.rows.div_ceil(block.rows as usize);
                for block_row in 0..down {
                    self.each_block(block, block_row, |_, _| Ok(()))?;
                }
                if down == 0 {
                    self.entries(0, 0)?;
                }
            }
            Layout::Nm { n, m } => {
                let kept = self.cols.div_ceil(m.into()) as u64 * u64::from(n);
                if !bits::padding_is_zero(&self.positions, kept, position_bits(m)) {
                    return Err(value("positions", "padding bits are not zero"));
                }
                let mut codes = Vec::new();
                // Rows of no columns are as many as the descriptor says, and nothing is in them.
                let rows = if kept == 0 { 0 } else { self.rows };
                for row in 0..rows {
                    self.each_kept(row, (n, m), &mut codes, |_, _| Ok(()))?;
                }
            }
        }
        self.values.verify().map_err(|e| e.within("values"))
    }

    /// Hands every position of the node within `rows` to `sink`, each row from left to right.
    fn each_value(&self, rows: Range<usize>, scratch: &mut Vec<f32>, sink: &mut impl Sink) -> Result<()> {
        if rows.is_empty() || self.cols == 0 {
            return Ok(());
        }
        match self.descriptor.layout {
            Layout::Csr { block, .. } | Layout::Bitmap { block } => {
                self.each_block_value(block, rows, scratch, sink)
            }
            Layout::Nm { n, m } => {
                let kept = self.cols.div_ceil(m.into()) * usize::from(n);
                let mut values = Values::new(&self.values, scratch, rows.end * kept);
                let mut codes = Vec::new();
                for row in rows {
                    let in_row = values.get(row * kept, kept)?;
                    let mut next = 0;
                    self.each_kept(row, (n, m), &mut codes, |index, col| {
                        // Positions of the tail group beyond the last column are padding.
                        if col < self.cols {
                            sink.skip(row, next..col);
                            sink.put(row, col, in_row.get(index).copied().unwrap_or(0.0));
                            next = col + 1;
                        }
                        Ok(())
                    })?;
                    sink.skip(row, next..self.cols);
                }
                Ok(())
            }
        }
    }

    fn each_block_value(
        &self,
        block: Block,
        rows: Range<usize>,
        scratch: &mut Vec<f32>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let (block_rows, block_cols) = (block.rows as usize, block.cols as usize);
        let elements = block_rows * block_cols;
        let down = self.rows.div_ceil(block_rows);
        let block_range = rows.start / block_rows..rows.end.div_ceil(block_rows);
        let last = self.entries(block_range.end.saturating_sub(1), down)?.end;
        let mut values = Values::new(&self.values, scratch, last * elements);
        for block_row in block_range {
            let top = block_row * block_rows;
            let covered = rows.start.max(top)..rows.end.min(top.saturating_add(block_rows));
            let mut next = 0;
            self.each_block(block, block_row, |entry, block_col| {
                let stored = values.get(entry * elements, elements)?;
                let left = block_col * block_cols;
                for row in covered.clone() {
                    sink.skip(row, next..left);
                    let in_row = stored.get((row - top) * block_cols..).unwrap_or(&[]);
                    for (col, value) in (left..self.cols).zip(in_row.iter().take(block_cols)) {
                        sink.put(row, col, *value);
                    }
                }
                next = left.saturating_add(block_cols).min(self.cols);
                Ok(())
            })?;
            covered.for_each(|row| sink.skip(row, next..self.cols));
        }
        Ok(())
    }

    /// The checked range of entries of a block row; `down` is the number of block rows.
    fn entries(&self, block_row: usize, down: usize) -> Result<Range<usize>> {
        let (offsets, _) = self.offsets.as_chunks::<4>();
        let offset = |index: usize| offsets.get(index).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let start = offset(block_row);
        let end = if down == 0 { start } else { offset(block_row + 1) };
        let count = self.descriptor.count;
        let expect = |rule: &str| {
            value("row_offsets", format!("block row {block_row}: expected {rule}, found {start} to {end}"))
        };
        if block_row == 0 && start != 0 {
            return Err(expect("a start of 0"));
        }
        if block_row + 1 >= down && u64::from(end) != count {
            return Err(expect(&format!("an end of {count}")));
        }
        if start > end || u64::from(end) > count {
            return Err(expect(&format!("an ascending range within {count}")));
        }
        Ok(start as usize..end as usize)
    }

    /// Calls `visit(entry, block_col)` for every stored block of a block row, in order of column.
    fn each_block(
        &self,
        block: Block,
        block_row: usize,
        visit: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let across = self.cols.div_ceil(block.cols as usize);
        let entries = self.entries(block_row, self.rows.div_ceil(block.rows as usize))?;
        match self.descriptor.layout {
            Layout::Csr { index_bits: 16, .. } => {
                let (columns, _) = self.positions.as_chunks::<2>();
                let columns = columns.get(entries.clone()).unwrap_or(&[]);
                let columns = columns.iter().map(|bytes| usize::from(u16::from_le_bytes(*bytes)));
                each_column(block_row, across, entries, columns, visit)
            }
            Layout::Csr { .. } => {
                let (columns, _) = self.positions.as_chunks::<4>();
                let columns = columns.get(entries.clone()).unwrap_or(&[]);
                let columns = columns.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize);
                each_column(block_row, across, entries, columns, visit)
            }
            _ => {
                let start = block_row * self.row_bytes;
                let row = self.positions.get(start..start + self.row_bytes).unwrap_or(&[]);
                each_bit(block_row, across, entries, row, visit)
            }
        }
    }

    /// Calls `visit(index, col)` for every kept value of a row of `n_m`, padding included.
    fn each_kept(
        &self,
        row: usize,
        (n, m): (u16, u16),
        codes: &mut Vec<u16>,
        mut visit: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let width = position_bits(m);
        let (n, m) = (usize::from(n), usize::from(m));
        let packed = self.positions.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[]);
        // A row may be longer than anything that its reader allocates: some groups at a time. Eight
        // groups, whatever they are, end at a byte.
        let groups = self.cols.div_ceil(m);
        let ahead = (READ_AHEAD_ELEMS / n).next_multiple_of(8).max(8);
        for first in (0..groups).step_by(ahead) {
            let last = groups.min(first.saturating_add(ahead));
            codes.resize((last - first) * n, 0);
            bits::unpack_row(packed.get(first * n * width as usize / 8..).unwrap_or(&[]), width, 0, codes);
            for (group, in_group) in (first..last).zip(codes.chunks_exact(n)) {
                let mut least = 0;
                for (k, position) in in_group.iter().map(|p| usize::from(*p)).enumerate() {
                    if position < least || position >= m {
                        let expected = format!("expected {least} to below {m}, found {position}");
                        return Err(value("positions", format!("row {row}, group {group}: {expected}")));
                    }
                    least = position + 1;
                    visit(group * n + k, (group * m).saturating_add(position))?;
                }
            }
        }
        Ok(())
    }
}

/// Visits ascending columns below `across`.
fn each_column(
    block_row: usize,
    across: usize,
    entries: Range<usize>,
    columns: impl Iterator<Item = usize>,
    mut visit: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let mut least = 0;
    for (entry, column) in entries.zip(columns) {
        if column < least || column >= across {
            return Err(value(
                "columns",
                format!("block row {block_row}: expected {least} to below {across}, found {column}"),
            ));
        }
        least = column + 1;
        visit(entry, column)?;
    }
    Ok(())
}

/// Visits set bits, of which there must be as many as entries, all below `across`.
fn each_bit(
    block_row: usize,
    across: usize,
    entries: Range<usize>,
    row: &[u8],
    mut visit: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let (words, _) = row.as_chunks::<4>();
    let set: usize = words.iter().map(|word| u32::from_le_bytes(*word).count_ones() as usize).sum();
    if set != entries.len() {
        return Err(value(
            "bitmap",
            format!("block row {block_row}: expected {} set bits, found {set}", entries.len()),
        ));
    }
    let mut entry = entries.start;
    for (word, base) in words.iter().zip((0..).step_by(32)) {
        let mut word = u32::from_le_bytes(*word);
        while word != 0 {
            let column = base + word.trailing_zeros() as usize;
            if column >= across {
                return Err(value("bitmap", format!("block row {block_row}: padding bits are not zero")));
            }
            visit(entry, column)?;
            entry += 1;
            word &= word - 1;
        }
    }
    Ok(())
}

/// Where the values of a node go.
struct Place<'o> {
    out: &'o mut [f32],
    stride: usize,
    column: usize,
    first_row: usize,
}

impl Place<'_> {
    /// Columns of a row of the node; none where `out` does not have them.
    fn get(&mut self, row: usize, cols: Range<usize>) -> &mut [f32] {
        let start = (row - self.first_row) * self.stride + self.column;
        self.out.get_mut(start + cols.start..start + cols.end).unwrap_or(&mut [])
    }
}

/// Listed values take the place of what is there.
struct Put<'o>(Place<'o>);

impl Sink for Put<'_> {
    fn put(&mut self, row: usize, col: usize, value: f32) {
        self.0.get(row, col..col + 1).fill(value);
    }

    fn skip(&mut self, _row: usize, _cols: Range<usize>) {}
}

/// Listed values are added, and so are the zeros between them, which turns -0.0 into +0.0.
struct Add<'o>(Place<'o>);

impl Sink for Add<'_> {
    fn put(&mut self, row: usize, col: usize, value: f32) {
        self.0.get(row, col..col + 1).iter_mut().for_each(|sum| *sum += value);
    }

    fn skip(&mut self, row: usize, cols: Range<usize>) {
        self.0.get(row, cols).iter_mut().for_each(|sum| *sum += 0.0);
    }
}

/// A child's elements in row-major order, decoded some rows at a time.
struct Values<'v, 'a, 's> {
    view: &'v encoding::View<'a>,
    buffer: &'s mut Vec<f32>,
    held: Range<usize>,
    /// No element from here on will be asked for.
    end: usize,
}

impl<'v, 'a, 's> Values<'v, 'a, 's> {
    fn new(view: &'v encoding::View<'a>, buffer: &'s mut Vec<f32>, end: usize) -> Self {
        Self { view, buffer, held: 0..0, end }
    }

    fn get(&mut self, start: usize, elements: usize) -> Result<&[f32]> {
        let end = start + elements;
        if start < self.held.start || end > self.held.end {
            self.load(start, end)?;
        }
        let from = start - self.held.start;
        self.buffer.get(from..from + elements).ok_or_else(|| value("values", "too few"))
    }

    fn load(&mut self, start: usize, end: usize) -> Result<()> {
        let width = self.view.cols().max(1);
        let first = start / width;
        let ahead = self.end.min(start + READ_AHEAD_ELEMS).max(end);
        let last = ahead.div_ceil(width).min(self.view.rows()).max(first);
        self.buffer.clear();
        self.buffer.resize((last - first) * width, 0.0);
        self.view.decode_rows(first..last, self.buffer).map_err(|e| e.within("values"))?;
        self.held = first * width..last * width;
        Ok(())
    }
}

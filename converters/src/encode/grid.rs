//! Where the groups of a matrix lie.

use super::kernels::{extremes, widen};
use core::ops::Range;

/// Groups narrower than this are worked on a column at a time.
pub(super) const NARROW: usize = 16;

/// The groups of a `rows` by `cols` matrix; those at the lower and right edge may be smaller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rows of a group, at least 1.
    pub(super) group_rows: usize,
    /// Columns of a group, at least 1.
    pub(super) group_cols: usize,
    /// Groups from top to bottom.
    pub(super) down: usize,
    /// Groups from left to right.
    pub(super) across: usize,
}

impl Grid {
    /// `group_rows`, `group_cols`: 0 is the whole axis.
    pub(super) fn new(rows: usize, cols: usize, group_rows: u32, group_cols: u32) -> Self {
        let side = |extent: usize, group: u32| match group {
            0 => extent.max(1),
            group => (group as usize).min(extent.max(1)),
        };
        let (group_rows, group_cols) = (side(rows, group_rows), side(cols, group_cols));
        Self {
            rows,
            cols,
            group_rows,
            group_cols,
            down: rows.div_ceil(group_rows),
            across: cols.div_ceil(group_cols),
        }
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.down * self.across
    }

    /// Rows of the `i`-th band of groups.
    pub(super) fn band(&self, i: usize) -> Range<usize> {
        i * self.group_rows..((i + 1) * self.group_rows).min(self.rows)
    }

    /// Columns of the `j`-th group of a band.
    pub(super) fn span(&self, j: usize) -> Range<usize> {
        j * self.group_cols..((j + 1) * self.group_cols).min(self.cols)
    }

    /// The values of a group, row by row: in place where they are contiguous, else in `buffer`.
    pub(super) fn group<'a>(
        &self,
        values: &'a [f32],
        i: usize,
        j: usize,
        buffer: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let (band, span) = (self.band(i), self.span(j));
        if band.len() == 1 || span.len() == self.cols {
            let end = (band.end - 1) * self.cols + span.end;
            return &values[band.start * self.cols + span.start..end];
        }
        buffer.clear();
        for row in band {
            buffer.extend_from_slice(&values[row * self.cols..][span.clone()]);
        }
        buffer
    }

    /// The column weights of a group in the order of [`Grid::group`].
    pub(super) fn weights<'a>(
        &self,
        weights: &'a [f32],
        i: usize,
        j: usize,
        buffer: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let (band, span) = (self.band(i), self.span(j));
        if band.len() == 1 {
            return &weights[span];
        }
        buffer.clear();
        for _ in band {
            buffer.extend_from_slice(&weights[span.clone()]);
        }
        buffer
    }
}

/// Least and greatest values of a band of groups, gathered row by row.
#[derive(Debug)]
pub(super) struct Extremes {
    /// Columns of a group.
    group_cols: usize,
    /// Columns of one entry of `least` and `greatest`: 1 where groups are narrow.
    entry_cols: usize,
    least: Vec<f32>,
    greatest: Vec<f32>,
}

impl Extremes {
    pub(super) fn new(grid: &Grid) -> Self {
        let entry_cols = if grid.group_cols < NARROW { 1 } else { grid.group_cols };
        let entries = grid.cols.div_ceil(entry_cols);
        Self {
            group_cols: grid.group_cols,
            entry_cols,
            least: vec![f32::INFINITY; entries],
            greatest: vec![f32::NEG_INFINITY; entries],
        }
    }

    /// Forgets all rows.
    pub(super) fn reset(&mut self) {
        self.least.fill(f32::INFINITY);
        self.greatest.fill(f32::NEG_INFINITY);
    }

    /// Takes in a row.
    pub(super) fn add(&mut self, row: &[f32]) {
        if self.entry_cols == 1 {
            widen(row, &mut self.least, &mut self.greatest);
            return;
        }
        let entries = self.least.iter_mut().zip(&mut self.greatest);
        for ((least, greatest), values) in entries.zip(row.chunks(self.entry_cols)) {
            let (low, high) = extremes(values);
            *least = least.min(low);
            *greatest = greatest.max(high);
        }
    }

    /// Least and greatest value of each group.
    pub(super) fn groups(&self) -> impl Iterator<Item = (f32, f32)> {
        let entries = self.group_cols / self.entry_cols;
        let least = self.least.chunks(entries).map(|v| v.iter().copied().fold(f32::INFINITY, f32::min));
        let greatest =
            self.greatest.chunks(entries).map(|v| v.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        least.zip(greatest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_every_element_once() {
        for (group_rows, group_cols) in [(1, 4), (0, 0), (2, 0), (0, 3), (3, 5), (1, 1), (99, 99)] {
            let grid = Grid::new(7, 11, group_rows, group_cols);
            let values: Vec<f32> = (0..77).map(|i| i as f32).collect();
            let mut all: Vec<f32> = Vec::new();
            for i in 0..grid.down {
                for j in 0..grid.across {
                    all.extend_from_slice(grid.group(&values, i, j, &mut Vec::new()));
                }
            }
            assert_eq!(all.len(), 77, "{group_rows} by {group_cols}");
            all.sort_by(f32::total_cmp);
            assert_eq!(all, values, "{group_rows} by {group_cols}");
        }
    }

    #[test]
    fn extremes_are_those_of_the_groups() {
        for (group_rows, group_cols) in [(1, 4), (0, 0), (2, 0), (0, 3), (3, 5), (1, 1), (2, 17)] {
            let grid = Grid::new(7, 40, group_rows, group_cols);
            let values: Vec<f32> = (0..280).map(|i| ((i * 251) % 1009) as f32 - 500.0).collect();
            let mut ends = Extremes::new(&grid);
            for i in 0..grid.down {
                ends.reset();
                grid.band(i).for_each(|row| ends.add(&values[row * 40..][..40]));
                for (j, found) in ends.groups().enumerate() {
                    assert_eq!(found, extremes(grid.group(&values, i, j, &mut Vec::new())));
                }
            }
        }
    }

    #[test]
    fn weights_follow_the_columns() {
        let grid = Grid::new(4, 5, 2, 3);
        let weights = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(grid.weights(&weights, 0, 1, &mut Vec::new()), [4.0, 5.0, 4.0, 5.0]);
    }
}

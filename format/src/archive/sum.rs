//! Sums of terms (spec: container, 6.3).

use crate::encoding::View;
use crate::error::{Error, ErrorKind, Result};
use core::ops::Range;

/// Sums that are built at a time: 256 KiB, which stay in the cache together with the values that are
/// added to them.
const BLOCK_ELEMS: usize = 1 << 16;

/// An opened term at its place in the matrix.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    pub(super) row: usize,
    pub(super) col: usize,
    pub(super) view: View<'a>,
}

impl Placed<'_> {
    pub(super) fn rows(&self) -> Range<usize> {
        self.row..self.row.saturating_add(self.view.rows())
    }

    /// Whether the term gives every element of a row a value that does not depend on the sum.
    fn fills_rows(&self, cols: usize) -> bool {
        self.col == 0 && self.view.cols() == cols && !matches!(self.view, View::Sparse(_))
    }
}

/// Sums rows `rows` of `terms`, in their order, into `out`, `cols` a row.
pub(super) fn sum_rows(terms: &[Placed<'_>], rows: Range<usize>, cols: usize, out: &mut [f32]) -> Result<()> {
    let mut sums = Sums { out, rows: rows.clone(), cols, begun: rows.start };
    let mut scratch = Vec::new();
    let mut before = 0;
    // Terms that lie over each other are summed block by block.
    for terms in terms.chunk_by(|a, b| a.rows() == b.rows()) {
        let all = terms.first().map_or(0..0, Placed::rows);
        let end = all.end.min(rows.end);
        let block_rows = match terms.iter().all(|term| term.view.decodes_in_parts()) {
            true => (BLOCK_ELEMS / cols.max(1)).max(1),
            false => usize::MAX,
        };
        for start in (all.start.max(rows.start)..end).step_by(block_rows) {
            let block = start..end.min(start.saturating_add(block_rows));
            for (i, term) in (before..).zip(terms) {
                sums.add(term, block.clone(), &mut scratch)
                    .map_err(|e| e.within(format_args!("term {i}")))?;
            }
        }
        before += terms.len();
    }
    sums.begin(rows.end)
}

/// Sums that are being built.
struct Sums<'o> {
    out: &'o mut [f32],
    /// Rows of `out`.
    rows: Range<usize>,
    cols: usize,
    /// From this row on, nothing has been written yet.
    begun: usize,
}

impl Sums<'_> {
    fn get(&mut self, rows: Range<usize>) -> Result<&mut [f32]> {
        let range = (rows.start - self.rows.start) * self.cols..(rows.end - self.rows.start) * self.cols;
        self.out.get_mut(range).ok_or_else(|| Error::new(ErrorKind::Argument, "out", "is too short"))
    }

    /// Begins the sums of all rows before `end`.
    fn begin(&mut self, end: usize) -> Result<()> {
        if self.begun < end {
            // The identity of IEEE addition: a single term keeps its negative zeros.
            self.get(self.begun..end)?.fill(-0.0);
            self.begun = end;
        }
        Ok(())
    }

    /// Adds rows `rows` of the matrix, which the term has.
    fn add(&mut self, term: &Placed<'_>, rows: Range<usize>, scratch: &mut Vec<f32>) -> Result<()> {
        let cols = self.cols;
        let own = rows.start - term.row..rows.end - term.row;
        if self.begun <= rows.start && term.fills_rows(cols) {
            self.begin(rows.start)?;
            self.begun = rows.end;
            return term.view.decode_rows(own, self.get(rows)?);
        }
        self.begin(rows.end)?;
        term.view.add_rows(own, self.get(rows)?, cols, term.col, scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::encoding::{dense, low_rank};
    use crate::node::NodeData;

    /// Wide enough that a block is a single row.
    const COLS: usize = BLOCK_ELEMS;

    fn node(rows: usize, cols: usize, seed: usize) -> Result<NodeData> {
        let values: Vec<f32> =
            (0..rows * cols).map(|i| ((i * 31 + seed) % 251) as f32 * 0.1 - 12.0).collect();
        dense::pack_values(DType::F32, rows as u64, cols as u64, &values)
    }

    /// Adds whole terms, one after the other, to -0.0.
    fn one_by_one(terms: &[Placed<'_>], rows: usize, cols: usize) -> Result<Vec<f32>> {
        let mut sums = vec![-0.0; rows * cols];
        for term in terms {
            let (height, width) = (term.view.rows(), term.view.cols());
            let mut values = vec![0.0; height * width];
            term.view.decode_rows(0..height, &mut values)?;
            for (i, value) in values.into_iter().enumerate() {
                sums[(term.row + i / width) * cols + term.col + i % width] += value;
            }
        }
        Ok(sums)
    }

    #[test]
    fn any_rows_are_those_of_the_sum_term_by_term() -> Result<()> {
        let factors = low_rank::pack(node(2, 3, 5)?, node(2, COLS, 6)?)?;
        let nodes = [
            (1, 0, node(3, COLS, 1)?),
            (1, 0, factors),
            (1, 7, node(3, 5, 2)?),
            (2, 0, node(4, COLS, 3)?),
            (8, 0, node(1, COLS, 4)?),
            (0, 1, node(2, 9, 7)?),
        ];
        let terms =
            nodes.iter().map(|(row, col, node)| Ok(Placed { row: *row, col: *col, view: node.view()? }));
        let terms = terms.collect::<Result<Vec<_>>>()?;
        let expected = one_by_one(&terms, 10, COLS)?;
        for rows in [0..10, 0..1, 2..3, 3..9, 9..10, 4..4] {
            let mut out = vec![f32::NAN; rows.len() * COLS];
            sum_rows(&terms, rows.clone(), COLS, &mut out)?;
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&out) == bits(&expected[rows.start * COLS..rows.end * COLS]), "rows {rows:?}");
        }
        Ok(())
    }

    #[test]
    fn error_names_the_term() -> Result<()> {
        let nodes = [node(2, 4, 1)?, node(2, 4, 2)?];
        let mut terms = Vec::new();
        for node in &nodes {
            terms.push(Placed { row: 0, col: 0, view: node.view()? });
        }
        let error = sum_rows(&terms, 0..2, 5, &mut [0.0; 4]).map_err(|e| e.to_string());
        assert!(error.is_err_and(|e| e.contains("term 0")));
        Ok(())
    }
}

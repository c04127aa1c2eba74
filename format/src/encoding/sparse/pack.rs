//! Builds `sparse` nodes from positions that are checked as a reader checks them.

use super::{Block, Descriptor, ID, Layout, Op, VERSION, position_bits};
use crate::bits;
use crate::encoding::{extent, structure};
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use std::sync::Arc;

/// The blocks that a node stores, by block row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Rows and columns of a block.
    pub block: Block,
    /// First entry of each block row, and the number of entries at the end.
    pub row_offsets: Vec<u32>,
    /// Block column of each entry, ascending within a block row.
    pub columns: Vec<u32>,
}

impl Positions {
    /// The blocks of a `rows` by `cols` array that hold a position for which `listed` is true.
    ///
    /// # Errors
    /// `Argument` for a block without elements or for 2^32 blocks or more.
    pub fn from_mask(
        rows: usize,
        cols: usize,
        block: Block,
        listed: impl Fn(usize, usize) -> bool,
    ) -> Result<Self> {
        if block.elements() == 0 {
            return Err(argument("block", "has no elements"));
        }
        let (height, width) = (block.rows as usize, block.cols as usize);
        let mut positions = Self { block, row_offsets: vec![0], columns: Vec::new() };
        for top in (0..rows).step_by(height) {
            for (left, column) in (0..cols).step_by(width).zip(0u32..) {
                let mut lines = top..rows.min(top.saturating_add(height));
                let right = cols.min(left.saturating_add(width));
                if lines.any(|row| (left..right).any(|col| listed(row, col))) {
                    positions.columns.push(column);
                }
            }
            let end = u32::try_from(positions.columns.len())
                .map_err(|_| argument("columns", "expected fewer than 2^32 blocks"))?;
            positions.row_offsets.push(end);
        }
        Ok(positions)
    }

    /// The elements of the listed blocks of a row-major array, block after block; elements of edge
    /// blocks that lie outside of the array are 0.
    pub fn gather(&self, cols: usize, values: &[f32]) -> Vec<f32> {
        let (height, width) = (self.block.rows as usize, self.block.cols as usize);
        let mut gathered = Vec::with_capacity(self.columns.len().saturating_mul(height * width));
        for (block_row, pair) in self.row_offsets.windows(2).enumerate() {
            let [start, end] = pair else { continue };
            let columns = self.columns.get(*start as usize..*end as usize).unwrap_or(&[]);
            for column in columns {
                for row in (0..height).map(|i| block_row * height + i) {
                    let left = (*column as usize) * width;
                    let in_row = (left..left + width).map(|col| match col < cols {
                        true => values.get(row * cols + col).copied().unwrap_or(0.0),
                        false => 0.0,
                    });
                    gathered.extend(in_row);
                }
            }
        }
        gathered
    }

    fn check(&self, rows: u64, cols: u64) -> Result<()> {
        if self.block.elements() == 0 {
            return Err(argument("block", "has no elements"));
        }
        let (down, across) = self.block.grid(rows, cols);
        if self.row_offsets.len() as u64 != down.saturating_add(1) || self.row_offsets.first() != Some(&0) {
            return Err(argument("row_offsets", format!("expected {down} and one, the first 0")));
        }
        if self.row_offsets.last().map(|last| *last as usize) != Some(self.columns.len()) {
            return Err(argument("row_offsets", format!("expected a last of {}", self.columns.len())));
        }
        for pair in self.row_offsets.windows(2) {
            let columns = match pair {
                [start, end] => self.columns.get(*start as usize..*end as usize),
                _ => None,
            };
            let columns = columns.ok_or_else(|| argument("row_offsets", "expected ascending"))?;
            let ascending = columns.is_sorted_by(|a, b| a < b);
            if !ascending || columns.last().is_some_and(|last| u64::from(*last) >= across) {
                return Err(argument("columns", format!("expected ascending and below {across}")));
            }
        }
        Ok(())
    }

    fn offset_bytes(&self) -> Vec<u8> {
        self.row_offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect()
    }
}

/// Builds a `csr` node; columns take 16 bits where they fit.
///
/// `values` holds the elements of the blocks one after another ([`Positions::gather`]) in rows of
/// any width up to [`super::MAX_BLOCK_ELEMENTS`], the last row padded: `[count, block elements]`,
/// or wider rows where an encoding of groups needs them.
///
/// # Errors
/// `Argument` for positions that are not ascending or out of range, `Structure` when the parts do
/// not fit together.
pub fn pack_csr(
    op: Op,
    rows: u64,
    cols: u64,
    positions: &Positions,
    values: impl Into<Arc<NodeData>>,
) -> Result<NodeData> {
    positions.check(rows, cols)?;
    let block = positions.block;
    let narrow = block.grid(rows, cols).1 <= 1 << 16;
    let columns: Vec<u8> = match narrow {
        true => positions.columns.iter().flat_map(|c| (*c as u16).to_le_bytes()).collect(),
        false => positions.columns.iter().flat_map(|c| c.to_le_bytes()).collect(),
    };
    let layout = Layout::Csr { block, index_bits: if narrow { 16 } else { 32 } };
    let descriptor = Descriptor { op, layout, count: positions.columns.len() as u64 };
    let segments = vec![positions.offset_bytes().into(), columns.into()];
    NodeData::new(ID, VERSION, rows, cols, descriptor.to_bytes(), segments, vec![values])
}

/// Builds a `bitmap` node; `values` as for [`pack_csr`].
///
/// # Errors
/// As [`pack_csr`].
pub fn pack_bitmap(
    op: Op,
    rows: u64,
    cols: u64,
    positions: &Positions,
    values: impl Into<Arc<NodeData>>,
) -> Result<NodeData> {
    positions.check(rows, cols)?;
    let block = positions.block;
    let (down, across) = block.grid(rows, cols);
    let row_bytes = bits::row_bytes(across, 1)
        .map(|n| extent("cols", n))
        .ok_or_else(|| structure("cols", "row is too long"))??;
    let bytes = row_bytes.checked_mul(extent("rows", down)?);
    let mut bitmap = vec![0u8; bytes.ok_or_else(|| structure("bitmap", "is too long"))?];
    for (block_row, pair) in positions.row_offsets.windows(2).enumerate() {
        let [start, end] = pair else { continue };
        for column in positions.columns.get(*start as usize..*end as usize).unwrap_or(&[]) {
            if let Some(byte) = bitmap.get_mut(block_row * row_bytes + *column as usize / 8) {
                *byte |= 1 << (column % 8);
            }
        }
    }
    let descriptor =
        Descriptor { op, layout: Layout::Bitmap { block }, count: positions.columns.len() as u64 };
    let segments = vec![positions.offset_bytes().into(), bitmap.into()];
    NodeData::new(ID, VERSION, rows, cols, descriptor.to_bytes(), segments, vec![values])
}

/// Builds an `n_m` node: `n` values of every group of `m` columns.
///
/// `positions` holds, row after row and group after group, `n` ascending positions below `m`. The
/// tail group is padded to `m` columns; what it lists beyond the last column is ignored and its
/// value should be 0. `values` is `[rows, ceil(cols / m) * n]`.
///
/// # Errors
/// `Argument` for positions that are not ascending or out of range, `Structure` when the parts do
/// not fit together.
pub fn pack_n_m(
    op: Op,
    rows: u64,
    cols: u64,
    (n, m): (u16, u16),
    positions: &[u16],
    values: impl Into<Arc<NodeData>>,
) -> Result<NodeData> {
    if m < 2 || !(1..=m).contains(&n) {
        return Err(argument("n of m", format!("expected 1 to m of 2 or more, found {n} of {m}")));
    }
    let kept = cols.div_ceil(m.into()).saturating_mul(n.into());
    let count = kept.saturating_mul(rows);
    if positions.len() as u64 != count {
        return Err(argument("positions", format!("expected {count}, found {}", positions.len())));
    }
    for group in positions.chunks_exact(n.into()) {
        if !group.is_sorted_by(|a, b| a < b) || group.last().is_some_and(|last| *last >= m) {
            return Err(argument("positions", format!("expected ascending and below {m}")));
        }
    }
    let stream = bits::pack_rows(positions, extent("cols", kept)?, position_bits(m))?;
    let descriptor = Descriptor { op, layout: Layout::Nm { n, m }, count };
    NodeData::new(ID, VERSION, rows, cols, descriptor.to_bytes(), vec![stream.into()], vec![values])
}

fn argument(part: &str, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Argument, part, problem)
}

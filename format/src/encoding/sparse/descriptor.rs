//! The descriptor of `sparse` and the sizes that follow from it.

use crate::bits;
use crate::encoding::{
    Shape, descriptor, require, require_child, require_counts, require_segment, structure,
};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{U16, U32, U64, record};
use bytemuck::Zeroable;

/// Most elements of a block, and widest row of the values child of `csr` and `bitmap`.
pub const MAX_BLOCK_ELEMENTS: u64 = 1 << 16;

record! {
    /// Descriptor as stored.
    DescriptorRecord 24 {
        /// 0 add, 1 replace.
        op: u8,
        /// 1 csr, 2 bitmap, 3 n_m.
        layout: u8,
        /// Bits of a column index of `csr`, 16 or 32; 0 for other layouts.
        index_bits: u8,
        /// Zero.
        reserved: u8,
        /// Rows of a block; 1 for `n_m`.
        block_rows: U32,
        /// Columns of a block; 1 for `n_m`.
        block_cols: U32,
        /// Values kept in each group of `n_m`; 0 for other layouts.
        n: U16,
        /// Columns of a group of `n_m`; 0 for other layouts.
        m: U16,
        /// Stored blocks.
        count: U64,
    }
}

/// What a listed position does to the sum of the terms before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Its value is added.
    Add = 0,
    /// Its value takes the sum's place.
    Replace = 1,
}

/// Rows and columns of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
}

impl Block {
    /// A single element.
    pub const ONE: Self = Self { rows: 1, cols: 1 };

    /// Elements of a block.
    pub const fn elements(self) -> u64 {
        self.rows as u64 * self.cols as u64
    }

    /// Blocks down and across a node.
    pub const fn grid(self, rows: u64, cols: u64) -> (u64, u64) {
        (rows.div_ceil(self.rows as u64), cols.div_ceil(self.cols as u64))
    }
}

/// How positions are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Offsets of block rows, then ascending block columns.
    Csr {
        /// Rows and columns of a block.
        block: Block,
        /// 16 or 32.
        index_bits: u8,
    },
    /// One bit a block.
    Bitmap {
        /// Rows and columns of a block.
        block: Block,
    },
    /// `n` positions in every group of `m` columns.
    Nm {
        /// Values kept in a group.
        n: u16,
        /// Columns of a group.
        m: u16,
    },
}

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What listed positions do.
    pub op: Op,
    /// How positions are stored.
    pub layout: Layout,
    /// Stored blocks: for `n_m` all kept values.
    pub count: u64,
}

/// Bits of a position within a group of `m` columns: ceil(log2 m), at least 1.
pub const fn position_bits(m: u16) -> u32 {
    match m {
        0..=2 => 1,
        _ => (m - 1).ilog2() + 1,
    }
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` for a field out of range or sizes that do not fit, `Unsupported` for an
    /// operation or layout number that this reader does not know.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        let record: DescriptorRecord = descriptor(shape.descriptor)?;
        let this = Self::from_record(&record)?;
        match this.layout {
            Layout::Csr { block, index_bits } => {
                this.check_blocks(shape, block)?;
                let columns = this.count.checked_mul(u64::from(index_bits / 8));
                require_segment(shape, 1, "columns", columns)?;
            }
            Layout::Bitmap { block } => {
                this.check_blocks(shape, block)?;
                let (down, across) = block.grid(shape.rows, shape.cols);
                let bitmap = bits::row_bytes(across, 1).and_then(|n| n.checked_mul(down));
                require_segment(shape, 1, "bitmap", bitmap)?;
            }
            Layout::Nm { n, m } => {
                require_counts(shape, 1, 1)?;
                let overflow = || structure("cols", "size overflows 64 bits");
                let kept = shape.cols.div_ceil(m.into()).checked_mul(n.into()).ok_or_else(overflow)?;
                require("count", kept.checked_mul(shape.rows).ok_or_else(overflow)?, this.count)?;
                require_child(shape, 0, "values", shape.rows, kept)?;
                let positions =
                    bits::row_bytes(kept, position_bits(m)).and_then(|b| b.checked_mul(shape.rows));
                require_segment(shape, 0, "positions", positions)?;
            }
        }
        Ok(this)
    }

    /// Checks what `csr` and `bitmap` share: offsets and the values child.
    fn check_blocks(&self, shape: &Shape<'_>, block: Block) -> Result<()> {
        require_counts(shape, 2, 1)?;
        let (down, _) = block.grid(shape.rows, shape.cols);
        require_segment(shape, 0, "row_offsets", down.checked_add(1).and_then(|n| n.checked_mul(4)))?;
        let elements = self.count.checked_mul(block.elements());
        let (rows, cols) = shape.children.first().copied().unwrap_or((0, 0));
        if !(1..=MAX_BLOCK_ELEMENTS).contains(&cols) {
            let widths = format_args!("1 to {MAX_BLOCK_ELEMENTS} columns").to_string();
            return Err(Error::expected(ErrorKind::Structure, "values", widths, cols));
        }
        let elements = elements.ok_or_else(|| structure("values", "size overflows 64 bits"))?;
        require("values rows", elements.div_ceil(cols), rows)
    }

    fn from_record(record: &DescriptorRecord) -> Result<Self> {
        let unsupported = |part: &str, number: u8| {
            Error::new(ErrorKind::Unsupported, part, format!("number {number} is unknown"))
        };
        let op = match record.op {
            0 => Op::Add,
            1 => Op::Replace,
            other => return Err(unsupported("op", other)),
        };
        require("reserved", 0, record.reserved)?;
        let block = Block { rows: record.block_rows.get(), cols: record.block_cols.get() };
        if !(1..=MAX_BLOCK_ELEMENTS).contains(&block.elements()) {
            let sizes = format!("1 to {MAX_BLOCK_ELEMENTS} elements");
            return Err(Error::expected(ErrorKind::Structure, "block", sizes, block.elements()));
        }
        let (index_bits, n, m) = (record.index_bits, record.n.get(), record.m.get());
        let layout = match record.layout {
            1 => Layout::Csr { block, index_bits },
            2 => Layout::Bitmap { block },
            3 => Layout::Nm { n, m },
            other => return Err(unsupported("layout", other)),
        };
        let sound = match layout {
            Layout::Csr { .. } => matches!(index_bits, 16 | 32) && (n, m) == (0, 0),
            Layout::Bitmap { .. } => index_bits == 0 && (n, m) == (0, 0),
            Layout::Nm { .. } => index_bits == 0 && block == Block::ONE && m >= 2 && (1..=m).contains(&n),
        };
        if !sound {
            return Err(structure(
                "layout",
                format!(
                    "number {} does not go with {index_bits} index bits, blocks of {} by {}, {n} of {m}",
                    record.layout, block.rows, block.cols
                ),
            ));
        }
        let count = record.count.get();
        if !matches!(layout, Layout::Nm { .. }) && count > u64::from(u32::MAX) {
            return Err(Error::expected(ErrorKind::Structure, "count", "at most 2^32 - 1", count));
        }
        Ok(Self { op, layout, count })
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut record = DescriptorRecord {
            op: self.op as u8,
            block_rows: 1.into(),
            block_cols: 1.into(),
            count: self.count.into(),
            ..DescriptorRecord::zeroed()
        };
        let mut set_block = |block: Block| {
            record.block_rows = block.rows.into();
            record.block_cols = block.cols.into();
        };
        match self.layout {
            Layout::Csr { block, index_bits } => {
                set_block(block);
                (record.layout, record.index_bits) = (1, index_bits);
            }
            Layout::Bitmap { block } => {
                set_block(block);
                record.layout = 2;
            }
            Layout::Nm { n, m } => (record.layout, record.n, record.m) = (3, n.into(), m.into()),
        }
        bytemuck::bytes_of(&record).to_vec()
    }
}

//! The descriptor of `trellis` and the sizes that follow from it.

use crate::encoding::{
    Shape, descriptor, grouped::groups, require, require_broadcast, require_child, require_counts,
    require_segment, structure,
};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{U32, record};

/// Fewest and most bits of a window.
pub const STATE_BITS: core::ops::RangeInclusive<u8> = 6..=16;
/// Fewest and most bits that each weight adds to its path.
pub const STEP_BITS: core::ops::RangeInclusive<u8> = 1..=4;

record! {
    /// Descriptor as stored.
    DescriptorRecord 32 {
        /// Bits of a window, 6 to 16.
        state_bits: u8,
        /// Bits that a weight adds to its path, 1 to 4.
        step_bits: u8,
        /// 0 table, 1 byte sum.
        code: u8,
        /// 0 down a column, 1 along a row.
        axis: u8,
        /// Weights of a path; 0 is the whole axis.
        path_elems: U32,
        /// Factor of the window; 0 unless the code is a byte sum.
        multiplier: U32,
        /// Added to the product; 0 unless the code is a byte sum.
        addend: U32,
        /// Rows that share a scale; 0 is all rows.
        scale_rows: U32,
        /// Columns that share a scale; 0 is all columns.
        scale_cols: U32,
        /// Zero.
        reserved: [U32; 2],
    }
}

/// What a window means before the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Entry `window` of the table child.
    Table,
    /// The sum of the four bytes of `window * multiplier + addend` modulo 2^32, less 510.
    ByteSum {
        /// Factor of the window.
        multiplier: u32,
        /// Added to the product.
        addend: u32,
    },
}

impl Code {
    /// The byte sum that writers use ("1MAD" of QTIP, arXiv 2406.11235, 3.1.1): about normally
    /// distributed over all windows, with a standard deviation near 147.8.
    pub const BYTE_SUM: Self = Self::ByteSum { multiplier: 34_038_481, addend: 76_625_530 };
}

/// Where a path runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Axis {
    /// Down a column; the words of neighbouring columns lie next to each other.
    Down = 0,
    /// Along a row; the words of a path lie next to each other.
    Along = 1,
}

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bits of a window, 6 to 16.
    pub state_bits: u8,
    /// Bits that a weight adds to its path, 1 to 4.
    pub step_bits: u8,
    /// Meaning of a window.
    pub code: Code,
    /// Where a path runs.
    pub axis: Axis,
    /// Weights of a path; 0 is the whole axis. The last path of an axis may be shorter.
    pub path_elems: u32,
    /// Rows that share a scale; 0 is all rows.
    pub scale_rows: u32,
    /// Columns that share a scale; 0 is all columns.
    pub scale_cols: u32,
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` for a field out of range or sizes that do not fit, `Unsupported` for a code that
    /// this reader does not know.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        let record: DescriptorRecord = descriptor(shape.descriptor)?;
        let this = Self::from_record(&record)?;
        require_counts(shape, 1, 1 + usize::from(this.code == Code::Table))?;
        let bytes = this.path_bytes(shape.rows, shape.cols);
        require_segment(shape, 0, "paths", bytes)?;
        let scales = (groups(shape.rows, this.scale_rows), groups(shape.cols, this.scale_cols));
        require_broadcast(shape, 0, "scale", scales.0, scales.1)?;
        if this.code == Code::Table {
            require_child(shape, 1, "table", 1, 1 << this.state_bits)?;
        }
        Ok(this)
    }

    fn from_record(record: &DescriptorRecord) -> Result<Self> {
        let (multiplier, addend) = (record.multiplier.get(), record.addend.get());
        let code = match record.code {
            0 if (multiplier, addend) != (0, 0) => {
                return Err(structure("multiplier and addend", "expected 0 for this code"));
            }
            0 => Code::Table,
            1 => Code::ByteSum { multiplier, addend },
            other => {
                return Err(Error::new(ErrorKind::Unsupported, "code", format!("number {other} is unknown")));
            }
        };
        let axis = match record.axis {
            0 => Axis::Down,
            1 => Axis::Along,
            other => return Err(Error::expected(ErrorKind::Structure, "axis", "0 or 1", other)),
        };
        require("reserved", 0, record.reserved[0].get() | record.reserved[1].get())?;
        let this = Self {
            state_bits: record.state_bits,
            step_bits: record.step_bits,
            code,
            axis,
            path_elems: record.path_elems.get(),
            scale_rows: record.scale_rows.get(),
            scale_cols: record.scale_cols.get(),
        };
        this.check()?;
        Ok(this)
    }

    /// Checks what does not depend on the node's shape.
    pub(super) fn check(&self) -> Result<()> {
        for (part, range, found) in
            [("state_bits", STATE_BITS, self.state_bits), ("step_bits", STEP_BITS, self.step_bits)]
        {
            if !range.contains(&found) {
                let range = format!("{} to {}", range.start(), range.end());
                return Err(Error::expected(ErrorKind::Structure, part, range, found));
            }
        }
        Ok(())
    }

    /// Words of 32 bits that hold a path of `elems` weights; `None` on overflow.
    pub fn path_words(&self, elems: u64) -> Option<u64> {
        Some(elems.checked_mul(self.step_bits.into())?.div_ceil(32))
    }

    /// The axis that paths run along and the other one.
    pub(super) fn axis_and_lines<T>(&self, rows: T, cols: T) -> (T, T) {
        match self.axis {
            Axis::Down => (rows, cols),
            Axis::Along => (cols, rows),
        }
    }

    /// Words of all paths behind each other along an axis of `elems` weights; `None` on overflow.
    pub(super) fn axis_words(&self, elems: u64) -> Option<u64> {
        let path = match self.path_elems {
            0 => elems,
            n => n.into(),
        };
        if elems == 0 {
            return Some(0);
        }
        let whole = self.path_words(path.min(elems))?.checked_mul(elems / path)?;
        whole.checked_add(self.path_words(elems % path)?)
    }

    /// Bytes of the segment `paths`; `None` on overflow.
    pub(super) fn path_bytes(&self, rows: u64, cols: u64) -> Option<u64> {
        let (elems, lines) = self.axis_and_lines(rows, cols);
        self.axis_words(elems)?.checked_mul(lines)?.checked_mul(4)
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let (code, multiplier, addend) = match self.code {
            Code::Table => (0, 0, 0),
            Code::ByteSum { multiplier, addend } => (1, multiplier, addend),
        };
        bytemuck::bytes_of(&DescriptorRecord {
            state_bits: self.state_bits,
            step_bits: self.step_bits,
            code,
            axis: self.axis as u8,
            path_elems: self.path_elems.into(),
            multiplier: multiplier.into(),
            addend: addend.into(),
            scale_rows: self.scale_rows.into(),
            scale_cols: self.scale_cols.into(),
            reserved: [0.into(); 2],
        })
        .to_vec()
    }
}

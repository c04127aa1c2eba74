//! The descriptor of `codebook` and the sizes that follow from it.

use crate::bits;
use crate::encoding::{
    Shape, descriptor, require, require_broadcast, require_child, require_counts, require_segment, structure,
};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{U32, record};

/// Most bits of a code.
pub const MAX_CODE_BITS: u8 = 16;
/// Most elements of a vector.
pub const MAX_VECTOR_ELEMENTS: u64 = 1 << 16;

record! {
    /// Descriptor as stored.
    DescriptorRecord 16 {
        /// Number of codebooks, at least 1.
        codebooks: u8,
        /// Bits of a code, 1 to 16.
        bits: u8,
        /// 0 or 1.
        has_scale: u8,
        /// Zero.
        reserved: u8,
        /// Rows of a vector.
        vector_rows: U32,
        /// Columns of a vector.
        vector_cols: U32,
        /// Columns that share a scale, a multiple of `vector_cols`; 0 is all columns.
        scale_cols: U32,
    }
}

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Number of codebooks, at least 1.
    pub codebooks: u8,
    /// Bits of a code, 1 to 16.
    pub bits: u8,
    /// Whether there is a scale child.
    pub has_scale: bool,
    /// Rows of a vector.
    pub vector_rows: u32,
    /// Columns of a vector.
    pub vector_cols: u32,
    /// Columns that share a scale, a multiple of `vector_cols`; 0 is all columns.
    pub scale_cols: u32,
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` for a field out of range or sizes that do not fit.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        let record: DescriptorRecord = descriptor(shape.descriptor)?;
        require("reserved", 0, record.reserved)?;
        if record.has_scale > 1 {
            return Err(Error::expected(ErrorKind::Structure, "has_scale", "0 or 1", record.has_scale));
        }
        let this = Self {
            codebooks: record.codebooks,
            bits: record.bits,
            has_scale: record.has_scale == 1,
            vector_rows: record.vector_rows.get(),
            vector_cols: record.vector_cols.get(),
            scale_cols: record.scale_cols.get(),
        };
        this.check()?;
        require_counts(shape, 1, 1 + usize::from(this.has_scale))?;
        let (vectors_down, codes_across) = this.code_grid(shape.rows, shape.cols)?;
        let codes = bits::row_bytes(codes_across, this.bits.into()).and_then(|n| n.checked_mul(vectors_down));
        require_segment(shape, 0, "codes", codes)?;
        let entries = u64::from(this.codebooks) << this.bits;
        require_child(shape, 0, "codebooks", entries, this.vector_elements())?;
        if this.has_scale {
            let across = match this.scale_cols {
                0 => shape.cols.min(1),
                scale_cols => shape.cols.div_ceil(scale_cols.into()),
            };
            require_broadcast(shape, 1, "scale", vectors_down, across)?;
        }
        Ok(this)
    }

    /// Elements of a vector.
    pub fn vector_elements(&self) -> u64 {
        u64::from(self.vector_rows) * u64::from(self.vector_cols)
    }

    /// Rows of vectors, and codes in each.
    pub(super) fn code_grid(&self, rows: u64, cols: u64) -> Result<(u64, u64)> {
        let across = cols.div_ceil(self.vector_cols.into()).checked_mul(self.codebooks.into());
        let across = across.ok_or_else(|| structure("codes", "size overflows 64 bits"))?;
        Ok((rows.div_ceil(self.vector_rows.into()), across))
    }

    /// Checks what does not depend on the node's shape.
    pub(super) fn check(&self) -> Result<()> {
        if self.codebooks == 0 {
            return Err(structure("codebooks", "expected at least 1, found 0"));
        }
        if !(1..=MAX_CODE_BITS).contains(&self.bits) {
            let widths = format!("1 to {MAX_CODE_BITS}");
            return Err(Error::expected(ErrorKind::Structure, "bits", widths, self.bits));
        }
        if !(1..=MAX_VECTOR_ELEMENTS).contains(&self.vector_elements()) {
            let sizes = format!("1 to {MAX_VECTOR_ELEMENTS} elements");
            return Err(Error::expected(ErrorKind::Structure, "vector", sizes, self.vector_elements()));
        }
        if !self.scale_cols.is_multiple_of(self.vector_cols) || (!self.has_scale && self.scale_cols != 0) {
            return Err(Error::expected(
                ErrorKind::Structure,
                "scale_cols",
                format_args!("a multiple of {}, 0 without a scale", self.vector_cols),
                self.scale_cols,
            ));
        }
        Ok(())
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        bytemuck::bytes_of(&DescriptorRecord {
            codebooks: self.codebooks,
            bits: self.bits,
            has_scale: self.has_scale.into(),
            reserved: 0,
            vector_rows: self.vector_rows.into(),
            vector_cols: self.vector_cols.into(),
            scale_cols: self.scale_cols.into(),
        })
        .to_vec()
    }
}

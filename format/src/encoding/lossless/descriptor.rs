//! The descriptor of `lossless` and the sizes that follow from it.

use crate::dtype::DType;
use crate::encoding::{Shape, descriptor, require, require_counts, require_segment, structure};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{U16, U32, U64, record};

/// Most elements of a frame of more than one row.
pub const MAX_FRAME_ELEMENTS: u64 = 1 << 24;

record! {
    /// Descriptor as stored.
    DescriptorRecord 16 {
        /// [`DType`] number.
        dtype: U16,
        /// Zero.
        reserved: U16,
        /// Rows that are decoded together, at least 1.
        rows_per_frame: U32,
        /// Length of the `chunks` segment.
        chunk_bytes: U64,
    }
}

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Element type.
    pub dtype: DType,
    /// Rows that are decoded together, at least 1.
    pub rows_per_frame: u32,
    /// Length of the `chunks` segment.
    pub chunk_bytes: u64,
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` for a field out of range or sizes that do not fit, `Unsupported` for an unknown
    /// element type.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        let record: DescriptorRecord = descriptor(shape.descriptor)?;
        let number = record.dtype.get();
        let dtype = DType::from_number(number).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "dtype", format!("number {number} is unknown"))
        })?;
        require("reserved", 0, record.reserved.get())?;
        let rows_per_frame = record.rows_per_frame.get();
        let frame_elements = u64::from(rows_per_frame).checked_mul(shape.cols);
        let small = rows_per_frame == 1 || frame_elements.is_some_and(|n| n <= MAX_FRAME_ELEMENTS);
        if rows_per_frame == 0 || !small {
            return Err(Error::expected(
                ErrorKind::Structure,
                "rows_per_frame",
                format_args!("1, or more rows of at most {MAX_FRAME_ELEMENTS} elements together"),
                rows_per_frame,
            ));
        }
        require_counts(shape, 2, 0)?;
        let overflow = || structure("elements", "size overflows 64 bits");
        let elements = shape.rows.checked_mul(shape.cols).ok_or_else(overflow)?;
        elements.checked_mul(dtype.bytes() as u64).ok_or_else(overflow)?;
        let frames = match shape.cols {
            0 => 0,
            _ => shape.rows.div_ceil(rows_per_frame.into()),
        };
        require_segment(shape, 0, "ends", frames.checked_mul(8 * dtype.bytes() as u64))?;
        let chunk_bytes = record.chunk_bytes.get();
        require_segment(shape, 1, "chunks", Some(chunk_bytes))?;
        Ok(Self { dtype, rows_per_frame, chunk_bytes })
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        bytemuck::bytes_of(&DescriptorRecord {
            dtype: (self.dtype as u16).into(),
            reserved: 0.into(),
            rows_per_frame: self.rows_per_frame.into(),
            chunk_bytes: self.chunk_bytes.into(),
        })
        .to_vec()
    }
}

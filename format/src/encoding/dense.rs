//! `dense`: elements of one type, row-major, without row padding (spec: encodings/dense).

use super::{RawNode, Shape, descriptor, extent, require, require_counts, require_segment, structure};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use crate::wire::{U16, U32, record};
use bytemuck::Zeroable;
use core::ops::Range;
use std::borrow::Cow;

/// Id on disk.
pub const ID: u32 = 1;
/// Name in every layer.
pub const NAME: &str = "dense";
/// Version written and read.
pub const VERSION: u16 = 1;

record! {
    /// Descriptor as stored.
    DescriptorRecord 8 {
        /// [`DType`] number.
        dtype: U16,
        /// Zero.
        reserved0: U16,
        /// Zero.
        reserved1: U32,
    }
}

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Element type.
    pub dtype: DType,
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` or `Unsupported`.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        let record: DescriptorRecord = descriptor(shape.descriptor)?;
        let number = record.dtype.get();
        let dtype = DType::from_number(number).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "dtype", format!("number {number} is unknown"))
        })?;
        require("reserved", 0, record.reserved0.get())?;
        require("reserved", 0, record.reserved1.get())?;
        require_counts(shape, 1, 0)?;
        let bytes = shape.rows.checked_mul(shape.cols).and_then(|n| n.checked_mul(dtype.bytes() as u64));
        require_segment(shape, 0, "elements", bytes)?;
        Ok(Self { dtype })
    }

    fn to_bytes(self) -> Vec<u8> {
        bytemuck::bytes_of(&DescriptorRecord {
            dtype: (self.dtype as u16).into(),
            ..DescriptorRecord::zeroed()
        })
        .to_vec()
    }
}

/// Builds a node from little-endian element bytes.
///
/// # Errors
/// `Structure` when `bytes` is not `rows * cols` elements long.
pub fn pack(dtype: DType, rows: u64, cols: u64, bytes: Vec<u8>) -> Result<NodeData> {
    NodeData::new(
        ID,
        VERSION,
        rows,
        cols,
        Descriptor { dtype }.to_bytes(),
        vec![bytes.into()],
        Vec::<NodeData>::new(),
    )
}

/// Builds a node from values, rounded to `dtype`.
///
/// # Errors
/// `Structure` when `values` is not `rows * cols` long, `Argument` for a type without real values.
pub fn pack_values(dtype: DType, rows: u64, cols: u64, values: &[f32]) -> Result<NodeData> {
    pack(dtype, rows, cols, dtype.encode(values)?)
}

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: Cow<'a, [u8]>,
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let Descriptor { dtype } = raw.check(Descriptor::parse)?;
        Ok(Self {
            dtype,
            rows: extent("rows", raw.rows)?,
            cols: extent("cols", raw.cols)?,
            bytes: raw
                .segments
                .into_iter()
                .next()
                .ok_or_else(|| structure("segment count", "expected 1, found 0"))?,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The stored element bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row_bytes = self.cols * self.dtype.bytes();
        let bytes = self.bytes.get(rows.start * row_bytes..rows.end * row_bytes).unwrap_or(&[]);
        self.dtype.decode(bytes, out)
    }

    pub(super) fn verify(&self) -> Result<()> {
        Ok(())
    }
}

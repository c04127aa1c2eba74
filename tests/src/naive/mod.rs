//! A second decoder, written from the pages of `spec/` alone: one element at a time, slow, and with
//! no code in common with `cmf-format`, whose decoding is held against it bit by bit.

mod codebook;
mod dense;
mod grouped;
mod lossless;
mod low_rank;
mod matrix;
mod nested;
mod sign_low_rank;
mod sparse;
mod transform;
mod tree;
mod trellis;
mod zstd_frame;

pub use matrix::{Matrix, Term};
pub use transform::Transform;
pub use tree::decoded;

use std::cell::RefCell;
use std::collections::HashMap;

/// A node with its decoded segments and its children.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Encoding id.
    pub encoding: u32,
    /// Version of the encoding.
    pub version: u16,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Descriptor.
    pub descriptor: Vec<u8>,
    /// Decoded bytes of each segment.
    pub segments: Vec<Vec<u8>>,
    /// Children.
    pub children: Vec<Tree>,
    /// Decoded chunks of `lossless`, by index.
    pub chunks: RefCell<HashMap<u64, Outcome<Vec<u8>>>>,
}

/// Why a node, its payload or a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A rule of "Checks at open" that the page marks `structure`.
    Structure,
    /// A rule of "Checks at open" that the page marks `unsupported`.
    Unsupported,
    /// A rule of "Checks on payload".
    Value,
    /// The element type has no value as f32.
    Argument,
}

/// A result with [`Reject`].
pub type Outcome<T> = Result<T, Reject>;

impl Tree {
    /// "Checks at open" of the node and all below it.
    ///
    /// # Errors
    /// `Structure` or `Unsupported`.
    pub fn check(&self) -> Outcome<()> {
        self.children.iter().try_for_each(Tree::check)?;
        match (self.encoding, self.version) {
            (1, 1) => dense::check(self),
            (2, 1) => grouped::check(self),
            (3, 1) => sparse::check(self),
            (4, 1) => low_rank::check(self),
            (5, 1) => codebook::check(self),
            (6, 1) => lossless::check(self),
            (7, 1) => trellis::check(self),
            (8, 1) => sign_low_rank::check(self),
            (9, 1) => nested::check(self),
            _ => Err(Reject::Unsupported),
        }
    }

    /// "Checks on payload" of a checked node and all below it.
    ///
    /// # Errors
    /// `Value`.
    pub fn verify(&self) -> Outcome<()> {
        self.children.iter().try_for_each(Tree::verify)?;
        match self.encoding {
            2 => grouped::verify(self),
            3 => sparse::verify(self),
            5 => codebook::verify(self),
            6 => lossless::verify(self),
            7 => trellis::verify(self),
            8 => sign_low_rank::verify(self),
            9 => nested::verify(self),
            _ => Ok(()),
        }
    }

    /// The value of a checked node at row `i`, column `j`.
    ///
    /// # Errors
    /// `Value` where a rule on payload is broken that decoding checks, `Argument` for c64.
    pub fn value(&self, i: u64, j: u64) -> Outcome<f32> {
        match self.encoding {
            1 => dense::value(self, i, j),
            2 => grouped::value(self, i, j),
            3 => sparse::value(self, i, j),
            4 => low_rank::value(self, i, j),
            5 => codebook::value(self, i, j),
            6 => lossless::value(self, i, j),
            7 => trellis::value(self, i, j),
            8 => sign_low_rank::value(self, i, j),
            9 => nested::value(self, i, j),
            _ => Err(Reject::Unsupported),
        }
    }

    /// What becomes of the sum of the terms before this one at row `i`, column `j`.
    ///
    /// # Errors
    /// As [`Tree::value`].
    pub fn add_to(&self, sum: f32, i: u64, j: u64) -> Outcome<f32> {
        match self.encoding {
            3 => sparse::add_to(self, sum, i, j),
            _ => Ok(sum + self.value(i, j)?),
        }
    }

    /// The value at `(i, j)`, either index 0 where the node has extent 1: broadcasting.
    fn broadcast(&self, i: u64, j: u64) -> Outcome<f32> {
        self.value(if self.rows == 1 { 0 } else { i }, if self.cols == 1 { 0 } else { j })
    }

    /// Whether the node is `[rows or 1, cols or 1]`.
    fn broadcasts_to(&self, rows: u64, cols: u64) -> bool {
        (self.rows == rows || self.rows == 1) && (self.cols == cols || self.cols == 1)
    }

    /// Requires these numbers of descriptor bytes, segments and children.
    fn parts(&self, descriptor: usize, segments: usize, children: usize) -> Outcome<()> {
        require(
            self.descriptor.len() == descriptor
                && self.segments.len() == segments
                && self.children.len() == children,
        )
    }

    fn segment(&self, index: usize) -> &[u8] {
        self.segments.get(index).map_or(&[], Vec::as_slice)
    }

    /// Requires a segment of exactly this many bytes.
    fn segment_bytes(&self, index: usize, bytes: Option<u64>) -> Outcome<()> {
        require(bytes == Some(self.segment(index).len() as u64))
    }
}

fn require(holds: bool) -> Outcome<()> {
    if holds { Ok(()) } else { Err(Reject::Structure) }
}

fn payload(holds: bool) -> Outcome<()> {
    if holds { Ok(()) } else { Err(Reject::Value) }
}

/// A little-endian number of up to 8 bytes; bytes that are not there are 0.
fn number(bytes: &[u8], at: u64, length: u64) -> u64 {
    let byte = |k: u64| usize::try_from(at + k).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0);
    (0..length).rev().fold(0, |n, k| n << 8 | u64::from(byte(k)))
}

fn signed(bytes: &[u8], at: u64) -> i32 {
    number(bytes, at, 4) as u32 as i32
}

/// `ceil(a / b)`.
fn ceil(a: u64, b: u64) -> u64 {
    a / b + u64::from(!a.is_multiple_of(b))
}

/// Bytes of a row of a bit stream (container, 6.2).
fn stream_row_bytes(codes: u64, bits: u64) -> Option<u64> {
    ceil(codes.checked_mul(bits)?, 32).checked_mul(4)
}

/// Bits `from` to `from + count - 1` of a row that starts at byte `row`, least significant first.
fn bits(bytes: &[u8], row: u64, from: u64, count: u64) -> u64 {
    (0..count).rev().fold(0, |code, k| {
        let bit = from + k;
        code << 1 | number(bytes, row + bit / 8, 1) >> (bit % 8) & 1
    })
}

/// Whether all bits from `from` on of each of `rows` rows are 0.
fn tail_is_zero(bytes: &[u8], rows: u64, row_bytes: u64, from: u64) -> bool {
    let mut all = (0..rows).flat_map(|row| (from..row_bytes * 8).map(move |bit| (row, bit)));
    row_bytes == 0 || all.all(|(row, bit)| bits(bytes, row * row_bytes, bit, 1) == 0)
}

/// A minifloat (dense, "Element types"): E exponent and M mantissa bits below an optional sign.
fn minifloat(code: u64, e_bits: u64, m_bits: u64, bias: i64) -> f32 {
    let m = code % (1 << m_bits);
    let e = (code >> m_bits) % (1 << e_bits);
    let sign = if code >> (e_bits + m_bits) & 1 == 1 { -1.0 } else { 1.0 };
    // Exact in f64: at most 9 significant bits, and exponents far within its range.
    let magnitude = match e {
        0 => m as f64 * power_of_two(1 - bias - m_bits as i64),
        _ => ((1u64 << m_bits) + m) as f64 * power_of_two(e as i64 - bias - m_bits as i64),
    };
    (sign * magnitude) as f32
}

fn power_of_two(exponent: i64) -> f64 {
    let factor = if exponent < 0 { 0.5 } else { 2.0 };
    (0..exponent.abs()).fold(1.0, |product, _| product * factor)
}

//! `sign_low_rank`: a sign for each element and a magnitude of low rank (spec:
//! encodings/sign_low_rank).
//!
//! Sums of such nodes are the iterative absolute value decomposition of BitStack (Wang et al.,
//! arXiv:2410.23918).

use super::low_rank;
use super::{RawNode, Shape, require_segment, structure, value};
use crate::bits;
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use core::ops::Range;
use std::borrow::Cow;
use std::sync::Arc;

/// Id on disk.
pub const ID: u32 = 8;
/// Name in every layer.
pub const NAME: &str = "sign_low_rank";
/// Version written and read.
pub const VERSION: u16 = 1;

/// The descriptor as stored has the fields of that of `low_rank`.
pub use low_rank::DescriptorRecord;

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Rows of both factors, at least 1.
    pub rank: u32,
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` for a rank of 0, factors of other shapes or signs of another length.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        let low_rank::Descriptor { rank } = low_rank::Descriptor::parse_beside(shape, 1)?;
        let bytes = bits::row_bytes(shape.cols, 1).and_then(|n| n.checked_mul(shape.rows));
        require_segment(shape, 0, "signs", bytes)?;
        Ok(Self { rank })
    }
}

/// Builds a node from one sign an element, row-major, `true` for positive, and the factors `a_t`
/// `[rank, rows]` and `b` `[rank, cols]` of the magnitude.
///
/// # Errors
/// `Argument` when there is not one sign an element, `Structure` when the factors have different
/// ranks, or rank 0.
pub fn pack(
    positive: &[bool],
    a_t: impl Into<Arc<NodeData>>,
    b: impl Into<Arc<NodeData>>,
) -> Result<NodeData> {
    let (a_t, b): (Arc<NodeData>, Arc<NodeData>) = (a_t.into(), b.into());
    let (rows, cols) = (a_t.cols, b.cols);
    let elements = rows.checked_mul(cols);
    if elements != Some(positive.len() as u64) {
        let expected = format!("one for each of {rows} x {cols} elements");
        return Err(Error::expected(ErrorKind::Argument, "signs", expected, positive.len()));
    }
    let codes: Vec<u16> = positive.iter().map(|p| u16::from(*p)).collect();
    let width = super::extent("cols", cols)?;
    let signs = bits::pack_rows(&codes, width, 1)?;
    let descriptor = low_rank::Descriptor::of_factors(&a_t)?.to_bytes();
    NodeData::new(ID, VERSION, rows, cols, descriptor, vec![signs.into()], vec![a_t, b])
}

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    row_bytes: usize,
    signs: Cow<'a, [u8]>,
    magnitude: low_rank::View<'a>,
}

impl<'a> View<'a> {
    pub(super) fn new(mut raw: RawNode<'a>) -> Result<Self> {
        let Descriptor { rank } = raw.check(Descriptor::parse)?;
        let signs = raw.segments.pop().ok_or_else(|| structure("segment count", "expected 1, found 0"))?;
        Ok(Self {
            row_bytes: bits::row_bytes(raw.cols, 1)
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| structure("cols", "row is too long"))?,
            signs,
            magnitude: low_rank::View::of_factors(low_rank::Descriptor { rank }, raw)?,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.magnitude.rows()
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.magnitude.cols()
    }

    /// The signs, rows of one bit an element padded to 4 bytes; 1 is positive.
    pub fn signs(&self) -> &[u8] {
        &self.signs
    }

    /// What the signs are given to.
    pub fn magnitude(&self) -> &low_rank::View<'a> {
        &self.magnitude
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.magnitude.decode_rows(rows.clone(), out)?;
        if out.is_empty() {
            return Ok(());
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols())) {
            let signs = self.signs.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[]);
            for (out, signs) in out.chunks_mut(8).zip(signs) {
                for (bit, value) in out.iter_mut().enumerate() {
                    let negative = u32::from(!signs >> bit & 1);
                    *value = f32::from_bits(value.to_bits() ^ negative << 31);
                }
            }
        }
        Ok(())
    }

    pub(super) fn verify(&self) -> Result<()> {
        if !bits::padding_is_zero(&self.signs, self.cols() as u64, 1) {
            return Err(value("signs", "padding bits are not zero"));
        }
        self.magnitude.verify()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::testing::{bits as value_bits, damages, decoded, dense_f32, pattern, survives};
    use proptest::prelude::*;

    /// A node of patterned signs and factors, and its values by the formula of the spec.
    fn node_and_values(rank: usize, rows: usize, cols: usize) -> Result<(NodeData, Vec<f32>)> {
        let scaled = |len| pattern(len).iter().map(|v| v * 0.37).collect::<Vec<f32>>();
        let (a_t, b) = (scaled(rank * rows), scaled(rank * cols));
        let positive: Vec<bool> = (0..rows * cols).map(|i| i * i % 7 < 3).collect();
        let mut values = Vec::new();
        for (i, positive) in positive.iter().enumerate() {
            let mut v = 0.0;
            for k in 0..rank {
                let product = a_t[k * rows + i / cols] * b[k * cols + i % cols];
                v += product;
            }
            values.push(if *positive { v } else { -v });
        }
        Ok((pack(&positive, dense_f32(rank, rows, &a_t)?, dense_f32(rank, cols, &b)?)?, values))
    }

    #[test]
    fn signs_reach_every_element() -> Result<()> {
        for rank in [1, 3] {
            for (rows, cols) in [(1, 1), (2, 7), (3, 8), (2, 31), (2, 32), (3, 33), (0, 4), (4, 0)] {
                let (node, values) = node_and_values(rank, rows, cols)?;
                assert_eq!(value_bits(&decoded(&node)?), value_bits(&values), "{rank} {rows} {cols}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_sign_of_zero_is_kept() -> Result<()> {
        let node = pack(&[true, false], dense_f32(1, 1, &[0.0])?, dense_f32(1, 2, &[1.0, 1.0])?)?;
        assert_eq!(value_bits(&decoded(&node)?), value_bits(&[0.0, -0.0]));
        Ok(())
    }

    #[test]
    fn rejects_signs_that_are_not_one_an_element() -> Result<()> {
        for count in [0, 5, 7] {
            let factors = (dense_f32(1, 2, &[1.0; 2])?, dense_f32(1, 3, &[1.0; 3])?);
            let error = pack(&vec![true; count], factors.0, factors.1).err().map(|e| e.kind());
            assert_eq!(error, Some(ErrorKind::Argument), "{count}");
        }
        Ok(())
    }

    #[test]
    fn rejects_rank_0_and_other_ranks() -> Result<()> {
        for (left, right) in [(0, 0), (2, 3)] {
            let pair = (dense_f32(left, 1, &vec![0.0; left])?, dense_f32(right, 1, &vec![0.0; right])?);
            let error = pack(&[true], pair.0, pair.1).err().map(|e| e.kind());
            assert_eq!(error, Some(ErrorKind::Structure));
        }
        Ok(())
    }

    #[test]
    fn verify_sees_padding_bits() -> Result<()> {
        let (mut node, values) = node_and_values(2, 2, 3)?;
        node.segments[0] =
            [node.segments[0].bytes().unwrap_or(&[])[..7].to_vec(), vec![0x80]].concat().into();
        let mut out = vec![0.0; 6];
        node.view()?.decode_rows(0..2, &mut out)?;
        assert_eq!(value_bits(&out), value_bits(&values));
        assert_eq!(node.view()?.verify().err().map(|e| e.kind()), Some(ErrorKind::Value));
        Ok(())
    }

    proptest! {
        #[test]
        fn decodes_to_naive_values(rank in 1usize..5, (rows, cols) in (0usize..6, 0usize..70)) {
            let (node, values) = node_and_values(rank, rows, cols)?;
            prop_assert_eq!(value_bits(&decoded(&node)?), value_bits(&values));
        }

        #[test]
        fn damage_is_no_panic(damages in damages()) {
            survives(&node_and_values(2, 3, 9)?.0, &damages);
        }
    }
}

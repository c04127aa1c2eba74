//! `codebook`: additive vector quantisation (spec: encodings/codebook).
//!
//! A vector of `vector_rows` by `vector_cols` elements is the sum of one entry from each of
//! `codebooks` codebooks, times a scale. The codebooks are a child node, which many nodes may share.

mod descriptor;
#[cfg(test)]
mod tests;

pub use descriptor::{Descriptor, DescriptorRecord, MAX_CODE_BITS, MAX_VECTOR_ELEMENTS};

use super::grouped::GroupRow;
use super::{RawNode, extent, structure, value};
use crate::bits;
use crate::error::{Error, Result};
use crate::node::NodeData;
use core::ops::Range;
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// Id on disk.
pub const ID: u32 = 5;
/// Name in every layer.
pub const NAME: &str = "codebook";
/// Version written and read.
pub const VERSION: u16 = 1;

/// Most elements of the codebooks that a view keeps decoded (16 MiB of f32).
const KEPT_ELEMS: usize = 1 << 22;

/// Builds a node from codes: row-major by vector, the codes of a vector next to each other, so
/// `ceil(rows / vector_rows)` rows of `ceil(cols / vector_cols) * codebooks` codes.
///
/// `entries` is `[codebooks * 2^bits, vector_rows * vector_cols]`, and may be shared with other
/// nodes. `scale` is `[vectors down | 1, scale groups across | 1]`, and present if the descriptor
/// has one.
///
/// # Errors
/// `Argument` for a code that does not fit or a wrong number of codes, `Structure` when the parts
/// do not fit together.
pub fn pack(
    descriptor: &Descriptor,
    rows: u64,
    cols: u64,
    codes: &[u16],
    entries: impl Into<Arc<NodeData>>,
    scale: Option<Arc<NodeData>>,
) -> Result<NodeData> {
    descriptor.check()?;
    let (_, codes_across) = descriptor.code_grid(rows, cols)?;
    let stream = bits::pack_rows(codes, extent("cols", codes_across)?, descriptor.bits.into())?;
    let children = [Some(entries.into()), scale].into_iter().flatten().collect();
    NodeData::new(ID, VERSION, rows, cols, descriptor.to_bytes(), vec![stream.into()], children)
}

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    descriptor: Descriptor,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    codes: Cow<'a, [u8]>,
    entries: Box<super::View<'a>>,
    scale: Option<Box<super::View<'a>>>,
    /// Whether the decoded codebooks may be kept.
    keeps: bool,
    kept: OnceLock<Result<Vec<f32>>>,
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let descriptor = raw.check(Descriptor::parse)?;
        let entries = raw.children.first().map_or(0, |c| c.rows().saturating_mul(c.cols()));
        let keeps = raw.keep.take_values(entries, KEPT_ELEMS);
        let mut children = raw.children.into_iter().map(Box::new);
        let (_, codes_across) = descriptor.code_grid(raw.rows, raw.cols)?;
        Ok(Self {
            descriptor,
            rows: extent("rows", raw.rows)?,
            cols: extent("cols", raw.cols)?,
            row_bytes: bits::row_bytes(codes_across, descriptor.bits.into())
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| structure("cols", "row is too long"))?,
            codes: raw
                .segments
                .into_iter()
                .next()
                .ok_or_else(|| structure("segment count", "expected 1, found 0"))?,
            entries: children
                .next()
                .ok_or_else(|| structure("child count", "expected the codebooks, found nothing"))?,
            scale: children.next(),
            keeps,
            kept: OnceLock::new(),
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

    /// Checked descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The code bit stream, rows padded to 4 bytes.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The entries of all codebooks, `[codebooks * 2^bits, vector elements]`.
    pub fn entries(&self) -> &super::View<'a> {
        &self.entries
    }

    /// The scale child.
    pub fn scale(&self) -> Option<&super::View<'a>> {
        self.scale.as_deref()
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let (height, width) = (self.descriptor.vector_rows as usize, self.descriptor.vector_cols as usize);
        let books = usize::from(self.descriptor.codebooks);
        let mut codes = vec![0u16; self.cols.div_ceil(width) * books];
        let mut scale = GroupRow::new(self.scale.as_deref());
        let mut entries = Entries::new(self)?;
        let mut sum = vec![0f32; height * width];
        let vectors_per_scale = match self.descriptor.scale_cols as usize {
            0 => usize::MAX,
            scale_cols => scale_cols / width,
        };
        for vector_row in rows.start / height..rows.end.div_ceil(height) {
            let top = vector_row * height;
            let covered = rows.start.max(top)..rows.end.min(top.saturating_add(height));
            let packed =
                self.codes.get(vector_row * self.row_bytes..(vector_row + 1) * self.row_bytes).unwrap_or(&[]);
            bits::unpack_row(packed, self.descriptor.bits.into(), 0, &mut codes);
            scale.load(vector_row).map_err(|e| e.within("scale"))?;
            for (vector, codes) in codes.chunks_exact(books).enumerate() {
                entries.sum(codes, &mut sum)?;
                if self.scale.is_some() {
                    let scale = scale.get(vector / vectors_per_scale);
                    sum.iter_mut().for_each(|v| *v *= scale);
                }
                let left = vector * width;
                let lines = sum.chunks_exact(width).zip(top..);
                for (line, row) in lines.filter(|(_, row)| covered.contains(row)) {
                    let start = (row - rows.start) * self.cols;
                    let out = out.get_mut(start + left..start + self.cols).unwrap_or(&mut []);
                    for (out, value) in out.iter_mut().zip(line) {
                        *out = *value;
                    }
                }
            }
        }
        Ok(())
    }

    /// The decoded codebooks, where they are small enough to be kept.
    fn kept(&self) -> Result<Option<&[f32]>> {
        let (rows, cols) = (self.entries.rows(), self.entries.cols());
        if !self.keeps {
            return Ok(None);
        }
        let kept = self.kept.get_or_init(|| {
            let mut values = vec![0.0; rows * cols];
            self.entries.decode_rows(0..rows, &mut values).map_err(|e| e.within("codebooks"))?;
            Ok(values)
        });
        kept.as_ref().map(|values| Some(values.as_slice())).map_err(Error::clone)
    }

    pub(super) fn verify(&self) -> Result<()> {
        let codes = self.cols.div_ceil(self.descriptor.vector_cols as usize) as u64
            * u64::from(self.descriptor.codebooks);
        if !bits::padding_is_zero(&self.codes, codes, self.descriptor.bits.into()) {
            return Err(value("codes", "padding bits are not zero"));
        }
        self.entries.verify().map_err(|e| e.within("codebooks"))?;
        self.scale.as_ref().map_or(Ok(()), |scale| scale.verify().map_err(|e| e.within("scale")))
    }
}

/// Sums entries, from the kept codebooks or decoded one by one.
struct Entries<'v, 'a> {
    view: &'v super::View<'a>,
    kept: Option<&'v [f32]>,
    per_book: usize,
    entry: Vec<f32>,
}

impl<'v, 'a> Entries<'v, 'a> {
    fn new(view: &'v View<'a>) -> Result<Self> {
        let per_book = 1 << view.descriptor.bits;
        let elements = view.entries.cols();
        Ok(Self { view: &view.entries, kept: view.kept()?, per_book, entry: vec![0.0; elements] })
    }

    /// The entries of `codes`, one from each codebook, summed in order of codebook.
    fn sum(&mut self, codes: &[u16], sum: &mut [f32]) -> Result<()> {
        for (book, code) in codes.iter().enumerate() {
            let index = book * self.per_book + usize::from(*code);
            let entry = match self.kept {
                Some(kept) => kept.get(index * sum.len()..(index + 1) * sum.len()).unwrap_or(&[]),
                None => {
                    self.view
                        .decode_rows(index..index + 1, &mut self.entry)
                        .map_err(|e| e.within("codebooks"))?;
                    &self.entry
                }
            };
            match book {
                0 => sum.iter_mut().zip(entry).for_each(|(sum, v)| *sum = *v),
                _ => sum.iter_mut().zip(entry).for_each(|(sum, v)| *sum += *v),
            }
        }
        Ok(())
    }
}

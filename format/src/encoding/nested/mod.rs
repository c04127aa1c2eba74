//! `nested`: integer codes as bit planes, most significant first, of which any prefix is a code of
//! its own with its own scales or table (spec: encodings/nested).
//!
//! Tables for each row and level are Any-Precision's (Park et al., arXiv:2402.10517); rounding half
//! up to the level is that of Double Rounding (Huang et al., arXiv:2502.01068) and of Matryoshka
//! quantisation (Nair et al., arXiv:2502.06786).

mod descriptor;
#[cfg(test)]
mod tests;

pub use descriptor::{Descriptor, DescriptorRecord, Level, MAX_PLANES, Map, Rounding};

use super::grouped::GroupRow;
use super::{RawNode, extent, structure, value};
use crate::bits;
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use crate::segment::SegmentData;
use core::ops::Range;
use std::borrow::Cow;
use std::sync::Arc;

/// Id on disk.
pub const ID: u32 = 9;
/// Name in every layer.
pub const NAME: &str = "nested";
/// Version written and read.
pub const VERSION: u16 = 1;

/// A level with the children that its codes need.
#[derive(Clone, Debug)]
pub struct LevelData {
    /// The level.
    pub level: Level,
    /// Of [`Map::Integer`]: `scale` and `zero`, each `[rows | 1, groups across | 1]`. Of
    /// [`Map::Table`]: the table `[rows | 1, 2^bits]`.
    pub children: Vec<Arc<NodeData>>,
}

/// The bit planes of codes of `bits` bits, one a byte, row-major: the most significant first.
///
/// # Errors
/// `Argument` for a code that does not fit, for bits that are not 1 to 8, or for a count that is not
/// a multiple of `cols`.
pub fn planes(codes: &[u8], cols: usize, bits: u8) -> Result<Vec<SegmentData>> {
    let argument = |problem: String| Error::new(ErrorKind::Argument, "codes", problem);
    if !(1..=MAX_PLANES).contains(&bits) {
        return Err(argument(format!("of {bits} bits, expected 1 to {MAX_PLANES}")));
    }
    if let Some(code) = codes.iter().find(|code| u16::from(**code) >> bits != 0) {
        return Err(argument(format!("code {code} does not fit {bits} bits")));
    }
    let plane = |shift: u8| {
        let codes: Vec<u16> = codes.iter().map(|code| u16::from(code >> shift & 1)).collect();
        Ok(bits::pack_rows(&codes, cols, 1)?.into())
    };
    (0..bits).rev().map(plane).collect()
}

/// Builds a node: what `level` adds to `lower`, or `level` itself.
///
/// `planes` are those of [`planes`]; the node holds as many of them as its level needs.
///
/// # Errors
/// `Structure` when the parts do not fit together.
pub fn pack(
    rows: u64,
    cols: u64,
    planes: &[SegmentData],
    level: &LevelData,
    lower: Option<&LevelData>,
) -> Result<NodeData> {
    let descriptor = Descriptor { level: level.level, lower: lower.map(|lower| lower.level) };
    let planes = planes.get(..level.level.planes().into()).unwrap_or(planes).to_vec();
    let lower = lower.map_or(&[][..], |lower| lower.children.as_slice());
    let children = [level.children.as_slice(), lower].concat();
    NodeData::new(ID, VERSION, rows, cols, descriptor.to_bytes(), planes, children)
}

/// Builds a node for each level, each over the one before: their sum is the last level.
///
/// # Errors
/// As [`pack`].
pub fn pack_levels(
    rows: u64,
    cols: u64,
    planes: &[SegmentData],
    levels: &[LevelData],
) -> Result<Vec<NodeData>> {
    let lower = std::iter::once(None).chain(levels.iter().map(Some));
    levels.iter().zip(lower).map(|(level, lower)| pack(rows, cols, planes, level, lower)).collect()
}

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    descriptor: Descriptor,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    planes: Vec<Cow<'a, [u8]>>,
    level: Values<'a>,
    lower: Option<Values<'a>>,
}

/// What the codes of a level mean.
#[derive(Debug)]
pub enum Values<'a> {
    /// `(code - zero) * scale`.
    Integer {
        /// `[rows | 1, groups across | 1]`.
        scale: Box<super::View<'a>>,
        /// As `scale`.
        zero: Box<super::View<'a>>,
    },
    /// `[rows | 1, 2^bits]`.
    Table(Box<super::View<'a>>),
}

impl<'a> Values<'a> {
    fn take(level: &Level, children: &mut impl Iterator<Item = super::View<'a>>) -> Result<Self> {
        let mut child = |part| children.next().map(Box::new).ok_or_else(|| structure(part, "is missing"));
        Ok(match level.map {
            Map::Integer => Values::Integer { scale: child("scale")?, zero: child("zero")? },
            Map::Table => Values::Table(child("table")?),
        })
    }

    fn verify(&self) -> Result<()> {
        match self {
            Values::Integer { scale, zero } => {
                scale.verify().map_err(|e| e.within("scale"))?;
                zero.verify().map_err(|e| e.within("zero"))
            }
            Values::Table(table) => table.verify().map_err(|e| e.within("table")),
        }
    }
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let descriptor = raw.check(Descriptor::parse)?;
        let mut children = raw.children.into_iter();
        Ok(Self {
            descriptor,
            rows: extent("rows", raw.rows)?,
            cols: extent("cols", raw.cols)?,
            row_bytes: bits::row_bytes(raw.cols, 1)
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| structure("cols", "row is too long"))?,
            planes: raw.segments,
            level: Values::take(&descriptor.level, &mut children)?,
            lower: descriptor.lower.map(|lower| Values::take(&lower, &mut children)).transpose()?,
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

    /// The bit planes, the most significant first: rows of one bit an element padded to 4 bytes.
    pub fn planes(&self) -> &[Cow<'a, [u8]>] {
        &self.planes
    }

    /// What the codes of the level mean.
    pub fn level(&self) -> &Values<'a> {
        &self.level
    }

    /// What the codes of the level below mean.
    pub fn lower(&self) -> Option<&Values<'a>> {
        self.lower.as_ref()
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        // Without rows nothing bounds the number of columns, and so what is allocated for them.
        if rows.is_empty() || self.cols == 0 {
            return Ok(());
        }
        let planes = self.descriptor.level.planes();
        let mut codes = vec![0u8; self.cols];
        let mut level = Decoder::new(&self.descriptor.level, planes, &self.level);
        let mut lower = match (&self.descriptor.lower, &self.lower) {
            (Some(level), Some(values)) => Some((Decoder::new(level, planes, values), vec![0f32; self.cols])),
            _ => None,
        };
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
            self.codes(row, &mut codes);
            level.row(row, &codes, out)?;
            if let Some((lower, values)) = &mut lower {
                lower.row(row, &codes, values).map_err(|e| e.within("lower"))?;
                out.iter_mut().zip(values).for_each(|(out, lower)| *out -= *lower);
            }
        }
        Ok(())
    }

    /// The codes of a row, of as many bits as there are planes.
    fn codes(&self, row: usize, codes: &mut [u8]) {
        codes.fill(0);
        for plane in &self.planes {
            let bytes = plane.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[]);
            for (codes, byte) in codes.chunks_mut(8).zip(bytes) {
                for (bit, code) in codes.iter_mut().enumerate() {
                    *code = *code << 1 | (byte >> bit & 1);
                }
            }
        }
    }

    pub(super) fn verify(&self) -> Result<()> {
        for (index, plane) in self.planes.iter().enumerate() {
            if !bits::padding_is_zero(plane, self.cols as u64, 1) {
                return Err(value(&format!("plane {index}"), "padding bits are not zero"));
            }
        }
        self.level.verify()?;
        self.lower.as_ref().map_or(Ok(()), |lower| lower.verify().map_err(|e| e.within("lower")))
    }
}

/// Decodes the codes of one level, row by row.
struct Decoder<'v, 'a> {
    /// The level's code in each code of all planes.
    of_planes: [u8; 256],
    group_cols: usize,
    values: Rows<'v, 'a>,
}

enum Rows<'v, 'a> {
    Integer { scale: GroupRow<'v, 'a>, zero: GroupRow<'v, 'a> },
    Table(GroupRow<'v, 'a>),
}

impl<'v, 'a> Decoder<'v, 'a> {
    fn new(level: &Level, planes: u8, values: &'v Values<'a>) -> Self {
        let mut of_planes = [0; 256];
        for (of, code) in of_planes.iter_mut().zip(0u8..=255) {
            *of = level.code(code, planes);
        }
        Self {
            of_planes,
            group_cols: match level.group_cols {
                0 => usize::MAX,
                cols => cols as usize,
            },
            values: match values {
                Values::Integer { scale, zero } => {
                    Rows::Integer { scale: GroupRow::new(Some(scale)), zero: GroupRow::new(Some(zero)) }
                }
                Values::Table(table) => Rows::Table(GroupRow::new(Some(table))),
            },
        }
    }

    fn row(&mut self, row: usize, codes: &[u8], out: &mut [f32]) -> Result<()> {
        let of = &self.of_planes;
        match &mut self.values {
            Rows::Integer { scale, zero } => {
                scale.load(row).map_err(|e| e.within("scale"))?;
                zero.load(row).map_err(|e| e.within("zero"))?;
                let groups = codes.chunks(self.group_cols).zip(out.chunks_mut(self.group_cols));
                for (group, (codes, out)) in groups.enumerate() {
                    let (scale, zero) = (scale.get(group), zero.get(group));
                    for (out, code) in out.iter_mut().zip(codes) {
                        *out = (f32::from(of[usize::from(*code)]) - zero) * scale;
                    }
                }
            }
            Rows::Table(table) => {
                table.load(row).map_err(|e| e.within("table"))?;
                let mut values = [0f32; 256];
                for (value, code) in values.iter_mut().zip(of) {
                    *value = table.entry((*code).into());
                }
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = values[usize::from(*code)];
                }
            }
        }
        Ok(())
    }
}

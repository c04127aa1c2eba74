//! `grouped`: codes of 1 to 8 bits with a scale and a zero point per group (spec:
//! encodings/grouped).
//!
//! A group is `group_rows` by `group_cols` elements. Scale and zero are child nodes, so their own
//! quantisation in groups is another `grouped` node.

use super::{
    RawNode, Shape, descriptor, extent, require, require_broadcast, require_counts, require_segment,
    structure, value,
};
use crate::bits;
use crate::dtype::minifloat;
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use crate::wire::{I32, U32, record};
use core::ops::Range;
use std::borrow::Cow;

/// Id on disk.
pub const ID: u32 = 2;
/// Name in every layer.
pub const NAME: &str = "grouped";
/// Version written and read.
pub const VERSION: u16 = 1;

record! {
    /// Descriptor as stored.
    DescriptorRecord 32 {
        /// Bits of a code, 1 to 8.
        bits: u8,
        /// 0 integer, 1 minifloat, 2 table.
        code_map: u8,
        /// 0 none, 1 multiply, 2 divide.
        scale_op: u8,
        /// 0 none, 1 subtract before the scale, 2 add after the scale.
        zero_op: u8,
        /// Rows of a group; 0 is all rows.
        group_rows: U32,
        /// Columns of a group; 0 is all columns.
        group_cols: U32,
        /// Added to an integer code; 0 for other maps.
        offset: I32,
        /// Exponent bits of a minifloat; 0 for other maps.
        exponent_bits: u8,
        /// Mantissa bits of a minifloat; 0 for other maps.
        mantissa_bits: u8,
        /// Sign bits of a minifloat, 0 or 1; 0 for other maps.
        sign_bits: u8,
        /// Special codes of a minifloat: 0 none, 1 IEEE, 2 all ones is NaN; 0 for other maps.
        special: u8,
        /// Exponent bias of a minifloat; 0 for other maps.
        bias: I32,
        /// Zero.
        reserved: [U32; 2],
    }
}

/// What a code means before scale and zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeMap {
    /// `code + offset`.
    Integer {
        /// Added to the code.
        offset: i32,
    },
    /// A small float: sign, exponent, mantissa from the most significant bit down.
    Minifloat(Minifloat),
    /// Entry `code` of the table child.
    Table,
}

/// A minifloat format. Exponent 0 is subnormal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minifloat {
    /// 0 for unsigned formats, else 1.
    pub sign_bits: u8,
    /// Exponent bits.
    pub exponent_bits: u8,
    /// Mantissa bits.
    pub mantissa_bits: u8,
    /// Exponent bias.
    pub bias: i32,
    /// Which codes are not numbers.
    pub special: Special,
}

/// Which codes of a minifloat are not numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Special {
    /// Every code is a finite number.
    None = 0,
    /// The largest exponent holds infinities (mantissa 0) and NaN.
    Ieee = 1,
    /// All exponent and mantissa bits set is NaN.
    AllOnesNan = 2,
}

impl Minifloat {
    /// OCP E2M1 (MXFP4, NVFP4).
    pub const E2M1: Self = Self::signed(2, 1, 1, Special::None);
    /// OCP E2M3.
    pub const E2M3: Self = Self::signed(2, 3, 1, Special::None);
    /// OCP E3M2.
    pub const E3M2: Self = Self::signed(3, 2, 3, Special::None);
    /// OCP E4M3.
    pub const E4M3: Self = Self::signed(4, 3, 7, Special::AllOnesNan);
    /// OCP E5M2.
    pub const E5M2: Self = Self::signed(5, 2, 15, Special::Ieee);

    const fn signed(exponent_bits: u8, mantissa_bits: u8, bias: i32, special: Special) -> Self {
        Self { sign_bits: 1, exponent_bits, mantissa_bits, bias, special }
    }

    /// Value of a code.
    pub fn value(self, code: u8) -> f32 {
        let (exponent_bits, mantissa_bits) = (u32::from(self.exponent_bits), u32::from(self.mantissa_bits));
        let magnitude = u32::from(code) & ((1 << (exponent_bits + mantissa_bits)) - 1);
        let negative = self.sign_bits == 1 && u32::from(code) >> (exponent_bits + mantissa_bits) & 1 == 1;
        let sign = if negative { -1.0f32 } else { 1.0 };
        let mantissa = magnitude & ((1 << mantissa_bits) - 1);
        match self.special {
            Special::AllOnesNan if magnitude == (1 << (exponent_bits + mantissa_bits)) - 1 => f32::NAN,
            Special::Ieee if magnitude >> mantissa_bits == (1 << exponent_bits) - 1 => {
                if mantissa == 0 {
                    sign * f32::INFINITY
                } else {
                    f32::NAN
                }
            }
            _ => sign * minifloat(magnitude, exponent_bits, mantissa_bits, self.bias),
        }
    }
}

/// How the scale is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ScaleOp {
    /// There is no scale child.
    None = 0,
    /// The mapped code times the scale.
    Multiply = 1,
    /// The mapped code divided by the scale.
    Divide = 2,
}

/// How the zero point is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ZeroOp {
    /// There is no zero child.
    None = 0,
    /// Subtracted from the mapped code, before the scale.
    Subtract = 1,
    /// Added after the scale.
    Add = 2,
}

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Meaning of a code.
    pub code_map: CodeMap,
    /// Use of the scale.
    pub scale_op: ScaleOp,
    /// Use of the zero point.
    pub zero_op: ZeroOp,
    /// Rows of a group; 0 is all rows.
    pub group_rows: u32,
    /// Columns of a group; 0 is all columns.
    pub group_cols: u32,
}

/// Number of groups along an axis of `extent` elements.
pub const fn groups(extent: u64, group: u32) -> u64 {
    match group {
        0 if extent == 0 => 0,
        0 => 1,
        g => extent.div_ceil(g as u64),
    }
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` for a field out of range or sizes that do not fit, `Unsupported` for an
    /// operation number that this reader does not know.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        let record: DescriptorRecord = descriptor(shape.descriptor)?;
        let this = Self::from_record(&record)?;
        let groups = (groups(shape.rows, this.group_rows), groups(shape.cols, this.group_cols));
        let optional = [
            ("scale", this.scale_op != ScaleOp::None, groups),
            ("zero", this.zero_op != ZeroOp::None, groups),
            ("table", this.code_map == CodeMap::Table, (shape.rows, 1 << this.bits)),
        ];
        let present = optional.iter().filter(|(_, present, _)| *present);
        require_counts(shape, 1, present.clone().count())?;
        for (index, (part, _, (rows, cols))) in present.enumerate() {
            require_broadcast(shape, index, part, *rows, *cols)?;
            if *part == "table" {
                require("table columns", *cols, shape.children.get(index).map_or(0, |c| c.1))?;
            }
        }
        let bytes = bits::row_bytes(shape.cols, this.bits.into()).and_then(|n| n.checked_mul(shape.rows));
        require_segment(shape, 0, "codes", bytes)?;
        Ok(this)
    }

    fn from_record(record: &DescriptorRecord) -> Result<Self> {
        let unsupported = |part: &str, number: u8| {
            Error::new(ErrorKind::Unsupported, part, format!("number {number} is unknown"))
        };
        if !(1..=8).contains(&record.bits) {
            return Err(Error::expected(ErrorKind::Structure, "bits", "1 to 8", record.bits));
        }
        let float_fields =
            (record.sign_bits, record.exponent_bits, record.mantissa_bits, record.special, record.bias.get());
        let code_map = match record.code_map {
            0 => CodeMap::Integer { offset: record.offset.get() },
            1 => CodeMap::Minifloat(Self::minifloat(record)?),
            2 => CodeMap::Table,
            other => return Err(unsupported("code_map", other)),
        };
        if record.code_map != 1 && float_fields != (0, 0, 0, 0, 0) {
            return Err(structure("minifloat fields", "expected 0 for this code map"));
        }
        if record.code_map != 0 && record.offset.get() != 0 {
            return Err(structure("offset", "expected 0 for this code map"));
        }
        require("reserved", 0, record.reserved[0].get() | record.reserved[1].get())?;
        Ok(Self {
            bits: record.bits,
            code_map,
            scale_op: match record.scale_op {
                0 => ScaleOp::None,
                1 => ScaleOp::Multiply,
                2 => ScaleOp::Divide,
                other => return Err(unsupported("scale_op", other)),
            },
            zero_op: match record.zero_op {
                0 => ZeroOp::None,
                1 => ZeroOp::Subtract,
                2 => ZeroOp::Add,
                other => return Err(unsupported("zero_op", other)),
            },
            group_rows: record.group_rows.get(),
            group_cols: record.group_cols.get(),
        })
    }

    fn minifloat(record: &DescriptorRecord) -> Result<Minifloat> {
        let (sign, exponent, mantissa) = (record.sign_bits, record.exponent_bits, record.mantissa_bits);
        let bias = record.bias.get();
        let total = u32::from(sign) + u32::from(exponent) + u32::from(mantissa);
        if sign > 1 || exponent == 0 || total != u32::from(record.bits) || !(-127..=127).contains(&bias) {
            return Err(structure(
                "minifloat",
                format!(
                    "sign {sign} + exponent {exponent} + mantissa {mantissa} with bias {bias} is no {}-bit format",
                    record.bits
                ),
            ));
        }
        Ok(Minifloat {
            sign_bits: sign,
            exponent_bits: exponent,
            mantissa_bits: mantissa,
            bias,
            special: match record.special {
                0 => Special::None,
                1 => Special::Ieee,
                2 => Special::AllOnesNan,
                other => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "special",
                        format!("number {other} is unknown"),
                    ));
                }
            },
        })
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut record = DescriptorRecord {
            bits: self.bits,
            code_map: 0,
            scale_op: self.scale_op as u8,
            zero_op: self.zero_op as u8,
            group_rows: self.group_rows.into(),
            group_cols: self.group_cols.into(),
            offset: 0.into(),
            exponent_bits: 0,
            mantissa_bits: 0,
            sign_bits: 0,
            special: 0,
            bias: 0.into(),
            reserved: [0.into(); 2],
        };
        match self.code_map {
            CodeMap::Integer { offset } => record.offset = offset.into(),
            CodeMap::Minifloat(float) => {
                record.code_map = 1;
                record.sign_bits = float.sign_bits;
                record.exponent_bits = float.exponent_bits;
                record.mantissa_bits = float.mantissa_bits;
                record.bias = float.bias.into();
                record.special = float.special as u8;
            }
            CodeMap::Table => record.code_map = 2,
        }
        bytemuck::bytes_of(&record).to_vec()
    }
}

/// Children of a node to be packed; those that the descriptor names must be present.
#[derive(Debug, Default)]
pub struct Children {
    /// `[groups down | 1, groups across | 1]`.
    pub scale: Option<NodeData>,
    /// Same shape rule as `scale`.
    pub zero: Option<NodeData>,
    /// `[rows | 1, 2^bits]`.
    pub table: Option<NodeData>,
}

/// Builds a node from codes, one a byte, row-major.
///
/// # Errors
/// `Argument` for a code that does not fit, `Structure` when the parts do not fit together.
pub fn pack(
    descriptor: &Descriptor,
    rows: u64,
    cols: u64,
    codes: &[u8],
    children: Children,
) -> Result<NodeData> {
    let width = extent("cols", cols)?;
    let wide: Vec<u16> = codes.iter().map(|c| u16::from(*c)).collect();
    pack_stream(descriptor, rows, cols, bits::pack_rows(&wide, width, descriptor.bits.into())?, children)
}

/// Builds a node from a ready bit stream of rows padded to 4 bytes ([`bits::row_bytes`]).
///
/// # Errors
/// `Structure` when the parts do not fit together.
pub fn pack_stream(
    descriptor: &Descriptor,
    rows: u64,
    cols: u64,
    codes: Vec<u8>,
    children: Children,
) -> Result<NodeData> {
    let children = [children.scale, children.zero, children.table].into_iter().flatten().collect();
    NodeData::new(ID, VERSION, rows, cols, descriptor.to_bytes(), vec![codes.into()], children)
}

/// An opened node.
#[derive(Debug)]
pub struct View<'a> {
    descriptor: Descriptor,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    codes: Cow<'a, [u8]>,
    scale: Option<Box<super::View<'a>>>,
    zero: Option<Box<super::View<'a>>>,
    table: Option<Box<super::View<'a>>>,
}

impl<'a> View<'a> {
    pub(super) fn new(raw: RawNode<'a>) -> Result<Self> {
        let descriptor = raw.check(Descriptor::parse)?;
        let mut children = raw.children.into_iter().map(Box::new);
        let mut child = |present: bool| if present { children.next() } else { None };
        Ok(Self {
            descriptor,
            rows: extent("rows", raw.rows)?,
            cols: extent("cols", raw.cols)?,
            row_bytes: bits::row_bytes(raw.cols, descriptor.bits.into())
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| structure("cols", "row is too long"))?,
            codes: raw
                .segments
                .into_iter()
                .next()
                .ok_or_else(|| structure("segment count", "expected 1, found 0"))?,
            scale: child(descriptor.scale_op != ScaleOp::None),
            zero: child(descriptor.zero_op != ZeroOp::None),
            table: child(descriptor.code_map == CodeMap::Table),
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

    /// The code bit stream, rows of `row_bytes` bytes.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scale child.
    pub fn scale(&self) -> Option<&super::View<'a>> {
        self.scale.as_deref()
    }

    /// The zero-point child.
    pub fn zero(&self) -> Option<&super::View<'a>> {
        self.zero.as_deref()
    }

    /// The table child.
    pub fn table(&self) -> Option<&super::View<'a>> {
        self.table.as_deref()
    }

    pub(super) fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        // Without rows nothing bounds the number of columns, and so what is allocated for them.
        if rows.is_empty() || self.cols == 0 {
            return Ok(());
        }
        let mut codes = vec![0u16; self.cols];
        let mut values = [0f32; 256];
        let mut scale = GroupRow::new(self.scale.as_deref());
        let mut zero = GroupRow::new(self.zero.as_deref());
        let mut table = vec![0f32; self.table.as_ref().map_or(0, |t| t.cols())];
        self.fill_values(&mut values);
        let group_rows = match self.descriptor.group_rows {
            0 => self.rows.max(1),
            g => g as usize,
        };
        let group_cols = match self.descriptor.group_cols {
            0 => self.cols,
            g => g as usize,
        };
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(self.cols)) {
            if let Some(view) = &self.table
                && (view.rows() > 1 || row == rows.start)
            {
                let index = row.min(view.rows().saturating_sub(1));
                view.decode_rows(index..index + 1, &mut table).map_err(|e| e.within("table"))?;
                for (value, entry) in values.iter_mut().zip(&table) {
                    *value = *entry;
                }
            }
            scale.load(row / group_rows).map_err(|e| e.within("scale"))?;
            zero.load(row / group_rows).map_err(|e| e.within("zero"))?;
            let packed = self.codes.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[]);
            bits::unpack_row(packed, self.descriptor.bits.into(), 0, &mut codes);
            self.map_codes(&codes, &values, out);
            for (group, out) in out.chunks_mut(group_cols).enumerate() {
                let (scale, zero) = (scale.get(group), zero.get(group));
                if self.descriptor.zero_op == ZeroOp::Subtract {
                    out.iter_mut().for_each(|v| *v -= zero);
                }
                match self.descriptor.scale_op {
                    ScaleOp::None => {}
                    ScaleOp::Multiply => out.iter_mut().for_each(|v| *v *= scale),
                    ScaleOp::Divide => out.iter_mut().for_each(|v| *v /= scale),
                }
                if self.descriptor.zero_op == ZeroOp::Add {
                    out.iter_mut().for_each(|v| *v += zero);
                }
            }
        }
        Ok(())
    }

    /// What codes mean before scale and zero; `values` holds it for every code.
    fn map_codes(&self, codes: &[u16], values: &[f32; 256], out: &mut [f32]) {
        match self.descriptor.code_map {
            // Exact in f32, and faster than looking it up.
            CodeMap::Integer { offset } if offset.unsigned_abs() < 1 << 23 => {
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = (i32::from(*code) + offset) as f32;
                }
            }
            _ => {
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = values[usize::from(*code & 0xFF)];
                }
            }
        }
    }

    /// Values of all codes for the maps that need no table.
    fn fill_values(&self, values: &mut [f32; 256]) {
        for (value, code) in values.iter_mut().zip(0u8..=255) {
            *value = match self.descriptor.code_map {
                CodeMap::Integer { offset } => (i64::from(code) + i64::from(offset)) as f32,
                CodeMap::Minifloat(float) => float.value(code),
                CodeMap::Table => 0.0,
            };
        }
    }

    pub(super) fn verify(&self) -> Result<()> {
        if !bits::padding_is_zero(&self.codes, self.cols as u64, self.descriptor.bits.into()) {
            return Err(value("codes", "padding bits are not zero"));
        }
        for (part, child) in [("scale", &self.scale), ("zero", &self.zero), ("table", &self.table)] {
            if let Some(child) = child {
                child.verify().map_err(|e| e.within(part))?;
            }
        }
        Ok(())
    }
}

/// One row of a broadcast child, decoded when its index changes.
#[derive(Debug)]
pub(crate) struct GroupRow<'v, 'a> {
    view: Option<&'v super::View<'a>>,
    loaded: Option<usize>,
    values: Vec<f32>,
}

impl<'v, 'a> GroupRow<'v, 'a> {
    pub(crate) fn new(view: Option<&'v super::View<'a>>) -> Self {
        Self { view, loaded: None, values: vec![0.0; view.map_or(0, super::View::cols)] }
    }

    /// Decodes row `row`, or row 0 of a child broadcast along rows.
    pub(crate) fn load(&mut self, row: usize) -> Result<()> {
        let Some(view) = self.view else { return Ok(()) };
        let row = if view.rows() == 1 { 0 } else { row };
        if self.loaded != Some(row) {
            view.decode_rows(row..row.saturating_add(1), &mut self.values)?;
            self.loaded = Some(row);
        }
        Ok(())
    }

    /// The loaded row.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Value for group `group` across, or the only one.
    pub(crate) fn get(&self, group: usize) -> f32 {
        match self.values.as_slice() {
            [only] => *only,
            values => values.get(group).copied().unwrap_or(0.0),
        }
    }

    /// Value of column `index`, without broadcasting.
    pub(crate) fn entry(&self, index: usize) -> f32 {
        self.values.get(index).copied().unwrap_or(0.0)
    }
}

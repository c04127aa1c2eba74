//! Descriptor of `nested`.

use crate::bits;
use crate::encoding::grouped::groups;
use crate::encoding::{
    Shape, descriptor, require, require_broadcast, require_counts, require_segment, structure,
};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{U16, U32, record};

/// Most planes of a node.
pub const MAX_PLANES: u8 = 8;

record! {
    /// Descriptor as stored.
    DescriptorRecord 16 {
        /// Bits of a code of this level, 1 to 8.
        bits: u8,
        /// Meaning of a code of this level: 0 integer, 1 table.
        map: u8,
        /// How the code of this level follows from the planes: 0 floor, 1 half up.
        rounding: u8,
        /// Bits of a code of the level below, less than `bits`; 0 for none.
        lower_bits: u8,
        /// As `map`, of the level below.
        lower_map: u8,
        /// As `rounding`, of the level below.
        lower_rounding: u8,
        /// Zero.
        reserved: U16,
        /// Columns of a group of this level; 0 is all columns; 0 for a table.
        group_cols: U32,
        /// As `group_cols`, of the level below.
        lower_group_cols: U32,
    }
}

/// What a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Map {
    /// `(code - zero) * scale`, with children `scale` and `zero`.
    Integer = 0,
    /// Entry `code` of the row's table.
    Table = 1,
}

/// How a code of few bits follows from the planes of one with more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rounding {
    /// The first `bits` planes.
    Floor = 0,
    /// The first `bits` planes plus the bit of the next plane, at most `2^bits - 1`.
    HalfUp = 1,
}

/// One level: how its codes follow from the planes and what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// What a code means.
    pub map: Map,
    /// How a code follows from the planes.
    pub rounding: Rounding,
    /// Columns of a group of [`Map::Integer`]; 0 is all columns.
    pub group_cols: u32,
}

/// Checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The level that the node refines to.
    pub level: Level,
    /// The level that it refines.
    pub lower: Option<Level>,
}

impl Level {
    /// Planes that the code of this level is made of.
    pub fn planes(&self) -> u8 {
        self.bits.saturating_add(self.rounding as u8)
    }

    /// The code of this level in a code of `planes` bits.
    pub(super) fn code(&self, code: u8, planes: u8) -> u8 {
        let dropped = planes.saturating_sub(self.bits);
        let floor = u16::from(code) >> dropped;
        let rounded = match self.rounding {
            Rounding::HalfUp if dropped > 0 => floor + (u16::from(code) >> (dropped - 1) & 1),
            _ => floor,
        };
        rounded.min((1 << self.bits) - 1) as u8
    }

    /// Reads the fields of a level.
    fn read(bits: u8, map: u8, rounding: u8, group_cols: u32) -> Result<Self> {
        let unsupported = |part: &str, number: u8| {
            Error::new(ErrorKind::Unsupported, part, format!("number {number} is unknown"))
        };
        let map = match map {
            0 => Map::Integer,
            1 => Map::Table,
            other => return Err(unsupported("map", other)),
        };
        let rounding = match rounding {
            0 => Rounding::Floor,
            1 => Rounding::HalfUp,
            other => return Err(unsupported("rounding", other)),
        };
        if map == Map::Table && group_cols != 0 {
            return Err(Error::expected(ErrorKind::Structure, "group_cols", "0 for a table", group_cols));
        }
        Ok(Self { bits, map, rounding, group_cols })
    }

    /// Names and shapes of the children; a table's columns are exact.
    fn children(&self, shape: &Shape<'_>) -> Vec<(&'static str, u64, u64)> {
        let across = groups(shape.cols, self.group_cols);
        match self.map {
            Map::Integer => vec![("scale", shape.rows, across), ("zero", shape.rows, across)],
            Map::Table => vec![("table", shape.rows, 1 << self.bits)],
        }
    }
}

impl Descriptor {
    /// Parses and checks a node's descriptor.
    ///
    /// # Errors
    /// `Structure` for a field out of range or sizes that do not fit, `Unsupported` for a number
    /// that this reader does not know.
    pub fn parse(shape: &Shape<'_>) -> Result<Self> {
        let record: DescriptorRecord = descriptor(shape.descriptor)?;
        let this = Self::from_record(&record)?;
        let planes = this.level.planes();
        let levels = [Some(this.level), this.lower];
        let children: Vec<_> = levels.iter().flatten().flat_map(|level| level.children(shape)).collect();
        require_counts(shape, planes.into(), children.len())?;
        for (index, (part, rows, cols)) in children.into_iter().enumerate() {
            require_broadcast(shape, index, part, rows, cols)?;
            if part == "table" {
                require("table columns", cols, shape.children.get(index).map_or(0, |c| c.1))?;
            }
        }
        let bytes = bits::row_bytes(shape.cols, 1).and_then(|n| n.checked_mul(shape.rows));
        for plane in 0..usize::from(planes) {
            require_segment(shape, plane, "plane", bytes)?;
        }
        Ok(this)
    }

    fn from_record(record: &DescriptorRecord) -> Result<Self> {
        let DescriptorRecord { bits, lower_bits, .. } = *record;
        if !(1..=8).contains(&bits) {
            return Err(Error::expected(ErrorKind::Structure, "bits", "1 to 8", bits));
        }
        if lower_bits >= bits {
            return Err(Error::expected(
                ErrorKind::Structure,
                "lower_bits",
                format_args!("less than {bits}"),
                lower_bits,
            ));
        }
        require("reserved", 0, record.reserved.get())?;
        let level = Level::read(bits, record.map, record.rounding, record.group_cols.get())?;
        if level.planes() > MAX_PLANES {
            return Err(structure("rounding", "expected floor for codes of 8 bits"));
        }
        let lower = (lower_bits, record.lower_map, record.lower_rounding, record.lower_group_cols.get());
        let lower = match lower {
            (0, 0, 0, 0) => None,
            (0, ..) => return Err(structure("lower fields", "expected 0 without a level below")),
            (bits, map, rounding, group_cols) => Some(Level::read(bits, map, rounding, group_cols)?),
        };
        Ok(Self { level, lower })
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let of = |level: Option<Level>| {
            level.map_or((0, 0, 0, 0), |l| (l.bits, l.map as u8, l.rounding as u8, l.group_cols))
        };
        let (bits, map, rounding, group_cols) = of(Some(self.level));
        let (lower_bits, lower_map, lower_rounding, lower_group_cols) = of(self.lower);
        let record = DescriptorRecord {
            bits,
            map,
            rounding,
            lower_bits,
            lower_map,
            lower_rounding,
            reserved: 0.into(),
            group_cols: group_cols.into(),
            lower_group_cols: lower_group_cols.into(),
        };
        bytemuck::bytes_of(&record).to_vec()
    }
}

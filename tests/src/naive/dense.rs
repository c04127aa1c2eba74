//! spec/encodings/dense.md

use super::{Outcome, Reject, Tree, minifloat, number, power_of_two, require};

/// Bytes of an element; `None` for a number that is not in the table.
pub(super) fn element_bytes(dtype: u64) -> Option<u64> {
    match dtype {
        1 | 8 | 12 | 17 => Some(8),
        2 | 9 | 13 => Some(4),
        3 | 4 | 10 | 14 => Some(2),
        5..=7 | 11 | 15 | 16 | 18 | 19 => Some(1),
        _ => None,
    }
}

/// The value of an element whose little-endian bytes make the number `b`.
pub(super) fn element(dtype: u64, b: u64) -> Outcome<f32> {
    Ok(match dtype {
        1 => f64::from_bits(b) as f32,
        2 => f32::from_bits(b as u32),
        3 => half_value(b),
        4 => f32::from_bits((b as u32) << 16),
        5 if b & 0x7F == 0x7F => f32::NAN,
        5 => minifloat(b, 4, 3, 7),
        6 => half_value(b << 8),
        7 if b == 0xFF => f32::NAN,
        7 => power_of_two(b as i64 - 127) as f32,
        8 => b as i64 as f32,
        9 => b as u32 as i32 as f32,
        10 => b as u16 as i16 as f32,
        11 => b as u8 as i8 as f32,
        12..=15 => b as f32,
        16 => f32::from(u8::from(b != 0)),
        18 | 19 if b == 0x80 => f32::NAN,
        18 => minifloat(b, 4, 3, 8),
        19 => minifloat(b, 5, 2, 16),
        _ => return Err(Reject::Argument),
    })
}

/// IEEE binary16.
fn half_value(b: u64) -> f32 {
    match (b >> 10 & 0x1F, b & 0x3FF) {
        (0x1F, 0) if b >> 15 == 1 => f32::NEG_INFINITY,
        (0x1F, 0) => f32::INFINITY,
        (0x1F, _) => f32::NAN,
        _ => minifloat(b, 5, 10, 15),
    }
}

pub(super) fn check(node: &Tree) -> Outcome<()> {
    require(node.descriptor.len() == 8)?;
    require(number(&node.descriptor, 2, 6) == 0)?;
    let bytes = element_bytes(number(&node.descriptor, 0, 2)).ok_or(Reject::Unsupported)?;
    node.parts(8, 1, 0)?;
    node.segment_bytes(0, node.rows.checked_mul(node.cols).and_then(|n| n.checked_mul(bytes)))
}

pub(super) fn value(node: &Tree, i: u64, j: u64) -> Outcome<f32> {
    let dtype = number(&node.descriptor, 0, 2);
    let bytes = element_bytes(dtype).ok_or(Reject::Unsupported)?;
    element(dtype, number(node.segment(0), (i * node.cols + j) * bytes, bytes))
}

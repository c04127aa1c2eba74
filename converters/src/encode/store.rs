//! Storage of scales, zero points, factors and codebooks: rounding to what the file will hold.

use super::grouped::grouped;
use super::levels::{Levels, SmallFloats};
use super::matrix::Matrix;
use super::params::{Codes, Range, Store, Zero};
use super::{format_error, node_shape};
use crate::error::{Error, Result};
use cmf_format::encoding::dense;
use cmf_format::{DType, NodeData};
use half::{bf16, f16};

impl Store {
    /// The element type of stores that keep one element a value.
    pub(super) fn dtype(&self) -> Option<DType> {
        match self {
            Store::F32 => Some(DType::F32),
            Store::F16 => Some(DType::F16),
            Store::Bf16 => Some(DType::BF16),
            Store::F8E4m3 => Some(DType::F8E4M3),
            Store::F8E8m0 => Some(DType::F8E8M0),
            Store::Grouped(_) => None,
        }
    }

    /// Whether rounding moves a value by a fraction of a per cent at most.
    pub(super) fn is_fine(&self) -> bool {
        matches!(self, Store::F32 | Store::F16 | Store::Bf16)
    }

    /// Whether scales of either sign are kept as well as positive ones.
    pub(super) fn is_signed(&self) -> bool {
        match self {
            Store::F8E8m0 => false,
            Store::Grouped(inner) => {
                inner.zero == Zero::None && inner.codes == Codes::Integer && inner.range != Range::Unsigned
            }
            Store::F32 | Store::F16 | Store::Bf16 | Store::F8E4m3 => true,
        }
    }

    /// The value as it will be read back, which for [`Store::Grouped`] only the whole array shows;
    /// infinite when it does not fit.
    ///
    /// To nearest even; E8M0 rounds up, so that nothing that the scale covered is cut off.
    pub(super) fn round(&self, value: f32) -> f32 {
        match self {
            Store::F32 | Store::Grouped(_) => value,
            Store::F16 => f16::from_f32(value).to_f32(),
            Store::Bf16 => bf16::from_f32(value).to_f32(),
            Store::F8E4m3 if value.abs() > 464.0 => f32::INFINITY,
            Store::F8E4m3 => SmallFloats::E4M3.level(value),
            Store::F8E8m0 => power_of_two_above(value),
        }
    }

    /// A scale as it will be read back. Other than zero it is never so small that dividing by it
    /// overflows.
    pub(super) fn round_scale(&self, scale: f32) -> f32 {
        let rounded = self.round(scale);
        if rounded != 0.0 && rounded.abs() < f32::MIN_POSITIVE && *self != Store::F8E8m0 {
            return f32::MIN_POSITIVE.copysign(rounded);
        }
        rounded
    }

    /// Stores an array.
    ///
    /// # Errors
    /// `Unsupported` naming row and column of a value that the element type cannot hold.
    pub(super) fn pack(&self, what: &str, values: &[f32], rows: usize, cols: usize) -> Result<Stored> {
        let dtype = match self {
            Store::Grouped(params) => {
                let node = grouped(&Matrix::new(values, rows, cols)?, params)?;
                return Stored::decode(node);
            }
            store => store.dtype().unwrap_or(DType::F32),
        };
        let values: Vec<f32> = values.iter().map(|v| self.round(*v)).collect();
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::unsupported(format!(
                "{what} at row {}, column {}",
                index / cols.max(1),
                index % cols.max(1)
            ))
            .expected(format_args!("a value within the range of {}", dtype.name())));
        }
        let (rows, cols) = node_shape(rows, cols);
        let node = dense::pack_values(dtype, rows, cols, &values).map_err(format_error)?;
        Ok(Stored { node, values })
    }
}

/// A packed array with the values that it decodes to.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) node: NodeData,
    pub(super) values: Vec<f32>,
}

impl Stored {
    fn decode(node: NodeData) -> Result<Self> {
        let values = super::decode(&node)?;
        Ok(Self { node, values })
    }
}

/// The least power of two from 2^-127 up that is not below `value`; infinite above 2^127.
fn power_of_two_above(value: f32) -> f32 {
    let least = f32::from_bits(1 << 22);
    if value <= least {
        return least;
    }
    let bits = value.to_bits();
    f32::from_bits((bits + 0x007F_FFFF) & 0x7F80_0000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn rounds_up_to_powers_of_two() {
        for (value, expected) in [
            (0.0, 2f32.powi(-127)),
            (-1.0, 2f32.powi(-127)),
            (f32::from_bits(1), 2f32.powi(-127)),
            (2f32.powi(-127), 2f32.powi(-127)),
            (1.5 * 2f32.powi(-127), 2f32.powi(-126)),
            (1.0, 1.0),
            (1.000_000_1, 2.0),
            (3.0, 4.0),
            (2f32.powi(127), 2f32.powi(127)),
            (1.5 * 2f32.powi(127), f32::INFINITY),
        ] {
            assert_eq!(power_of_two_above(value), expected, "{value:e}");
        }
    }

    #[test]
    fn rounds_as_the_format_encodes() -> cmf_format::Result<()> {
        for store in [Store::F32, Store::F16, Store::Bf16, Store::F8E4m3] {
            let dtype = store.dtype().unwrap();
            for i in 0..5000 {
                let value = (i as f32 - 2500.0) * 0.15 * 1.1f32.powi(i % 40 - 39);
                let mut decoded = [0.0];
                dtype.decode(&dtype.encode(&[value])?, &mut decoded)?;
                assert_eq!(store.round(value).abs(), decoded[0].abs(), "{store:?} {value}");
            }
        }
        Ok(())
    }

    #[test]
    fn names_a_scale_that_overflows() {
        let error = Store::F16.pack("scale", &[1.0, 2.0, 1e6, 1.0], 2, 2).map(drop);
        assert_eq!(
            error.map_err(|e| e.to_string()),
            Err("scale at row 1, column 0: expected a value within the range of f16".to_owned())
        );
    }
}

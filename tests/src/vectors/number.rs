//! Values of stored elements, from the definitions of the spec and integer arithmetic alone.

use cmf_format::DType;

/// `(-1)^negative * mantissa * 2^exponent` as the nearest f32, ties to even.
pub fn rounded(negative: bool, mantissa: u128, exponent: i32) -> f32 {
    let sign = if negative { 1u32 << 31 } else { 0 };
    if mantissa == 0 {
        return f32::from_bits(sign);
    }
    let top = 127 - mantissa.leading_zeros() as i32 + exponent;
    // The weight of the last bit that an f32 of this size keeps.
    let unit = (top - 23).max(-149);
    let shift = unit - exponent;
    let mut kept = match shift {
        ..=0 => mantissa << -shift,
        1..=127 => mantissa >> shift,
        _ => 0,
    };
    if (1..=127).contains(&shift) {
        let lost = mantissa & ((1 << shift) - 1);
        let half = 1 << (shift - 1);
        if lost > half || (lost == half && kept % 2 == 1) {
            kept += 1;
        }
    }
    // A kept value of 2^24 carries into the exponent field by itself, as 2^23 does out of the
    // subnormals.
    let biased = (unit + 149) as u128;
    let bits = (biased << 23) + kept;
    f32::from_bits(sign | bits.min(0x7F80_0000) as u32)
}

/// Sign, exponent and mantissa bits, most significant first; exponent 0 is subnormal.
pub fn minifloat(code: u32, exponent_bits: u32, mantissa_bits: u32, bias: i32) -> f32 {
    let mantissa = code % (1 << mantissa_bits);
    let exponent = (code >> mantissa_bits) % (1 << exponent_bits);
    let negative = code >> (mantissa_bits + exponent_bits) == 1;
    let below = bias + mantissa_bits as i32;
    match exponent {
        0 => rounded(negative, mantissa.into(), 1 - below),
        e => rounded(negative, u128::from(mantissa) + (1 << mantissa_bits), e as i32 - below),
    }
}

/// An IEEE format: the largest exponent is infinity and NaN.
fn ieee(bits: u64, exponent_bits: u32, mantissa_bits: u32) -> f32 {
    let mantissa = bits % (1 << mantissa_bits);
    let exponent = (bits >> mantissa_bits) % (1 << exponent_bits);
    let negative = bits >> (mantissa_bits + exponent_bits) == 1;
    let below = (1 << (exponent_bits - 1)) - 1 + mantissa_bits as i32;
    match (exponent, mantissa) {
        (0, m) => rounded(negative, m.into(), 1 - below),
        (e, 0) if e == (1 << exponent_bits) - 1 => {
            if negative {
                -f32::INFINITY
            } else {
                f32::INFINITY
            }
        }
        (e, _) if e == (1 << exponent_bits) - 1 => f32::NAN,
        (e, m) => rounded(negative, u128::from(m) + (1 << mantissa_bits), e as i32 - below),
    }
}

fn integer(value: i128) -> f32 {
    rounded(value < 0, value.unsigned_abs(), 0)
}

/// The little-endian number in `bytes`.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The two's complement little-endian number in `bytes`.
fn signed(bytes: &[u8]) -> i128 {
    let value = i128::from(unsigned(bytes));
    let half = 1i128 << (8 * bytes.len() - 1);
    if value >= half { value - 2 * half } else { value }
}

/// Value of one element; `None` for a type without real values.
pub fn element(dtype: DType, bytes: &[u8]) -> Option<f32> {
    let bits = unsigned(bytes);
    let code = bits as u32;
    Some(match dtype {
        DType::F64 => ieee(bits, 11, 52),
        DType::F32 => f32::from_bits(code),
        DType::F16 => ieee(bits, 5, 10),
        DType::BF16 => ieee(bits, 8, 7),
        DType::F8E4M3 if code % 128 == 127 => f32::NAN,
        DType::F8E4M3 => minifloat(code, 4, 3, 7),
        DType::F8E5M2 => ieee(bits, 5, 2),
        DType::F8E8M0 if code == 255 => f32::NAN,
        DType::F8E8M0 => rounded(false, 1, code as i32 - 127),
        DType::F8E4M3Fnuz | DType::F8E5M2Fnuz if code == 0x80 => f32::NAN,
        DType::F8E4M3Fnuz => minifloat(code, 4, 3, 8),
        DType::F8E5M2Fnuz => minifloat(code, 5, 2, 16),
        DType::I64 | DType::I32 | DType::I16 | DType::I8 => integer(signed(bytes)),
        DType::U64 | DType::U32 | DType::U16 | DType::U8 => integer(bits.into()),
        DType::Bool => {
            if code == 0 {
                0.0
            } else {
                1.0
            }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_processor_does() {
        let interesting =
            [0u64, 1, 2, 3, (1 << 24) + 1, (1 << 25) + 2, (1 << 25) + 6, u64::MAX, u64::MAX >> 39];
        for n in interesting {
            assert_eq!(integer(n.into()).to_bits(), (n as f32).to_bits(), "{n}");
            assert_eq!(integer(-i128::from(n)).abs().to_bits(), (n as f32).to_bits(), "-{n}");
        }
        for value in [1e-50, 1e-45, 7e-46, 7.1e-46, 1.1754943e-38, 0.1, 3.4028235e38, 3.4028236e38, 1e39] {
            for value in [value, -value] {
                assert_eq!(ieee(f64::to_bits(value), 11, 52).to_bits(), (value as f32).to_bits(), "{value}");
            }
        }
    }
}

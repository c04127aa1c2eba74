//! Element types and their exact values as f32 (spec: encodings/dense, "Element types").

use crate::error::{Error, ErrorKind, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

macro_rules! dtypes {
    ($($(#[$meta:meta])* $number:literal $name:ident $text:literal $safetensors:literal $bits:literal;)*) => {
        /// Element type of a tensor or of a `dense` node.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum DType { $($(#[$meta])* $name = $number,)* }

        impl DType {
            /// Every element type, in order of number.
            pub const ALL: &'static [DType] = &[$(DType::$name,)*];

            /// The type with this number on disk.
            pub const fn from_number(number: u16) -> Option<DType> {
                match number { $($number => Some(DType::$name),)* _ => None }
            }

            /// Name in the spec, recipes and `--json`.
            pub const fn name(self) -> &'static str {
                match self { $(DType::$name => $text,)* }
            }

            /// Name in a safetensors header; empty where safetensors has none.
            pub const fn safetensors_name(self) -> &'static str {
                match self { $(DType::$name => $safetensors,)* }
            }

            /// Bits of one element.
            pub const fn bits(self) -> u32 {
                match self { $(DType::$name => $bits,)* }
            }
        }
    };
}

dtypes! {
    /// IEEE binary64.
    1 F64 "f64" "F64" 64;
    /// IEEE binary32.
    2 F32 "f32" "F32" 32;
    /// IEEE binary16.
    3 F16 "f16" "F16" 16;
    /// The high half of a binary32.
    4 BF16 "bf16" "BF16" 16;
    /// OCP FP8 E4M3: no infinity, NaN is 0x7F and 0xFF.
    5 F8E4M3 "f8_e4m3" "F8_E4M3" 8;
    /// OCP FP8 E5M2: infinities and NaN as IEEE.
    6 F8E5M2 "f8_e5m2" "F8_E5M2" 8;
    /// OCP E8M0: 2^(code - 127), NaN is 0xFF.
    7 F8E8M0 "f8_e8m0" "F8_E8M0" 8;
    /// Signed 64-bit.
    8 I64 "i64" "I64" 64;
    /// Signed 32-bit.
    9 I32 "i32" "I32" 32;
    /// Signed 16-bit.
    10 I16 "i16" "I16" 16;
    /// Signed 8-bit.
    11 I8 "i8" "I8" 8;
    /// Unsigned 64-bit.
    12 U64 "u64" "U64" 64;
    /// Unsigned 32-bit.
    13 U32 "u32" "U32" 32;
    /// Unsigned 16-bit.
    14 U16 "u16" "U16" 16;
    /// Unsigned 8-bit.
    15 U8 "u8" "U8" 8;
    /// One byte, zero is false.
    16 Bool "bool" "BOOL" 8;
    /// Two binary32: real, imaginary. Carried, not decoded.
    17 C64 "c64" "C64" 64;
    /// FP8 E4M3 without negative zero: NaN is 0x80, bias 8.
    18 F8E4M3Fnuz "f8_e4m3fnuz" "F8_E4M3FNUZ" 8;
    /// FP8 E5M2 without negative zero: NaN is 0x80, bias 16.
    19 F8E5M2Fnuz "f8_e5m2fnuz" "F8_E5M2FNUZ" 8;
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        (self.bits() / 8) as usize
    }

    /// The type that a safetensors header calls `name`.
    pub fn from_safetensors_name(name: &str) -> Option<DType> {
        Self::ALL.iter().copied().find(|d| d.safetensors_name() == name)
    }

    /// The type that the spec calls `name`.
    pub fn from_name(name: &str) -> Option<DType> {
        Self::ALL.iter().copied().find(|d| d.name() == name)
    }

    /// Whether the type holds real numbers in a floating format.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::F64
                | DType::F32
                | DType::F16
                | DType::BF16
                | DType::F8E4M3
                | DType::F8E5M2
                | DType::F8E8M0
                | DType::F8E4M3Fnuz
                | DType::F8E5M2Fnuz
        )
    }

    /// Decodes `bytes` into `out`, one value an element. `f64` and integers round to nearest even.
    ///
    /// # Errors
    /// `Argument` when the lengths differ or the type has no real value (`c64`).
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        if bytes.len() != out.len().saturating_mul(self.bytes()) {
            return Err(Error::expected(
                ErrorKind::Argument,
                self.name(),
                format_args!("{} bytes", out.len().saturating_mul(self.bytes())),
                bytes.len(),
            ));
        }
        macro_rules! each {
            ($bytes:literal, $value:expr) => {{
                let (elements, _) = bytes.as_chunks::<$bytes>();
                for (out, element) in out.iter_mut().zip(elements) {
                    *out = $value(*element);
                }
            }};
        }
        match self {
            DType::F64 => each!(8, |b| f64::from_le_bytes(b) as f32),
            DType::F32 => each!(4, f32::from_le_bytes),
            DType::F16 => {
                // Slices convert with the processor's own instructions, single values do not.
                let (elements, _) = bytes.as_chunks::<2>();
                let mut halves = [f16::ZERO; 64];
                for (out, elements) in out.chunks_mut(64).zip(elements.chunks(64)) {
                    for (half, bytes) in halves.iter_mut().zip(elements) {
                        *half = f16::from_le_bytes(*bytes);
                    }
                    halves.get(..out.len()).unwrap_or(&[]).convert_to_f32_slice(out);
                }
            }
            DType::BF16 => each!(2, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            DType::F8E4M3 => each!(1, |[b]: [u8; 1]| f8_e4m3(b)),
            DType::F8E5M2 => each!(1, |[b]: [u8; 1]| f8_e5m2(b)),
            DType::F8E8M0 => each!(1, |[b]: [u8; 1]| f8_e8m0(b)),
            DType::F8E4M3Fnuz => each!(1, |[b]: [u8; 1]| fnuz(b, 3, 8)),
            DType::F8E5M2Fnuz => each!(1, |[b]: [u8; 1]| fnuz(b, 2, 16)),
            DType::I64 => each!(8, |b| i64::from_le_bytes(b) as f32),
            DType::I32 => each!(4, |b| i32::from_le_bytes(b) as f32),
            DType::I16 => each!(2, |b| f32::from(i16::from_le_bytes(b))),
            DType::I8 => each!(1, |b| f32::from(i8::from_le_bytes(b))),
            DType::U64 => each!(8, |b| u64::from_le_bytes(b) as f32),
            DType::U32 => each!(4, |b| u32::from_le_bytes(b) as f32),
            DType::U16 => each!(2, |b| f32::from(u16::from_le_bytes(b))),
            DType::U8 => each!(1, |[b]: [u8; 1]| f32::from(b)),
            DType::Bool => each!(1, |[b]: [u8; 1]| f32::from(u8::from(b != 0))),
            DType::C64 => {
                return Err(Error::new(
                    ErrorKind::Argument,
                    self.name(),
                    "has no real value; read its bytes",
                ));
            }
        }
        Ok(())
    }

    /// Encodes `values`, rounding to nearest even. Integers and one-byte floats saturate; infinity
    /// and NaN stay what they are where the type has them, NaN becomes 0 in integers.
    ///
    /// # Errors
    /// `Argument` for `c64`.
    pub fn encode(self, values: &[f32]) -> Result<Vec<u8>> {
        macro_rules! each {
            ($value:expr) => {
                values.iter().flat_map(|v| $value(*v)).collect()
            };
        }
        macro_rules! float_int {
            ($ty:ty) => {
                each!(|v: f32| (v.round_ties_even() as $ty).to_le_bytes())
            };
        }
        Ok(match self {
            DType::F64 => each!(|v: f32| f64::from(v).to_le_bytes()),
            DType::F32 => each!(f32::to_le_bytes),
            DType::F16 => each!(|v| f16::from_f32(v).to_le_bytes()),
            DType::BF16 => each!(|v| bf16::from_f32(v).to_le_bytes()),
            DType::F8E4M3 | DType::F8E5M2 | DType::F8E8M0 | DType::F8E4M3Fnuz | DType::F8E5M2Fnuz => {
                let table = self.byte_values();
                let nan = match self {
                    DType::F8E4M3 | DType::F8E5M2 => 0x7F,
                    DType::F8E8M0 => 0xFF,
                    _ => 0x80,
                };
                each!(|v: f32| [if v.is_nan() { nan } else { nearest(&table, v) }])
            }
            DType::I64 => float_int!(i64),
            DType::I32 => float_int!(i32),
            DType::I16 => float_int!(i16),
            DType::I8 => float_int!(i8),
            DType::U64 => float_int!(u64),
            DType::U32 => float_int!(u32),
            DType::U16 => float_int!(u16),
            DType::U8 => float_int!(u8),
            DType::Bool => each!(|v| [u8::from(v != 0.0)]),
            DType::C64 => {
                return Err(Error::new(ErrorKind::Argument, self.name(), "has no real value"));
            }
        })
    }

    /// The values of a one-byte float that are numbers, with their codes, ascending.
    fn byte_values(self) -> Vec<(f32, u8)> {
        let mut table: Vec<(f32, u8)> = (0..=255u8)
            .filter_map(|code| {
                let mut value = [0.0];
                self.decode(&[code], &mut value).ok()?;
                (!value[0].is_nan()).then_some((value[0], code))
            })
            .collect();
        table.sort_by(|a, b| a.0.total_cmp(&b.0));
        table
    }
}

/// Code of the entry nearest to `value`, no NaN; ties go to the even code, finite values outside
/// saturate.
fn nearest(table: &[(f32, u8)], value: f32) -> u8 {
    let above = table.partition_point(|(v, _)| v.total_cmp(&value).is_lt());
    let upper = table.get(above).or(table.last()).copied().unwrap_or((0.0, 0));
    let lower = match above.checked_sub(1) {
        Some(i) => table.get(i).copied().unwrap_or(upper),
        None => upper,
    };
    let (down, up) = (f64::from(value) - f64::from(lower.0), f64::from(upper.0) - f64::from(value));
    if up > 0.0 && (down < up || (down == up && lower.1 & 1 == 0)) { lower.1 } else { upper.1 }
}

/// Value of a sign-magnitude minifloat code below its special codes: exponent 0 is subnormal.
pub(crate) fn minifloat(code: u32, exponent_bits: u32, mantissa_bits: u32, bias: i32) -> f32 {
    let mantissa = code & ((1 << mantissa_bits) - 1);
    let exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let sign = if code >> (exponent_bits + mantissa_bits) & 1 == 1 { -1.0 } else { 1.0 };
    let (significand, power) = match exponent {
        0 => (mantissa, 1 - bias),
        _ => (mantissa | 1 << mantissa_bits, exponent as i32 - bias),
    };
    (sign * f64::from(significand) * 2f64.powi(power - mantissa_bits as i32)) as f32
}

fn f8_e4m3(code: u8) -> f32 {
    if code & 0x7F == 0x7F { f32::NAN } else { small(code, 3, 7) }
}

fn f8_e5m2(code: u8) -> f32 {
    // The high byte of a binary16.
    f16::from_bits(u16::from(code) << 8).to_f32()
}

fn f8_e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

fn fnuz(code: u8, mantissa_bits: u32, bias: i32) -> f32 {
    if code == 0x80 { f32::NAN } else { small(code, mantissa_bits, bias) }
}

/// [`minifloat`] of eight bits, in a form that compilers turn into SIMD and that no processor is slow
/// at: subnormal f32 take no part. Exact for biases from 1 to 126.
fn small(code: u8, mantissa_bits: u32, bias: i32) -> f32 {
    let magnitude = u32::from(code & 0x7F);
    // The fields at their places in an f32, with its bias.
    let normal = (magnitude << (23 - mantissa_bits)) + ((127 - bias as u32) << 23);
    // A subnormal has the exponent of 1, and no leading bit.
    let least = (128 - bias as u32) << 23;
    let subnormal = f32::from_bits(normal + (1 << 23)) - f32::from_bits(least);
    let value = if magnitude >> mantissa_bits == 0 { subnormal } else { f32::from_bits(normal) };
    f32::from_bits(value.to_bits() | u32::from(code & 0x80) << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_have_their_values() -> Result<()> {
        for (dtype, code, value) in [
            (DType::F8E4M3, 0x7E, 448.0),
            (DType::F8E4M3, 0x01, 0.001_953_125),
            (DType::F8E5M2, 0x7B, 57_344.0),
            (DType::F8E8M0, 0, f32::from_bits(1 << 22)),
            (DType::F8E8M0, 127, 1.0),
            (DType::F8E4M3Fnuz, 0x7F, 240.0),
            (DType::F8E5M2Fnuz, 0x7F, 57_344.0),
        ] {
            let mut out = [0.0];
            dtype.decode(&[code], &mut out)?;
            assert_eq!(out[0], value, "{} {code:#x}", dtype.name());
        }
        Ok(())
    }

    #[test]
    fn byte_floats_are_minifloats() -> Result<()> {
        for (dtype, exponent_bits, mantissa_bits, bias) in
            [(DType::F8E4M3, 4, 3, 7), (DType::F8E4M3Fnuz, 4, 3, 8), (DType::F8E5M2Fnuz, 5, 2, 16)]
        {
            for code in 0..=255u8 {
                let mut out = [0.0];
                dtype.decode(&[code], &mut out)?;
                let expected = minifloat(code.into(), exponent_bits, mantissa_bits, bias);
                assert!(
                    out[0].is_nan() || out[0].to_bits() == expected.to_bits(),
                    "{} {code:#x}",
                    dtype.name()
                );
            }
        }
        Ok(())
    }

    #[test]
    fn byte_floats_encode_their_own_values_and_saturate() -> Result<()> {
        for dtype in [DType::F8E4M3, DType::F8E5M2, DType::F8E8M0, DType::F8E4M3Fnuz] {
            for code in 0..=255u8 {
                let mut out = [0.0];
                dtype.decode(&[code], &mut out)?;
                if out[0].is_finite() {
                    assert_eq!(dtype.encode(&out)?, [code], "{}", dtype.name());
                }
            }
        }
        assert_eq!(DType::F8E4M3.encode(&[1e9])?, [0x7E]);
        assert_eq!(DType::F8E4M3.encode(&[-1e9])?, [0xFE]);
        Ok(())
    }

    #[test]
    fn byte_floats_encode_what_is_no_finite_number() -> Result<()> {
        for (dtype, nan) in [
            (DType::F8E4M3, 0x7F),
            (DType::F8E5M2, 0x7F),
            (DType::F8E8M0, 0xFF),
            (DType::F8E4M3Fnuz, 0x80),
            (DType::F8E5M2Fnuz, 0x80),
        ] {
            assert_eq!(dtype.encode(&[f32::NAN, -f32::NAN])?, [nan, nan], "{}", dtype.name());
        }
        assert_eq!(DType::F8E5M2.encode(&[f32::INFINITY, f32::NEG_INFINITY, 1e9])?, [0x7C, 0xFC, 0x7B]);
        assert_eq!(DType::F8E4M3.encode(&[f32::INFINITY])?, [0x7E]);
        Ok(())
    }

    #[test]
    fn numbers_and_names_are_unique() {
        for (i, a) in DType::ALL.iter().enumerate() {
            assert_eq!(DType::from_number(*a as u16), Some(*a));
            assert_eq!(DType::from_name(a.name()), Some(*a));
            assert!(DType::ALL[..i].iter().all(|b| a.safetensors_name() != b.safetensors_name()));
        }
    }

    #[test]
    fn every_f16_decodes_as_a_single_one_does() -> Result<()> {
        let bytes: Vec<u8> = (0..=u16::MAX).rev().flat_map(u16::to_le_bytes).collect();
        for skip in [0, 1, 65_471, 65_473] {
            let mut out = vec![0.0; 65_536 - skip];
            DType::F16.decode(&bytes[skip * 2..], &mut out)?;
            for (value, code) in out.iter().zip((0..=u16::MAX).rev().skip(skip)) {
                let expected = f16::from_bits(code).to_f32();
                assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan());
            }
        }
        Ok(())
    }
}

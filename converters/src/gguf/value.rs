//! Typed values of GGUF metadata, borrowed from the bytes of the file.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::borrow::Cow;

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the types")]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// The type with this id, if there is one.
    pub fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        const BY_ID: [ValueType; 13] = [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        BY_ID.get(usize::try_from(id).ok()?).copied()
    }

    /// Stored bytes of one value; none for strings and arrays, whose sizes differ.
    pub fn fixed_bytes(self) -> Option<u64> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }
}

/// A metadata value.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "the names are the types")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    /// Any byte but 0 reads as true, as in ggml.
    Bool(bool),
    String(Text<'a>),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// The bytes of a string. They ought to be UTF-8; token tables of real files sometimes are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'a>(pub &'a [u8]);

impl<'a> Text<'a> {
    /// The string, with U+FFFD for what is not UTF-8.
    pub fn to_str(self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.0)
    }
}

/// Values of one type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    element: ValueType,
    len: u64,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The type of every value.
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// The number of values.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let Self { element, len, mut bytes } = *self;
        let mut left = len;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            Value::parse(element, &mut bytes)
        })
    }
}

impl<'a> Value<'a> {
    /// Takes a value off the front of `bytes`; none if they are too short or name no type.
    pub(super) fn parse(ty: ValueType, bytes: &mut &'a [u8]) -> Option<Self> {
        Some(match ty {
            ValueType::U8 => Self::U8(u8::from_le_bytes(number(bytes)?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(number(bytes)?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(number(bytes)?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(number(bytes)?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(number(bytes)?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(number(bytes)?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(number(bytes)?)),
            ValueType::Bool => Self::Bool(number::<1>(bytes)? != [0]),
            ValueType::U64 => Self::U64(u64::from_le_bytes(number(bytes)?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(number(bytes)?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(number(bytes)?)),
            ValueType::String => {
                let len = u64::from_le_bytes(number(bytes)?);
                let (text, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
                *bytes = rest;
                Self::String(Text(text))
            }
            ValueType::Array => {
                let element = ValueType::from_id(u32::from_le_bytes(number(bytes)?))?;
                let len = u64::from_le_bytes(number(bytes)?);
                let start = *bytes;
                match element.fixed_bytes() {
                    Some(each) => {
                        let size = usize::try_from(len.checked_mul(each)?).ok()?;
                        *bytes = bytes.split_at_checked(size)?.1;
                    }
                    None => {
                        for _ in 0..len {
                            Self::parse(element, bytes)?;
                        }
                    }
                }
                let size = start.len().checked_sub(bytes.len())?;
                Self::Array(Array { element, len, bytes: start.get(..size)? })
            }
        })
    }

    /// The value as JSON. Strings that are not UTF-8 get U+FFFD, numbers that JSON has not become
    /// the strings `NaN`, `inf` and `-inf`, and an array of more than `array_limit` values becomes
    /// `{"type": "array", "len": n, "head": [first values]}`.
    pub fn to_json(self, array_limit: usize) -> serde_json::Value {
        match self {
            Self::U8(number) => number.into(),
            Self::I8(number) => number.into(),
            Self::U16(number) => number.into(),
            Self::I16(number) => number.into(),
            Self::U32(number) => number.into(),
            Self::I32(number) => number.into(),
            // The shortest decimal that names the f32, not the longer one of its widening.
            Self::F32(number) => float_json(number.to_string()),
            Self::F64(number) => float_json(number.to_string()),
            Self::U64(number) => number.into(),
            Self::I64(number) => number.into(),
            Self::Bool(truth) => truth.into(),
            Self::String(text) => text.to_str().into(),
            Self::Array(array) => {
                let head: Vec<_> =
                    array.iter().take(array_limit).map(|value| value.to_json(array_limit)).collect();
                if array.len() > array_limit as u64 {
                    serde_json::json!({ "type": "array", "len": array.len(), "head": head })
                } else {
                    head.into()
                }
            }
        }
    }

    /// The value if it is a whole number that is not negative.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Self::U8(number) => Some(number.into()),
            Self::U16(number) => Some(number.into()),
            Self::U32(number) => Some(number.into()),
            Self::U64(number) => Some(number),
            Self::I8(number) => number.try_into().ok(),
            Self::I16(number) => number.try_into().ok(),
            Self::I32(number) => number.try_into().ok(),
            Self::I64(number) => number.try_into().ok(),
            _ => None,
        }
    }
}

fn float_json(decimal: String) -> serde_json::Value {
    let finite = decimal.parse().ok().and_then(serde_json::Number::from_f64);
    finite.map_or_else(|| decimal.into(), serde_json::Value::Number)
}

fn number<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(ty: ValueType, mut bytes: &[u8]) -> Option<Value<'_>> {
        Value::parse(ty, &mut bytes)
    }

    #[test]
    fn renders_floats_by_their_shortest_decimal() {
        assert_eq!(Value::F32(1e-5).to_json(0).as_f64(), Some(1e-5));
    }

    #[test]
    fn renders_what_json_has_not_as_strings() {
        assert_eq!(Value::F32(f32::NAN).to_json(0), "NaN");
        assert_eq!(Value::F64(f64::NEG_INFINITY).to_json(0), "-inf");
        assert_eq!(Value::String(Text(b"a\xff")).to_json(0), "a\u{fffd}");
    }

    #[test]
    fn cuts_long_arrays_and_says_so() -> Result<(), &'static str> {
        let bytes = [0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 7, 8, 9];
        let value = parse(ValueType::Array, &bytes).ok_or("does not parse")?;
        assert_eq!(value.to_json(3), serde_json::json!([7, 8, 9]));
        assert_eq!(value.to_json(2), serde_json::json!({ "type": "array", "len": 3, "head": [7, 8] }));
        Ok(())
    }

    #[test]
    fn ends_with_the_bytes() {
        assert_eq!(parse(ValueType::U32, &[1, 2, 3]), None);
        assert_eq!(parse(ValueType::String, &[9, 0, 0, 0, 0, 0, 0, 0, 1]), None);
        let endless = [8, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(parse(ValueType::Array, &endless), None);
    }
}

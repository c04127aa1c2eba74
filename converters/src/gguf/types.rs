//! The tensor types of ggml: ids, names and block geometry.

use cmf_format::DType;

use crate::error::{Error, Result};

macro_rules! ggml_types {
    ($($variant:ident = $id:literal, $name:literal, $block_elems:literal, $block_bytes:literal;)+) => {
        /// A tensor type that can be imported, named as in ggml.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, reason = "these are the names that ggml and its users write")]
        #[non_exhaustive]
        pub enum GgmlType {
            $(
                #[doc = concat!("`", $name, "`: ", stringify!($block_bytes), " bytes hold ",
                    stringify!($block_elems), " elements.")]
                $variant,
            )+
        }

        impl GgmlType {
            /// Every type, in the order of the ids.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The id that stands in a file.
            pub const fn id(self) -> u32 {
                match self { $(Self::$variant => $id),+ }
            }

            /// The lower-case name that ggml prints.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Elements in one block, always along the fastest axis.
            pub const fn block_elems(self) -> u64 {
                match self { $(Self::$variant => $block_elems),+ }
            }

            /// Stored bytes of one block.
            pub const fn block_bytes(self) -> u64 {
                match self { $(Self::$variant => $block_bytes),+ }
            }

            fn known(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

ggml_types! {
    F32 = 0, "f32", 1, 4;
    F16 = 1, "f16", 1, 2;
    Q4_0 = 2, "q4_0", 32, 18;
    Q4_1 = 3, "q4_1", 32, 20;
    Q5_0 = 6, "q5_0", 32, 22;
    Q5_1 = 7, "q5_1", 32, 24;
    Q8_0 = 8, "q8_0", 32, 34;
    Q2_K = 10, "q2_k", 256, 84;
    Q3_K = 11, "q3_k", 256, 110;
    Q4_K = 12, "q4_k", 256, 144;
    Q5_K = 13, "q5_k", 256, 176;
    Q6_K = 14, "q6_k", 256, 210;
    IQ2_XXS = 16, "iq2_xxs", 256, 66;
    IQ2_XS = 17, "iq2_xs", 256, 74;
    IQ3_XXS = 18, "iq3_xxs", 256, 98;
    IQ1_S = 19, "iq1_s", 256, 50;
    IQ4_NL = 20, "iq4_nl", 32, 18;
    IQ3_S = 21, "iq3_s", 256, 110;
    IQ2_S = 22, "iq2_s", 256, 82;
    IQ4_XS = 23, "iq4_xs", 256, 136;
    I8 = 24, "i8", 1, 1;
    I16 = 25, "i16", 1, 2;
    I32 = 26, "i32", 1, 4;
    I64 = 27, "i64", 1, 8;
    F64 = 28, "f64", 1, 8;
    IQ1_M = 29, "iq1_m", 256, 56;
    BF16 = 30, "bf16", 1, 2;
    TQ1_0 = 34, "tq1_0", 256, 54;
    TQ2_0 = 35, "tq2_0", 256, 66;
    MXFP4 = 39, "mxfp4", 32, 17;
    NVFP4 = 40, "nvfp4", 64, 36;
    Q1_0 = 41, "q1_0", 128, 18;
    Q2_0 = 42, "q2_0", 64, 18;
}

impl GgmlType {
    /// The type with this id.
    ///
    /// # Errors
    /// `Unsupported` for ids that ggml removed (they are never given out again), for the types
    /// that ggml uses for activations only, and for ids of no known meaning.
    pub fn from_id(id: u32) -> Result<Self> {
        if let Some(known) = Self::known(id) {
            return Ok(known);
        }
        let why = match id {
            4 | 5 => "q4_2 and q4_3 were removed from ggml".to_owned(),
            31..=33 => "the interleaved q4_0 types were removed from ggml".to_owned(),
            36..=38 => "the interleaved iq4_nl types were removed from ggml".to_owned(),
            9 | 15 => "q8_1 and q8_k hold activations, not weights".to_owned(),
            _ => format!("ids up to {} are known", Self::Q2_0.id()),
        };
        Err(Error::unsupported(format!("tensor type {id}: {why}")))
    }

    /// The same element type of the container, for the types that are plain numbers.
    pub const fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::F64 => Some(DType::F64),
            Self::I8 => Some(DType::I8),
            Self::I16 => Some(DType::I16),
            Self::I32 => Some(DType::I32),
            Self::I64 => Some(DType::I64),
            _ => None,
        }
    }

    /// Bytes of one row of `cols` elements.
    ///
    /// # Errors
    /// `BadFile` if `cols` is no multiple of the block, or if the size does not fit in 64 bits.
    pub fn row_bytes(self, cols: u64) -> Result<u64> {
        let block_elems = self.block_elems();
        if !cols.is_multiple_of(block_elems) {
            return Err(Error::bad_file("row length")
                .expected(format!("a multiple of the {block_elems} elements of a {} block", self.name()))
                .found(cols));
        }
        (cols / block_elems)
            .checked_mul(self.block_bytes())
            .ok_or_else(|| Error::bad_file("row length").expected("a size below 2^64 bytes").found(cols))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn every_type_is_found_by_its_id() {
        for &ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()).ok(), Some(ty));
        }
    }

    #[test]
    fn rejects_removed_activation_and_unknown_ids() {
        for id in [4, 5, 9, 15, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(
                GgmlType::from_id(id).map_err(|error| error.kind()),
                Err(ErrorKind::Unsupported),
                "id {id}"
            );
        }
    }

    #[test]
    fn rejects_rows_that_end_inside_a_block() {
        assert_eq!(GgmlType::Q4_K.row_bytes(512).ok(), Some(288));
        assert!(GgmlType::Q4_K.row_bytes(288).is_err());
        assert!(GgmlType::F64.row_bytes(u64::MAX).is_err());
    }
}

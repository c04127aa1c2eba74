//! What every block type is made of.
//!
//! After `ggml-common.h` and `ggml-quants.c` of ggml. With a [`Layout`], decoding and the translation
//! to nodes need no knowledge of single types.

use cmf_format::DType;

use super::iq::{self, Grid};
use super::types::GgmlType;

/// The numbers that the codes of a block mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Map<T: 'static> {
    /// Code plus this number.
    Offset(i16),
    /// Entry of this table, one for each code.
    Table(&'static [T]),
}

/// What a block's elements are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Elements {
    /// A code of so many bits each.
    Codes(u8, Map<i8>),
    /// Short vectors out of a grid.
    Vectors(Grid),
}

/// A factor or a summand that a group of elements shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shared {
    /// An f16 number.
    Half,
    /// A code of so many bits, multiplied by the f16 number of the block.
    Scaled(u8, Map<f32>),
    /// A float of 8 bits.
    Byte(&'static ByteFloat),
}

/// Floats of 8 bits that scale [`E2M1_VALUES`], which are doubled.
#[derive(Debug, PartialEq)]
pub(super) struct ByteFloat {
    /// Half of each number.
    pub(super) halves: [f32; 256],
    /// The type whose values the codes below `limit` have.
    pub(super) dtype: DType,
    pub(super) limit: u8,
}

impl ByteFloat {
    /// Whether `dtype` has the values of all of these codes.
    pub(super) fn covers(&self, codes: &[u8]) -> bool {
        codes.iter().all(|&code| code < self.limit)
    }
}

/// Composition of a block: value = element * scale - minimum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layout {
    pub(super) elements: Elements,
    /// Elements that share a scale and a minimum.
    pub(super) group: usize,
    pub(super) scale: Shared,
    /// Added for [`Shared::Half`], subtracted for [`Shared::Scaled`].
    pub(super) min: Option<Shared>,
}

const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// E2M1 doubled; code 8 is +0, not the -0 of the minifloat.
const E2M1_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
const SIGNS: [i8; 2] = [-1, 1];
/// 2^(code - 127). ggml has no NaN at 255.
static E8M0: ByteFloat = ByteFloat { halves: e8m0_halves(), dtype: DType::F8E8M0, limit: 255 };
/// E4M3 that ignores the sign. ggml has 0 at 0x7f.
static UE4M3: ByteFloat = ByteFloat { halves: ue4m3_halves(), dtype: DType::F8E4M3, limit: 127 };

/// The composition of a type; none for the types whose elements are plain numbers.
pub(super) fn layout(ty: GgmlType) -> Option<Layout> {
    use Elements::{Codes, Vectors};
    use Map::{Offset, Table};
    use Shared::{Byte, Half, Scaled};
    let (elements, group, scale, min) = match ty {
        GgmlType::Q4_0 => (Codes(4, Offset(-8)), 32, Half, None),
        GgmlType::Q4_1 => (Codes(4, Offset(0)), 32, Half, Some(Half)),
        GgmlType::Q5_0 => (Codes(5, Offset(-16)), 32, Half, None),
        GgmlType::Q5_1 => (Codes(5, Offset(0)), 32, Half, Some(Half)),
        GgmlType::Q8_0 => (Codes(8, Offset(-128)), 32, Half, None),
        GgmlType::Q2_K => (Codes(2, Offset(0)), 16, Scaled(4, Offset(0)), Some(Scaled(4, Offset(0)))),
        GgmlType::Q3_K => (Codes(3, Offset(-4)), 16, Scaled(6, Offset(-32)), None),
        GgmlType::Q4_K => (Codes(4, Offset(0)), 32, Scaled(6, Offset(0)), Some(Scaled(6, Offset(0)))),
        GgmlType::Q5_K => (Codes(5, Offset(0)), 32, Scaled(6, Offset(0)), Some(Scaled(6, Offset(0)))),
        GgmlType::Q6_K => (Codes(6, Offset(-32)), 16, Scaled(8, Offset(-128)), None),
        GgmlType::IQ4_NL => (Codes(4, Table(&IQ4_VALUES)), 32, Half, None),
        GgmlType::IQ4_XS => (Codes(4, Table(&IQ4_VALUES)), 32, Scaled(6, Offset(-32)), None),
        GgmlType::TQ1_0 | GgmlType::TQ2_0 => (Codes(2, Offset(-1)), 256, Half, None),
        GgmlType::MXFP4 => (Codes(4, Table(&E2M1_VALUES)), 32, Byte(&E8M0), None),
        GgmlType::NVFP4 => (Codes(4, Table(&E2M1_VALUES)), 16, Byte(&UE4M3), None),
        GgmlType::Q1_0 => (Codes(1, Table(&SIGNS)), 128, Half, None),
        GgmlType::Q2_0 => (Codes(2, Offset(-1)), 64, Half, None),
        GgmlType::IQ2_XXS => (Vectors(Grid::Iq2Xxs), 32, Scaled(4, Table(&iq::ODD_EIGHTHS)), None),
        GgmlType::IQ2_XS => (Vectors(Grid::Iq2Xs), 16, Scaled(4, Table(&iq::ODD_EIGHTHS)), None),
        GgmlType::IQ2_S => (Vectors(Grid::Iq2S), 16, Scaled(4, Table(&iq::ODD_EIGHTHS)), None),
        GgmlType::IQ3_XXS => (Vectors(Grid::Iq3Xxs), 32, Scaled(4, Table(&iq::ODD_QUARTERS)), None),
        GgmlType::IQ3_S => (Vectors(Grid::Iq3S), 32, Scaled(4, Table(&iq::ODD)), None),
        GgmlType::IQ1_S => (Vectors(Grid::Iq1), 32, Scaled(3, Table(iq::ODD_EIGHTHS_OF_3_BITS)), None),
        GgmlType::IQ1_M => (Vectors(Grid::Iq1), 16, Scaled(3, Table(iq::ODD_EIGHTHS_OF_3_BITS)), None),
        GgmlType::F32
        | GgmlType::F16
        | GgmlType::BF16
        | GgmlType::F64
        | GgmlType::I8
        | GgmlType::I16
        | GgmlType::I32
        | GgmlType::I64 => return None,
    };
    Some(Layout { elements, group, scale, min })
}

const fn e8m0_halves() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let bits = if code < 2 { 0x0020_0000 << code } else { (code as u32 - 1) << 23 };
        table[code] = f32::from_bits(bits);
        code += 1;
    }
    table
}

const fn ue4m3_halves() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3 & 15) as u32, (code & 7) as f32);
        table[code] = match exponent {
            _ if code == 0x7f => 0.0,
            0 => mantissa / 1024.0,
            // 2^(exponent - 8), exact like all operations here.
            _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 119) << 23),
        };
        code += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_fits_its_block() {
        for &ty in GgmlType::ALL {
            let Some(layout) = layout(ty) else {
                assert_eq!(ty.block_elems(), 1, "{}", ty.name());
                continue;
            };
            let elems = usize::try_from(ty.block_elems()).unwrap_or(0);
            assert!(elems.is_multiple_of(layout.group) && elems / layout.group <= 16, "{}", ty.name());
        }
    }

    #[test]
    fn ue4m3_of_0x7f_is_zero_and_the_largest_is_224() {
        assert_eq!(UE4M3.halves[0x7f], 0.0);
        assert_eq!(UE4M3.halves[0x7e], 224.0);
        assert_eq!(UE4M3.halves[0x01], 2f32.powi(-10));
    }

    #[test]
    fn e8m0_keeps_its_subnormal_ends() {
        assert_eq!(E8M0.halves[0], 2f32.powi(-128));
        assert_eq!(E8M0.halves[255], 2f32.powi(127));
    }
}

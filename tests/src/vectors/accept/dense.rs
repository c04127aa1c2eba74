//! `dense`: every element type with the codes that are easily got wrong.

use crate::vectors::case::{Accept, Files, Tensor};
use crate::vectors::naive::{cycle, dense};
use cmf_format::{DType, Result};

const FOLDER: &str = "dense";

/// One row of elements given as little-endian words of the type's size.
fn row(dtype: DType, words: &[u64]) -> Tensor {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()[..dtype.bytes()].to_vec()).collect();
    Tensor::exact(dtype.name(), dense(dtype, 1, words.len(), &bytes))
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let all_codes: Vec<u8> = (0..=255).collect();
    let byte_types = [
        DType::F8E4M3,
        DType::F8E5M2,
        DType::F8E8M0,
        DType::F8E4M3Fnuz,
        DType::F8E5M2Fnuz,
        DType::I8,
        DType::U8,
        DType::Bool,
    ];
    Accept::new(FOLDER, "bytes", "all 256 codes of every one-byte type")
        .tensors(byte_types.map(|dtype| Tensor::exact(dtype.name(), dense(dtype, 16, 16, &all_codes))))
        .finish(files)?;

    let f16 = [
        0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3BFF, 0x3C00, 0x3C01, 0xC000, 0x7BFF, 0xFBFF,
        0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF,
    ];
    let bf16 = [
        0x0000, 0x8000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x3F81, 0xC000, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80,
        0x7F81, 0x7FC0, 0xFFFF,
    ];
    let f32 = [
        0x0000_0000,
        0x8000_0000,
        0x0000_0001,
        0x007F_FFFF,
        0x0080_0000,
        0x3F80_0000,
        0x3F80_0001,
        0x7F7F_FFFF,
        0xFF7F_FFFF,
        0x7F80_0000,
        0xFF80_0000,
        0x7F80_0001,
        0x7FC0_0000,
        0xFFFF_FFFF,
    ];
    let f64 = [
        0.0,
        -0.0,
        1.0,
        0.1,
        // Halfway between two f32, to even: down, then up; and just beside.
        1.0 + 1.0 / 16_777_216.0,
        1.0 + 3.0 / 16_777_216.0,
        1.0 + 1.0 / 16_777_216.0 + f64::EPSILON,
        // The largest f32; the last f64 that rounds to it; the first that becomes infinity.
        340_282_346_638_528_859_811_704_183_484_516_925_440.0,
        f64::from_bits(0x47EF_FFFF_EFFF_FFFF),
        f64::from_bits(0x47EF_FFFF_F000_0000),
        -1e300,
        // Subnormal f32: smallest, half of it (to even: zero), just above half, largest, tie.
        f64::from_bits(0x36A0_0000_0000_0000),
        f64::from_bits(0x3690_0000_0000_0000),
        f64::from_bits(0x3690_0000_0000_0001),
        f64::from_bits(0x380F_FFFF_C000_0000),
        f64::from_bits(0x380F_FFFF_E000_0000),
        f64::from_bits(1),
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    Accept::new(
        FOLDER,
        "floats",
        "zeros, subnormals, ties, the largest, infinities and NaN of every wide float",
    )
    .tensor(row(DType::F16, &f16))
    .tensor(row(DType::BF16, &bf16))
    .tensor(row(DType::F32, &f32))
    .tensor(row(DType::F64, &f64.map(f64::to_bits)))
    .finish(files)?;

    // 2^24 + 1 lies between two f32 and goes down, 2^24 + 3 goes up.
    let ties = |shift: u32| {
        [(1u64 << 24) + 1, (1 << 24) + 2, (1 << 24) + 3, (1 << 25) + 2, (1 << 25) + 6].map(|n| n << shift)
    };
    let negated = |words: &[u64]| words.iter().map(|w| w.wrapping_neg()).collect::<Vec<_>>();
    let wide = [
        &[0, 1, u64::MAX, 1 << 63, (1 << 63) - 1, u64::MAX - 1][..],
        &ties(0),
        &ties(30),
        &negated(&ties(0)),
        &negated(&ties(30)),
    ]
    .concat();
    let narrow = [
        &[0, 1, 0xFFFF_FFFF, 0x8000_0000, 0x7FFF_FFFF, 0x7FFF_FFC0, 0x7FFF_FFBF][..],
        &ties(0),
        &ties(5),
        &negated(&ties(0)),
    ]
    .concat();
    let short = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
    Accept::new(FOLDER, "integers", "extremes of every wide integer, and those that round to even as f32")
        .tensor(row(DType::I64, &wide))
        .tensor(row(DType::U64, &wide))
        .tensor(row(DType::I32, &narrow))
        .tensor(row(DType::U32, &narrow))
        .tensor(row(DType::I16, &short))
        .tensor(row(DType::U16, &short))
        .finish(files)?;

    Accept::new(
        FOLDER,
        "complex",
        "c64 has bytes and no values: a reader hands out elements and refuses to decode",
    )
    .tensor(Tensor::exact("c64", cycle(DType::C64, 2, 3, 0)))
    .finish(files)?;

    let mut sizes = Accept::new(
        FOLDER,
        "sizes",
        "lengths at, one below and one above the alignment (64), and one above the chunk group (1024)",
    );
    for bytes in [1, 63, 64, 65, 1025] {
        let piece = cycle(DType::U8, 1, bytes, bytes);
        sizes = sizes.tensor(Tensor::exact(&format!("{bytes:04}"), piece));
    }
    sizes.finish(files)
}

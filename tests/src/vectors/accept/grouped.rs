//! `grouped`: every width, map, operation, group shape and broadcast.

use crate::vectors::case::{Accept, Files, Tensor};
use crate::vectors::naive::{Grouped, Map, Piece, dense, f16s, f32s, grouped};
use cmf_format::{DType, Result};

const FOLDER: &str = "grouped";

/// Codes that count up in a cycle of 251, cut to `bits` bits.
fn codes(bits: u8, count: usize) -> Vec<u8> {
    (0..count).map(|i| ((i % 251) & ((1 << bits) - 1)) as u8).collect()
}

/// f16 numbers from 0.5 up that differ from group to group.
fn halves(rows: usize, cols: usize) -> Piece {
    f16s(rows, cols, &(0..rows * cols).map(|i| 0x3800 + (i % 31) as u16 * 128).collect::<Vec<_>>())
}

/// f32 numbers that no short binary fraction holds.
fn thirds(rows: usize, cols: usize) -> Piece {
    f32s(rows, cols, &(0..rows * cols).map(|i| (i as f32 - 2.0) / 3.0 + 0.1).collect::<Vec<_>>())
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    widths(files)?;
    maps(files)?;
    operations(files)?;
    shapes(files)?;
    nested(files)
}

fn widths(files: &mut Files) -> Result<()> {
    let mut file = Accept::new(
        FOLDER,
        "widths",
        "codes of 1 to 8 bits in rows one below, at and one above 32 codes: code order, code bits across bytes, row padding",
    );
    for bits in 1..=8 {
        for cols in [31, 32, 33] {
            let scale = halves(2, 1);
            let g = Grouped {
                bits,
                map: Map::Integer(-(1 << (bits - 1))),
                scale_op: 1,
                scale: Some(&scale),
                ..Grouped::default()
            };
            let piece = grouped(&g, 2, cols, &codes(bits, 2 * cols));
            file = file.tensor(Tensor::of(&format!("bits{bits}.cols{cols}"), piece));
        }
    }
    file.finish(files)
}

fn maps(files: &mut Files) -> Result<()> {
    let mut file = Accept::new(
        FOLDER,
        "integer_offsets",
        "integer codes with offsets: the sum is exact before it is rounded to f32",
    );
    for offset in [0, -128, 127, i32::MIN, i32::MAX, 16_777_217, -16_777_219] {
        let g = Grouped { bits: 3, map: Map::Integer(offset), ..Grouped::default() };
        let piece = grouped(&g, 1, 8, &codes(3, 8));
        file = file.tensor(Tensor::of(&format!("offset{offset}"), piece));
    }
    file.finish(files)?;

    // Name, sign, exponent, mantissa, bias, special.
    let formats = [
        ("e1m0", 1, 1, 0, 0, 0),
        ("e1m1.ieee", 0, 1, 1, 1, 1),
        ("e2m0.unsigned", 0, 2, 0, 1, 0),
        ("e2m1", 1, 2, 1, 1, 0),
        ("e3m0", 1, 3, 0, 3, 0),
        ("e2m3", 1, 2, 3, 1, 0),
        ("e3m2", 1, 3, 2, 3, 0),
        ("e3m3.all_ones_nan", 1, 3, 3, 3, 2),
        ("e4m3.all_ones_nan", 1, 4, 3, 7, 2),
        ("e5m2.ieee", 1, 5, 2, 15, 1),
        ("e4m3.none", 1, 4, 3, 7, 0),
        // As f8_e8m0, but exponent 0 is zero: a minifloat without mantissa has no other subnormal.
        ("e8m0.unsigned", 0, 8, 0, 127, 2),
        ("e8m0.bias_-127", 0, 8, 0, -127, 0),
        ("e5m2.bias_127", 1, 5, 2, 127, 0),
    ];
    let mut file = Accept::new(
        FOLDER,
        "minifloats",
        "all codes of minifloats with and without sign, mantissa and special codes; subnormal f32 and infinity from bias",
    );
    for (name, sign, exponent, mantissa, bias, special) in formats {
        let bits = sign + exponent + mantissa;
        let map = Map::Minifloat(sign, exponent, mantissa, bias, special);
        let cols = 1 << bits;
        let all: Vec<u8> = (0..cols).map(|c| c as u8).collect();
        let piece = grouped(&Grouped { bits, map, ..Grouped::default() }, 1, cols, &all);
        file = file.tensor(Tensor::of(name, piece));
    }
    file.finish(files)?;

    let shared = f32s(1, 8, &[-1.0, -0.5, -0.0, 0.0, 0.1, 0.25, f32::INFINITY, f32::NAN]);
    let own = thirds(3, 4);
    let inner_scale = halves(1, 1);
    let inner = Grouped {
        bits: 8,
        map: Map::Integer(-7),
        scale_op: 1,
        scale: Some(&inner_scale),
        ..Grouped::default()
    };
    let quantised = grouped(&inner, 1, 16, &codes(8, 16));
    let bytes = dense(DType::F8E4M3, 1, 4, &[0x38, 0xB8, 0x01, 0x7E]);
    let with = |bits, map, rows, cols| {
        grouped(&Grouped { bits, map, ..Grouped::default() }, rows, cols, &codes(bits, rows * cols))
    };
    Accept::new(
        FOLDER,
        "tables",
        "tables shared by all rows, one for each row, of other types, and quantised themselves",
    )
    .tensor(Tensor::of("shared", with(3, Map::Table(&shared), 2, 11)))
    .tensor(Tensor::of("each_row", with(2, Map::Table(&own), 3, 5)))
    .tensor(Tensor::of("f8", with(2, Map::Table(&bytes), 2, 5)))
    .tensor(Tensor::of("quantised", with(4, Map::Table(&quantised), 2, 17)))
    .finish(files)
}

fn operations(files: &mut Files) -> Result<()> {
    let (scale, zero) = (thirds(3, 3), thirds(3, 3));
    let mut file = Accept::new(
        FOLDER,
        "operations",
        "no scale, multiplied, divided; no zero point, subtracted before, added after: each f32 operation is rounded by itself",
    );
    for (scale_name, scale_op) in [("none", 0), ("multiply", 1), ("divide", 2)] {
        for (zero_name, zero_op) in [("none", 0), ("subtract", 1), ("add", 2)] {
            let g = Grouped {
                bits: 5,
                map: Map::Integer(-9),
                scale_op,
                scale: (scale_op != 0).then_some(&scale),
                zero_op,
                zero: (zero_op != 0).then_some(&zero),
                group: (1, 4),
            };
            let piece = grouped(&g, 3, 11, &codes(5, 33));
            file = file.tensor(Tensor::of(&format!("{scale_name}.{zero_name}"), piece));
        }
    }
    file.finish(files)?;

    // For each code here v * s + z differs from the same in one rounding.
    let (s, z) = (0.1f32, -0.3f32);
    let fused: Vec<u8> = (0..=255u8)
        .filter(|c| {
            let v = f32::from(*c);
            v.mul_add(s, z).to_bits() != (v * s + z).to_bits()
        })
        .take(16)
        .collect();
    assert_eq!(fused.len(), 16, "codes for which fusing makes a difference");
    let (s, z) = (f32s(1, 1, &[s]), f32s(1, 1, &[z]));
    let g = Grouped {
        bits: 8,
        map: Map::Integer(0),
        scale_op: 1,
        scale: Some(&s),
        zero_op: 2,
        zero: Some(&z),
        group: (0, 0),
    };
    Accept::new(
        FOLDER,
        "not_fused",
        "every value here comes out otherwise when the product and the sum are fused",
    )
    .tensor(Tensor::of("w", grouped(&g, 1, 16, &fused)))
    .finish(files)?;

    let special =
        f32s(1, 8, &[0.0, -0.0, f32::INFINITY, f32::NAN, 1e-44, 3e38, -1.0, f32::from_bits(0x0080_0000)]);
    let ops = |scale_op, zero_op| {
        let g = Grouped {
            bits: 2,
            map: Map::Integer(-1),
            scale_op,
            scale: Some(&special),
            zero_op,
            zero: (zero_op != 0).then_some(&special),
            group: (1, 4),
        };
        grouped(&g, 1, 32, &codes(2, 32))
    };
    Accept::new(
        FOLDER,
        "special_scales",
        "scales and zero points of zero, infinity, NaN and subnormals; division by zero; overflow and underflow of the product",
    )
    .tensor(Tensor::of("multiply", ops(1, 0)))
    .tensor(Tensor::of("divide", ops(2, 0)))
    .tensor(Tensor::of("multiply.subtract", ops(1, 1)))
    .tensor(Tensor::of("divide.add", ops(2, 2)))
    .finish(files)?;

    let mut file =
        Accept::new(FOLDER, "scale_types", "scales and zero points of every type that models use for them");
    let types: [(DType, [u8; 8]); 8] = [
        (DType::F32, [0, 0, 0xC0, 0x3F, 0xCD, 0xCC, 0xCC, 0x3D]),
        (DType::F16, [0x00, 0x3E, 0x66, 0x2E, 0, 0, 0, 0]),
        (DType::BF16, [0xC0, 0x3F, 0xCD, 0x3D, 0, 0, 0, 0]),
        (DType::F8E8M0, [127, 130, 0, 0, 0, 0, 0, 0]),
        (DType::F8E4M3, [0x3C, 0x01, 0, 0, 0, 0, 0, 0]),
        (DType::I8, [3, 0xFD, 0, 0, 0, 0, 0, 0]),
        (DType::U8, [8, 255, 0, 0, 0, 0, 0, 0]),
        (DType::I32, [1, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF]),
    ];
    for (dtype, bytes) in types {
        let child = dense(dtype, 1, 2, &bytes[..2 * dtype.bytes()]);
        let g = Grouped {
            bits: 4,
            map: Map::Integer(0),
            scale_op: 1,
            scale: Some(&child),
            zero_op: 1,
            zero: Some(&child),
            group: (0, 8),
        };
        file = file.tensor(Tensor::of(dtype.name(), grouped(&g, 1, 16, &codes(4, 16))));
    }
    file.finish(files)
}

fn shapes(files: &mut Files) -> Result<()> {
    let mut file = Accept::new(
        FOLDER,
        "groups",
        "groups along rows, along columns, in blocks, of everything; tails one below, at and one above a whole group; a group larger than the matrix",
    );
    let (rows, cols) = (5, 9);
    for group in [
        (1, 3),
        (1, 8),
        (1, 9),
        (1, 10),
        (1, 0),
        (2, 1),
        (4, 1),
        (5, 1),
        (6, 1),
        (0, 1),
        (2, 4),
        (3, 0),
        (0, 4),
        (0, 0),
        (100, 100),
    ] {
        let count = |extent: usize, group: usize| if group == 0 { 1 } else { extent.div_ceil(group) };
        let scale = thirds(count(rows, group.0), count(cols, group.1));
        let g = Grouped {
            bits: 3,
            map: Map::Integer(-4),
            scale_op: 1,
            scale: Some(&scale),
            group,
            ..Grouped::default()
        };
        let piece = grouped(&g, rows, cols, &codes(3, rows * cols));
        file = file.tensor(Tensor::of(&format!("{}x{}", group.0, group.1), piece));
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "broadcast",
        "scale and zero point broadcast along rows, along columns, along both, and each differently",
    );
    for (scale_rows, scale_cols) in [(3, 3), (1, 3), (3, 1), (1, 1)] {
        for (zero_rows, zero_cols) in [(3, 3), (1, 3), (3, 1), (1, 1)] {
            let (scale, zero) = (halves(scale_rows, scale_cols), thirds(zero_rows, zero_cols));
            let g = Grouped {
                bits: 4,
                map: Map::Integer(0),
                scale_op: 1,
                scale: Some(&scale),
                zero_op: 1,
                zero: Some(&zero),
                group: (2, 4),
            };
            let piece = grouped(&g, 5, 9, &codes(4, 45));
            let name = format!("scale{scale_rows}x{scale_cols}.zero{zero_rows}x{zero_cols}");
            file = file.tensor(Tensor::of(&name, piece));
        }
    }
    file.finish(files)
}

fn nested(files: &mut Files) -> Result<()> {
    // As Q4_K: 6-bit scales and minima over groups of 8, each with one f16 over 8 groups.
    let outer_scale = halves(2, 1);
    let outer_min = f16s(2, 1, &[0xB000, 0xB400]);
    let second = |scale| Grouped { bits: 6, scale_op: 1, scale: Some(scale), ..Grouped::default() };
    let scale = grouped(&second(&outer_scale), 2, 3, &codes(6, 6));
    let min = grouped(&second(&outer_min), 2, 3, &codes(6, 6));
    let k_quant = Grouped {
        bits: 4,
        map: Map::Integer(0),
        scale_op: 1,
        scale: Some(&scale),
        zero_op: 2,
        zero: Some(&min),
        group: (1, 8),
    };
    // As NVFP4: E4M3 scales under one f32, as compressed-tensors divides.
    let global = f32s(1, 1, &[448.0 / 6.0]);
    let fp8 = Grouped {
        bits: 8,
        map: Map::Minifloat(1, 4, 3, 7, 2),
        scale_op: 2,
        scale: Some(&global),
        group: (0, 0),
        ..Grouped::default()
    };
    let fp8 = grouped(&fp8, 2, 2, &[0x30, 0x38, 0x44, 0x01]);
    let nvfp4 = Grouped {
        bits: 4,
        map: Map::Minifloat(1, 2, 1, 1, 0),
        scale_op: 1,
        scale: Some(&fp8),
        group: (1, 16),
        ..Grouped::default()
    };
    // As SpQR: both are 3-bit codes again, with float zero points of their own.
    let (scale2, zero2) = (thirds(1, 4), halves(1, 4));
    let again = Grouped {
        bits: 3,
        map: Map::Integer(0),
        scale_op: 1,
        scale: Some(&scale2),
        zero_op: 1,
        zero: Some(&zero2),
        group: (2, 1),
    };
    let (scale1, zero1) =
        (grouped(&again, 2, 4, &codes(3, 8)), grouped(&again, 2, 4, &[7, 0, 3, 4, 1, 6, 2, 5]));
    let spqr = Grouped {
        bits: 3,
        map: Map::Integer(0),
        scale_op: 1,
        scale: Some(&scale1),
        zero_op: 1,
        zero: Some(&zero1),
        group: (1, 4),
    };
    Accept::new(FOLDER, "nested", "scales and zero points that are quantised again in groups")
        .tensor(Tensor::of("k_quant", grouped(&k_quant, 2, 24, &codes(4, 48))))
        .tensor(Tensor::of("nvfp4", grouped(&nvfp4, 2, 24, &codes(4, 48))))
        .tensor(Tensor::of("spqr", grouped(&spqr, 2, 16, &codes(3, 32))))
        .finish(files)?;

    // Seven grouped nodes above one dense: as deep as every reader must go.
    let mut piece = f32s(1, 1, &[1.5]);
    for code in 1..8 {
        let g = Grouped { scale_op: 1, scale: Some(&piece), group: (0, 0), ..Grouped::default() };
        piece = grouped(&g, 1, 1, &[code % 3 + 1]);
    }
    Accept::new(FOLDER, "deepest", "nodes that nest 8 deep").tensor(Tensor::of("w", piece)).finish(files)
}

//! `trellis`: widths of windows and steps, lengths of paths along both axes, codes, scales.

use crate::vectors::case::{Accept, Files, Tensor};
use crate::vectors::naive::{Piece, Trellis, Windows, cycle, dense, f16s, f32s, trellis};
use cmf_format::{DType, Result};

const FOLDER: &str = "trellis";

/// The numbers that writers use.
pub(in crate::vectors) const BYTE_SUM: Windows<'_> = Windows::ByteSum(34_038_481, 76_625_530);

/// Codes that show no pattern, of `bits` bits.
pub(in crate::vectors) fn codes(bits: usize, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) % (1 << bits)).collect()
}

/// A letter for the axis, which names begin with.
fn letter(along: bool) -> char {
    if along { 'r' } else { 'c' }
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let one = f32s(1, 1, &[0.3]);
    let base = Trellis {
        state_bits: 12,
        step_bits: 2,
        along: false,
        path: 0,
        code: BYTE_SUM,
        scale: &one,
        group: (0, 0),
    };
    let axes = [false, true];
    let mut file =
        Accept::new(FOLDER, "windows", "windows of 6 to 16 bits and steps of 1 to 4, along both axes");
    for (state_bits, along) in (6..=16).flat_map(|bits| axes.map(|along| (bits, along))) {
        for step_bits in [1 + state_bits % 4, 1 + (state_bits + 2) % 4] {
            let (rows, cols) = if along { (1, 13) } else { (13, 1) };
            let t = Trellis { state_bits, step_bits, along, ..base };
            let piece = trellis(&t, rows, cols, &codes(step_bits, 13));
            let name = format!("{}.bits{state_bits:02}.step{step_bits}", letter(along));
            file = file.tensor(Tensor::of(&name, piece));
        }
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "paths",
        "paths of one word and of several, as long as the axis, longer, and with a shorter last one; paths of fewer bits than a window go round more than once",
    );
    for (path, along) in
        [0, 1, 2, 5, 10, 11, 16, 17, 19, 4_000_000_000].iter().flat_map(|p| axes.map(|a| (*p, a)))
    {
        let (rows, cols) = if along { (2, 19) } else { (19, 2) };
        let step_bits = if path == 11 { 3 } else { 2 };
        let t = Trellis { along, path, step_bits, ..base };
        let piece = trellis(&t, rows, cols, &codes(step_bits, 38));
        file = file.tensor(Tensor::of(&format!("{}.path{path}", letter(along)), piece));
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "scales",
        "a scale for each row, for each column, for blocks with tails, for all; scales that are broadcast",
    );
    for ((down, across), group) in [
        ((3, 1), (1, 0)),
        ((1, 5), (0, 1)),
        ((2, 3), (2, 2)),
        ((1, 1), (2, 2)),
        ((2, 1), (2, 2)),
        ((1, 3), (2, 2)),
        ((1, 1), (100, 100)),
    ] {
        let bits: Vec<u16> = (0..down * across).map(|i| 0x2C00 + i as u16 * 333).collect();
        let scale = f16s(down, across, &bits);
        for along in axes {
            let t = Trellis { along, group, scale: &scale, ..base };
            let name = format!("{}.{down}x{across}.group{}x{}", letter(along), group.0, group.1);
            file = file.tensor(Tensor::of(&name, trellis(&t, 3, 5, &codes(2, 15))));
        }
    }
    file.finish(files)?;

    // Entries whose products are inexact, subnormal, infinite or NaN, and zeros of both signs.
    let special =
        [0x0000_0000u32, 0x8000_0000, 0x7FC0_0000, 0x7F80_0000, 0x0000_0003, 0x0080_0001, 0xFF7F_FFFF];
    let entries: Vec<u8> = (0..64).flat_map(|i| special[i % 7].to_le_bytes()).collect();
    let (special, small) = (dense(DType::F32, 1, 64, &entries), cycle(DType::I8, 1, 256, 3));
    let table = |state_bits, table: &Piece, scale: &Piece| {
        let t = Trellis { state_bits, code: Windows::Table(table), scale, ..base };
        trellis(&t, 17, 1, &codes(2, 17))
    };
    let sum = |multiplier, addend| {
        let t = Trellis { state_bits: 16, code: Windows::ByteSum(multiplier, addend), ..base };
        trellis(&t, 17, 1, &codes(2, 17))
    };
    Accept::new(
        FOLDER,
        "codes",
        "tables, of values that do not survive rounding in another order too; byte sums whose product passes 32 bits, and those of no factor",
    )
    .tensor(Tensor::of("table.special", table(6, &special, &f32s(1, 1, &[0.3]))))
    .tensor(Tensor::of("table.infinite_scale", table(6, &special, &f32s(1, 1, &[f32::INFINITY]))))
    .tensor(Tensor::of("table.i8", table(8, &small, &one)))
    .tensor(Tensor::of("sum.all_ones", sum(u32::MAX, u32::MAX)))
    .tensor(Tensor::of("sum.zero", sum(0, 0)))
    .tensor(Tensor::of("sum.bytes", sum(1, 0xFF00_0000)))
    .finish(files)
}

//! `nested`: planes, rounding, both maps, groups and levels that share their planes.

use crate::vectors::case::{Accept, Files, Matrix, Tensor, Unit};
use crate::vectors::naive::{NestedLevel, NestedMap, Piece, f16s, f32s, nested};
use cmf_format::{DType, Result};

const FOLDER: &str = "nested";

/// f32 numbers that no short binary fraction holds.
fn numbers(rows: usize, cols: usize, first: usize) -> Piece {
    let value = |i: usize| ((first + i * 37) % 251) as f32 / 100.0 - 1.2;
    f32s(rows, cols, &(0..rows * cols).map(value).collect::<Vec<_>>())
}

/// Codes that count through all of `bits` bits, out of step with any width.
fn codes(bits: usize, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 5 + i / 7) % (1 << bits)).collect()
}

fn table(bits: usize, half_up: bool, table: &Piece) -> NestedLevel<'_> {
    NestedLevel { bits, half_up, map: NestedMap::Table(table) }
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let mut file = Accept::new(
        FOLDER,
        "planes",
        "1 to 8 planes, the most significant first, in rows of one below, at and one above 32 columns",
    );
    for (bits, cols) in [(1, 31), (2, 32), (3, 33), (5, 7), (8, 33)] {
        let values = numbers(1, 1 << bits, bits);
        let piece = nested(&table(bits, false, &values), None, (2, cols), &codes(bits, 2 * cols));
        file = file.tensor(Tensor::of(&format!("bits{bits}.cols{cols}"), piece));
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "rounding",
        "codes rounded half up from the plane behind them, saturated, at the level and at that below",
    );
    let (two, three) = (numbers(1, 4, 3), numbers(1, 8, 60));
    let all: Vec<u32> = (0..8).chain((0..8).rev()).collect();
    for (name, level, lower) in [
        ("level", table(2, true, &two), None),
        ("lower", table(3, false, &three), Some(table(2, true, &two))),
        ("both", table(3, true, &three), Some(table(2, true, &two))),
        ("level_over_floor", table(3, true, &three), Some(table(2, false, &two))),
    ] {
        let planes = level.bits + usize::from(level.half_up);
        let codes: Vec<u32> = match planes {
            3 => all.clone(),
            _ => (0..16).collect(),
        };
        file = file.tensor(Tensor::of(name, nested(&level, lower.as_ref(), (2, 8), &codes)));
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "groups",
        "scales and zero points for each row and group, with a tail, and broadcast along either axis",
    );
    for (name, rows, cols, group_cols) in
        [("each", 3, 3, 4), ("rows", 3, 1, 4), ("columns", 1, 3, 4), ("one", 1, 1, 4), ("whole_row", 3, 1, 0)]
    {
        let (scale, zero) = (numbers(rows, cols, 7), numbers(rows, cols, 90));
        let map = NestedMap::Integer(&scale, &zero, group_cols);
        let level = NestedLevel { bits: 3, half_up: false, map };
        file = file.tensor(Tensor::of(name, nested(&level, None, (3, 10), &codes(3, 30))));
    }
    file.finish(files)?;

    let (scale, zero) = (f16s(2, 2, &[0x2E66, 0x3000, 0x3456, 0x2C00]), numbers(2, 2, 40));
    let rows = [numbers(2, 4, 0), numbers(2, 8, 50)];
    let integer = NestedMap::Integer(&scale, &zero, 5);
    let levels = [
        table(2, false, &rows[0]),
        table(3, false, &rows[1]),
        NestedLevel { bits: 5, half_up: false, map: integer },
    ];
    let codes = codes(5, 18);
    let unit = |(k, level): (usize, &NestedLevel<'_>)| {
        let cut: Vec<u32> = codes.iter().map(|code| code >> (5 - level.bits)).collect();
        let lower = k.checked_sub(1).map(|below| &levels[below]);
        let terms = vec![nested(level, lower, (2, 9), &cut).into()];
        Unit { level: k as u16, rows: (0, 2), terms }
    };
    let units = levels.iter().enumerate().map(unit).collect();
    let matrix = Matrix { rows: 2, cols: 9, units, ..Matrix::default() };
    Accept::new(FOLDER, "levels", "levels of 2, 3 and 5 bits, tables and integers, that share their planes")
        .tensor(Tensor::new("w", DType::F32, &[2, 9], vec![matrix]))
        .finish(files)
}

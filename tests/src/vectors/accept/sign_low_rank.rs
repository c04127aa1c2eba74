//! `sign_low_rank`: rows of signs, signs of zeros and of negative magnitudes, sums of levels.

use crate::vectors::case::{Accept, Files, Matrix, Tensor, Unit};
use crate::vectors::naive::{Grouped, Map, Piece, f16s, f32s, grouped, sign_low_rank};
use cmf_format::{DType, Result};

const FOLDER: &str = "sign_low_rank";

/// f32 numbers that no short binary fraction holds.
fn factor(rows: usize, cols: usize, first: usize) -> Piece {
    let value = |i: usize| ((first + i * 37) % 251) as f32 / 100.0 - 1.2;
    f32s(rows, cols, &(0..rows * cols).map(value).collect::<Vec<_>>())
}

/// Signs that differ from place to place.
fn signs(count: usize, first: usize) -> Vec<u32> {
    (0..count).map(|i| u32::from((first + i * i * 5 + i) % 11 < 5)).collect()
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let mut file = Accept::new(
        FOLDER,
        "rows",
        "rows of one below, at and one above 8 and 32 signs: order of bits, row padding",
    );
    for cols in [1, 7, 8, 9, 31, 32, 33] {
        let piece = sign_low_rank(&signs(2 * cols, cols), &factor(2, 2, 0), &factor(2, cols, 11));
        file = file.tensor(Tensor::of(&format!("cols{cols}"), piece));
    }
    file.finish(files)?;

    let zeros = f32s(1, 2, &[0.0, -0.0]);
    let special = f32s(1, 4, &[f32::INFINITY, f32::from_bits(1), -2.0, f32::NAN]);
    Accept::new(
        FOLDER,
        "signs",
        "signs given to zeros, to infinity, to a subnormal and to magnitudes that are negative",
    )
    .tensor(Tensor::of("zeros", sign_low_rank(&[0, 1, 1, 0], &zeros, &f32s(1, 2, &[1.0, -1.0]))))
    .tensor(Tensor::of("special", sign_low_rank(&[0, 0, 0, 0], &f32s(1, 1, &[1.0]), &special)))
    .finish(files)?;

    let scale = f16s(1, 1, &[0x3000]);
    let g = Grouped {
        bits: 4,
        map: Map::Integer(-8),
        scale_op: 1,
        scale: Some(&scale),
        group: (0, 0),
        ..Grouped::default()
    };
    let codes: Vec<u8> = (0..40).map(|i| (i * 5 % 16) as u8).collect();
    let (a_t, b) = (grouped(&g, 4, 3, &codes[..12]), grouped(&g, 4, 10, &codes));
    Accept::new(FOLDER, "factors", "factors that are grouped")
        .tensor(Tensor::of("grouped", sign_low_rank(&signs(30, 3), &a_t, &b)))
        .finish(files)?;

    let plane =
        |level: usize| sign_low_rank(&signs(15, level), &factor(1, 3, 20 * level), &factor(1, 5, 7 * level));
    let unit = |level: u16| Unit { level, rows: (0, 3), terms: vec![plane(level.into()).into()] };
    let matrix = Matrix { rows: 3, cols: 5, units: (0..3).map(unit).collect(), ..Matrix::default() };
    Accept::new(FOLDER, "levels", "three levels, each a plane of signs with a magnitude of its own")
        .tensor(Tensor::new("w", DType::F32, &[3, 5], vec![matrix]))
        .finish(files)
}

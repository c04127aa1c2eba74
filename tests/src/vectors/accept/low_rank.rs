//! `low_rank`: ranks, order of the sum, factors of other encodings.

use crate::vectors::case::{Accept, Files, Tensor};
use crate::vectors::naive::{Grouped, Map, Piece, cycle, f16s, f32s, grouped, low_rank};
use cmf_format::{DType, Result};

const FOLDER: &str = "low_rank";

/// f32 numbers that no short binary fraction holds.
fn factor(rows: usize, cols: usize, first: usize) -> Piece {
    let value = |i: usize| ((first + i * 37) % 251) as f32 / 100.0 - 1.2;
    f32s(rows, cols, &(0..rows * cols).map(value).collect::<Vec<_>>())
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let mut file = Accept::new(FOLDER, "ranks", "ranks below, at and above the sides of the matrix");
    for rank in [1, 2, 3, 4, 7] {
        let piece = low_rank(&factor(rank, 3, 0), &factor(rank, 5, 11));
        file = file.tensor(Tensor::of(&format!("rank{rank}"), piece));
    }
    file.finish(files)?;

    // 2^24 + 1 - 2^24 is 0 in this order, and 1 in another; a fused product gives other last bits.
    let a_t = f32s(3, 2, &[16_777_216.0, 0.1, 1.0, 0.3, -16_777_216.0, 0.7]);
    let b = f32s(3, 2, &[1.0, 0.1, 1.0, 0.3, 1.0, 0.7]);
    let negative = f32s(1, 2, &[-0.0, 0.0]);
    Accept::new(
        FOLDER,
        "order",
        "components are added one by one from +0.0 in ascending order, without fusing",
    )
    .tensor(Tensor::of("w", low_rank(&a_t, &b)))
    .tensor(Tensor::of("zeros", low_rank(&negative, &f32s(1, 2, &[1.0, -1.0]))))
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
    Accept::new(FOLDER, "factors", "factors that are grouped, integers, and low-rank themselves")
        .tensor(Tensor::of("grouped", low_rank(&a_t, &b)))
        .tensor(Tensor::of("i8", low_rank(&cycle(DType::I8, 2, 3, 250), &cycle(DType::I8, 2, 4, 100))))
        .tensor(Tensor::of(
            "nested",
            low_rank(&low_rank(&factor(1, 2, 3), &factor(1, 3, 5)), &factor(2, 4, 7)),
        ))
        .finish(files)
}

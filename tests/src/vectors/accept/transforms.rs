//! Transforms on both sides, alone and in lists, between levels and blocks of rows.

use crate::vectors::case::{Accept, Files, Matrix, Tensor, Unit};
use crate::vectors::naive::{Grouped, Map, Piece, cycle, f16s, f32s, grouped};
use crate::vectors::transform::Transform;
use cmf_format::{DType, Result};

const FOLDER: &str = "transforms";

fn sums(rows: usize, cols: usize) -> Piece {
    let value = |i: usize| (i * 37 % 251) as f32 / 9.0 - 13.0;
    f32s(rows, cols, &(0..rows * cols).map(value).collect::<Vec<_>>())
}

fn tensor(name: &str, rows: usize, cols: usize, inputs: Vec<Transform>, outputs: Vec<Transform>) -> Tensor {
    let matrix = Matrix { inputs, outputs, ..Matrix::sum(rows, cols, vec![sums(rows, cols).into()]) };
    Tensor::new(name, DType::F32, &[rows as u64, cols as u64], vec![matrix])
}

/// Indices that are no involution: i goes to 5 * i + 2.
fn permutation(n: usize) -> Transform {
    Transform::Permute((0..n).map(|i| ((5 * i + 2) % n) as u32).collect())
}

fn factors(n: usize) -> Transform {
    let bits: Vec<u16> = (0..n).map(|i| 0x2E66 + i as u16 * 517).collect();
    Transform::Scale(f16s(1, n, &bits))
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let signs = |n: usize| (0..n).map(|i| i * i % 3 == 1).collect::<Vec<_>>();
    type Kind = fn(usize) -> Transform;
    let kinds: [(&str, Kind); 3] = [
        ("scale", factors),
        ("permute", permutation),
        ("sign_hadamard", |n| Transform::SignHadamard(if n % 4 == 0 { 4 } else { 2 }, 7)),
    ];
    let mut file =
        Accept::new(FOLDER, "kinds", "each kind on the input side, on the output side, and on both");
    for (name, kind) in kinds {
        file = file
            .tensor(tensor(&format!("{name}.input"), 6, 8, vec![kind(8)], vec![]))
            .tensor(tensor(&format!("{name}.output"), 6, 8, vec![], vec![kind(6)]))
            .tensor(tensor(&format!("{name}.both"), 6, 8, vec![kind(8)], vec![kind(6)]));
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "hadamard",
        "blocks from 1 to the whole side; signs of seed 0, which are positive, of seeds, of more than 64, and stored",
    );
    for block in [1, 2, 4, 8, 32] {
        let t = Transform::SignHadamard(block, 0x0123_4567_89AB_CDEF);
        file = file.tensor(tensor(&format!("block{block:02}"), 2, 32, vec![t], vec![]));
    }
    file.tensor(tensor("seed0", 2, 8, vec![Transform::SignHadamard(4, 0)], vec![]))
        .tensor(tensor("seed_largest", 1, 130, vec![Transform::SignHadamard(2, u64::MAX)], vec![]))
        .tensor(tensor("stored33", 1, 33, vec![Transform::StoredSigns(1, signs(33))], vec![]))
        .tensor(tensor("stored", 8, 3, vec![], vec![Transform::StoredSigns(8, signs(8))]))
        .finish(files)?;

    let scale = f32s(1, 1, &[0.75]);
    let g = Grouped {
        bits: 3,
        map: Map::Integer(1),
        scale_op: 1,
        scale: Some(&scale),
        group: (0, 0),
        ..Grouped::default()
    };
    let quantised = Transform::Scale(grouped(&g, 1, 8, &[0, 1, 2, 3, 4, 5, 6, 7]));
    let worked = [
        Transform::Permute(vec![2, 0, 3, 1]),
        Transform::SignHadamard(4, 7),
        factors(4),
        Transform::StoredSigns(4, vec![false, true, true, false]),
        Transform::Permute(vec![1, 2, 3, 0]),
    ];
    Accept::new(
        FOLDER,
        "lists",
        "lists of transforms, whose order matters; factors that are quantised; one permutation on both sides",
    )
    .tensor(tensor("page", 4, 4, worked[..2].to_vec(), worked[2..].to_vec()))
    .tensor(tensor(
        "page.reversed",
        4,
        4,
        worked[..2].iter().rev().cloned().collect(),
        worked[2..].iter().rev().cloned().collect(),
    ))
    .tensor(tensor("quantised", 3, 8, vec![quantised], vec![]))
    .tensor(tensor("shared", 7, 7, vec![permutation(7)], vec![permutation(7)]))
    .finish(files)?;

    let unit = |level: u16, start: usize, rows: usize| Unit {
        level,
        rows: (start, rows),
        terms: vec![cycle(DType::I8, rows, 8, usize::from(level) * 50 + start).at_place(start, 0)],
    };
    let matrix = Matrix {
        rows: 8,
        cols: 8,
        units: vec![unit(0, 0, 3), unit(0, 3, 5), unit(1, 0, 3), unit(1, 3, 5)],
        inputs: vec![Transform::SignHadamard(8, 3)],
        outputs: vec![Transform::SignHadamard(4, 4), permutation(8), factors(8)],
    };
    Accept::new(FOLDER, "blocks_of_rows", "two levels of two blocks of rows, which output transforms mix; a tensor of one dense node that is not exact for its transform")
        .tensor(Tensor::new("w", DType::F32, &[8, 8], vec![matrix]))
        .tensor(tensor("dense", 2, 4, vec![permutation(4)], vec![]))
        .finish(files)
}

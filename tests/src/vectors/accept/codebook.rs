//! `codebook`: numbers of codebooks, code widths, vector shapes, scales, sharing.

use crate::vectors::case::{Accept, Files, Tensor};
use crate::vectors::naive::{Codebook, Grouped, Piece, codebook, cycle, f16s, f32s, grouped, low_rank};
use cmf_format::{DType, Result};

const FOLDER: &str = "codebook";

fn entries(codebooks: usize, bits: usize, elements: usize) -> Piece {
    cycle(DType::I8, codebooks << bits, elements, 200)
}

/// Codes that count up by 37, cut to `bits` bits.
fn codes(bits: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| (i as u32 * 37 + 5) % (1 << bits)).collect()
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let mut file = Accept::new(FOLDER, "widths", "codes of 1 to 16 bits in one and in three codebooks");
    for bits in [1, 2, 3, 4, 5, 7, 8, 9] {
        for books in [1, 3] {
            let entries = entries(books, bits, 2);
            let c = Codebook { codebooks: books, bits, vector: (1, 2), entries: &entries, scale: None };
            let piece = codebook(&c, 2, 11, &codes(bits, 2 * 6 * books));
            file = file.tensor(Tensor::of(&format!("bits{bits:02}.codebooks{books}"), piece));
        }
    }
    // 2^16 entries that take little space: a bit each, times a row.
    let bits: Vec<u8> = (0..1u64 << 16).map(|i| (i * i % 251 % 2) as u8).collect();
    let bits = grouped(&Grouped { bits: 1, ..Grouped::default() }, 1, 1 << 16, &bits);
    let many = low_rank(&bits, &f32s(1, 2, &[0.3, -7.0]));
    let c = Codebook { codebooks: 1, bits: 16, vector: (1, 2), entries: &many, scale: None };
    let all = [0, 1, 2, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 12_345];
    file = file.tensor(Tensor::of("bits16.codebooks1", codebook(&c, 1, 16, &all)));
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "vectors",
        "vectors along rows, along columns, of both, of one element, and larger than the matrix; edges reach beyond it",
    );
    for vector in [(1, 1), (1, 4), (1, 8), (4, 1), (2, 3), (3, 2), (1, 9), (5, 9), (6, 10)] {
        let (rows, cols): (usize, usize) = (5, 9);
        let entries = entries(2, 3, vector.0 * vector.1);
        let c = Codebook { codebooks: 2, bits: 3, vector, entries: &entries, scale: None };
        let count = rows.div_ceil(vector.0) * cols.div_ceil(vector.1) * 2;
        let piece = codebook(&c, rows, cols, &codes(3, count));
        file = file.tensor(Tensor::of(&format!("{}x{}", vector.0, vector.1), piece));
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "scales",
        "a scale for each vector row, for some columns of it, and broadcast; tails of the columns that share one",
    );
    for (rows_of_scale, scale_cols) in [(3, 0), (3, 2), (3, 4), (3, 8), (1, 4), (1, 0)] {
        let entries = entries(1, 4, 4);
        let across = if scale_cols == 0 { 1 } else { 9usize.div_ceil(scale_cols) };
        for (name, across) in [("", across), (".one_column", 1)] {
            let bits: Vec<u16> = (0..rows_of_scale * across).map(|i| 0x2C00 + i as u16 * 333).collect();
            let scale = f16s(rows_of_scale, across, &bits);
            let c = Codebook {
                codebooks: 1,
                bits: 4,
                vector: (2, 2),
                entries: &entries,
                scale: Some((&scale, scale_cols)),
            };
            let piece = codebook(&c, 5, 9, &codes(4, 15));
            file = file.tensor(Tensor::of(&format!("rows{rows_of_scale}.cols{scale_cols}{name}"), piece));
        }
    }
    file.finish(files)?;

    // (2^24 + 1) - 2^24, times 3: another order of the sum or of the scale gives another value.
    let entries = f32s(6, 1, &[16_777_216.0, 0.1, 1.0, 0.3, -16_777_216.0, -0.0]);
    let scale = f32s(1, 1, &[3.0]);
    let c = Codebook { codebooks: 3, bits: 1, vector: (1, 1), entries: &entries, scale: Some((&scale, 0)) };
    let all: Vec<u32> = (0..8).flat_map(|k| [k >> 2 & 1, k >> 1 & 1, k & 1]).collect();
    let single = f32s(2, 1, &[-0.0, f32::NAN]);
    let one = Codebook { codebooks: 1, bits: 1, vector: (1, 1), entries: &single, scale: None };
    Accept::new(FOLDER, "order", "entries are added one by one in order of codebooks, then scaled; one codebook without scale keeps -0.0 and NaN")
        .tensor(Tensor::of("sums", codebook(&c, 1, 8, &all)))
        .tensor(Tensor::of("single", codebook(&one, 1, 3, &[0, 1, 0])))
        .finish(files)?;

    let shared = cycle(DType::F16, 8, 4, 0);
    let with = |first| {
        let c = Codebook { codebooks: 2, bits: 2, vector: (1, 4), entries: &shared, scale: None };
        let codes: Vec<u32> = codes(2, 12).iter().map(|c| (c + first) % 4).collect();
        codebook(&c, 2, 12, &codes)
    };
    Accept::new(FOLDER, "shared", "three tensors whose codebooks are one node, stored once")
        .tensors((0..3).map(|i| Tensor::of(&format!("layer.{i}"), with(i))))
        .finish(files)
}

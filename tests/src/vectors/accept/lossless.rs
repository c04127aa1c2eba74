//! `lossless`: element types, frames of rows, raw and compressed chunks.

use crate::vectors::case::{Accept, Files, Matrix, Tensor, Unit};
use crate::vectors::frames::{EXPONENTS, exponents, squeeze};
use crate::vectors::naive::lossless;
use cmf_format::{DType, Result};

const FOLDER: &str = "lossless";

pub(super) fn add(files: &mut Files) -> Result<()> {
    let mut file = Accept::new(
        FOLDER,
        "types",
        "elements of every type, all chunks raw: the rotation by one bit in 1, 2, 4 and 8 bytes, NaN and zeros of both signs included",
    );
    for dtype in DType::ALL {
        // Bytes that count up in a cycle of 251, then all ones, and a sign bit alone.
        let width = dtype.bytes();
        let mut bytes: Vec<u8> = (0..8 * width).map(|i| (i * 37 % 251) as u8).collect();
        bytes.extend(vec![0xFF; width]);
        bytes.extend(vec![0; width - 1]);
        bytes.push(0x80);
        let piece = lossless(*dtype, (2, 5), 1, &bytes, |_| None);
        file = file.tensor(Tensor::exact(dtype.name(), piece));
    }
    file.finish(files)?;

    // bf16 whose exponents are one run for each row: plane 0 is a frame, plane 1 is raw.
    let runs = |rows: usize, cols: usize| -> Vec<u8> {
        (0..rows * cols)
            .flat_map(|i| {
                let exponent = 0x7C + (i / cols % 5) as u16;
                (exponent << 7 | (i as u16 % 251) << 15 | (i as u16 * 3 % 128)).to_le_bytes()
            })
            .collect()
    };
    let mut file = Accept::new(
        FOLDER,
        "frames",
        "frames of one row, of several, of more than there are, with a short last frame; compressed chunks beside raw ones",
    );
    for rows_per_frame in [1, 2, 3, 6, 7, 8, 100] {
        let piece = lossless(DType::BF16, (7, 21), rows_per_frame, &runs(7, 21), squeeze);
        file = file.tensor(Tensor::exact(&format!("rows_per_frame{rows_per_frame:03}"), piece));
    }
    file.finish(files)?;

    let compressed: Vec<u8> = exponents()
        .iter()
        .enumerate()
        .flat_map(|(i, e)| (u16::from(*e) << 7 | (i as u16 % 2) << 15 | (i * 53 % 128) as u16).to_le_bytes())
        .collect();
    let huffman = |plane: &[u8]| (plane == exponents()).then(|| EXPONENTS.to_vec());
    let piece = lossless(DType::BF16, (2, 300), 2, &compressed, huffman);
    Accept::new(FOLDER, "huffman", "exponents that the reference compressor packed with a Huffman code")
        .tensor(Tensor::exact("w", piece))
        .finish(files)?;

    let part = |rows: usize| lossless(DType::BF16, (rows, 21), 2, &runs(rows, 21), squeeze);
    let unit = |start: usize, rows: usize| Unit {
        level: 0,
        rows: (start, rows),
        terms: vec![part(rows).at_place(start, 0)],
    };
    let matrix = Matrix { rows: 7, cols: 21, units: vec![unit(0, 4), unit(4, 3)], ..Matrix::default() };
    Accept::new(
        FOLDER,
        "row_blocks",
        "two units of rows, still exact; and a tensor of another type than its node, which is not",
    )
    .tensor(Tensor::new("exact", DType::BF16, &[7, 21], vec![matrix]))
    .tensor(Tensor::sum("rounded", DType::F16, vec![part(3).into()]))
    .finish(files)
}

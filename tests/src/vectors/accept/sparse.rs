//! `sparse`: every layout, block shape and way of reading values, alone and in sums.

use crate::vectors::case::{Accept, Files, Tensor};
use crate::vectors::naive::{Blocks, Grouped, Map, Piece, blocks, cycle, f16s, f32s, grouped, n_of_m};
use cmf_format::{DType, Result};

const FOLDER: &str = "sparse";

/// i8 values that count up from -100, in rows of `width`.
fn values(count: usize, width: usize) -> Piece {
    cycle(DType::I8, count.div_ceil(width), width, 156)
}

/// f32 values with zeros of both signs, a base to add to.
fn base(rows: usize, cols: usize) -> Piece {
    let value = |i: usize| [-0.0, 0.1, 0.0, -2.5][i % 4] * [1.0, 3.0, 3.0][i % 3];
    f32s(rows, cols, &(0..rows * cols).map(value).collect::<Vec<_>>())
}

/// Entries at every third place of a grid, with block row 1 left empty.
fn entries(down: usize, across: usize) -> Vec<(usize, usize)> {
    (0..down * across)
        .filter(|k| k % 3 == 0)
        .map(|k| (k / across, k % across))
        .filter(|(i, _)| *i != 1)
        .collect()
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    let layouts = [("csr16", 16), ("csr32", 32), ("bitmap", 0)];
    let mut file = Accept::new(
        FOLDER,
        "elements",
        "single elements in rows one below, at and one above 32 columns; a row without entries; added and replacing, alone and on a base with zeros of both signs",
    );
    for (layout, index_bits) in layouts {
        for cols in if index_bits == 32 { 33..=33 } else { 31..=33 } {
            for (op, replace) in [("add", false), ("replace", true)] {
                let entries = entries(3, cols);
                let values = values(entries.len(), 1);
                let b = Blocks { replace, index_bits, block: (1, 1), entries: &entries, values: &values };
                let piece = blocks(&b, 3, cols);
                let name = format!("{layout}.{op}.cols{cols}");
                if !replace {
                    file = file.tensor(Tensor::of(&format!("{name}.alone"), piece.clone()));
                }
                let sum = vec![base(3, cols).into(), piece.into()];
                file = file.tensor(Tensor::sum(&format!("{name}.on_base"), DType::F32, sum));
            }
        }
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "blocks",
        "blocks of several shapes whose edges reach beyond the matrix; values in rows of the block's size, and of other widths with padding at the end",
    );
    for (layout, index_bits) in layouts {
        for (block, width) in
            [((1, 4), 4), ((2, 2), 3), ((4, 1), 4), ((3, 5), 15), ((2, 3), 100), ((8, 16), 128)]
        {
            let (rows, cols): (usize, usize) = (7, 13);
            let entries = entries(rows.div_ceil(block.0), cols.div_ceil(block.1));
            let values = values(entries.len() * block.0 * block.1, width);
            let b = Blocks { replace: false, index_bits, block, entries: &entries, values: &values };
            file =
                file.tensor(Tensor::of(&format!("{layout}.{}x{}", block.0, block.1), blocks(&b, rows, cols)));
        }
    }
    file.finish(files)?;

    let none = values(0, 1);
    let mut file = Accept::new(FOLDER, "empty", "no entries, which is zero everywhere, and all entries");
    for (layout, index_bits) in layouts {
        let b = Blocks { replace: true, index_bits, block: (1, 1), entries: &[], values: &none };
        file = file.tensor(Tensor::of(&format!("{layout}.none"), blocks(&b, 2, 3)));
        let all: Vec<_> = (0..6).map(|k| (k / 3, k % 3)).collect();
        let values = values(6, 2);
        let b = Blocks { entries: &all, values: &values, ..b };
        file = file.tensor(Tensor::of(&format!("{layout}.all"), blocks(&b, 2, 3)));
    }
    file.finish(files)?;

    let scale = f16s(3, 1, &[0x3C00, 0x2E66, 0xB800]);
    let g =
        Grouped { bits: 5, map: Map::Integer(-16), scale_op: 1, scale: Some(&scale), ..Grouped::default() };
    let codes: Vec<u8> = (0..3 * 16).map(|i| (i * 7 % 32) as u8).collect();
    let quantised = grouped(&g, 3, 16, &codes);
    let entries: Vec<_> = (0..40).map(|k| (k * 5 / 33, k * 5 % 33)).collect();
    let mut file = Accept::new(
        FOLDER,
        "grouped_values",
        "values that are quantised in groups of 16, the last group padded",
    );
    for (layout, index_bits) in layouts {
        let b = Blocks { replace: false, index_bits, block: (1, 1), entries: &entries, values: &quantised };
        file =
            file.tensor(Tensor::sum(layout, DType::F32, vec![base(7, 33).into(), blocks(&b, 7, 33).into()]));
    }
    file.finish(files)?;

    let mut file = Accept::new(
        FOLDER,
        "n_of_m",
        "n of m for widths of 1 to 16 bits; whole groups, and tails whose positions lie beyond the last column",
    );
    for (n, m) in [(2, 4), (1, 2), (2, 3), (4, 8), (3, 3), (5, 17), (1, 65_535)] {
        for cols in if m > 17 { vec![9] } else { vec![8, 9, 17] } {
            let kept = usize::div_ceil(cols, m) * n;
            // In group g the positions begin at g mod (m - n + 1).
            let positions: Vec<u32> =
                (0..2 * kept).map(|k| ((k % kept / n + k / kept) % (m - n + 1) + k % n) as u32).collect();
            let values = values(2 * kept, kept);
            let name = format!("{n}of{m}.cols{cols}");
            let added = n_of_m(false, (n, m), (2, cols), &positions, &values);
            if m != 65_535 {
                file = file.tensor(Tensor::of(&format!("{name}.alone"), added));
            }
            let replaced = n_of_m(true, (n, m), (2, cols), &positions, &values);
            let sum = vec![base(2, cols).into(), replaced.into()];
            file = file.tensor(Tensor::sum(&format!("{name}.on_base"), DType::F32, sum));
        }
    }
    file.finish(files)?;

    // Below another node its values are those that it decodes to.
    let positions = [(0, 1), (1, 2)];
    let values = values(2, 2);
    let b = Blocks { replace: true, index_bits: 16, block: (1, 1), entries: &positions, values: &values };
    let scale = blocks(&b, 2, 3);
    let g = Grouped {
        bits: 2,
        map: Map::Integer(-2),
        scale_op: 1,
        scale: Some(&scale),
        group: (1, 2),
        ..Grouped::default()
    };
    Accept::new(
        FOLDER,
        "as_child",
        "a sparse node as the scale of a grouped one: what it does not list is +0.0",
    )
    .tensor(Tensor::of("w", grouped(&g, 2, 6, &[0, 1, 2, 3, 0, 1, 3, 2, 1, 0, 3, 2])))
    .finish(files)
}

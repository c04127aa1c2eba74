//! Every encoding on every instruction set against the reference decode.

mod common;

use cmf_format::DType;
use cmf_format::encoding::grouped::{CodeMap, Minifloat, ZeroOp};
use cmf_format::encoding::nested::{self, Rounding};
use cmf_format::encoding::trellis::Axis;
use cmf_format::encoding::{lossless, sparse};
use cmf_format::write::TransformEntry;
use cmf_kernels_cpu::{Activations, Isa, Linear, Precision, Scratch};
use common::*;

const QUANTISES: Expect = Expect { roundings: 0, quantises: true };
const EXACT: Expect = Expect { roundings: 0, quantises: false };

/// Around what kernels take at a time.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (3, 15), (4, 16), (5, 63), (17, 64), (33, 65), (40, 130), (7, 576), (66, 192)];

#[test]
fn grouped_codes_of_every_width() -> Result {
    isas();
    for bits in 1..=8 {
        for (rows, cols) in SHAPES {
            let node = Grouped::symmetric(bits, 32).node(rows, cols, &mut Numbers(u64::from(bits)))?;
            check(Parts::of(node), rows, cols, 7, QUANTISES)?;
        }
    }
    Ok(())
}

#[test]
fn grouped_long_rows() -> Result {
    for (rows, cols) in [(1, 1024), (4, 1055), (7, 1100), (3, 1536), (6, 2047), (2, 2080)] {
        for (bits, group_cols) in (1..=8).flat_map(|bits| [32, 64, 128].map(|cols| (bits, cols))) {
            let own = Grouped::symmetric(bits, group_cols);
            let node = own.node(rows, cols, &mut Numbers(u64::from(bits)))?;
            check(Parts::of(node), rows, cols, 2, QUANTISES)?;
        }
        // What is taken off may be far more than codes are.
        for bits in [3, 4] {
            let own = Grouped { map: CodeMap::Integer { offset: -120 }, ..Grouped::symmetric(bits, 32) };
            check(Parts::of(own.node(rows, cols, &mut Numbers(5))?), rows, cols, 2, QUANTISES)?;
        }
    }
    Ok(())
}

/// Half a megabyte of short rows on one thread: kernels of few tokens then read copies of activations by turns.
#[test]
fn grouped_many_short_rows() -> Result {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for (bits, rows, cols) in [(4, 1027, 1100), (8, 481, 1120)] {
        let node = Grouped::symmetric(bits, 32).node(rows, cols, &mut Numbers(5))?;
        pool.install(|| check(Parts::of(node), rows, cols, 2, QUANTISES).map_err(|e| e.to_string()))?;
    }
    Ok(())
}

#[test]
fn grouped_groups_of_every_size() -> Result {
    for group_cols in [16, 32, 48, 64, 96, 128, 256, 0] {
        for group_rows in [1, 3, 0] {
            for twice in [false, true] {
                let own = Grouped { group_rows, twice, ..Grouped::symmetric(4, group_cols) };
                check(Parts::of(own.node(21, 330, &mut Numbers(3))?), 21, 330, 9, QUANTISES)?;
            }
        }
    }
    Ok(())
}

#[test]
fn grouped_zero_points() -> Result {
    for zero in [ZeroOp::Subtract, ZeroOp::Add] {
        for (bits, group_cols, twice) in [(2, 16, false), (4, 32, true), (4, 64, false), (8, 0, false)] {
            let map = CodeMap::Integer { offset: if bits == 8 { -128 } else { 0 } };
            let own = Grouped { zero, twice, map, ..Grouped::symmetric(bits, group_cols) };
            for (rows, cols) in [(21, 330), (4, 64), (1, 17)] {
                let node = own.node(rows, cols, &mut Numbers(5))?;
                // What is subtracted is larger than the weight that is left.
                check(Parts::of(node), rows, cols, 9, Expect { roundings: 2000, quantises: true })?;
            }
        }
    }
    Ok(())
}

#[test]
fn grouped_codes_with_codes_for_scales() -> Result {
    for zero in [ZeroOp::None, ZeroOp::Add] {
        for (rows, cols, bits) in [(1, 31), (5, 576), (7, 1100), (9, 1536)]
            .into_iter()
            .flat_map(|(rows, cols)| [2, 3, 4, 5, 6, 7, 8].map(|bits| (rows, cols, bits)))
        {
            let is_unsigned = zero == ZeroOp::Add && bits < 8;
            let map = CodeMap::Integer { offset: if is_unsigned { 0 } else { -(1 << (bits - 1)) } };
            let own = Grouped { zero, twice: true, map, ..Grouped::symmetric(bits, 32) };
            let expect = Expect { roundings: 2000, quantises: true };
            check(Parts::of(own.node(rows, cols, &mut Numbers(5))?), rows, cols, 9, expect)?;
        }
    }
    Ok(())
}

#[test]
fn grouped_tables_and_small_floats() -> Result {
    let maps = [
        (4, CodeMap::Table),
        (6, CodeMap::Table),
        (4, CodeMap::Minifloat(Minifloat::E2M1)),
        (6, CodeMap::Minifloat(Minifloat::E3M2)),
        (8, CodeMap::Integer { offset: 0 }),
        (5, CodeMap::Integer { offset: 1000 }),
    ];
    for (bits, map) in maps {
        let node = Grouped { map, ..Grouped::symmetric(bits, 32) }.node(13, 165, &mut Numbers(11))?;
        check(Parts::of(node), 13, 165, 9, EXACT)?;
    }
    Ok(())
}

#[test]
fn grouped_columns_with_scales_of_their_own() -> Result {
    for zero in [ZeroOp::None, ZeroOp::Subtract, ZeroOp::Add] {
        for (rows, cols) in SHAPES {
            for (bits, group_rows, twice) in [(3, 16, false), (8, 1, true), (4, 0, false)] {
                let map = CodeMap::Integer { offset: 0 };
                let own = Grouped { zero, twice, map, group_rows, ..Grouped::symmetric(bits, 1) };
                let expect = Expect { roundings: 60_000, quantises: true };
                check(Parts::of(own.node(rows, cols, &mut Numbers(5))?), rows, cols, 9, expect)?;
            }
        }
    }
    Ok(())
}

#[test]
fn grouped_that_no_kernel_is_made_for() -> Result {
    let node = Grouped::symmetric(3, 20).node(9, 77, &mut Numbers(11))?;
    check(Parts::of(node), 9, 77, 9, EXACT)
}

#[test]
fn denormal_scales() -> Result {
    let node = Grouped { scale: 1e-7, ..Grouped::symmetric(4, 32) }.node(9, 96, &mut Numbers(13))?;
    check(Parts::of(node), 9, 96, 9, QUANTISES)
}

#[test]
fn trellis_windows_and_steps() -> Result {
    for state_bits in [6, 7, 8, 9, 10] {
        for step_bits in [1, 2, 4] {
            for (rows, cols) in [(1, 1), (3, 17), (16, 64), (33, 65), (70, 200)] {
                let own = Trellis { state_bits, step_bits, odd: rows % 2 == 1, ..Trellis::PLAIN };
                let node = own.node(rows, cols, &mut Numbers(1))?;
                check(Parts::of(node), rows, cols, 3, QUANTISES)?;
            }
        }
    }
    Ok(())
}

#[test]
fn trellis_hashed_windows() -> Result {
    for state_bits in 9..=15 {
        for step_bits in [1, 2] {
            for (rows, cols) in [(3, 17), (33, 65), (70, 200)] {
                let own = Trellis { state_bits, step_bits, hashed: true, ..Trellis::PLAIN };
                let node = own.node(rows, cols, &mut Numbers(1))?;
                check(Parts::of(node), rows, cols, 3, QUANTISES)?;
            }
        }
    }
    Ok(())
}

#[test]
fn trellis_paths_and_scales() -> Result {
    for path_elems in [0, 5, 16, 20, 33] {
        for scale_rows in [0, 1, 32] {
            let own = Trellis { path_elems, scale_rows, ..Trellis::PLAIN };
            check(Parts::of(own.node(75, 40, &mut Numbers(2))?), 75, 40, 3, QUANTISES)?;
        }
    }
    Ok(())
}

#[test]
fn trellis_that_no_kernel_is_made_for() -> Result {
    let along = Trellis { axis: Axis::Along, ..Trellis::PLAIN };
    let three = Trellis { step_bits: 3, ..Trellis::PLAIN };
    let long = Trellis { state_bits: 12, ..Trellis::PLAIN };
    let sums = Trellis { state_bits: 12, table: DType::F64, ..Trellis::PLAIN };
    let large = Trellis { table: DType::F32, ..Trellis::PLAIN };
    for own in [along, three, long, sums] {
        check(Parts::of(own.node(37, 70, &mut Numbers(2))?), 37, 70, 3, EXACT)?;
    }
    check(Parts::of(large.node(37, 70, &mut Numbers(2))?), 37, 70, 3, QUANTISES)
}

#[test]
fn dense_elements() -> Result {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::I8] {
        for (rows, cols) in SHAPES {
            let node = plain(dtype, rows, cols, &Numbers(1).values(rows * cols, 3.0))?;
            check(Parts::of(node), rows, cols, 3, EXACT)?;
        }
    }
    Ok(())
}

#[test]
fn factors_of_low_rank() -> Result {
    // Products of factors are not those of their product, whose sums may be small.
    check(Parts::of(factors(37, 70)?), 37, 70, 3, Expect { roundings: 2000, quantises: false })
}

#[test]
fn signs_with_magnitudes() -> Result {
    // Fast products are of the factors, as those of `low_rank`.
    let expect = Expect { roundings: 2000, quantises: false };
    for (rows, cols) in SHAPES {
        for rank in [1, 5, 8, 16, 17, 40] {
            for dtype in [DType::F16, DType::F32] {
                check(Parts::of(signs(rows, cols, rank, dtype)?), rows, cols, 3, expect)?;
            }
        }
        check(Parts::of(signs_of_codes(rows, cols, 3)?), rows, cols, 3, expect)?;
    }
    Ok(())
}

#[test]
fn signs_of_many_rows_and_terms() -> Result {
    let (rows, cols) = (1100, 70);
    check(
        Parts::of(signs(rows, cols, 4, DType::F16)?),
        rows,
        cols,
        3,
        Expect { roundings: 2000, quantises: false },
    )?;
    let terms = [5, 16, 3].map(|rank| signs(37, 130, rank, DType::F16).map(|node| (0, 0, node)));
    let terms = terms.into_iter().collect::<Result<Vec<_>>>()?;
    check(Parts { terms, ..Parts::default() }, 37, 130, 3, Expect { roundings: 6000, quantises: false })
}

#[test]
fn nested_tables() -> Result {
    for bits in [1, 3, 4, 6, 8] {
        for (rows, cols) in SHAPES {
            // Beside activations, values are rounded to a 65534th of their range.
            check(
                Parts::of(planes(rows, cols, bits)?),
                rows,
                cols,
                3,
                Expect { roundings: 2000, quantises: true },
            )?;
        }
    }
    Ok(())
}

#[test]
fn nested_integers() -> Result {
    for rounding in [Rounding::Floor, Rounding::HalfUp] {
        for (bits, group_cols) in [(1, 0), (3, 32), (4, 64), (7, 16), (4, 20)] {
            for (rows, cols) in SHAPES {
                let nodes = levels(rows, cols, &[bits], rounding, group_cols)?;
                let terms = nodes.into_iter().map(|node| (0, 0, node)).collect();
                let expect = Expect { roundings: 2000, quantises: true };
                check(Parts { terms, ..Parts::default() }, rows, cols, 3, expect)?;
            }
        }
    }
    let eight = levels(19, 70, &[8], Rounding::Floor, 32)?.into_iter().map(|node| (0, 0, node)).collect();
    check(Parts { terms: eight, ..Parts::default() }, 19, 70, 3, Expect { roundings: 2000, quantises: true })
}

#[test]
fn nested_levels_over_each_other() -> Result {
    for (rounding, group_cols) in [(Rounding::Floor, 32), (Rounding::HalfUp, 64), (Rounding::Floor, 20)] {
        let nodes = levels(37, 130, &[2, 3, 4], rounding, group_cols)?;
        let terms = nodes.into_iter().map(|node| (0, 0, node)).collect();
        let expect = Expect { roundings: 4000, quantises: true };
        check(Parts { terms, ..Parts::default() }, 37, 130, 3, expect)?;
    }
    let nodes = tables(37, 130, &[3, 4, 7, 8], Rounding::Floor)?;
    let terms = nodes.into_iter().map(|node| (0, 0, node)).collect();
    check(Parts { terms, ..Parts::default() }, 37, 130, 3, Expect { roundings: 4000, quantises: true })
}

#[test]
fn nested_levels_that_are_not_of_one_place() -> Result {
    let expect = Expect { roundings: 60_000, quantises: true };
    let (lower, upper) =
        (levels(37, 130, &[2, 4], Rounding::Floor, 32)?, tables(37, 130, &[3, 5], Rounding::Floor)?);
    for nodes in [lower, upper] {
        let [first, second] = <[_; 2]>::try_from(nodes).map_err(|_| "two levels")?;
        // Alone, at other rows, twice.
        check(Parts::of(second.clone()), 37, 130, 3, expect)?;
        let terms = vec![(0, 0, first.clone()), (1, 0, second.clone())];
        check(Parts { terms, ..Parts::default() }, 38, 130, 3, expect)?;
        let terms = vec![(0, 0, first.clone()), (0, 0, second.clone()), (0, 0, second), (0, 0, first)];
        check(Parts { terms, ..Parts::default() }, 37, 130, 3, expect)?;
    }
    // Planes and tables of their own.
    let mut others = levels(37, 130, &[2, 4], Rounding::HalfUp, 64)?;
    others.truncate(1);
    others.extend(levels(37, 130, &[2, 4], Rounding::HalfUp, 32)?.pop());
    let terms = others.into_iter().map(|node| (0, 0, node)).collect();
    check(Parts { terms, ..Parts::default() }, 37, 130, 3, expect)
}

#[test]
fn nested_tables_that_are_no_numbers() -> Result {
    let (rows, cols) = (5, 70);
    let codes: Vec<u8> = (0..rows * cols).map(|i| if i / cols == 2 { (i % 4) as u8 } else { 2 }).collect();
    let mut values: Vec<f32> = (0..rows * 4).map(|i| i as f32).collect();
    // Row 2 has what is no number, others have it where no code is.
    values.iter_mut().skip(3).step_by(4).for_each(|value| *value = f32::INFINITY);
    let level = nested::LevelData {
        level: nested::Level { bits: 2, map: nested::Map::Table, rounding: Rounding::Floor, group_cols: 0 },
        children: vec![plain(DType::F32, rows, 4, &values)?.into()],
    };
    let node = nested::pack(rows as u64, cols as u64, &nested::planes(&codes, cols, 2)?, &level, None)?;
    let bytes = Parts::of(node).archive(rows, cols)?;
    let archive = parse(&bytes)?;
    for isa in isas() {
        let linear = Linear::new(view(&archive)?, isa)?;
        let x = vec![1.0; cols];
        let y = multiply(&linear, &x, Precision::Fast, &mut Scratch::new())?;
        let expected = [2.0, 6.0, f32::INFINITY, 14.0, 18.0].map(|w| w * cols as f32);
        assert_eq!(y, expected, "{isa:?}");
    }
    Ok(())
}

#[test]
fn bits_after_the_last_column_are_nothing() -> Result {
    let (rows, cols) = (9, 70);
    for is_table in [false, true] {
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i % 7) as u8).collect();
        let planes = nested::planes(&codes, cols, 3)?;
        let children = match is_table {
            true => vec![plain(DType::F16, rows, 8, &Numbers(1).values(8 * rows, 1.0))?.into()],
            false => vec![
                plain(DType::F16, rows, 1, &Numbers(1).values(rows, 1.0))?.into(),
                plain(DType::F16, rows, 1, &Numbers(2).values(rows, 4.0))?.into(),
            ],
        };
        let map = if is_table { nested::Map::Table } else { nested::Map::Integer };
        let level = nested::Level { bits: 3, map, rounding: Rounding::Floor, group_cols: 0 };
        let level = nested::LevelData { level, children };
        let clean = nested::pack(rows as u64, cols as u64, &planes, &level, None)?;
        // Of 96 bits of a row, those of the last columns.
        let mut wide: Vec<u8> = Vec::new();
        for row in codes.chunks(cols) {
            wide.extend(row);
            wide.resize(wide.len().next_multiple_of(96), 7);
        }
        let planes = nested::planes(&wide, 96, 3)?;
        let dirty = nested::pack(rows as u64, cols as u64, &planes, &level, None)?;
        let files = [Parts::of(clean).archive(rows, cols)?, Parts::of(dirty).archive(rows, cols)?];
        let x = Numbers(3).values(2 * cols, 1.0);
        for isa in isas() {
            for precision in [Precision::Exact, Precision::Fast] {
                let product = |bytes: &Vec<u8>| {
                    let archive = parse(bytes)?;
                    let linear = Linear::new(view(&archive)?, isa)?;
                    multiply(&linear, &x, precision, &mut Scratch::new())
                };
                assert_eq!(product(&files[0])?, product(&files[1])?, "{isa:?} {precision:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn codebooks_of_every_width() -> Result {
    let expect = Expect { roundings: 2000, quantises: false };
    for (bits, width, codebooks, scale_cols) in [
        (6, 8, 2, 64),
        (7, 4, 1, 0),
        (8, 4, 1, 128),
        (8, 8, 2, 0),
        (9, 3, 1, 0),
        (9, 8, 1, 0),
        (10, 16, 2, 64),
    ] {
        for (rows, cols) in [(3, 17), (33, 65), (70, 200), (300, 130)] {
            let node = vectors_of(bits, rows, cols, width, codebooks, scale_cols)?;
            check(Parts::of(node), rows, cols, 3, expect)?;
        }
    }
    Ok(())
}

#[test]
fn codebooks() -> Result {
    for (width, codebooks, scale_cols) in [(8, 2, 0), (4, 1, 16), (16, 3, 32), (8, 1, 8), (5, 2, 0)] {
        for (rows, cols) in SHAPES {
            let node = vectors(rows, cols, width, codebooks, scale_cols)?;
            check(Parts::of(node), rows, cols, 3, EXACT)?;
        }
    }
    Ok(())
}

#[test]
fn lossless_elements() -> Result {
    for dtype in [DType::BF16, DType::F16, DType::F32, DType::F8E4M3, DType::F64] {
        // The last ones have several frames.
        for (rows, cols) in SHAPES.into_iter().chain([(150, 300), (3, 20_000)]) {
            check(Parts::of(packed(dtype, rows, cols)?), rows, cols, 3, EXACT)?;
        }
    }
    Ok(())
}

/// Frames that a thread has kept are not those of other nodes.
#[test]
fn lossless_nodes_by_turns() -> Result {
    let (rows, cols) = (150, 300);
    let mut numbers = Numbers(1);
    let node = |seed: u64| -> Result<_> {
        let bytes = DType::BF16.encode(&Numbers(seed).values(rows * cols, 1.0))?;
        Ok(lossless::pack(DType::BF16, rows as u64, cols as u64, &bytes)?)
    };
    let files = [Parts::of(node(1)?), Parts::of(node(2)?)].map(|parts| parts.archive(rows, cols));
    let files = files.into_iter().collect::<Result<Vec<_>>>()?;
    let x = numbers.values(cols, 1.0);
    let mut scratch = Scratch::new();
    for isa in isas() {
        for bytes in files.iter().chain(&files) {
            let archive = parse(bytes)?;
            let linear = Linear::new(view(&archive)?, isa)?;
            let mut w = vec![0.0; rows * cols];
            linear.view().decode_rows(0..rows, &mut w)?;
            let mut row = vec![0.0; cols];
            linear.gather(&[0], &mut row, &mut scratch)?;
            assert_eq!(bits(&row), bits(&w[..cols]));
            let y = multiply(&linear, &x, Precision::Exact, &mut scratch)?;
            assert_eq!(bits(&y), bits(&multiply(&linear, &x, Precision::Exact, &mut Scratch::new())?));
        }
    }
    Ok(())
}

#[test]
fn rejects_damaged_frames() -> Result {
    let (rows, cols) = (150, 300);
    let mut node = packed(DType::BF16, rows, cols)?;
    let mut chunks = node.segments[1].bytes().ok_or("no bytes")?.to_vec();
    chunks[4] ^= 0x40;
    node.segments[1] = chunks.into();
    let bytes = Parts::of(node).archive(rows, cols)?;
    let archive = parse(&bytes)?;
    let expected =
        view(&archive)?.decode_rows(0..rows, &mut vec![0.0; rows * cols]).err().map(|e| e.to_string());
    assert!(expected.is_some());
    for isa in isas() {
        let linear = Linear::new(view(&archive)?, isa)?;
        let (mut x, mut scratch) = (Activations::new(), Scratch::new());
        x.load(&vec![1.0; cols], cols, &[], Precision::Exact, isa)?;
        for _ in 0..2 {
            let found = linear.multiply(&x, &mut vec![0.0; rows], &mut scratch).err();
            assert_eq!(found.map(|e| e.to_string()), expected);
        }
    }
    Ok(())
}

/// Ways to list positions.
fn listings() -> [Listing; 9] {
    let block = |rows, cols| sparse::Block { rows, cols };
    [
        Listing::Csr(sparse::Block::ONE),
        Listing::Bitmap(sparse::Block::ONE),
        Listing::Csr(block(1, 4)),
        Listing::Csr(block(3, 5)),
        Listing::Bitmap(block(2, 8)),
        Listing::Nm(2, 4),
        Listing::Nm(1, 3),
        Listing::Nm(4, 8),
        Listing::Nm(5, 40),
    ]
}

#[test]
fn listed_values() -> Result {
    for (listing, one_in) in listings().into_iter().flat_map(|listing| [1, 3, 40].map(|n| (listing, n))) {
        for values in [Some(DType::F16), Some(DType::BF16), None] {
            for (rows, cols) in SHAPES {
                let own = Sparse { listing, one_in, values, ..Sparse::PLAIN };
                check(Parts::of(own.node(rows, cols, &mut Numbers(2))?), rows, cols, 3, EXACT)?;
            }
        }
    }
    Ok(())
}

#[test]
fn listed_columns_of_32_bits() -> Result {
    let (rows, cols) = (2, 70_000);
    let node = Sparse { one_in: 500, ..Sparse::PLAIN }.node(rows, cols, &mut Numbers(2))?;
    check(Parts::of(node), rows, cols, 3, EXACT)
}

/// Products and rows say of a damaged node what the reference decode says.
#[test]
fn damaged_positions() -> Result {
    let (rows, cols) = (23, 130);
    for listing in listings() {
        let node = Sparse { listing, ..Sparse::PLAIN }.node(rows, cols, &mut Numbers(2))?;
        let mut numbers = Numbers(3);
        for _ in 0..60 {
            let mut node = node.clone();
            let at = numbers.next() as usize % node.segments.len();
            let mut bytes = node.segments[at].bytes().ok_or("no bytes")?.to_vec();
            for _ in 0..1 + numbers.next() % 3 {
                let place = numbers.next() as usize % bytes.len();
                bytes[place] = numbers.next() as u8;
            }
            node.segments[at] = bytes.into();
            let bytes = Parts::of(node).archive(rows, cols)?;
            let archive = parse(&bytes)?;
            let mut w = vec![0.0; rows * cols];
            let expected = view(&archive)?.decode_rows(0..rows, &mut w).err().map(|e| e.kind());
            let x = numbers.values(cols, 1.0);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let linear = Linear::new(view(&archive)?, isa)?;
                let (mut activations, mut scratch) = (Activations::new(), Scratch::new());
                activations.load(&x, cols, &[], Precision::Exact, isa)?;
                let mut y = vec![0.0; rows];
                let found = linear.multiply(&activations, &mut y, &mut scratch).err();
                assert_eq!(found.map(|e| e.kind()), expected, "{listing:?} on {isa:?}");
                let mut decoded = vec![0.0; rows * cols];
                let found = linear.decode_rows(0..rows, &mut decoded, &mut scratch).err();
                assert_eq!(found.map(|e| e.kind()), expected, "{listing:?} on {isa:?}");
                if expected.is_none() {
                    assert_eq!(bits(&decoded), bits(&w), "{listing:?} on {isa:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn outliers_beside_codes() -> Result {
    let (rows, cols) = (19, 70);
    for op in [sparse::Op::Add, sparse::Op::Replace] {
        let mut parts = Parts::of(Grouped::symmetric(4, 32).node(rows, cols, &mut Numbers(1))?);
        parts.terms.push((0, 0, Sparse { op, ..Sparse::PLAIN }.node(rows, cols, &mut Numbers(6))?));
        check(parts, rows, cols, 3, Expect { roundings: 2000, quantises: true })?;
    }
    Ok(())
}

#[test]
fn terms_at_their_places() -> Result {
    let mut numbers = Numbers(1);
    let (rows, cols) = (50, 200);
    let terms = vec![
        (0, 0, Trellis::PLAIN.node(37, cols, &mut numbers)?),
        (37, 0, Trellis { state_bits: 10, ..Trellis::PLAIN }.node(13, cols, &mut numbers)?),
        (3, 64, Grouped::symmetric(4, 16).node(30, 136, &mut numbers)?),
        (9, 128, Grouped::symmetric(3, 32).node(11, 64, &mut numbers)?),
    ];
    let loose = Expect { roundings: 2000, quantises: true };
    check(Parts { terms, ..Parts::default() }, rows, cols, 3, loose)?;
    // Where blocks of activations do not meet those of a term.
    let odd = vec![
        (0, 0, Trellis::PLAIN.node(rows, cols, &mut numbers)?),
        (4, 33, Grouped::symmetric(4, 16).node(30, 100, &mut numbers)?),
    ];
    check(Parts { terms: odd, ..Parts::default() }, rows, cols, 3, loose)
}

#[test]
fn transforms_of_both_sides() -> Result {
    let (rows, cols) = (48, 192);
    let permuted: Vec<u8> = (0..cols as u32).rev().flat_map(u32::to_le_bytes).collect();
    let scale = plain(DType::F32, 1, rows, &Numbers(2).values(rows, 1.0))?;
    let parts = Parts {
        input: vec![
            TransformEntry::Permute(permuted.into()),
            TransformEntry::SignHadamard { block: 64, seed: 5 },
        ],
        output: vec![
            TransformEntry::SignHadamard { block: 16, seed: 6 },
            TransformEntry::Scale(scale.into()),
        ],
        ..Parts::of(Trellis::PLAIN.node(rows, cols, &mut Numbers(1))?)
    };
    let bytes = parts.archive(rows, cols)?;
    let archive = parse(&bytes)?;
    let mut w = vec![0.0; rows * cols];
    view(&archive)?.decode_rows(0..rows, &mut w)?;
    let x = Numbers(3).values(2 * cols, 1.0);
    let (y, _) = reference(&w, cols, &x);
    let norm = y.iter().map(|y| y * y).sum::<f64>().sqrt();
    for isa in isas() {
        let linear = Linear::new(view(&archive)?, isa)?;
        let mut decoded = vec![0.0; rows * cols];
        linear.decode_rows(0..rows, &mut decoded, &mut Scratch::new())?;
        assert_eq!(bits(&decoded), bits(&w), "{isa:?}");
        for (precision, most) in [(Precision::Exact, 1e-6), (Precision::Fast, 0.02)] {
            let got = multiply(&linear, &x, precision, &mut Scratch::new())?;
            let errors = got.iter().zip(&y).map(|(got, y)| (f64::from(*got) - y).powi(2));
            let error = errors.sum::<f64>().sqrt() / norm;
            assert!(error < most, "{isa:?} {precision:?}: {error}");
        }
    }
    Ok(())
}

#[test]
fn threads_change_nothing() -> Result {
    let (rows, cols) = (700, 576);
    let mut numbers = Numbers(1);
    let terms = vec![
        (0, 0, Trellis { state_bits: 10, ..Trellis::PLAIN }.node(rows, cols, &mut numbers)?),
        (0, 0, Grouped::symmetric(4, 32).node(rows, cols, &mut numbers)?),
    ];
    let bytes = Parts { terms, ..Parts::default() }.archive(rows, cols)?;
    let archive = parse(&bytes)?;
    let linear = Linear::new(view(&archive)?, Isa::detect())?;
    let x = numbers.values(3 * cols, 1.0);
    for precision in [Precision::Exact, Precision::Fast] {
        let mut results = Vec::new();
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            let y = pool.install(|| {
                multiply(&linear, &x, precision, &mut Scratch::new()).map_err(|e| e.to_string())
            })?;
            results.push(bits(&y));
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
    Ok(())
}

#[test]
fn matrices_multiplied_at_once_give_what_each_gives() -> Result {
    let cols = 576;
    let mut numbers = Numbers(1);
    let turned = Parts {
        output: vec![TransformEntry::SignHadamard { block: 32, seed: 7 }],
        ..Parts::of(Grouped::symmetric(4, 32).node(96, cols, &mut numbers)?)
    };
    let zero = Grouped { twice: true, zero: ZeroOp::Add, ..Grouped::symmetric(4, 32) };
    let files = [
        Parts::of(Trellis::PLAIN.node(64, cols, &mut numbers)?).archive(64, cols)?,
        turned.archive(96, cols)?,
        Parts::of(zero.node(160, cols, &mut numbers)?).archive(160, cols)?,
        Parts::of(factors(32, cols)?).archive(32, cols)?,
        Parts::of(zero.node(33, cols, &mut numbers)?).archive(33, cols)?,
        Parts::of(Grouped::symmetric(8, 32).node(1, cols, &mut numbers)?).archive(1, cols)?,
    ];
    let archives = files.iter().map(|bytes| parse(bytes)).collect::<Result<Vec<_>>>()?;
    let isa = Isa::detect();
    let open = |archive| Ok(Linear::new(view(archive)?, isa)?);
    let matrices = archives.iter().map(open).collect::<Result<Vec<_>>>()?;
    let matrices: Vec<&Linear<'_>> = matrices.iter().collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build()?;
    let (mut x, mut scratch) = (Activations::new(), Scratch::new());
    // Parts of 32 rows of all but the last, and then not.
    let cases = [(1, Precision::Exact), (1, Precision::Fast), (5, Precision::Exact), (3, Precision::Fast)];
    for (tokens, precision, matrices) in
        cases.into_iter().flat_map(|(t, p)| [(t, p, &matrices[..5]), (t, p, &matrices[..])])
    {
        let values = numbers.values(tokens * cols, 1.0);
        x.load(&values, cols, &[], precision, isa)?;
        let mut each = Vec::new();
        for matrix in matrices {
            let mut y = vec![0.0; tokens * matrix.rows()];
            matrix.multiply(&x, &mut y, &mut scratch)?;
            each.extend(y);
        }
        let mut all = vec![1.0; each.len()];
        pool.install(|| Linear::multiply_all(matrices, &x, &mut all, &mut scratch))?;
        assert_eq!(bits(&all), bits(&each), "{tokens} tokens, {precision:?}");
        assert!(Linear::multiply_all(matrices, &x, &mut all[1..], &mut scratch).is_err());
    }
    Ok(())
}

#[test]
fn tokens_change_nothing_in_exact_products() -> Result {
    let (rows, cols) = (40, 200);
    let node = Grouped::symmetric(4, 32).node(rows, cols, &mut Numbers(1))?;
    let bytes = Parts::of(node).archive(rows, cols)?;
    let archive = parse(&bytes)?;
    let linear = Linear::new(view(&archive)?, Isa::detect())?;
    let x = Numbers(2).values(9 * cols, 1.0);
    let mut scratch = Scratch::new();
    let together = multiply(&linear, &x, Precision::Exact, &mut scratch)?;
    for (x, y) in x.chunks(cols).zip(together.chunks(rows)) {
        assert_eq!(bits(&multiply(&linear, x, Precision::Exact, &mut scratch)?), bits(y));
    }
    Ok(())
}

#[test]
fn buffers_stop_growing() -> Result {
    let (rows, cols) = (64, 576);
    let node = Grouped { twice: true, ..Grouped::symmetric(4, 32) }.node(rows, cols, &mut Numbers(1))?;
    let bytes = Parts::of(node).archive(rows, cols)?;
    let archive = parse(&bytes)?;
    let linear = Linear::new(view(&archive)?, Isa::detect())?;
    let x = Numbers(2).values(4 * cols, 1.0);
    let mut scratch = Scratch::new();
    multiply(&linear, &x, Precision::Fast, &mut scratch)?;
    let bytes = scratch.bytes();
    multiply(&linear, &x, Precision::Fast, &mut scratch)?;
    assert!(bytes > 0);
    assert_eq!(scratch.bytes(), bytes);
    Ok(())
}

#[test]
fn rejects_other_shapes() -> Result {
    let bytes = Parts::of(plain(DType::F32, 2, 3, &[0.0; 6])?).archive(2, 3)?;
    let archive = parse(&bytes)?;
    let isa = Isa::detect();
    let linear = Linear::new(view(&archive)?, isa)?;
    let (mut x, mut scratch) = (Activations::new(), Scratch::new());
    assert!(x.load(&[0.0; 5], 3, &[], Precision::Exact, isa).is_err());
    x.load(&[0.0; 4], 4, &[], Precision::Exact, isa)?;
    assert!(linear.multiply(&x, &mut [0.0; 2], &mut scratch).is_err());
    x.load(&[0.0; 3], 3, &[], Precision::Exact, isa)?;
    assert!(linear.multiply(&x, &mut [0.0; 3], &mut scratch).is_err());
    assert!(linear.decode_rows(1..3, &mut [0.0; 6], &mut scratch).is_err());
    assert!(linear.gather(&[2], &mut [0.0; 3], &mut scratch).is_err());
    Ok(())
}

#[test]
fn rejects_an_instruction_set_that_is_not_here() -> Result {
    let bytes = Parts::of(plain(DType::F32, 2, 3, &[0.0; 6])?).archive(2, 3)?;
    let archive = parse(&bytes)?;
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        assert!(Linear::new(view(&archive)?, isa).is_err());
        assert!(Activations::new().load(&[0.0], 1, &[], Precision::Exact, isa).is_err());
    }
    Ok(())
}

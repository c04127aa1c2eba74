use super::*;
use crate::encoding::testing::{bits as value_bits, damages, decoded, dense_f32, pattern, survives};
use crate::error::ErrorKind;
use proptest::prelude::*;

fn descriptor(codebooks: u8, bits: u8, (vector_rows, vector_cols): (u32, u32)) -> Descriptor {
    Descriptor { codebooks, bits, has_scale: false, vector_rows, vector_cols, scale_cols: 0 }
}

/// A node with patterned codes and entries, and its values by the formula of the spec.
fn node_and_values(
    d: Descriptor,
    rows: usize,
    cols: usize,
    scale_rows: usize,
) -> Result<(NodeData, Vec<f32>)> {
    let (height, width) = (d.vector_rows as usize, d.vector_cols as usize);
    let (books, per_book) = (usize::from(d.codebooks), 1usize << d.bits);
    let (down, across) = (rows.div_ceil(height), cols.div_ceil(width));
    let codes: Vec<u16> = (0..down * across * books).map(|i| ((i * 40_503 + 7) % per_book) as u16).collect();
    let elements = height * width;
    let entries: Vec<f32> = pattern(books * per_book * elements).iter().map(|v| v * 0.37).collect();
    let scale_cols = match d.scale_cols as usize {
        0 => cols.min(1),
        n => cols.div_ceil(n),
    };
    let scales: Vec<f32> = (0..scale_rows * scale_cols).map(|i| 0.3 + i as f32 * 0.7).collect();
    let mut values = vec![0.0; rows * cols];
    for (row, out) in values.chunks_mut(cols.max(1)).enumerate() {
        for (col, out) in out.iter_mut().enumerate() {
            let vector = row / height * across + col / width;
            let element = row % height * width + col % width;
            let of_book = |book: usize| {
                let code = usize::from(codes[vector * books + book]);
                entries[(book * per_book + code) * elements + element]
            };
            let mut v = of_book(0);
            for book in 1..books {
                v += of_book(book);
            }
            if d.has_scale {
                let down = if scale_rows == 1 { 0 } else { row / height };
                let across = if d.scale_cols == 0 { 0 } else { col / d.scale_cols as usize };
                v *= scales[down * scale_cols + across];
            }
            *out = v;
        }
    }
    let scale = match d.has_scale {
        true => Some(Arc::new(dense_f32(scale_rows, scale_cols, &scales)?)),
        false => None,
    };
    let entries = dense_f32(books * per_book, elements, &entries)?;
    Ok((pack(&d, rows as u64, cols as u64, &codes, entries, scale)?, values))
}

#[test]
fn vectors_of_any_shape_decode_at_every_edge() -> Result<()> {
    for vector in [(1, 1), (1, 8), (8, 1), (2, 3), (3, 2)] {
        for (books, bits) in [(1, 1), (1, 8), (2, 3), (3, 12), (1, 16)] {
            for (rows, cols) in [(1, 1), (2, 7), (3, 8), (4, 9), (5, 33), (0, 3), (3, 0)] {
                let (node, values) = node_and_values(descriptor(books, bits, vector), rows, cols, 0)?;
                assert_eq!(value_bits(&decoded(&node)?), value_bits(&values), "{vector:?} {books}x{bits}");
            }
        }
    }
    Ok(())
}

#[test]
fn scales_serve_their_columns_and_broadcast_along_rows() -> Result<()> {
    for scale_cols in [0, 2, 4, 32] {
        for (rows, cols) in [(5usize, 1), (5, 7), (6, 8), (7, 9)] {
            for scale_rows in [1, rows.div_ceil(2)] {
                let d = Descriptor { has_scale: true, scale_cols, ..descriptor(2, 4, (2, 2)) };
                let (node, values) = node_and_values(d, rows, cols, scale_rows)?;
                assert_eq!(value_bits(&decoded(&node)?), value_bits(&values), "{scale_cols} {rows} {cols}");
            }
        }
    }
    Ok(())
}

#[test]
fn codebooks_too_large_to_keep_are_read_entry_by_entry() -> Result<()> {
    let (node, values) = node_and_values(descriptor(2, 16, (1, 40)), 2, 90, 0)?;
    assert_eq!(value_bits(&decoded(&node)?), value_bits(&values));
    Ok(())
}

#[test]
fn rejects_descriptors_out_of_range() -> Result<()> {
    let base = descriptor(1, 2, (1, 2));
    for bad in [
        Descriptor { codebooks: 0, ..base },
        Descriptor { bits: 0, ..base },
        Descriptor { bits: 17, ..base },
        Descriptor { vector_rows: 0, ..base },
        Descriptor { vector_cols: 0, ..base },
        Descriptor { vector_rows: 257, vector_cols: 256, ..base },
        Descriptor { scale_cols: 2, ..base },
        Descriptor { has_scale: true, scale_cols: 3, ..base },
        Descriptor { has_scale: true, ..base },
    ] {
        let error = pack(&bad, 1, 2, &[0], dense_f32(4, 2, &[0.0; 8])?, None).err().map(|e| e.kind());
        assert_eq!(error, Some(ErrorKind::Structure), "{bad:?}");
    }
    Ok(())
}

#[test]
fn rejects_codes_that_do_not_fit() -> Result<()> {
    for (codes, kind) in [(vec![4], ErrorKind::Argument), (vec![0, 1], ErrorKind::Structure)] {
        let error = pack(&descriptor(1, 2, (1, 2)), 1, 2, &codes, dense_f32(4, 2, &[0.0; 8])?, None).err();
        assert_eq!(error.map(|e| e.kind()), Some(kind));
    }
    Ok(())
}

#[test]
fn verify_sees_padding_bits() -> Result<()> {
    let (mut node, values) = node_and_values(descriptor(1, 3, (1, 2)), 1, 2, 0)?;
    let mut codes = node.segments[0].bytes().unwrap_or(&[]).to_vec();
    codes[3] = 0x80;
    node.segments[0] = codes.into();
    let mut out = vec![0.0; 2];
    node.view()?.decode_rows(0..1, &mut out)?;
    assert_eq!(out, values);
    assert_eq!(node.view()?.verify().err().map(|e| e.kind()), Some(ErrorKind::Value));
    Ok(())
}

proptest! {
    #[test]
    fn decodes_to_naive_values(
        (rows, cols) in (0usize..9, 0usize..40),
        vector in (1u32..4, 1u32..9),
        (books, bits) in (1u8..4, 1u8..10),
        (has_scale, scale_vectors, whole) in (any::<bool>(), 0u32..4, any::<bool>()),
    ) {
        let scale_cols = if has_scale { scale_vectors * vector.1 } else { 0 };
        let d = Descriptor { has_scale, scale_cols, ..descriptor(books, bits, vector) };
        let scale_rows = if whole { 1 } else { rows.div_ceil(vector.0 as usize) };
        let (node, values) = node_and_values(d, rows, cols, scale_rows)?;
        prop_assert_eq!(value_bits(&decoded(&node)?), value_bits(&values));
    }

    #[test]
    fn damage_is_no_panic(damages in damages()) {
        let d = Descriptor { has_scale: true, scale_cols: 4, ..descriptor(2, 3, (2, 2)) };
        survives(&node_and_values(d, 3, 5, 2)?.0, &damages);
    }
}

use super::{Source, bytes, hash, weighted_error, with_threads};
use crate::encode::{CodebookParams, Matrix, Store, codebook, codebook_with, codebooks, decode};
use crate::error::ErrorKind;
use proptest::prelude::*;
use std::sync::Arc;

fn params(bits: u8, books: u8, vector_cols: u32) -> CodebookParams {
    CodebookParams { bits, codebooks: books, vector_cols, iterations: 6, ..CodebookParams::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_shape_encodes_with_some_of_the_signal(
        (rows, cols) in (1..14usize, 1..50usize),
        (vector_rows, vector_cols) in (1..4u32, 1..9u32),
        (bits, books) in (1..6u8, 1..4u8),
        scaled in any::<bool>(),
        groups in 0..3u32,
    ) {
        let source = Source::normal(rows, cols, (rows * 50 + cols) as u64);
        let params = CodebookParams {
            vector_rows,
            scaled,
            scale_cols: if scaled { groups * vector_cols } else { 0 },
            ..params(bits, books, vector_cols)
        };
        let node = codebook(&source.matrix(), &params).unwrap();
        // One entry a codebook at the mean is never worse than nothing, less what f16 takes off.
        prop_assert!(source.snr(&node) > -0.1, "{}", source.snr(&node));
    }
}

#[test]
fn more_bits_more_books_and_wider_beams_are_better() {
    let source = Source::normal(64, 256, 1);
    let snr = |params: &CodebookParams| source.snr(&codebook(&source.matrix(), params).unwrap());
    let (few, more) = (snr(&params(4, 1, 2)), snr(&params(6, 1, 2)));
    assert!(more > few + 3.0, "{more} {few}");
    let two = snr(&params(4, 2, 2));
    assert!(two > few + 6.0, "{two} {few}");
    let greedy = snr(&CodebookParams { beam: 1, ..params(4, 2, 2) });
    assert!(two > greedy, "{two} {greedy}");
}

#[test]
fn codebooks_beat_the_scalar_bound_at_2_bits() {
    // Lloyd-Max at 2 bits reaches 9.3 dB on a normal source.
    let source = Source::normal(128, 512, 2);
    let found = source.snr(&codebook(&source.matrix(), &params(8, 1, 4)).unwrap());
    assert!(found > 9.5, "{found}");
}

#[test]
fn as_many_entries_as_vectors_are_exact_but_for_storage() {
    let source = Source::normal(4, 32, 3);
    let params = CodebookParams { scaled: false, entries: Store::F32, iterations: 20, ..params(6, 1, 4) };
    assert!(source.snr(&codebook(&source.matrix(), &params).unwrap()) > 100.0);
}

#[test]
fn shared_codebooks_are_one_node() {
    let (a, b) = (Source::normal(32, 64, 4), Source::normal(16, 96, 5));
    let params = params(5, 2, 4);
    let shared = codebooks(&[a.matrix(), b.matrix()], &params).unwrap();
    let nodes = [&a, &b].map(|source| codebook_with(&source.matrix(), &params, &shared).unwrap());
    assert!(Arc::ptr_eq(&nodes[0].children[0], &nodes[1].children[0]));
    assert!(a.snr(&nodes[0]) > 8.0 && b.snr(&nodes[1]) > 8.0);
}

#[test]
fn weights_lower_the_weighted_error() {
    let source = Source::normal(64, 128, 6);
    let weights: Vec<f32> = (0..128).map(|j| if j % 4 == 0 { 30.0 } else { 1.0 }).collect();
    let error = |matrix: &Matrix<'_>| {
        let node = codebook(matrix, &params(6, 1, 4)).unwrap();
        weighted_error(&source.values, &decode(&node).unwrap(), &weights)
    };
    let plain = error(&source.matrix());
    let weighted = error(&source.matrix().with_weights(&weights).unwrap());
    assert!(weighted < 0.7 * plain, "{weighted} {plain}");
}

#[test]
fn zeros_come_back_as_zeros() {
    let source = Source { values: vec![0.0; 6 * 20], rows: 6, cols: 20 };
    let decoded = decode(&codebook(&source.matrix(), &params(4, 2, 4)).unwrap()).unwrap();
    assert!(decoded.iter().all(|v| *v == 0.0));
}

#[test]
fn rejects_codebooks_of_another_shape() {
    let source = Source::normal(8, 16, 7);
    let trained = codebooks(&[source.matrix()], &params(3, 1, 4)).unwrap();
    let error = codebook_with(&source.matrix(), &params(3, 1, 2), &trained).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument));
}

#[test]
fn rejects_vectors_without_elements() {
    let error = codebook(&Source::normal(8, 16, 7).matrix(), &params(3, 1, 0)).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument));
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let source = Source::normal(120, 256, 8);
    let with =
        |threads| with_threads(threads, || bytes(&codebook(&source.matrix(), &params(5, 2, 4)).unwrap()));
    assert_eq!(with(1), with(3));
}

/// Bytes that every machine must give.
#[test]
fn writes_the_same_bytes_as_ever() {
    let source = Source::normal(40, 200, 9);
    assert_eq!(hash(&codebook(&source.matrix(), &params(4, 2, 4)).unwrap()), "12e36e5f90d38741");
}

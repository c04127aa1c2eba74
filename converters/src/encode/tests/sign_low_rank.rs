use super::{Source, bytes, squared_error, weighted_error, with_threads};
use crate::encode::{Matrix, SignLowRankParams, Store, decode, sign_low_rank};
use crate::error::ErrorKind;

fn params(planes: u32, rank: u32) -> SignLowRankParams {
    SignLowRankParams { planes, rank, ..SignLowRankParams::default() }
}

/// The sum of the first nodes, for each number of them.
fn sums(matrix: &Matrix<'_>, params: &SignLowRankParams) -> Vec<Vec<f32>> {
    let mut sum = vec![0.0; matrix.values().len()];
    let mut all = Vec::new();
    for node in sign_low_rank(matrix, params).unwrap() {
        sum.iter_mut().zip(decode(&node).unwrap()).for_each(|(s, v)| *s += v);
        all.push(sum.clone());
    }
    all
}

fn snr(source: &Source, sum: &[f32]) -> f64 {
    let power: f64 = source.values.iter().map(|v| f64::from(*v).powi(2)).sum();
    10.0 * (power / squared_error(&source.values, sum)).log10()
}

#[test]
fn planes_of_a_normal_source_have_the_snr_of_sign_planes_and_more() {
    let source = Source::normal(256, 384, 1);
    // Planes of signs with one scale each have 4.40, 8.85, 12.4 dB on a normal source.
    let plain = [4.40, 8.85, 12.37];
    let mut last = [0.0; 3];
    for rank in [1, 16] {
        let found: Vec<f64> =
            sums(&source.matrix(), &params(3, rank)).iter().map(|sum| snr(&source, sum)).collect();
        for ((found, plain), last) in found.iter().zip(plain).zip(&mut last) {
            assert!(*found > plain - 0.25, "rank {rank}: {found}, plain {plain}");
            assert!(*found > *last, "rank {rank}: {found}, before {last}");
            *last = *found;
        }
        assert!(found[0] < if rank == 1 { 4.6 } else { 6.0 }, "{found:?}");
    }
}

#[test]
fn a_matrix_of_signs_comes_back_from_one_plane() {
    let (left, right) = ([1.0f32, 2.0, 0.5], [0.25f32, 3.0, 1.0, 8.0]);
    let values: Vec<f32> =
        (0..12).map(|i| left[i / 4] * right[i % 4] * if i * i % 5 < 2 { -1.0 } else { 1.0 }).collect();
    let source = Source { values, rows: 3, cols: 4 };
    let sums = sums(&source.matrix(), &SignLowRankParams { factors: Store::F32, ..params(1, 1) });
    assert!(snr(&source, &sums[0]) > 100.0);
}

#[test]
fn weights_lower_the_weighted_error() {
    let source = Source::normal(96, 128, 3);
    let weights: Vec<f32> = (0..128).map(|j| if j % 10 == 0 { 100.0 } else { 0.5 }).collect();
    let error = |matrix: &Matrix<'_>| {
        let sums = sums(matrix, &params(4, 4));
        weighted_error(&source.values, &sums[3], &weights)
    };
    let (plain, weighted) =
        (error(&source.matrix()), error(&source.matrix().with_weights(&weights).unwrap()));
    assert!(weighted < 0.9 * plain, "{weighted} {plain}");
}

/// Scaling the columns, decomposing and scaling back is what weights do without a scale in the file.
#[test]
fn weights_are_activation_scaling_folded_into_the_factors() {
    let source = Source::normal(64, 80, 4);
    let scales: Vec<f32> = (0..80).map(|j| [1.0, 2.0, 0.25, 4.0][j % 4]).collect();
    let weights: Vec<f32> = scales.iter().map(|s| s * s).collect();
    let scaled: Vec<f32> = source.values.iter().zip(scales.iter().cycle()).map(|(v, s)| v * s).collect();
    let params = SignLowRankParams { factors: Store::F32, ..params(3, 4) };
    let folded = sums(&source.matrix().with_weights(&weights).unwrap(), &params);
    let outer = sums(&Matrix::new(&scaled, 64, 80).unwrap(), &params);
    let back: Vec<f32> = outer[2].iter().zip(scales.iter().cycle()).map(|(v, s)| v / s).collect();
    let difference = squared_error(&folded[2], &back);
    assert!(difference < 1e-6 * squared_error(&back, &vec![0.0; back.len()]), "{difference}");
}

#[test]
fn zeros_have_planes_of_zeros() {
    let source = Source { values: vec![0.0; 6], rows: 2, cols: 3 };
    assert!(sums(&source.matrix(), &params(2, 2)).iter().flatten().all(|v| *v == 0.0));
}

#[test]
fn rejects_no_planes_and_too_many() {
    for planes in [0, 17] {
        let error = sign_low_rank(&Source::normal(3, 3, 4).matrix(), &params(planes, 1)).map(drop);
        assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument));
    }
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let source = Source::normal(200, 300, 5);
    let with = |threads| {
        with_threads(threads, || {
            let nodes = sign_low_rank(&source.matrix(), &params(2, 4)).unwrap();
            nodes.iter().map(bytes).collect::<Vec<_>>()
        })
    };
    assert_eq!(with(1), with(3));
}

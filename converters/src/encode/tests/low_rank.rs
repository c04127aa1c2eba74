use super::{Source, bytes, weighted_error, with_threads};
use crate::encode::low_rank::factors_by;
use crate::encode::random::SplitMix64;
use crate::encode::{GroupedParams, LowRankParams, Matrix, Store, decode, factors, grouped, low_rank};
use crate::error::ErrorKind;

fn params(rank: u32) -> LowRankParams {
    LowRankParams { rank, factors: Store::F32, ..LowRankParams::default() }
}

/// A sum of `rank` outer products with falling strength.
fn of_rank(rank: usize, rows: usize, cols: usize) -> Source {
    let mut random = SplitMix64::new(rank as u64);
    let mut vector = |len: usize| -> Vec<f32> { (0..len).map(|_| random.unit() as f32 - 0.5).collect() };
    let mut values = vec![0.0; rows * cols];
    for k in 0..rank {
        let (left, right) = (vector(rows), vector(cols));
        for (row, left) in values.chunks_exact_mut(cols).zip(left) {
            row.iter_mut().zip(&right).for_each(|(v, right)| *v += left * right / (k + 1) as f32);
        }
    }
    Source { values, rows, cols }
}

#[test]
fn a_matrix_of_small_rank_comes_back() {
    for (rows, cols) in [(20, 30), (30, 20), (200, 300), (300, 170), (1, 50), (50, 1)] {
        let source = of_rank(5.min(rows).min(cols), rows, cols);
        for sketch in [None, Some((13.min(rows).min(cols), 1))] {
            let factors = factors_by(&source.matrix(), 5.min(rows).min(cols), sketch).unwrap();
            let snr = source.snr(&low_rank(&factors, &params(0)).unwrap());
            assert!(snr > 100.0, "{rows} x {cols}: {snr}");
        }
    }
}

#[test]
fn the_sketch_is_close_to_the_whole_decomposition() {
    let source = Source::normal(150, 200, 1);
    let svd = faer::Mat::from_fn(150, 200, |i, j| f64::from(source.values[i * 200 + j])).thin_svd().unwrap();
    let singular = svd.S().column_vector();
    for rank in [1, 8, 30] {
        for sketch in [None, Some((rank + rank / 2 + 8, 6))] {
            let factors = factors_by(&source.matrix(), rank, sketch).unwrap();
            let error = source.error(&low_rank(&factors, &params(0)).unwrap());
            let energy = |from, to| (from..to).map(|k| singular[k] * singular[k]).sum::<f64>();
            let (missed, captured) = (error - energy(rank, 150), energy(0, rank));
            assert!(
                missed.abs() < if sketch.is_some() { 0.04 } else { 1e-4 } * captured,
                "{rank}: {missed} {captured}"
            );
        }
    }
}

#[test]
fn factors_of_a_higher_rank_begin_with_those_of_a_lower() {
    let source = of_rank(40, 40, 50);
    let low = factors(&source.matrix(), &params(3)).unwrap();
    let high = factors(&source.matrix(), &params(10)).unwrap();
    assert_eq!(low.a_t, high.a_t[..3 * 40]);
    assert_eq!(low.b, high.b[..3 * 50]);
}

#[test]
fn residual_factors_reduce_the_error() {
    let source = Source::normal(96, 160, 2);
    let base = grouped(&source.matrix(), &GroupedParams { bits: 2, ..GroupedParams::default() }).unwrap();
    let rest: Vec<f32> = source.values.iter().zip(decode(&base).unwrap()).map(|(v, d)| v - d).collect();
    let rest = Source { values: rest, ..source };
    let mut last = f64::INFINITY;
    for rank in [1, 2, 4, 8, 16, 32] {
        let params = LowRankParams { factors: Store::F16, ..params(rank) };
        let error = rest.error(&low_rank(&factors(&rest.matrix(), &params).unwrap(), &params).unwrap());
        assert!(error < last, "rank {rank}: {error} {last}");
        last = error;
    }
}

#[test]
fn weights_lower_the_weighted_error() {
    for (rows, cols) in [(30, 40), (200, 300)] {
        let source = Source::normal(rows, cols, 3);
        let weights: Vec<f32> = (0..cols).map(|j| if j % 10 == 0 { 100.0 } else { 0.5 }).collect();
        let error = |matrix: &Matrix<'_>| {
            let node = low_rank(&factors(matrix, &params(4)).unwrap(), &params(4)).unwrap();
            weighted_error(&source.values, &decode(&node).unwrap(), &weights)
        };
        let plain = error(&source.matrix());
        let weighted = error(&source.matrix().with_weights(&weights).unwrap());
        assert!(weighted < 0.95 * plain, "{weighted} {plain}");
    }
}

#[test]
fn a_matrix_of_zeros_has_factors_of_zeros() {
    let source = Source { values: vec![0.0; 100 * 90], rows: 100, cols: 90 };
    let found = factors(&source.matrix(), &params(2)).unwrap();
    assert!(found.a_t.iter().chain(&found.b).all(|v| *v == 0.0));
}

#[test]
fn rejects_rank_0() {
    let error = factors(&Source::normal(3, 3, 4).matrix(), &params(0)).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument));
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let source = Source::normal(200, 300, 5);
    for sketch in [None, Some((20, 2))] {
        let with = |threads| {
            with_threads(threads, || {
                let factors = factors_by(&source.matrix(), 8, sketch).unwrap();
                bytes(&low_rank(&factors, &LowRankParams::default()).unwrap())
            })
        };
        assert_eq!(with(1), with(3));
    }
}

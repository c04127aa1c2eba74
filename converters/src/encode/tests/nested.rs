use super::{Source, bytes, squared_error, weighted_error, with_threads};
use crate::encode::{Matrix, NestedMap, NestedParams, Store, decode, nested};
use crate::error::ErrorKind;
use cmf_format::NodeData;

fn params(map: NestedMap, bits: &[u8]) -> NestedParams {
    NestedParams { bits: bits.to_vec(), map, ..NestedParams::default() }
}

/// The sum of the first nodes, for each number of them.
fn sums(nodes: &[NodeData]) -> Vec<Vec<f32>> {
    let mut sum: Vec<f32> = Vec::new();
    let mut all = Vec::new();
    for node in nodes {
        let values = decode(node).unwrap();
        sum.resize(values.len(), 0.0);
        sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
        all.push(sum.clone());
    }
    all
}

/// Signal to noise of each level in dB.
fn snrs(source: &Source, params: &NestedParams) -> Vec<f64> {
    let power: f64 = source.values.iter().map(|v| f64::from(*v).powi(2)).sum();
    let nodes = nested(&source.matrix(), params).unwrap();
    sums(&nodes).iter().map(|sum| 10.0 * (power / squared_error(&source.values, sum)).log10()).collect()
}

#[test]
fn tables_split_upward_stay_near_the_best_for_each_width() {
    let source = Source::normal(24, 768, 1);
    let found = snrs(&source, &params(NestedMap::Table, &[2, 3, 4, 5, 6]));
    // Lloyd-Max for each width: 9.30, 14.62, 20.22, 26.0, 31.9 dB of an infinite source; tables of
    // a row's own are better where they are many for its weights.
    for (found, least) in found.iter().zip([9.3, 14.4, 19.8, 25.5, 31.5]) {
        assert!(*found > least, "{found} {least}");
    }
    let alone = snrs(&source, &params(NestedMap::Table, &[4]))[0];
    assert!(alone > found[2] - 0.01 && alone < found[2] + 0.6, "{alone} {found:?}");
}

#[test]
fn integers_are_good_at_every_level() {
    let source = Source::normal(24, 768, 2);
    let bits = [2, 3, 4, 6];
    let found = snrs(&source, &params(NestedMap::Integer, &bits));
    // Codes fitted for the last level alone, cut, with grids of least squares: what slicing gives.
    let sliced: Vec<f64> = bits
        .iter()
        .map(|bits| {
            let alone = nested(&source.matrix(), &params(NestedMap::Integer, &[6])).unwrap();
            let codes = codes(&alone[0], source.rows, source.cols);
            sliced_snr(&source, &codes, 6 - bits)
        })
        .collect();
    let mean = |snrs: &[f64]| snrs.iter().sum::<f64>() / snrs.len() as f64;
    assert!(mean(&found) > mean(&sliced) + 0.3, "{found:?} {sliced:?}");
    assert!(found.iter().zip(&sliced).take(3).all(|(f, s)| *f > s + 0.5), "{found:?} {sliced:?}");
    for (bits, found) in bits.iter().zip(&found) {
        let alone = snrs(&source, &params(NestedMap::Integer, &[*bits]))[0];
        assert!(*found > alone - 2.5, "{bits}: {found} {alone}");
    }
}

/// The codes of a node from its planes.
fn codes(node: &NodeData, rows: usize, cols: usize) -> Vec<u8> {
    let stride = cols.div_ceil(32) * 4;
    let bit = |plane: usize, i: usize| {
        let bytes = node.segments[plane].bytes().unwrap();
        bytes[i / cols * stride + i % cols / 8] >> (i % cols % 8) & 1
    };
    let code = |i: usize| (0..node.segments.len()).fold(0, |code, plane| code << 1 | bit(plane, i));
    (0..rows * cols).map(code).collect()
}

/// Signal to noise of cut codes with the best grid for each row.
fn sliced_snr(source: &Source, codes: &[u8], dropped: u8) -> f64 {
    let (mut power, mut error) = (0.0, 0.0);
    for (values, codes) in source.values.chunks(source.cols).zip(codes.chunks(source.cols)) {
        let n = values.len() as f64;
        let pairs = || values.iter().zip(codes).map(|(v, c)| (f64::from(*v), f64::from(c >> dropped)));
        let (x, c) = pairs().fold((0.0, 0.0), |s, (x, c)| (s.0 + x / n, s.1 + c / n));
        let (cx, cc) = pairs().fold((0.0, 0.0), |s, (v, k)| (s.0 + (v - x) * (k - c), s.1 + (k - c).powi(2)));
        power += pairs().map(|(v, _)| v * v).sum::<f64>();
        error += pairs().map(|(v, k)| (v - x - cx / cc * (k - c)).powi(2)).sum::<f64>();
    }
    10.0 * (power / error).log10()
}

#[test]
fn groups_fit_better_than_rows() {
    let source = Source::heavy(8, 512, 3);
    let whole = params(NestedMap::Integer, &[3, 5]);
    let grouped = NestedParams { group_cols: 64, ..whole.clone() };
    let pairs = snrs(&source, &whole).into_iter().zip(snrs(&source, &grouped));
    for (whole, grouped) in pairs {
        assert!(grouped > whole + 0.5, "{whole} {grouped}");
    }
}

#[test]
fn weights_lower_the_weighted_error() {
    let source = Source::normal(16, 256, 4);
    let weights: Vec<f32> = (0..256).map(|j| if j % 10 == 0 { 100.0 } else { 0.1 }).collect();
    for map in [NestedMap::Table, NestedMap::Integer] {
        let errors = |matrix: &Matrix<'_>| -> Vec<f64> {
            let nodes = nested(matrix, &params(map, &[2, 3, 4])).unwrap();
            sums(&nodes).iter().map(|sum| weighted_error(&source.values, sum, &weights)).collect()
        };
        let (plain, weighted) =
            (errors(&source.matrix()), errors(&source.matrix().with_weights(&weights).unwrap()));
        let better = plain.iter().zip(&weighted).all(|(plain, weighted)| weighted < plain);
        assert!(better, "{map:?}: {plain:?} {weighted:?}");
    }
}

#[test]
fn few_and_equal_values_are_kept() {
    for map in [NestedMap::Table, NestedMap::Integer] {
        for values in [vec![0.0; 6], vec![0.5; 6], vec![1.0, -1.0, 1.0, -1.0, -1.0, 1.0]] {
            let source = Source { values, rows: 2, cols: 3 };
            let params = NestedParams { table: Store::F32, ..params(map, &[1, 2, 8]) };
            let nodes = nested(&source.matrix(), &params).unwrap();
            for sum in sums(&nodes) {
                let error = squared_error(&source.values, &sum).sqrt();
                assert!(error < 2e-3, "{map:?} {:?} {sum:?}", source.values);
            }
        }
    }
}

#[test]
fn weights_of_zero_are_no_trouble() {
    let source = Source::normal(3, 40, 6);
    for weights in [vec![0.0; 40], (0..40).map(|j| (j % 2) as f32).collect()] {
        for map in [NestedMap::Table, NestedMap::Integer] {
            let matrix = source.matrix().with_weights(&weights).unwrap();
            let nodes = nested(&matrix, &params(map, &[2, 4])).unwrap();
            assert!(sums(&nodes).iter().flatten().all(|v| v.abs() < 1.0), "{map:?}");
        }
    }
}

#[test]
fn rejects_bits_that_do_not_ascend() {
    for bits in [&[][..], &[0, 2], &[3, 3], &[4, 2], &[9]] {
        let error = nested(&Source::normal(3, 3, 4).matrix(), &params(NestedMap::Table, bits)).map(drop);
        assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument), "{bits:?}");
    }
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let source = Source::normal(20, 100, 5);
    for map in [NestedMap::Table, NestedMap::Integer] {
        let with = |threads| {
            with_threads(threads, || {
                let nodes = nested(&source.matrix(), &params(map, &[2, 3, 5])).unwrap();
                nodes.iter().map(bytes).collect::<Vec<_>>()
            })
        };
        assert_eq!(with(1), with(3));
    }
}

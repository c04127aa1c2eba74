use super::{Source, bytes, hash, squared_error, weighted_error, with_threads};
use crate::encode::{Codes, GroupedParams, Matrix, Method, Range, Store, Zero, decode, grouped};
use crate::error::ErrorKind;
use cmf_format::encoding::View;
use proptest::prelude::*;

fn params(bits: u8) -> GroupedParams {
    GroupedParams { bits, ..GroupedParams::default() }
}

fn nested(inner: GroupedParams) -> Store {
    Store::Grouped(Box::new(inner))
}

/// Relative and absolute error of a stored scale or zero point.
fn store_error(store: &Store) -> (f32, f32) {
    match store {
        Store::F32 => (0.0, f32::MIN_POSITIVE),
        Store::F16 => (2f32.powi(-11), 2f32.powi(-25)),
        Store::Bf16 => (2f32.powi(-9), f32::MIN_POSITIVE),
        Store::F8E4m3 => (2f32.powi(-4), 2f32.powi(-10)),
        // Rounded up: nothing is cut off.
        Store::F8E8m0 => (0.0, 0.0),
        Store::Grouped(_) => unreachable!(),
    }
}

fn any_store() -> impl Strategy<Value = Store> {
    prop_oneof![
        Just(Store::F32),
        Just(Store::F16),
        Just(Store::Bf16),
        Just(Store::F8E4m3),
        Just(Store::F8E8m0),
    ]
}

fn any_integer_params() -> impl Strategy<Value = GroupedParams> {
    let zero = prop_oneof![Just(Zero::None), Just(Zero::Code), Just(Zero::Subtract), Just(Zero::Add)];
    let range = prop_oneof![Just(Range::Full), Just(Range::Symmetric)];
    (2..=8u8, 0..9u32, 0..40u32, zero, range, any_store(), any_store()).prop_map(
        |(bits, group_rows, group_cols, zero, range, scale, zero_store)| GroupedParams {
            bits,
            group_rows,
            group_cols,
            zero,
            range,
            scale,
            zero_store: if zero_store == Store::F8E8m0 { Store::F16 } else { zero_store },
            ..GroupedParams::default()
        },
    )
}

fn any_matrix() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    let value = prop_oneof![
        8 => -1.0f32..1.0,
        1 => Just(0.0f32),
        1 => -20.0f32..20.0,
    ];
    (1..12usize, 1..70usize, prop_oneof![Just(1.0f32), Just(0.02), Just(1e-6), Just(30.0)]).prop_flat_map(
        move |(rows, cols, scale)| {
            proptest::collection::vec(value.clone(), rows * cols)
                .prop_map(move |values| (rows, cols, values.into_iter().map(|v| v * scale).collect()))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Round to nearest misses a value by half a step, by up to one step where the levels are not
    /// the same on both sides or the zero point is rounded to a level, and by what the store of
    /// scale and zero point takes off.
    #[test]
    fn rounding_error_is_bounded(params in any_integer_params(), (rows, cols, values) in any_matrix()) {
        let matrix = Matrix::new(&values, rows, cols).unwrap();
        let node = match grouped(&matrix, &params) {
            Ok(node) => node,
            // E4M3 holds no scale above 448.
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::Unsupported);
                return Ok(());
            }
        };
        let decoded = decode(&node).unwrap();
        let scales = decode(&node.children[0]).unwrap();
        let zeros = node.children.get(1).map(|zero| decode(zero).unwrap());
        let group_rows = if params.group_rows == 0 { rows } else { params.group_rows as usize };
        let group_cols = if params.group_cols == 0 { cols } else { params.group_cols as usize };
        let across = cols.div_ceil(group_cols);
        let steps = (1u32 << params.bits) as f32;
        let greatest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let (relative, absolute) = store_error(&params.scale);
        let (zero_relative, zero_absolute) = store_error(&params.zero_store);
        for (index, (value, decoded)) in values.iter().zip(&decoded).enumerate() {
            let group = index / cols / group_rows * across + index % cols / group_cols;
            let scale = scales[group].abs();
            let zero = zeros.as_ref().map_or(0.0, |zeros| zeros[group].abs());
            let allowed = match params.zero {
                Zero::None if params.range == Range::Symmetric => 0.5 * scale,
                Zero::None | Zero::Code => scale,
                Zero::Add => 0.5 * scale + zero * 2.0 * zero_relative + zero_absolute,
                Zero::Subtract => 0.5 * scale + scale * (zero * 2.0 * zero_relative + zero_absolute),
            };
            let cut = steps * (2.0 * relative * scale + 2.0 * absolute);
            let bound = allowed + cut + 1e-5 * greatest;
            prop_assert!((value - decoded).abs() <= bound, "{value} {decoded} {scale} {bound}");
        }
    }

    #[test]
    fn search_is_never_worse_than_rounding(
        mut params in any_integer_params(),
        (rows, cols, values) in any_matrix(),
        weighted in any::<bool>(),
    ) {
        let weights: Vec<f32> = (0..cols).map(|i| if weighted { 0.1 + (i % 7) as f32 } else { 1.0 }).collect();
        let mut matrix = Matrix::new(&values, rows, cols).unwrap();
        if weighted {
            matrix = matrix.with_weights(&weights).unwrap();
        }
        params.method = Method::Rtn;
        let Ok(rtn) = grouped(&matrix, &params) else { return Ok(()) };
        params.method = Method::Mse;
        let mse = grouped(&matrix, &params).unwrap();
        let error = |node| weighted_error(&values, &decode(node).unwrap(), &weights);
        prop_assert!(error(&mse) <= error(&rtn) * 1.0001 + 1e-30, "{} {}", error(&mse), error(&rtn));
    }

    #[test]
    fn half_quadratic_never_raises_the_sum_of_errors(
        mut params in any_integer_params(),
        (rows, cols, values) in any_matrix(),
    ) {
        let matrix = Matrix::new(&values, rows, cols).unwrap();
        params.method = Method::Rtn;
        let Ok(rtn) = grouped(&matrix, &params) else { return Ok(()) };
        params.method = Method::Hqq;
        let hqq = grouped(&matrix, &params).unwrap();
        let error = |node| -> f64 {
            let errors = values.iter().zip(decode(node).unwrap());
            errors.map(|(v, d)| f64::from((v - d).abs())).sum()
        };
        prop_assert!(error(&hqq) <= error(&rtn) * 1.0001 + 1e-30);
    }

    #[test]
    fn every_code_map_and_method_encodes_any_matrix(
        (rows, cols, values) in any_matrix(),
        group_rows in 0..5u32,
        group_cols in 0..40u32,
        codes in prop_oneof![
            Just((4, Codes::E2m1)), Just((6, Codes::E3m2)), Just((8, Codes::E4m3)), Just((8, Codes::E5m2)),
            Just((4, Codes::Nf4)), Just((1, Codes::Binary)), Just((2, Codes::Table(vec![0.0, 1.0, 3.0, -2.0]))),
        ],
        zero in prop_oneof![Just(Zero::None), Just(Zero::Add)],
    ) {
        let matrix = Matrix::new(&values, rows, cols).unwrap();
        let mut errors = Vec::new();
        for method in [Method::Rtn, Method::Hqq, Method::Mse] {
            let (bits, codes) = codes.clone();
            let params = GroupedParams { bits, codes, group_rows, group_cols, zero, method, ..params(4) };
            let decoded = decode(&grouped(&matrix, &params).unwrap()).unwrap();
            errors.push(squared_error(&values, &decoded));
        }
        prop_assert!(errors[2] <= errors[0] * 1.0001 + 1e-30);
    }
}

#[test]
fn values_on_the_grid_come_back_exactly() {
    for zero in [Zero::None, Zero::Code, Zero::Subtract, Zero::Add] {
        for bits in 2..=8u8 {
            // Both ends of the codes are there, and the scale is a power of two.
            let low = if zero == Zero::None { -(1 << (bits - 1)) } else { -3 };
            let values: Vec<f32> = (0..256 * 3).map(|i| (low + i % (1 << bits)) as f32 * 0.25).collect();
            for method in [Method::Rtn, Method::Mse, Method::Hqq] {
                let params = GroupedParams { zero, method, group_cols: 256, ..params(bits) };
                let node = grouped(&Matrix::new(&values, 3, 256).unwrap(), &params).unwrap();
                assert_eq!(decode(&node).unwrap(), values, "{bits} bits, {zero:?}, {method:?}");
            }
        }
    }
}

#[test]
fn zeros_come_back_as_zeros() {
    let values = vec![0.0; 5 * 33];
    for zero in [Zero::None, Zero::Code, Zero::Subtract, Zero::Add] {
        for scale in [Store::F32, Store::F16, Store::F8E8m0, Store::F8E4m3, nested(params(4))] {
            for method in [Method::Rtn, Method::Mse, Method::Hqq] {
                let params = GroupedParams { zero, scale: scale.clone(), method, ..params(4) };
                let node = grouped(&Matrix::new(&values, 5, 33).unwrap(), &params).unwrap();
                assert!(decode(&node).unwrap().iter().all(|v| *v == 0.0), "{params:?}");
            }
        }
    }
}

#[test]
fn constants_come_back_within_a_rounding_of_the_store() {
    for value in [1.0f32, -0.37, 1e-3, -512.0] {
        let values = vec![value; 4 * 64];
        for zero in [Zero::None, Zero::Code, Zero::Subtract, Zero::Add] {
            for method in [Method::Rtn, Method::Mse, Method::Hqq] {
                let node = grouped(
                    &Matrix::new(&values, 4, 64).unwrap(),
                    &GroupedParams { zero, method, ..params(4) },
                )
                .unwrap();
                let bound = value.abs() * 2f32.powi(-11);
                for decoded in decode(&node).unwrap() {
                    assert!((decoded - value).abs() <= bound, "{value} {decoded} {zero:?} {method:?}");
                }
            }
        }
    }
}

#[test]
fn values_too_small_to_divide_by_come_back_within_the_smallest_step() {
    let values: Vec<f32> = (0..64).map(|i| f32::from_bits(i * 1000)).collect();
    for scale in [Store::F32, Store::Bf16, Store::F16, Store::F8E8m0] {
        for zero in [Zero::None, Zero::Code, Zero::Subtract, Zero::Add] {
            let params = GroupedParams { scale: scale.clone(), zero, zero_store: Store::F32, ..params(4) };
            let node = grouped(&Matrix::new(&values, 1, 64).unwrap(), &params).unwrap();
            for (value, decoded) in values.iter().zip(decode(&node).unwrap()) {
                assert!((value - decoded).abs() <= f32::MIN_POSITIVE, "{value:e} {decoded:e} {params:?}");
            }
        }
    }
}

#[test]
fn a_scale_that_overflows_its_store_is_an_error() {
    let values = [1e7f32; 64];
    let error = grouped(&Matrix::new(&values, 1, 64).unwrap(), &params(4)).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::Unsupported));
}

#[test]
fn empty_matrices_are_encoded() {
    for (rows, cols) in [(0, 0), (0, 7), (7, 0)] {
        for zero in [Zero::None, Zero::Code, Zero::Add] {
            for (group_rows, group_cols) in [(1, 64), (0, 0)] {
                let params = GroupedParams { zero, group_rows, group_cols, ..params(4) };
                let node = grouped(&Matrix::new(&[], rows, cols).unwrap(), &params).unwrap();
                assert_eq!(decode(&node).unwrap(), Vec::<f32>::new());
            }
        }
    }
}

#[test]
fn half_quadratic_beats_rounding_on_heavy_tails() {
    let source = Source::heavy(64, 768, 3);
    for bits in [3, 4] {
        for zero in [Zero::Add, Zero::Subtract] {
            let snr = |method| {
                source
                    .snr(&grouped(&source.matrix(), &GroupedParams { zero, method, ..params(bits) }).unwrap())
            };
            let (rtn, hqq) = (snr(Method::Rtn), snr(Method::Hqq));
            assert!(hqq > rtn + 0.2, "{bits} bits: {hqq} {rtn}");
        }
    }
}

#[test]
fn scales_quantised_again_lose_little() {
    let source = Source::normal(64, 768, 4);
    let six_bits = nested(GroupedParams { range: Range::Unsigned, group_cols: 8, ..params(6) });
    let signed = nested(GroupedParams { group_cols: 16, ..params(8) });
    let three_bits = nested(GroupedParams { zero: Zero::Add, group_rows: 16, group_cols: 1, ..params(3) });
    // Without a sign of the scale, the code of the longer end is of little use: half a dB.
    for (inner, zero, loss) in [
        (six_bits.clone(), Zero::Add, 0.2),
        (six_bits, Zero::None, 0.6),
        (signed.clone(), Zero::Add, 0.05),
        (signed, Zero::None, 0.05),
        (three_bits.clone(), Zero::Add, 1.5),
        (three_bits, Zero::None, 0.9),
    ] {
        let plain = GroupedParams { zero, group_cols: 32, method: Method::Mse, ..params(4) };
        let double = GroupedParams { scale: inner.clone(), zero_store: inner.clone(), ..plain.clone() };
        let snr = |params| source.snr(&grouped(&source.matrix(), params).unwrap());
        let (plain, double) = (snr(&plain), snr(&double));
        assert!(double > plain - loss, "{zero:?} {inner:?}: {double} {plain}");
    }
}

#[test]
fn rejects_scales_nested_too_deep() {
    let mut deep = params(4);
    for _ in 0..5 {
        deep = GroupedParams { scale: nested(deep), ..params(4) };
    }
    let error = grouped(&Source::normal(4, 64, 1).matrix(), &deep).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument));
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let source = Source::normal(300, 500, 5);
    for method in [Method::Rtn, Method::Mse, Method::Hqq] {
        for (group_rows, group_cols) in [(1, 64), (16, 16), (64, 1), (0, 0)] {
            let params = GroupedParams { zero: Zero::Add, method, group_rows, group_cols, ..params(4) };
            let with =
                |threads| with_threads(threads, || bytes(&grouped(&source.matrix(), &params).unwrap()));
            assert_eq!(with(1), with(3), "{params:?}");
        }
    }
}

/// Bytes that every machine must give: a change here changes what recipes have written so far.
#[test]
fn writes_the_same_bytes_as_ever() {
    let source = Source::normal(40, 200, 6);
    let hashes: Vec<String> = [
        params(4),
        GroupedParams { method: Method::Mse, ..params(4) },
        GroupedParams { method: Method::Mse, zero: Zero::Add, ..params(3) },
        GroupedParams { method: Method::Mse, zero: Zero::Code, ..params(4) },
        GroupedParams { method: Method::Hqq, zero: Zero::Subtract, ..params(4) },
        GroupedParams {
            codes: Codes::E2m1,
            scale: Store::F8E8m0,
            group_cols: 32,
            method: Method::Mse,
            ..params(4)
        },
        GroupedParams { codes: Codes::Nf4, method: Method::Mse, ..params(4) },
    ]
    .iter()
    .map(|params| hash(&grouped(&source.matrix(), params).unwrap()))
    .collect();
    assert_eq!(
        hashes,
        [
            "be2234b9dba3e603",
            "c8fc578ac52e2643",
            "d5ee270c283ff473",
            "03944ecf32125286",
            "11accf99d78c134e",
            "2dc01368423b45b4",
            "43ea09835eb4b4cb"
        ]
    );
}

#[test]
fn view_says_what_the_parameters_asked_for() {
    let source = Source::normal(8, 64, 7);
    let params = GroupedParams { zero: Zero::Code, group_cols: 16, ..params(3) };
    let node = grouped(&source.matrix(), &params).unwrap();
    let View::Grouped(view) = node.view().unwrap() else { panic!("not grouped") };
    assert_eq!((view.descriptor().bits, view.descriptor().group_cols), (3, 16));
    // 8 x 4 zero points of 3 bits, rows padded to 4 bytes.
    assert_eq!(node.children[1].stored_bytes(), 8 * 4);
}

#[test]
fn unknown_fields_are_refused() {
    assert!(toml::from_str::<GroupedParams>("bitz = 3").is_err());
}

#[test]
fn parameters_survive_toml() -> Result<(), Box<dyn std::error::Error>> {
    let params = GroupedParams {
        codes: Codes::Table(vec![-1.0, 0.0, 0.5, 1.0]),
        scale: nested(GroupedParams { scale: Store::F8E8m0, ..params(6) }),
        ..params(2)
    };
    assert_eq!(toml::from_str::<GroupedParams>(&toml::to_string(&params)?)?, params);
    Ok(())
}

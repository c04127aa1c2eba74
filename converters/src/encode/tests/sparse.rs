use super::{Source, bytes, squared_error, with_threads};
use crate::encode::{
    GroupedParams, Matrix, Outliers, Select, SparseLayout, SparseOp, SparseParams, Store, decode, grouped,
    outliers, sparse,
};
use crate::error::ErrorKind;
use proptest::prelude::*;

fn select(source: &Source, select: Select) -> Outliers {
    outliers(&source.matrix(), &select, Some(&GroupedParams::default())).unwrap()
}

/// The definition: sort by magnitude, then by place.
fn largest_by_sorting(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

proptest! {
    #[test]
    fn fraction_takes_the_largest_and_the_first_of_equals(
        values in proptest::collection::vec(prop_oneof![-3.0f32..3.0, Just(1.0), Just(-1.0), Just(0.0)], 1..300),
        fraction in 0.0f64..=1.0,
    ) {
        let matrix = Matrix::new(&values, 1, values.len()).unwrap();
        let found = outliers(&matrix, &Select::Fraction(fraction), None).unwrap();
        let count = (fraction * values.len() as f64).round() as usize;
        let found: Vec<usize> = found.indices().collect();
        prop_assert_eq!(found, largest_by_sorting(&values, count));
    }

    #[test]
    fn any_selection_comes_back_at_its_place(
        (rows, cols) in (1..9usize, 1..50usize),
        fraction in 0.0f64..=1.0,
        layout in prop_oneof![Just(SparseLayout::Csr), Just(SparseLayout::Bitmap), Just(SparseLayout::Smallest)],
        by_error in any::<bool>(),
    ) {
        let source = Source::heavy(rows, cols, (rows * cols) as u64);
        let kind = if by_error { Select::Error(fraction) } else { Select::Fraction(fraction) };
        let entries = select(&source, kind);
        let params = SparseParams { values: Store::F32, layout, ..SparseParams::default() };
        let mut expected = vec![0.0; rows * cols];
        entries.indices().for_each(|index| expected[index] = source.values[index]);
        prop_assert_eq!(decode(&sparse(&entries, &params).unwrap()).unwrap(), &expected[..]);
        let rest = entries.removed(&source.matrix());
        prop_assert!(rest.iter().zip(&expected).zip(&source.values).all(|((r, e), v)| r + e == *v));
    }
}

#[test]
fn sigmas_take_what_lies_beyond() {
    let mut source = Source::normal(10, 100, 1);
    source.values[123] = 5.0;
    source.values[777] = -5.0;
    let found: Vec<usize> = select(&source, Select::Sigmas(10.0)).indices().collect();
    assert_eq!(found, [123, 777]);
}

#[test]
fn nonzero_takes_every_nonzero_entry() {
    let source = Source { values: vec![0.0, 1.0, -0.0, -2.0, 0.0, 3.0], rows: 2, cols: 3 };
    let found = select(&source, Select::Nonzero);
    assert_eq!(
        (found.row_offsets, found.columns, found.values),
        (vec![0, 1, 3], vec![1, 0, 2], vec![1.0, -2.0, 3.0])
    );
}

#[test]
fn removal_by_error_helps_more_than_by_magnitude() {
    // Rows of very different size: the largest entries all lie in the large rows.
    let mut source = Source::heavy(64, 256, 2);
    for (index, value) in source.values.iter_mut().enumerate() {
        *value *= 1.0 + (index / 256) as f32 * 0.05;
    }
    let base = GroupedParams { bits: 3, ..GroupedParams::default() };
    let error_without = |kind: Select| {
        let entries = outliers(&source.matrix(), &kind, Some(&base)).unwrap();
        assert_eq!(entries.len(), 328);
        let rest = entries.replaced_by_mean(&source.matrix(), 1, 64);
        let mut decoded = decode(&grouped(&Matrix::new(&rest, 64, 256).unwrap(), &base).unwrap()).unwrap();
        entries.indices().for_each(|index| decoded[index] = source.values[index]);
        squared_error(&source.values, &decoded)
    };
    let (by_error, by_magnitude) =
        (error_without(Select::Error(0.02)), error_without(Select::Fraction(0.02)));
    let none = source.error(&grouped(&source.matrix(), &base).unwrap());
    assert!(by_error < 0.97 * by_magnitude && by_magnitude < none, "{by_error} {by_magnitude} {none}");
}

#[test]
fn smallest_layout_is_the_smaller() {
    let source = Source::normal(40, 320, 3);
    for fraction in [0.01, 0.05, 0.08, 0.5] {
        let entries = select(&source, Select::Fraction(fraction));
        let size = |layout| {
            sparse(&entries, &SparseParams { layout, ..SparseParams::default() }).unwrap().stored_bytes()
        };
        let least = size(SparseLayout::Csr).min(size(SparseLayout::Bitmap));
        assert_eq!(size(SparseLayout::Smallest), least, "{fraction}");
    }
}

#[test]
fn values_may_be_quantised() {
    let source = Source::normal(20, 100, 4);
    let entries = select(&source, Select::Fraction(0.1));
    let params = SparseParams {
        values: Store::Grouped(Box::new(GroupedParams {
            bits: 8,
            group_cols: 32,
            ..GroupedParams::default()
        })),
        op: SparseOp::Replace,
        ..SparseParams::default()
    };
    let decoded = decode(&sparse(&entries, &params).unwrap()).unwrap();
    for (index, value) in entries.indices().zip(&entries.values) {
        assert!((decoded[index] - value).abs() < 0.005 * 0.1 + 0.01 * value.abs());
    }
}

#[test]
fn rejects_errors_of_very_large_groups() {
    let source = Source::normal(200, 200, 5);
    let base = GroupedParams { group_rows: 0, group_cols: 0, ..GroupedParams::default() };
    let error = outliers(&source.matrix(), &Select::Error(0.01), Some(&base)).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::Unsupported));
}

#[test]
fn rejects_fraction_above_1() {
    let source = Source::normal(2, 2, 5);
    let error = outliers(&source.matrix(), &Select::Fraction(1.5), None).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument));
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let source = Source::heavy(100, 256, 6);
    let with = |threads| {
        with_threads(threads, || {
            bytes(&sparse(&select(&source, Select::Error(0.01)), &SparseParams::default()).unwrap())
        })
    };
    assert_eq!(with(1), with(3));
}

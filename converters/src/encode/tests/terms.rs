use super::{Source, with_threads};
use crate::encode::{
    CodebookParams, DenseParams, Element, GroupedParams, LosslessParams, LowRankParams, Method, Select,
    SparseOp, SparseParams, Store, TermParams, Zero, decode, terms,
};
use crate::error::ErrorKind;
use cmf_format::NodeData;

fn grouped(bits: u8) -> TermParams {
    TermParams::Grouped(GroupedParams { bits, zero: Zero::Add, ..GroupedParams::default() })
}

fn sparse(select: Select, op: SparseOp) -> TermParams {
    TermParams::Sparse(SparseParams { select, op, ..SparseParams::default() })
}

fn low_rank(rank: u32, alternations: u32) -> TermParams {
    TermParams::LowRank(LowRankParams { rank, alternations, ..LowRankParams::default() })
}

/// What a reader gets: each term added to those before, or replacing them where it lists entries.
fn sum(source: &Source, params: &[TermParams], nodes: &[NodeData]) -> Vec<f32> {
    let mut total = vec![0.0; source.values.len()];
    for (params, node) in params.iter().zip(nodes) {
        for (total, value) in total.iter_mut().zip(decode(node).unwrap()) {
            match params {
                TermParams::Sparse(SparseParams { op: SparseOp::Replace, .. }) if value != 0.0 => {
                    *total = value
                }
                _ => *total += value,
            }
        }
    }
    total
}

fn snr(source: &Source, params: &[TermParams]) -> f64 {
    let nodes = terms(&source.matrix(), params).unwrap();
    assert_eq!(nodes.len(), params.len());
    let decoded = sum(source, params, &nodes);
    let power: f64 = source.values.iter().map(|v| f64::from(*v).powi(2)).sum();
    10.0 * (power / super::squared_error(&source.values, &decoded)).log10()
}

#[test]
fn every_term_improves_on_those_before() {
    let source = Source::heavy(96, 256, 1);
    for op in [SparseOp::Add, SparseOp::Replace] {
        let all = [grouped(3), sparse(Select::Error(0.01), op), low_rank(8, 0)];
        let found: Vec<f64> = (1..=3).map(|count| snr(&source, &all[..count])).collect();
        assert!(found[0] + 1.0 < found[1] && found[1] < found[2], "{op:?} {found:?}");
    }
}

#[test]
fn a_second_grouped_term_refines_the_first() {
    let source = Source::normal(32, 256, 2);
    let (one, two) = (snr(&source, &[grouped(4)]), snr(&source, &[grouped(4), grouped(4)]));
    assert!(two > one + 20.0, "{one} {two}");
}

#[test]
fn alternations_never_hurt_and_help_a_coarse_base() {
    let source = Source::normal(96, 256, 3);
    let with = |rounds| snr(&source, &[grouped(2), low_rank(16, rounds)]);
    let (none, some) = (with(0), with(4));
    assert!(some > none + 0.02, "{none} {some}");
}

#[test]
fn outliers_beside_a_codebook_help() {
    let source = Source::heavy(64, 256, 4);
    let codebook =
        || TermParams::Codebook(CodebookParams { bits: 6, iterations: 5, ..CodebookParams::default() });
    let alone = snr(&source, &[codebook()]);
    let both = snr(&source, &[codebook(), sparse(Select::Fraction(0.01), SparseOp::Add)]);
    assert!(both > alone + 1.0, "{both} {alone}");
}

#[test]
fn pruned_weights_are_kept_by_one_sparse_term() {
    let mut source = Source::normal(20, 64, 5);
    source.values.iter_mut().enumerate().for_each(|(i, v)| *v = if i % 3 == 0 { *v } else { 0.0 });
    let exact = TermParams::Sparse(SparseParams {
        select: Select::Nonzero,
        values: Store::F32,
        ..SparseParams::default()
    });
    let nodes = terms(&source.matrix(), &[exact]).unwrap();
    assert_eq!(decode(&nodes[0]).unwrap(), source.values);
}

#[test]
fn lossless_and_dense_terms_keep_their_type_exactly() {
    let mut source = Source::normal(20, 64, 6);
    source.values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    for term in [
        TermParams::Lossless(LosslessParams { dtype: Element::Bf16 }),
        TermParams::Dense(DenseParams { dtype: Element::Bf16 }),
    ] {
        let nodes = terms(&source.matrix(), &[term]).unwrap();
        assert_eq!(decode(&nodes[0]).unwrap(), source.values);
    }
}

#[test]
fn rejects_no_terms() {
    let error = terms(&Source::normal(2, 2, 7).matrix(), &[]).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument));
}

#[test]
fn rejects_error_outliers_without_a_grouped_term() {
    let error =
        terms(&Source::normal(2, 2, 7).matrix(), &[sparse(Select::Error(0.1), SparseOp::Add)]).map(drop);
    assert_eq!(error.map_err(|e| e.kind()), Err(ErrorKind::BadArgument));
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let source = Source::heavy(96, 256, 8);
    let all = [
        TermParams::Grouped(GroupedParams { method: Method::Mse, ..GroupedParams::default() }),
        sparse(Select::Error(0.01), SparseOp::Add),
        low_rank(8, 2),
    ];
    let with = |threads| {
        with_threads(threads, || {
            terms(&source.matrix(), &all).unwrap().iter().map(super::bytes).collect::<Vec<_>>()
        })
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn unknown_fields_of_a_term_are_refused() {
    assert!(toml::from_str::<TermParams>("encoding = 'grouped'\nbitz = 3").is_err());
    assert!(toml::from_str::<TermParams>("encoding = 'grouped'\nbits = 3").is_ok());
}

use super::{Source, hash, with_threads};
use crate::encode::random::SplitMix64;
use crate::encode::{
    Calibration, Feedback, FeedbackParams, Plane, TermParams, TrellisCode, TrellisParams, planes,
};
use std::sync::Arc;

const COLS: usize = 128;

/// Second moments whose eigenvalues fall as those of a language model's activations do, in directions
/// that inputs share alike.
fn moments() -> Vec<f32> {
    let mut random = SplitMix64::new(11);
    let signs: Vec<f32> = (0..COLS).map(|_| if random.unit() < 0.5 { 1.0 } else { -1.0 }).collect();
    // Entry of a Hadamard matrix.
    let entry = |i: usize, k: usize| if (i & k).count_ones().is_multiple_of(2) { 1.0f32 } else { -1.0 };
    let eigenvalue = |k: usize| 1.0 / (k as f32 + 0.5);
    let moment = |i: usize, j: usize| {
        let sum: f32 = (0..COLS).map(|k| entry(i, k) * entry(j, k) * eigenvalue(k)).sum();
        signs[i] * signs[j] * sum / COLS as f32
    };
    (0..COLS * COLS).map(|at| moment(at / COLS, at % COLS)).collect()
}

fn terms(of: &[(u8, f64, f64)]) -> Vec<TermParams> {
    let term = |(step_bits, damping, power_cost): &(u8, f64, f64)| {
        TermParams::Trellis(TrellisParams {
            state_bits: 12,
            step_bits: *step_bits,
            code: TrellisCode::Hashed,
            scale_rows: 32,
            damping: *damping,
            power_cost: *power_cost,
            ..TrellisParams::default()
        })
    };
    of.iter().map(term).collect()
}

/// Cost of the whole and the levels.
fn encoded(params: &[TermParams]) -> (f64, Vec<Plane>) {
    let source = Source::normal(256, COLS, 3);
    let moments = moments();
    let feedback = params.iter().filter_map(TermParams::feedback).map(|of| {
        let FeedbackParams { damping, power_cost } = of;
        (of, Arc::new(Feedback::new(&moments, COLS, damping, power_cost).unwrap()))
    });
    let feedback = feedback.collect();
    let diagonal = moments.iter().step_by(COLS + 1).copied().collect();
    let calibration = Calibration { diagonal, moments: Some(moments), feedback };
    planes(&source.matrix(), params, Some(&calibration), None).unwrap()
}

fn decibels(params: &[TermParams]) -> Vec<f64> {
    let (whole, planes) = encoded(params);
    planes.iter().map(|plane| 10.0 * (whole / plane.cost).log10()).collect()
}

/// Steps of 2, 1 and 1 bits, beside the same where power is free.
#[test]
fn every_level_is_near_the_best_of_its_rate() {
    let fine = decibels(&terms(&[(2, 1.0, 0.1), (1, 0.3, 0.3), (1, 0.1, 0.2)]));
    for (found, stated) in fine.iter().zip([14.9, 20.8, 26.1]) {
        assert!(*found > stated - 0.15, "stated {stated} dB, found {fine:.2?}");
    }
    let free = decibels(&terms(&[(2, 1.0, 0.0), (1, 0.3, 0.0), (1, 0.1, 0.0)]));
    for ((fine, free), gain) in fine.iter().zip(&free).zip([0.05, 0.35, 0.5]) {
        assert!(*fine > free + gain, "{fine:.2} dB with a price of power, {free:.2} dB without");
    }
    let alone = decibels(&terms(&[(2, 0.01, 0.05)]))[0];
    assert!(fine[0] > alone - 1.0, "{:.2} dB, one rate alone {alone:.2} dB", fine[0]);
}

#[test]
fn levels_are_the_same_for_every_number_of_threads() {
    let params = terms(&[(2, 1.0, 0.1), (1, 0.3, 0.3)]);
    let hashes = |threads| {
        let (_, planes) = with_threads(threads, || encoded(&params));
        planes.iter().map(|plane| hash(&plane.node)).collect::<Vec<_>>()
    };
    assert_eq!(hashes(1), hashes(3));
}

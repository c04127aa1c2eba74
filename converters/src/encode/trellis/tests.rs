use super::viterbi::{Buffers, Fixed};
use super::*;
use crate::encode::random::SplitMix64;

/// Box and Muller's normal deviates.
fn gaussian(seed: u64, count: usize) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    let mut next = || {
        let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * random.unit()).cos()) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// The value of weight `t` straight from the definition (spec: trellis).
fn by_definition(trellis: &Trellis, codes: &[u8], t: usize) -> f32 {
    let (bits, k) = (trellis.state_bits() as usize, trellis.step_bits() as usize);
    let n = codes.len();
    let bit = |p: usize| usize::from(codes[p / k]) >> (p % k) & 1;
    // A multiple of the ring's length is added so that the position is not negative.
    let window =
        (0..bits).map(|i| bit((n * k * bits + k * (t + 1) + i - bits) % (n * k)) << i).sum::<usize>();
    trellis.values()[window]
}

#[test]
fn values_are_those_of_the_ring() -> Result<()> {
    let mut scratch = Scratch::default();
    for (state_bits, step_bits) in [(6, 4), (7, 1), (8, 1), (8, 2), (8, 4), (9, 3), (10, 1), (12, 2), (12, 3)]
    {
        let trellis = Trellis::byte_sum(state_bits, step_bits)?;
        for n in [1, 2, 3, 5, 12, 13, 100] {
            let targets: Vec<f32> = gaussian(n as u64, n).iter().map(|t| t * trellis.rms()).collect();
            let (mut codes, mut values) = (vec![0; n], vec![0.0; n]);
            trellis.encode(&targets, &mut scratch, &mut codes, &mut values);
            assert!(codes.iter().all(|code| *code < 1 << step_bits));
            for (t, value) in values.iter().enumerate() {
                assert_eq!(
                    *value,
                    by_definition(&trellis, &codes, t),
                    "L {state_bits} k {step_bits} n {n} t {t}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn vectors_find_the_paths_of_scalars() -> Result<()> {
    for step_bits in 1..=4 {
        for state_bits in [6, 8, 9, 11, 12] {
            let trellis = Trellis::byte_sum(state_bits, step_bits)?;
            let scalar = trellis.fixed.clone().scalar();
            let targets: Vec<f32> = gaussian(7, 57).iter().map(|t| t * 2.0 * trellis.rms()).collect();
            for start in [None, Some(1)] {
                let run = |fixed: &Fixed| {
                    let mut buffers = Buffers::default();
                    fixed.forward(targets.iter().copied(), start, &mut buffers);
                    let fallen: Vec<usize> = (0..targets.len())
                        .flat_map(|step| (0..1 << fixed.group_bits()).map(move |group| (step, group)))
                        .map(|(step, group)| fixed.fallen(&buffers, step, group))
                        .collect();
                    (buffers.groups, fallen)
                };
                assert!(run(&trellis.fixed) == run(&scalar), "L {state_bits} k {step_bits} start {start:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn no_closed_path_of_few_bits_is_better() -> Result<()> {
    let trellis = Trellis::byte_sum(6, 2)?;
    let targets: Vec<f32> = gaussian(3, 5).iter().map(|t| t * trellis.rms()).collect();
    let (mut codes, mut values) = (vec![0; 5], vec![0.0; 5]);
    trellis.encode(&targets, &mut Scratch::default(), &mut codes, &mut values);
    let error = |values: &[f32]| targets.iter().zip(values).map(|(t, v)| (t - v) * (t - v)).sum::<f32>();
    let found = error(&values);
    for path in 0..1 << 10 {
        codes.iter_mut().enumerate().for_each(|(step, code)| *code = (path >> (2 * step) & 3) as u8);
        trellis.decode(&codes, &mut values);
        assert!(found <= error(&values) * 1.001, "path {path:#x}");
    }
    Ok(())
}

#[test]
fn odd_targets_still_give_a_path() -> Result<()> {
    let trellis = Trellis::byte_sum(8, 2)?;
    let targets = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, 0.0, -0.0, 1e-40, -1e30].repeat(4);
    let (mut codes, mut values) = (vec![0; targets.len()], vec![0.0; targets.len()]);
    trellis.encode(&targets, &mut Scratch::default(), &mut codes, &mut values);
    assert!(values.iter().all(|v| v.is_finite()));
    Trellis::byte_sum(8, 2)?.encode(&[], &mut Scratch::default(), &mut [], &mut []);
    Ok(())
}

#[test]
fn refuses_widths_that_the_format_has_not() {
    for (state_bits, step_bits) in [(5, 1), (17, 1), (8, 0), (8, 5)] {
        assert!(Trellis::byte_sum(state_bits, step_bits).is_err());
    }
    assert!(Trellis::table(6, 1, vec![0.0; 63]).is_err());
    assert!(Trellis::table(6, 1, vec![f32::NAN; 64]).is_err());
}

/// Signal-to-noise ratios in dB on a Gaussian source after each of `planes` planes, each of which
/// stands for what those before it left.
fn planes(trellis: &Trellis, planes: usize) -> Vec<f64> {
    const LENGTH: usize = 1024;
    let mut residual = gaussian(1, 16 * LENGTH);
    let power = |values: &[f32]| values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
    let signal = power(&residual);
    let mut scratch = Scratch::default();
    let (mut codes, mut values) = (vec![0; LENGTH], vec![0.0; LENGTH]);
    let mut plane = || {
        let rms = (power(&residual) / residual.len() as f64).sqrt() as f32;
        let scale = trellis.best_scale(rms);
        for path in residual.chunks_exact_mut(LENGTH) {
            path.iter_mut().for_each(|target| *target /= scale);
            trellis.encode(path, &mut scratch, &mut codes, &mut values);
            path.iter_mut().zip(&values).for_each(|(target, value)| *target = (*target - value) * scale);
        }
        10.0 * (signal / power(&residual)).log10()
    };
    (0..planes).map(|_| plane()).collect()
}

/// The rows that the design states, and what the trained tables reach beyond them.
#[test]
fn planes_reach_the_stated_signal_to_noise() -> Result<()> {
    let stated: [(Trellis, &[f64]); 6] = [
        (Trellis::byte_sum_with(12, 1, 2_459_782_711, 3_212_142_825)?, &[5.62, 11.24, 16.85]),
        (Trellis::trained(8, 1)?, &[5.55, 11.08, 16.59]),
        (Trellis::trained(10, 1)?, &[5.65, 11.29, 16.92]),
        (Trellis::trained(8, 2)?, &[11.28, 22.5]),
        (Trellis::hashed(10, 1)?, &[5.67]),
        (Trellis::hashed(10, 2)?, &[11.46, 22.9]),
    ];
    for (trellis, stated) in &stated {
        for (found, stated) in planes(trellis, stated.len()).iter().zip(*stated) {
            let (bits, k) = (trellis.state_bits(), trellis.step_bits());
            assert!(*found > stated - 0.15, "L {bits} k {k}: stated {stated} dB, found {found:.3} dB");
        }
    }
    Ok(())
}

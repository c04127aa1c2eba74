//! Evaluation and calibration against plain computations.

mod common;

use cmf_candle::cut::{self, CutModel};
use cmf_candle::eval::{Sensitivity, Subject, score};
use cmf_candle::moments::{self, Note};
use cmf_candle::weights::Dense;
use cmf_candle::{AnyModel, Config, Error, ErrorKind, Text, Windows, var_builder};
use cmf_converters::moments::{ROW_WEIGHTS_PREFIX, SecondMoments};
use cmf_loader::{Budget, Levels, Model};
use common::{HIDDEN, Kind, TestResult, Tiny, text, tokenizer, written};
use std::collections::BTreeMap;

const CONTEXT: usize = 16;

fn windows(windows: usize) -> cmf_candle::Result<Windows> {
    let tokenizer = Text::parse(tokenizer().to_string().as_bytes())?;
    Windows::new(tokenizer.encode(&text(200))?, windows * CONTEXT, CONTEXT)
}

/// Negative log-likelihoods of the second halves, from f64 logits.
fn expected(tiny: &Tiny, windows: &Windows) -> Vec<f64> {
    let mut found = Vec::new();
    for ids in windows.iter() {
        let logits = tiny.forward(ids, &mut |_, _| ());
        for i in CONTEXT / 2..CONTEXT - 1 {
            let sum: f64 = logits[i].iter().map(|l| l.exp()).sum();
            found.push(sum.ln() - logits[i][ids[i + 1] as usize]);
        }
    }
    found
}

#[test]
fn perplexity_is_that_of_the_second_halves() -> TestResult {
    let tiny = Tiny::new(Kind::Llama, true);
    let (_directory, path) = written(&tiny.plain())?;
    let model = AnyModel::open(&path)?;
    let (config, windows) = (model.card()?.config().clone(), windows(5)?);
    let weights = Dense(model);
    let subject = Subject { weights: &weights, config: &config };
    let (_, scores) = score(&[(subject, subject.states(&windows, &|_, _| ())?)], None, &windows, &|_, _| ())?;
    let nll = expected(&tiny, &windows);
    let perplexity = (nll.iter().sum::<f64>() / nll.len() as f64).exp();
    assert_eq!((scores.len(), scores[0].tokens), (1, nll.len()));
    assert!((scores[0].perplexity / perplexity - 1.0).abs() < 1e-5, "{} {perplexity}", scores[0].perplexity);
    assert_eq!(scores[0].kl_mean, None);
    Ok(())
}

#[test]
fn bytes_are_those_of_the_scored_tokens() -> TestResult {
    let tokenizer = Text::parse(tokenizer().to_string().as_bytes())?;
    let windows = Windows::new(tokenizer.encode("w1 w22 w3 w4 w5 w66 w7 w38")?, 8, 4)?;
    assert_eq!(windows.bytes_from(3), " w4".len() as u64 + " w38".len() as u64);
    assert_eq!(windows.bytes_from(2), " w3 w4".len() as u64 + " w7 w38".len() as u64);
    Ok(())
}

fn cut<'m>(model: &'m Model, budget: Budget) -> cmf_candle::Result<Dense<CutModel<'m>>> {
    Ok(Dense(CutModel::new(model, Some(model.plan(budget)?))?))
}

fn compare(
    subject: &Dense<CutModel<'_>>,
    baseline: &Dense<CutModel<'_>>,
    config: &Config,
) -> cmf_candle::Result<cmf_candle::eval::Scores> {
    let windows = windows(4)?;
    let (subject, baseline) = (Subject { weights: subject, config }, Subject { weights: baseline, config });
    let states = |s: Subject<'_>| s.states(&windows, &|_, _| ());
    let base = (baseline, states(baseline)?);
    let (own, scores) = score(&[(subject, states(subject)?)], Some(&base), &windows, &|_, _| ())?;
    assert!(own.is_some_and(|own| own.kl_mean.is_none()));
    scores.into_iter().next().ok_or_else(|| Error::new(ErrorKind::BadArgument, "one model, one score"))
}

#[test]
fn divergence_of_a_model_from_itself_is_0() -> TestResult {
    let (_directory, path) = written(&Tiny::new(Kind::Llama, true).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let scores = compare(&cut(&model, Budget::Maximum)?, &cut(&model, Budget::Maximum)?, &config)?;
    assert!(scores.kl_mean.is_some_and(|kl| kl.abs() < 1e-12), "{scores:?}");
    assert_eq!(scores.top1_agreement, Some(1.0));
    Ok(())
}

#[test]
fn divergence_falls_as_the_budget_grows() -> TestResult {
    let (_directory, path) = written(&Tiny::new(Kind::Llama, true).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let most = model.plan(Budget::Maximum)?.maximum_bytes();
    let least = model.plan(Budget::Minimum)?.minimum_bytes();
    let base = cut(&model, Budget::Maximum)?;
    let mut found = Vec::new();
    for budget in [Budget::Minimum, Budget::Bytes((least + most) / 2), Budget::Maximum] {
        found.push(compare(&cut(&model, budget)?, &base, &config)?.kl_mean.ok_or("no divergence")?);
    }
    assert!(found[0] > found[1] && found[1] > found[2], "{found:?}");
    Ok(())
}

#[test]
fn moments_are_the_mean_of_the_outer_products() -> TestResult {
    let tiny = Tiny::new(Kind::Llama, false);
    let (directory, path) = written(&tiny.plain())?;
    let windows = windows(6)?;
    let model = AnyModel::open(&path)?;
    let config = model.card()?.config().clone();
    let text = directory.path().join("text.txt");
    std::fs::write(&text, "w1")?;
    let note = Note::new(&path, &text, &windows)?;
    let builder = moments::collect(&Dense(model), &config, &windows, &note, None, &|_, _| ())?;
    let output = directory.path().join("moments.cmf");
    moments::write(&builder, &output, false)?;
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for ids in windows.iter() {
        tiny.forward(ids, &mut |name, x| {
            let sum = sums.entry(name.to_owned()).or_insert_with(|| vec![0.0; x.len() * x.len()]);
            for (i, a) in x.iter().enumerate() {
                for (j, b) in x.iter().enumerate() {
                    sum[i * x.len() + j] += a * b / (6 * CONTEXT) as f64;
                }
            }
        });
    }
    let moments = Model::open(&output)?;
    let of_rows = |name: &str| name.starts_with(ROW_WEIGHTS_PREFIX);
    assert_eq!(moments.tensors().filter(|tensor| !of_rows(tensor.name())).count(), sums.len());
    for tensor in moments.tensors().filter(|tensor| !of_rows(tensor.name())) {
        let expected = &sums[tensor.name()];
        let mut found = vec![0.0; expected.len()];
        tensor.decode(Levels::All, &mut found)?;
        let difference = common::difference(&found, expected);
        assert!(difference < 1e-5, "{}: {difference}", tensor.name());
    }
    assert!(moments::write(&builder, &output, false).is_err(), "an output is not overwritten");
    Ok(())
}

#[test]
fn var_builder_gives_tensors_of_the_shape_asked_for_alone() -> TestResult {
    let tiny = Tiny::new(Kind::Llama, true);
    let (_directory, path) = written(&tiny.progressive())?;
    let model = Model::open(&path)?;
    let builder = var_builder(&model, None, candle_core::DType::F32, &candle_core::Device::Cpu)?;
    let name = "model.layers.1.mlp.down_proj.weight";
    let (shape, values) = &tiny.tensors[name];
    let layer = builder.pp("model").pp("layers").pp(1).pp("mlp").pp("down_proj");
    let found = layer.get(shape.as_slice(), "weight")?.flatten_all()?.to_vec1::<f32>()?;
    let expected: Vec<_> = values.iter().map(|v| f64::from(*v)).collect();
    assert!(common::difference(&found, &expected) < 1e-5);
    assert!(layer.get((HIDDEN, HIDDEN), "weight").is_err());
    assert!(layer.get(HIDDEN, "bias").is_err());
    assert!(layer.contains_tensor("weight") && !layer.contains_tensor("bias"));
    Ok(())
}

/// The divergence of predictions from those of `base`, both logits by position.
fn divergence(logits: &[Vec<f64>], base: &[Vec<f64>]) -> f64 {
    let log_sum = |logits: &[f64]| logits.iter().map(|l| l.exp()).sum::<f64>().ln();
    let of = |(own, base): (&Vec<f64>, &Vec<f64>)| -> f64 {
        let (own_sum, base_sum) = (log_sum(own), log_sum(base));
        base.iter().zip(own).map(|(b, q)| (b - base_sum).exp() * (b - base_sum - q + own_sum)).sum()
    };
    logits.iter().zip(base).map(of).sum::<f64>() / base.len() as f64
}

#[test]
fn an_error_of_the_head_costs_what_calibration_says() -> TestResult {
    let (mut tiny, name) = (Tiny::new(Kind::Llama, false), "lm_head.weight");
    let (directory, path) = written(&tiny.plain())?;
    let windows = windows(6)?;
    let model = AnyModel::open(&path)?;
    let config = model.card()?.config().clone();
    let note = Note::new(&path, &path, &windows)?;
    let sensitivity = Sensitivity { matrices: BTreeMap::new(), embedding: 1.0 };
    let builder = moments::collect(&Dense(model), &config, &windows, &note, Some(&sensitivity), &|_, _| ())?;
    let output = directory.path().join("moments.cmf");
    moments::write(&builder, &output, false)?;
    let moments = cmf_converters::moments::open(&output)?;
    let weights = tiny.tensors[name].1.clone();
    let Some(SecondMoments::Full(h)) = moments.of(name, HIDDEN)? else { return Err("no moments".into()) };
    let rows = moments.row_weights(name, weights.len() / HIDDEN)?.ok_or("no weights of rows")?;
    let cost = |values: &[f32]| -> f64 {
        let of = |(row, weight): (&[f32], &f32)| {
            let products = h
                .chunks_exact(HIDDEN)
                .zip(row)
                .map(|(h, a)| a * h.iter().zip(row).map(|(h, b)| h * b).sum::<f32>());
            f64::from(products.sum::<f32>() * weight)
        };
        values.chunks_exact(HIDDEN).zip(&rows).map(of).sum()
    };
    let forward =
        |tiny: &Tiny| windows.iter().flat_map(|ids| tiny.forward(ids, &mut |_, _| ())).collect::<Vec<_>>();
    let base = forward(&tiny);
    let mut state = 7u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 1e-2
    };
    let errors: Vec<f32> = weights.iter().map(|_| noise()).collect();
    let changed = &mut tiny.tensors.get_mut(name).ok_or("no head")?.1;
    changed.iter_mut().zip(&errors).for_each(|(w, e)| *w += e);
    let (found, expected) = (
        divergence(&forward(&tiny), &base),
        moments.sensitivity(name).ok_or("no sensitivity")? * cost(&errors) / cost(&weights),
    );
    assert!((0.8..1.25).contains(&(found / expected)), "{found} {expected}");
    Ok(())
}

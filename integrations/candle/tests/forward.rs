//! The model on candle tensors against its forward pass in f64.

mod common;

use cmf_candle::generate::Generator;
use cmf_candle::llama::{Cache, Llama};
use cmf_candle::packed::PackedModel;
use cmf_candle::weights::{Dense, Weights};
use cmf_candle::{AnyModel, Config, cut};
use cmf_loader::{Budget, Model};
use common::{Kind, TestResult, Tiny, difference, ids, written};

/// Logits after all of `ids`, token by token.
fn logits(weights: &dyn Weights, config: &Config, ids: &[u32]) -> cmf_candle::Result<Vec<Vec<f32>>> {
    let model = Llama::load(weights, config)?;
    let mut cache = Cache::new(config);
    let one = |id: &u32| model.logits(&model.hidden(&[*id], &mut cache)?);
    ids.iter().map(one).collect()
}

fn dense_agrees(kind: Kind, tied: bool) -> TestResult {
    let tiny = Tiny::new(kind, tied);
    let (_directory, path) = written(&tiny.plain())?;
    let model = AnyModel::open(&path)?;
    let config = model.card()?.config().clone();
    let ids = ids(20);
    let expected = tiny.forward(&ids, &mut |_, _| ());
    for (found, expected) in logits(&Dense(model), &config, &ids)?.iter().zip(&expected) {
        let difference = difference(found, expected);
        assert!(difference < 1e-5, "{difference}");
    }
    Ok(())
}

#[test]
fn llama_is_its_forward_pass_in_f64() -> TestResult {
    dense_agrees(Kind::Llama, true)
}

#[test]
fn head_of_its_own_is_used() -> TestResult {
    dense_agrees(Kind::Llama, false)
}

#[test]
fn biases_of_qwen2_are_added() -> TestResult {
    dense_agrees(Kind::Qwen2, true)
}

#[test]
fn queries_and_keys_of_qwen3_are_normalised() -> TestResult {
    dense_agrees(Kind::Qwen3, false)
}

#[test]
fn mixtures_add_up_what_the_router_chooses() -> TestResult {
    dense_agrees(Kind::Mixtral, true)?;
    dense_agrees(Kind::Qwen3Moe, false)
}

#[test]
fn packed_matrices_give_what_dense_ones_give() -> TestResult {
    let tiny = Tiny::new(Kind::Llama, true);
    let (_directory, path) = written(&tiny.progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let packed = PackedModel::new(&model, model.plan(Budget::Maximum)?);
    let ids = ids(20);
    let expected = tiny.forward(&ids, &mut |_, _| ());
    for (found, expected) in logits(&packed, &config, &ids)?.iter().zip(&expected) {
        let difference = difference(found, expected);
        assert!(difference < 1e-5, "{difference}");
    }
    Ok(())
}

#[test]
fn prompt_read_at_once_is_one_read_token_by_token() -> TestResult {
    let tiny = Tiny::new(Kind::Llama, true);
    let (_directory, path) = written(&tiny.progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let packed = PackedModel::new(&model, model.plan(Budget::Maximum)?);
    let llama = Llama::load(&packed, &config)?;
    let ids = ids(20);
    let mut generator = Generator::new(&llama);
    generator.read(&ids)?;
    let expected = tiny.forward(&ids, &mut |_, _| ());
    let difference = difference(generator.logits(), expected.last().ok_or("no logits")?);
    assert!(difference < 1e-5, "{difference}");
    Ok(())
}

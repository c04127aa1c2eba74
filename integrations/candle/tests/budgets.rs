//! Packed weights under budgets.

mod common;

use cmf_candle::cut::{self, CutModel};
use cmf_candle::llama::{Cache, Llama};
use cmf_candle::moving::Moving;
use cmf_candle::packed::PackedModel;
use cmf_candle::weights::{Dense, Weights};
use cmf_candle::{Config, ErrorKind};
use cmf_loader::{Budget, Model};
use common::{Kind, TestResult, Tiny, difference, ids, written};

fn last(weights: &dyn Weights, config: &Config, ids: &[u32]) -> cmf_candle::Result<Vec<f32>> {
    let model = Llama::load(weights, config)?;
    model.logits(&model.hidden(ids, &mut Cache::new(config))?)
}

/// Budgets from the minimum to the maximum.
fn budgets(model: &Model) -> cmf_candle::Result<Vec<Budget>> {
    let plan = model.plan(Budget::Maximum)?;
    let (low, high) = (plan.minimum_bytes(), plan.maximum_bytes());
    Ok((0..=6).map(|i| Budget::Bytes(low + (high - low) * i / 6)).collect())
}

#[test]
fn every_budget_is_the_dense_model_under_the_same_plan() -> TestResult {
    let (_directory, path) = written(&Tiny::new(Kind::Llama, true).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let mut resident = Vec::new();
    for budget in budgets(&model)? {
        let plan = model.plan(budget)?;
        resident.push(plan.resident_bytes());
        let packed = last(&PackedModel::new(&model, plan.clone()), &config, &ids(9))?;
        let dense = last(&Dense(CutModel::new(&model, Some(plan))?), &config, &ids(9))?;
        let dense: Vec<_> = dense.iter().map(|v| f64::from(*v)).collect();
        let difference = difference(&packed, &dense);
        assert!(difference < 2e-5, "{budget}: {difference}");
    }
    assert!(resident.windows(2).all(|pair| pair[0] < pair[1]), "{resident:?}");
    Ok(())
}

#[test]
fn budget_changed_between_tokens_is_that_of_a_model_opened_with_it() -> TestResult {
    let (_directory, path) = written(&Tiny::new(Kind::Llama, false).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let changing = PackedModel::new(&model, model.plan(Budget::Minimum)?);
    let llama = Llama::load(&changing, &config)?;
    let order = [6, 0, 3, 5, 1, 6, 2, 4];
    let budgets = budgets(&model)?;
    for place in order {
        let plan = model.plan(budgets[place])?;
        changing.set_plan(plan.clone())?;
        let found = llama.logits(&llama.hidden(&ids(7), &mut Cache::new(&config))?)?;
        let fresh = last(&PackedModel::new(&model, plan), &config, &ids(7))?;
        assert_eq!(found, fresh, "budget {place}");
    }
    Ok(())
}

#[test]
fn plan_of_another_model_is_refused_and_changes_nothing() -> TestResult {
    let (_directory, path) = written(&Tiny::new(Kind::Llama, true).progressive())?;
    let (_other_directory, other) = written(&Tiny::new(Kind::Qwen3, true).progressive())?;
    let (model, other) = (Model::open(&path)?, Model::open(&other)?);
    let config = cut::card(&model)?.config().clone();
    let packed = PackedModel::new(&model, model.plan(Budget::Minimum)?);
    let before = last(&packed, &config, &ids(5))?;
    let kind = packed.set_plan(other.plan(Budget::Maximum)?).map_err(|e| e.kind());
    assert_eq!(kind, Err(ErrorKind::BadArgument));
    assert_eq!(last(&packed, &config, &ids(5))?, before);
    Ok(())
}

#[test]
fn any_number_of_threads_gives_the_same_bits() -> TestResult {
    let (_directory, path) = written(&Tiny::new(Kind::Llama, true).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let run = |threads: usize| -> Result<Vec<f32>, Box<dyn std::error::Error>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(pool.install(|| last(&PackedModel::new(&model, model.plan(Budget::Maximum)?), &config, &ids(1)))?)
    };
    assert_eq!(run(1)?, run(3)?);
    Ok(())
}

#[test]
fn a_pass_keeps_its_plan_and_others_take_the_new_one() -> TestResult {
    let (_directory, path) = written(&Tiny::new(Kind::Llama, true).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let fresh = |budget| last(&PackedModel::new(&model, model.plan(budget)?), &config, &ids(7));
    let (most, least) = (fresh(Budget::Maximum)?, fresh(Budget::Minimum)?);
    assert_ne!(most, least);
    let moving = Moving::new(model.resident(Budget::Maximum)?);
    let llama = Llama::load(moving.packed(), &config)?;
    let logits = || llama.logits(&llama.hidden(&ids(7), &mut Cache::new(&config))?);
    std::thread::scope(|scope| -> TestResult {
        let pass = moving.pass();
        let change = scope.spawn(|| moving.set_budget(Budget::Minimum).map_err(|e| e.to_string()));
        while moving.resident().snapshot().plan().units() > moving.resident().schedule().required_steps() {
            std::thread::yield_now();
        }
        assert_eq!(logits()?, most, "the pass that was under way");
        let other = scope.spawn(|| {
            let _pass = moving.pass();
            last(moving.packed(), &config, &ids(7)).map_err(|e| e.to_string())
        });
        assert_eq!(other.join().map_err(|_| "panicked")??, least, "a pass that began later");
        assert!(!change.is_finished(), "memory that is read is not given back");
        drop(pass);
        assert!(change.join().map_err(|_| "panicked")??.released_bytes > 0);
        assert_eq!(logits()?, least);
        Ok(())
    })
}

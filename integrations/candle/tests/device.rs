//! Weights on a GPU, under budgets.

mod common;

use cmf_candle::cut;
use cmf_candle::gpu::{Context, GpuModel};
use cmf_candle::llama::{Cache, Llama};
use cmf_candle::moving::Moving;
use cmf_candle::packed::PackedModel;
use cmf_candle::weights::Weights;
use cmf_candle::{Config, ErrorKind};
use cmf_loader::{Budget, Model};
use common::{Kind, TestResult, Tiny, difference, ids, written};
use std::sync::Arc;

/// Logits of the CPU and of the GPU differ by at most this.
const BOUND: f64 = 2e-5;

/// The device, or `None` where the test is to be skipped.
fn context() -> Result<Option<Arc<Context>>, Box<dyn std::error::Error>> {
    match Context::new() {
        Ok(context) => Ok(Some(Arc::new(context))),
        Err(error) if std::env::var_os("CMF_REQUIRE_GPU").is_some_and(|v| v == "1") => Err(error.into()),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            Ok(None)
        }
    }
}

fn logits(llama: &Llama<'_>, config: &Config, tokens: usize) -> cmf_candle::Result<Vec<f32>> {
    llama.logits(&llama.hidden(&ids(tokens), &mut Cache::new(config))?)
}

fn on_cpu(model: &Model, budget: Budget, config: &Config, tokens: usize) -> cmf_candle::Result<Vec<f64>> {
    let packed = PackedModel::new(model, model.plan(budget)?);
    let found = logits(&Llama::load(&packed, config)?, config, tokens)?;
    Ok(found.into_iter().map(f64::from).collect())
}

/// Budgets from the minimum to the maximum.
fn budgets(model: &Model) -> cmf_candle::Result<Vec<Budget>> {
    let plan = model.plan(Budget::Maximum)?;
    let (low, high) = (plan.minimum_bytes(), plan.maximum_bytes());
    Ok((0..=4).map(|i| Budget::Bytes(low + (high - low) * i / 4)).collect())
}

#[test]
fn gpu_gives_what_the_cpu_gives_under_every_budget() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    for kind in [Kind::Llama, Kind::Qwen2, Kind::Qwen3] {
        let (_directory, path) = written(&Tiny::new(kind, kind == Kind::Llama).progressive())?;
        let model = Model::open(&path)?;
        let config = cut::card(&model)?.config().clone();
        for budget in budgets(&model)? {
            for tokens in [1, 5] {
                let gpu = GpuModel::new(&model, model.plan(budget)?, Arc::clone(&context));
                let found = logits(&Llama::load(&gpu, &config)?, &config, tokens)?;
                let difference = difference(&found, &on_cpu(&model, budget, &config, tokens)?);
                assert!(difference < BOUND, "{kind:?}, {budget}, {tokens} tokens: {difference}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_change_of_budget_moves_units_and_leaves_products_nothing_to_compile() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let (_directory, path) = written(&Tiny::new(Kind::Llama, false).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let gpu = {
        let context = Arc::clone(&context);
        Moving::with(model.resident(Budget::Minimum)?, |model, plan| {
            Box::new(GpuModel::new(model, plan, context))
        })
    };
    let weights = gpu.packed();
    let llama = Llama::load(&weights, &config)?;
    logits(&llama, &config, 7)?;
    let budgets = budgets(&model)?;
    let mut held = [None; 5];
    for place in [0, 4, 2, 3, 1, 4, 0, 2] {
        gpu.set_budget(budgets[place])?;
        let compiled = context.kernels().compiled();
        let found = logits(&llama, &config, 7)?;
        let plan = weights.plan();
        let expected = on_cpu(&model, Budget::Bytes(plan.resident_bytes()), &config, 7)?;
        assert!(difference(&found, &expected) < BOUND, "budget {place}");
        let bytes = weights.device_bytes().ok_or("no device")?;
        assert_eq!(context.kernels().compiled(), compiled, "pipelines");
        assert_eq!(bytes, *held[place].get_or_insert(bytes), "bytes under budget {place}");
    }
    assert!(held.windows(2).all(|pair| pair[0] <= pair[1]) && held[0] < held[4], "{held:?}");
    Ok(())
}

#[test]
fn main_memory_gives_back_what_the_device_has() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    // With a head of its own and with the embedding for one, which stays.
    for tied in [false, true] {
        let (_directory, path) = written(&Tiny::new(Kind::Llama, tied).progressive())?;
        let model = Model::open(&path)?;
        let config = cut::card(&model)?.config().clone();
        let moving = Moving::with(model.resident(Budget::Minimum)?, |model, plan| {
            Box::new(GpuModel::new(model, plan, Arc::clone(&context)))
        });
        assert_eq!(moving.settle()?, 0, "nothing is on the device");
        let weights = moving.packed();
        let llama = Llama::load(&weights, &config)?;
        moving.settle()?;
        assert!(weights.is_elsewhere("model.layers.0.mlp.up_proj.weight"));
        assert!(
            !weights.is_elsewhere("model.embed_tokens.weight") && !weights.is_elsewhere("model.norm.weight")
        );
        for budget in budgets(&model)?.into_iter().rev() {
            moving.set_budget(budget)?;
            let status = moving.status();
            // A page may hold the end of a matrix and the start of a vector, and stays then.
            assert!(status.elsewhere_bytes < status.held_bytes, "{status:?}");
            assert!(status.elsewhere_bytes > 0 || budget != Budget::Bytes(weights.plan().maximum_bytes()));
            let found = logits(&llama, &config, 3)?;
            let resident = Budget::Bytes(weights.plan().resident_bytes());
            assert!(difference(&found, &on_cpu(&model, resident, &config, 3)?) < BOUND, "{budget}");
        }
    }
    Ok(())
}

#[test]
fn a_matrix_that_nobody_uses_leaves_the_device() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let (_directory, path) = written(&Tiny::new(Kind::Llama, false).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let gpu = GpuModel::new(&model, model.plan(Budget::Maximum)?, context);
    let head = cmf_candle::llama::head(&gpu, &config)?;
    assert!(gpu.weight_bytes() > 0);
    drop(head);
    assert_eq!(gpu.weight_bytes(), 0);
    Ok(())
}

#[test]
fn plan_of_another_model_changes_nothing() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let (_directory, path) = written(&Tiny::new(Kind::Llama, true).progressive())?;
    let (_other_directory, other) = written(&Tiny::new(Kind::Qwen3, true).progressive())?;
    let (model, other) = (Model::open(&path)?, Model::open(&other)?);
    let config = cut::card(&model)?.config().clone();
    let gpu = GpuModel::new(&model, model.plan(Budget::Minimum)?, context);
    let llama = Llama::load(&gpu as &dyn Weights, &config)?;
    let before = (logits(&llama, &config, 5)?, gpu.weight_bytes());
    let kind = gpu.set_plan(other.plan(Budget::Maximum)?).map_err(|e| e.kind());
    assert_eq!(kind, Err(ErrorKind::BadArgument));
    assert_eq!((logits(&llama, &config, 5)?, gpu.weight_bytes()), before);
    Ok(())
}

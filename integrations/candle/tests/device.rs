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

/// The model of `moving`, loaded, and whether its logits are those of the CPU under the plan in force.
fn answers(moving: &Moving<'_>, llama: &Llama<'_>, config: &Config) -> TestResult {
    let found = {
        let _pass = moving.pass();
        logits(llama, config, 3)?
    };
    let plan = Budget::Bytes(moving.packed().plan().resident_bytes());
    let expected = on_cpu(moving.resident().model(), plan, config, 3)?;
    let difference = difference(&found, &expected);
    if difference < BOUND { Ok(()) } else { Err(format!("{difference}").into()) }
}

#[test]
fn a_device_has_no_more_than_its_budget_and_main_memory_the_rest() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    for tied in [false, true] {
        let (_directory, path) = written(&Tiny::new(Kind::Llama, tied).progressive())?;
        let model = Model::open(&path)?;
        let config = cut::card(&model)?.config().clone();
        let whole = {
            let gpu = GpuModel::new(&model, model.plan(Budget::Maximum)?, Arc::clone(&context));
            let _llama = Llama::load(&gpu, &config)?;
            gpu.weight_bytes()
        };
        let budgets = budgets(&model)?;
        let mut before = 0;
        for limit in [0, whole / 4, whole / 2, whole, u64::MAX] {
            let moving = Moving::with(model.resident(budgets[2])?, |model, plan| {
                Box::new(GpuModel::new(model, plan, Arc::clone(&context)).with_budget(limit))
            });
            let weights = moving.packed();
            let llama = Llama::load(&weights, &config)?;
            moving.settle()?;
            for place in [2, 0, 4, 1, 4, 0, 3, 4] {
                moving.set_budget(budgets[place])?;
                let bytes = weights.device_bytes().ok_or("no device")?;
                assert!(bytes <= limit, "{bytes} of {limit} under budget {place}");
                answers(&moving, &llama, &config)?;
                let status = moving.status();
                assert!(
                    status.elsewhere_bytes < status.held_bytes && (limit > 0 || status.elsewhere_bytes == 0)
                );
            }
            // Of the whole model, the more the more it may.
            moving.set_budget(Budget::Maximum)?;
            let bytes = weights.device_bytes().ok_or("no device")?;
            assert!(
                bytes >= before && (bytes > before || limit == 0 || before == whole),
                "{bytes} after {before}"
            );
            before = bytes;
            assert_eq!(bytes == whole, limit >= whole, "{bytes} of {whole} with {limit}");
        }
    }
    Ok(())
}

#[test]
fn the_budget_of_a_device_moves_while_a_model_runs() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let (_directory, path) = written(&Tiny::new(Kind::Llama, false).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let moving = Moving::with(model.resident(Budget::Maximum)?, |model, plan| {
        Box::new(GpuModel::new(model, plan, Arc::clone(&context)))
    });
    let weights = moving.packed();
    let llama = Llama::load(&weights, &config)?;
    let whole = weights.device_bytes().ok_or("no device")?;
    let (budgets, done) = (budgets(&model)?, std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| -> TestResult {
        let reader = scope.spawn(|| -> Result<usize, String> {
            let mut passes = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let _pass = moving.pass();
                let found = logits(&llama, &config, 3).map_err(|e| e.to_string())?;
                let plan = Budget::Bytes(moving.packed().plan().resident_bytes());
                let expected = on_cpu(&model, plan, &config, 3).map_err(|e| e.to_string())?;
                let difference = difference(&found, &expected);
                if difference >= BOUND {
                    return Err(format!("{difference} after {passes} passes"));
                }
                passes += 1;
            }
            Ok(passes)
        });
        // No panic before the reader is told to end.
        let within = |limit: u64| match weights.device_bytes() {
            Some(bytes) if bytes <= limit => Ok(()),
            found => Err(format!("{found:?} of {limit}")),
        };
        let changed = (0..60u64).try_for_each(|step| -> Result<(), String> {
            let limit = whole * (step * 7 % 11) / 10;
            moving.set_device_budget(limit).map_err(|e| e.to_string())?;
            within(limit)?;
            moving.set_budget(budgets[(step * 3 % 5) as usize]).map_err(|e| e.to_string())?;
            within(limit)
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let passes = reader.join().map_err(|_| "panicked")??;
        changed?;
        assert!(passes > 0);
        Ok(())
    })?;
    moving.set_device_budget(u64::MAX)?;
    moving.set_budget(Budget::Maximum)?;
    assert_eq!(weights.device_bytes(), Some(whole));
    Ok(())
}

#[test]
fn a_mixture_has_its_experts_in_main_memory_and_the_rest_on_the_device() -> TestResult {
    let Some(context) = context()? else { return Ok(()) };
    let (_directory, path) = written(&Tiny::new(Kind::Qwen3Moe, false).progressive())?;
    let model = Model::open(&path)?;
    let config = cut::card(&model)?.config().clone();
    let memory =
        cmf_candle::experts::ExpertMemory::of(&model, &config, u16::MAX, &|_| true)?.ok_or("no mixture")?;
    let (one, token) = (memory.one_bytes(), memory.token_bytes());
    let want = move |name: &str| {
        if memory.has(name) { cmf_loader::Want::Demand } else { cmf_loader::Want::Budget }
    };
    let options = cmf_loader::resident::ResidentOptions {
        want: Some(Arc::new(want)),
        demand_bytes: token,
        least_demand_bytes: one,
        ..Default::default()
    };
    let moving = Moving::with(model.resident_with(Budget::Maximum, options)?, |model, plan| {
        Box::new(GpuModel::new(model, plan, Arc::clone(&context)))
    });
    let llama = Llama::load(&moving, &config)?;
    moving.settle()?;
    let expected = on_cpu(&model, Budget::Maximum, &config, 5)?;
    let (least, most) = (moving.resident().least_bytes(), moving.resident().most_bytes()?);
    let rest = most - (most - least) / 2;
    for budget in [Budget::Maximum, Budget::Bytes(rest), Budget::Bytes(most)] {
        moving.set_budget(budget)?;
        let _pass = moving.pass();
        let found = logits(&llama, &config, 5)?;
        if budget != Budget::Bytes(rest) {
            assert!(difference(&found, &expected) < BOUND);
        }
        let status = moving.status();
        assert!(status.demanded > 0 && status.held_bytes <= most, "{status:?}");
    }
    Ok(())
}

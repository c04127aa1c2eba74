//! Mixtures of experts, which come into memory when a router chooses them.

mod common;

use cmf_candle::Config;
use cmf_candle::cut;
use cmf_candle::llama::{Cache, Llama};
use cmf_candle::moving::Moving;
use cmf_candle::packed::PackedModel;
use cmf_candle::weights::Weights;
use cmf_format::Source;
use cmf_loader::resident::ResidentOptions;
use cmf_loader::{Backend, Budget, Model, OpenOptions, Want};
use common::{EXPERTS, Kind, LAYERS, TestResult, Tiny, ids, written};
use std::sync::Arc;

const KINDS: [Kind; 2] = [Kind::Mixtral, Kind::Qwen3Moe];

/// Logits after each of `ids`, token by token.
fn talk(weights: &dyn Weights, config: &Config, ids: &[u32]) -> cmf_candle::Result<Vec<Vec<f32>>> {
    let (model, mut cache) = (Llama::load(weights, config)?, Cache::new(config));
    ids.iter().map(|id| model.logits(&model.hidden(&[*id], &mut cache)?)).collect()
}

fn demanding(demand_bytes: u64) -> ResidentOptions {
    let want = |name: &str| if name.contains(".experts.") { Want::Demand } else { Want::Budget };
    ResidentOptions { want: Some(Arc::new(want)), demand_bytes, ..ResidentOptions::default() }
}

#[test]
fn experts_on_demand_give_what_all_of_them_give() -> TestResult {
    for kind in KINDS {
        let (_directory, path) = written(&Tiny::new(kind, false).progressive())?;
        for backend in [Backend::Mmap, Backend::Pread] {
            let model = Model::open_with(&path, &OpenOptions { backend, ..OpenOptions::default() })?;
            let config = cut::card(&model)?.config().clone();
            let all = PackedModel::new(&model, model.plan(Budget::Maximum)?);
            let expected = talk(&all, &config, &ids(24))?;
            // In the place of sixteen experts of three matrices.
            let room = 96 << 10;
            let moving = Moving::new(model.resident_with(Budget::Maximum, demanding(room))?);
            moving.set_budget(Budget::Bytes(moving.status().held_bytes + room))?;
            let before = moving.status();
            assert_eq!(before.units, moving.resident().schedule().steps(), "all but the experts");
            assert_eq!(before.demanded, 0, "{before:?}");
            assert!(talk(&moving, &config, &ids(24))? == expected, "{kind:?} {backend:?}");
            let status = moving.status();
            assert!(status.held_bytes <= before.held_bytes + room, "{status:?}");
            let matrices = 3 * EXPERTS * LAYERS;
            assert!(status.demanded > 0 && status.demanded < matrices, "{status:?}");
            // Experts that went came again, and those that were there did not.
            let (loaded, released) =
                (status.loaded_bytes - before.loaded_bytes, status.released_bytes - before.released_bytes);
            assert_eq!(loaded - released, status.held_bytes - before.held_bytes, "{status:?}");
            let once = model.archive().source().file_bytes();
            println!("{kind:?} {backend:?}: {loaded} bytes came and {released} went, of a file of {once}");
            assert!(released > 0 && loaded < 24 * once, "{status:?}");
        }
    }
    Ok(())
}

#[test]
fn a_prompt_at_once_gives_what_token_by_token_gives() -> TestResult {
    for kind in KINDS {
        let (_directory, path) = written(&Tiny::new(kind, true).progressive())?;
        let model = Model::open(&path)?;
        let config = cut::card(&model)?.config().clone();
        let moving = Moving::new(model.resident_with(Budget::Minimum, demanding(96 << 10))?);
        let llama = Llama::load(&moving, &config)?;
        let at_once = llama.logits(&llama.hidden(&ids(20), &mut Cache::new(&config))?)?;
        let by_token = talk(&moving, &config, &ids(20))?.pop().unwrap_or_default();
        let difference = at_once.iter().zip(&by_token).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(difference < 1e-3, "{kind:?}: {difference}");
    }
    Ok(())
}

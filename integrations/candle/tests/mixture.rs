//! Mixtures of experts, which come into memory when a router chooses them.

mod common;

use cmf_candle::Config;
use cmf_candle::cut::{self, CutModel, ResidentCut};
use cmf_candle::eval::Subject;
use cmf_candle::experts::ExpertMemory;
use cmf_candle::llama::{Cache, Llama};
use cmf_candle::moving::Moving;
use cmf_candle::packed::PackedModel;
use cmf_candle::weights::{Dense, Weights};
use cmf_format::Source;
use cmf_loader::resident::ResidentOptions;
use cmf_loader::{Backend, Budget, Model, OpenOptions, Want};
use common::{EXPERTS, Kind, LAYERS, TestResult, Tiny, ids, written};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

#[test]
fn budgets_move_while_experts_come() -> TestResult {
    for kind in KINDS {
        let (_directory, path) = written(&Tiny::new(kind, false).progressive())?;
        let model = Model::open(&path)?;
        let config = cut::card(&model)?.config().clone();
        let memory = ExpertMemory::of(&model, &config, u16::MAX, &|_| true)?.ok_or("no mixture")?;
        let options = ResidentOptions {
            demand_bytes: memory.token_bytes(),
            least_demand_bytes: memory.one_bytes(),
            ..demanding(0)
        };
        let moving = Moving::new(model.resident_with(Budget::Maximum, options)?);
        let resident = moving.resident();
        let (least, most) = (resident.least_bytes(), resident.most_bytes()?);
        let (llama, done) = (Llama::load(&moving, &config)?, AtomicBool::new(false));
        let mut cache = Cache::new(&config);
        std::thread::scope(|scope| -> TestResult {
            let change = scope.spawn(|| -> cmf_candle::Result<u64> {
                let (mut state, mut changes) = (1u64, 0);
                while !done.load(Ordering::Relaxed) {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    moving.set_budget(Budget::Bytes(least + (state >> 33) % (most - least)))?;
                    changes += 1;
                }
                Ok(changes)
            });
            let read = ids(40).iter().try_for_each(|id| {
                let _pass = moving.pass();
                llama.next(&[*id], &mut cache).map(drop)
            });
            done.store(true, Ordering::Relaxed);
            let changes = change.join().map_err(|_| "panicked")??;
            read?;
            assert!(changes > 10, "{changes} changes beside 40 tokens");
            Ok(())
        })?;
        moving.set_budget(Budget::Bytes(least))?;
        assert!(moving.status().held_bytes <= least, "{:?}", moving.status());
    }
    Ok(())
}

#[test]
fn what_experts_take_is_what_they_are_held_in() -> TestResult {
    for kind in KINDS {
        let (_directory, path) = written(&Tiny::new(kind, false).progressive())?;
        let model = Model::open(&path)?;
        let config = cut::card(&model)?.config().clone();
        let mut before = u64::MAX;
        for level in [u16::MAX, 1, 0] {
            let memory = ExpertMemory::of(&model, &config, level, &|_| true)?.ok_or("no mixture")?;
            assert_eq!(memory.matrices(), 3 * EXPERTS * LAYERS);
            assert!(memory.one_bytes() < memory.token_bytes() && memory.token_bytes() < before);
            before = memory.token_bytes();
            let resident = model.resident_with(
                Budget::Minimum,
                ResidentOptions { demand_level: level, ..demanding(1 << 20) },
            )?;
            let names = |layer: usize| {
                let two = config.experts(layer).into_iter().take(2);
                two.flat_map(|expert| [expert.gate, expert.up, expert.down])
            };
            let names: Vec<_> = (0..LAYERS).flat_map(names).collect();
            let _held = resident.require(names.iter().map(String::as_str))?;
            let held = resident.status().demanded_bytes;
            assert!(held <= memory.token_bytes(), "{held} of {}", memory.token_bytes());
        }
        let mut llama = config;
        llama.mixture = None;
        assert_eq!(ExpertMemory::of(&model, &llama, 0, &|_| true)?, None);
    }
    Ok(())
}

#[test]
fn texts_at_once_ask_for_each_expert_once() -> TestResult {
    for kind in KINDS {
        let (directory, path) = written(&Tiny::new(kind, false).progressive())?;
        let model = Model::open(&path)?;
        let card = cut::card(&model)?;
        let text = directory.path().join("text.txt");
        std::fs::write(&text, common::text(200))?;
        let windows = cmf_candle::Windows::read(&text, card.text()?, 64, 16)?;
        let states = |weights: &dyn Weights| -> cmf_candle::Result<String> {
            let subject = Subject { weights, config: card.config() };
            let states = subject.states(&windows, &|_, _| ())?;
            let (_, scores) = cmf_candle::eval::score(&[(subject, states)], None, &windows, &|_, _| ())?;
            Ok(format!("{scores:?}"))
        };
        let all = states(&Dense(CutModel::new(&model, Some(model.plan(Budget::Maximum)?))?))?;
        let memory = ExpertMemory::of(&model, card.config(), u16::MAX, &|_| true)?.ok_or("no mixture")?;
        let resident = model.resident_with(Budget::Maximum, demanding(memory.one_bytes()))?;
        resident.set_budget(Budget::Bytes(resident.status().held_bytes + memory.one_bytes()))?;
        let cut = ResidentCut::new(resident)?;
        assert_eq!(states(&cut)?, all, "{kind:?}");
        let status = cut.resident().status();
        assert!(status.demanded_bytes <= memory.one_bytes(), "{status:?}");
        assert!(status.required > 0 && status.required <= (3 * EXPERTS * LAYERS) as u64, "{status:?}");
        // Of packed weights too.
        let options = ResidentOptions { least_demand_bytes: memory.one_bytes(), ..demanding(0) };
        let moving = Moving::new(model.resident_with(Budget::Maximum, options)?);
        states(&moving)?;
        assert!(moving.status().required <= (3 * EXPERTS * LAYERS) as u64);
    }
    Ok(())
}

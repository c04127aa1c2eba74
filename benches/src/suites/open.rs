//! Opening a model and reading the name, type and shape of every tensor.

use crate::row::{Goal, Row, Suite};

pub(crate) fn suite() -> Suite {
    let title = "open: open a warm file, read all names, types and shapes; peer: safetensors over a map";
    let mut rows = Vec::new();
    #[cfg(target_os = "linux")]
    {
        use crate::files::{Plan, llama, small};
        let mut row = |name: &str, goals: &[Goal], plan: fn() -> Plan| {
            rows.push(Row::new(format!("open/{name}"), goals, move |bench| linux::compare(bench, plan())));
        };
        let ratio = Goal::Ratio(1.0);
        row("10-tensors", &[ratio], || small(10));
        row("1000-tensors", &[ratio], || small(1000));
        row("100000-tensors", &[ratio], || small(100_000));
        row("llama-538mb", &[ratio, Goal::Seconds(1e-3)], llama);
    }
    Suite { title, rows }
}

/// Maps without `unsafe` need files that are sealed, which only Linux has.
#[cfg(target_os = "linux")]
mod linux {
    use crate::clock::Time;
    use crate::files::{Model as Files, Plan, Sealed, touched_bytes};
    use crate::row::{Bench, Outcome};
    use anyhow::{Result, ensure};
    use cmf_loader::Model;
    use memmap2::Mmap;
    use safetensors::SafeTensors;
    use std::fs::File;
    use std::hint::black_box;

    pub(super) fn compare(bench: &Bench<'_>, plan: Plan) -> Result<Outcome> {
        let count = plan.len();
        let files = Files::random(plan);
        let ours = Sealed::new("cmf", &files.cmf()?)?;
        let peer = Sealed::new("safetensors", &files.safetensors()?)?;
        drop(files);
        let (our_path, peer_path) = (ours.path(), peer.path());

        let model = Model::open(&our_path)?;
        ensure!(list(&model) == count, "expected {count} tensors");
        let ours_touched = touched_bytes("cmf")?;
        drop(model);
        let map = Mmap::map_if_safe(&File::open(&peer_path)?)?;
        ensure!(list_safetensors(&map)? == count, "expected {count} tensors");
        let peer_touched = touched_bytes("safetensors")?;
        drop(map);

        let outcome = bench.compare(
            Time::Cpu,
            0,
            &mut || {
                black_box(list(&Model::open(&our_path)?));
                Ok(())
            },
            ("safetensors", &mut || {
                let map = Mmap::map_if_safe(&File::open(&peer_path)?)?;
                black_box(list_safetensors(&map)?);
                Ok(())
            }),
        )?;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        Ok(outcome.note(format!(
            "{:.1} MB; mapped pages touched: {} KiB, peer {} KiB",
            megabytes(ours.bytes()?),
            ours_touched / 1024,
            peer_touched / 1024
        )))
    }

    /// Looks at every tensor and counts them.
    fn list(model: &Model) -> usize {
        for tensor in model.tensors() {
            black_box((tensor.name(), tensor.dtype(), tensor.shape()));
        }
        model.tensors().len()
    }

    fn list_safetensors(bytes: &[u8]) -> Result<usize> {
        let tensors = SafeTensors::deserialize(bytes)?;
        for (name, view) in tensors.iter() {
            black_box((name, view.dtype(), view.shape().len()));
        }
        Ok(tensors.len())
    }
}

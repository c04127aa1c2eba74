//! What the levels of all blocks leave, for the schedule.

use super::spool::{BlockId, Encoded};
use crate::moments::Moments;
use crate::schedule::TensorLosses;
use crate::source::TensorInfo;
use std::collections::{BTreeMap, HashMap};

/// The losses of tensors with several levels, by name.
///
/// A loss is the error of the tensor relative to its own size, times its sensitivity: the divergence
/// that a unit of relative error causes, in nats per token. Where that was not measured, the mean of
/// those that were stands in. Without any, all tensors count the same: in a model of layers that are
/// scaled and normalised, equal relative errors do about equal harm (Malinovskii et al. 2024, "Pushing
/// the limits of large language model quantization via the linearity theorem").
pub(super) fn of(
    tensors: &[TensorInfo],
    blocks: &HashMap<BlockId, Encoded>,
    moments: Option<&dyn Moments>,
) -> BTreeMap<String, TensorLosses> {
    // In a stated order, so that sums are the same in each run.
    let mut ids: Vec<_> = blocks.keys().copied().collect();
    ids.sort_unstable();
    let mut found: BTreeMap<String, TensorLosses> = BTreeMap::new();
    let mut sizes: BTreeMap<&str, f64> = BTreeMap::new();
    for id in ids {
        let (Some(encoded), Some(tensor)) = (blocks.get(&id), tensors.get(id.tensor as usize)) else {
            continue;
        };
        if encoded.levels.len() < 2 {
            continue;
        }
        *sizes.entry(&tensor.name).or_default() += encoded.cost;
        let entry = found.entry(tensor.name.clone());
        let own = entry.or_insert_with(|| TensorLosses { coefficient: 1.0, blocks: HashMap::new() });
        let costs = encoded.levels.iter().map(|level| level.cost).collect();
        own.blocks.insert((id.matrix as usize, id.row_start), costs);
    }
    let known = |name: &str| moments.and_then(|moments| moments.sensitivity(name));
    let measured: Vec<f64> = found.keys().filter_map(|name| known(name)).collect();
    let mean = match measured.len() {
        0 => 1.0,
        n => measured.iter().sum::<f64>() / n as f64,
    };
    for (name, own) in &mut found {
        let size = sizes.get(name.as_str()).copied().unwrap_or(0.0);
        if size > 0.0 {
            own.coefficient = known(name).unwrap_or(mean) / size;
        }
    }
    found
}

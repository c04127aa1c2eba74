//! Verification of one tensor.

use super::runs;
use super::values::{verify_node, verify_transforms};
use crate::error::Result;
use crate::stored::{Stored, transform_segments};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::collections::BTreeSet;

impl Tensor<'_> {
    /// Checks the hashes and values of the tensor, in the file that holds it, and of what it is a
    /// delta to.
    ///
    /// # Errors
    /// The first breach; as [`Tensor::stored`].
    pub fn verify(&self) -> Result<()> {
        verify_stored(&self.find()?)
    }
}

fn verify_stored(stored: &Stored<'_>) -> Result<()> {
    let archive = stored.model.archive();
    let matrices: Vec<_> = stored.record.matrices().collect();
    let terms = matrices.iter().flat_map(|m| m.terms());
    let nodes: BTreeSet<u32> = terms.filter_map(|t| t.node()).map(|n| n.index()).collect();
    let nodes: Vec<_> = nodes.into_iter().filter_map(|i| archive.node(i)).collect();
    let mut segments: BTreeSet<u32> = nodes.iter().flat_map(|n| n.all_segments()).collect();
    segments.extend(matrices.iter().flat_map(transform_segments));
    let segments: Vec<_> = segments.into_iter().filter_map(|i| archive.segment(i)).collect();
    first_error(segments.into_par_iter().map(|segment| {
        let groups = segment.chunk_groups()?;
        first_error(runs(&groups).map(|run| {
            let mut first = None;
            groups.verify(run, &mut |_, error| {
                first.get_or_insert(error);
            })?;
            first.map_or(Ok(()), Err)
        }))
    }))
    .and_then(|()| first_error(matrices.par_iter().map(verify_transforms)))
    .and_then(|()| first_error(nodes.par_iter().map(verify_node)))
    .map_err(|e| stored.error(e))?;
    stored.base.as_ref().map_or(Ok(()), |base| verify_stored(base))
}

/// The first error in order, whatever thread finds it when.
fn first_error(results: impl ParallelIterator<Item = cmf_format::Result<()>>) -> cmf_format::Result<()> {
    results.find_first(|result| result.is_err()).unwrap_or(Ok(()))
}

//! Verification of one tensor.

use super::values::verify_node;
use crate::error::Result;
use crate::stored::Stored;
use crate::tensor::Tensor;
use cmf_format::archive::Node;
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
    let mut segments = BTreeSet::new();
    let mut nodes = BTreeSet::new();
    for matrix in stored.record.matrices() {
        let (inputs, outputs) = matrix.transforms();
        for transform in inputs.into_iter().chain(outputs) {
            segments.extend(archive.segment(transform.segment.get()).map(|s| s.index()));
            nodes.extend(archive.node(transform.node.get()).map(|n| n.index()));
        }
        nodes.extend(matrix.terms().filter_map(|t| t.node()).map(|n| n.index()));
    }
    let nodes: Vec<_> = nodes.into_iter().filter_map(|i| archive.node(i)).collect();
    segments.extend(nodes.iter().flat_map(Node::all_segments));
    let segments: Vec<_> = segments.into_iter().filter_map(|i| archive.segment(i)).collect();
    first_error(segments.into_par_iter().map(|segment| {
        let groups = segment.chunk_groups()?;
        first_error(groups.indices().into_par_iter().map(|group| groups.verify(group)))
    }))
    .and_then(|()| first_error(nodes.into_par_iter().map(|node| verify_node(&node))))
    .map_err(|e| stored.error(e))?;
    stored.base.as_ref().map_or(Ok(()), |base| verify_stored(base))
}

/// The first error in order, whatever thread finds it when.
fn first_error(results: impl ParallelIterator<Item = cmf_format::Result<()>>) -> cmf_format::Result<()> {
    results.find_first(|result| result.is_err()).unwrap_or(Ok(()))
}

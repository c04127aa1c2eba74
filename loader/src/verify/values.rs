//! Verification of what hashes do not cover: codes, indices, frames, stated sizes.

use super::found::{Found, Phase};
use crate::model::Model;
use crate::source::FileSource;
use cmf_format::Compression;
use cmf_format::archive::{Node, Segment};
use cmf_format::encoding::dense;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// The nodes of one file whose values are checked.
pub(super) struct Values {
    /// Compressed segments of attributes.
    attributes: Vec<u32>,
    /// Node, and the first tensor that uses it.
    nodes: Vec<(u32, u32)>,
    /// Stored bytes of `attributes` and `nodes`.
    pub(super) bytes: u64,
    pub(super) unknown_terms: u64,
    wanted: bool,
}

impl Values {
    pub(super) fn of(model: &Model, wanted: bool) -> Self {
        let archive = model.archive();
        let mut values =
            Self { attributes: Vec::new(), nodes: Vec::new(), bytes: 0, unknown_terms: 0, wanted };
        if !wanted {
            return values;
        }
        for attribute in archive.attributes() {
            let compressed = |s: &Segment<'_, FileSource>| {
                s.record().is_known() && s.compression() == Some(Compression::Zstd)
            };
            if let Some(segment) = attribute.segment().filter(compressed) {
                values.attributes.push(attribute.index());
                values.bytes = values.bytes.saturating_add(segment.record().stored_bytes.get());
            }
        }
        let mut seen = vec![false; archive.nodes().len()];
        let mut seen_matrices = vec![false; archive.matrices().len()];
        let mut first_time = |node: &Node<'_, FileSource>| match seen.get_mut(node.index() as usize) {
            Some(seen) => !core::mem::replace(seen, true),
            None => false,
        };
        for tensor in archive.tensors() {
            for matrix in tensor.matrices() {
                match seen_matrices.get_mut(matrix.index() as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => continue,
                }
                let (inputs, outputs) = matrix.transforms();
                let scales = inputs.into_iter().chain(outputs).filter_map(|t| archive.node(t.node.get()));
                let terms: Vec<_> = matrix.terms().collect();
                values.unknown_terms += terms.iter().filter(|t| !t.is_known()).count() as u64;
                for node in scales.chain(terms.iter().filter_map(|t| t.node())) {
                    if first_time(&node) && node.is_known() && !has_no_rules(&node) {
                        values.nodes.push((node.index(), tensor.index()));
                        let segments = node.all_segments();
                        let segments = segments.into_iter().filter_map(|i| archive.segment(i));
                        let bytes = segments.map(|s| s.record().stored_bytes.get());
                        values.bytes = bytes.fold(values.bytes, u64::saturating_add);
                    }
                }
            }
        }
        values
    }

    /// Checks the nodes that have no damaged segments, and what units and schedule state.
    pub(super) fn verify(
        &self,
        model: &Model,
        file: usize,
        damaged: &BTreeSet<u32>,
        found: &Found,
        advance: &(impl Fn(u64) + Sync),
    ) {
        let archive = model.archive();
        if !self.wanted {
            return;
        }
        if let Err(error) = archive.verify_sizes() {
            found.add((file, Phase::Sizes, 0, 0), model.source().error(error));
        }
        let bytes_of = |segments: &[u32]| {
            let segments = segments.iter().filter_map(|i| archive.segment(*i));
            segments.map(|s| s.record().stored_bytes.get()).fold(0, u64::saturating_add)
        };
        self.attributes.par_iter().for_each(|i| {
            let Some(attribute) = archive.attributes().nth(*i as usize) else { return };
            let Some(segment) = attribute.segment() else { return };
            if !damaged.contains(&segment.index())
                && let Err(error) = segment.decoded()
            {
                let error = error.within(format_args!("attribute `{}`", attribute.name().escape_debug()));
                found.add((file, Phase::Attributes, (*i).into(), 0), model.source().error(error));
            }
            advance(segment.record().stored_bytes.get());
        });
        self.nodes.par_iter().enumerate().for_each(|(i, (node, tensor))| {
            let Some(node) = archive.node(*node) else { return };
            let segments = node.all_segments();
            if !segments.iter().any(|i| damaged.contains(i))
                && let Err(error) = verify_node(&node)
            {
                let error = match archive.tensors().nth(*tensor as usize) {
                    Some(tensor) => error.in_tensor(tensor.name()),
                    None => error,
                };
                found.add((file, Phase::Values, i as u64, 0), model.source().error(error));
            }
            advance(bytes_of(&segments));
        });
    }
}

/// Whether any bytes of the right length are values: no reason to read them again.
fn has_no_rules(node: &Node<'_, FileSource>) -> bool {
    node.record().encoding.get() == dense::ID
        && node.segments().all(|s| s.compression() == Some(Compression::Raw))
}

/// Checks every rule that the payload of `node` and of all below it must keep, if they are known.
pub(super) fn verify_node(node: &Node<'_, FileSource>) -> cmf_format::Result<()> {
    match node.is_known() {
        true => node.view()?.verify(),
        false => Ok(()),
    }
}

//! Sizes and encodings, from the directory alone.

use crate::error::Result;
use crate::label::label;
use crate::model::Model;
use crate::references::{Reference, ReferenceKind};
use crate::source::FileSource;
use crate::stored::transform_segments;
use crate::tensor::Tensor;
use cmf_format::{Archive, DType};
use std::collections::BTreeSet;

/// What a tensor is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSummary {
    /// Name.
    pub name: String,
    /// Element type before encoding.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Product of the extents.
    pub elements: u64,
    /// Bytes of the distinct segments of all its terms and transforms. Segments that other tensors
    /// share count in full.
    pub stored_bytes: u64,
    /// `stored_bytes` in bits by elements; 0 without elements.
    pub bits_per_weight: f64,
    /// File that holds the terms, when it is a shard.
    pub shard: Option<String>,
    /// File with the tensor that the terms are added to, for a delta. What the base takes is not
    /// counted here.
    pub base: Option<String>,
    /// Matrices.
    pub matrices: usize,
    /// Terms of one encoding and level together, in the order of the first of each.
    pub terms: Vec<TermSummary>,
}

/// The terms of a tensor that have the same encoding and level: one for each matrix or block of
/// rows.
#[derive(Clone, Debug, PartialEq)]
pub struct TermSummary {
    /// Encoding, with those of children that are not `dense`: `grouped(scale=grouped)`.
    pub encoding: String,
    /// Level.
    pub level: u16,
    /// Number of terms.
    pub count: usize,
    /// Whether readers may leave them out.
    pub optional: bool,
    /// Whether this reader can decode them.
    pub known: bool,
    /// Bytes of their distinct segments.
    pub stored_bytes: u64,
    /// `stored_bytes` in bits by elements of the tensor.
    pub bits_per_weight: f64,
}

/// Sizes of a model in all its files, without bases.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Files: this one and its shards.
    pub files: usize,
    /// Their bytes.
    pub file_bytes: u64,
    /// Tensors named in this file.
    pub tensors: usize,
    /// Elements stored; those of tied tensors count once.
    pub elements: u64,
    /// Bytes of the segments that tensors use, each once.
    pub tensor_bytes: u64,
    /// Bytes of the segments that only attributes use.
    pub attribute_bytes: u64,
    /// `tensor_bytes` in bits by `elements`.
    pub bits_per_weight: f64,
}

impl Tensor<'_> {
    /// What the tensor is made of.
    ///
    /// # Errors
    /// As [`Tensor::stored`].
    pub fn summary(&self) -> Result<TensorSummary> {
        let stored = self.find()?;
        let mut groups: Vec<(TermSummary, BTreeSet<u32>)> = Vec::new();
        let mut all = BTreeSet::new();
        for matrix in stored.record.matrices() {
            all.extend(transform_segments(&matrix));
            for term in matrix.terms() {
                let Some(node) = term.node() else { continue };
                let (encoding, level, optional) = (label(&node), term.level(), term.is_optional());
                let same = |t: &TermSummary| {
                    (&t.encoding, t.level, t.optional, t.known)
                        == (&encoding, level, optional, term.is_known())
                };
                let place = groups.iter().position(|(t, _)| same(t)).unwrap_or(groups.len());
                if place == groups.len() {
                    let known = term.is_known();
                    let (count, stored_bytes, bits_per_weight) = (0, 0, 0.0);
                    let summary = TermSummary {
                        encoding,
                        level,
                        count,
                        optional,
                        known,
                        stored_bytes,
                        bits_per_weight,
                    };
                    groups.push((summary, BTreeSet::new()));
                }
                if let Some((summary, segments)) = groups.get_mut(place) {
                    summary.count += 1;
                    segments.extend(node.all_segments());
                }
            }
        }
        let archive = stored.model.archive();
        let terms = groups.into_iter().map(|(mut summary, segments)| {
            summary.stored_bytes = bytes_of(archive, &segments);
            summary.bits_per_weight = bits_per_weight(summary.stored_bytes, self.elements());
            all.extend(segments);
            summary
        });
        let terms = terms.collect();
        let stored_bytes = bytes_of(archive, &all);
        let reference = self.reference().map(|r| r.name().to_owned());
        let (shard, base) = if self.is_delta() { (None, reference) } else { (reference, None) };
        Ok(TensorSummary {
            name: self.name().to_owned(),
            dtype: self.dtype(),
            shape: self.shape(),
            elements: self.elements(),
            stored_bytes,
            bits_per_weight: bits_per_weight(stored_bytes, self.elements()),
            shard,
            base,
            matrices: stored.record.matrices().len(),
            terms,
        })
    }
}

impl Model {
    /// Sizes of the model, over this file and its shards, which are opened.
    ///
    /// # Errors
    /// `Reference` when a shard is missing or not the one that is referred to.
    pub fn totals(&self) -> Result<Totals> {
        let mut totals = Totals { tensors: self.tensors().len(), ..Totals::default() };
        for model in self.files()? {
            let archive = model.archive();
            let count = archive.segments().len();
            let (mut by_tensors, mut by_attributes) = (vec![false; count], vec![false; count]);
            let nodes = archive.nodes().flat_map(|node| node.segments().map(|s| s.index()));
            nodes.for_each(|i| mark(&mut by_tensors, i));
            let attributes = archive.attributes().filter_map(|a| a.segment());
            attributes.for_each(|s| mark(&mut by_attributes, s.index()));
            for matrix in archive.matrices() {
                totals.elements = totals.elements.saturating_add(matrix.rows().saturating_mul(matrix.cols()));
                transform_segments(&matrix).into_iter().for_each(|i| mark(&mut by_tensors, i));
            }
            for ((segment, tensor), attribute) in archive.segments().zip(by_tensors).zip(by_attributes) {
                let bytes = segment.record().stored_bytes.get();
                match (tensor, attribute) {
                    (true, _) => totals.tensor_bytes = totals.tensor_bytes.saturating_add(bytes),
                    (_, true) => totals.attribute_bytes = totals.attribute_bytes.saturating_add(bytes),
                    _ => {}
                }
            }
            totals.files += 1;
            totals.file_bytes = totals.file_bytes.saturating_add(model.file_bytes());
        }
        totals.bits_per_weight = bits_per_weight(totals.tensor_bytes, totals.elements);
        Ok(totals)
    }

    /// This file and its shards.
    pub(crate) fn files(&self) -> Result<Vec<&Model>> {
        let shards = self.references().filter(|r| r.kind() == ReferenceKind::Shard);
        core::iter::once(Ok(self)).chain(shards.map(|shard: Reference<'_>| shard.open())).collect()
    }
}

/// Marks segment `index`, if it is one.
fn mark(segments: &mut [bool], index: u32) {
    if let Some(place) = segments.get_mut(index as usize) {
        *place = true;
    }
}

fn bytes_of(archive: &Archive<FileSource>, segments: &BTreeSet<u32>) -> u64 {
    let bytes = segments.iter().filter_map(|i| archive.segment(*i)).map(|s| s.record().stored_bytes.get());
    bytes.fold(0, u64::saturating_add)
}

fn bits_per_weight(bytes: u64, elements: u64) -> f64 {
    match elements {
        0 => 0.0,
        _ => bytes as f64 * 8.0 / elements as f64,
    }
}

//! Verification of files, tensors and ranges, on all threads of the current rayon pool (spec:
//! container, 5).

use crate::error::{Error, Result};
use crate::model::Model;
use crate::references::ReferenceKind;
use crate::source::FileSource;
use crate::stored::Stored;
use crate::tensor::Tensor;
use cmf_format::Compression;
use cmf_format::archive::{Node, Segment};
use cmf_format::encoding::dense;
use cmf_format::wire::HEADER_BYTES;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// What [`Model::verify_with`] checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Besides hashes and padding, every code, index and frame of the tensors.
    pub values: bool,
    /// The files that hold tensors of this one, too. A base is a model of its own and is not
    /// verified.
    pub shards: bool,
    /// How many errors are kept; the others are counted.
    pub max_errors: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { values: true, shards: true, max_errors: 100 }
    }
}

/// What verification found.
#[derive(Debug, Default)]
pub struct Verification {
    /// The first errors: by file, hashes before values, in order of place.
    pub errors: Vec<Error>,
    /// Errors that were found beyond [`VerifyOptions::max_errors`].
    pub errors_left_out: u64,
    /// Files that were verified.
    pub files: usize,
    /// Bytes of these files.
    pub bytes: u64,
    /// Terms whose encoding this reader does not know: their hashes were checked, their values
    /// were not.
    pub unknown_terms: u64,
}

impl Verification {
    /// Whether nothing was found wrong.
    pub fn is_ok(&self) -> bool {
        self.errors.is_empty()
    }
}

impl Model {
    /// Checks every hash, all padding, stated sizes, and every code, index and frame, of this file
    /// and its shards.
    ///
    /// `progress` is called from several threads with the bytes that are done and those that there
    /// are: of the files, and again of what is decoded to be checked.
    pub fn verify_all(&self, progress: impl Fn(u64, u64) + Sync) -> Verification {
        self.verify_with(&VerifyOptions::default(), progress)
    }

    /// Checks what `options` say; else as [`Model::verify_all`].
    pub fn verify_with(&self, options: &VerifyOptions, progress: impl Fn(u64, u64) + Sync) -> Verification {
        let found = Found::new(options.max_errors);
        let mut models = vec![self];
        for shard in self.references().filter(|r| options.shards && r.kind() == ReferenceKind::Shard) {
            match shard.open() {
                Ok(model) => models.push(model),
                Err(error) => found.add((0, Phase::Shards, shard.record.index().into(), 0), error),
            }
        }
        let plans: Vec<_> = models.iter().map(|model| Values::of(model, options.values)).collect();
        let file_bytes = models.iter().map(|m| m.file_bytes()).fold(0, u64::saturating_add);
        let value_bytes = plans.iter().map(|p| p.bytes).fold(0, u64::saturating_add);
        let total = file_bytes.saturating_add(value_bytes);
        let done = AtomicU64::new(0);
        let advance = |bytes: u64| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            progress(before.saturating_add(bytes).min(total), total);
        };
        for (file, (model, values)) in models.iter().zip(&plans).enumerate() {
            let damaged = model.verify_hashes(file, &found, &advance);
            values.verify(model, file, &damaged, &found, &advance);
            if let Err(error) = model.check_unchanged() {
                found.add((file, Phase::Changed, 0, 0), error);
            }
        }
        progress(total, total);
        let (errors, errors_left_out) = found.into_parts();
        let unknown_terms = plans.iter().map(|p| p.unknown_terms).sum();
        Verification { errors, errors_left_out, files: models.len(), bytes: file_bytes, unknown_terms }
    }

    /// Checks the hashes and values of the tensor called `name` and of what it is a delta to.
    ///
    /// # Errors
    /// `Argument` when there is none, else the first breach.
    pub fn verify_tensor(&self, name: &str) -> Result<()> {
        self.expect_tensor(name)?.verify()
    }

    /// Checks the chunk groups of segment `segment` of this file that bytes `range` of it lie in.
    ///
    /// # Errors
    /// `Argument` when there is no such range, `Format` with `Hash` when it is damaged, `Io`,
    /// `Changed`.
    pub fn verify_range(&self, segment: u32, range: Range<u64>) -> Result<()> {
        let segment = self.archive().segment(segment).ok_or_else(|| {
            let problem = format!("expected below {}, found {segment}", self.archive().segments().len());
            Error::argument(self.path(), "segment", problem)
        })?;
        segment.verify_range(range).map_err(|e| self.source().error(e))
    }

    /// Checks all segments and the padding before them; gives the segments that are damaged.
    fn verify_hashes(&self, file: usize, found: &Found, advance: &(impl Fn(u64) + Sync)) -> BTreeSet<u32> {
        let damaged = Mutex::new(BTreeSet::new());
        let add = |phase, segment: &Segment<'_, FileSource>, group: u64, error| {
            lock(&damaged).insert(segment.index());
            found.add((file, phase, segment.index().into(), group), self.source().error(error));
        };
        let head_end = HEADER_BYTES.saturating_add(self.archive().header().directory_bytes.get());
        let segments: Vec<_> = self.archive().segments().collect();
        let ends = segments.iter().map(end_of);
        let starts: Vec<u64> = core::iter::once(head_end).chain(ends).collect();
        advance(head_end);
        segments.par_iter().zip(&starts).for_each(|(segment, start)| {
            if let Err(error) = segment.verify_padding() {
                add(Phase::Padding, segment, 0, error);
            }
            advance(segment.record().offset.get().saturating_sub(*start));
            match segment.chunk_groups() {
                Ok(groups) => groups.indices().into_par_iter().for_each(|group| {
                    if let Err(error) = groups.verify(group) {
                        add(Phase::Hashes, segment, group, error);
                    }
                    let bytes = groups.bytes(group);
                    advance(bytes.end.saturating_sub(bytes.start));
                }),
                Err(error) => {
                    add(Phase::Hashes, segment, 0, error);
                    advance(segment.record().stored_bytes.get());
                }
            }
        });
        damaged.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end_of(segment: &Segment<'_, FileSource>) -> u64 {
    segment.record().offset.get().saturating_add(segment.record().stored_bytes.get())
}

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

fn verify_node(node: &Node<'_, FileSource>) -> cmf_format::Result<()> {
    match node.is_known() {
        true => node.view()?.verify(),
        false => Ok(()),
    }
}

/// The nodes of one file whose values are checked.
struct Values {
    /// Compressed segments of attributes.
    attributes: Vec<u32>,
    /// Node, and the first tensor that uses it.
    nodes: Vec<(u32, u32)>,
    /// Stored bytes of `attributes` and `nodes`.
    bytes: u64,
    unknown_terms: u64,
    wanted: bool,
}

impl Values {
    fn of(model: &Model, wanted: bool) -> Self {
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
    fn verify(
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Shards,
    Changed,
    Padding,
    Hashes,
    Sizes,
    Attributes,
    Values,
}

/// File, phase, index, and group: the order of errors.
type Place = (usize, Phase, u64, u64);

/// Errors as threads find them, of which the first in order are kept.
struct Found {
    max: usize,
    kept: Mutex<BTreeMap<Place, Error>>,
    left_out: AtomicU64,
}

impl Found {
    fn new(max: usize) -> Self {
        Self { max, kept: Mutex::default(), left_out: AtomicU64::new(0) }
    }

    fn add(&self, place: Place, error: Error) {
        let mut kept = lock(&self.kept);
        kept.insert(place, error);
        if kept.len() > self.max {
            kept.pop_last();
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn into_parts(self) -> (Vec<Error>, u64) {
        let kept = self.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        (kept.into_values().collect(), self.left_out.into_inner())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

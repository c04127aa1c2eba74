//! Verification of what hashes do not cover: codes, indices, frames, stated sizes.

use super::found::{Found, Phase};
use crate::model::Model;
use crate::source::FileSource;
use crate::stored::{transform_segments, with_shape};
use cmf_format::archive::{Attribute, Matrix, MatrixView, Node, Segment, Tensor};
use cmf_format::encoding::{dense, grouped};
use cmf_format::{Archive, Compression, ErrorKind};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// What of one file is decoded to be checked.
pub(super) struct Values<'m> {
    items: Vec<Item<'m>>,
    /// Stored bytes of `items`.
    pub(super) bytes: u64,
    pub(super) unknown_terms: u64,
    wanted: bool,
}

enum Item<'m> {
    /// A compressed attribute.
    Attribute(Attribute<'m, FileSource>, Segment<'m, FileSource>),
    /// The transforms of a matrix.
    Transforms(Matrix<'m, FileSource>, Tensor<'m, FileSource>),
    /// A node, with the first tensor that uses it.
    Node(Node<'m, FileSource>, Tensor<'m, FileSource>),
}

impl<'m> Values<'m> {
    pub(super) fn of(model: &'m Model, wanted: bool) -> Self {
        let archive = model.archive();
        let mut values = Self { items: Vec::new(), bytes: 0, unknown_terms: 0, wanted };
        if !wanted {
            return values;
        }
        for attribute in archive.attributes() {
            let Some(segment) = attribute.segment() else { continue };
            if segment.record().is_known() && segment.compression() == Some(Compression::Zstd) {
                values.add(archive, Item::Attribute(attribute, segment));
            }
        }
        let mut nodes = Seen::new(archive.nodes().len());
        let mut next_matrix = 0;
        for tensor in archive.tensors() {
            // A tied tensor names matrices of one before it.
            if tensor.record().first_matrix.get() != next_matrix {
                continue;
            }
            next_matrix = next_matrix.saturating_add(tensor.record().matrix_count.get());
            for matrix in tensor.matrices() {
                let record = matrix.record();
                if record.input_transforms.get() != 0 || record.output_transforms.get() != 0 {
                    values.add(archive, Item::Transforms(matrix, tensor));
                }
                for term in matrix.terms() {
                    values.unknown_terms += u64::from(!term.is_known());
                    let node = term.node().filter(|_| term.is_known());
                    let Some(node) = node.filter(|n| nodes.first_time(n.index())) else { continue };
                    if !any_bytes_are_values(&node) {
                        values.add(archive, Item::Node(node, tensor));
                    }
                }
            }
        }
        values
    }

    fn add(&mut self, archive: &Archive<FileSource>, item: Item<'m>) {
        self.bytes = self.bytes.saturating_add(bytes_of(archive, &item.segments()));
        self.items.push(item);
    }

    /// Checks what has no damaged segments, and what units and schedule state.
    pub(super) fn verify(
        &self,
        model: &Model,
        file: usize,
        damaged: &BTreeSet<u32>,
        found: &Found,
        advance: &(impl Fn(u64) + Sync),
    ) {
        if !self.wanted {
            return;
        }
        let add = |phase, index: usize, error| {
            found.add((file, phase, index as u64, 0), model.source().error(error));
        };
        if let Err(error) = model.archive().verify_sizes() {
            add(Phase::Sizes, 0, error);
        }
        self.items.par_iter().enumerate().for_each(|(i, item)| {
            let segments = item.segments();
            if !segments.iter().any(|i| damaged.contains(i))
                && let Err(error) = item.verify()
            {
                add(Phase::Values, i, error);
            }
            advance(bytes_of(model.archive(), &segments));
        });
    }
}

impl Item<'_> {
    fn segments(&self) -> Vec<u32> {
        match self {
            Item::Attribute(_, segment) => vec![segment.index()],
            Item::Transforms(matrix, _) => transform_segments(matrix),
            Item::Node(node, _) => node.all_segments(),
        }
    }

    fn verify(&self) -> cmf_format::Result<()> {
        match self {
            Item::Attribute(attribute, segment) => segment
                .decoded()
                .map(drop)
                .map_err(|e| e.within(format_args!("attribute `{}`", attribute.name().escape_debug()))),
            Item::Transforms(matrix, tensor) => {
                verify_transforms(matrix).map_err(|e| e.in_tensor(tensor.name()))
            }
            Item::Node(node, tensor) => verify_node(node).map_err(|e| e.in_tensor(tensor.name())),
        }
    }
}

/// Checks the factors, signs and indices of the transforms of `matrix`. One that this reader does
/// not know passes.
pub(super) fn verify_transforms(matrix: &Matrix<'_, FileSource>) -> cmf_format::Result<()> {
    // Opening no rows opens the transforms.
    match MatrixView::open_rows(matrix, 0, 0..0) {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
        result => result.map(drop),
    }
}

/// Checks every rule that the payload of `node` and of all below it must keep, if they are known.
pub(super) fn verify_node(node: &Node<'_, FileSource>) -> cmf_format::Result<()> {
    match node.is_known() {
        true => node.view()?.verify(),
        false => Ok(()),
    }
}

/// Whether any bytes of the right length are values of `node`, so that there is no reason to read
/// them again. Only what most models consist of is recognised; anything else is decoded.
fn any_bytes_are_values(node: &Node<'_, FileSource>) -> bool {
    let record = node.record();
    let raw = node.segments().all(|s| s.compression() == Some(Compression::Raw));
    raw && match record.encoding.get() {
        dense::ID => true,
        // Rows that end with a word have no padding.
        grouped::ID => with_shape(node, grouped::Descriptor::parse).is_ok_and(|descriptor| {
            let row_bits = record.cols.get().checked_mul(descriptor.bits.into());
            row_bits.is_some_and(|bits| bits.is_multiple_of(32))
                && node.children().all(|child| any_bytes_are_values(&child))
        }),
        _ => false,
    }
}

fn bytes_of(archive: &Archive<FileSource>, segments: &[u32]) -> u64 {
    let segments = segments.iter().filter_map(|i| archive.segment(*i));
    segments.map(|s| s.record().stored_bytes.get()).fold(0, u64::saturating_add)
}

/// Which records of a table were met.
struct Seen(Vec<bool>);

impl Seen {
    fn new(records: usize) -> Self {
        Self(vec![false; records])
    }

    fn first_time(&mut self, index: u32) -> bool {
        self.0.get_mut(index as usize).is_some_and(|seen| !core::mem::replace(seen, true))
    }
}

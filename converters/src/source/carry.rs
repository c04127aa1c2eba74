//! Matrices of an archive as they are stored, to be carried into another.

use crate::error::{Error, Result};
use cmf_format::archive::{Matrix, Node, Segment, Tensor, Unit};
use cmf_format::wire::{self, TransformRecord};
use cmf_format::write::{MatrixEntry, TermEntry, TransformEntry, UnitEntry};
use cmf_format::{NodeData, SegmentData, SegmentSource, StoredSegment, WriteOptions, hash};
use cmf_loader::FileSource;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bit of the keys of segments that lie in a source, not in the spool of a conversion.
pub(crate) const CARRIED: u64 = 1 << 63;

/// Segments that were hashed, by key: shared ones are read once.
pub(super) type Hashed = Mutex<HashMap<u64, StoredSegment>>;

/// Carries what belongs to one tensor.
pub(super) struct Carrier<'a> {
    pub(super) path: &'a Path,
    pub(super) tensor: Tensor<'a, FileSource>,
    /// Number of the file that holds the tensor.
    pub(super) file: u32,
    pub(super) hashed: &'a Hashed,
}

impl Carrier<'_> {
    /// All matrices with their levels, terms and transforms. The bytes stay where they are; they are
    /// read once and checked against their hashes.
    ///
    /// # Errors
    /// `Unsupported` for deltas and flags, `BadFile` for damaged bytes.
    pub(super) fn matrices(&self) -> Result<Vec<MatrixEntry>> {
        if self.tensor.is_delta() {
            return Err(self.unsupported("is a delta to another archive"));
        }
        self.check_flags("tensor", self.tensor.record().flags.get())?;
        self.tensor.matrices().map(|matrix| self.matrix(&matrix)).collect()
    }

    fn matrix(&self, matrix: &Matrix<'_, FileSource>) -> Result<MatrixEntry> {
        let (inputs, outputs) = matrix.transforms();
        let transforms = |records: Vec<&TransformRecord>| {
            records.into_iter().map(|record| self.transform(matrix, record)).collect::<Result<_>>()
        };
        Ok(MatrixEntry {
            rows: matrix.rows(),
            cols: matrix.cols(),
            input_transforms: transforms(inputs)?,
            output_transforms: transforms(outputs)?,
            units: matrix.units().map(|unit| self.unit(&unit)).collect::<Result<_>>()?,
        })
    }

    fn transform(&self, matrix: &Matrix<'_, FileSource>, record: &TransformRecord) -> Result<TransformEntry> {
        self.check_flags("transform", record.flags.get())?;
        let node = matrix.archive().node(record.node.get());
        let segment = matrix.archive().segment(record.segment.get());
        let block = record.block.get();
        Ok(match (record.kind.get(), node, segment) {
            (wire::TRANSFORM_SCALE, Some(node), None) => TransformEntry::Scale(self.node(&node)?),
            (wire::TRANSFORM_SIGN_HADAMARD, None, None) => {
                TransformEntry::SignHadamard { block, seed: record.seed.get() }
            }
            (wire::TRANSFORM_SIGN_HADAMARD, None, Some(signs)) => {
                TransformEntry::StoredSignHadamard { block, signs: self.segment(&signs)? }
            }
            (wire::TRANSFORM_PERMUTE, None, Some(indices)) => {
                TransformEntry::Permute(self.segment(&indices)?)
            }
            (kind, ..) => return Err(self.unsupported(&format!("has a transform of kind {kind}"))),
        })
    }

    fn unit(&self, unit: &Unit<'_, FileSource>) -> Result<UnitEntry> {
        let record = unit.record();
        self.check_flags("unit", record.flags.get().into())?;
        let terms = unit.terms().map(|term| {
            let flags = term.record().flags.get();
            self.check_flags("term", (flags & !wire::TERM_OPTIONAL).into())?;
            let node = term.node().ok_or_else(|| self.unsupported("has a term without a node"))?;
            Ok(TermEntry {
                row_start: term.record().row_start.get(),
                col_start: term.record().col_start.get(),
                optional: term.is_optional(),
                node: self.node(&node)?,
            })
        });
        Ok(UnitEntry {
            level: record.level.get(),
            row_start: record.row_start.get(),
            rows: record.rows.get(),
            terms: terms.collect::<Result<_>>()?,
        })
    }

    fn node(&self, node: &Node<'_, FileSource>) -> Result<Arc<NodeData>> {
        let record = node.record();
        self.check_flags("node", record.flags.get().into())?;
        Ok(Arc::new(NodeData {
            encoding: record.encoding.get(),
            version: record.version.get(),
            rows: record.rows.get(),
            cols: record.cols.get(),
            descriptor: node.descriptor().to_vec(),
            segments: node.segments().map(|segment| self.segment(&segment)).collect::<Result<_>>()?,
            children: node.children().map(|child| self.node(&child)).collect::<Result<_>>()?,
        }))
    }

    fn segment(&self, segment: &Segment<'_, FileSource>) -> Result<SegmentData> {
        let record = segment.record();
        self.check_flags("segment", record.flags.get().into())?;
        let compression =
            segment.compression().ok_or_else(|| self.unsupported("has a segment of unknown compression"))?;
        let key = CARRIED | u64::from(self.file) << 32 | u64::from(segment.index());
        let hashed = || self.hashed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = hashed().get(&key).cloned();
        let stored = match known {
            Some(stored) => stored,
            None => {
                let stored = self.hash(segment, key)?;
                hashed().insert(key, stored.clone());
                stored
            }
        };
        Ok(SegmentData {
            source: SegmentSource::Stored(stored),
            decoded_bytes: record.decoded_bytes.get(),
            compression,
        })
    }

    fn hash(&self, segment: &Segment<'_, FileSource>, key: u64) -> Result<StoredSegment> {
        let failed = |e: cmf_format::Error| Error::bad_file(e.to_string()).caused_by(e);
        let bytes = segment.stored().map_err(failed).map_err(|e| self.placed(e))?;
        let chunk_group_bytes = WriteOptions::default().chunk_group_bytes as usize;
        let (hash, chunk_hashes) = hash::segment_hashes(&bytes, chunk_group_bytes);
        if hash != segment.record().hash {
            let damaged =
                Error::bad_file(format!("segment {}: bytes do not match their hash", segment.index()));
            return Err(self.placed(damaged.at(segment.record().offset.get())));
        }
        Ok(StoredSegment { key, stored_bytes: bytes.len() as u64, hash, chunk_hashes })
    }

    fn check_flags(&self, of: &str, flags: u32) -> Result<()> {
        match flags {
            0 => Ok(()),
            flags => Err(self.unsupported(&format!("has {of} flags {flags:#x}"))),
        }
    }

    fn unsupported(&self, what: &str) -> Error {
        self.placed(Error::unsupported(format!("{what}, which `keep` does not carry")))
    }

    fn placed(&self, error: Error) -> Error {
        error.file(self.path).tensor(self.tensor.name())
    }
}

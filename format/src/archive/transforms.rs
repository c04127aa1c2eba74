//! Transform records: their rules, and the transforms that they stand for (spec: transforms).

use super::Archive;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;
use crate::transform::Transform;
use crate::wire::{TRANSFORM_PERMUTE, TRANSFORM_SCALE, TRANSFORM_SIGN_HADAMARD, TransformRecord};

/// Checks a record against the decoded length of its segment and the shape of its node. A kind or
/// flag that this reader does not know passes: only the matrices that use it cannot be decoded.
pub(super) fn check(
    record: &TransformRecord,
    segment_bytes: Option<u64>,
    node_shape: Option<(u64, u64)>,
) -> Result<()> {
    if record.flags.get() & 0xFFFF != 0 {
        return Ok(());
    }
    let size = record.size.get();
    let bad = |part: &str, problem: String| Err(Error::new(ErrorKind::Structure, part, problem));
    let (segment, node, block) = match record.kind.get() {
        TRANSFORM_SCALE => (None, Some((1, size)), false),
        TRANSFORM_SIGN_HADAMARD => {
            let signs = segment_bytes.map(|_| size.div_ceil(32).saturating_mul(4));
            (signs, None, true)
        }
        TRANSFORM_PERMUTE => (Some(size.saturating_mul(4)), None, false),
        _ => return Ok(()),
    };
    if segment_bytes != segment {
        return bad("segment", format!("expected {segment:?} bytes, found {segment_bytes:?}"));
    }
    if node_shape != node {
        return bad("node", format!("expected {node:?}, found {node_shape:?}"));
    }
    let stated = record.block.get();
    if block && !(stated.is_power_of_two() && size.is_multiple_of(stated)) {
        return bad("block", format!("{stated} is no power of two that divides {size}"));
    }
    if !block && stated != 0 {
        return bad("block", format!("expected 0, found {stated}"));
    }
    if record.seed.get() != 0 && (!block || segment_bytes.is_some()) {
        return bad("seed", "expected 0".into());
    }
    Ok(())
}

/// Bytes that factors, signs or indices of a transform take in memory. A node of factors may take
/// none in the file.
pub(super) fn decoded_bytes<S: Source>(archive: &Archive<S>, record: &TransformRecord) -> u64 {
    let segment = archive.segment(record.segment.get()).map_or(0, |s| s.record().decoded_bytes.get());
    let node = archive.node(record.node.get()).map_or(0, |n| n.held_bytes());
    let factors = match record.kind.get() {
        TRANSFORM_SCALE => record.size.get().saturating_mul(4),
        _ => 0,
    };
    // Signs and indices are copied out of their segment.
    segment.saturating_mul(2).saturating_add(node).saturating_add(factors)
}

/// Rows that an output-side transform holds to make one row.
pub(super) fn working_rows(record: &TransformRecord) -> u64 {
    match record.kind.get() {
        TRANSFORM_SIGN_HADAMARD => record.block.get(),
        TRANSFORM_PERMUTE => record.size.get(),
        _ => 0,
    }
}

/// The transform that a record stands for, with its factors, signs or indices.
pub(super) fn load<S: Source>(archive: &Archive<S>, record: &TransformRecord) -> Result<Transform> {
    let kind = record.kind.get();
    let unknown = |what: String| Error::new(ErrorKind::Unsupported, "transform", what);
    if record.flags.get() & 0xFFFF != 0 {
        return Err(unknown(format!("flags {:#x} are unknown to this reader", record.flags.get())));
    }
    let size = usize::try_from(record.size.get()).map_err(|_| {
        Error::new(ErrorKind::Limit, "transform", format!("size {} is too large", record.size.get()))
    })?;
    let segment = match archive.segment(record.segment.get()) {
        Some(segment) => Some(segment.decoded()?),
        None => None,
    };
    let transform = match (kind, segment) {
        (TRANSFORM_SCALE, _) => {
            let mut factors = vec![0.0; size];
            if let Some(node) = archive.node(record.node.get()) {
                node.view()?.decode_rows(0..1, &mut factors)?;
            }
            Ok(Transform::scale(factors))
        }
        (TRANSFORM_SIGN_HADAMARD, Some(signs)) => {
            Transform::stored_sign_hadamard(size, record.block.get(), &signs)
        }
        (TRANSFORM_SIGN_HADAMARD, None) => {
            Transform::sign_hadamard(size, record.block.get(), record.seed.get())
        }
        (TRANSFORM_PERMUTE, Some(indices)) => Transform::permute_bytes(&indices),
        _ => Err(unknown(format!("kind {kind} is unknown to this reader"))),
    };
    transform.map_err(|e| e.within("transform"))
}

/// Checks signs, indices and factors of a transform that this reader knows.
pub(super) fn verify<S: Source>(archive: &Archive<S>, record: &TransformRecord) -> Result<()> {
    let node = archive.node(record.node.get());
    let segment = archive.segment(record.segment.get());
    let known = record.flags.get() & 0xFFFF == 0
        && node.is_none_or(|node| node.is_known())
        && segment.is_none_or(|segment| segment.record().is_known());
    match (record.kind.get(), node, segment) {
        (TRANSFORM_SCALE, Some(node), _) if known => {
            node.view().and_then(|view| view.verify()).map_err(|e| e.within("transform"))
        }
        (TRANSFORM_SIGN_HADAMARD | TRANSFORM_PERMUTE, _, Some(_)) if known => {
            archive.limits().check_decoded_tensor(decoded_bytes(archive, record))?;
            load(archive, record).map(drop)
        }
        _ => Ok(()),
    }
}

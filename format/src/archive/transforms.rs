//! Transform records: their rules (spec: transforms).

use crate::error::{Error, ErrorKind, Result};
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

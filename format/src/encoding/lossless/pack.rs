//! Builds `lossless` nodes.

use super::{Descriptor, ID, MAX_FRAME_ELEMENTS, VERSION, planes};
use crate::dtype::DType;
use crate::encoding::{extent, structure};
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, ParamSwitch, Strategy};

/// Elements of a frame, as far as rows allow. Larger frames save less than a thousandth and make
/// the read of a single row slower in proportion.
const FRAME_ELEMS: u64 = 1 << 15;

/// Builds a node from little-endian element bytes, row-major without padding.
///
/// # Errors
/// `Structure` when `bytes` is not `rows * cols` elements long, `Argument` when zstd refuses.
pub fn pack(dtype: DType, rows: u64, cols: u64, bytes: &[u8]) -> Result<NodeData> {
    let expected = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.bytes() as u64));
    if expected != Some(bytes.len() as u64) {
        return Err(structure(
            "elements",
            format!("expected {rows} by {cols} of {} bytes, found {} bytes", dtype.bytes(), bytes.len()),
        ));
    }
    let rows_per_frame = (FRAME_ELEMS / cols.max(1)).clamp(1, rows.clamp(1, FRAME_ELEMS));
    let frame_bytes = rows_per_frame.saturating_mul(cols).saturating_mul(dtype.bytes() as u64);
    let zstd = |e: std::io::Error| Error::new(ErrorKind::Argument, "zstd", e.to_string());
    let mut compressor = compressor().map_err(zstd)?;
    let (mut ends, mut chunks, mut plane_bytes) = (Vec::new(), Vec::new(), Vec::new());
    for elements in bytes.chunks(extent("cols", frame_bytes)?.max(1)) {
        for plane in 0..dtype.bytes() {
            planes::split(dtype.bytes(), plane, elements, &mut plane_bytes);
            let frame = match plane_bytes.len() as u64 <= MAX_FRAME_ELEMENTS {
                true => Some(compressor.compress(&plane_bytes).map_err(zstd)?),
                false => None,
            };
            // A chunk of the plane's own length is raw; saving a 64th is not worth decoding.
            let worth = frame.as_ref().filter(|f| f.len() < plane_bytes.len() - plane_bytes.len() / 64);
            chunks.extend_from_slice(worth.unwrap_or(&plane_bytes));
            ends.extend_from_slice(&(chunks.len() as u64).to_le_bytes());
        }
    }
    let descriptor =
        Descriptor { dtype, rows_per_frame: rows_per_frame as u32, chunk_bytes: chunks.len() as u64 };
    let segments = vec![ends.into(), chunks.into()];
    NodeData::new(ID, VERSION, rows, cols, descriptor.to_bytes(), segments, Vec::<NodeData>::new())
}

/// A compressor that looks for next to no matches: exponents are independent draws, which Huffman
/// coding alone brings near their entropy, and literals decode at twice the speed of matches.
fn compressor() -> std::io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(1)?;
    for parameter in [
        CParameter::Strategy(Strategy::ZSTD_fast),
        CParameter::MinMatch(7),
        CParameter::TargetLength(1 << 17),
        CParameter::HashLog(6),
        CParameter::LiteralCompressionMode(ParamSwitch::Enable),
    ] {
        compressor.set_parameter(parameter)?;
    }
    Ok(compressor)
}

//! Codes to paths.

use super::{Axis, Descriptor, ID, VERSION};
use crate::encoding::{extent, structure};
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeData;
use std::sync::Arc;

/// Builds a node from codes of `step_bits` bits, one a weight, row-major.
///
/// `scale` is `[scale groups down | 1, scale groups across | 1]`, `table` is `[1, 2^state_bits]`
/// and present if the code is [`Code::Table`](super::Code::Table); it may be shared with other nodes.
///
/// # Errors
/// `Argument` for a code that does not fit or a wrong number of codes, `Structure` when the parts
/// do not fit together.
pub fn pack(
    descriptor: &Descriptor,
    rows: u64,
    cols: u64,
    codes: &[u8],
    scale: impl Into<Arc<NodeData>>,
    table: Option<Arc<NodeData>>,
) -> Result<NodeData> {
    descriptor.check()?;
    let count = rows.checked_mul(cols).ok_or_else(|| structure("shape", "size overflows 64 bits"))?;
    if codes.len() as u64 != count {
        return Err(Error::expected(
            ErrorKind::Argument,
            "codes",
            format_args!("{count} codes"),
            codes.len(),
        ));
    }
    if let Some(code) = codes.iter().find(|code| **code >> descriptor.step_bits != 0) {
        let problem = format!("code {code} does not fit {} bits", descriptor.step_bits);
        return Err(Error::new(ErrorKind::Argument, "codes", problem));
    }
    let paths = paths(descriptor, rows, cols, codes)?;
    let children = [Some(scale.into()), table].into_iter().flatten().collect();
    NodeData::new(ID, VERSION, rows, cols, descriptor.to_bytes(), vec![paths.into()], children)
}

fn paths(descriptor: &Descriptor, rows: u64, cols: u64, codes: &[u8]) -> Result<Vec<u8>> {
    let overflow = || structure("paths", "size overflows 64 bits");
    let bytes = descriptor.path_bytes(rows, cols).ok_or_else(overflow)?;
    let mut words = vec![[0u8; 4]; extent("paths", bytes / 4)?];
    if codes.is_empty() {
        return Ok(Vec::new());
    }
    let width = extent("cols", cols)?;
    let step = usize::from(descriptor.step_bits);
    let (axis_elems, _) = descriptor.axis_and_lines(rows, cols);
    let path_elems = match descriptor.path_elems {
        0 => axis_elems,
        n => axis_elems.min(n.into()),
    };
    let path_words = extent("paths", descriptor.path_words(path_elems).ok_or_else(overflow)?)?;
    let row_words = extent("paths", descriptor.axis_words(cols).ok_or_else(overflow)?)?;
    let path_elems = extent("path_elems", path_elems)?;
    let mut set = |index: usize, code: u32| {
        if let Some(word) = words.get_mut(index) {
            *word = (u32::from_le_bytes(*word) | code).to_le_bytes();
        }
    };
    for (row, codes) in codes.chunks_exact(width).enumerate() {
        for (col, code) in codes.iter().enumerate() {
            // The first word of the path, and from one word of the path to the next.
            let (first, stride, t) = match descriptor.axis {
                Axis::Down => (row / path_elems * path_words * width + col, width, row % path_elems),
                Axis::Along => (row * row_words + col / path_elems * path_words, 1, col % path_elems),
            };
            let (word, shift) = (t * step / 32, t * step % 32);
            let code = u64::from(*code) << shift;
            set(first + word * stride, code as u32);
            if code >> 32 != 0 {
                set(first + (word + 1) * stride, (code >> 32) as u32);
            }
        }
    }
    Ok(words.into_flattened())
}

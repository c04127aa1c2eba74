//! `lossless`: frames are decompressed once, into buffers of the thread.

use super::Wanted;
use crate::arch::{self, Simd};
use crate::error::Result;
use crate::lines::Lines;
use crate::operands::BLOCK;
use cmf_format::DType;
use cmf_format::encoding::lossless::{Frame, View, Workspace};
use core::ops::Range;

/// A workspace, and the node whose frame lies in it.
#[derive(Debug)]
pub(crate) struct Frames {
    workspace: Workspace,
    /// Where the view is: no other is there before [`Frames::forget`].
    node: usize,
}

impl Frames {
    /// Of nothing: views that were there may be gone.
    pub(crate) fn forget(&mut self) {
        self.workspace.forget();
    }

    pub(crate) fn bytes(&self) -> usize {
        self.workspace.bytes()
    }
}

pub(super) fn decode(view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
    let Wanted { simd, rows, out, work } = wanted;
    let cols = view.cols();
    if out.is_empty() {
        return Ok(());
    }
    let mut bytes = core::mem::take(&mut work.panel);
    let node = core::ptr::from_ref(view).addr();
    let frames = match &mut work.frames {
        Some(frames) => frames,
        none => none.insert(Box::new(Frames { workspace: Workspace::new()?, node })),
    };
    if frames.node != node {
        frames.workspace.forget();
        frames.node = node;
    }
    let (mut row, mut rest) = (rows.start, out);
    let mut done = Ok(());
    while row < rows.end && done.is_ok() {
        let frame = view.frame(&mut frames.workspace, row / view.rows_per_frame().max(1));
        done = frame.and_then(|frame| {
            let of_frame = frame.rows();
            let end = of_frame.end.min(rows.end);
            let (own, next) = core::mem::take(&mut rest).split_at_mut((end - row) * cols);
            let elements = (row - of_frame.start) * cols..(end - of_frame.start) * cols;
            (row, rest) = (end, next);
            decode_elements(simd, view.dtype(), &frame, elements, &mut bytes, own)
        });
    }
    work.panel = bytes;
    done.map_err(|e| e.within("lossless"))
}

/// Elements of a frame.
fn decode_elements(
    simd: Simd,
    dtype: DType,
    frame: &Frame<'_>,
    elements: Range<usize>,
    bytes: &mut Lines<[u8; BLOCK]>,
    out: &mut [f32],
) -> Result<()> {
    let empty: &[u8] = &[];
    let part = |plane: usize| {
        let plane = frame.planes().get(plane).copied().unwrap_or(empty);
        plane.get(elements.clone()).unwrap_or(empty)
    };
    match dtype {
        DType::BF16 => simd.run(
            #[inline(always)]
            || {
                for ((out, high), low) in out.iter_mut().zip(part(0)).zip(part(1)) {
                    // The sign is the lowest bit.
                    let [high, low] = [*high, *low].map(u32::from);
                    *out = f32::from_bits(low << 31 | high << 23 | low >> 1 << 16);
                }
            },
        ),
        DType::F32 => simd.run(
            #[inline(always)]
            || {
                let (high, low) = (part(0).iter().zip(part(1)), part(2).iter().zip(part(3)));
                for ((out, (a, b)), (c, d)) in out.iter_mut().zip(high).zip(low) {
                    *out = f32::from_bits(u32::from_be_bytes([*a, *b, *c, *d]).rotate_right(1));
                }
            },
        ),
        _ => {
            let count = elements.len() * dtype.bytes();
            let bytes =
                bytes.sized(count.div_ceil(BLOCK)).as_flattened_mut().get_mut(..count).unwrap_or(&mut []);
            frame.merge(elements, bytes);
            if dtype != DType::F16 {
                return dtype.decode(bytes, out);
            }
            arch::halves(simd, bytes.as_chunks().0, out);
        }
    }
    Ok(())
}

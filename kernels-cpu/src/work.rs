//! Buffers that kernels work in.

use crate::lines::Lines;
use crate::node::Frames;
use crate::operands::BLOCK;

/// Buffers of one thread for one level of a tree of nodes. They only grow, so that nothing is
/// allocated once they have met their largest matrix.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Decoded rows of a child.
    pub(crate) raw: Lines<f32>,
    pub(crate) scales: Lines<f32>,
    pub(crate) zeros: Lines<f32>,
    /// Decoded rows, padded to blocks.
    pub(crate) tile: Lines<[f32; BLOCK]>,
    /// The same, of a sum of terms that are decoded to the former.
    pub(crate) sum: Lines<[f32; BLOCK]>,
    /// Values of trellis paths plus 128, padded to blocks.
    pub(crate) panel: Lines<[u8; BLOCK]>,
    /// Sums of trellis paths.
    pub(crate) lanes: Lines<[f32; 16]>,
    /// Columns of listed values, or bits where there are any.
    pub(crate) positions: Lines<u32>,
    /// Signs of blocks.
    pub(crate) signs: Lines<u64>,
    /// The end of paths, which comes before their start.
    pub(crate) wrap: Lines<[u8; 4]>,
    /// Of `lossless` nodes.
    pub(crate) frames: Option<Box<Frames>>,
    /// Buffers of the children.
    below: Option<Box<Work>>,
}

impl Work {
    /// Buffers of the children.
    pub(crate) fn below(&mut self) -> &mut Work {
        self.below.get_or_insert_default()
    }

    /// Forgets what the buffers hold of nodes, which may be gone.
    pub(crate) fn forget(&mut self) {
        self.frames.iter_mut().for_each(|frames| frames.forget());
        self.below.iter_mut().for_each(|below| below.forget());
    }

    /// Bytes that the buffers take.
    pub(crate) fn bytes(&self) -> usize {
        let floats = self.raw.bytes() + self.scales.bytes() + self.zeros.bytes();
        let blocks = self.tile.bytes() + self.sum.bytes() + self.panel.bytes();
        floats
            + blocks
            + self.lanes.bytes()
            + self.wrap.bytes()
            + self.positions.bytes()
            + self.frames.as_ref().map_or(0, |frames| frames.bytes())
            + self.signs.bytes()
            + self.below.as_ref().map_or(0, |below| below.bytes())
    }
}

//! Buffers that kernels work in.

use crate::operands::BLOCK;

/// Buffers of one thread for one level of a tree of nodes. They only grow, so that nothing is
/// allocated once they have met their largest matrix.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Decoded rows of a child.
    pub(crate) raw: Vec<f32>,
    pub(crate) scales: Vec<f32>,
    pub(crate) zeros: Vec<f32>,
    /// Decoded rows, padded to blocks.
    pub(crate) tile: Vec<[f32; BLOCK]>,
    /// The same, of a sum of terms that are decoded to the former.
    pub(crate) sum: Vec<[f32; BLOCK]>,
    /// Values of trellis paths plus 128, padded to blocks.
    pub(crate) panel: Vec<[u8; BLOCK]>,
    /// Sums of trellis paths.
    pub(crate) lanes: Vec<[f32; 16]>,
    /// The end of paths, which comes before their start.
    pub(crate) wrap: Vec<[u8; 4]>,
    /// Buffers of the children.
    below: Option<Box<Work>>,
}

impl Work {
    /// Buffers of the children.
    pub(crate) fn below(&mut self) -> &mut Work {
        self.below.get_or_insert_default()
    }

    /// Bytes that the buffers take.
    pub(crate) fn bytes(&self) -> usize {
        let floats = self.raw.capacity() + self.scales.capacity() + self.zeros.capacity();
        floats * 4
            + (self.tile.capacity() + self.sum.capacity()) * size_of::<[f32; BLOCK]>()
            + self.panel.capacity() * BLOCK
            + self.lanes.capacity() * 64
            + self.wrap.capacity() * 4
            + self.below.as_ref().map_or(0, |below| below.bytes())
    }
}

/// The first `length` values of a buffer, which grows as needed; what they hold is left over.
pub(crate) fn sized<T: Clone + Default>(buffer: &mut Vec<T>, length: usize) -> &mut [T] {
    sized_with(buffer, length, T::default())
}

/// As [`sized`], for values without a default.
pub(crate) fn sized_with<T: Clone>(buffer: &mut Vec<T>, length: usize, value: T) -> &mut [T] {
    if buffer.len() < length {
        buffer.resize(length, value);
    }
    buffer.get_mut(..length).unwrap_or(&mut [])
}

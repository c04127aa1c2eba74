//! Memory that a recording works in, kept from one to the next.

use crate::error::Result;
use crate::kernels::Kernels;

/// What a scratch buffer is for; two of one dispatch differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scratch {
    /// Results of every other transform of a list.
    Even,
    /// Those between.
    Odd,
    /// Hadamard blocks that do not fit workgroup memory.
    Wide,
    /// A sum before the output-side transforms.
    Sum,
    /// What the first factor of a `low_rank` term gives.
    Inner,
    /// The same, laid out for the second.
    InnerTiles,
    /// Decoded factors.
    Factor,
    /// Decoded rows.
    Decoded,
}

/// Scratch buffers, which grow to what is needed and stay.
///
/// One workspace may be used by any number of recordings that are submitted in the order in which they
/// were recorded, on one queue.
#[derive(Debug, Default)]
pub struct Workspace {
    buffers: [Option<wgpu::Buffer>; 8],
}

impl Workspace {
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.buffers.iter().flatten().map(wgpu::Buffer::size).sum()
    }

    pub(crate) fn get(&mut self, kernels: &Kernels, scratch: Scratch, elements: u64) -> Result<wgpu::Buffer> {
        grown(kernels, self.buffers.get_mut(scratch as usize).unwrap_or(&mut None), elements)
    }
}

/// The buffer in `place`, of at least `elements` f32.
pub(crate) fn grown(
    kernels: &Kernels,
    place: &mut Option<wgpu::Buffer>,
    elements: u64,
) -> Result<wgpu::Buffer> {
    let bytes = elements.saturating_mul(4).max(256);
    if let Some(buffer) = place.as_ref().filter(|b| b.size() >= bytes) {
        return Ok(buffer.clone());
    }
    let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::UNIFORM;
    let buffer = kernels.storage(bytes, usage)?;
    *place = Some(buffer.clone());
    Ok(buffer)
}

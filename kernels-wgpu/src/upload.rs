//! Segments to the device in bounded staging memory.

use crate::device::scoped;
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use core::num::NonZeroU64;

/// Bytes of a staging buffer.
const CHUNK_BYTES: u64 = 4 << 20;
/// Bytes that are staged before they are submitted; twice as many may be on their way.
const SUBMIT_BYTES: u64 = 16 << 20;

/// Copies bytes into buffers of the device: straight into them where the device's memory is that of the
/// processor and wgpu maps it ([`wgpu::Features::MAPPABLE_PRIMARY_BUFFERS`]), else through a belt of staging
/// buffers, which are used again and again: never more than about 36 MiB of them.
///
/// What was written is there for whatever is submitted after [`Uploader::finish`].
#[derive(Debug)]
pub struct Uploader {
    device: wgpu::Device,
    queue: wgpu::Queue,
    belt: wgpu::util::StagingBelt,
    encoder: Option<wgpu::CommandEncoder>,
    staged_bytes: u64,
    last: Option<wgpu::SubmissionIndex>,
}

impl Uploader {
    /// An uploader to `device`.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        Self {
            belt: wgpu::util::StagingBelt::new(device.clone(), CHUNK_BYTES),
            device: device.clone(),
            queue: queue.clone(),
            encoder: None,
            staged_bytes: 0,
            last: None,
        }
    }

    /// A storage buffer with `parts`, each where it says, and zeros between them.
    pub(crate) fn filled(
        &mut self,
        kernels: &Kernels,
        bytes: u64,
        usage: wgpu::BufferUsages,
        parts: &[(u64, &[u8])],
    ) -> Result<wgpu::Buffer> {
        if kernels.maps() {
            return kernels.storage_of(bytes, usage, parts);
        }
        let buffer = kernels.storage(bytes, usage)?;
        parts.iter().try_for_each(|(offset, part)| self.write(&buffer, *offset, part))?;
        Ok(buffer)
    }

    /// Writes `bytes` at `offset`, a multiple of 4, of `buffer`; up to three zero bytes after them make
    /// the length one too.
    pub(crate) fn write(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
        let mut at = offset;
        for chunk in words.chunks(CHUNK_BYTES as usize) {
            self.stage(buffer, at, chunk)?;
            at += chunk.len() as u64;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let mut last = [0; 4];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.stage(buffer, at, &last)
    }

    fn stage(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(size) = NonZeroU64::new(bytes.len() as u64) else { return Ok(()) };
        scoped(&self.device, || {
            let encoder = self.encoder.get_or_insert_with(|| {
                self.device
                    .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("cmf upload") })
            });
            self.belt.write_buffer(encoder, buffer, offset, size).copy_from_slice(bytes);
        })?;
        self.staged_bytes += size.get();
        match self.staged_bytes >= SUBMIT_BYTES {
            true => self.submit(),
            false => Ok(()),
        }
    }

    fn submit(&mut self) -> Result<()> {
        let Some(encoder) = self.encoder.take() else { return Ok(()) };
        self.staged_bytes = 0;
        self.belt.finish();
        let index = scoped(&self.device, || self.queue.submit([encoder.finish()]))?;
        self.belt.recall();
        // The staging buffers of the submission before are free once it is done.
        let waited = self.last.replace(index);
        let poll = match waited {
            Some(index) => wgpu::PollType::Wait { submission_index: Some(index), timeout: None },
            None => wgpu::PollType::Poll,
        };
        self.device.poll(poll).map(drop).map_err(Error::device)
    }

    /// Submits what is staged.
    ///
    /// # Errors
    /// `Device` when the device is lost or has no memory.
    pub fn finish(&mut self) -> Result<()> {
        self.submit()
    }
}

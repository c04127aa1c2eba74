//! Buffers that a caller keeps between multiplications.

use crate::work::Work;

/// Buffers of multiplications, one after the other. They grow to what the largest matrix needs and
/// are kept, so that nothing is allocated from then on.
#[derive(Debug, Default)]
pub struct Scratch {
    workers: Vec<Work>,
    pub(crate) products: Vec<f32>,
    pub(crate) vector: Vec<f32>,
}

impl Scratch {
    /// No buffers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        let own = (self.products.capacity() + self.vector.capacity()) * 4;
        own + self.workers.iter().map(Work::bytes).sum::<usize>()
    }

    /// Buffers of so many threads.
    pub(crate) fn workers(&mut self, threads: usize) -> &mut [Work] {
        if self.workers.len() < threads {
            self.workers.resize_with(threads, Work::default);
        }
        self.workers.get_mut(..threads).unwrap_or(&mut [])
    }
}

//! Buffers that a caller keeps between multiplications.

use crate::lines::Lines;
use crate::work::Work;

/// Buffers of multiplications, one after the other. They grow to what the largest matrix needs and
/// are kept, as those of [`crate::Activations`] are.
///
/// From then on, loading activations, multiplying and decoding rows allocate nothing on the thread that
/// works, for `dense` of f16, bf16 and f32, for `grouped`, `trellis`, `nested`, `codebook`, `sparse`,
/// `sign_low_rank` and `lossless` nodes that have a kernel, for products with `low_rank`, and for sums of these.
/// What does allocate: whatever goes by the reference decode (the nodes above that have no kernel), rows
/// decoded under transforms of the output side, [`crate::Linear::decode_elements`], and rayon when it
/// hands work to other threads.
#[derive(Debug, Default)]
pub struct Scratch {
    workers: Vec<Work>,
    pub(crate) products: Lines<f32>,
    pub(crate) vector: Lines<f32>,
}

impl Scratch {
    /// No buffers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.products.bytes() + self.vector.bytes() + self.workers.iter().map(Work::bytes).sum::<usize>()
    }

    /// Buffers of so many threads, for one operation.
    pub(crate) fn workers(&mut self, threads: usize) -> &mut [Work] {
        if self.workers.len() < threads {
            self.workers.resize_with(threads, Work::default);
        }
        let workers = self.workers.get_mut(..threads).unwrap_or(&mut []);
        workers.iter_mut().for_each(Work::forget);
        workers
    }
}

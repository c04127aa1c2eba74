//! Buffers that begin on a cache line.

use bytemuck::{Pod, Zeroable};
use core::marker::PhantomData;
use core::ops::Deref;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Values from the start of a cache line on, so that no vector of 64 bytes of them lies in two: such a load
/// takes twice the time. The bytes of a value divide 64, or are a multiple of it.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    lines: Vec<Line>,
    length: usize,
    values: PhantomData<T>,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), length: 0, values: PhantomData }
    }
}

impl<T: Pod> Lines<T> {
    /// The first `length` values of a buffer that only grows; what they hold is left over.
    pub(crate) fn sized(&mut self, length: usize) -> &mut [T] {
        if self.length < length {
            self.lines.resize(length.saturating_mul(size_of::<T>()).div_ceil(64), Line::zeroed());
            self.length = length;
        }
        self.values_mut().get_mut(..length).unwrap_or(&mut [])
    }

    /// Exactly `length` values; what they hold is left over.
    pub(crate) fn exactly(&mut self, length: usize) -> &mut [T] {
        self.length = self.length.min(length);
        self.sized(length)
    }

    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    fn values_mut(&mut self) -> &mut [T] {
        bytemuck::try_cast_slice_mut(&mut self.lines).unwrap_or(&mut [])
    }
}

impl<T: Pod> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let values: &[T] = bytemuck::try_cast_slice(&self.lines).unwrap_or(&[]);
        values.get(..self.length).unwrap_or(values)
    }
}

//! Buffers that are written before wgpu has them, on Vulkan. wgpu puts zeros into a buffer before it maps it: each
//! byte would be written twice.

pub(crate) use driver::filled;

#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
#[expect(unsafe_code, reason = "wgpu maps no buffer of its own without writing zeros")]
mod driver {
    use crate::device::scoped;
    use crate::error::{Error, Result};
    use core::mem::MaybeUninit;
    use core::slice;
    use wgpu::hal::{self, Device as _, api::Vulkan};
    use wgpu::wgt::{BufferUsages, BufferUses};

    /// What hal calls the usages that a buffer of this crate may have.
    const USES: [(BufferUsages, BufferUses); 5] = [
        (BufferUsages::STORAGE, BufferUses::STORAGE_READ_ONLY.union(BufferUses::STORAGE_READ_WRITE)),
        (BufferUsages::UNIFORM, BufferUses::UNIFORM),
        (BufferUsages::COPY_DST, BufferUses::COPY_DST),
        (BufferUsages::COPY_SRC, BufferUses::COPY_SRC),
        (BufferUsages::MAP_WRITE, BufferUses::MAP_WRITE),
    ];

    /// A buffer with `parts`, each where it says, in ascending order, and zeros between them. `descriptor` has the
    /// usage `MAP_WRITE`, and a size that is not 0. `None` where the device is not one of Vulkan.
    ///
    /// # Errors
    /// `Device` when the device is lost or has no memory; `Argument` for parts that overlap or reach beyond the
    /// buffer, and for another usage.
    pub(crate) fn filled(
        device: &wgpu::Device,
        descriptor: &wgpu::BufferDescriptor<'_>,
        parts: &[(u64, &[u8])],
    ) -> Result<Option<wgpu::Buffer>> {
        // SAFETY: the guard is dropped at the end of this function, and what it gives is not destroyed.
        let Some(inner) = (unsafe { device.as_hal::<Vulkan>() }) else { return Ok(None) };
        let known = USES.iter().filter(|(usage, _)| descriptor.usage.contains(*usage));
        let (usages, usage) = known
            .fold((BufferUsages::empty(), BufferUses::empty()), |all, one| (all.0 | one.0, all.1 | one.1));
        let bytes = usize::try_from(descriptor.size).ok().filter(|bytes| *bytes > 0);
        let (Some(bytes), true) =
            (bytes, usages == descriptor.usage && usages.contains(BufferUsages::MAP_WRITE))
        else {
            return Err(Error::argument(format!("{} bytes for {:?}", descriptor.size, descriptor.usage)));
        };
        let plan = hal::BufferDescriptor {
            label: descriptor.label,
            size: descriptor.size,
            usage,
            memory_flags: hal::MemoryFlags::empty(),
        };
        scoped(device, || {
            answers(device)?;
            // SAFETY: the size is not 0 and the usage not empty, and both are within what the device has: callers
            // ask for no more than its limit, and for usages that every device has.
            let buffer = unsafe { inner.create_buffer(&plan) }.map_err(Error::device)?;
            if let Err(error) = write(&inner, &buffer, bytes, parts) {
                // SAFETY: nothing else has the buffer, so that nothing uses it.
                unsafe { inner.destroy_buffer(buffer) };
                return Err(error);
            }
            // SAFETY: the buffer is of this device's own hal device, which `inner` is; `usage` is what hal calls that
            // of `descriptor`, the size is the same and not 0, and `write` has written every byte.
            Ok(Some(unsafe { device.create_buffer_from_hal::<Vulkan>(buffer, descriptor) }))
        })?
    }

    /// Writes every byte of a buffer that nothing else has yet, was made with `MAP_WRITE`, and has this length.
    fn write(
        device: &<Vulkan as hal::Api>::Device,
        buffer: &<Vulkan as hal::Api>::Buffer,
        bytes: usize,
        parts: &[(u64, &[u8])],
    ) -> Result<()> {
        let all = 0..bytes as u64;
        // SAFETY: hal has made the buffer, with `MAP_WRITE`, of `bytes` bytes, and it is not mapped yet.
        let mapping = unsafe { device.map_buffer(buffer, all.clone()) }.map_err(Error::device)?;
        // SAFETY: the mapping is of `bytes` bytes of memory that belong to this buffer alone, until it is unmapped
        // below; neither the device, which has not been told of the buffer, nor anybody else reads or writes them
        // meanwhile. Bytes need no alignment, and may be uninitialised as they are here.
        let memory = unsafe { slice::from_raw_parts_mut(mapping.ptr.as_ptr().cast(), bytes) };
        let filled = fill(memory, parts);
        if !mapping.is_coherent {
            // SAFETY: the buffer is mapped, and the range is all of it.
            unsafe { device.flush_mapped_ranges(buffer, core::iter::once(all)) };
        }
        // SAFETY: the buffer is mapped, and `memory` is not used from here on.
        unsafe { device.unmap_buffer(buffer) };
        filled
    }

    /// Writes every byte of `memory`: `parts`, and zeros between them.
    fn fill(mut memory: &mut [MaybeUninit<u8>], parts: &[(u64, &[u8])]) -> Result<()> {
        let mut at = 0;
        for (offset, part) in parts {
            let zeros = offset.checked_sub(at).and_then(|zeros| usize::try_from(zeros).ok());
            let zeros = zeros.and_then(|zeros| memory.split_off_mut(..zeros));
            let places = zeros.and_then(|zeros| Some((zeros, memory.split_off_mut(..part.len())?)));
            let (zeros, place) = places.ok_or_else(|| Error::argument(format!("a part at byte {offset}")))?;
            zeros.fill(MaybeUninit::new(0));
            copy(place, part);
            at = offset + part.len() as u64;
        }
        memory.fill(MaybeUninit::new(0));
        Ok(())
    }

    /// Copies bytes past the caches, as the system's function does with more of them than caches hold: many units
    /// are, one after the other, and what lies in memory already need not be read to be written.
    #[cfg(target_arch = "x86_64")]
    fn copy(place: &mut [MaybeUninit<u8>], part: &[u8]) {
        use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        const BYTES: usize = size_of::<__m128i>();
        if !place.as_ptr().cast::<__m128i>().is_aligned() {
            place.write_copy_of_slice(part);
            return;
        }
        let (places, rest) = place.as_chunks_mut::<BYTES>();
        let (vectors, last) = part.as_chunks::<BYTES>();
        for (place, bytes) in places.iter_mut().zip(vectors) {
            // SAFETY: as many bytes are there as are read, at any address.
            let vector = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            // SAFETY: as many bytes are there as are written; the first place is aligned, and so are all, which are
            // a vector's length apart. The fence below comes before anything else sees them.
            unsafe { _mm_stream_si128(place.as_mut_ptr().cast(), vector) };
        }
        rest.write_copy_of_slice(last);
        // SAFETY: every x86-64 has this instruction.
        unsafe { _mm_sfence() };
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn copy(place: &mut [MaybeUninit<u8>], part: &[u8]) {
        place.write_copy_of_slice(part);
    }

    /// Whether wgpu still makes buffers on the device: it does not ask that when it is given one.
    fn answers(device: &wgpu::Device) -> Result<()> {
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("cmf nothing"),
            size: wgpu::COPY_BUFFER_ALIGNMENT,
            usage: BufferUsages::MAP_WRITE,
            mapped_at_creation: true,
        });
        buffer.slice(..).get_mapped_range().map(drop).map_err(Error::device)
    }

    #[cfg(test)]
    mod tests {
        use super::fill;
        use core::mem::MaybeUninit;

        #[test]
        fn every_byte_is_written_or_it_is_an_error() {
            let filled = |parts: &[(u64, &[u8])]| {
                let mut memory = [MaybeUninit::new(9); 8];
                let filled = fill(&mut memory, parts);
                // SAFETY: all bytes were written when the array was made.
                filled.ok().map(|()| memory.map(|byte| unsafe { byte.assume_init() }))
            };
            assert_eq!(filled(&[]), Some([0; 8]));
            assert_eq!(filled(&[(0, &[1, 2]), (2, &[3]), (5, &[4, 5])]), Some([1, 2, 3, 0, 0, 4, 5, 0]));
            assert_eq!(filled(&[(1, &[]), (7, &[6])]), Some([0, 0, 0, 0, 0, 0, 0, 6]));
            for wrong in
                [&[(2, &[1u8, 2][..]), (3, &[3])][..], &[(7, &[1, 2])], &[(9, &[])], &[(u64::MAX, &[1])]]
            {
                assert_eq!(filled(wrong), None, "{wrong:?}");
            }
        }
    }
}

/// wgpu has no Vulkan here.
#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod driver {
    pub(crate) fn filled(
        _: &wgpu::Device,
        _: &wgpu::BufferDescriptor<'_>,
        _: &[(u64, &[u8])],
    ) -> crate::error::Result<Option<wgpu::Buffer>> {
        Ok(None)
    }
}

//! Elements to byte planes and back: loops that compilers turn into SIMD.

/// Byte `plane` of each element after its rotation, most significant byte first.
pub(super) fn split(element_bytes: usize, plane: usize, elements: &[u8], out: &mut Vec<u8>) {
    out.clear();
    macro_rules! split {
        ($ty:ty, $bytes:literal) => {{
            let (elements, _) = elements.as_chunks::<$bytes>();
            let shift = 8 * ($bytes - 1 - plane.min($bytes - 1)) as u32;
            out.extend(elements.iter().map(|e| (<$ty>::from_le_bytes(*e).rotate_left(1) >> shift) as u8));
        }};
    }
    match element_bytes {
        1 => out.extend(elements.iter().map(|e| e.rotate_left(1))),
        2 => split!(u16, 2),
        4 => split!(u32, 4),
        _ => split!(u64, 8),
    }
}

/// The elements whose planes are the first `element_bytes` of `planes`.
pub(super) fn merge(element_bytes: usize, planes: &[&[u8]; 8], out: &mut [u8]) {
    match (element_bytes, planes) {
        (1, [a, ..]) => {
            for (out, a) in out.iter_mut().zip(*a) {
                *out = a.rotate_right(1);
            }
        }
        (2, [a, b, ..]) => {
            let (out, _) = out.as_chunks_mut::<2>();
            for ((out, a), b) in out.iter_mut().zip(*a).zip(*b) {
                *out = u16::from_be_bytes([*a, *b]).rotate_right(1).to_le_bytes();
            }
        }
        (4, [a, b, c, d, ..]) => {
            let (out, _) = out.as_chunks_mut::<4>();
            for ((((out, a), b), c), d) in out.iter_mut().zip(*a).zip(*b).zip(*c).zip(*d) {
                *out = u32::from_be_bytes([*a, *b, *c, *d]).rotate_right(1).to_le_bytes();
            }
        }
        _ => {
            let (out, _) = out.as_chunks_mut::<8>();
            for (i, out) in out.iter_mut().enumerate() {
                let bytes = planes.map(|plane| plane.get(i).copied().unwrap_or(0));
                *out = u64::from_be_bytes(bytes).rotate_right(1).to_le_bytes();
            }
        }
    }
}

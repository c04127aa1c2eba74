//! Decoding blocks to f32: the reference that the translation to nodes is held against.

use half::f16;

use super::blocks::{Parts, unpack};
use super::layout::{Elements, Layout, Map, Shared, layout};
use super::types::GgmlType;
use crate::error::{Error, Result};

/// Decodes whole blocks into `out`, in the order of the elements, with the f32 operations of ggml:
/// element times scale, then the minimum. `f64` and wide integers are rounded to nearest even.
///
/// # Errors
/// `BadArgument` unless `bytes` are whole blocks and `out` has room for just their elements.
pub fn decode(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let bad_argument = || Error::bad_argument(format!("{} blocks", ty.name()));
    let blocks = out.len() as u64 / ty.block_elems();
    if blocks * ty.block_elems() != out.len() as u64
        || blocks.checked_mul(ty.block_bytes()) != Some(bytes.len() as u64)
    {
        return Err(bad_argument()
            .expected(format!("{} bytes for every {} values", ty.block_bytes(), ty.block_elems()))
            .found(format!("{} bytes for {} values", bytes.len(), out.len())));
    }
    if let Some(dtype) = ty.dtype() {
        return dtype.decode(bytes, out).map_err(|error| bad_argument().caused_by(error));
    }
    let Some(layout) = layout(ty) else {
        return Err(Error::unsupported(format!("values of type {}", ty.name())));
    };
    let mut parts = Parts::new();
    let blocks = bytes.chunks_exact(ty.block_bytes() as usize);
    for (block, out) in blocks.zip(out.chunks_exact_mut(ty.block_elems() as usize)) {
        unpack(ty, block, &mut parts);
        elements(layout.elements, &parts, out);
        scale(&layout, &parts, out);
    }
    Ok(())
}

/// The elements before scaling.
fn elements(elements: Elements, parts: &Parts, out: &mut [f32]) {
    match elements {
        Elements::Codes(_, Map::Offset(offset)) => {
            for (value, code) in out.iter_mut().zip(parts.codes) {
                *value = f32::from(i16::from(code) + offset);
            }
        }
        Elements::Codes(_, Map::Table(table)) => {
            for (value, code) in out.iter_mut().zip(parts.codes) {
                *value = table.get(usize::from(code)).copied().unwrap_or(0).into();
            }
        }
        Elements::Vectors(grid) => {
            let mut entry = [0; 8];
            let vectors = out.chunks_exact_mut(grid.vector()).zip(parts.vectors);
            for (out, index) in vectors {
                let entry = &mut entry[..grid.vector()];
                grid.entry(index, entry);
                for (value, element) in out.iter_mut().zip(entry) {
                    *value = (*element).into();
                }
            }
        }
    }
}

fn scale(layout: &Layout, parts: &Parts, out: &mut [f32]) {
    let (d, dmin) = (f16::from_bits(parts.d).to_f32(), f16::from_bits(parts.dmin).to_f32());
    let codes = parts.scales.iter().zip(&parts.mins);
    for (group, (&scale, &min)) in out.chunks_exact_mut(layout.group).zip(codes) {
        let scale = shared(layout.scale, scale, d);
        match layout.min {
            None => group.iter_mut().for_each(|value| *value *= scale),
            Some(kind) => {
                // Minima with codes are subtracted: the sign goes to their factor.
                let factor = if kind == Shared::Half { dmin } else { -dmin };
                let min = shared(kind, min, factor);
                group.iter_mut().for_each(|value| *value = *value * scale + min);
            }
        }
    }
}

fn shared(kind: Shared, code: u8, factor: f32) -> f32 {
    match kind {
        Shared::Half => factor,
        Shared::Scaled(_, Map::Offset(offset)) => f32::from(i16::from(code) + offset) * factor,
        Shared::Scaled(_, Map::Table(table)) => table.get(usize::from(code)).copied().unwrap_or(0.0) * factor,
        Shared::Byte(byte) => byte.halves[usize::from(code)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn values(ty: GgmlType, block: &[u8]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; ty.block_elems() as usize];
        decode(ty, block, &mut out)?;
        Ok(out)
    }

    /// An f16 scale of 1.5 and these codes after it.
    fn one_and_a_half(codes: &[u8]) -> Vec<u8> {
        [&f16::from_f32(1.5).to_le_bytes(), codes].concat()
    }

    #[test]
    fn q1_0_is_plus_or_minus_the_scale() -> Result<()> {
        let mut codes = [0; 16];
        codes[0] = 0b10;
        assert_eq!(values(GgmlType::Q1_0, &one_and_a_half(&codes))?[..3], [-1.5, 1.5, -1.5]);
        Ok(())
    }

    #[test]
    fn q2_0_counts_from_minus_one() -> Result<()> {
        let mut codes = [0b01_01_01_01; 16];
        codes[0] = 0b11_10_01_00;
        assert_eq!(values(GgmlType::Q2_0, &one_and_a_half(&codes))?[..5], [-1.5, 0.0, 1.5, 3.0, 0.0]);
        Ok(())
    }

    #[test]
    fn wide_integers_round_to_nearest_even() -> Result<()> {
        assert_eq!(values(GgmlType::I64, &16_777_217i64.to_le_bytes())?, [16_777_216.0]);
        assert_eq!(values(GgmlType::F64, &0.1f64.to_le_bytes())?, [0.1]);
        Ok(())
    }

    #[test]
    fn rejects_parts_of_blocks() {
        for (bytes, elems) in [(17, 32), (18, 31), (18, 64), (36, 32)] {
            let result = decode(GgmlType::Q4_0, &vec![0; bytes], &mut vec![0.0; elems]);
            assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::BadArgument));
        }
    }
}

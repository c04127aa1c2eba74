//! Bit streams of fixed-width codes (spec: container, 6.2).
//!
//! Codes of a row lie LSB first: code `i` occupies bits `i*bits .. (i+1)*bits` of the row, where
//! bit `b` is bit `b % 8` of byte `b / 8`. A row is padded with zero bits to a multiple of 32.

use crate::error::{Error, ErrorKind, Result};

/// Bytes from one row of `cols` codes of `bits` bits to the next; `None` on overflow.
pub fn row_bytes(cols: u64, bits: u32) -> Option<u64> {
    cols.checked_mul(u64::from(bits))?.div_ceil(32).checked_mul(4)
}

/// Unpacks codes `start .. start + out.len()` of one row. `bits` is 1 to 16.
///
/// Codes beyond the end of `row` read as zero; callers pass rows of [`row_bytes`].
pub fn unpack_row(row: &[u8], bits: u32, start: usize, out: &mut [u16]) {
    macro_rules! by_width {
        ($($bits:literal)*) => {
            match bits {
                $($bits => unpack_eights::<$bits>(row, start, out),)*
                _ => 0,
            }
        };
    }
    let done = match start % 8 {
        0 => by_width!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16),
        _ => 0,
    };
    let mask = (1u32 << bits) - 1;
    let width = bits as usize;
    for (i, code) in out.iter_mut().enumerate().skip(done) {
        let bit = (start + i) * width;
        let at = bit / 8;
        let byte = |k: usize| u32::from(row.get(at + k).copied().unwrap_or(0));
        let word = byte(0) | byte(1) << 8 | byte(2) << 16;
        *code = ((word >> (bit % 8)) & mask) as u16;
    }
}

/// Unpacks codes eight at a time, which fill `BITS` bytes, as far as both sides have them; gives
/// how many codes that were. `start` is a multiple of 8.
fn unpack_eights<const BITS: usize>(row: &[u8], start: usize, out: &mut [u16]) -> usize {
    let (packed, _) = row.get(start / 8 * BITS..).unwrap_or(&[]).as_chunks::<BITS>();
    let (eights, _) = out.as_chunks_mut::<8>();
    let mask = ((1u32 << BITS) - 1) as u16;
    for (codes, bytes) in eights.iter_mut().zip(packed) {
        let mut word = [0; 16];
        word[..BITS].copy_from_slice(bytes);
        let word = u128::from_le_bytes(word);
        *codes = core::array::from_fn(|i| (word >> (i * BITS)) as u16 & mask);
    }
    8 * eights.len().min(packed.len())
}

/// Packs `codes`, rows of `cols` codes, into padded rows. `bits` is 1 to 16.
///
/// # Errors
/// `Argument` when a code does not fit `bits` or the count is not a multiple of `cols`.
pub fn pack_rows(codes: &[u16], cols: usize, bits: u32) -> Result<Vec<u8>> {
    let argument = |problem: String| Error::new(ErrorKind::Argument, "codes", problem);
    if cols == 0 {
        return Ok(Vec::new());
    }
    if !codes.len().is_multiple_of(cols) {
        return Err(argument(format!("{} codes are no rows of {cols}", codes.len())));
    }
    let stride = row_bytes(cols as u64, bits)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| argument("row is too long".into()))?;
    let mut out = vec![0u8; stride * (codes.len() / cols)];
    for (row, packed) in codes.chunks_exact(cols).zip(out.chunks_exact_mut(stride)) {
        let mut held = 0u64;
        let mut held_bits = 0;
        let mut bytes = packed.iter_mut();
        for code in row {
            if u32::from(*code) >> bits != 0 {
                return Err(argument(format!("code {code} does not fit {bits} bits")));
            }
            held |= u64::from(*code) << held_bits;
            held_bits += bits;
            while held_bits >= 8 {
                if let Some(byte) = bytes.next() {
                    *byte = held as u8;
                }
                held >>= 8;
                held_bits -= 8;
            }
        }
        if held_bits > 0
            && let Some(byte) = bytes.next()
        {
            *byte = held as u8;
        }
    }
    Ok(out)
}

/// Whether the padding bits after `cols` codes of each row are zero.
pub fn padding_is_zero(rows: &[u8], cols: u64, bits: u32) -> bool {
    let used_bits = cols * u64::from(bits);
    let Some(stride) = row_bytes(cols, bits).and_then(|n| usize::try_from(n).ok()) else {
        return false;
    };
    if used_bits.is_multiple_of(32) {
        return true;
    }
    rows.chunks_exact(stride).all(|row| {
        let whole = (used_bits / 8) as usize;
        let (tail_byte_mask, rest) = match used_bits % 8 {
            0 => (0, whole),
            used => (!0u8 << used, whole + 1),
        };
        row.get(whole).is_none_or(|byte| byte & tail_byte_mask == 0)
            && row.get(rest..).is_none_or(|tail| tail.iter().all(|b| *b == 0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacks_what_was_packed_at_every_width_and_start() -> Result<()> {
        for bits in 1..=16 {
            for cols in [1usize, 2, 3, 7, 8, 31, 32, 33, 65] {
                let codes: Vec<u16> =
                    (0..cols * 3).map(|i| ((i * 40_503) as u32 & ((1 << bits) - 1)) as u16).collect();
                let packed = pack_rows(&codes, cols, bits)?;
                let stride = row_bytes(cols as u64, bits).unwrap_or(0) as usize;
                assert!(padding_is_zero(&packed, cols as u64, bits));
                for (row, expected) in packed.chunks(stride).zip(codes.chunks(cols)) {
                    for start in [0, cols / 2] {
                        let mut out = vec![0; cols - start];
                        unpack_row(row, bits, start, &mut out);
                        assert_eq!(out, expected[start..], "{bits} bits, {cols} columns");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn rejects_code_wider_than_bits() {
        assert!(pack_rows(&[8], 1, 3).is_err());
    }

    #[test]
    fn sees_set_padding_bits() {
        assert!(!padding_is_zero(&[0b1000, 0, 0, 0], 1, 3));
        assert!(!padding_is_zero(&[0b111, 0, 0, 1], 1, 3));
        assert!(padding_is_zero(&[0b111, 0, 0, 0], 1, 3));
    }
}

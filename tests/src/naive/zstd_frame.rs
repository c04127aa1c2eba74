//! One zstd frame, its outside read by hand as RFC 8878 says.

/// Decodes a frame that fills `bytes`, states a content size of `size`, uses no dictionary and
/// needs a window of at most 2^27 bytes. `None` for anything else.
pub(super) fn decode(bytes: &[u8], size: u64) -> Option<Vec<u8>> {
    let (stated, window) = header(bytes)?;
    if stated != size || window > 1 << 27 {
        return None;
    }
    let decoded = zstd::stream::decode_all(bytes).ok()?;
    (decoded.len() as u64 == size && blocks_end(bytes)? == bytes.len()).then_some(decoded)
}

/// Length of the frame header.
fn header_bytes(bytes: &[u8]) -> Option<usize> {
    let flags = *bytes.get(4)?;
    let single = flags >> 5 & 1 == 1;
    let dictionary = [0, 1, 2, 4].get(usize::from(flags & 3)).copied()?;
    let size = match (flags >> 6, single) {
        (0, false) => 0,
        (0, true) => 1,
        (n, _) => 1 << n,
    };
    Some(5 + usize::from(!single) + dictionary + size)
}

/// Stated content size and window size (0 for a single segment) of a frame without a dictionary.
fn header(bytes: &[u8]) -> Option<(u64, u64)> {
    let flags = *bytes.get(4)?;
    let single = flags >> 5 & 1 == 1;
    if bytes.get(..4)? != [0x28, 0xB5, 0x2F, 0xFD] || flags & 0b1000 != 0 {
        return None;
    }
    let dictionary = [0usize, 1, 2, 4].get(usize::from(flags & 3)).copied()?;
    let window = match single {
        true => 0,
        false => {
            let descriptor = u64::from(*bytes.get(5)?);
            let base = 1u64 << (10 + (descriptor >> 3));
            base + base / 8 * (descriptor & 7)
        }
    };
    let after = 5 + usize::from(!single);
    // A dictionary id of 0 says that there is none.
    if bytes.get(after..after + dictionary)?.iter().any(|b| *b != 0) {
        return None;
    }
    let field = bytes.get(after + dictionary..header_bytes(bytes)?)?;
    let number = field.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    match field.len() {
        0 => None,
        2 => Some((number + 256, window)),
        _ => Some((number, window)),
    }
}

/// Where the last block, and the checksum if there is one, ends.
fn blocks_end(bytes: &[u8]) -> Option<usize> {
    let checksum = if bytes.get(4)? >> 2 & 1 == 1 { 4 } else { 0 };
    let mut at = header_bytes(bytes)?;
    loop {
        let [a, b, c] = *bytes.get(at..at + 3)?.first_chunk()?;
        let block = u32::from(a) | u32::from(b) << 8 | u32::from(c) << 16;
        let length = if block >> 1 & 3 == 1 { 1 } else { (block >> 3) as usize };
        at += 3 + length;
        if block & 1 == 1 {
            return Some(at + checksum);
        }
    }
}

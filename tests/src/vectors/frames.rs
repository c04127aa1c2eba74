//! zstd frames written by hand (RFC 8878), so that no version of a compressor changes the vectors.

const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Kind of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block<'b> {
    /// Bytes as they are.
    Raw(&'b [u8]),
    /// One byte, repeated.
    Repeat(u8, usize),
}

/// A frame with the single-segment flag, a content size of 8 bytes, and these blocks.
pub fn frame(content_bytes: u64, blocks: &[Block<'_>]) -> Vec<u8> {
    // Content size flag 3, single segment.
    let mut out = [&MAGIC[..], &[0xE0], &content_bytes.to_le_bytes()].concat();
    put_blocks(&mut out, blocks);
    out
}

/// A frame with the single-segment flag and a content size of one byte.
pub fn short_frame(content_bytes: u8, blocks: &[Block<'_>]) -> Vec<u8> {
    let mut out = [&MAGIC[..], &[0x20, content_bytes]].concat();
    put_blocks(&mut out, blocks);
    out
}

/// A frame without single-segment flag: a window of `window`, and a content size of `size` if that
/// is 256 to 65 791.
pub fn windowed_frame(window: u8, size: Option<u16>, blocks: &[Block<'_>]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    match size {
        Some(size) => {
            out.extend([0x40, window]);
            out.extend((size - 256).to_le_bytes());
        }
        None => out.extend([0x00, window]),
    }
    put_blocks(&mut out, blocks);
    out
}

/// A frame that states a dictionary.
pub fn dictionary_frame(content_bytes: u8, blocks: &[Block<'_>]) -> Vec<u8> {
    let mut out = [&MAGIC[..], &[0x21, 7, content_bytes]].concat();
    put_blocks(&mut out, blocks);
    out
}

/// A skippable frame.
pub fn skippable(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x50, 0x2A, 0x4D, 0x18];
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
    out
}

/// A frame of `count` zero bytes: 128 KiB in each 4 bytes.
pub fn bomb(count: u64) -> Vec<u8> {
    const BLOCK: u64 = 128 << 10;
    let full = (count / BLOCK) as usize;
    let mut blocks = vec![Block::Repeat(0, BLOCK as usize); full];
    if !count.is_multiple_of(BLOCK) {
        blocks.push(Block::Repeat(0, (count % BLOCK) as usize));
    }
    frame(count, &blocks)
}

fn put_blocks(out: &mut Vec<u8>, blocks: &[Block<'_>]) {
    for (i, block) in blocks.iter().enumerate() {
        let last = u32::from(i + 1 == blocks.len());
        let (kind, size) = match block {
            Block::Raw(bytes) => (0, bytes.len()),
            Block::Repeat(_, count) => (1, *count),
        };
        let header = last | kind << 1 | (size as u32) << 3;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        match block {
            Block::Raw(bytes) => out.extend_from_slice(bytes),
            Block::Repeat(byte, _) => out.push(*byte),
        }
    }
}

/// A shorter frame for bytes that are one run with a different end, if there is one.
pub fn squeeze(bytes: &[u8]) -> Option<Vec<u8>> {
    let first = *bytes.first()?;
    let run = bytes.iter().take_while(|b| **b == first).count();
    let (run_block, rest) = (Block::Repeat(first, run), Block::Raw(&bytes[run..]));
    let blocks = if run == bytes.len() { vec![run_block] } else { vec![run_block, rest] };
    let out = match u8::try_from(bytes.len()) {
        Ok(size) => short_frame(size, &blocks),
        Err(_) => frame(bytes.len() as u64, &blocks),
    };
    (out.len() < bytes.len()).then_some(out)
}

/// 600 exponents of bf16 as trained weights have them.
pub fn exponents() -> Vec<u8> {
    const LIKELY: [u8; 11] = [0x7F, 0x7E, 0x7E, 0x7D, 0x7E, 0x7F, 0x7C, 0x7E, 0x80, 0x7D, 0x7E];
    (0..600).map(|i| LIKELY[(i * i + 3 * i) % 251 % LIKELY.len()]).collect()
}

/// [`exponents`] as the reference compressor wrote them: Huffman-coded literals and a match.
pub const EXPONENTS: [u8; 94] = [
    0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x58, 0x01, 0xa5, 0x02, 0x00, 0x62, 0x8e, 0x11, 0x08, 0xf0, 0x19, 0x03,
    0x32, 0xc1, 0x3f, 0x42, 0x01, 0xeb, 0xb8, 0x12, 0x7d, 0x89, 0x7a, 0xd1, 0x0a, 0x60, 0x09, 0x34, 0x29,
    0x2b, 0x53, 0xab, 0x48, 0xab, 0xa0, 0x89, 0x9e, 0x49, 0xb7, 0xc9, 0x7c, 0xa3, 0xae, 0xfd, 0xa2, 0xca,
    0x7e, 0xba, 0xe2, 0x3d, 0x93, 0x5b, 0x69, 0xb9, 0x92, 0x82, 0x6a, 0x49, 0x97, 0xcf, 0xf3, 0x59, 0x45,
    0xa7, 0x19, 0x1d, 0x69, 0x42, 0x32, 0x00, 0xb5, 0xb2, 0x15, 0xb3, 0x2b, 0xd1, 0x71, 0x05, 0x02, 0x00,
    0xa8, 0xe5, 0x37, 0x15, 0xba, 0xf6, 0x2f, 0x48, 0x01,
];

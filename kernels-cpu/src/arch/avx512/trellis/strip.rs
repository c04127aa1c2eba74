//! Words of some columns, taken apart into bytes of paths.

use core::arch::x86_64::*;

use super::super::*;

/// Columns that are worked on at a time.
pub(super) const COLUMNS: usize = 8;
/// Such groups of a block.
pub(super) const GROUPS: usize = BLOCK / COLUMNS;

/// Words of row `row`, counted from the one before the first, from block `block` on. Where the row ends before,
/// others follow; where all words do, those of `spare`.
#[inline(always)]
pub(super) fn piece<'w, const WORDS: usize>(
    words: &Words<'w>,
    row: usize,
    block: usize,
    spare: &'w mut [[u8; 4]; WORDS],
) -> &'w [[u8; 4]; WORDS] {
    let from = match row.checked_sub(1) {
        None => words.before.get(block * BLOCK..),
        Some(row) => words.words.get(row * words.cols + block * BLOCK..),
    };
    let from = from.unwrap_or(&[]);
    if let Some(piece) = from.first_chunk() {
        return piece;
    }
    spare.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    spare
}

/// Rows of words of a strip of columns. Of 8 columns next to each other, the 4 bytes of each word one after
/// the other, row below row: 8 bytes each. So the bytes of the columns' paths that come before others are those 8
/// bytes earlier in memory. The first 32 bytes are not used, the next ones are the row before the others.
#[repr(align(64))]
pub(super) struct Strip<const BLOCKS: usize, const HALVES: usize>([[[[u8; 32]; HALVES]; GROUPS]; BLOCKS]);

/// The bytes of two rows of words of a block, 8 columns by 8.
#[derive(Clone, Copy)]
pub(super) struct Pair<'s, const BLOCKS: usize, const HALVES: usize> {
    strip: &'s Strip<BLOCKS, HALVES>,
    /// Of the bytes before them in the first group.
    start: usize,
}

/// The bytes of two rows of words of 8 columns, behind those before them.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'s>(&'s [u8; 128]);

/// From words of 8 columns to their bytes, see [`Strip`].
const ORDER: [u8; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i % 8 * 4 + i / 8) as u8;
        i += 1;
    }
    order
};

impl<const BLOCKS: usize, const HALVES: usize> Strip<BLOCKS, HALVES> {
    pub(super) const fn new() -> Self {
        Self([[[[0; 32]; HALVES]; GROUPS]; BLOCKS])
    }

    /// Bytes of a group.
    const GROUP: usize = 32 * HALVES;

    /// Takes in block `block` of the strip as row `row`, counted from the one before the others. Nothing beyond
    /// the strip.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    pub(super) fn fill(&mut self, row: usize, block: usize, words: &[[u8; 4]; BLOCK]) {
        if row + 1 >= HALVES || block >= BLOCKS {
            return;
        }
        let order = load_32(&ORDER);
        let words = words.as_flattened().as_chunks().0;
        let start = block * GROUPS * Self::GROUP + (row + 1) * 32;
        for (group, words) in words.iter().enumerate() {
            let bytes = _mm256_permutexvar_epi8(order, load_32(words));
            // SAFETY: `block` and `row + 1` were found to be in the strip, and so are the 32 bytes of that row of
            // each group of that block; `words` of a block are as many as groups.
            unsafe {
                let out = self.0.as_mut_ptr().cast::<u8>().add(start + group * Self::GROUP);
                _mm256_storeu_si256(out.cast(), bytes);
            }
        }
    }

    /// Of block `block` of the strip, pair `pair` of the rows that follow the first. `None` beyond the strip.
    #[inline(always)]
    pub(super) fn pair(&self, block: usize, pair: usize) -> Option<Pair<'_, BLOCKS, HALVES>> {
        let start = block * GROUPS * Self::GROUP + pair * 64;
        (block < BLOCKS && 2 * pair + 4 <= HALVES).then_some(Pair { strip: self, start })
    }
}

impl<'s, const BLOCKS: usize, const HALVES: usize> Pair<'s, BLOCKS, HALVES> {
    /// The bytes of group `group`.
    #[inline(always)]
    pub(super) fn group(self, group: usize) -> Bytes<'s> {
        let start = self.start + group.min(GROUPS - 1) * Strip::<BLOCKS, HALVES>::GROUP;
        // SAFETY: `Strip::pair` has found that the block is in the strip and that each of its groups has the 128 bytes
        // that begin at the pair: four halves.
        Bytes(unsafe { &*self.strip.0.as_ptr().cast::<u8>().add(start).cast() })
    }
}

impl Bytes<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn back<const BYTES: usize>(self) -> __m512i {
        const { assert!(BYTES <= 64) };
        // SAFETY: the 64 bytes end `BYTES`, at most 64, before the end of 128 bytes.
        unsafe { _mm512_loadu_si512(self.0.as_ptr().add(64 - BYTES).cast()) }
    }

    /// Eight bytes of the eight columns' paths: of each, what is 8 bytes for all columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn newest(self) -> __m512i {
        self.back::<0>()
    }

    /// The bytes before those.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn before(self) -> __m512i {
        self.back::<8>()
    }

    /// And those before them.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn far(self) -> __m512i {
        self.back::<16>()
    }
}

//! Words of some columns, taken apart into bytes of paths.

use core::arch::x86_64::*;

use super::super::*;

/// Columns that are worked on at a time.
pub(super) const COLUMNS: usize = 8;
/// Such groups of a block.
pub(super) const GROUPS: usize = BLOCK / COLUMNS;
/// Blocks of a strip.
pub(super) const BLOCKS: usize = 4;

/// Words of a row and a block on.
#[derive(Clone, Copy)]
pub(super) struct Place<'w> {
    pub(super) words: &'w Words<'w>,
    /// Counted from the row before the first one.
    pub(super) row: usize,
    pub(super) block: usize,
}

impl<'w> Place<'w> {
    /// The words that lie `row` rows and `block` blocks further on, to the end of their row.
    #[inline(always)]
    fn words(&self, row: usize, block: usize) -> &'w [[u8; 4]] {
        let (cols, start) = (self.words.cols, (self.block + block) * BLOCK);
        let row = match (self.row + row).checked_sub(1) {
            None => Some(self.words.before),
            Some(row) => self.words.words.get(row * cols..(row + 1) * cols),
        };
        row.and_then(|row| row.get(start..)).unwrap_or(&[])
    }
}

/// Rows of words of a strip of columns. Of 8 columns next to each other, the 4 bytes of each word one after
/// the other, row below row: 8 bytes each. So the bytes of the columns' paths that come before others are those 8
/// bytes earlier in memory. The first 32 bytes are not used, the next ones are the row before the others.
#[repr(align(64))]
pub(super) struct Strip<const HALVES: usize>([[[u8; 32]; HALVES]; BLOCKS * GROUPS]);

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

impl<const HALVES: usize> Strip<HALVES> {
    pub(super) const fn new() -> Self {
        Self([[[0; 32]; HALVES]; BLOCKS * GROUPS])
    }

    /// Takes in block `block` of the strip that begins at `place`, of row `row`, counted from the one before
    /// the others. What is not there is left as it was.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    pub(super) fn fill(&mut self, place: Place<'_>, row: usize, block: usize) {
        let words = place.words(row, block);
        let Some(groups) = self.0.as_chunks_mut::<GROUPS>().0.get_mut(block) else { return };
        let outs = groups.iter_mut().filter_map(|group| group.get_mut(row + 1));
        let order = load_32(&ORDER);
        let put = |words: &_, out: &mut _| store_32(_mm256_permutexvar_epi8(order, load_32(words)), out);
        if let Some(words) = words.first_chunk::<BLOCK>() {
            words.as_flattened().as_chunks().0.iter().zip(outs).for_each(|(words, out)| put(words, out));
        } else {
            for (some, out) in words.chunks(COLUMNS).zip(outs) {
                let mut words = [0; 32];
                words.iter_mut().zip(some.as_flattened()).for_each(|(to, from)| *to = *from);
                put(&words, out);
            }
        }
    }

    /// Of block `block` of the strip, the groups' bytes of pair `pair` of the rows that follow the first.
    #[inline(always)]
    pub(super) fn block(&self, block: usize, pair: usize) -> [Bytes<'_>; GROUPS] {
        const NONE: &[u8; 128] = &[0; 128];
        let groups = self.0.as_chunks::<GROUPS>().0.get(block);
        core::array::from_fn(|i| {
            let halves = groups.and_then(|groups| groups[i].get(2 * pair..));
            Bytes(halves.and_then(|halves| halves.as_flattened().first_chunk()).unwrap_or(NONE))
        })
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

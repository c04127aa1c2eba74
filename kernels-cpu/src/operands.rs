//! What kernels read: codes of some rows, words of trellis paths, activations.

use core::ops::Range;

/// Columns that share a scale of quantised activations; vectors are padded with zeros to a multiple.
pub(crate) const BLOCK: usize = 64;
/// Columns for which a scale and a zero point of weights are spread out.
pub(crate) const GRANULE: usize = 16;
/// Granules of a block.
pub(crate) const GRANULES: usize = BLOCK / GRANULE;

/// Vectors that are prepared of a token for each 8 blocks, where there are few tokens: activations and what belongs
/// to them.
pub(crate) const PREPARED: usize = 10;

/// Room for what is prepared of a token for `rows` rows of `row_bytes` bytes: [`PREPARED`] vectors for each 8 blocks in
/// one copy or 4, and one more, for zero points.
///
/// Short rows, where there are many, take turns at copies, and read one stream that goes on for longer: the processor
/// foresees where it goes, but not that it begins anew.
pub(crate) fn room(blocks: usize, rows: usize, row_bytes: usize) -> usize {
    let copies = if row_bytes <= 1152 && rows.saturating_mul(row_bytes) >= 1 << 19 { 4 } else { 1 };
    blocks.div_ceil(8) * (PREPARED * copies + 1)
}

/// What a code means before zero and scale.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Map<'k> {
    /// `code + offset`, which fits a signed byte for every code.
    Signed(i16),
    /// Entry `code`.
    Values(&'k [f32; 256]),
}

/// How a zero point is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zero {
    /// Not at all.
    None,
    /// Subtracted before the scale.
    Subtract,
    /// Added after the scale.
    Add,
}

/// Rows of codes with a scale, and perhaps a zero point, for each granule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'k> {
    /// Bits of a code, 1 to 8.
    pub(crate) bits: usize,
    /// Bits that may be set in a code.
    pub(crate) used_bits: usize,
    /// From the first row on, perhaps with more behind the last row; rows lie `row_bytes` apart.
    pub(crate) bytes: &'k [u8],
    pub(crate) row_bytes: usize,
    pub(crate) rows: usize,
    /// Blocks of a row: `BLOCK` columns each, of which the last may have fewer.
    pub(crate) blocks: usize,
    /// Granules of a group, at least 1; of a short last group, too.
    pub(crate) group_granules: usize,
    pub(crate) map: Map<'k>,
    /// `[rows, pairs of blocks * 2 * GRANULES]`, 0 beyond the last column.
    pub(crate) scales: &'k [f32],
    /// The scales as they are stored, where that is simple. `scales` may then be empty for kernels of
    /// few tokens.
    pub(crate) stored: Option<StoredScales<'k>>,
    /// As `scales`, unless `zero` is none.
    pub(crate) zeros: &'k [f32],
    pub(crate) zero: Zero,
}

/// Scales of f16, one for each group of a row, row after row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredScales<'k> {
    /// From the first row on.
    pub(crate) values: &'k [[u8; 2]],
    /// Groups of a row.
    pub(crate) groups: usize,
    /// A group has 2 to this power granules.
    pub(crate) granules_log: u32,
}

#[cfg(target_arch = "aarch64")]
impl<'k> StoredScales<'k> {
    /// The scales of row `row`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'k [[u8; 2]] {
        self.values.get(row * self.groups..(row + 1) * self.groups).unwrap_or(&[])
    }
}

/// Scales or zero points that are codes, 16 of which have a scale of f16: values of rows of groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Small<'k> {
    /// Bits of a code, to which `offset` is added: the sum fits a signed byte for every code.
    pub(crate) bits: usize,
    pub(crate) offset: i16,
    /// From the first row on; rows lie `row_bytes` apart.
    pub(crate) bytes: &'k [u8],
    pub(crate) row_bytes: usize,
    /// The scales of 16 codes, `groups` a row.
    pub(crate) scales: &'k [[u8; 2]],
    pub(crate) groups: usize,
}

/// Rows of codes with scales and perhaps zero points, which are added, for groups of 32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Twice<'k> {
    /// Without scales and zero points.
    pub(crate) codes: Codes<'k>,
    pub(crate) scale: Small<'k>,
    pub(crate) zero: Option<Small<'k>>,
}

impl<'k> Codes<'k> {
    /// The bytes from row `row` on.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'k [u8] {
        self.bytes.get(row * self.row_bytes..).unwrap_or(&[])
    }

    /// The bytes of row `row`.
    #[inline(always)]
    pub(crate) fn own_row(&self, row: usize) -> &'k [u8] {
        let bytes = self.row(row);
        bytes.get(..self.row_bytes).unwrap_or(bytes)
    }

    /// Blocks of a row of scales.
    #[inline(always)]
    pub(crate) fn stride(&self) -> usize {
        self.blocks.next_multiple_of(2)
    }

    #[inline(always)]
    fn part<'v>(&self, values: &'v [f32], row: usize) -> &'v [[f32; GRANULES]] {
        let of = values.as_chunks().0;
        of.get(row * self.stride()..(row + 1) * self.stride()).unwrap_or(&[])
    }

    /// The scales of row `row`, block by block.
    #[inline(always)]
    pub(crate) fn scales(&self, row: usize) -> &'k [[f32; GRANULES]] {
        self.part(self.scales, row)
    }

    /// The zero points of row `row`, block by block.
    #[inline(always)]
    pub(crate) fn zeros(&self, row: usize) -> &'k [[f32; GRANULES]] {
        self.part(self.zeros, row)
    }
}

/// Rows of codes as bit planes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes<'k> {
    /// From the first row on, the most significant plane first; rows lie `row_bytes` apart.
    pub(crate) planes: [&'k [u8]; 8],
    /// Planes that there are.
    pub(crate) count: usize,
    pub(crate) row_bytes: usize,
    pub(crate) rows: usize,
    pub(crate) blocks: usize,
    /// Whether the last plane's bit is added to the code of those before it.
    pub(crate) rounds: bool,
    /// Largest code.
    pub(crate) most: u8,
}

impl<'k> Planes<'k> {
    /// The planes of row `row`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> [&'k [u8]; 8] {
        self.planes.map(|plane| plane.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[]))
    }
}

/// Tables of f16 values that codes name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HalfTables<'k> {
    /// From the first row on, if each has its own.
    pub(crate) bytes: &'k [u8],
    /// Bytes from one table to the next, 0 where there is one for all.
    pub(crate) stride: usize,
    /// Bytes of a table.
    pub(crate) length: usize,
}

impl<'k> HalfTables<'k> {
    /// The table of row `row`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'k [u8] {
        let start = row * self.stride;
        self.bytes.get(start..start + self.length).unwrap_or(&[])
    }
}

/// What integer codes of rows are scaled with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scaled<'k> {
    /// Scales of a block: 1 or [`GRANULES`].
    pub(crate) of_block: usize,
    /// `[rows, blocks * of_block]`.
    pub(crate) scales: &'k [f32],
    /// Of the same shape: what counts once for each column beside the product, as codes have zero points.
    pub(crate) terms: &'k [f32],
}

impl<'k> Scaled<'k> {
    /// The scales and terms of row `row`, which has `width` of each.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize, width: usize) -> (&'k [f32], &'k [f32]) {
        let own = row * width..(row + 1) * width;
        (self.scales.get(own.clone()).unwrap_or(&[]), self.terms.get(own).unwrap_or(&[]))
    }
}

/// The type of elements that are multiplied with as they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    F32,
}

impl Element {
    #[inline(always)]
    pub(crate) fn bytes(self) -> usize {
        if self == Element::F32 { 4 } else { 2 }
    }
}

/// Rows of elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elements<'k> {
    pub(crate) element: Element,
    /// Whole rows, one after the other.
    pub(crate) bytes: &'k [u8],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<'k> Elements<'k> {
    /// The bytes of row `row`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'k [u8] {
        let bytes = self.cols * self.element.bytes();
        self.bytes.get(row * bytes..(row + 1) * bytes).unwrap_or(&[])
    }
}

/// Columns and values of entries: those of 16 at a time, and one column more.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entries<'k> {
    /// Of as many entries as values.
    Decoded { columns: &'k [u32], values: &'k [f32] },
    /// Columns of 16 bits and values of f16, as they lie.
    Stored { columns: &'k [[u8; 2]], values: &'k [[u8; 2]] },
}

/// Rows of values at listed columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed<'k> {
    pub(crate) cols: usize,
    /// Where each row's entries begin, and where those of the last end, counted from elsewhere.
    pub(crate) offsets: &'k [[u8; 4]],
    /// From the first row's first on, perhaps with more behind those of the last row.
    pub(crate) entries: Entries<'k>,
}

impl Listed<'_> {
    /// The entries of row `row`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> Range<usize> {
        let offset = |i: usize| self.offsets.get(i).map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
        let first = offset(0);
        offset(row).saturating_sub(first)..offset(row + 1).saturating_sub(first)
    }
}

/// Rows of [`Signed`] that lie together.
pub(crate) const SIDE: usize = 4;
/// Of the rank, what is summed together.
pub(crate) const LANES: usize = 16;
/// Tables of the signs of a block: one for each four columns.
pub(crate) const SIGN_TABLES: usize = BLOCK / 4;

/// Of each four columns, the sums that their 16 combinations of signs make: bit i of the index says that
/// column i is positive. In each lane for another component of the rank.
pub(crate) type SignTables = [[[f32; LANES]; 16]; SIGN_TABLES];

/// Rows of signs, and the factors of their magnitudes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'k> {
    pub(crate) rank: usize,
    pub(crate) blocks: usize,
    pub(crate) rows: usize,
    /// `[rows / SIDE, rank]`, of `SIDE` rows each.
    pub(crate) a: &'k [[f32; SIDE]],
    /// `[blocks, rank]`, 0 beyond the last column.
    pub(crate) b: &'k [[f32; BLOCK]],
    /// A bit for each column, 1 is positive; rows lie `row_bytes` apart.
    pub(crate) signs: &'k [u8],
    pub(crate) row_bytes: usize,
}

impl<'k> Signed<'k> {
    /// Some of the rows, from a multiple of `SIDE` on.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        Self {
            rows: rows.len(),
            a: self.a.get(rows.start / SIDE * self.rank..).unwrap_or(&[]),
            signs: self.signs.get(rows.start * self.row_bytes..).unwrap_or(&[]),
            ..*self
        }
    }

    /// The right factor of a block.
    #[inline(always)]
    pub(crate) fn b(&self, block: usize) -> &'k [[f32; BLOCK]] {
        self.b.get(block * self.rank..(block + 1) * self.rank).unwrap_or(&[])
    }

    /// The signs of all blocks of a row; behind the row's end they are any.
    #[inline(always)]
    pub(crate) fn row_signs(&self, row: usize) -> &'k [u8] {
        self.signs.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[])
    }

    /// The signs of a block of a row; behind the row's end they are any.
    #[inline(always)]
    pub(crate) fn signs(&self, row: usize, block: usize) -> u64 {
        let bytes = self.signs.get(row * self.row_bytes + block * 8..).unwrap_or(&[]);
        match bytes.first_chunk() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        }
    }
}

/// Activations, `tokens` vectors of `blocks * BLOCK` values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'k> {
    pub(crate) tokens: usize,
    /// Blocks of a vector from the first column that is multiplied with on.
    pub(crate) blocks: usize,
    /// Blocks from one vector to the next, an even number.
    pub(crate) stride: usize,
    pub(crate) values: &'k [[f32; BLOCK]],
    /// `values` over their block's scale, rounded; empty unless they are quantised.
    pub(crate) quantised: &'k [[i8; BLOCK]],
    /// The same, of each pair of blocks first the even columns, then the odd ones. Empty where the
    /// first block is the second of a pair.
    pub(crate) halves: &'k [[i8; BLOCK]],
    /// A scale for each block.
    pub(crate) scales: &'k [f32],
    /// The sums of the quantised values of each granule.
    pub(crate) sums: &'k [[i32; GRANULES]],
    /// `sums` times the block's scale.
    pub(crate) granule_sums: &'k [[f32; GRANULES]],
}

impl<'k> Input<'k> {
    /// Whether `quantised` and what belongs to it is there.
    pub(crate) fn is_quantised(&self) -> bool {
        !self.quantised.is_empty()
    }

    #[inline(always)]
    fn part<'v, T>(&self, of: &'v [T], token: usize) -> &'v [T] {
        let start = token * self.stride;
        of.get(start..start + self.blocks).unwrap_or(&[])
    }

    #[inline(always)]
    pub(crate) fn values(&self, token: usize) -> &'k [[f32; BLOCK]] {
        self.part(self.values, token)
    }

    #[inline(always)]
    pub(crate) fn quantised(&self, token: usize) -> &'k [[i8; BLOCK]] {
        self.part(self.quantised, token)
    }

    #[inline(always)]
    pub(crate) fn scales(&self, token: usize) -> &'k [f32] {
        self.part(self.scales, token)
    }

    #[inline(always)]
    pub(crate) fn sums(&self, token: usize) -> &'k [[i32; GRANULES]] {
        self.part(self.sums, token)
    }

    /// Pairs of blocks: even columns, odd columns, and the scales of both blocks.
    #[inline(always)]
    pub(crate) fn pairs(&self, token: usize) -> (&'k [[[i8; BLOCK]; 2]], &'k [[f32; 2]]) {
        let start = token * self.stride;
        let blocks = start..start + self.blocks.next_multiple_of(2);
        let halves = self.halves.get(blocks.clone()).unwrap_or(&[]);
        (halves.as_chunks().0, self.scales.get(blocks).unwrap_or(&[]).as_chunks().0)
    }

    #[inline(always)]
    pub(crate) fn granule_sums(&self, token: usize) -> &'k [[f32; GRANULES]] {
        self.part(self.granule_sums, token)
    }
}

/// Where blocks of activations go when they are quantised: what [`Input`] has by the same names.
pub(crate) struct Quantised<'k> {
    pub(crate) values: &'k mut [[i8; BLOCK]],
    pub(crate) halves: &'k mut [[i8; BLOCK]],
    pub(crate) scales: &'k mut [f32],
    pub(crate) sums: &'k mut [[i32; GRANULES]],
    pub(crate) granule_sums: &'k mut [[f32; GRANULES]],
}

/// What a table of trellis windows is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing is known of it.
    Any,
    /// A window with all bits flipped has the negative value.
    Odd,
    /// The value is one of 64, by the 6 newest bits of the window plus, bit by bit without carry, a
    /// linear map of the bits before them. For each bit of the index, the highest of 8 first: which of
    /// the 8 oldest bits it is the sum of.
    Hashed([u8; 8]),
}

/// Bits of the index of a hashed table.
pub(crate) const INDEX_BITS: usize = 6;

/// Values of trellis windows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'k> {
    /// Bits of a window: 6, 7, 8 or 10; 9, 10, 12, 13 or 14 where it is hashed.
    pub(crate) window: usize,
    /// Values plus 128 of all windows.
    pub(crate) values: &'k [u8],
    pub(crate) kind: Kind,
    /// The same by the 8 newest bits, for each value of the bits before them; where it is odd, without the
    /// windows whose newest bit is 1. Where it is hashed, by the index.
    pub(crate) vectors: &'k [[u8; 64]],
}

impl Table<'_> {
    /// The value plus 128 of a window.
    #[inline(always)]
    pub(crate) fn value(&self, window: usize) -> u8 {
        self.values.get(window & ((1 << self.window) - 1)).copied().unwrap_or(128)
    }
}

/// Rows of words of trellis paths down the columns: 32 bits of each column a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'k> {
    /// The words before the first row: what its first windows reach back to.
    pub(crate) before: &'k [[u8; 4]],
    /// Whole rows, one after the other.
    pub(crate) words: &'k [[u8; 4]],
    pub(crate) cols: usize,
    /// Bits of a weight: 1 or 2.
    pub(crate) step_bits: usize,
    pub(crate) table: Table<'k>,
}

impl<'k> Words<'k> {
    /// Each row of words with the one before it.
    #[inline(always)]
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&'k [[u8; 4]], &'k [[u8; 4]])> {
        let rows = self.words.chunks_exact(self.cols.max(1));
        core::iter::once(self.before).chain(rows.clone()).zip(rows)
    }

    /// Weights of a word.
    #[inline(always)]
    pub(crate) fn rows(&self) -> usize {
        32 / self.step_bits
    }
}

/// Sums of 8 lanes and of 16 are taken by halves, so that every instruction set adds alike.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

//! `sparse`: listed values, multiplied with what they meet or put where they belong.

use super::{Node, Plan as AnyPlan, Wanted, each_tile};
use crate::arch;
use crate::error::Result;
use crate::lines::Lines;
use crate::operands::{Entries, Input, Listed};
use cmf_format::DType;
use cmf_format::encoding::View as AnyView;
use cmf_format::encoding::sparse::{Block, Layout, View, position_bits};
use core::ops::Range;

/// Values that are decoded together, as far as rows allow: they stay in the nearest cache.
const GROUP_VALUES: usize = 1 << 12;
/// Most values of a row of blocks: 1 MiB.
const MOST_VALUES: usize = 1 << 18;

/// What is prepared of a node.
#[derive(Debug)]
pub(crate) struct Plan {
    values: Box<AnyPlan>,
    listing: Listing,
    /// Rows and columns of a block.
    block_rows: usize,
    block_cols: usize,
    /// Blocks of a row.
    across: usize,
    /// Bytes of a row of blocks of positions, unless they are columns.
    row_bytes: usize,
}

/// How positions are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    /// Columns of 16 bits, or of 32.
    Columns {
        is_narrow: bool,
    },
    Bits,
    /// Values of each group, columns of a group, bits of a position.
    Groups {
        n: usize,
        m: usize,
        bits: usize,
    },
}

/// Some rows that are worked on together, and their entries: blocks, or of [`Listing::Groups`] values.
struct Group {
    rows: Range<usize>,
    entries: Range<usize>,
}

/// A group with what is decoded of it.
struct Loaded<'g> {
    group: &'g Group,
    values: &'g [f32],
    positions: &'g mut Lines<u32>,
}

/// What is done with a group: gives the number of rows before the first whose positions break a rule.
type Each<'e> = dyn FnMut(Loaded<'_>, Wanted<'_>) -> usize + 'e;

impl Plan {
    /// `None` for no elements, and for rows of blocks that are too large.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let cols = view.cols();
        if view.rows() == 0 || cols == 0 {
            return None;
        }
        let (listing, block) = match view.descriptor().layout {
            Layout::Csr { block, index_bits } => (Listing::Columns { is_narrow: index_bits == 16 }, block),
            Layout::Bitmap { block } => (Listing::Bits, block),
            Layout::Nm { n, m } => {
                (Listing::Groups { n: n.into(), m: m.into(), bits: position_bits(m) as usize }, Block::ONE)
            }
        };
        let (block_rows, block_cols) = (block.rows as usize, block.cols as usize);
        let across = cols.div_ceil(block_cols);
        let row_bits = match listing {
            Listing::Columns { .. } => 0,
            Listing::Bits => across,
            Listing::Groups { n, m, bits } => cols.div_ceil(m).checked_mul(n)?.checked_mul(bits)?,
        };
        let most = across.checked_mul(block_cols)?.checked_mul(block_rows)?;
        if block != Block::ONE && most > MOST_VALUES {
            return None;
        }
        Some(Self {
            values: Box::new(AnyPlan::new(view.values())),
            listing,
            block_rows,
            block_cols,
            across,
            row_bytes: row_bits.div_ceil(32) * 4,
        })
    }

    fn is_single(&self) -> bool {
        (self.block_rows, self.block_cols) == (1, 1)
    }

    /// Adds products. Where single elements are listed by columns, entry i of a row goes to lane i mod 16;
    /// all else is decoded and goes by its column.
    pub(super) fn multiply(
        &self,
        any: &AnyView<'_>,
        view: &View<'_>,
        input: &Input<'_>,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let cols = view.cols();
        let Listing::Columns { is_narrow } = self.listing else {
            return each_tile(cols, 4, input, wanted, &mut |wanted| self.decode(any, view, wanted));
        };
        if !self.is_single() {
            return each_tile(cols, 4, input, wanted, &mut |wanted| self.decode(any, view, wanted));
        }
        let offsets = offsets(view);
        let stored = self.stored(view);
        self.each_group(
            view,
            stored.is_none(),
            input.tokens,
            wanted,
            &mut |Loaded { group, values, positions }, Wanted { simd, rows, out, .. }| {
                let offsets = offsets.get(rows.start..rows.end + 1).unwrap_or(&[]);
                let entries = match stored {
                    Some([columns, values]) => Entries::Stored {
                        columns: columns.get(group.entries.start..).unwrap_or(&[]),
                        values: values.get(group.entries.start..).unwrap_or(&[]),
                    },
                    None => {
                        let columns = positions.sized(values.len());
                        simd.run(
                            #[inline(always)]
                            || read_columns(view, is_narrow, group.entries.clone(), columns),
                        );
                        Entries::Decoded { columns, values }
                    }
                };
                arch::listed(simd, &Listed { cols, offsets, entries }, input, out)
            },
            &mut |wanted| {
                each_tile(cols, 4, input, wanted, &mut |Wanted { rows, out, .. }| any.decode_rows(rows, out))
            },
        )
    }

    pub(super) fn decode(&self, any: &AnyView<'_>, view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
        self.each_group(
            view,
            true,
            view.cols(),
            wanted,
            &mut |loaded, wanted| match self.listing {
                Listing::Columns { .. } => self.put_blocks(view, loaded, wanted),
                Listing::Bits if !self.is_single() => self.put_blocks(view, loaded, wanted),
                _ => self.put_bits(view, loaded, wanted),
            },
            &mut |Wanted { rows, out, .. }| any.decode_rows(rows, out),
        )
    }

    /// Hands groups of rows to `each`, with their values if `decodes`, and to `reference` those whose
    /// positions break a rule. `out` has `width` values a row.
    fn each_group(
        &self,
        view: &View<'_>,
        decodes: bool,
        width: usize,
        wanted: Wanted<'_>,
        each: &mut Each<'_>,
        reference: &mut dyn FnMut(Wanted<'_>) -> Result<()>,
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let (mut row, mut rest) = (rows.start, out);
        while row < rows.end {
            let group = self.group(view, row..rows.end, if decodes { GROUP_VALUES } else { usize::MAX });
            let end = group.as_ref().map_or(rows.end.min(row + self.block_rows), |group| group.rows.end);
            let (own, next) = rest.split_at_mut(rest.len().min((end - row) * width));
            let mut done = Ok(0);
            if let Some(group) = &group {
                let (mut raw, mut positions) =
                    (core::mem::take(&mut work.raw), core::mem::take(&mut work.positions));
                let wanted = Wanted { simd, rows: row..end, out: &mut [], work: work.below() };
                let entries = if decodes { group.entries.clone() } else { 0..0 };
                let values = self.values(view, entries, &mut raw, wanted);
                done = values.map_err(|e| e.within("values")).map(|values| {
                    let loaded = Loaded { group, values, positions: &mut positions };
                    each(loaded, Wanted { simd, rows: row..end, out: &mut *own, work: &mut *work })
                });
                (work.raw, work.positions) = (raw, positions);
            }
            let first = row + done?;
            if first < end {
                let out = own.get_mut((first - row) * width..).unwrap_or(&mut []);
                reference(Wanted { simd, rows: first..end, out, work: &mut *work })?;
            }
            (row, rest) = (end, next);
        }
        Ok(())
    }

    /// The first of `rows`, as many as have `most` values together; `None` where offsets break a rule.
    fn group(&self, view: &View<'_>, rows: Range<usize>, most: usize) -> Option<Group> {
        if let Listing::Groups { n, m, .. } = self.listing {
            let kept = view.cols().div_ceil(m) * n;
            let end = rows.end.min(rows.start + (most / kept).max(1));
            return Some(Group { rows: rows.start..end, entries: rows.start * kept..end * kept });
        }
        let offsets = offsets(view);
        let offset = |i: usize| offsets.get(i).map(|bytes| u32::from_le_bytes(*bytes) as usize);
        let count = usize::try_from(view.descriptor().count).ok()?;
        let most = most / (self.block_rows * self.block_cols);
        let first = rows.start / self.block_rows;
        let start = offset(first)?;
        let (mut end, mut block_row) = (start, first);
        while block_row * self.block_rows < rows.end {
            let next = offset(block_row + 1)?;
            if next < end || next > count {
                return None;
            }
            if block_row > first && next - start > most {
                break;
            }
            (end, block_row) = (next, block_row + 1);
        }
        let is_last = block_row + 1 == offsets.len();
        if (first == 0 && start != 0) || (is_last && end != count) {
            return None;
        }
        let rows = rows.start..rows.end.min(block_row * self.block_rows);
        Some(Group { rows, entries: start..end })
    }

    /// Columns of 16 bits and values of f16, where that is how single elements are stored.
    fn stored<'v>(&self, view: &'v View<'_>) -> Option<[&'v [[u8; 2]]; 2]> {
        match view.values() {
            AnyView::Dense(values)
                if values.dtype() == DType::F16
                    && self.is_single()
                    && self.listing == (Listing::Columns { is_narrow: true }) =>
            {
                Some([view.positions().as_chunks().0, values.bytes().as_chunks().0])
            }
            _ => None,
        }
    }

    /// The values of entries. `wanted` says how to decode them.
    fn values<'b>(
        &self,
        view: &View<'_>,
        entries: Range<usize>,
        buffer: &'b mut Lines<f32>,
        Wanted { simd, work, .. }: Wanted<'_>,
    ) -> Result<&'b [f32]> {
        let elements = self.block_rows * self.block_cols;
        let (start, end) = (entries.start * elements, entries.end * elements);
        let child = Node { view: view.values(), plan: &self.values };
        let width = child.view.cols().max(1);
        let rows = start / width..end.div_ceil(width).min(child.view.rows());
        let (first, count) = (rows.start * width, rows.len() * width);
        let out = buffer.sized(count);
        child.decode(Wanted { simd, rows, out: &mut *out, work })?;
        Ok(out.get(start - first..end - first).unwrap_or(&[]))
    }

    /// Puts the values of blocks where they are listed.
    fn put_blocks(&self, view: &View<'_>, loaded: Loaded<'_>, wanted: Wanted<'_>) -> usize {
        let Loaded { group, values, positions } = loaded;
        let Wanted { simd, rows, out, .. } = wanted;
        let (cols, offsets, first) = (view.cols(), offsets(view), group.entries.start);
        let columns = positions.sized(group.entries.len());
        let offset = |i: usize| offsets.get(i).map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
        let block_rows = rows.start / self.block_rows..rows.end.div_ceil(self.block_rows);
        let own = |block_row: usize| offset(block_row) - first..offset(block_row + 1) - first;
        simd.run(
            #[inline(always)]
            || {
                if let Listing::Columns { is_narrow } = self.listing {
                    read_columns(view, is_narrow, group.entries.clone(), columns);
                }
                for block_row in block_rows.clone() {
                    let columns = columns.get_mut(own(block_row)).unwrap_or(&mut []);
                    if self.listing == Listing::Bits && !columns_of_bits(self.bits(view, block_row), columns)
                    {
                        return 0;
                    }
                    if !ascend(columns, self.across) {
                        return 0;
                    }
                }
                out.fill(0.0);
                for block_row in block_rows {
                    let entries = own(block_row);
                    let columns = columns.get(entries.clone()).unwrap_or(&[]);
                    let top = block_row * self.block_rows;
                    let covered = rows.start.max(top)..rows.end.min(top + self.block_rows);
                    for row in covered {
                        let place = (row - rows.start) * cols..(row - rows.start + 1) * cols;
                        let out = out.get_mut(place).unwrap_or(&mut []);
                        if self.is_single() {
                            let values = values.get(entries.clone()).unwrap_or(&[]);
                            for (column, value) in columns.iter().zip(values) {
                                if let Some(out) = out.get_mut(*column as usize) {
                                    *out = *value;
                                }
                            }
                            continue;
                        }
                        for (entry, column) in entries.clone().zip(columns) {
                            let from = (entry * self.block_rows + row - top) * self.block_cols;
                            let values = values.get(from..from + self.block_cols).unwrap_or(&[]);
                            let left = *column as usize * self.block_cols;
                            let out = out.get_mut(left..).unwrap_or(&mut []);
                            out.iter_mut().zip(values).for_each(|(out, value)| *out = *value);
                        }
                    }
                }
                rows.len()
            },
        )
    }

    /// Puts the values of single elements where bits of their rows are set.
    fn put_bits(&self, view: &View<'_>, loaded: Loaded<'_>, wanted: Wanted<'_>) -> usize {
        let Loaded { group, values, positions } = loaded;
        let Wanted { simd, rows, out, .. } = wanted;
        let (cols, offsets) = (view.cols(), offsets(view));
        let count = |row: usize| match self.listing {
            Listing::Groups { .. } => group.entries.len() / rows.len().max(1),
            _ => {
                let offset = |i: usize| offsets.get(i).map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
                offset(row + 1) - offset(row)
            }
        };
        let words = positions.sized(rows.len() * cols.div_ceil(32));
        let mut words_of = words.chunks_exact_mut(cols.div_ceil(32));
        let is_sound = simd.run(
            #[inline(always)]
            || {
                rows.clone().zip(&mut words_of).all(|(row, words)| {
                    let bytes = self.bits(view, row);
                    match self.listing {
                        Listing::Groups { n, m, bits } => bits_of_groups(bytes, (n, m, bits), cols, words),
                        _ => {
                            let from = bytes.as_chunks::<4>().0;
                            words.iter_mut().zip(from).for_each(|(to, word)| *to = u32::from_le_bytes(*word));
                            let set: usize = words.iter().map(|word| word.count_ones() as usize).sum();
                            let beyond = match cols % 32 {
                                0 => 0,
                                used => words.last().map_or(0, |word| word >> used),
                            };
                            set == count(row) && beyond == 0
                        }
                    }
                })
            },
        );
        if !is_sound {
            return 0;
        }
        let mut values = values;
        let parts = words.chunks_exact(cols.div_ceil(32)).zip(out.chunks_exact_mut(cols));
        for (row, (words, out)) in rows.clone().zip(parts) {
            let (own, rest) = values.split_at(count(row).min(values.len()));
            arch::expand(simd, words, own, out);
            values = rest;
        }
        rows.len()
    }

    /// The bytes of positions of a row of blocks.
    fn bits<'v>(&self, view: &'v View<'_>, block_row: usize) -> &'v [u8] {
        let bytes = block_row * self.row_bytes..(block_row + 1) * self.row_bytes;
        view.positions().get(bytes).unwrap_or(&[])
    }
}

fn offsets<'v>(view: &'v View<'_>) -> &'v [[u8; 4]] {
    view.row_offsets().as_chunks().0
}

/// Columns of entries.
#[inline(always)]
fn read_columns(view: &View<'_>, is_narrow: bool, entries: Range<usize>, out: &mut [u32]) {
    if is_narrow {
        let columns = view.positions().as_chunks::<2>().0.get(entries).unwrap_or(&[]);
        out.iter_mut().zip(columns).for_each(|(out, column)| *out = u16::from_le_bytes(*column).into());
    } else {
        let columns = view.positions().as_chunks::<4>().0.get(entries).unwrap_or(&[]);
        out.iter_mut().zip(columns).for_each(|(out, column)| *out = u32::from_le_bytes(*column));
    }
}

/// Whether columns ascend strictly and are below `across`.
#[inline(always)]
fn ascend(columns: &[u32], across: usize) -> bool {
    let pairs = columns.iter().zip(columns.get(1..).unwrap_or(&[]));
    let ascend = pairs.fold(true, |all, (a, b)| all & (a < b));
    ascend && columns.last().is_none_or(|last| (*last as usize) < across)
}

/// The places of set bits, which are as many as there is room for: else `false`.
#[inline(always)]
fn columns_of_bits(bytes: &[u8], out: &mut [u32]) -> bool {
    let mut out = out.iter_mut();
    for (word, first) in bytes.as_chunks::<4>().0.iter().zip((0..).step_by(32)) {
        let mut word = u32::from_le_bytes(*word);
        while word != 0 {
            let Some(out) = out.next() else { return false };
            *out = first + word.trailing_zeros();
            word &= word - 1;
        }
    }
    out.next().is_none()
}

/// Of each byte of four positions, the first two and the others of two of four columns: the columns as bits,
/// and [`UNSOUND`] where positions do not ascend.
const TWO_OF_FOUR: [u16; 256] = {
    let mut of = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let [a, b, c, d] = [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6];
        of[byte] = if a < b && c < d { 1 << a | 1 << b | 16 << c | 16 << d } else { UNSOUND };
        byte += 1;
    }
    of
};
const UNSOUND: u16 = 1 << 8;

/// Sets the bits of the columns that `n` positions for each `m` columns say; `false` where these do not
/// ascend or are too large.
#[inline(always)]
fn bits_of_groups(bytes: &[u8], (n, m, bits): (usize, usize, usize), cols: usize, words: &mut [u32]) -> bool {
    if (n, m) != (2, 4) {
        return bits_one_by_one(bytes, (n, m, bits), cols, words);
    }
    // A word of positions for each word of bits.
    let (whole, bits_left) = words.split_at_mut(words.len().min(cols / 32));
    let (bytes, bytes_left) = bytes.split_at(bytes.len().min(4 * whole.len()));
    let mut found = 0;
    for (word, bytes) in whole.iter_mut().zip(bytes.as_chunks::<4>().0) {
        let of = bytes.map(|byte| TWO_OF_FOUR[usize::from(byte)]);
        found |= of.into_iter().fold(0, |all, of| all | of);
        *word = u32::from_le_bytes(of.map(|of| of as u8));
    }
    found & UNSOUND == 0 && bits_one_by_one(bytes_left, (n, m, bits), cols % 32, bits_left)
}

/// [`bits_of_groups`] for groups of any size.
#[inline(always)]
fn bits_one_by_one(
    bytes: &[u8],
    (n, m, bits): (usize, usize, usize),
    cols: usize,
    words: &mut [u32],
) -> bool {
    words.fill(0);
    let mask = (1u32 << bits) - 1;
    let (mut at, mut is_sound) = (0, true);
    for first in (0..cols).step_by(m) {
        let mut least = 0;
        for _ in 0..n {
            let word = match bytes.get(at / 8..).unwrap_or(&[]) {
                [a, b, c, ..] => u32::from_le_bytes([*a, *b, *c, 0]),
                bytes => bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)),
            };
            let position = (word >> (at % 8) & mask) as usize;
            is_sound &= least <= position && position < m;
            least = position + 1;
            at += bits;
            let column = first + position;
            if let (Some(word), true) = (words.get_mut(column / 32), column < cols) {
                *word |= 1 << (column % 32);
            }
        }
    }
    is_sound
}

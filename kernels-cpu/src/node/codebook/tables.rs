//! Products by tables: what each entry gives with the activations of each vector is multiplied out once for
//! all rows, and a row then adds one of these products for each of its codes.
//!
//! Columns are worked on some vectors at a time, whose tables stay in a cache while all rows look them up.

use crate::arch;
use crate::operands::Input;

/// Bytes of the tables of some vectors of columns, for one token: what the first cache holds.
const FEW_BYTES: usize = 1 << 15;
/// The same for 16 tokens: a part of the second cache.
const MANY_BYTES: usize = 1 << 18;

/// How many rows ahead codes are asked for.
const AHEAD: usize = 16;

/// Most columns of a vector.
pub(super) const MAX_WIDTH: usize = 16;

/// Bits of codes that tables are made for.
pub(super) const BITS: core::ops::RangeInclusive<usize> = 6..=12;

/// How many vectors of columns are worked on at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) bits: usize,
    pub(super) codebooks: usize,
    /// Columns of a vector.
    pub(super) width: usize,
    pub(super) cols: usize,
}

/// Entries in both orders.
#[derive(Clone, Copy)]
pub(super) struct Entries<'k> {
    /// Entry after entry, codebook after codebook.
    pub(super) plain: &'k [f32],
    /// The first values of all entries of a codebook, then their second ones, and so on.
    pub(super) turned: &'k [f32],
}

/// Rows of codes, and what their sums are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Rows<'k> {
    /// From the first row on; rows lie `row_bytes` apart.
    pub(super) codes: &'k [u8],
    pub(super) row_bytes: usize,
    /// `[rows, groups]`; empty where there are none.
    pub(super) scales: &'k [f32],
    pub(super) groups: usize,
    /// Vectors of a group.
    pub(super) vectors_per_scale: usize,
}

/// Some vectors of columns.
#[derive(Clone, Copy)]
struct Panel {
    first: usize,
    count: usize,
}

impl Layout {
    /// Codes whose tables are looked up at a time, as one word has them.
    fn at_once(self) -> usize {
        if self.bits <= 8 { 8 } else { 4 }
    }

    fn vectors(self) -> usize {
        self.cols.div_ceil(self.width)
    }

    /// Vectors that are worked on at a time by `lanes` tokens.
    fn step(self, lanes: usize) -> usize {
        let bytes = if lanes == 1 { FEW_BYTES } else { MANY_BYTES };
        let of_vector = (self.codebooks * lanes * 4) << self.bits;
        // So that panels begin on whole bytes of codes.
        (bytes / of_vector).next_multiple_of(8).min(self.vectors().next_multiple_of(8))
    }

    /// Values of the tables of some vectors of columns, for up to `tokens` tokens.
    pub(super) fn values(self, tokens: usize) -> usize {
        let lanes = lanes(tokens);
        (self.step(lanes) * self.codebooks * lanes) << self.bits
    }
}

/// Tokens that are worked on at a time.
fn lanes(tokens: usize) -> usize {
    match tokens {
        0..=3 => 1,
        _ => 16,
    }
}

/// Adds the products of rows with each token to `out[row * tokens + token]`. `tables` has
/// [`Layout::values`].
#[inline(always)]
pub(super) fn multiply(
    layout: Layout,
    entries: Entries<'_>,
    rows: Rows<'_>,
    input: &Input<'_>,
    tables: &mut [f32],
    out: &mut [f32],
) {
    let mut token = 0;
    while token < input.tokens {
        let left = input.tokens - token;
        let lanes = lanes(left);
        let mut first = 0;
        while first < layout.vectors() {
            let panel = Panel { first, count: layout.step(lanes).min(layout.vectors() - first) };
            let out = out.get_mut(token..).unwrap_or(&mut []);
            match lanes {
                1 => by_bits::<1>(layout, entries, rows, panel, input, token, tables, out),
                _ => by_bits::<16>(layout, entries, rows, panel, input, token, tables, out),
            }
            first += panel.count;
        }
        token += lanes;
    }
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
fn by_bits<const N: usize>(
    layout: Layout,
    entries: Entries<'_>,
    rows: Rows<'_>,
    panel: Panel,
    input: &Input<'_>,
    token: usize,
    tables: &mut [f32],
    out: &mut [f32],
) {
    let tables = tables.as_chunks_mut::<N>().0;
    make(layout, entries, panel, input, token, tables);
    let tokens = (input.tokens, N.min(input.tokens - token));
    macro_rules! look_up {
        ($($bits:literal)*) => {
            match layout.bits {
                $($bits => look_up::<N, { 1 << $bits }>(layout, rows, panel, tokens, tables, out),)*
                _ => {}
            }
        };
    }
    look_up!(6 7 8 9 10 11 12);
}

/// Makes the tables of some vectors of columns: a value a token for each entry of each codebook.
#[inline(always)]
fn make<const N: usize>(
    layout: Layout,
    entries: Entries<'_>,
    panel: Panel,
    input: &Input<'_>,
    token: usize,
    tables: &mut [[f32; N]],
) {
    let Layout { bits, codebooks, width, cols } = layout;
    let of_vector = tables.chunks_exact_mut(codebooks << bits);
    for (vector, tables) in (panel.first..panel.first + panel.count).zip(of_vector) {
        let first = vector * width;
        // Elements beyond the last column are no part of the matrix, whatever they are.
        let used = width.min(cols - first);
        if N == 1 {
            let x = input.values(token).as_flattened().get(first..first + used).unwrap_or(&[]);
            for (turned, tables) in
                entries.turned.chunks_exact(width << bits).zip(tables.chunks_exact_mut(1 << bits))
            {
                let tables = tables.as_flattened_mut().as_chunks_mut::<16>().0;
                for (i, sums) in tables.iter_mut().enumerate() {
                    let mut own = [0.0; 16];
                    for (x, turned) in x.iter().zip(turned.chunks_exact(1 << bits)) {
                        let Some(values) = turned.as_chunks::<16>().0.get(i) else { continue };
                        own.iter_mut().zip(values).for_each(|(sum, value)| *sum = value.mul_add(*x, *sum));
                    }
                    *sums = own;
                }
            }
        } else {
            let mut turned = [[0.0; N]; MAX_WIDTH];
            for t in 0..N.min(input.tokens - token) {
                let x = input.values(token + t).as_flattened().get(first..first + used).unwrap_or(&[]);
                turned.iter_mut().zip(x).for_each(|(turned, x)| turned[t] = *x);
            }
            let turned = turned.get(..used).unwrap_or(&turned);
            for (entry, sums) in entries.plain.chunks_exact(width).zip(tables) {
                let mut own = [0.0; N];
                for (value, x) in entry.iter().zip(turned) {
                    own.iter_mut().zip(x).for_each(|(sum, x)| *sum = value.mul_add(*x, *sum));
                }
                *sums = own;
            }
        }
    }
}

/// Adds what the codes of some vectors name, for all rows. `out` has the first of `N` tokens of the first row
/// first; of `tokens` in all some are added to.
#[inline(always)]
fn look_up<const N: usize, const E: usize>(
    layout: Layout,
    rows: Rows<'_>,
    panel: Panel,
    (tokens, some): (usize, usize),
    tables: &[[f32; N]],
    out: &mut [f32],
) {
    let Layout { bits, codebooks, .. } = layout;
    let tables = tables.as_chunks::<E>().0;
    let start = panel.first * codebooks * bits / 8;
    for (row, out) in out.chunks_mut(tokens).enumerate() {
        let codes = rows.codes.get(row * rows.row_bytes + start..).unwrap_or(&[]);
        arch::ask(codes, AHEAD * rows.row_bytes);
        if rows.groups <= 1 {
            let sums = add(layout, codes, 0, tables.get(..panel.count * codebooks).unwrap_or(tables));
            let scale = rows.scales.get(row).copied().unwrap_or(1.0);
            out.iter_mut().zip(sums).take(some).for_each(|(out, sum)| *out += sum * scale);
            continue;
        }
        let scales = rows.scales.get(row * rows.groups..(row + 1) * rows.groups).unwrap_or(&[]);
        let mut vector = panel.first;
        while vector < panel.first + panel.count {
            let group = vector / rows.vectors_per_scale;
            let end = (panel.first + panel.count).min((group + 1) * rows.vectors_per_scale);
            let own = (vector - panel.first) * codebooks..(end - panel.first) * codebooks;
            let sums = add(layout, codes, own.start * bits, tables.get(own).unwrap_or(&[]));
            let scale = scales.get(group).copied().unwrap_or(0.0);
            out.iter_mut().zip(sums).take(some).for_each(|(out, sum)| *out += sum * scale);
            vector = end;
        }
    }
}

/// The sum of what codes from bit `at` on name, one in each table.
#[inline(always)]
fn add<const N: usize, const E: usize>(
    layout: Layout,
    codes: &[u8],
    mut at: usize,
    tables: &[[[f32; N]; E]],
) -> [f32; N] {
    let bits = layout.bits;
    let [mut a, mut b, mut c, mut d] = [[0.0; N]; 4];
    let (eights, rest) = match layout.at_once() == 8 && at.is_multiple_of(8) {
        true => tables.as_chunks::<8>(),
        false => (&[][..], tables),
    };
    for [i, j, k, l, m, n, o, p] in eights {
        let word = word(codes, at / 8);
        a = add_one(i, word, a);
        b = add_one(j, word >> bits, b);
        c = add_one(k, word >> (2 * bits), c);
        d = add_one(l, word >> (3 * bits), d);
        a = add_one(m, word >> (4 * bits), a);
        b = add_one(n, word >> (5 * bits), b);
        c = add_one(o, word >> (6 * bits), c);
        d = add_one(p, word >> (7 * bits), d);
        at += 8 * bits;
    }
    let (fours, rest) = rest.as_chunks::<4>();
    for [i, j, k, l] in fours {
        let word = word(codes, at / 8) >> (at % 8);
        a = add_one(i, word, a);
        b = add_one(j, word >> bits, b);
        c = add_one(k, word >> (2 * bits), c);
        d = add_one(l, word >> (3 * bits), d);
        at += 4 * bits;
    }
    for table in rest {
        a = add_one(table, word(codes, at / 8) >> (at % 8), a);
        at += bits;
    }
    for i in 0..N {
        a[i] = (a[i] + b[i]) + (c[i] + d[i]);
    }
    a
}

/// Adds what the first code of a word names.
#[inline(always)]
fn add_one<const N: usize, const E: usize>(table: &[[f32; N]; E], word: u64, sums: [f32; N]) -> [f32; N] {
    let value = &table[word as usize % E];
    if N == 1 {
        return sums.map(|sum| sum + arch::load_alone(&value[0]));
    }
    core::array::from_fn(|i| sums[i] + value[i])
}

/// Codes from the start of `codes` on.
#[inline(always)]
pub(super) fn unpack(codes: &[u8], bits: usize, out: &mut [u16]) {
    let mask = (1u64 << bits) - 1;
    if bits <= 8 {
        for (i, out) in out.chunks_mut(8).enumerate() {
            let word = word(codes, i * bits);
            match out.as_chunks_mut::<8>().0 {
                [out] => *out = core::array::from_fn(|k| (word >> (k * bits) & mask) as u16),
                _ => {
                    out.iter_mut().enumerate().for_each(|(k, out)| *out = (word >> (k * bits) & mask) as u16)
                }
            }
        }
    } else {
        for (i, out) in out.iter_mut().enumerate() {
            *out = (word(codes, i * bits / 8) >> (i * bits % 8) & mask) as u16;
        }
    }
}

/// The word at byte `at`, zeros beyond the end.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).unwrap_or(&[]);
    match bytes.first_chunk() {
        Some(word) => u64::from_le_bytes(*word),
        None => bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

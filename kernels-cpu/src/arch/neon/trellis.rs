//! Paths of trellis planes: windows by shifts of bytes, values by lookups in registers.
//!
//! Sixteen columns are worked on at a time, one in each byte of a vector: byte `k` of their words is a
//! vector of its own, a plane. The newest 8 bits of the windows of a row are a plane and its neighbour,
//! shifted.

use core::arch::aarch64::*;

use super::memory::*;
use super::*;
use crate::arch::portable;
use crate::operands::{Kind, Table, Words};

/// Windows of 6 bits, of 7, of 8 with odd tables and others, and hashed ones.
const SIX: u8 = 0;
const SEVEN: u8 = 1;
const EIGHT: u8 = 2;
const EIGHT_ODD: u8 = 3;
const HASHED: u8 = 4;

/// Longest windows that are hashed.
const LONGEST: usize = 14;
/// The middle of values as they are stored.
const MIDDLE: u8 = 128;

/// Bytes of the words before and now of 16 columns.
type Planes = [uint8x16_t; 8];

/// Looks windows up in a table in registers. A byte of a word has the ends of `ROWS` windows.
struct Lookup<const KIND: u8, const ROWS: usize> {
    /// See [`Table::vectors`].
    table: [uint8x16x4_t; 4],
    /// Of the lower and of the upper four of the 8 bits that are before the 6 newest ones: what they
    /// add to the index.
    map: [uint8x16_t; 2],
}

impl<const KIND: u8, const ROWS: usize> Lookup<KIND, ROWS> {
    /// For values with the bits of `flipped` flipped.
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(table: &Table<'_>, flipped: u8) -> Self {
        let mut of = [load_table(&[0; 64]); 4];
        for (of, bytes) in of.iter_mut().zip(table.vectors) {
            *of = load_table(&bytes.map(|value| value ^ flipped));
        }
        let mut map = [[0; 16]; 2];
        if let Kind::Hashed(rows) = table.kind {
            // Bits that a shorter window lacks are in no row.
            let shift = LONGEST.saturating_sub(table.window);
            for (i, map) in map.iter_mut().enumerate() {
                for (bits, adds) in map.iter_mut().enumerate() {
                    let bits = (bits << (4 * i)) as u8;
                    let odd = |row: &u8| ((u16::from(*row) << shift) as u8 & bits).count_ones() as u8 & 1;
                    // The highest bit of the index is first.
                    *adds = rows.iter().fold(0, |index, row| index << 1 | odd(row));
                }
            }
        }
        Self { table: of, map: map.map(|map| load_16(&map)) }
    }

    /// The values of the rows whose windows end in byte `byte` of a word.
    #[inline]
    #[target_feature(enable = "neon")]
    fn values(&self, planes: &Planes, byte: usize) -> [uint8x16_t; ROWS] {
        let (early, low, high) = (planes[byte + 2], planes[byte + 3], planes[byte + 4]);
        core::array::from_fn(|row| {
            let end = (row + 1) * 8 / ROWS;
            let newest = bits_from(end, low, high);
            match KIND {
                SIX => vqtbl4q_u8(self.table[0], vshrq_n_u8::<2>(newest)),
                SEVEN => self.pair(vshrq_n_u8::<1>(newest)),
                EIGHT => {
                    let after = |i: u8| vsubq_u8(newest, vdupq_n_u8(64 * i));
                    let values = self.pair(newest);
                    let values = vqtbx4q_u8(values, self.table[2], after(2));
                    vqtbx4q_u8(values, self.table[3], after(3))
                }
                EIGHT_ODD => {
                    let upper = vreinterpretq_u8_s8(vshrq_n_s8::<7>(vreinterpretq_s8_u8(newest)));
                    let values = self.pair(veorq_u8(newest, upper));
                    // The negative value, which the middle that is added takes no part in.
                    vsubq_u8(veorq_u8(values, upper), upper)
                }
                _ => {
                    let older = match end + 2 {
                        start @ ..8 => bits_from(start, early, low),
                        start => bits_from(start - 8, low, high),
                    };
                    let lower = vqtbl1q_u8(self.map[0], vandq_u8(older, vdupq_n_u8(15)));
                    let upper = vqtbl1q_u8(self.map[1], vshrq_n_u8::<4>(older));
                    let index = veorq_u8(vshrq_n_u8::<2>(newest), veorq_u8(lower, upper));
                    vqtbl4q_u8(self.table[0], index)
                }
            }
        })
    }

    /// Entries of 128; of an index beyond them, any value.
    #[inline]
    #[target_feature(enable = "neon")]
    fn pair(&self, index: uint8x16_t) -> uint8x16_t {
        let values = vqtbl4q_u8(self.table[0], index);
        vqtbx4q_u8(values, self.table[1], vsubq_u8(index, vdupq_n_u8(64)))
    }
}

/// 8 bits of each byte of `low` and the one of `high` above it, from bit `start` on, 0 to 8.
#[inline]
#[target_feature(enable = "neon")]
fn bits_from(start: usize, low: uint8x16_t, high: uint8x16_t) -> uint8x16_t {
    match start {
        0 => low,
        1 => vsliq_n_u8::<7>(vshrq_n_u8::<1>(low), high),
        2 => vsliq_n_u8::<6>(vshrq_n_u8::<2>(low), high),
        3 => vsliq_n_u8::<5>(vshrq_n_u8::<3>(low), high),
        4 => vsliq_n_u8::<4>(vshrq_n_u8::<4>(low), high),
        5 => vsliq_n_u8::<3>(vshrq_n_u8::<5>(low), high),
        6 => vsliq_n_u8::<2>(vshrq_n_u8::<6>(low), high),
        7 => vsliq_n_u8::<1>(vshrq_n_u8::<7>(low), high),
        _ => high,
    }
}

/// The bytes of the words of block `block`, 16 columns in each.
#[inline]
#[target_feature(enable = "neon")]
fn planes(before: &[[u8; 4]], now: &[[u8; 4]], block: usize) -> [Planes; GRANULES] {
    let columns = block * BLOCK..(block + 1) * BLOCK;
    match (before.get(columns.clone()), now.get(columns)) {
        (Some(before), Some(now)) => planes_of(before, now),
        _ => planes_of(&part_of(before, block), &part_of(now, block)),
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn planes_of(before: &[[u8; 4]], now: &[[u8; 4]]) -> [Planes; GRANULES] {
    let mut out = [[vdupq_n_u8(0); 8]; GRANULES];
    let words = before.as_chunks().0.iter().zip(now.as_chunks().0);
    for (out, (before, now)) in out.iter_mut().zip(words) {
        let ([a, b, c, d], [e, f, g, h]) = (load_planes(before), load_planes(now));
        *out = [a, b, c, d, e, f, g, h];
    }
    out
}

/// Calls a kernel with the kind of table and the windows of a byte as constants, or `$other` where
/// there is none.
macro_rules! by_words {
    ($words:expr, $kernel:ident($($argument:expr),*), $other:expr) => {{
        let (window, kind) = ($words.table.window, $words.table.kind);
        match ($words.step_bits, kind, window) {
            (1, Kind::Hashed(_), ..=LONGEST) => $kernel::<HASHED, 8>($($argument),*),
            (2, Kind::Hashed(_), ..=LONGEST) => $kernel::<HASHED, 4>($($argument),*),
            (1, _, 6) => $kernel::<SIX, 8>($($argument),*),
            (2, _, 6) => $kernel::<SIX, 4>($($argument),*),
            (1, _, 7) => $kernel::<SEVEN, 8>($($argument),*),
            (2, _, 7) => $kernel::<SEVEN, 4>($($argument),*),
            (1, Kind::Odd, 8) => $kernel::<EIGHT_ODD, 8>($($argument),*),
            (2, Kind::Odd, 8) => $kernel::<EIGHT_ODD, 4>($($argument),*),
            (1, _, 8) => $kernel::<EIGHT, 8>($($argument),*),
            (2, _, 8) => $kernel::<EIGHT, 4>($($argument),*),
            _ => $other,
        }
    }};
}

/// As the portable kernel, which windows of 10 bits that are not hashed are left to.
#[target_feature(enable = "neon")]
pub(in crate::arch) fn trellis(words: &Words<'_>, blocks: usize, out: &mut [[u8; BLOCK]]) {
    by_words!(words, trellis_rows(words, blocks, out), portable::trellis(words, blocks, out));
}

#[inline]
#[target_feature(enable = "neon")]
fn trellis_rows<const KIND: u8, const ROWS: usize>(
    words: &Words<'_>,
    blocks: usize,
    out: &mut [[u8; BLOCK]],
) {
    let lookup = Lookup::<KIND, ROWS>::new(&words.table, 0);
    let panels = out.chunks_exact_mut((blocks * 4 * ROWS).max(1));
    for ((before, now), panel) in words.pairs().zip(panels) {
        for block in 0..blocks {
            let planes = planes(before, now, block);
            for byte in 0..4 {
                for (i, planes) in planes.iter().enumerate() {
                    for (row, values) in lookup.values(planes, byte).into_iter().enumerate() {
                        let out = panel.get_mut((byte * ROWS + row) * blocks + block);
                        let out = out.and_then(|out| out.as_chunks_mut().0.get_mut(i));
                        if let Some(out) = out {
                            store_16(values, out);
                        }
                    }
                }
            }
        }
    }
}

/// As the portable kernel, to the bit, and with its help as [`trellis`].
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::arch) fn trellis_fast<D: Dot>(
    dot: D,
    words: &Words<'_>,
    input: &Input<'_>,
    panel: &mut [[u8; BLOCK]],
    lanes: &mut [[f32; 16]],
    sums: &mut [f32],
) {
    by_words!(
        words,
        by_tokens(dot, words, input, sums),
        portable::trellis_fast(words, input, panel, lanes, sums)
    );
}

#[inline]
#[target_feature(enable = "neon")]
fn by_tokens<const KIND: u8, const ROWS: usize>(
    dot: impl Dot,
    words: &Words<'_>,
    input: &Input<'_>,
    sums: &mut [f32],
) {
    let lookup = Lookup::<KIND, ROWS>::new(&words.table, MIDDLE);
    let of_words = sums.chunks_exact_mut((4 * ROWS * input.tokens).max(1));
    for ((before, now), sums) in words.pairs().zip(of_words) {
        sums.fill(0.0);
        for block in 0..input.blocks {
            let planes = planes(before, now, block);
            for byte in 0..4 {
                let first = byte * ROWS / SIDE;
                match input.tokens {
                    1 => one_token(dot, &lookup, &planes, byte, input, block, first, sums),
                    _ => {
                        let weights = planes.each_ref().map(|planes| lookup.values(planes, byte));
                        all_tokens(dot, &weights, input, block, first, sums);
                    }
                }
            }
        }
    }
}

/// Adds the sums of a block and the rows of a byte, from four `first` on, by a token.
#[inline]
#[target_feature(enable = "neon")]
#[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
fn one_token<const KIND: u8, const ROWS: usize>(
    dot: impl Dot,
    lookup: &Lookup<KIND, ROWS>,
    planes: &[Planes; GRANULES],
    byte: usize,
    input: &Input<'_>,
    block: usize,
    first: usize,
    sums: &mut [f32],
) {
    let (q, scale) = of_tokens::<false>(input, 0, block);
    let mut rows = [vdupq_n_s32(0); ROWS];
    for (planes, q) in planes.iter().zip(q) {
        for (sum, weights) in rows.iter_mut().zip(lookup.values(planes, byte)) {
            *sum = dot.dot(*sum, vreinterpretq_s8_u8(weights), q);
        }
    }
    let outs = sums.as_chunks_mut::<SIDE>().0.iter_mut().skip(first);
    for (rows, out) in rows.as_chunks().0.iter().zip(outs) {
        let rows = vcvtq_f32_s32(sums_of_four(*rows));
        store_four(vfmaq_n_f32(load_four(out), rows, scale), out);
    }
}

/// As [`one_token`], by all tokens and with weights that have been looked up.
#[inline]
#[target_feature(enable = "neon")]
fn all_tokens<const ROWS: usize>(
    dot: impl Dot,
    weights: &[[uint8x16_t; ROWS]; GRANULES],
    input: &Input<'_>,
    block: usize,
    first: usize,
    sums: &mut [f32],
) {
    let fours: [[[int8x16_t; SIDE]; GRANULES]; 2] = core::array::from_fn(|four| {
        core::array::from_fn(|i| {
            dot.of_rows(core::array::from_fn(|r| {
                vreinterpretq_s8_u8(weights[i][(four * SIDE + r).min(ROWS - 1)])
            }))
        })
    });
    for token in (0..input.tokens).step_by(SIDE) {
        let tokens: [_; SIDE] =
            core::array::from_fn(|t| of_tokens::<false>(input, (token + t).min(input.tokens - 1), block));
        let mut q = [[vdupq_n_s8(0); SIDE]; GRANULES];
        for (j, q) in q.iter_mut().enumerate() {
            *q = dot.of_tokens(tokens.map(|(q, _)| q[j]));
        }
        for (four, weights) in fours.iter().enumerate().take(ROWS / SIDE) {
            let products = dot.square(weights, &q);
            let outs = sums.chunks_exact_mut(4 * ROWS).skip(token);
            for (out, (products, (_, scale))) in outs.zip(products.iter().zip(&tokens)) {
                let Some(out) = out.as_chunks_mut::<SIDE>().0.get_mut(first + four) else { continue };
                store_four(vfmaq_n_f32(load_four(out), vcvtq_f32_s32(*products), *scale), out);
            }
        }
    }
}

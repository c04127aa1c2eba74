//! Paths of trellis planes: bytes of paths by permutations, windows by linear maps, values by lookups in registers.
//!
//! Eight columns are worked on at a time, and two words of each. One permutation puts byte by byte of their words
//! next to each other, in the order in which `vpdpbusd` wants them: four columns in a lane, eight in two. Where such
//! vectors lie one after the other in memory, the bytes before each of them on its path are those 8 bytes
//! earlier. A vector has the same row of each byte, so all of it has the same maps and the same table: see
//! [`lookup`].

use core::arch::x86_64::*;

use self::lookup::*;
use self::strip::*;
use super::memory::*;
use super::*;
use crate::operands::Kind;

mod lookup;
mod strip;

/// Pairs of rows of words that are taken apart at a time for one token.
const PAIRS: usize = 4;
/// Tokens that share what is loaded of weights.
const TOKENS: usize = 4;

/// Calls a kernel with the kind of table and the rows of a byte as constants.
macro_rules! by_words {
    ($words:expr, $kernel:ident($($argument:expr),*)) => {{
        let (window, kind) = ($words.table.window, $words.table.kind);
        match ($words.step_bits, kind, window) {
            (1, Kind::Hashed(_), ..11) => $kernel::<10, 8>($($argument),*),
            (1, Kind::Hashed(_), 11 | 12) => $kernel::<12, 8>($($argument),*),
            (1, Kind::Hashed(_), _) => $kernel::<14, 8>($($argument),*),
            (_, Kind::Hashed(_), ..11) => $kernel::<10, 4>($($argument),*),
            (_, Kind::Hashed(_), 11 | 12) => $kernel::<12, 4>($($argument),*),
            (_, Kind::Hashed(_), _) => $kernel::<14, 4>($($argument),*),
            (1, _, 6) => $kernel::<SIX, 8>($($argument),*),
            (_, _, 6) => $kernel::<SIX, 4>($($argument),*),
            (1, _, 7) => $kernel::<SEVEN, 8>($($argument),*),
            (_, _, 7) => $kernel::<SEVEN, 4>($($argument),*),
            (1, Kind::Odd, 8) => $kernel::<EIGHT_ODD, 8>($($argument),*),
            (_, Kind::Odd, 8) => $kernel::<EIGHT_ODD, 4>($($argument),*),
            (1, _, 8) => $kernel::<EIGHT, 8>($($argument),*),
            (_, _, 8) => $kernel::<EIGHT, 4>($($argument),*),
            (1, Kind::Odd, _) => $kernel::<TEN_ODD, 8>($($argument),*),
            (_, Kind::Odd, _) => $kernel::<TEN_ODD, 4>($($argument),*),
            (1, _, _) => $kernel::<TEN, 8>($($argument),*),
            (_, _, _) => $kernel::<TEN, 4>($($argument),*),
        }
    }};
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
pub(in crate::arch) fn trellis_fast(
    words: &Words<'_>,
    input: &Input<'_>,
    _panel: &mut [[u8; BLOCK]],
    lanes: &mut [[f32; 16]],
    sums: &mut [f32],
) {
    if input.tokens == 1 {
        by_words!(words, one_token(words, input, sums));
    } else {
        by_words!(words, tokens(words, input, lanes, sums));
    }
}

/// Sums of one token. Strips of columns are taken apart while the ones before them are worked on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn one_token<const KIND: u8, const SETS: usize>(words: &Words<'_>, input: &Input<'_>, sums: &mut [f32]) {
    let lookup = Lookup::<KIND, SETS>::new(words);
    let (mut own, mut next) =
        (&mut Strip::<{ 2 * PAIRS + 2 }>::new(), &mut Strip::<{ 2 * PAIRS + 2 }>::new());
    let mut place = Place { words, row: 0, block: 0 };
    for (row, block) in (0..2 * PAIRS + 1).flat_map(|row| (0..BLOCKS).map(move |block| (row, block))) {
        own.fill(place, row, block);
    }
    for sums in sums.chunks_mut(PAIRS * 8 * SETS) {
        let mut lanes = [[[0.0; 16]; SETS]; PAIRS];
        for first in (0..input.blocks).step_by(BLOCKS) {
            let last = input.blocks.min(first + BLOCKS);
            place = match last == input.blocks {
                true => Place { row: place.row + 2 * PAIRS, block: 0, ..place },
                false => Place { block: last, ..place },
            };
            let scales = input.scales(0).get(first..last).unwrap_or(&[]);
            let all = input.sums(0).get(first..last).unwrap_or(&[]);
            let q = input.quantised(0).get(first..last).unwrap_or(&[]);
            for (pair, lanes) in lanes.iter_mut().enumerate().take(sums.len().div_ceil(8 * SETS)) {
                let mut total = lanes.each_ref().map(|lanes| load_floats(lanes));
                let mut each = q.iter().zip(scales).zip(all);
                for block in 0..BLOCKS {
                    if pair == 0 {
                        next.fill(place, 0, block);
                    }
                    next.fill(place, 2 * pair + 1, block);
                    next.fill(place, 2 * pair + 2, block);
                    let Some(((q, scale), all)) = each.next() else { continue };
                    let mut sums = [start(all); SETS];
                    for (bytes, q) in own.block(block, pair).into_iter().zip(q.as_chunks::<COLUMNS>().0) {
                        let weights = lookup.values(bytes);
                        let q = eight(q);
                        for set in 0..SETS {
                            sums[set] = _mm512_dpbusd_epi32(sums[set], weights[set], q);
                        }
                    }
                    add(&mut total, sums, *scale);
                }
                for (lanes, total) in lanes.iter_mut().zip(total) {
                    store_floats(total, lanes);
                }
            }
            core::mem::swap(&mut own, &mut next);
        }
        for (lanes, sums) in lanes.iter().zip(sums.chunks_mut(8 * SETS)) {
            sum_rows(lanes, sums);
        }
    }
}

/// Sums of several tokens, which share the weights of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn tokens<const KIND: u8, const SETS: usize>(
    words: &Words<'_>,
    input: &Input<'_>,
    lanes: &mut [[f32; 16]],
    sums: &mut [f32],
) {
    let lookup = Lookup::<KIND, SETS>::new(words);
    let count = input.tokens;
    let Some(lanes) = lanes.as_chunks_mut::<SETS>().0.get_mut(..count) else { return };
    for (pair, sums) in sums.chunks_mut((count * 8 * SETS).max(1)).enumerate() {
        lanes.as_flattened_mut().fill([0.0; 16]);
        each_block(&lookup, Place { words, row: 2 * pair, block: 0 }, input.blocks, |block, weights| {
            let (tiles, rest) = lanes.as_chunks_mut::<TOKENS>();
            let left = tiles.len() * TOKENS;
            for (i, lanes) in tiles.iter_mut().enumerate() {
                add_tokens(weights, input, block, i * TOKENS, lanes);
            }
            for (token, lanes) in (left..).zip(rest) {
                add_tokens(weights, input, block, token, core::array::from_mut(lanes));
            }
        });
        // Of each row of words first a token's rows, then the next one's.
        let mut of_rows = sums.chunks_mut(count * 4 * SETS);
        let (mut upper, mut lower) = (of_rows.next(), of_rows.next());
        for (token, lanes) in lanes.iter().enumerate() {
            let mut both = [0.0; 64];
            sum_rows(lanes, &mut both);
            for (sums, both) in [&mut upper, &mut lower].into_iter().zip(both.chunks_exact(4 * SETS)) {
                let sums = sums.as_mut().and_then(|sums| sums.chunks_exact_mut(4 * SETS).nth(token));
                sums.into_iter().flatten().zip(both).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

/// Adds the products of a block of two rows of words by `T` tokens from `token` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn add_tokens<const SETS: usize, const T: usize>(
    weights: &[[__m512i; SETS]; GROUPS],
    input: &Input<'_>,
    block: usize,
    token: usize,
    lanes: &mut [[[f32; 16]; SETS]; T],
) {
    let none = (&[0; BLOCK], 0.0, &[0; GRANULES]);
    let each: [_; T] = core::array::from_fn(|i| {
        let (q, all) = (input.quantised(token + i).get(block), input.sums(token + i).get(block));
        match (q, input.scales(token + i).get(block), all) {
            (Some(q), Some(scale), Some(all)) => (q, *scale, all),
            _ => none,
        }
    });
    let mut sums = [[_mm512_setzero_si512(); SETS]; T];
    for i in 0..T {
        sums[i] = [start(each[i].2); SETS];
    }
    for group in 0..GROUPS {
        for i in 0..T {
            let q = eight(&each[i].0.as_chunks().0[group]);
            for set in 0..SETS {
                sums[i][set] = _mm512_dpbusd_epi32(sums[i][set], weights[group][set], q);
            }
        }
    }
    for i in 0..T {
        for set in 0..SETS {
            let mut total = [load_floats(&lanes[i][set])];
            add(&mut total, [sums[i][set]], each[i].1);
            store_floats(total[0], &mut lanes[i][set]);
        }
    }
}

/// Hands the values of each block of the two rows of words that follow `place` to `kernel`: of each group of
/// columns, the rows of a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,gfni")]
fn each_block<const KIND: u8, const SETS: usize>(
    lookup: &Lookup<KIND, SETS>,
    place: Place<'_>,
    blocks: usize,
    mut kernel: impl FnMut(usize, &[[__m512i; SETS]; GROUPS]),
) {
    let mut strip = Strip::<4>::new();
    for block in 0..blocks {
        for row in 0..3 {
            strip.fill(Place { block, ..place }, row, 0);
        }
        let mut weights = [[_mm512_setzero_si512(); SETS]; GROUPS];
        for (weights, bytes) in weights.iter_mut().zip(strip.block(0, 0)) {
            *weights = lookup.values(bytes);
        }
        kernel(block, &weights);
    }
}

/// Quantised activations of eight columns, as bytes of weights lie.
#[inline]
#[target_feature(enable = "avx512f")]
fn eight(q: &[i8; COLUMNS]) -> __m512i {
    _mm512_set1_epi64(i64::from_le_bytes(q.map(i8::cast_unsigned)))
}

/// What takes 128 off values, which are stored plus 128; each row is in two lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn start(all: &[i32; GRANULES]) -> __m512i {
    _mm512_maskz_set1_epi32(0x5555, -128 * all.iter().sum::<i32>())
}

/// Adds sums of a block.
#[inline]
#[target_feature(enable = "avx512f,fma")]
fn add<const SETS: usize>(total: &mut [__m512; SETS], sums: [__m512i; SETS], scale: f32) {
    for set in 0..SETS {
        total[set] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[set]), _mm512_set1_ps(scale), total[set]);
    }
}

/// The sums of as many rows of two words as there is room for, each of which is in two lanes.
fn sum_rows<const SETS: usize>(lanes: &[[f32; 16]; SETS], sums: &mut [f32]) {
    for (byte, sums) in sums.chunks_mut(SETS).enumerate() {
        for (sum, lanes) in sums.iter_mut().zip(lanes) {
            *sum = lanes.as_chunks::<2>().0.get(byte).map_or(0.0, |[a, b]| a + b);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
pub(in crate::arch) fn trellis(words: &Words<'_>, blocks: usize, out: &mut [[u8; BLOCK]]) {
    by_words!(words, trellis_sets(words, blocks, out));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn trellis_sets<const KIND: u8, const SETS: usize>(
    words: &Words<'_>,
    blocks: usize,
    out: &mut [[u8; BLOCK]],
) {
    let lookup = Lookup::<KIND, SETS>::new(words);
    for (pair, panel) in out.chunks_mut((blocks * 8 * SETS).max(1)).enumerate() {
        each_block(&lookup, Place { words, row: 2 * pair, block: 0 }, blocks, |block, weights| {
            for set in 0..SETS {
                // Of each row the eight groups next to each other.
                let rows = transpose(weights.map(|weights| weights[set]));
                for (byte, weights) in rows.into_iter().enumerate() {
                    if let Some(out) = panel.get_mut((byte * SETS + set) * blocks + block) {
                        store_bytes(weights, out);
                    }
                }
            }
        });
    }
}

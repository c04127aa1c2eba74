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

/// Blocks of a strip and pairs of rows of words of a tile, for one token.
const BLOCKS: usize = 8;
const PAIRS: usize = 4;
/// Halves of vectors of such a strip.
const HALVES: usize = 2 * PAIRS + 2;
/// Blocks that are taken apart before their turn, for several tokens: what was stored in pieces is only read as a
/// whole once it has reached the cache.
const AHEAD: usize = 2;
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

/// Sums of one token, strip by strip, tile by tile of rows of words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn one_token<const KIND: u8, const SETS: usize>(words: &Words<'_>, input: &Input<'_>, sums: &mut [f32]) {
    let lookup = Lookup::<KIND, SETS>::new(words);
    let (mut strip, mut spare) = (Strip::<BLOCKS, HALVES>::new(), [[[0; 4]; BLOCKS * BLOCK]; 3]);
    for row in 0..2 * PAIRS + 1 {
        let piece = piece(words, row, 0, &mut spare[0]);
        for (block, words) in piece.as_chunks().0.iter().enumerate() {
            strip.fill(row, block, words);
        }
    }
    for (tile, sums) in sums.chunks_mut(PAIRS * 8 * SETS).enumerate() {
        let mut lanes = [[[0.0; 16]; SETS]; PAIRS];
        for first in (0..input.blocks).step_by(BLOCKS) {
            let blocks = first..input.blocks.min(first + BLOCKS);
            let (row, block) = match blocks.end == input.blocks {
                true => ((tile + 1) * 2 * PAIRS, 0),
                false => (tile * 2 * PAIRS, blocks.end),
            };
            // A tile ahead, in the order of memory.
            let ahead = 2 * PAIRS * ((tile + 1) * words.cols + first * BLOCK);
            let ahead = words.words.as_ptr().wrapping_add(ahead).cast();
            let next = Next { words, row, block, blocks: BLOCKS.min(input.blocks - block), ahead };
            let mut starts = [0; BLOCKS];
            let all = input.sums(0).get(blocks.clone()).unwrap_or(&[]);
            starts.iter_mut().zip(all).for_each(|(start, sums)| *start = start_of(sums));
            let blocks = Blocks {
                q: input.quantised(0).get(blocks.clone()).unwrap_or(&[]),
                scales: input.scales(0).get(blocks).unwrap_or(&[]),
                starts,
            };
            let lanes = &mut lanes[..PAIRS.min(sums.len().div_ceil(8 * SETS))];
            add_strip(&lookup, &mut strip, &blocks, &next, &mut spare, lanes);
        }
        for (lanes, sums) in lanes.iter().zip(sums.chunks_mut(8 * SETS)) {
            sum_rows(lanes, sums);
        }
    }
}

/// Activations of the blocks of a strip.
struct Blocks<'k> {
    q: &'k [[i8; BLOCK]],
    scales: &'k [f32],
    /// See [`start_of`].
    starts: [i64; BLOCKS],
}

/// The strip that follows, and what is asked for from memory.
struct Next<'k> {
    words: &'k Words<'k>,
    /// Counted from the one before the first.
    row: usize,
    block: usize,
    /// How many.
    blocks: usize,
    ahead: *const u8,
}

/// Adds the products of a strip to `lanes`, from the last pair of rows to the first. What was worked on makes room
/// for the next strip.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn add_strip<const KIND: u8, const SETS: usize>(
    lookup: &Lookup<KIND, SETS>,
    strip: &mut Strip<BLOCKS, HALVES>,
    blocks: &Blocks<'_>,
    next: &Next<'_>,
    [spare_before, spare_upper, spare_lower]: &mut [[[u8; 4]; BLOCKS * BLOCK]; 3],
    lanes: &mut [[[f32; 16]; SETS]],
) {
    let Next { words, row, block, blocks: filled, mut ahead } = *next;
    let before = piece(words, row, block, spare_before).as_chunks().0;
    for (pair, lanes) in lanes.iter_mut().enumerate().rev() {
        let upper = piece(words, row + 2 * pair + 1, block, spare_upper).as_chunks().0;
        let lower = piece(words, row + 2 * pair + 2, block, spare_lower).as_chunks().0;
        let mut total = [_mm512_setzero_ps(); SETS];
        for set in 0..SETS {
            total[set] = load_floats(&lanes[set]);
        }
        let mut each = blocks.q.iter().zip(blocks.scales);
        for block in 0..BLOCKS {
            if let (Some((q, scale)), Some(bytes)) = (each.next(), strip.pair(block, pair)) {
                let mut sums = [_mm512_set1_epi64(blocks.starts[block]); SETS];
                for group in 0..GROUPS {
                    let weights = lookup.values(bytes.group(group));
                    let q = eight(&q.as_chunks().0[group]);
                    for set in 0..SETS {
                        sums[set] = _mm512_dpbusd_epi32(sums[set], weights[set], q);
                    }
                }
                add(&mut total, sums, *scale);
            }
            if block >= filled {
                continue;
            }
            for _ in 0..2 * BLOCK / 16 {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                ahead = ahead.wrapping_add(64);
            }
            strip.fill(2 * pair + 1, block, &upper[block]);
            strip.fill(2 * pair + 2, block, &lower[block]);
            if pair == 0 {
                strip.fill(0, block, &before[block]);
            }
        }
        for set in 0..SETS {
            store_floats(total[set], &mut lanes[set]);
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
        each_block(words, pair, input.blocks, |block, bytes| {
            let mut weights = [[_mm512_setzero_si512(); SETS]; GROUPS];
            for (group, weights) in weights.iter_mut().enumerate() {
                *weights = lookup.values(bytes.group(group));
            }
            let (tiles, rest) = lanes.as_chunks_mut::<TOKENS>();
            let left = tiles.len() * TOKENS;
            for (i, lanes) in tiles.iter_mut().enumerate() {
                add_tokens(&weights, input, block, i * TOKENS, lanes);
            }
            for (token, lanes) in (left..).zip(rest) {
                add_tokens(&weights, input, block, token, core::array::from_mut(lanes));
            }
        });
        // Of each row of words first a token's rows, then the next one's.
        let mut of_rows = sums.chunks_mut((count * 4 * SETS).max(1));
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
    let mut each = [(&[0; BLOCK], 0.0, 0); T];
    for (i, each) in each.iter_mut().enumerate() {
        let of = (input.quantised(token + i).get(block), input.scales(token + i).get(block));
        if let ((Some(q), Some(scale)), Some(sums)) = (of, input.sums(token + i).get(block)) {
            *each = (q, *scale, start_of(sums));
        }
    }
    let mut sums = [[_mm512_setzero_si512(); SETS]; T];
    for i in 0..T {
        sums[i] = [_mm512_set1_epi64(each[i].2); SETS];
    }
    for (group, weights) in weights.iter().enumerate() {
        for i in 0..T {
            let q = eight(&each[i].0.as_chunks().0[group]);
            for set in 0..SETS {
                sums[i][set] = _mm512_dpbusd_epi32(sums[i][set], weights[set], q);
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

/// Hands the bytes of each block of pair `pair` of the rows of words to `kernel`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,gfni")]
fn each_block(
    words: &Words<'_>,
    pair: usize,
    blocks: usize,
    mut kernel: impl FnMut(usize, Pair<'_, { 2 * AHEAD }, 4>),
) {
    let (mut strip, mut spare) = (Strip::<{ 2 * AHEAD }, 4>::new(), [[0; 4]; BLOCK]);
    for coming in 0..blocks + AHEAD {
        if coming < blocks {
            for row in 0..3 {
                strip.fill(row, coming % (2 * AHEAD), piece(words, 2 * pair + row, coming, &mut spare));
            }
        }
        let Some(block) = coming.checked_sub(AHEAD) else { continue };
        let Some(bytes) = strip.pair(block % (2 * AHEAD), 0) else { return };
        kernel(block, bytes);
    }
}

/// Quantised activations of eight columns, as bytes of weights lie.
#[inline]
#[target_feature(enable = "avx512f")]
fn eight(q: &[i8; COLUMNS]) -> __m512i {
    _mm512_set1_epi64(i64::from_le_bytes(q.map(i8::cast_unsigned)))
}

/// What takes 128 off the values of a block, which are stored plus 128, by its sums of activations: for two lanes,
/// as each row is in two.
fn start_of(sums: &[i32; GRANULES]) -> i64 {
    i64::from((-128 * sums.iter().sum::<i32>()).cast_unsigned())
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
        each_block(words, pair, blocks, |block, bytes| {
            for set in 0..SETS {
                // Of each row the eight groups next to each other.
                let mut groups = [_mm512_setzero_si512(); GROUPS];
                for (group, groups) in groups.iter_mut().enumerate() {
                    *groups = lookup.row(bytes.group(group), set);
                }
                let rows = transpose(groups);
                for (byte, weights) in rows.into_iter().enumerate() {
                    if let Some(out) = panel.get_mut((byte * SETS + set) * blocks + block) {
                        store_bytes(weights, out);
                    }
                }
            }
        });
    }
}

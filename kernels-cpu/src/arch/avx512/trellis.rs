//! Paths of trellis planes: windows by shifts of quadwords, values by lookups in registers.
//!
//! Eight columns are worked on at a time. One permutation of bytes gives each byte of a word with the
//! byte before it, four columns in a quadword; `vpmultishiftqb` takes the 8 newest bits of the windows of
//! two rows out of each quadword, in the order in which `vpdpbusd` wants them: four columns of a row
//! in a lane. The older bits of windows of more than 8 bits are taken out of the same bytes or of those
//! one earlier.

use core::arch::x86_64::*;

use super::memory::*;
use super::*;
use crate::operands::{INDEX_BITS, Kind};

/// Columns that are worked on at a time.
const COLUMNS: usize = 8;
/// Such groups of a block.
const GROUPS: usize = BLOCK / COLUMNS;

/// Windows of 6 bits, of 7, and of 8 and 10, with odd tables and others. Hashed ones are last, by how
/// many sets have older bits in earlier bytes.
const SIX: u8 = 0;
const SEVEN: u8 = 1;
const EIGHT: u8 = 2;
const EIGHT_ODD: u8 = 3;
const TEN: u8 = 4;
const TEN_ODD: u8 = 5;
const HASHED: u8 = 6;
const HASHED_1: u8 = 7;
const HASHED_2: u8 = 8;
const HASHED_3: u8 = 9;

/// Looks windows up in a table in registers. `SETS` vectors of 64 weights are 8 columns of a word.
struct Lookup<const KIND: u8, const SETS: usize> {
    /// See [`crate::operands::Table::vectors`].
    table: [__m512i; 16],
    /// Takes the bytes of words of 8 columns, those before first, to bytes with the one before it; and
    /// the same a byte earlier.
    near: __m512i,
    far: __m512i,
    /// From four columns to the newest bits of windows of two rows.
    shifts: [__m512i; SETS],
    /// The linear map of the older bits of a window.
    map: __m512i,
    /// From four columns to the older bits.
    older: [__m512i; SETS],
}

impl<const KIND: u8, const SETS: usize> Lookup<KIND, SETS> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(words: &Words<'_>) -> Self {
        let mut table = [_mm512_setzero_si512(); 16];
        for (entries, bytes) in table.iter_mut().zip(words.table.vectors) {
            *entries = load_bytes(bytes);
        }
        // Byte 3 is the last of the word before.
        let bytes = |back: usize| {
            let places: [u8; 64] = core::array::from_fn(|i| {
                let (byte, column) = (i / 16 + i % 2 + 4 - back, i % 16 / 8 * 4 + i % 8 / 2);
                (byte / 4 * 32 + column * 4 + byte % 4) as u8
            });
            load_bytes(&places)
        };
        let shifts = |back: usize, far: usize| {
            core::array::from_fn(|set| {
                let own = if set < far { 16 } else { 8 };
                let shifts: [u8; 64] = core::array::from_fn(|i| {
                    let end = own + words.step_bits * (2 * set + i % 8 / 4 + 1);
                    (16 * (i % 4) + end).saturating_sub(back) as u8 & 63
                });
                load_bytes(&shifts)
            })
        };
        let (newest, older, map) = match words.table.kind {
            Kind::Hashed(map) => {
                let far = usize::from(KIND).saturating_sub(usize::from(HASHED));
                (shifts(INDEX_BITS, 0), shifts(words.table.window, far), i64::from_le_bytes(map))
            }
            // The 8 bits before the 8 newest ones.
            _ => (shifts(words.table.window.min(8), 0), shifts(16, SETS), 0),
        };
        Self { table, near: bytes(1), far: bytes(2), shifts: newest, map: _mm512_set1_epi64(map), older }
    }

    /// The values of eight columns: in each 128 bits the rows of a byte of a word, which set by set are
    /// two rows of four columns, then of the other four.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    fn values(&self, before: &[[u8; 4]; COLUMNS], now: &[[u8; 4]; COLUMNS]) -> [__m512i; SETS] {
        let words = load_halves(before.as_flattened(), now.as_flattened());
        let near = _mm512_permutexvar_epi8(self.near, words);
        let far = match KIND {
            0..TEN | HASHED => near,
            _ => _mm512_permutexvar_epi8(self.far, words),
        };
        core::array::from_fn(|set| {
            let newest = _mm512_multishift_epi64_epi8(self.shifts[set], near);
            match KIND {
                // What is above a window of 6 or 7 bits is not looked at.
                SIX => _mm512_permutexvar_epi8(newest, self.table[0]),
                SEVEN => self.pair(0, newest),
                EIGHT => {
                    let upper = _mm512_movepi8_mask(newest);
                    _mm512_mask_blend_epi8(upper, self.pair(0, newest), self.pair(1, newest))
                }
                EIGHT_ODD => {
                    let upper = _mm512_movepi8_mask(newest);
                    negate(upper, self.pair(0, flip(upper, newest)))
                }
                HASHED.. => {
                    let source = if set < usize::from(KIND - HASHED) { far } else { near };
                    let older = _mm512_multishift_epi64_epi8(self.older[set], source);
                    let older = _mm512_gf2p8affine_epi64_epi8::<0>(older, self.map);
                    _mm512_permutexvar_epi8(_mm512_xor_si512(newest, older), self.table[0])
                }
                _ => {
                    let older = _mm512_multishift_epi64_epi8(self.older[set], far);
                    let (upper, second) = (_mm512_movepi8_mask(newest), _mm512_movepi8_mask(older));
                    let first = _mm512_movepi8_mask(_mm512_add_epi8(older, older));
                    let four = |at: usize, by: usize, newest: __m512i, first: u64, second: u64| {
                        let pair = |i: usize| self.pair(at + by * i, newest);
                        let low = _mm512_mask_blend_epi8(first, pair(0), pair(1));
                        let high = _mm512_mask_blend_epi8(first, pair(2), pair(3));
                        _mm512_mask_blend_epi8(second, low, high)
                    };
                    if KIND == TEN_ODD {
                        let values = four(0, 1, flip(upper, newest), first ^ upper, second ^ upper);
                        negate(upper, values)
                    } else {
                        let (low, high) =
                            (four(0, 2, newest, first, second), four(1, 2, newest, first, second));
                        _mm512_mask_blend_epi8(upper, low, high)
                    }
                }
            }
        })
    }

    /// Entries of 128 by the lower 7 bits of each byte.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn pair(&self, pair: usize, index: __m512i) -> __m512i {
        _mm512_permutex2var_epi8(self.table[2 * pair], index, self.table[2 * pair + 1])
    }

    /// The values of block `block`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    fn block(&self, before: &[[u8; 4]], now: &[[u8; 4]], block: usize) -> [[__m512i; SETS]; GROUPS] {
        let columns = block * BLOCK..(block + 1) * BLOCK;
        if let (Some(before), Some(now)) = (before.get(columns.clone()), now.get(columns.clone())) {
            return self.groups(before.as_chunks().0, now.as_chunks().0);
        }
        let [before, now] = [before, now].map(|words| part_of(words, block));
        self.groups(before.as_chunks().0, now.as_chunks().0)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    fn groups(&self, before: &[[[u8; 4]; COLUMNS]], now: &[[[u8; 4]; COLUMNS]]) -> [[__m512i; SETS]; GROUPS] {
        let mut out = [[_mm512_setzero_si512(); SETS]; GROUPS];
        for (out, (before, now)) in out.iter_mut().zip(before.iter().zip(now)) {
            *out = self.values(before, now);
        }
        out
    }
}

/// The words of block `block`, which has fewer than it could, and zeros.
fn part_of(words: &[[u8; 4]], block: usize) -> [[u8; 4]; BLOCK] {
    core::array::from_fn(|i| words.get(block * BLOCK + i).copied().unwrap_or_default())
}

/// All bits of the bytes in `mask` flipped.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn flip(mask: u64, bytes: __m512i) -> __m512i {
    _mm512_mask_sub_epi8(bytes, mask, _mm512_set1_epi8(-1), bytes)
}

/// The bytes in `mask` negated.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn negate(mask: u64, bytes: __m512i) -> __m512i {
    _mm512_mask_sub_epi8(bytes, mask, _mm512_setzero_si512(), bytes)
}

/// Calls a kernel with the kind of table and the sets of a word as constants.
macro_rules! by_words {
    ($words:expr, $kernel:ident($($argument:expr),*)) => {{
        let (window, kind) = ($words.table.window, $words.table.kind);
        match ($words.step_bits, kind, window) {
            (1, Kind::Hashed(_), ..10) => $kernel::<HASHED, 4>($($argument),*),
            (1, Kind::Hashed(_), 10 | 11) => $kernel::<HASHED_1, 4>($($argument),*),
            (1, Kind::Hashed(_), 12 | 13) => $kernel::<HASHED_2, 4>($($argument),*),
            (1, Kind::Hashed(_), _) => $kernel::<HASHED_3, 4>($($argument),*),
            (_, Kind::Hashed(_), ..11) => $kernel::<HASHED, 2>($($argument),*),
            (_, Kind::Hashed(_), _) => $kernel::<HASHED_1, 2>($($argument),*),
            (1, _, 6) => $kernel::<SIX, 4>($($argument),*),
            (_, _, 6) => $kernel::<SIX, 2>($($argument),*),
            (1, _, 7) => $kernel::<SEVEN, 4>($($argument),*),
            (_, _, 7) => $kernel::<SEVEN, 2>($($argument),*),
            (1, Kind::Odd, 8) => $kernel::<EIGHT_ODD, 4>($($argument),*),
            (_, Kind::Odd, 8) => $kernel::<EIGHT_ODD, 2>($($argument),*),
            (1, _, 8) => $kernel::<EIGHT, 4>($($argument),*),
            (_, _, 8) => $kernel::<EIGHT, 2>($($argument),*),
            (1, Kind::Odd, _) => $kernel::<TEN_ODD, 4>($($argument),*),
            (_, Kind::Odd, _) => $kernel::<TEN_ODD, 2>($($argument),*),
            (1, _, _) => $kernel::<TEN, 4>($($argument),*),
            (_, _, _) => $kernel::<TEN, 2>($($argument),*),
        }
    }};
}

/// Of each block of quantised activations the lanes that its eight groups of columns are multiplied
/// with: twice the first four columns, twice the others.
type Doubled = [[u8; 16]; GROUPS];

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
pub(in crate::arch) fn trellis_fast(
    words: &Words<'_>,
    input: &Input<'_>,
    panel: &mut [[u8; BLOCK]],
    lanes: &mut [[f32; 16]],
    sums: &mut [f32],
) {
    let first = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    let (doubled, _) = panel.as_chunks_mut::<2>();
    for (token, doubled) in doubled.chunks_exact_mut(input.blocks.max(1)).take(input.tokens).enumerate() {
        for (q, [low, high]) in input.quantised(token).iter().zip(doubled) {
            let q = load_codes(q);
            store_bytes(_mm512_permutexvar_epi32(first, q), low);
            store_bytes(_mm512_permutexvar_epi32(second, q), high);
        }
    }
    let doubled = doubled.as_flattened().as_flattened().as_chunks::<16>().0.as_chunks::<GROUPS>().0;
    by_words!(words, trellis_fast_sets(words, input, doubled, lanes, sums));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn trellis_fast_sets<const KIND: u8, const SETS: usize>(
    words: &Words<'_>,
    input: &Input<'_>,
    doubled: &[Doubled],
    lanes: &mut [[f32; 16]],
    sums: &mut [f32],
) {
    let lookup = Lookup::<KIND, SETS>::new(words);
    let lanes = lanes.as_chunks_mut::<SETS>().0;
    let (tokens, blocks) = (input.tokens, input.blocks);
    let Some(lanes) = lanes.get_mut(..tokens) else { return };
    for ((before, now), sums) in words.pairs().zip(sums.chunks_exact_mut(tokens.max(1) * 8 * SETS)) {
        if tokens == 1 {
            let mut total = [_mm512_setzero_ps(); SETS];
            let (scales, all) = (input.scales(0), input.sums(0));
            let each = doubled.iter().zip(scales).zip(all);
            let (whole, rest) = (before.as_chunks::<BLOCK>().0, now.as_chunks::<BLOCK>().0);
            for ((before, now), ((doubled, scale), all)) in whole.iter().zip(rest).zip(each.clone()) {
                multiply_block(&lookup, before, now, doubled, *scale, all, &mut total);
            }
            let done = whole.len();
            if let (Some(((doubled, scale), all)), true) = (each.clone().nth(done), now.len() > done * BLOCK)
            {
                let [before, now] = [before, now].map(|words| part_of(words, done));
                multiply_block(&lookup, &before, &now, doubled, *scale, all, &mut total);
            }
            for (lanes, total) in lanes.iter_mut().flatten().zip(total) {
                store_floats(total, lanes);
            }
        } else {
            lanes.as_flattened_mut().fill([0.0; 16]);
            for block in 0..blocks {
                let weights = lookup.block(before, now, block);
                for (token, lanes) in lanes.iter_mut().enumerate() {
                    let (Some(doubled), Some(scale), Some(all)) = (
                        doubled.get(token * blocks + block),
                        input.scales(token).get(block),
                        input.sums(token).get(block),
                    ) else {
                        continue;
                    };
                    let mut total: [__m512; SETS] = core::array::from_fn(|set| load_floats(&lanes[set]));
                    add_block(&weights, doubled, *scale, all, &mut total);
                    for set in 0..SETS {
                        store_floats(total[set], &mut lanes[set]);
                    }
                }
            }
        }
        for (lanes, sums) in lanes.iter().zip(sums.chunks_exact_mut(8 * SETS)) {
            // In each four lanes the two rows of a set by four columns, then by the other four.
            for (byte, sums) in sums.chunks_exact_mut(2 * SETS).enumerate() {
                for (set, sums) in sums.chunks_exact_mut(2).enumerate() {
                    let four = &lanes[set][4 * byte..4 * byte + 4];
                    sums[0] = four[0] + four[2];
                    sums[1] = four[1] + four[3];
                }
            }
        }
    }
}

/// Adds the sums of a block by a token, for which alone it is looked up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn multiply_block<const KIND: u8, const SETS: usize>(
    lookup: &Lookup<KIND, SETS>,
    before: &[[u8; 4]; BLOCK],
    now: &[[u8; 4]; BLOCK],
    doubled: &Doubled,
    scale: f32,
    all: &[i32; GRANULES],
    total: &mut [__m512; SETS],
) {
    let mut sums = [start(all); SETS];
    let words = before.as_chunks().0.iter().zip(now.as_chunks().0);
    for ((before, now), q) in words.zip(doubled) {
        let q = _mm512_broadcast_i32x4(load_16(q));
        let weights = lookup.values(before, now);
        for set in 0..SETS {
            sums[set] = _mm512_dpbusd_epi32(sums[set], weights[set], q);
        }
    }
    for set in 0..SETS {
        total[set] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[set]), _mm512_set1_ps(scale), total[set]);
    }
}

/// What takes 128 off values, which are stored plus 128; each row is in two lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn start(all: &[i32; GRANULES]) -> __m512i {
    _mm512_maskz_set1_epi32(0x3333, -128 * all.iter().sum::<i32>())
}

/// Adds the sums of a block by a token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn add_block<const SETS: usize>(
    weights: &[[__m512i; SETS]; GROUPS],
    doubled: &Doubled,
    scale: f32,
    all: &[i32; GRANULES],
    total: &mut [__m512; SETS],
) {
    let mut sums = [start(all); SETS];
    for (weights, q) in weights.iter().zip(doubled) {
        let q = _mm512_broadcast_i32x4(load_16(q));
        for set in 0..SETS {
            sums[set] = _mm512_dpbusd_epi32(sums[set], weights[set], q);
        }
    }
    for set in 0..SETS {
        total[set] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[set]), _mm512_set1_ps(scale), total[set]);
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
    let panels = out.chunks_exact_mut((blocks * 8 * SETS).max(1));
    for ((before, now), panel) in words.pairs().zip(panels) {
        for block in 0..blocks {
            let weights = lookup.block(before, now, block);
            for set in 0..SETS {
                // Of each row the eight columns next to each other.
                let eight = weights.map(|weights| _mm512_shuffle_epi32::<0b11_01_10_00>(weights[set]));
                for (i, weights) in transpose(eight).into_iter().enumerate() {
                    let row = i / 2 * 2 * SETS + 2 * set + i % 2;
                    if let Some(out) = panel.get_mut(row * blocks + block) {
                        store_bytes(weights, out);
                    }
                }
            }
        }
    }
}

//! Paths of trellis planes: windows by shifts of quadwords, values by lookups in registers.

use core::arch::x86_64::*;

use super::memory::*;
use super::*;

/// Looks windows of 6, 7, 8 or 10 bits up in a table in registers.
struct Lookup<const WINDOW: usize, const FOLDED: bool> {
    /// 64 entries each: 1, 2, 4 or 16 of them.
    table: [__m512i; 16],
    /// From the bits of a column before and at a word, eight rows of a set.
    shifts: [__m512i; MAX_SETS],
    /// The same for the 8 newest bits of windows of 10.
    newest: [__m512i; MAX_SETS],
    /// From [column][row] to [row][column].
    turned: __m512i,
    /// Words before and words of 8 columns, column by column.
    halves: [__m512i; 2],
}

impl<const WINDOW: usize, const FOLDED: bool> Lookup<WINDOW, FOLDED> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(words: &Words<'_>) -> Self {
        let mut table = [_mm512_setzero_si512(); 16];
        for (entries, bytes) in table.iter_mut().zip(words.table.values.chunks(64)) {
            *entries = load_part(bytes, 64);
        }
        let ends = |set: usize, back: usize| {
            let shifts: [u8; 64] = core::array::from_fn(|i| {
                (32 + words.step_bits * (8 * set + i % 8 + 1)).saturating_sub(back) as u8 & 63
            });
            load_bytes(&shifts)
        };
        let turned: [u8; 64] = core::array::from_fn(|i| (i % 8 * 8 + i / 8) as u8);
        let half = |half: usize| {
            let lanes: [u32; 16] = core::array::from_fn(|i| (8 * half + i / 2 + i % 2 * 16) as u32);
            let bytes: [[u8; 4]; 16] = lanes.map(u32::to_le_bytes);
            load_words(&bytes)
        };
        let mut shifts = [_mm512_setzero_si512(); MAX_SETS];
        let mut newest = shifts;
        for set in 0..MAX_SETS {
            shifts[set] = ends(set, WINDOW);
            newest[set] = ends(set, 8);
        }
        Self { table, shifts, newest, turned: load_bytes(&turned), halves: [half(0), half(1)] }
    }

    /// The values of eight columns, whose bits are `columns`, in the eight rows of a set: row by row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn values(&self, columns: __m512i, set: usize) -> __m512i {
        let t = &self.table;
        let windows = _mm512_multishift_epi64_epi8(self.shifts[set], columns);
        let pair = |i: usize, windows: __m512i| {
            let low = _mm512_permutex2var_epi8(t[4 * i], windows, t[4 * i + 1]);
            let high = _mm512_permutex2var_epi8(t[4 * i + 2], windows, t[4 * i + 3]);
            _mm512_mask_blend_epi8(_mm512_movepi8_mask(windows), low, high)
        };
        // What is above a window of 6 or 7 bits is not looked at.
        let values = match WINDOW {
            6 => _mm512_permutexvar_epi8(windows, t[0]),
            7 => _mm512_permutex2var_epi8(t[0], windows, t[1]),
            8 => pair(0, windows),
            _ => {
                let newest = _mm512_multishift_epi64_epi8(self.newest[set], columns);
                let tenth = _mm512_movepi8_mask(newest);
                let ninth = _mm512_movepi8_mask(_mm512_add_epi8(newest, newest));
                if FOLDED {
                    // Windows of the upper half are flipped, and their values negated.
                    let flipped = _mm512_mask_sub_epi8(windows, tenth, _mm512_set1_epi8(-1), windows);
                    let (low, high) = (pair(0, flipped), pair(1, flipped));
                    let values = _mm512_mask_blend_epi8(ninth ^ tenth, low, high);
                    _mm512_mask_sub_epi8(values, tenth, _mm512_setzero_si512(), values)
                } else {
                    let low = _mm512_mask_blend_epi8(ninth, pair(0, windows), pair(1, windows));
                    let high = _mm512_mask_blend_epi8(ninth, pair(2, windows), pair(3, windows));
                    _mm512_mask_blend_epi8(tenth, low, high)
                }
            }
        };
        _mm512_permutexvar_epi8(self.turned, values)
    }

    /// The values of block `block`: eight columns by eight columns, set by set.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn block<const SETS: usize>(
        &self,
        before: &[[u8; 4]],
        now: &[[u8; 4]],
        block: usize,
    ) -> [[__m512i; SETS]; 8] {
        let mut out = [[_mm512_setzero_si512(); SETS]; 8];
        for i in 0..4 {
            let start = block * BLOCK + 16 * i;
            let before = load_words(before.get(start..).unwrap_or(&[]));
            let now = load_words(now.get(start..).unwrap_or(&[]));
            for half in 0..2 {
                let columns = _mm512_permutex2var_epi32(before, self.halves[half], now);
                for (set, out) in out[2 * i + half].iter_mut().enumerate() {
                    *out = self.values(columns, set);
                }
            }
        }
        out
    }
}

/// Calls a kernel with the width of windows and the sets of a word as constants.
macro_rules! by_words {
    ($words:expr, $kernel:ident($($argument:expr),*)) => {
        match ($words.table.window, $words.table.is_folded, $words.step_bits) {
            (6, _, 1) => $kernel::<6, false, 4>($($argument),*),
            (6, _, _) => $kernel::<6, false, 2>($($argument),*),
            (7, _, 1) => $kernel::<7, false, 4>($($argument),*),
            (7, _, _) => $kernel::<7, false, 2>($($argument),*),
            (8, _, 1) => $kernel::<8, false, 4>($($argument),*),
            (8, _, _) => $kernel::<8, false, 2>($($argument),*),
            (_, true, 1) => $kernel::<10, true, 4>($($argument),*),
            (_, true, _) => $kernel::<10, true, 2>($($argument),*),
            (_, false, 1) => $kernel::<10, false, 4>($($argument),*),
            (_, false, _) => $kernel::<10, false, 2>($($argument),*),
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(in crate::arch) fn trellis_fast(
    words: &Words<'_>,
    input: &Input<'_>,
    _panel: &mut [[u8; BLOCK]],
    lanes: &mut [[f32; 16]],
) {
    by_words!(words, trellis_fast_sets(words, input, lanes));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn trellis_fast_sets<const WINDOW: usize, const FOLDED: bool, const SETS: usize>(
    words: &Words<'_>,
    input: &Input<'_>,
    lanes: &mut [[f32; 16]],
) {
    let lookup = Lookup::<WINDOW, FOLDED>::new(words);
    let of_words = lanes.as_chunks_mut::<SETS>().0.chunks_exact_mut(input.tokens.max(1));
    for ((before, now), lanes) in words.pairs().zip(of_words) {
        for block in 0..input.blocks {
            let weights = lookup.block::<SETS>(before, now, block);
            add_block(&weights, input, block, lanes);
        }
    }
}

/// Multiplies a block with each token and adds the sums to the token's lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn add_block<const SETS: usize>(
    weights: &[[__m512i; SETS]; 8],
    input: &Input<'_>,
    block: usize,
    lanes: &mut [[[f32; 16]; SETS]],
) {
    for (token, lanes) in lanes.iter_mut().enumerate() {
        let (Some(q), Some(scale), Some(all)) =
            (input.quantised(token).get(block), input.scales(token).get(block), input.sums(token).get(block))
        else {
            return;
        };
        // Values are stored plus 128; each row is in two lanes.
        let start = _mm512_maskz_set1_epi32(0x5555, -128 * all.iter().sum::<i32>());
        let mut sums = [start; SETS];
        for (weights, q) in weights.iter().zip(q.as_chunks::<8>().0) {
            let q = _mm512_set1_epi64(i64::from_le_bytes(q.map(|q| q as u8)));
            for set in 0..SETS {
                sums[set] = _mm512_dpbusd_epi32(sums[set], weights[set], q);
            }
        }
        for set in 0..SETS {
            let so_far = load_floats(&lanes[set]);
            let sums = _mm512_cvtepi32_ps(sums[set]);
            store_floats(_mm512_fmadd_ps(sums, _mm512_set1_ps(*scale), so_far), &mut lanes[set]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(in crate::arch) fn trellis(words: &Words<'_>, blocks: usize, out: &mut [[u8; BLOCK]]) {
    by_words!(words, trellis_sets(words, blocks, out));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn trellis_sets<const WINDOW: usize, const FOLDED: bool, const SETS: usize>(
    words: &Words<'_>,
    blocks: usize,
    out: &mut [[u8; BLOCK]],
) {
    let lookup = Lookup::<WINDOW, FOLDED>::new(words);
    let panels = out.chunks_exact_mut((blocks * 8 * SETS).max(1));
    for ((before, now), panel) in words.pairs().zip(panels) {
        for block in 0..blocks {
            let weights = lookup.block::<SETS>(before, now, block);
            for set in 0..SETS {
                let eight: [__m512i; 8] = core::array::from_fn(|i| weights[i][set]);
                for (row, weights) in transpose(eight).into_iter().enumerate() {
                    if let Some(out) = panel.get_mut((8 * set + row) * blocks + block) {
                        store_bytes(weights, out);
                    }
                }
            }
        }
    }
}

//! Few tokens by rows of codes whose scales lie as [`super::scales`] reads them: 16 groups of 32 columns at a
//! time, row after row, so that what comes from memory comes in order.
//!
//! A product of codes and activations is a sum of integers for each four or eight columns, times the scale of
//! their group, times that of their activations. What zero points add is the sum of a group's activations,
//! times a value of the group.
//!
//! What is read in order the processor asks for by itself, up to the end of a page or somewhat further; it goes on at
//! once where a line of each KiB has been asked for two pages before. It does so no more where other reads miss the
//! first cache: what is read for each row lies in one stream, and there is little of it. Nor is it early enough where
//! arithmetic takes long: all lines are then asked for, as a row of which a few are not waits for those.
//!
//! Sums are folded into one vector, which has those of 16 groups, before they meet scales: fewer instructions and
//! loads than for each piece. Scales come in the order into which that puts the groups.

use core::arch::x86_64::*;

use super::memory::*;
use super::scales::{Decoder, Halves};
use super::*;
use crate::operands::{PREPARED, Twice};

/// Blocks of 16 groups.
pub(super) const BLOCKS: usize = 8;

/// Rows whose lanes are added at a time.
const ROWS: usize = 4;

/// Bytes that are asked for before they are needed.
const AHEAD: usize = 8192;

/// Bits of codes whose products [`narrow`] adds.
const MOST_NARROW_BITS: usize = 5;

/// Of 16 groups of a row, their scales, and perhaps what is added to each column.
pub(super) type Values = (__m512, Option<__m512>);

/// What is prepared of a token for 16 groups: 8 blocks of activations, the scale of each group's activations, and what
/// is taken off sums of products, the integers in the place of floats. All rows read it, in one stream.
type Prepared = [[f32; 16]; PREPARED];

/// Rows whose scales are f16. Gives whether that was done. `prepared` has the vectors of
/// [`crate::operands::room`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,bmi2,fma,f16c,gfni")]
pub(in crate::arch) fn fast_stored(
    codes: &Codes<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    let (Some(height), Some(stored)) = (height(codes, input, out), codes.stored) else { return false };
    let order = order(codes, input);
    let Some(scales) = Halves::new(stored, height, codes.blocks, &order) else { return false };
    let is_whole = scales.is_whole();
    by_width::<false>(codes, input, height, is_whole, prepared, out, |row, i, is_last| {
        // SAFETY: `by_width` asks for rows below `height` and for all of their blocks, and says which are the last
        // unless all are whole.
        (unsafe { scales.sixteen(row, i, is_last) }, None)
    })
}

/// Rows whose scales and zero points are codes, as [`fast_stored`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,bmi2,fma,f16c,gfni")]
pub(in crate::arch) fn fast_twice(
    rows: &Twice<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    let codes = &rows.codes;
    let Some(height) = height(codes, input, out) else { return false };
    let order = order(codes, input);
    let Some(scales) = Decoder::new(&rows.scale, height, codes.blocks, &order) else { return false };
    let is_whole = scales.is_whole();
    let Some(zero) = &rows.zero else {
        return by_width::<true>(codes, input, height, is_whole, prepared, out, |row, i, is_last| {
            // SAFETY: as in `fast_stored`.
            (unsafe { scales.sixteen(row, i, is_last) }, None)
        });
    };
    let Some(zeros) = Decoder::new(zero, height, codes.blocks, &order) else { return false };
    let is_whole = is_whole && zeros.is_whole();
    by_width::<true>(codes, input, height, is_whole, prepared, out, |row, i, is_last| {
        // SAFETY: as in `fast_stored`.
        unsafe { (scales.sixteen(row, i, is_last), Some(zeros.sixteen(row, i, is_last))) }
    })
}

/// Rows that there are codes and room for; `None` for many tokens, or where there are fewer codes than rows.
#[inline]
fn height(codes: &Codes<'_>, input: &Input<'_>, out: &[f32]) -> Option<usize> {
    let height = codes.rows.min(out.len() / input.tokens.max(1));
    (input.tokens < TILE && height.checked_mul(codes.row_bytes)? <= codes.bytes.len()).then_some(height)
}

/// Whether activations are multiplied with codes of two columns in a byte.
#[inline]
fn by_pairs(codes: &Codes<'_>, input: &Input<'_>) -> bool {
    codes.bits == 4 && !input.halves.is_empty()
}

/// Of each lane of values of 16 groups, the group.
#[inline]
fn order(codes: &Codes<'_>, input: &Input<'_>) -> [usize; 16] {
    if by_pairs(codes, input) { const { order_of(4) } } else { const { order_of(8) } }
}

/// All products, by the width of codes. Gives whether codes are what is wanted. `SLOW` says that values take long:
/// the processor then asks for what comes next too late, and all lines are asked for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,bmi2,fma,f16c,gfni")]
fn by_width<const SLOW: bool>(
    codes: &Codes<'_>,
    input: &Input<'_>,
    height: usize,
    is_whole: bool,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
    values: impl Fn(usize, usize, bool) -> Values,
) -> bool {
    let Map::Signed(offset) = codes.map else { return false };
    let less = _mm512_set1_epi8(offset.unsigned_abs() as u8 as i8);
    let order = order(codes, input);
    let products = Products { codes, height, is_whole, order, values };
    if by_pairs(codes, input) {
        // Even columns are in the lower halves of bytes, odd ones in the upper halves.
        let low = _mm512_set1_epi8(15);
        let halve = _mm512_set1_epi64(0x1020_4080_0000_0000);
        let by_two = |sums, lower, upper, [even, odd]: &[[f32; 16]; 2]| {
            let sums = _mm512_dpbusd_epi32(sums, lower, load_words(even));
            _mm512_dpbusd_epi32(sums, upper, load_words(odd))
        };
        let product = |sums, bytes, q: &_| {
            let upper = _mm512_gf2p8affine_epi64_epi8::<0>(bytes, halve);
            by_two(sums, _mm512_and_si512(bytes, low), upper, q)
        };
        let taken = |q: &_| by_two(_mm512_setzero_si512(), less, less, q);
        let blocks = |token| input.pairs(token).0.as_flattened();
        products.all::<2, 4, SLOW, true>(64, input, blocks, taken, product, prepared, out);
        return true;
    }
    let taken = |[q]: &[_; 1]| _mm512_dpbusd_epi32(_mm512_setzero_si512(), less, load_words(q));
    let blocks = |token| input.quantised(token);
    if codes.bits == 8 {
        let product = |sums, bytes, [q]: &[_; 1]| _mm512_dpbusd_epi32(sums, bytes, load_words(q));
        products.all::<1, 8, SLOW, false>(64, input, blocks, taken, product, prepared, out);
        return true;
    }
    let (unpacker, bytes) = (Unpacker::new(codes.bits), 8 * codes.bits);
    let product =
        |sums, bytes, [q]: &[_; 1]| _mm512_dpbusd_epi32(sums, unpacker.spread(bytes), load_words(q));
    match codes.bits <= MOST_NARROW_BITS {
        true => products.all::<1, 8, true, true>(bytes, input, blocks, taken, product, prepared, out),
        false => products.all::<1, 8, true, false>(bytes, input, blocks, taken, product, prepared, out),
    }
    true
}

/// Of each of `P` pieces of 16 groups, where the values of the group of each lane lie in `order`.
#[inline]
#[target_feature(enable = "avx512f")]
fn groups<const P: usize>(order: &[usize; 16]) -> [__m512i; P] {
    let mut groups = [_mm512_setzero_si512(); P];
    for (piece, groups) in groups.iter_mut().enumerate() {
        let place = |lane: usize| order.iter().position(|group| *group == (16 * piece + lane) / P);
        let lanes: [i32; 16] = core::array::from_fn(|lane| place(lane).unwrap_or(0) as i32);
        // SAFETY: the array has the 16 values that are read.
        *groups = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    }
    groups
}

/// The sums of each four lanes of four vectors: in each four lanes those of the first, second, third and fourth.
#[inline]
#[target_feature(enable = "avx512f")]
fn wide([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let pairs = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let [ab, cd] = [pairs(a, b), pairs(c, d)];
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// [`wide`] where each lane and each sum of two fits 16 bits, as those of four products with codes of 5 bits and
/// of eight with codes of 4 bits do: 8 * 31 * 128 and 16 * 15 * 128.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn narrow([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let ones = _mm512_set1_epi16(1);
    let pairs = |a, b| _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones);
    pairs(pairs(a, b), pairs(c, d))
}

/// The sums of `P` pieces, 4 or 8, as those of 16 groups, in [`order_of`], where `four` makes them of four.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn folded<const P: usize>(sums: [__m512i; P], four: impl Fn([__m512i; 4]) -> __m512i) -> __m512i {
    match *sums.as_chunks().0 {
        [first] => four(first),
        [first, second] => {
            let [a, b] = [four(first), four(second)];
            // Sums of two quarters: the even groups and the odd ones of the first, then of the second.
            let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
            _mm512_add_epi32(even, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b))
        }
        _ => _mm512_setzero_si512(),
    }
}

/// The groups of the 16 sums that come of `pieces` pieces, 4 or 8, by [`folded`].
const fn order_of(pieces: usize) -> [usize; 16] {
    let (mut order, mut lane) = ([0; 16], 0);
    while lane < 16 {
        let (quarter, piece) = (lane / 4, lane % 4);
        order[lane] =
            if pieces == 4 { 4 * piece + quarter } else { 2 * (piece + quarter / 2 * 4) + quarter % 2 };
        lane += 1;
    }
    order
}

/// How rows are multiplied with.
struct Products<'k, V> {
    codes: &'k Codes<'k>,
    /// Rows, all of whose codes are there.
    height: usize,
    /// Whether the last 16 groups of a row have as many values as all others.
    is_whole: bool,
    /// Of each lane of values, the group.
    order: [usize; 16],
    /// Of 16 groups of a row, by row and number, and by whether they are the last.
    values: V,
}

impl<V: Fn(usize, usize, bool) -> Values> Products<'_, V> {
    /// Adds all products. Activations come in pieces of `N` blocks, `P` for 16 groups, of which a row has
    /// `bytes` bytes each. `product` adds products of codes and activations of a piece to sums, from which `taken` is
    /// to be taken, as codes have an offset; whether codes are `NARROW` says how sums are folded.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,bmi2,fma,f16c,gfni")]
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    fn all<'q, const N: usize, const P: usize, const SLOW: bool, const NARROW: bool>(
        &self,
        bytes: usize,
        input: &Input<'_>,
        blocks: impl Fn(usize) -> &'q [[i8; BLOCK]],
        taken: impl Fn(&[[f32; 16]; N]) -> __m512i,
        product: impl Fn(__m512i, __m512i, &[[f32; 16]; N]) -> __m512i,
        prepared: &mut [[f32; 16]],
        out: &mut [f32],
    ) {
        let groups = groups::<P>(&self.order);
        let fold =
            |sums| if NARROW { folded(sums, |sums| narrow(sums)) } else { folded(sums, |sums| wide(sums)) };
        let row_bytes = self.codes.row_bytes;
        let sixteens = self.codes.blocks.div_ceil(BLOCKS);
        // The last are as the others if all of them are there.
        let is_whole = self.is_whole && row_bytes == sixteens * P * bytes;
        let count = sixteens.saturating_sub(usize::from(!is_whole));
        let Some(rest_bytes) = row_bytes.checked_sub(count * P * bytes) else { return };
        let rest_pieces = rest_bytes.div_ceil(bytes);
        let asks_for_all = SLOW && sixteens > 1;
        // Not many at once.
        let asks_by_row = !asks_for_all && row_bytes <= 4096;
        let used = u64::MAX >> (64 - bytes);
        let (sums_of, prepared) = prepared.split_at_mut(sixteens.min(prepared.len()));
        let prepared = prepared.as_chunks_mut().0;
        let Some(copies @ 1..) = prepared.len().checked_div(sixteens) else { return };
        for token in 0..input.tokens {
            let (first, others) = prepared.split_at_mut(sixteens.min(prepared.len()));
            self.prepare::<N, P>(input, token, blocks(token), &taken, first, sums_of);
            others.chunks_exact_mut(sixteens.max(1)).for_each(|other| other.copy_from_slice(first));
            let off = first.get(count).map_or([_mm512_setzero_si512(); P], |last| taken_off(last, &taken));
            let (sums_of, last_sums) = (sums_of.get(..count).unwrap_or(&[]), sums_of.get(count));
            let of_row = |row: usize, mut own: *const u8| {
                // One of the copies, each in its turn where they are a power of two.
                let start = (row & (copies - 1)) * sixteens;
                // SAFETY: there are `copies` of `sixteens` each, of which `count` are no more.
                let (whole, last) = unsafe {
                    let copy = prepared.get_unchecked(start..start + sixteens);
                    (copy.get_unchecked(..count), copy.get(count))
                };
                if asks_by_row {
                    ask_ahead::<AHEAD, 1024>(own, row_bytes);
                }
                let mut lanes = _mm512_setzero_ps();
                for (i, (prepared, sums_of)) in whole.iter().zip(sums_of).enumerate() {
                    if asks_for_all {
                        ask_ahead::<AHEAD, 64>(own, P * bytes);
                    } else if !asks_by_row {
                        ask_ahead::<AHEAD, 1024>(own, P * bytes);
                    }
                    let (of_groups, zeros) = (self.values)(row, i, false);
                    let [q @ .., scales, taken] = prepared;
                    if let Some(zeros) = zeros {
                        lanes = _mm512_fmadd_ps(zeros, load_floats(sums_of), lanes);
                    }
                    let mut sums = [_mm512_setzero_si512(); P];
                    for (p, (sums, piece)) in sums.iter_mut().zip(q.as_chunks().0).enumerate() {
                        // SAFETY: the mask has the bytes of piece `p`: the row is one for which all bytes are
                        // there, `own` has gone over `i` times `P` pieces, and it has `count` times `P`.
                        let codes =
                            unsafe { _mm512_maskz_loadu_epi8(used, own.wrapping_add(p * bytes).cast()) };
                        *sums = product(*sums, codes, piece);
                    }
                    let sums = _mm512_add_epi32(fold(sums), load_words(taken));
                    let of_groups = _mm512_mul_ps(of_groups, load_floats(scales));
                    lanes = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), of_groups, lanes);
                    own = own.wrapping_add(P * bytes);
                }
                let (Some([q @ .., scales, _]), Some(sums_of)) = (last, last_sums) else { return lanes };
                if asks_for_all {
                    ask_ahead::<AHEAD, 64>(own, rest_bytes);
                }
                let (of_groups, zeros) = (self.values)(row, count, true);
                if let Some(zeros) = zeros {
                    lanes = _mm512_fmadd_ps(zeros, load_floats(sums_of), lanes);
                }
                let of_groups = _mm512_mul_ps(of_groups, load_floats(scales));
                let mut left = rest_bytes;
                for ((piece, off), groups) in q.as_chunks().0.iter().zip(off).zip(groups).take(rest_pieces) {
                    let used = u64::MAX.checked_shr(64 - left.min(bytes) as u32).unwrap_or(0);
                    // SAFETY: the mask has those of the bytes of the piece that the row has.
                    let codes = unsafe { _mm512_maskz_loadu_epi8(used, own.cast()) };
                    let sums = product(off, codes, piece);
                    let of_lanes = _mm512_permutexvar_ps(groups, of_groups);
                    lanes = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), of_lanes, lanes);
                    own = own.wrapping_add(bytes);
                    left = left.saturating_sub(bytes);
                }
                lanes
            };
            let mut own = self.codes.bytes.as_ptr();
            for first in (0..self.height).step_by(ROWS) {
                // They take turns in registers: what is stored is not there at once.
                let mut of_rows = [_mm512_setzero_ps(); ROWS];
                for row in first..first + ROWS {
                    let mut lanes = _mm512_setzero_ps();
                    if row < self.height {
                        lanes = of_row(row, own);
                        own = own.wrapping_add(row_bytes);
                    }
                    of_rows = [of_rows[1], of_rows[2], of_rows[3], lanes];
                }
                let sums = sums_of_four(of_rows);
                match out.get_mut(first..first + ROWS) {
                    Some(out) if input.tokens == 1 => {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum)
                    }
                    _ => {
                        for (r, sum) in sums.into_iter().enumerate() {
                            if let Some(out) = out.get_mut((first + r) * input.tokens + token) {
                                *out += sum;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Prepares what all rows need of a token.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn prepare<const N: usize, const P: usize>(
        &self,
        input: &Input<'_>,
        token: usize,
        blocks: &[[i8; BLOCK]],
        taken: &impl Fn(&[[f32; 16]; N]) -> __m512i,
        prepared: &mut [Prepared],
        sums_of: &mut [[f32; 16]],
    ) {
        let groups = input.granule_sums(token).chunks(BLOCKS).zip(input.scales(token).chunks(BLOCKS));
        let prepared = prepared.iter_mut().zip(sums_of).zip(blocks.chunks(BLOCKS));
        for (((prepared, sums), blocks), (granules, scales_of)) in prepared.zip(groups) {
            let [q @ .., scales, _] = prepared;
            q.fill([0.0; 16]);
            q.iter_mut()
                .zip(blocks)
                .for_each(|(q, block)| store_floats(_mm512_castsi512_ps(load_codes(block)), q));
            let granules = granules.as_flattened().as_chunks::<2>().0;
            for ((scale, sum), group) in scales.iter_mut().zip(sums).zip(self.order) {
                *scale = scales_of.get(group / 2).copied().unwrap_or(0.0);
                *sum = granules.get(group).map_or(0.0, |[a, b]| a + b);
            }
            let less = folded(taken_off::<N, P>(prepared, taken), |sums| wide(sums));
            let [.., off] = prepared;
            store_floats(_mm512_castsi512_ps(less), off);
        }
    }
}

/// What is to be taken off the sums of each of `P` pieces.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn taken_off<const N: usize, const P: usize>(
    prepared: &Prepared,
    taken: &impl Fn(&[[f32; 16]; N]) -> __m512i,
) -> [__m512i; P] {
    let [q @ .., _, _] = prepared;
    let mut off = [_mm512_setzero_si512(); P];
    for (off, piece) in off.iter_mut().zip(q.as_chunks().0) {
        *off = _mm512_sub_epi32(*off, taken(piece));
    }
    off
}

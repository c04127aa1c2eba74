//! Few tokens by rows of codes whose scales lie as [`super::scales`] reads them: 16 groups of 32 columns of
//! four rows at a time.
//!
//! A product of codes and activations is a sum of integers for each group, times the scale of the group, times
//! that of its activations. Such sums of 16 groups are made in one vector, whatever the order in which the
//! fewest instructions put them; scales come in the same. What zero points add is the sum of a group's
//! activations, times a value of the group.

use core::arch::x86_64::*;

use super::memory::*;
use super::scales::{Decoder, Halves};
use super::*;
use crate::operands::{PREPARED, Twice};

/// Blocks of 16 groups.
pub(super) const BLOCKS: usize = 8;

/// Bits of codes whose products [`narrow`] adds.
const NARROW: usize = 5;

/// Rows that are worked on at a time: they share what is read of the activations, and the loop around.
pub(super) const ROWS: usize = 4;

/// Some rows of a matrix: the first one, and how many follow it, of which at most three count.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    first: usize,
    more: usize,
}

impl Rows {
    /// Where the four rows begin, `stride` apart. The last one stands in for those that are missing.
    #[inline(always)]
    pub(super) fn starts(self, stride: usize) -> [usize; ROWS] {
        let first = self.first * stride;
        match self.more {
            3.. => [first, first + stride, first + 2 * stride, first + 3 * stride],
            more => four!(r => first + stride * more.min(r)),
        }
    }
}

/// Rows whose scales are f16. Gives whether that was done. `prepared` has [`PREPARED`] vectors for each 8
/// blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) fn fast_stored(
    codes: &Codes<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    let (Some(height), Some(stored)) = (height(codes, input, out), codes.stored) else { return false };
    let order = order::<true>(codes, input);
    let Some(scales) = Halves::new(stored, height, codes.blocks, order) else { return false };
    let whole = scales.is_whole();
    // SAFETY: `by_width` asks for rows below `height` and for all of their blocks; this is so for all three.
    match scales.log() {
        0 => by_width::<true>(codes, input, prepared, out, whole, |rows, i, is_last| {
            (unsafe { scales.sixteen::<0>(rows, i, is_last) }, None)
        }),
        1 => by_width::<true>(codes, input, prepared, out, whole, |rows, i, is_last| {
            (unsafe { scales.sixteen::<1>(rows, i, is_last) }, None)
        }),
        _ => by_width::<true>(codes, input, prepared, out, whole, |rows, i, is_last| {
            (unsafe { scales.sixteen::<2>(rows, i, is_last) }, None)
        }),
    }
}

/// Rows whose scales and zero points are codes, as [`fast_stored`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(in crate::arch) fn fast_twice(
    rows: &Twice<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    let codes = &rows.codes;
    let Some(height) = height(codes, input, out) else { return false };
    let Some(scales) = Decoder::new(&rows.scale, height, codes.blocks) else { return false };
    let Some(zero) = &rows.zero else {
        return by_width::<false>(codes, input, prepared, out, false, |rows, i, is_last| {
            // SAFETY: as in `fast_stored`.
            (unsafe { scales.sixteen(rows, i, is_last) }, None)
        });
    };
    let Some(zeros) = Decoder::new(zero, height, codes.blocks) else { return false };
    by_width::<false>(codes, input, prepared, out, false, |rows, i, is_last| {
        // SAFETY: as in `fast_stored`.
        unsafe { (scales.sixteen(rows, i, is_last), Some(zeros.sixteen(rows, i, is_last))) }
    })
}

/// Rows that there are codes and room for; `None` for many tokens, or where there are fewer codes than rows.
#[inline]
fn height(codes: &Codes<'_>, input: &Input<'_>, out: &[f32]) -> Option<usize> {
    let height = codes.rows.min(out.len() / input.tokens.max(1));
    (input.tokens < TILE && height.checked_mul(codes.row_bytes)? <= codes.bytes.len()).then_some(height)
}

/// The order of 16 groups in [`by_width`].
fn order<const FOLD: bool>(codes: &Codes<'_>, input: &Input<'_>) -> [usize; 16] {
    let pieces = if codes.bits == 4 && !input.halves.is_empty() { 4 } else { 8 };
    if FOLD && codes.bits <= NARROW { folded(pieces) } else { core::array::from_fn(|lane| lane) }
}

/// Of 16 groups of four rows, in their [`order()`], their scales, and perhaps what is added to each column.
type Values = ([__m512; ROWS], Option<[__m512; ROWS]>);

/// All products, by the width of codes. Gives whether codes are what is wanted. With `FOLD`, sums of groups are
/// folded where codes are narrow, and values come in [`order()`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn by_width<const FOLD: bool>(
    codes: &Codes<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
    is_whole: bool,
    values: impl Fn(Rows, usize, bool) -> Values,
) -> bool {
    let Map::Signed(offset) = codes.map else { return false };
    let less = _mm512_set1_epi8(offset.unsigned_abs() as u8 as i8);
    let (bits, order) = (codes.bits, order::<FOLD>(codes, input));
    if bits == 4 && !input.halves.is_empty() {
        // Even columns are in the lower halves of bytes, odd ones in the upper halves.
        let low = _mm512_set1_epi8(15);
        let by_two = |sums, lower, upper, [even, odd]: &[[i8; BLOCK]; 2]| {
            let sums = _mm512_dpbusd_epi32(sums, lower, load_codes(even));
            _mm512_dpbusd_epi32(sums, upper, load_codes(odd))
        };
        let add = |sums, bytes, q: &_| {
            let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
            by_two(sums, _mm512_and_si512(bytes, low), upper, q)
        };
        let taken = |q: &_| by_two(_mm512_setzero_si512(), less, less, q);
        let (narrow, wide) = (|sums: [_; 4]| narrow(sums), |sums: [_; 4]| wide(sums));
        let groups = groups::<4>();
        let products =
            Products { codes, bytes: 64, is_whole, order, groups, values, add, taken, narrow, wide };
        products.all::<_, FOLD>(input, |token| input.pairs(token).0, prepared, out);
        return true;
    }
    let taken = |q: &_| _mm512_dpbusd_epi32(_mm512_setzero_si512(), less, load_codes(q));
    let pieces = |token| input.quantised(token);
    let narrow = |[a, b, c, d, e, f, g, h]: [_; 8]| halves(narrow([a, b, c, d]), narrow([e, f, g, h]));
    let wide = |[a, b, c, d, e, f, g, h]: [_; 8]| halves(wide([a, b, c, d]), wide([e, f, g, h]));
    let groups = groups::<8>();
    if bits == 8 {
        let add = |sums, bytes, q: &_| _mm512_dpbusd_epi32(sums, bytes, load_codes(q));
        let products =
            Products { codes, bytes: 64, is_whole, order, groups, values, add, taken, narrow, wide };
        products.all::<_, false>(input, pieces, prepared, out);
        return true;
    }
    let (unpacker, bytes) = (Unpacker::new(bits), 8 * bits);
    let add = |sums, bytes, q: &_| _mm512_dpbusd_epi32(sums, unpacker.spread(bytes), load_codes(q));
    let products = Products { codes, bytes, is_whole, order, groups, values, add, taken, narrow, wide };
    if FOLD && bits <= NARROW {
        products.all::<_, true>(input, pieces, prepared, out);
    } else {
        products.all::<_, false>(input, pieces, prepared, out);
    }
    true
}

/// Of each of `P` pieces of 16 groups, the group of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn groups<const P: usize>() -> [__m512i; P] {
    let lanes: [i32; 16] = core::array::from_fn(|lane| (lane / P) as i32);
    // SAFETY: the array has the 16 values that are read.
    let first = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    core::array::from_fn(|piece| _mm512_add_epi32(first, _mm512_set1_epi32((piece * 16 / P) as i32)))
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

/// Sums of two quarters of each vector: the even groups and the odd ones of the first, then of the second.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(a: __m512i, b: __m512i) -> __m512i {
    let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
    _mm512_add_epi32(even, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b))
}

/// The groups of 16 sums that come of `pieces` pieces, 4 or 8, by [`wide`] and [`halves`].
const fn folded(pieces: usize) -> [usize; 16] {
    let (mut order, mut lane) = ([0; 16], 0);
    while lane < 16 {
        let (quarter, piece) = (lane / 4, lane % 4);
        order[lane] =
            if pieces == 4 { 4 * piece + quarter } else { 2 * (piece + quarter / 2 * 4) + quarter % 2 };
        lane += 1;
    }
    order
}

/// How rows are multiplied with. Activations come in pieces of one or two blocks, `P` for 16 groups.
struct Products<'k, V, A, T, N, W, const P: usize> {
    codes: &'k Codes<'k>,
    /// Bytes of a row's codes for a piece.
    bytes: usize,
    /// Whether the last values of rows are as many as the others.
    is_whole: bool,
    /// The groups of values.
    order: [usize; 16],
    /// Of each piece, the group of each lane of its sums.
    groups: [__m512i; P],
    values: V,
    /// Adds products of codes and activations of a piece to sums.
    add: A,
    /// What is taken off such sums, as codes have an offset.
    taken: T,
    /// Of the sums of all pieces, those of 16 groups, where codes are narrow.
    narrow: N,
    /// The same of any codes.
    wide: W,
}

impl<V, A, T, N, W, const P: usize> Products<'_, V, A, T, N, W, P>
where
    V: Fn(Rows, usize, bool) -> Values,
    N: Fn([__m512i; P]) -> __m512i,
    W: Fn([__m512i; P]) -> __m512i,
{
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn all<'q, Q: 'q, const FOLD: bool>(
        &self,
        input: &Input<'_>,
        pieces: impl Fn(usize) -> &'q [Q],
        prepared: &mut [[f32; 16]],
        out: &mut [f32],
    ) where
        A: Fn(__m512i, __m512i, &Q) -> __m512i,
        T: Fn(&Q) -> __m512i,
    {
        let height = self.codes.rows.min(out.len() / input.tokens.max(1));
        let prepared = prepared.as_chunks_mut::<PREPARED>().0;
        let sixteens = self.codes.blocks.div_ceil(BLOCKS).min(prepared.len());
        let (prepared, _) = prepared.split_at_mut(sixteens);
        for token in 0..input.tokens {
            self.prepare::<_, FOLD>(input, token, pieces(token), prepared);
            let of_token = out.get_mut(token..).unwrap_or(&mut []);
            let mut outs = of_token.iter_mut().step_by(input.tokens).take(height);
            for first in (0..height).step_by(ROWS) {
                let rows = Rows { first, more: height - 1 - first };
                // SAFETY: `first` is below `height`, for which all bytes were found to be there.
                let lanes = unsafe {
                    match FOLD {
                        true => self.folded(rows, pieces(token), prepared),
                        false => self.each(rows, pieces(token), prepared),
                    }
                };
                let sums = sums_of_four(lanes);
                sums.into_iter().zip(&mut outs).for_each(|(sum, out)| *out += sum);
            }
        }
    }

    /// Prepares, of 16 groups: the scale of each group's activations, their sum, and what is taken off sums of
    /// products, integers in the place of floats: of each piece, or with `FOLD` of each group.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn prepare<Q, const FOLD: bool>(
        &self,
        input: &Input<'_>,
        token: usize,
        pieces: &[Q],
        prepared: &mut [[[f32; 16]; PREPARED]],
    ) where
        T: Fn(&Q) -> __m512i,
    {
        let blocks = input.granule_sums(token).chunks(BLOCKS).zip(input.scales(token).chunks(BLOCKS));
        for ((prepared, pieces), (blocks, of_blocks)) in prepared.iter_mut().zip(pieces.chunks(P)).zip(blocks)
        {
            let [scales, sums, taken @ ..] = prepared;
            let pairs = blocks.as_flattened().as_chunks::<2>().0;
            for ((scale, sum), group) in scales.iter_mut().zip(sums).zip(self.order) {
                *scale = of_blocks.get(group / 2).copied().unwrap_or(0.0);
                *sum = pairs.get(group).map_or(0.0, |[a, b]| a + b);
            }
            let mut less = [_mm512_setzero_si512(); P];
            for (less, piece) in less.iter_mut().zip(pieces) {
                *less = _mm512_sub_epi32(*less, (self.taken)(piece));
            }
            if FOLD {
                less = [(self.wide)(less); P];
            }
            taken
                .iter_mut()
                .zip(less)
                .for_each(|(taken, less)| store_floats(_mm512_castsi512_ps(less), taken));
        }
    }

    /// Products of four rows, each piece multiplied with its scales.
    ///
    /// # Safety
    /// All bytes of the rows are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn each<Q>(&self, rows: Rows, pieces: &[Q], prepared: &[[[f32; 16]; PREPARED]]) -> [__m512; ROWS]
    where
        A: Fn(__m512i, __m512i, &Q) -> __m512i,
    {
        let mut lanes = [_mm512_setzero_ps(); ROWS];
        let starts = rows.starts(self.codes.row_bytes);
        // The next piece of each row, and the bytes that a row has from there on.
        let mut own = four!(r => self.codes.bytes.as_ptr().wrapping_add(starts[r]));
        let mut left = self.codes.row_bytes;
        // The next rows are asked for line after line, while these are read beside each other: memory is
        // fastest in order.
        let mut ahead = own[0].wrapping_add(distance(self.codes.row_bytes));
        let used = u64::MAX >> (64 - self.bytes);
        for (i, (pieces, [scales, sums, taken @ ..])) in pieces.chunks(P).zip(prepared).enumerate() {
            let (of_rows, zeros) = (self.values)(rows, i, i + 1 == prepared.len());
            if let Some(zeros) = zeros {
                let sums = load_floats(sums);
                lanes = four!(r => _mm512_fmadd_ps(zeros[r], sums, lanes[r]));
            }
            let scales = load_floats(scales);
            let of_rows = four!(r => _mm512_mul_ps(of_rows[r], scales));
            let (whole, rest) = pieces.split_at(pieces.len().min(left / self.bytes));
            let prepared = taken.iter().zip(&self.groups);
            for (piece, prepared) in whole.iter().zip(prepared.clone()) {
                // SAFETY: the caller says that the rows are there, and they have these bytes more.
                let bytes = four!(r => unsafe { _mm512_maskz_loadu_epi8(used, own[r].cast()) });
                four!(r => _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(self.bytes * r).cast()));
                ahead = ahead.wrapping_add(self.bytes * ROWS);
                lanes = self.piece(bytes, piece, prepared, of_rows, lanes);
                own = four!(r => own[r].wrapping_add(self.bytes));
                left -= self.bytes;
            }
            for (piece, prepared) in rest.iter().zip(prepared.skip(whole.len())).take(1) {
                four!(r => _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(left * r).cast()));
                let used = (1 << left) - 1;
                // SAFETY: the mask has as many bytes as the rows have.
                let bytes = four!(r => unsafe { _mm512_maskz_loadu_epi8(used, own[r].cast()) });
                lanes = self.piece(bytes, piece, prepared, of_rows, lanes);
            }
        }
        lanes
    }

    /// Adds the products of a piece of four rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn piece<Q>(
        &self,
        bytes: [__m512i; ROWS],
        piece: &Q,
        (taken, groups): (&[f32; 16], &__m512i),
        of_rows: [__m512; ROWS],
        lanes: [__m512; ROWS],
    ) -> [__m512; ROWS]
    where
        A: Fn(__m512i, __m512i, &Q) -> __m512i,
    {
        let taken = _mm512_castps_si512(load_floats(taken));
        four!(r => {
            let sums = _mm512_cvtepi32_ps((self.add)(taken, bytes[r], piece));
            _mm512_fmadd_ps(sums, _mm512_permutexvar_ps(*groups, of_rows[r]), lanes[r])
        })
    }

    /// Products of four rows, sums of 16 groups multiplied with their scales.
    ///
    /// # Safety
    /// All bytes of the rows are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn folded<Q>(&self, rows: Rows, pieces: &[Q], prepared: &[[[f32; 16]; PREPARED]]) -> [__m512; ROWS]
    where
        A: Fn(__m512i, __m512i, &Q) -> __m512i,
    {
        let row_bytes = self.codes.row_bytes;
        let starts = rows.starts(row_bytes);
        let mut own = four!(r => self.codes.bytes.as_ptr().wrapping_add(starts[r]));
        // The next rows are asked for line after line, while these are read beside each other: memory is
        // fastest in order.
        let mut ahead = own[0].wrapping_add(distance(row_bytes));
        let mut lanes = [_mm512_setzero_ps(); ROWS];
        let bytes = P * self.bytes;
        // The last are as the others if all of them are there.
        let is_whole = self.is_whole && row_bytes == prepared.len() * bytes;
        let count = prepared.len().saturating_sub(usize::from(!is_whole));
        let mut i = 0;
        for (pieces, prepared) in pieces.as_chunks::<P>().0.iter().zip(prepared).take(count) {
            ask(ahead, ROWS * bytes);
            ahead = ahead.wrapping_add(ROWS * bytes);
            // SAFETY: the caller says that the rows are there, of which these are not the last bytes.
            let sums = four!(r => (self.narrow)(unsafe { self.whole(own[r], pieces) }));
            lanes = self.add_sums(rows, i, false, prepared, sums, lanes);
            own = four!(r => own[r].wrapping_add(bytes));
            i += 1;
        }
        for (pieces, prepared) in pieces.chunks(P).zip(prepared).skip(i).take(1) {
            let left = row_bytes - i * bytes;
            ask(ahead, ROWS * left);
            let sums = match pieces.as_array::<P>() {
                // SAFETY: as above.
                Some(pieces) if left == bytes => {
                    four!(r => (self.narrow)(unsafe { self.whole(own[r], pieces) }))
                }
                // SAFETY: as above.
                _ => four!(r => (self.narrow)(unsafe { self.part(own[r], left, pieces) })),
            };
            lanes = self.add_sums(rows, i, true, prepared, sums, lanes);
        }
        lanes
    }

    /// Adds what sums of 16 groups stand for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn add_sums(
        &self,
        rows: Rows,
        i: usize,
        is_last: bool,
        [scales, activations, taken, ..]: &[[f32; 16]; PREPARED],
        sums: [__m512i; ROWS],
        mut lanes: [__m512; ROWS],
    ) -> [__m512; ROWS] {
        let (of_rows, zeros) = (self.values)(rows, i, is_last);
        if let Some(zeros) = zeros {
            let activations = load_floats(activations);
            lanes = four!(r => _mm512_fmadd_ps(zeros[r], activations, lanes[r]));
        }
        let (scales, taken) = (load_floats(scales), _mm512_castps_si512(load_floats(taken)));
        four!(r => {
            let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[r], taken));
            _mm512_fmadd_ps(sums, _mm512_mul_ps(of_rows[r], scales), lanes[r])
        })
    }

    /// Products of `P` pieces of a row.
    ///
    /// # Safety
    /// As many bytes are there as the pieces have.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn whole<Q>(&self, own: *const u8, pieces: &[Q; P]) -> [__m512i; P]
    where
        A: Fn(__m512i, __m512i, &Q) -> __m512i,
    {
        let used = u64::MAX >> (64 - self.bytes);
        let mut products = [_mm512_setzero_si512(); P];
        for (p, (product, piece)) in products.iter_mut().zip(pieces).enumerate() {
            // SAFETY: the mask has the bytes of piece `p`, which the caller says are there.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(used, own.wrapping_add(p * self.bytes).cast()) };
            *product = (self.add)(*product, bytes, piece);
        }
        products
    }

    /// [`Products::whole`] of the last pieces of a row, of which the first `there` bytes are there.
    ///
    /// # Safety
    /// These bytes are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn part<Q>(&self, own: *const u8, there: usize, pieces: &[Q]) -> [__m512i; P]
    where
        A: Fn(__m512i, __m512i, &Q) -> __m512i,
    {
        let mut products = [_mm512_setzero_si512(); P];
        for (p, (product, piece)) in products.iter_mut().zip(pieces).enumerate() {
            let count = there.saturating_sub(p * self.bytes).min(self.bytes);
            let used = u64::MAX.checked_shr(64 - count as u32).unwrap_or(0);
            // SAFETY: the mask has those of the bytes of piece `p` that are below `there`.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(used, own.wrapping_add(p * self.bytes).cast()) };
            *product = (self.add)(*product, bytes, piece);
        }
        products
    }
}

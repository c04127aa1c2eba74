//! Few tokens by rows of codes whose scales lie as [`super::scales`] reads them: 16 groups of 32 columns of
//! four rows at a time.
//!
//! A product of codes and activations is a sum of integers for each four or eight columns, times the scale of
//! their group, times that of their activations. What zero points add is the sum of a group's activations,
//! times a value of the group.

use core::arch::x86_64::*;

use super::memory::*;
use super::scales::{Decoder, Halves};
use super::*;
use crate::operands::{PREPARED, Twice};

/// Blocks of 16 groups.
pub(super) const BLOCKS: usize = 8;

/// Rows that are worked on at a time: they share what is read of the activations, and the loop around.
pub(super) const ROWS: usize = 4;

/// Some rows of a matrix: the first one, and how many follow it, of which at most three count.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    first: usize,
    more: usize,
}

impl Rows {
    pub(super) fn new(first: usize, more: usize) -> Self {
        Self { first, more }
    }

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
    if folded::fast(codes, input, height, prepared, out) {
        return true;
    }
    let Some(scales) = Halves::new(stored, height, codes.blocks) else { return false };
    by_width(codes, input, prepared, out, |rows, i, is_last| {
        // SAFETY: `by_width` asks for rows below `height` and for all of their blocks.
        (unsafe { scales.sixteen(rows, i, is_last) }, None)
    })
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
        return by_width(codes, input, prepared, out, |rows, i, is_last| {
            // SAFETY: as in `fast_stored`.
            (unsafe { scales.sixteen(rows, i, is_last) }, None)
        });
    };
    let Some(zeros) = Decoder::new(zero, height, codes.blocks) else { return false };
    by_width(codes, input, prepared, out, |rows, i, is_last| {
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

/// Of 16 groups of four rows, their scales, and perhaps what is added to each column.
type Values = ([__m512; ROWS], Option<[__m512; ROWS]>);

/// All products, by the width of codes. Gives whether codes are what is wanted.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn by_width(
    codes: &Codes<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
    values: impl Fn(Rows, usize, bool) -> Values,
) -> bool {
    let Map::Signed(offset) = codes.map else { return false };
    let less = _mm512_set1_epi8(offset.unsigned_abs() as u8 as i8);
    let bits = codes.bits;
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
        let products = Products { codes, bytes: 64, groups: groups::<4>(), values, add, taken };
        products.all(input, |token| input.pairs(token).0, prepared, out);
        return true;
    }
    let taken = |q: &_| _mm512_dpbusd_epi32(_mm512_setzero_si512(), less, load_codes(q));
    let pieces = |token| input.quantised(token);
    if bits == 8 {
        let add = |sums, bytes, q: &_| _mm512_dpbusd_epi32(sums, bytes, load_codes(q));
        let products = Products { codes, bytes: 64, groups: groups::<8>(), values, add, taken };
        products.all(input, pieces, prepared, out);
    } else {
        let unpacker = Unpacker::new(bits);
        let add = |sums, bytes, q: &_| _mm512_dpbusd_epi32(sums, unpacker.spread(bytes), load_codes(q));
        let products = Products { codes, bytes: 8 * bits, groups: groups::<8>(), values, add, taken };
        products.all(input, pieces, prepared, out);
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

/// How rows are multiplied with. Activations come in pieces of one or two blocks, `P` for 16 groups.
struct Products<'k, V, A, T, const P: usize> {
    codes: &'k Codes<'k>,
    /// Bytes of a row's codes for a piece.
    bytes: usize,
    /// Of each piece, the group of each lane of its sums.
    groups: [__m512i; P],
    values: V,
    /// Adds products of codes and activations of a piece to sums.
    add: A,
    /// What is taken off such sums, as codes have an offset.
    taken: T,
}

impl<V: Fn(Rows, usize, bool) -> Values, A, T, const P: usize> Products<'_, V, A, T, P> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn all<'q, Q: 'q>(
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
            self.prepare(input, token, pieces(token), prepared);
            let of_token = out.get_mut(token..).unwrap_or(&mut []);
            let mut outs = of_token.iter_mut().step_by(input.tokens).take(height);
            for first in (0..height).step_by(ROWS) {
                let rows = Rows::new(first, height - 1 - first);
                // SAFETY: `first` is below `height`, for which all bytes were found to be there.
                let sums = unsafe { self.four(rows, pieces(token), prepared) };
                sums.into_iter().zip(&mut outs).for_each(|(sum, out)| *out += sum);
            }
        }
    }

    /// Prepares, of 16 groups: the scale of each group's activations, their sum, and for each piece what is
    /// taken off its sums, integers in the place of floats.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn prepare<Q>(
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
            (*scales, *sums) = ([0.0; 16], [0.0; 16]);
            scales.as_chunks_mut::<2>().0.iter_mut().zip(of_blocks).for_each(|(two, one)| *two = [*one; 2]);
            let pairs = blocks.as_flattened().as_chunks::<2>().0;
            sums.iter_mut().zip(pairs).for_each(|(sum, [a, b])| *sum = a + b);
            for (taken, piece) in taken.iter_mut().zip(pieces) {
                let less = _mm512_sub_epi32(_mm512_setzero_si512(), (self.taken)(piece));
                store_floats(_mm512_castsi512_ps(less), taken);
            }
        }
    }

    /// Products of four rows.
    ///
    /// # Safety
    /// All bytes of the rows are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn four<Q>(&self, rows: Rows, pieces: &[Q], prepared: &[[[f32; 16]; PREPARED]]) -> [f32; ROWS]
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
        sums_of_four(lanes)
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
}

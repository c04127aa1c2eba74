//! Few tokens by rows of narrow codes with f16 scales: sums of products of 16 groups are folded into one vector
//! before they are multiplied with scales, which takes fewer instructions than [`super::few`] does for each piece.
//! Scales come in the order into which that puts the groups.

use core::arch::x86_64::*;

use super::few::{BLOCKS, ROWS, Rows};
use super::memory::*;
use super::*;
use crate::operands::PREPARED;

/// Bits of codes whose products [`narrow`] adds.
const MOST_BITS: usize = 5;

/// Rows of codes of up to 5 bits with a scale for each 32 or 64 columns, at least twice 16 groups of 32. Gives whether
/// that was done, of `height` rows, which are there. `prepared` has [`PREPARED`] vectors for each 8 blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(super) fn fast(
    codes: &Codes<'_>,
    input: &Input<'_>,
    height: usize,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    let (Map::Signed(offset), Some(stored)) = (codes.map, codes.stored) else { return false };
    if codes.bits > MOST_BITS || codes.blocks < 2 * BLOCKS || height * codes.row_bytes > codes.bytes.len() {
        return false;
    }
    let less = _mm512_set1_epi8(offset.unsigned_abs() as u8 as i8);
    if codes.bits == 4 && !input.halves.is_empty() {
        // Even columns are in the lower halves of bytes, odd ones in the upper halves.
        let low = _mm512_set1_epi8(15);
        let by_two = |lower, upper, [even, odd]: &[[i8; BLOCK]; 2]| {
            let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), lower, load_codes(even));
            _mm512_dpbusd_epi32(sums, upper, load_codes(odd))
        };
        let product = |bytes, q: &_| {
            let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
            by_two(_mm512_and_si512(bytes, low), upper, q)
        };
        let taken = |q: &_| by_two(less, less, q);
        let (narrow, wide) = (|sums: [_; 4]| narrow(sums), |sums: [_; 4]| wide(sums));
        let products = Products { codes, height, bytes: 64, product, taken, narrow, wide };
        return products.all(stored, input, |token| input.pairs(token).0, prepared, out);
    }
    let unpacker = Unpacker::new(codes.bits);
    let product =
        |bytes, q: &_| _mm512_dpbusd_epi32(_mm512_setzero_si512(), unpacker.spread(bytes), load_codes(q));
    let taken = |q: &_| _mm512_dpbusd_epi32(_mm512_setzero_si512(), less, load_codes(q));
    let narrow = |[a, b, c, d, e, f, g, h]: [_; 8]| halves(narrow([a, b, c, d]), narrow([e, f, g, h]));
    let wide = |[a, b, c, d, e, f, g, h]: [_; 8]| halves(wide([a, b, c, d]), wide([e, f, g, h]));
    let products = Products { codes, height, bytes: 8 * codes.bits, product, taken, narrow, wide };
    products.all(stored, input, |token| input.quantised(token), prepared, out)
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

/// Scales of rows, one for 2 to the power of `LOG`, 0 or 1, groups of 32 columns.
struct Scales<'k, const LOG: u32> {
    values: &'k [[u8; 2]],
    /// Scales of a row.
    groups: usize,
    /// Of each lane, the scale.
    spread: [u16; 16],
    /// Of the last scales of a row, those that are there.
    last: __mmask16,
}

impl<'k, const LOG: u32> Scales<'k, LOG> {
    /// For `height` rows, which have `sixteens` times 16 groups. `None` where not all of them are there.
    fn new(stored: StoredScales<'k>, height: usize, sixteens: usize, order: [usize; 16]) -> Option<Self> {
        let last = stored.groups.checked_sub((16 * sixteens.checked_sub(1)?) >> LOG)?.min(16 >> LOG);
        let is_there = stored.values.len() >= height.checked_mul(stored.groups)? && last > 0;
        is_there.then(|| Self {
            values: stored.values,
            groups: stored.groups,
            spread: order.map(|group| (group >> LOG) as u16),
            last: ((1u32 << last) - 1) as u16,
        })
    }

    /// Whether the last scales of rows are as many as the others.
    fn is_whole(&self) -> bool {
        self.last.count_ones() == 16 >> LOG
    }

    /// The scales of groups `16 * i` to `16 * i + 15` of four rows, in order, 0 for groups that are not there.
    ///
    /// # Safety
    /// The rows are some of those that [`Scales::new`] was told of, `i` is below `sixteens`, and `is_last` says
    /// whether these are the last, at least unless [`Scales::is_whole`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    unsafe fn sixteen(&self, rows: Rows, i: usize, is_last: bool) -> [__m512; ROWS] {
        let starts = rows.starts(self.groups);
        let before = (16 * i) >> LOG;
        let ahead = starts[0] + ROWS * (self.groups + before) + 256;
        ask(self.values.as_ptr().wrapping_add(ahead).cast(), ROWS * (32 >> LOG));
        // SAFETY: the array has the 16 values that are read.
        let spread = unsafe { _mm256_loadu_si256(self.spread.as_ptr().cast()) };
        four!(r => {
            let from = self.values.as_ptr().wrapping_add(starts[r] + before);
            // SAFETY: `new` has seen that all rows have their `groups` scales, of which these are 16 where one is
            // for one group and 8 where it is for two, unless they are the last: the mask has those that are there.
            let halves = unsafe {
                match LOG {
                    _ if is_last => _mm256_maskz_loadu_epi16(self.last, from.cast()),
                    0 => _mm256_loadu_si256(from.cast()),
                    _ => _mm256_castsi128_si256(_mm_loadu_si128(from.cast())),
                }
            };
            _mm512_cvtph_ps(_mm256_permutexvar_epi16(spread, halves))
        })
    }
}

/// How rows are multiplied with. Activations come in pieces of one or two blocks, `P` for 16 groups.
struct Products<'k, M, T, N, W> {
    codes: &'k Codes<'k>,
    /// Rows, all of whose codes are there.
    height: usize,
    /// Bytes of a row's codes for a piece.
    bytes: usize,
    /// Products of codes and activations of a piece, in some sums.
    product: M,
    /// What is taken off such products, as codes have an offset.
    taken: T,
    /// The products of all pieces as those of 16 groups, in [`order_of`], where codes are narrow.
    narrow: N,
    /// The same of any codes.
    wide: W,
}

impl<M, T, N, W> Products<'_, M, T, N, W> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn all<'q, Q: 'q, const P: usize>(
        &self,
        stored: StoredScales<'_>,
        input: &Input<'_>,
        pieces: impl Fn(usize) -> &'q [Q],
        prepared: &mut [[f32; 16]],
        out: &mut [f32],
    ) -> bool
    where
        M: Fn(__m512i, &Q) -> __m512i,
        T: Fn(&Q) -> __m512i,
        N: Fn([__m512i; P]) -> __m512i,
        W: Fn([__m512i; P]) -> __m512i,
    {
        let order = const { order_of(P) };
        let prepared = prepared.as_chunks_mut::<PREPARED>().0;
        let sixteens = self.codes.blocks.div_ceil(BLOCKS).min(prepared.len());
        let (prepared, _) = prepared.split_at_mut(sixteens);
        match stored.granules_log {
            1 => {
                let Some(scales) = Scales::<0>::new(stored, self.height, sixteens, order) else {
                    return false;
                };
                self.each_token(&scales, input, pieces, prepared, out);
            }
            2 => {
                let Some(scales) = Scales::<1>::new(stored, self.height, sixteens, order) else {
                    return false;
                };
                self.each_token(&scales, input, pieces, prepared, out);
            }
            _ => return false,
        }
        true
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn each_token<'q, Q: 'q, const P: usize, const LOG: u32>(
        &self,
        scales: &Scales<'_, LOG>,
        input: &Input<'_>,
        pieces: impl Fn(usize) -> &'q [Q],
        prepared: &mut [[[f32; 16]; PREPARED]],
        out: &mut [f32],
    ) where
        M: Fn(__m512i, &Q) -> __m512i,
        T: Fn(&Q) -> __m512i,
        N: Fn([__m512i; P]) -> __m512i,
        W: Fn([__m512i; P]) -> __m512i,
    {
        for token in 0..input.tokens {
            self.prepare(input, token, pieces(token), prepared);
            let of_token = out.get_mut(token..).unwrap_or(&mut []);
            let mut outs = of_token.iter_mut().step_by(input.tokens).take(self.height);
            for first in (0..self.height).step_by(ROWS) {
                let rows = Rows::new(first, self.height - 1 - first);
                // SAFETY: `first` is below `height`, for which all bytes are there.
                let sums = unsafe { self.four(rows, scales, pieces(token), prepared) };
                sums.into_iter().zip(&mut outs).for_each(|(sum, out)| *out += sum);
            }
        }
    }

    /// Prepares, of 16 groups: the scale of each group's activations, and what is taken off its sum of products,
    /// integers in the place of floats.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn prepare<Q, const P: usize>(
        &self,
        input: &Input<'_>,
        token: usize,
        pieces: &[Q],
        prepared: &mut [[[f32; 16]; PREPARED]],
    ) where
        T: Fn(&Q) -> __m512i,
        W: Fn([__m512i; P]) -> __m512i,
    {
        let of_blocks = input.scales(token).chunks(BLOCKS);
        for (([scales, taken, ..], pieces), of_blocks) in
            prepared.iter_mut().zip(pieces.chunks(P)).zip(of_blocks)
        {
            for (scale, group) in scales.iter_mut().zip(const { order_of(P) }) {
                *scale = of_blocks.get(group / 2).copied().unwrap_or(0.0);
            }
            let mut products = [_mm512_setzero_si512(); P];
            products.iter_mut().zip(pieces).for_each(|(product, piece)| *product = (self.taken)(piece));
            let less = _mm512_sub_epi32(_mm512_setzero_si512(), (self.wide)(products));
            store_floats(_mm512_castsi512_ps(less), taken);
        }
    }

    /// Products of four rows.
    ///
    /// # Safety
    /// All bytes of the rows are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn four<Q, const P: usize, const LOG: u32>(
        &self,
        rows: Rows,
        scales: &Scales<'_, LOG>,
        pieces: &[Q],
        prepared: &[[[f32; 16]; PREPARED]],
    ) -> [f32; ROWS]
    where
        M: Fn(__m512i, &Q) -> __m512i,
        N: Fn([__m512i; P]) -> __m512i,
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
        let is_whole = scales.is_whole() && row_bytes == prepared.len() * bytes;
        let count = prepared.len().saturating_sub(usize::from(!is_whole));
        let mut i = 0;
        for (pieces, prepared) in pieces.as_chunks::<P>().0.iter().zip(prepared).take(count) {
            ask(ahead, ROWS * bytes);
            ahead = ahead.wrapping_add(ROWS * bytes);
            // SAFETY: the caller says that the rows are there, of which these are not the last bytes.
            let sums = four!(r => (self.narrow)(unsafe { self.whole(own[r], pieces) }));
            // SAFETY: as `Scales::sixteen` wants it; all of them are there.
            lanes = add(sums, unsafe { scales.sixteen(rows, i, false) }, prepared, lanes);
            own = four!(r => own[r].wrapping_add(bytes));
            i += 1;
        }
        for (pieces, prepared) in pieces.chunks(P).zip(prepared).skip(i).take(1) {
            let left = row_bytes - i * bytes;
            ask(ahead, ROWS * left);
            // SAFETY: as above, and `left` bytes are left of each row.
            let sums = four!(r => (self.narrow)(unsafe { self.part(own[r], left, pieces) }));
            // SAFETY: as above; these are the last.
            lanes = add(sums, unsafe { scales.sixteen(rows, i, true) }, prepared, lanes);
        }
        sums_of_four(lanes)
    }

    /// Products of `P` pieces of a row.
    ///
    /// # Safety
    /// As many bytes are there as the pieces have.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn whole<Q, const P: usize>(&self, own: *const u8, pieces: &[Q; P]) -> [__m512i; P]
    where
        M: Fn(__m512i, &Q) -> __m512i,
    {
        let used = u64::MAX >> (64 - self.bytes);
        let mut products = [_mm512_setzero_si512(); P];
        for (p, (product, piece)) in products.iter_mut().zip(pieces).enumerate() {
            // SAFETY: the mask has the bytes of piece `p`, which the caller says are there.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(used, own.wrapping_add(p * self.bytes).cast()) };
            *product = (self.product)(bytes, piece);
        }
        products
    }

    /// [`Products::whole`] of the last pieces of a row, of which the first `there` bytes are there.
    ///
    /// # Safety
    /// These bytes are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    unsafe fn part<Q, const P: usize>(&self, own: *const u8, there: usize, pieces: &[Q]) -> [__m512i; P]
    where
        M: Fn(__m512i, &Q) -> __m512i,
    {
        let mut products = [_mm512_setzero_si512(); P];
        for (p, (product, piece)) in products.iter_mut().zip(pieces).enumerate() {
            let count = there.saturating_sub(p * self.bytes).min(self.bytes);
            let used = u64::MAX.checked_shr(64 - count as u32).unwrap_or(0);
            // SAFETY: the mask has those of the bytes of piece `p` that are below `there`.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(used, own.wrapping_add(p * self.bytes).cast()) };
            *product = (self.product)(bytes, piece);
        }
        products
    }
}

/// Adds sums of products of 16 groups with their scales.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(
    sums: [__m512i; ROWS],
    of_rows: [__m512; ROWS],
    [scales, taken, ..]: &[[f32; 16]; PREPARED],
    lanes: [__m512; ROWS],
) -> [__m512; ROWS] {
    let (scales, taken) = (load_floats(scales), _mm512_castps_si512(load_floats(taken)));
    four!(r => {
        let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[r], taken));
        _mm512_fmadd_ps(sums, _mm512_mul_ps(of_rows[r], scales), lanes[r])
    })
}

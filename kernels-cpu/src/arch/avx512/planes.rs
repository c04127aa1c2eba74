//! Codes that lie in bit planes.
//!
//! A look takes 128 columns: 16 bytes of each plane. One permutation puts the bytes that belong to the same
//! eight columns next to each other, as the rows of a matrix of 8 by 8 bits, and `vgf2p8affineqb` with such
//! matrices and a constant transposes them: the columns become codes. Up to four planes are two codes a byte,
//! those of the first 64 columns in the lower halves.

/// Calls a kernel with the number of planes as a constant.
macro_rules! by_planes {
    ($count:expr, $kernel:ident($($argument:expr),*)) => {
        match $count {
            1 => $kernel::<1>($($argument),*),
            2 => $kernel::<2>($($argument),*),
            3 => $kernel::<3>($($argument),*),
            4 => $kernel::<4>($($argument),*),
            5 => $kernel::<5>($($argument),*),
            6 => $kernel::<6>($($argument),*),
            7 => $kernel::<7>($($argument),*),
            _ => $kernel::<8>($($argument),*),
        }
    };
}

mod halves;

use core::arch::x86_64::*;

pub(in crate::arch) use self::halves::{planes_decode, planes_halves};
use super::memory::*;
use super::*;
use crate::arch::portable;
use crate::operands::{Planes, Scaled};

/// Bytes of a plane that a look takes.
const LOOK: usize = 16;

/// Reads codes of `P` planes.
#[derive(Clone, Copy)]
struct Reader<const P: usize> {
    /// Which bytes of the four lower planes, and of the four upper ones, are next to each other for the first 64
    /// columns, and for the others; both at once where there are no upper planes.
    first: __m512i,
    second: __m512i,
    /// A bit in each of eight bytes.
    diagonal: __m512i,
    /// Largest code, where codes are rounded half up.
    most: Option<__m512i>,
    row_bytes: usize,
}

/// A row of planes.
#[derive(Clone, Copy)]
struct Row<const P: usize>([*const u8; P]);

impl<const P: usize> Reader<P> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(planes: &Planes<'_>) -> Self {
        Self::in_order(planes, |eight| eight)
    }

    /// Codes of which the lower eights of every 16 are those of 32 columns, and the upper ones those of the next.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn by_halves(planes: &Planes<'_>) -> Self {
        Self::in_order(planes, |eight| eight / 2 + eight % 2 * 4)
    }

    /// `columns` gives which eight columns of 64 each eight codes are of.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn in_order(planes: &Planes<'_>, columns: impl Fn(usize) -> usize) -> Self {
        // Byte `row` of the matrix of eight columns from `8 * column` on has bit `7 - row` of codes.
        let place = |row: usize, column: usize| 16 * (row % 4) + column;
        let (mut first, mut second) = ([0; 64], [0; 64]);
        for (i, (first, second)) in first.iter_mut().zip(&mut second).enumerate() {
            let (row, column) = (i % 8, columns(i / 8));
            // The second operand of a permutation of two follows the first.
            let upper = if row < 4 { 64 } else { 0 };
            *first = (place(row, column) + upper) as u8;
            *second = (place(row, 8 + column) + upper) as u8;
            if P <= 4 {
                *first = place(row, if row < 4 { 8 + column } else { column }) as u8;
            }
        }
        let most = planes.most as i8;
        Self {
            first: load_bytes(&first),
            second: load_bytes(&second),
            diagonal: _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64),
            most: planes.rounds.then(|| _mm512_set1_epi8(most)),
            row_bytes: planes.row_bytes,
        }
    }

    /// 16 bytes of the plane of a bit, and zeros where there is none.
    ///
    /// # Safety
    /// The row has those of the 16 bytes from byte `at` on that `used` names.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn plane(row: Row<P>, bit: usize, at: usize, used: __mmask16) -> __m128i {
        match row.0.get(P.wrapping_sub(1 + bit)) {
            // SAFETY: the caller says that these bytes are there.
            Some(plane) => unsafe { _mm_maskz_loadu_epi8(used, plane.wrapping_add(at).cast()) },
            None => _mm_setzero_si128(),
        }
    }

    /// Four planes, that of bit `bit + 3` first.
    ///
    /// # Safety
    /// As [`Reader::plane`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    unsafe fn four(row: Row<P>, bit: usize, at: usize, used: __mmask16) -> __m512i {
        // SAFETY: as the caller says.
        let [a, b, c, d] = unsafe { four!(i => Self::plane(row, bit + 3 - i, at, used)) };
        let upper = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
        let lower = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(upper), lower)
    }

    /// The codes of columns `128 * i` to `128 * i + 127`, 0 beyond the end of the row.
    ///
    /// # Safety
    /// `row` has the row's bytes of all planes, of which more than `16 * i`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx2,gfni")]
    unsafe fn codes(&self, row: Row<P>, i: usize) -> [__m512i; 2] {
        let at = LOOK * i;
        let left = self.row_bytes - at;
        let used = if left >= LOOK { u16::MAX } else { (1 << left) - 1 };
        // SAFETY: the mask ends where the row ends.
        let lower = unsafe { Self::four(row, 0, at, used) };
        let codes = if P <= 4 {
            let both = _mm512_permutexvar_epi8(self.first, lower);
            let both = _mm512_gf2p8affine_epi64_epi8::<0>(self.diagonal, both);
            let low = _mm512_set1_epi8(15);
            [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)]
        } else {
            // SAFETY: as above.
            let upper = unsafe { Self::four(row, 4, at, used) };
            let first = _mm512_permutex2var_epi8(lower, self.first, upper);
            let second = _mm512_permutex2var_epi8(lower, self.second, upper);
            [
                _mm512_gf2p8affine_epi64_epi8::<0>(self.diagonal, first),
                _mm512_gf2p8affine_epi64_epi8::<0>(self.diagonal, second),
            ]
        };
        let Some(most) = self.most else { return codes };
        let [first, second] = codes;
        let half = |codes| _mm512_min_epu8(_mm512_avg_epu8(codes, _mm512_setzero_si512()), most);
        [half(first), half(second)]
    }

    /// Row `row`.
    #[inline]
    fn row(&self, planes: &Planes<'_>, row: usize) -> Row<P> {
        let start = row * self.row_bytes;
        Row(core::array::from_fn(|i| {
            planes.planes.get(i).map_or(core::ptr::null(), |p| p.as_ptr().wrapping_add(start))
        }))
    }
}

/// Whether all rows of all planes are there, and looks of a row are as many as its blocks want.
fn is_there(planes: &Planes<'_>) -> bool {
    let bytes = planes.rows.checked_mul(planes.row_bytes);
    let all = planes.planes.get(..planes.count).unwrap_or(&[]);
    let looks = planes.blocks.div_ceil(2);
    !all.is_empty()
        && all.iter().all(|plane| bytes.is_some_and(|bytes| bytes <= plane.len()))
        && looks > 0
        && planes.row_bytes > LOOK * (looks - 1)
}

/// Codes of rows, a byte each, in rows of whole blocks. Gives whether that was done.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
pub(in crate::arch) fn planes(planes: &Planes<'_>, out: &mut [[u8; BLOCK]]) -> bool {
    is_there(planes) && by_planes!(planes.count, bytes(planes, out))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn bytes<const P: usize>(planes: &Planes<'_>, out: &mut [[u8; BLOCK]]) -> bool {
    let reader = Reader::<P>::new(planes);
    for (row, out) in (0..planes.rows).zip(out.chunks_exact_mut(planes.blocks)) {
        let row = reader.row(planes, row);
        for (i, out) in out.chunks_mut(2).enumerate() {
            // SAFETY: `is_there` has seen that all rows are there, and that the last of these looks begins in
            // its row.
            let codes = unsafe { reader.codes(row, i) };
            codes.into_iter().zip(out).for_each(|(codes, out)| store_bytes(codes, out));
        }
    }
    true
}

/// Products of integer codes. `prepared` has three values for each scale of a row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
pub(in crate::arch) fn planes_fast(
    planes: &Planes<'_>,
    scaled: &Scaled<'_>,
    input: &Input<'_>,
    prepared: &mut [f32],
    out: &mut [f32],
) {
    if !is_there(planes) {
        return;
    }
    match scaled.of_block {
        1 => by_planes!(planes.count, fast_blocks(planes, scaled, input, prepared, out)),
        _ => by_planes!(planes.count, fast_granules(planes, scaled, input, prepared, out)),
    }
}

/// With a scale for each block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn fast_blocks<const P: usize>(
    planes: &Planes<'_>,
    scaled: &Scaled<'_>,
    input: &Input<'_>,
    prepared: &mut [f32],
    out: &mut [f32],
) {
    fast_scaled::<P, 1>(planes, scaled, input, prepared, |[scale]| _mm512_set1_ps(*scale), out);
}

/// With a scale for each granule.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn fast_granules<const P: usize>(
    planes: &Planes<'_>,
    scaled: &Scaled<'_>,
    input: &Input<'_>,
    prepared: &mut [f32],
    out: &mut [f32],
) {
    fast_scaled::<P, GRANULES>(planes, scaled, input, prepared, |scales| spread(scales), out);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn fast_scaled<const P: usize, const G: usize>(
    planes: &Planes<'_>,
    scaled: &Scaled<'_>,
    input: &Input<'_>,
    prepared: &mut [f32],
    spread: impl Fn(&[f32; G]) -> __m512,
    out: &mut [f32],
) {
    let reader = Reader::<P>::new(planes);
    let width = planes.blocks * G;
    let Some((scales, rest)) = prepared.split_at_mut_checked(width) else { return };
    let Some((sums, rest)) = rest.split_at_mut_checked(width) else { return };
    let Some(own) = rest.get_mut(..width) else { return };
    let add = |codes, q: &[i8; BLOCK]| _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, load_codes(q));
    for token in 0..input.tokens {
        scales_and_sums::<G>(input, token, scales, sums);
        let of_token = out.get_mut(token..).unwrap_or(&mut []);
        for (row, out) in (0..planes.rows).zip(of_token.iter_mut().step_by(input.tokens)) {
            let (of_row, terms) = scaled.row(row, width);
            let added = scale_row(of_row, terms, scales, sums, own);
            let (row, pieces) = (reader.row(planes, row), input.quantised(token));
            // SAFETY: `is_there` has seen that the row is there, with all of its looks.
            let lanes = unsafe { products(&reader, row, pieces, own.as_chunks().0, add, &spread) };
            *out += sum(_mm512_add_ps(lanes, load_floats(&added)));
        }
    }
}

/// Of each block, or of each granule of it, the scale of a token's activations and their sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn scales_and_sums<const G: usize>(input: &Input<'_>, token: usize, scales: &mut [f32], sums: &mut [f32]) {
    let parts = scales.as_chunks_mut::<G>().0.iter_mut().zip(sums.as_chunks_mut::<G>().0);
    let of_blocks = input.scales(token).iter().zip(input.granule_sums(token));
    for ((scales, sums), (scale, granules)) in parts.zip(of_blocks) {
        *scales = [*scale; G];
        for (sum, granules) in sums.iter_mut().zip(granules.chunks(GRANULES / G)) {
            *sum = granules.iter().sum();
        }
    }
}

/// Scales of a row times those of activations, and, in 16 lanes, the products of its terms with sums of
/// activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn scale_row(of_row: &[f32], terms: &[f32], scales: &[f32], sums: &[f32], out: &mut [f32]) -> [f32; 16] {
    for ((out, of_row), scale) in out.iter_mut().zip(of_row).zip(scales) {
        *out = of_row * scale;
    }
    let mut lanes = [0.0; 16];
    let (terms, terms_left) = terms.as_chunks::<16>();
    let (sums, sums_left) = sums.as_chunks::<16>();
    for (terms, sums) in terms.iter().zip(sums) {
        for i in 0..16 {
            lanes[i] = terms[i].mul_add(sums[i], lanes[i]);
        }
    }
    for (lane, (term, sum)) in lanes.iter_mut().zip(terms_left.iter().zip(sums_left)) {
        *lane = term.mul_add(*sum, *lane);
    }
    lanes
}

/// Products of codes that name values of a table for each row. Gives whether that was done. `pieces` has two
/// for each block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
pub(in crate::arch) fn planes_tables(
    planes: &Planes<'_>,
    tables: &[f32],
    input: &Input<'_>,
    pieces: &mut [[u8; BLOCK]],
    out: &mut [f32],
) -> bool {
    is_there(planes) && by_planes!(planes.count, look_up(planes, tables, input, pieces, out))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
fn look_up<const P: usize>(
    planes: &Planes<'_>,
    tables: &[f32],
    input: &Input<'_>,
    pieces: &mut [[u8; BLOCK]],
    out: &mut [f32],
) -> bool {
    let reader = Reader::<P>::new(planes);
    let Some(pieces) = pieces.as_chunks_mut::<2>().0.get_mut(..planes.blocks) else { return false };
    let entries = tables.len() / planes.rows.max(1);
    for token in 0..input.tokens {
        // Beside activations, what is taken off for the 128 that is added to upper bytes.
        for ([q, taken], own) in pieces.iter_mut().zip(input.quantised(token)) {
            *q = own.map(|q| q as u8);
            let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), load_codes(own));
            let less = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<15>(sums));
            store_bytes(less, taken);
        }
        let all = portable::sum_of_token(input, token);
        let of_token = out.get_mut(token..).unwrap_or(&mut []);
        let outs = of_token.iter_mut().step_by(input.tokens);
        for ((row, table), out) in (0..planes.rows).zip(tables.chunks_exact(entries.max(1))).zip(outs) {
            let Table { upper, lower, step, middle } = Table::<P>::new(table);
            let add = |codes, [q, taken]: &[[u8; BLOCK]; 2]| {
                let q = load_bytes(q);
                let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), upper.of(codes), q);
                _mm512_dpbusd_epi32(
                    _mm512_add_epi32(_mm512_slli_epi32::<8>(sums), load_bytes(taken)),
                    lower.of(codes),
                    q,
                )
            };
            let (row, scales) = (reader.row(planes, row), input.scales(token).as_chunks().0);
            // SAFETY: `is_there` has seen that the row is there, with all of its looks.
            let lanes = unsafe {
                products(&reader, row, pieces, scales, add, |[scale]: &[f32; 1]| _mm512_set1_ps(*scale))
            };
            *out += sum(lanes).mul_add(step, middle * all);
        }
    }
    true
}

/// Values of codes of `P` bits, as [`portable::quantise_table`] has them.
struct Table<const P: usize> {
    upper: Bytes<P>,
    lower: Bytes<P>,
    step: f32,
    middle: f32,
}

impl<const P: usize> Table<P> {
    /// Of values that are finite; what comes beyond their end is anything.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn new(values: &[f32]) -> Self {
        let first = _mm512_set1_ps(values.first().copied().unwrap_or_default());
        let vectors = ((1 << P) / 16).max(1);
        let load = |i: usize| {
            let values = values.get(16 * i..).unwrap_or(&[]);
            values.first_chunk().map_or_else(|| load_part_over(first, values), |values| load_floats(values))
        };
        let (mut least, mut most) = (first, first);
        for i in 0..vectors {
            least = _mm512_min_ps(least, load(i));
            most = _mm512_max_ps(most, load(i));
        }
        let (least, most) = (_mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most));
        let portable::Range { middle, step, inverse } = portable::Range::new(least, most);
        let [middles, inverses] = [_mm512_set1_ps(middle), _mm512_set1_ps(inverse)];
        let quantised = |i: usize| {
            let values = _mm512_mul_ps(_mm512_sub_ps(load(i), middles), inverses);
            _mm512_castps_si512(_mm512_add_ps(values, _mm512_set1_ps(portable::NEAREST)))
        };
        // Of pairs of vectors, the lowest bytes of all values, or the second ones.
        let place = |i: usize, byte| (4 * (i % 32) + byte) as u8;
        let lowest = load_bytes(&core::array::from_fn(|i| place(i, 0)));
        let second = load_bytes(&core::array::from_fn(|i| place(i, 1)));
        let (mut upper, mut lower) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
        for i in 0..vectors.div_ceil(4) {
            let [a, b, c, d] =
                four!(k => if 4 * i + k < vectors { quantised(4 * i + k) } else { _mm512_setzero_si512() });
            let join = |bytes| {
                let (first, last) =
                    (_mm512_permutex2var_epi8(a, bytes, b), _mm512_permutex2var_epi8(c, bytes, d));
                _mm512_inserti64x4::<1>(first, _mm512_castsi512_si256(last))
            };
            (lower[i], upper[i]) = (join(lowest), _mm512_xor_si512(join(second), _mm512_set1_epi8(-128)));
        }
        Self { upper: Bytes::new(upper), lower: Bytes::new(lower), step, middle }
    }
}

/// `over`, whose first values are those of `values`, of which at most 16 count.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_part_over(over: __m512, values: &[f32]) -> __m512 {
    let mask = ((1u32 << values.len().min(16)) - 1) as u16;
    // SAFETY: only values whose bit is set are read, which `values` has.
    unsafe { _mm512_mask_loadu_ps(over, mask, values.as_ptr()) }
}

/// Bytes of codes of `P` bits.
#[derive(Clone, Copy)]
struct Bytes<const P: usize>([__m512i; 4]);

impl<const P: usize> Bytes<P> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(of: [__m512i; 4]) -> Self {
        if P > 4 {
            return Self(of);
        }
        Self([_mm512_shuffle_i32x4::<0>(of[0], of[0]); 4])
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn of(&self, codes: __m512i) -> __m512i {
        let [a, b, c, d] = self.0;
        match P {
            ..=4 => _mm512_shuffle_epi8(a, codes),
            5 | 6 => _mm512_permutexvar_epi8(codes, a),
            7 => _mm512_permutex2var_epi8(a, codes, b),
            _ => {
                let first = _mm512_permutex2var_epi8(a, codes, b);
                let second = _mm512_permutex2var_epi8(c, codes, d);
                _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), first, second)
            }
        }
    }
}

/// The products of a row with a token: sums of integers, each block of which counts by its scales.
///
/// # Safety
/// The row is there, and has as many looks as there are pairs of pieces.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,gfni")]
unsafe fn products<const P: usize, Q, S>(
    reader: &Reader<P>,
    row: Row<P>,
    pieces: &[Q],
    scales: &[S],
    add: impl Fn(__m512i, &Q) -> __m512i,
    spread: impl Fn(&S) -> __m512,
) -> __m512 {
    let mut lanes = [_mm512_setzero_ps(); 2];
    let (pairs, last) = pieces.as_chunks::<2>();
    let (pairs_of_scales, last_scale) = scales.as_chunks::<2>();
    for (i, ([q, r], [first, second])) in pairs.iter().zip(pairs_of_scales).enumerate() {
        // SAFETY: as the caller says.
        let [a, b] = unsafe { reader.codes(row, i) };
        lanes[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(add(a, q)), spread(first), lanes[0]);
        lanes[1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(add(b, r)), spread(second), lanes[1]);
    }
    if let ([q], [scale]) = (last, last_scale) {
        // SAFETY: as the caller says.
        let [a, _] = unsafe { reader.codes(row, pairs.len()) };
        lanes[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(add(a, q)), spread(scale), lanes[0]);
    }
    _mm512_add_ps(lanes[0], lanes[1])
}

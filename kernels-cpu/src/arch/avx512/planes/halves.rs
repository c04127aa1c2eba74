//! Codes in bit planes that name f16 values of a table for each row, exactly: one lookup gives the lower bytes of
//! 64 values, one the upper bytes, and bytes side by side are f16.

use super::*;
use crate::operands::HalfTables;

/// A table of a row, for codes of `P` bits.
#[derive(Clone, Copy)]
struct Table<const P: usize> {
    upper: Bytes<P>,
    lower: Bytes<P>,
}

impl<const P: usize> Table<P> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn new(values: &[u8]) -> Self {
        let part = |i: usize| load_some(values.get(64 * i..).unwrap_or(&[]), 64);
        let lowest = load_bytes(&core::array::from_fn(|i| (2 * i) as u8));
        let second = load_bytes(&core::array::from_fn(|i| (2 * i + 1) as u8));
        let (mut upper, mut lower) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
        for i in 0..(1 << P >> 6).max(1) {
            let (a, b) = (part(2 * i), if P < 6 { _mm512_setzero_si512() } else { part(2 * i + 1) });
            lower[i] = _mm512_permutex2var_epi8(a, lowest, b);
            upper[i] = _mm512_permutex2var_epi8(a, second, b);
        }
        Self { upper: Bytes::new(upper), lower: Bytes::new(lower) }
    }

    /// The values of a block, whose codes are in the order of [`Reader::by_halves`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,f16c")]
    fn values(&self, codes: __m512i) -> [__m512; GRANULES] {
        let (lower, upper) = (self.lower.of(codes), self.upper.of(codes));
        let (first, last) = (_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper));
        [
            _mm512_cvtph_ps(_mm512_castsi512_si256(first)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(first)),
            _mm512_cvtph_ps(_mm512_castsi512_si256(last)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(last)),
        ]
    }
}

/// Exact products. Gives whether they were made.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,gfni")]
pub(in crate::arch) fn planes_halves(
    planes: &Planes<'_>,
    tables: &HalfTables<'_>,
    input: &Input<'_>,
    out: &mut [f32],
) -> bool {
    is_there(planes) && by_planes!(planes.count, products_of(planes, tables, input, out))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,gfni")]
fn products_of<const P: usize>(
    planes: &Planes<'_>,
    tables: &HalfTables<'_>,
    input: &Input<'_>,
    out: &mut [f32],
) -> bool {
    let reader = Reader::<P>::by_halves(planes);
    let mut row = 0;
    while row < planes.rows {
        let out = out.get_mut(row * input.tokens..).unwrap_or(&mut []);
        row += match planes.rows - row {
            4.. if P <= 6 => tile::<P, 4>(&reader, planes, tables, row, input, out),
            2.. => tile::<P, 2>(&reader, planes, tables, row, input, out),
            _ => tile::<P, 1>(&reader, planes, tables, row, input, out),
        };
    }
    true
}

/// Some rows by all tokens; gives how many rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,gfni")]
fn tile<const P: usize, const R: usize>(
    reader: &Reader<P>,
    planes: &Planes<'_>,
    tables: &HalfTables<'_>,
    first: usize,
    input: &Input<'_>,
    out: &mut [f32],
) -> usize {
    let rows: [Row<P>; R] = core::array::from_fn(|r| reader.row(planes, first + r));
    let tables: [Table<P>; R] = core::array::from_fn(|r| Table::new(tables.row(first + r)));
    for token in 0..input.tokens {
        let x = input.values(token);
        let mut lanes = [_mm512_setzero_ps(); R];
        for (i, x) in x.chunks(2).enumerate().take(planes.blocks.div_ceil(2)) {
            for r in 0..R {
                // SAFETY: `is_there` has seen that the row is there, and has as many looks.
                let codes = unsafe { reader.codes(rows[r], i) };
                for (codes, x) in codes.into_iter().zip(x) {
                    let values = tables[r].values(codes);
                    for (value, x) in values.into_iter().zip(x.as_chunks().0) {
                        lanes[r] = _mm512_fmadd_ps(value, load_floats(x), lanes[r]);
                    }
                }
            }
        }
        for (lanes, out) in lanes.into_iter().zip(out.iter_mut().skip(token).step_by(input.tokens)) {
            *out += sum(lanes);
        }
    }
    R
}

/// Rows of `cols` values. Gives whether they were made.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,gfni")]
pub(in crate::arch) fn planes_decode(
    planes: &Planes<'_>,
    tables: &HalfTables<'_>,
    cols: usize,
    out: &mut [f32],
) -> bool {
    is_there(planes) && by_planes!(planes.count, decode_of(planes, tables, cols, out))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,gfni")]
fn decode_of<const P: usize>(
    planes: &Planes<'_>,
    tables: &HalfTables<'_>,
    cols: usize,
    out: &mut [f32],
) -> bool {
    let reader = Reader::<P>::by_halves(planes);
    for (row, out) in (0..planes.rows).zip(out.chunks_exact_mut(cols.max(1))) {
        let table = Table::<P>::new(tables.row(row));
        let row = reader.row(planes, row);
        for (i, out) in out.chunks_mut(2 * BLOCK).enumerate().take(planes.blocks.div_ceil(2)) {
            // SAFETY: `is_there` has seen that the row is there, and has as many looks.
            let codes = unsafe { reader.codes(row, i) };
            for (codes, out) in codes.into_iter().zip(out.chunks_mut(BLOCK)) {
                for (values, out) in table.values(codes).into_iter().zip(out.chunks_mut(GRANULE)) {
                    match out.first_chunk_mut() {
                        Some(out) => store_floats(values, out),
                        None => store_part(values, out),
                    }
                }
            }
        }
    }
    true
}

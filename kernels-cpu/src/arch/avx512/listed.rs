//! Values at listed places.

use super::memory::*;
use super::{F16, F32, load_elements};
use crate::operands::{Entries, Input, Listed};
use core::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(in super::super) fn listed(rows: &Listed<'_>, input: &Input<'_>, out: &mut [f32]) -> usize {
    match rows.entries {
        Entries::Decoded { columns, values } => {
            listed_of::<F32>(rows, bytemuck::cast_slice(columns), bytemuck::cast_slice(values), input, out)
        }
        Entries::Stored { columns, values } => {
            listed_of::<F16>(rows, columns.as_flattened(), values.as_flattened(), input, out)
        }
    }
}

/// Rows whose columns take as many bytes as their values, of type `KIND`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn listed_of<const KIND: u8>(
    rows: &Listed<'_>,
    columns: &[u8],
    values: &[u8],
    input: &Input<'_>,
    out: &mut [f32],
) -> usize {
    let cols = rows.cols.min(input.values(0).as_flattened().len());
    // Columns are compared as 32 bits.
    let last = cols.checked_sub(1).and_then(|last| u32::try_from(last).ok());
    let Some(last) = last.map(|last| _mm512_set1_epi32(last as i32)) else { return 0 };
    for (row, out) in out.chunks_exact_mut(input.tokens.max(1)).enumerate() {
        let own = rows.row(row);
        let start = own.start * if KIND == F32 { 4 } else { 2 };
        let (Some(columns), Some(values)) = (columns.get(start..), values.get(start..)) else { return row };
        for (token, out) in out.iter_mut().enumerate() {
            let x = input.values(token).as_flattened();
            match listed_row::<KIND>(x, columns, values, own.len(), last) {
                Some(sum) => *out += sum,
                None => return row,
            }
        }
    }
    out.len().checked_div(input.tokens).unwrap_or(0)
}

/// The sum of the products of `count` listed values; `None` where columns do not ascend or are above `last`,
/// an index of `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn listed_row<const KIND: u8>(
    x: &[f32],
    mut columns: &[u8],
    mut values: &[u8],
    mut count: usize,
    last: __m512i,
) -> Option<f32> {
    let bytes = if KIND == F32 { 4 } else { 2 };
    let mut lanes = _mm512_setzero_ps();
    while count > 0 {
        let (these, next) = (load_columns::<KIND>(columns), load_columns::<KIND>(columns.get(bytes..)?));
        // Entries of the row, and those of them that have one behind them.
        let own = if count > 16 { 0x1FFFF } else { (1u32 << count) - 1 };
        let ascend = _mm512_cmplt_epu32_mask(these, next) | !(own >> 1) as u16;
        if _mm512_cmple_epu32_mask(these, last) & ascend != u16::MAX {
            return None;
        }
        // Loaded one by one, and by way of memory: the instruction that gathers is slower.
        // SAFETY: all columns have just been seen to be at most `last`, which is below the number of values.
        let one = |column: u32| unsafe { *x.get_unchecked(column as usize) };
        let four = |[a, b, c, d]: [u32; 4]| _mm_set_ps(one(d), one(c), one(b), one(a));
        let [a, b, c, d] = match core::hint::black_box(columns).first_chunk::<32>() {
            Some(columns) if KIND == F16 => {
                let [a, b, c, d] = columns.as_chunks::<8>().0 else { return None };
                [a, b, c, d].map(|eight| match eight.as_chunks::<2>().0 {
                    [a, b, c, d] => four([*a, *b, *c, *d].map(|column| u16::from_le_bytes(column).into())),
                    _ => _mm_setzero_ps(),
                })
            }
            _ => {
                let mut indices = [0; 16];
                store_words(these, &mut indices);
                let [a, b, c, d] = core::hint::black_box(&indices).as_chunks::<4>().0 else { return None };
                [four(*a), four(*b), four(*c), four(*d)]
            }
        };
        let lower = _mm512_castps256_ps512(_mm256_set_m128(b, a));
        let upper = _mm256_castps_pd(_mm256_set_m128(d, c));
        let x = _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castps_pd(lower), upper));
        lanes = _mm512_mask3_fmadd_ps(load_elements::<KIND>(values), x, lanes, own as u16);
        columns = columns.get(16 * bytes..).unwrap_or(&[]);
        values = values.get(16 * bytes..).unwrap_or(&[]);
        count = count.saturating_sub(16);
    }
    Some(sum(lanes))
}

/// The first 16 columns, or as many as there are, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_columns<const KIND: u8>(columns: &[u8]) -> __m512i {
    if KIND == F32 {
        return load_some(columns, 64);
    }
    let halves = match columns.first_chunk() {
        Some(columns) => load_32(columns),
        None => _mm512_castsi512_si256(load_part(columns, 32)),
    };
    _mm512_cvtepu16_epi32(halves)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,popcnt")]
pub(in super::super) fn expand(bits: &[u32], values: &[f32], out: &mut [f32]) {
    let mut rest = values;
    for (word, out) in bits.iter().zip(out.chunks_mut(32)) {
        let mut word = *word;
        for out in out.chunks_mut(16) {
            let some = match rest.first_chunk() {
                Some(values) => load_floats(values),
                None => _mm512_castsi512_ps(load_part(bytemuck::cast_slice(rest), 64)),
            };
            let values = _mm512_maskz_expand_ps(word as u16, some);
            match out.first_chunk_mut() {
                Some(out) => store_floats(values, out),
                None => store_part(values, out),
            }
            rest = rest.get((word as u16).count_ones() as usize..).unwrap_or(&[]);
            word >>= 16;
        }
    }
}

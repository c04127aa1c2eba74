//! Signs with magnitudes of low rank.

use super::memory::*;
use crate::operands::{BLOCK, GRANULE, LANES, SIDE, SignTables, Signed};
use core::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(in super::super) fn signed(rows: &Signed<'_>, cols: usize, stride: usize, out: &mut [f32]) {
    let rank = rows.rank.max(1);
    for block in 0..rows.blocks {
        let (b, start) = (rows.b(block), block * BLOCK);
        let sides = rows.a.chunks_exact(rank).zip(out.chunks_mut((SIDE * stride).max(1)));
        for (row, (a, out)) in (0..rows.rows).step_by(SIDE).zip(sides) {
            let sums = magnitudes(a, b);
            for (r, (sums, out)) in sums.into_iter().zip(out.chunks_mut(stride.max(1))).enumerate() {
                let negative = !rows.signs(row + r, block);
                let out = out.get_mut(start..cols.min(start + BLOCK)).unwrap_or(&mut []);
                for (i, (sums, out)) in sums.into_iter().zip(out.chunks_mut(GRANULE)).enumerate() {
                    let bits = _mm512_castps_si512(sums);
                    let sign = _mm512_set1_epi32(i32::MIN);
                    let mask = (negative >> (i * GRANULE)) as u16;
                    let values = _mm512_castsi512_ps(_mm512_mask_xor_epi32(bits, mask, bits, sign));
                    match out.first_chunk_mut() {
                        Some(out) => store_floats(values, out),
                        None => store_part(values, out),
                    }
                }
            }
        }
    }
}

/// The magnitudes of a block of four rows: products and sums are rounded one after the other.
#[inline]
#[target_feature(enable = "avx512f")]
fn magnitudes(a: &[[f32; SIDE]], b: &[[f32; BLOCK]]) -> [[__m512; 4]; SIDE] {
    let mut sums = [[_mm512_setzero_ps(); 4]; SIDE];
    for (a, b) in a.iter().zip(b) {
        let [b0, b1, b2, b3] = b.as_chunks::<GRANULE>().0 else { continue };
        let b = [load_floats(b0), load_floats(b1), load_floats(b2), load_floats(b3)];
        for r in 0..SIDE {
            let a = _mm512_set1_ps(a[r]);
            for i in 0..4 {
                sums[r][i] = _mm512_add_ps(sums[r][i], _mm512_mul_ps(a, b[i]));
            }
        }
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(in super::super) fn fill_tables(columns: &[[f32; LANES]; BLOCK], tables: &mut SignTables) {
    for (table, columns) in tables.iter_mut().zip(columns.as_chunks::<4>().0) {
        let columns = four!(i => load_floats(&columns[i]));
        let [a, b, c, d] = columns;
        let all = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
        let twice = four!(i => _mm512_add_ps(columns[i], columns[i]));
        let mut entries = [_mm512_sub_ps(_mm512_setzero_ps(), all); 16];
        for bit in 0..4 {
            for i in 0..1 << bit {
                entries[i | 1 << bit] = _mm512_add_ps(entries[i], twice[bit]);
            }
        }
        table.iter_mut().zip(entries).for_each(|(out, entry)| store_floats(entry, out));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(in super::super) fn sum_signs(signs: &[u64], tables: &SignTables, sums: &mut [[f32; LANES]]) {
    for (signs, sums) in signs.iter().zip(sums) {
        let mut lanes = [load_floats(sums), _mm512_setzero_ps()];
        for (i, table) in tables.iter().enumerate() {
            // An entry has 64 bytes.
            let at = if i < 2 { signs << (6 - 4 * i) } else { signs >> (4 * i - 6) } & 0x3C0;
            // SAFETY: the entry begins at a multiple of 64 of the table's 1024 bytes.
            let entry = unsafe { _mm512_loadu_ps(table.as_ptr().cast::<f32>().byte_add(at as usize)) };
            lanes[i % 2] = _mm512_add_ps(lanes[i % 2], entry);
        }
        store_floats(_mm512_add_ps(lanes[0], lanes[1]), sums);
    }
}

//! Portable kernels of signs with magnitudes of low rank.

use crate::operands::{BLOCK, GRANULE, LANES, SIDE, SignTables, Signed};

/// Decodes `cols` columns of rows, `stride` values apart.
#[inline(always)]
pub(crate) fn signed(rows: &Signed<'_>, cols: usize, stride: usize, out: &mut [f32]) {
    for block in 0..rows.blocks {
        let (b, start) = (rows.b(block), block * BLOCK);
        for (row, out) in out.chunks_mut(stride.max(1)).enumerate().take(rows.rows) {
            let a = rows.a.get(row / SIDE * rows.rank..(row / SIDE + 1) * rows.rank).unwrap_or(&[]);
            let signs = rows.signs(row, block);
            let out = out.get_mut(start..cols.min(start + BLOCK)).unwrap_or(&mut []);
            for (i, out) in out.chunks_mut(GRANULE).enumerate() {
                let mut sums = [0.0; GRANULE];
                for (a, b) in a.iter().zip(b) {
                    let (a, Some(b)) = (a[row % SIDE], b.as_chunks::<GRANULE>().0.get(i)) else { continue };
                    sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
                }
                let negative = !(signs >> (i * GRANULE)) as u32;
                for (bit, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                    *out = f32::from_bits(sum.to_bits() ^ (negative >> bit & 1) << 31);
                }
            }
        }
    }
}

/// Values of the rank from `first` on, times `x`, by column.
#[inline(always)]
pub(crate) fn products(rows: &Signed<'_>, first: usize, x: &[[f32; BLOCK]], out: &mut [[f32; LANES]]) {
    for (block, (x, columns)) in x.iter().zip(out.as_chunks_mut::<BLOCK>().0).enumerate() {
        let b = rows.b(block).get(first..).unwrap_or(&[]);
        let b = b.get(..b.len().min(LANES)).unwrap_or(b);
        for (j, (column, x)) in columns.iter_mut().zip(x).enumerate() {
            *column = [0.0; LANES];
            column.iter_mut().zip(b).for_each(|(out, b)| *out = b[j] * x);
        }
    }
}

/// Tables of a block's columns.
#[inline(always)]
pub(crate) fn fill_tables(columns: &[[f32; LANES]; BLOCK], tables: &mut SignTables) {
    for (table, columns) in tables.iter_mut().zip(columns.as_chunks::<4>().0) {
        let mut all = [0.0; LANES];
        columns.iter().for_each(|column| all.iter_mut().zip(column).for_each(|(all, x)| *all -= x));
        table[0] = all;
        for i in 1..16usize {
            let column = &columns[i.trailing_zeros() as usize];
            let mut entry = table[i & (i - 1)];
            entry.iter_mut().zip(column).for_each(|(entry, x)| *entry += 2.0 * x);
            table[i] = entry;
        }
    }
}

/// Adds to the sums of rows what their signs of a block say.
#[inline(always)]
pub(crate) fn sum_signs(signs: &[u64], tables: &SignTables, sums: &mut [[f32; LANES]]) {
    for (signs, sums) in signs.iter().zip(sums) {
        for (i, table) in tables.iter().enumerate() {
            let entry = &table[(signs >> (4 * i)) as usize & 15];
            sums.iter_mut().zip(entry).for_each(|(sum, value)| *sum += value);
        }
    }
}

//! The inner loops: extremes, sums and codes of one group, bit packing of one row.
//!
//! Sums run over [`LANES`] partial sums in a fixed order, so that they vectorise and give the same
//! bits on every machine.

use super::levels::Levels;

/// Partial sums of a loop.
pub(super) const LANES: usize = 8;
/// Elements summed in f32 before the sum goes on in f64.
pub(super) const CHUNK: usize = 16 * LANES;

/// Scale and zero point of a group as the decoder uses them:
/// `value = (level - subtract) * scale + add`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) subtract: f32,
    pub(super) add: f32,
}

impl Affine {
    /// What takes a value to the neighbourhood of its level: `(value - add) * factor + subtract`.
    /// A scale too small to divide by takes everything to the zero point.
    pub(super) fn factor(self) -> f32 {
        let factor = 1.0 / self.scale;
        if factor.is_finite() { factor } else { 0.0 }
    }

    #[inline(always)]
    pub(super) fn value(self, level: f32) -> f32 {
        (level - self.subtract) * self.scale + self.add
    }
}

/// Least and greatest value; `(+inf, -inf)` of nothing.
pub(super) fn extremes(values: &[f32]) -> (f32, f32) {
    let mut low = [f32::INFINITY; LANES];
    let mut high = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for ((low, high), v) in low.iter_mut().zip(&mut high).zip(chunk) {
            *low = if *v < *low { *v } else { *low };
            *high = if *v > *high { *v } else { *high };
        }
    }
    for ((low, high), v) in low.iter_mut().zip(&mut high).zip(rest) {
        *low = low.min(*v);
        *high = high.max(*v);
    }
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// Widens the extremes of each column by a row.
pub(super) fn widen(row: &[f32], least: &mut [f32], greatest: &mut [f32]) {
    for ((least, greatest), v) in least.iter_mut().zip(greatest).zip(row) {
        *least = if *v < *least { *v } else { *least };
        *greatest = if *v > *greatest { *v } else { *greatest };
    }
}

/// Codes of the values of one group.
#[inline(always)]
pub(super) fn codes<L: Levels>(levels: L, affine: Affine, values: &[f32], codes: &mut [u8]) {
    let factor = affine.factor();
    levels.codes(values, |value| (value - affine.add) * factor + affine.subtract, codes);
}

/// Codes of a row whose groups are so narrow that each column brings its own parameters.
pub(super) fn codes_by_column<L: Levels>(levels: L, columns: &Columns, values: &[f32], codes: &mut [u8]) {
    let parameters = columns.add.iter().zip(&columns.factor).zip(&columns.subtract);
    for ((code, value), ((add, factor), subtract)) in codes.iter_mut().zip(values).zip(parameters) {
        *code = levels.code((value - add) * factor + subtract);
    }
}

/// The parameters of each column of a row, for [`codes_by_column`].
#[derive(Debug, Default)]
pub(super) struct Columns {
    add: Vec<f32>,
    factor: Vec<f32>,
    subtract: Vec<f32>,
}

impl Columns {
    pub(super) fn push(&mut self, affine: Affine, count: usize) {
        let to = self.add.len() + count;
        self.add.resize(to, affine.add);
        self.factor.resize(to, affine.factor());
        self.subtract.resize(to, affine.subtract);
    }
}

/// Sum of `term` over two slices of the same length.
#[inline(always)]
pub(super) fn sum_by(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(CHUNK).zip(b.chunks(CHUNK)) {
        let mut lanes = [0f32; LANES];
        let (a_chunks, a_rest) = a.as_chunks::<LANES>();
        let (b_chunks, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for lane in 0..LANES {
                lanes[lane] += term(a[lane], b[lane]);
            }
        }
        for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
            *lane += term(*a, *b);
        }
        total += sum(lanes);
    }
    total
}

fn sum(lanes: [f32; LANES]) -> f64 {
    lanes.into_iter().map(f64::from).sum()
}

/// Packs one row of codes, each below `2^bits`, LSB first (spec: container, 6.2). `packed` is as
/// long as a row's stride and zero.
pub(super) fn pack_row(codes: &[u8], bits: u32, packed: &mut [u8]) {
    let (chunks, rest) = codes.as_chunks::<8>();
    let (whole, tail) = packed.split_at_mut(chunks.len() * bits as usize);
    match bits {
        1 => pack_chunks::<1>(chunks, whole),
        2 => pack_chunks::<2>(chunks, whole),
        3 => pack_chunks::<3>(chunks, whole),
        4 => pack_chunks::<4>(chunks, whole),
        5 => pack_chunks::<5>(chunks, whole),
        6 => pack_chunks::<6>(chunks, whole),
        7 => pack_chunks::<7>(chunks, whole),
        _ => whole.copy_from_slice(chunks.as_flattened()),
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = merge(last, bits).to_le_bytes();
    let used = (rest.len() * bits as usize).div_ceil(8);
    tail[..used].copy_from_slice(&last[..used]);
}

fn pack_chunks<const BITS: usize>(chunks: &[[u8; 8]], packed: &mut [u8]) {
    for (chunk, packed) in chunks.iter().zip(packed.as_chunks_mut::<BITS>().0) {
        packed.copy_from_slice(&merge(*chunk, BITS as u32).to_le_bytes()[..BITS]);
    }
}

/// Closes the gaps between eight codes: between two, then between pairs, then between fours.
#[inline(always)]
fn merge(codes: [u8; 8], bits: u32) -> u64 {
    let ones = |count: u32| u64::MAX >> (64 - count);
    let close = |x: u64, width: u32, slot: u32, repeat: u64| {
        let low = ones(width) * repeat;
        (x & low) | ((x >> (slot - width)) & (low << width))
    };
    let x = u64::from_le_bytes(codes);
    let x = close(x, bits, 8, 0x0001_0001_0001_0001);
    let x = close(x, 2 * bits, 16, 0x0000_0001_0000_0001);
    close(x, 4 * bits, 32, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cmf_format::bits;

    #[test]
    fn packs_as_the_format_does() -> cmf_format::Result<()> {
        for width in 1..=8u32 {
            for cols in [1usize, 7, 8, 9, 31, 32, 33, 100] {
                let codes: Vec<u8> =
                    (0..cols).map(|i| ((i * 251 + i / 3) as u32 & ((1 << width) - 1)) as u8).collect();
                let wide: Vec<u16> = codes.iter().map(|c| u16::from(*c)).collect();
                let expected = bits::pack_rows(&wide, cols, width)?;
                let mut packed = vec![0; expected.len()];
                pack_row(&codes, width, &mut packed);
                assert_eq!(packed, expected, "{width} bits, {cols} columns");
            }
        }
        Ok(())
    }

    #[test]
    fn finds_extremes_in_every_lane_and_tail() {
        for length in 1..40 {
            for at in 0..length {
                let mut values = vec![0.5f32; length];
                values[at] = -2.0;
                assert_eq!(extremes(&values).0, -2.0);
                values[at] = 3.0;
                assert_eq!(extremes(&values).1, 3.0);
            }
        }
    }
}

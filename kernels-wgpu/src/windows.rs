//! Tables of what windows that follow each other mean: one look gives the values of several rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Most bits that windows together may have: a uniform buffer of any WebGPU device holds 4 bytes for each
/// of what they can be.
const BITS_MAX: i64 = 14;
/// Most rows of an entry: a signed byte each.
const ROWS_MAX: i64 = 4;
/// The highest byte of an entry.
const HIGHEST: i64 = 3;

/// How many rows an entry has, for a table of signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Together {
    /// 2 to 4.
    pub(crate) rows: i64,
    /// Bits of their windows, each of which begins where the one before began and a step on.
    pub(crate) bits: i64,
    step_bits: i64,
}

impl Together {
    /// `None` for values that are no signed bytes, and for windows that are too long for two.
    pub(crate) fn of(state_bits: i64, step_bits: i64, values: &[f32]) -> Option<Self> {
        let is_byte = |v: &f32| f32::from(*v as i8).to_bits() == v.to_bits();
        let rows = (1 + (BITS_MAX - state_bits).max(0) / step_bits.max(1)).min(ROWS_MAX);
        let bits = state_bits + (rows - 1) * step_bits;
        (rows > 1 && values.len() == 1 << state_bits && values.iter().all(is_byte)).then_some(Self {
            rows,
            bits,
            step_bits,
        })
    }

    /// The highest byte of an entry is the value of the last row, the lowest ones are those of the rows before:
    /// what is in the highest and the lowest byte is had with one operation.
    pub(crate) fn table(self, values: &[f32]) -> Vec<u8> {
        let mask = values.len().saturating_sub(1);
        let byte = |windows: usize, place: i64| {
            let row = match place {
                HIGHEST => Some(self.rows - 1),
                _ => (place < self.rows - 1).then_some(place),
            };
            let value = row.and_then(|row| values.get(windows >> (row * self.step_bits) & mask));
            value.map_or(0, |v| (*v as i8) as u8)
        };
        (0..1usize << self.bits)
            .flat_map(|windows| (0..=HIGHEST).map(move |place| byte(windows, place)))
            .collect()
    }
}

/// Bits of a window that come last, and number the values of a hashed table.
const NEWEST: usize = 6;
/// Threads of a subgroup that have the values of a hashed table.
pub(crate) const HASHED_THREADS: usize = 8;
/// Steps of a window before its newest bits: a byte of a word each.
const OLDER_STEPS: core::ops::RangeInclusive<usize> = 1..=4;

/// How many of a window's older bits are mapped at a time: three, where those belong to four rows at most, else a
/// step's.
pub(crate) fn mapped_bits(state_bits: usize, step_bits: usize) -> usize {
    if step_bits == 2 && state_bits <= 2 * NEWEST { 3 } else { step_bits }
}

/// What the threads of a subgroup have of a hashed table: one whose value by a window is `t[newest 6 bits ^
/// M(older bits)]`, with 64 signed bytes `t` and a map `M` that is linear over bits. `None` for other tables, and
/// for windows that are no whole number of steps.
///
/// Four words a thread: values `i`, `i + 8`, `i + 16` and `i + 24` of thread `i` from the highest byte of the
/// first on, the next four in the second, each rotated by `i` bits to the right, so that a rotation to the left by
/// the index of a value brings it to the highest byte. In the third what `M` makes of the bits `i`, as many as
/// [`mapped_bits`], a byte for each row that they are older bits of, the lowest for the first: of its last step,
/// or, of three bits, from its fifth on in the third word and its sixth in the fourth.
pub(crate) fn hashed(state_bits: usize, step_bits: usize, values: &[f32]) -> Option<Vec<u8>> {
    let older = state_bits.checked_sub(NEWEST)?;
    let whole = (1..=2).contains(&step_bits) && older.is_multiple_of(step_bits);
    if !whole || !OLDER_STEPS.contains(&(older / step_bits)) || values.len() != 1 << state_bits {
        return None;
    }
    let by_index: Vec<f32> = values.iter().step_by(1 << older).copied().collect();
    if by_index.iter().any(|v| f32::from(*v as i8).to_bits() != v.to_bits()) {
        return None;
    }
    // What each older bit adds to the index.
    let mut added = Vec::new();
    for bit in 0..older {
        let changed: Vec<f32> = values.get(1 << bit..)?.iter().step_by(1 << older).copied().collect();
        let adds = |more: &usize| changed.iter().enumerate().all(|(i, v)| by_index.get(i ^ more) == Some(v));
        added.push((0..by_index.len()).find(adds)?);
    }
    let map = |bits: usize| {
        added.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1).fold(0, |all, (_, more)| all ^ more)
    };
    let is_value = |(window, v): (usize, &f32)| by_index.get(window >> older ^ map(window)) == Some(v);
    if !values.iter().enumerate().all(is_value) {
        return None;
    }
    let value = |index: usize| by_index.get(index).map_or(0, |v| u32::from((*v as i8) as u8));
    let packed = |from: usize, thread: usize| {
        let bytes = (0..4).map(|j| value(from + 8 * j) << (24 - 8 * j)).sum::<u32>();
        bytes.rotate_right(thread as u32)
    };
    // What the bits `few` add to four rows, a byte each, the older bits of the first of which they are from bit
    // `first` on, a step less of the next.
    let of_rows = |few: usize, first: isize| {
        let row = |j: usize| {
            let bits = (0..HASHED_THREADS.ilog2() as usize).filter(|bit| few >> bit & 1 == 1);
            let places = bits.map(|bit| first + bit as isize - (j * step_bits) as isize);
            places.filter_map(|place| added.get(usize::try_from(place).ok()?)).fold(0, |all, more| all ^ more)
        };
        (0..4).map(|j| (row(j) as u32) << (8 * j)).sum::<u32>()
    };
    let threads = (0..HASHED_THREADS).flat_map(|i| {
        let maps = match mapped_bits(state_bits, step_bits) {
            // Windows that are shorter than 12 bits have others before them, which add nothing.
            3 => [4, 5].map(|first| of_rows(i, first - (NEWEST - older) as isize)),
            _ if i < 1 << step_bits => [of_rows(i, (older - step_bits) as isize), 0],
            _ => [0, 0],
        };
        [packed(i, i), packed(i + 32, i), maps[0], maps[1]]
    });
    Some(threads.flat_map(u32::to_le_bytes).collect())
}

/// What a table is made of.
type Key = (Option<Together>, Vec<u8>);

/// Buffers with tables that units share, as long as one of them is there.
#[derive(Debug, Default)]
pub(crate) struct Tables(Mutex<HashMap<Key, Weak<wgpu::Buffer>>>);

impl Tables {
    /// The buffer of the table of `values`, which `make` makes: f32 values as bytes, or the table itself.
    pub(crate) fn get<E>(
        &self,
        together: Option<Together>,
        values: &[u8],
        make: impl FnOnce() -> Result<wgpu::Buffer, E>,
    ) -> Result<Arc<wgpu::Buffer>, E> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (together, values.to_vec());
        if let Some(found) = tables.get(&key).and_then(Weak::upgrade) {
            return Ok(found);
        }
        let made = Arc::new(make()?);
        tables.retain(|_, table| table.strong_count() > 0);
        tables.insert(key, Arc::downgrade(&made));
        Ok(made)
    }

    /// Bytes of all that are there.
    pub(crate) fn bytes(&self) -> u64 {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.values().filter_map(Weak::upgrade).map(|table| table.size()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_values_of_rows_that_follow_each_other() {
        for (state_bits, step_bits, rows, bits) in [
            (10, 2, 3, 14),
            (8, 2, 4, 14),
            (12, 2, 2, 14),
            (13, 1, 2, 14),
            (6, 1, 4, 9),
            (10, 4, 2, 14),
            (7, 3, 3, 13),
        ] {
            let values: Vec<f32> = (0..1 << state_bits).map(|w| ((w * 37) % 256 - 128) as f32).collect();
            let together = Together::of(state_bits, step_bits, &values).unwrap();
            assert_eq!((together.rows, together.bits), (rows, bits), "{state_bits} bits, {step_bits} a step");
            let table = together.table(&values);
            assert_eq!(table.len(), 4 << bits);
            for (windows, entry) in table.chunks(4).enumerate() {
                for row in 0..rows as usize {
                    let window = windows >> (row * step_bits as usize) & (values.len() - 1);
                    let byte = entry[if row + 1 == rows as usize { 3 } else { row }];
                    assert_eq!(f32::from(byte as i8), values[window], "windows {windows}, row {row}");
                }
            }
        }
    }

    #[test]
    fn threads_have_what_a_hashed_table_is_made_of() {
        let added = [0b10_1101, 0b01_0010, 0b11_1000, 0b00_0101, 0b11_0011, 0b01_1111, 0b10_0000, 0b00_1001];
        for (state_bits, step_bits) in [(10, 2), (12, 2), (14, 2), (8, 1), (10, 1)] {
            let older = state_bits - 6;
            let index = |w: usize| {
                (0..older).filter(|bit| w >> bit & 1 == 1).fold(w >> older, |i, bit| i ^ added[bit])
            };
            let value = |index: usize| (index as i32 * 4 - 128) as f32;
            let values: Vec<f32> = (0..1usize << state_bits).map(|w| value(index(w))).collect();
            let bytes = hashed(state_bits, step_bits, &values).unwrap();
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
            let found = |window: usize, mapped: u32| {
                let index = (window >> older) as u32 ^ mapped & 63;
                let word = words[(index & 7) as usize * 4 + usize::from(index & 32 != 0)];
                (word.rotate_left(index & 31) as i32 >> 24) as f32
            };
            // Where three bits begin among the older ones of a row, which of both maps they take and its byte.
            let looks: &[&[(isize, usize, usize)]] = &[
                &[(0, 0, 2), (3, 1, 1)],
                &[(-2, 0, 3), (1, 1, 2), (4, 0, 0)],
                &[(-1, 1, 3), (2, 0, 1), (5, 1, 0)],
            ];
            for (window, expected) in values.iter().enumerate() {
                let what = format!("{state_bits}/{step_bits} bits, window {window}");
                if mapped_bits(state_bits, step_bits) == step_bits {
                    let mask = (1 << step_bits) - 1;
                    let steps = older / step_bits;
                    let mapped = (0..steps).fold(0, |all, j| {
                        let step = window >> ((steps - 1 - j) * step_bits) & mask;
                        all ^ words[step * 4 + 2] >> (8 * j)
                    });
                    assert_eq!(found(window, mapped), *expected, "{what}");
                    continue;
                }
                // Bits around those of the window, which mean nothing for it.
                let (before, own) = ((1 << (8 - older)) - 1, window & ((1 << older) - 1));
                let bits = !(63 << 2) | (own << (8 - older)) | before;
                for looks in looks {
                    let mapped = looks.iter().fold(0, |all, (first, map, byte)| {
                        let few = bits >> (first + 2) as usize & 7;
                        all ^ words[few * 4 + 2 + map] >> (8 * byte)
                    });
                    assert_eq!(found(window, mapped), *expected, "{what}");
                }
            }
        }
        let other: Vec<f32> = (0..1024).map(|w| (w * 7 % 251 - 125) as f32).collect();
        assert_eq!(hashed(10, 2, &other), None);
        assert_eq!(hashed(12, 4, &[1.0; 4096]), None);
        assert_eq!(hashed(11, 2, &[1.0; 2048]), None);
    }

    #[test]
    fn other_values_and_long_windows_have_none() {
        assert_eq!(Together::of(6, 2, &[0.5; 64]), None);
        assert_eq!(Together::of(6, 2, &[-0.0; 64]), None);
        assert_eq!(Together::of(13, 2, &vec![1.0; 1 << 13]), None);
        assert_eq!(Together::of(6, 2, &[1.0; 32]), None);
    }
}

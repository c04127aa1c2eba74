//! Tables of what windows that follow each other mean: one look gives the values of several rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Most bits that windows together may have: a uniform buffer of any WebGPU device holds 4 bytes for each
/// of what they can be.
const BITS_MAX: i64 = 14;
/// Most rows of an entry: a signed byte each.
const ROWS_MAX: i64 = 4;

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

    /// Byte `i` of an entry is the value of row `i`.
    pub(crate) fn table(self, values: &[f32]) -> Vec<u8> {
        let mask = values.len().saturating_sub(1);
        let byte = |windows: usize, row: i64| {
            let value =
                if row < self.rows { values.get(windows >> (row * self.step_bits) & mask) } else { None };
            value.map_or(0, |v| (*v as i8) as u8)
        };
        (0..1usize << self.bits)
            .flat_map(|windows| (0..ROWS_MAX).map(move |row| byte(windows, row)))
            .collect()
    }
}

/// What a table is made of.
type Key = (Together, Vec<u8>);

/// Buffers with tables that units share, as long as one of them is there.
#[derive(Debug, Default)]
pub(crate) struct Tables(Mutex<HashMap<Key, Weak<wgpu::Buffer>>>);

impl Tables {
    /// The buffer of the table of `values`, f32 values as bytes, which `make` makes.
    pub(crate) fn get<E>(
        &self,
        together: Together,
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
                for (row, byte) in entry.iter().enumerate().take(rows as usize) {
                    let window = windows >> (row * step_bits as usize) & (values.len() - 1);
                    assert_eq!(f32::from(*byte as i8), values[window], "windows {windows}, row {row}");
                }
            }
        }
    }

    #[test]
    fn other_values_and_long_windows_have_none() {
        assert_eq!(Together::of(6, 2, &[0.5; 64]), None);
        assert_eq!(Together::of(6, 2, &[-0.0; 64]), None);
        assert_eq!(Together::of(13, 2, &vec![1.0; 1 << 13]), None);
        assert_eq!(Together::of(6, 2, &[1.0; 32]), None);
    }
}

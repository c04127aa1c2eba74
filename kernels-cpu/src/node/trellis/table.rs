//! What is known of a table of windows.

use crate::operands::{INDEX_BITS, Kind, Table};

/// Bits of the windows of hashed tables.
const HASHED_BITS: core::ops::RangeInclusive<u32> = 9..=14;
/// Most bits of a window that is not hashed.
const MAX_BITS: u32 = 10;

/// See [`Table`].
#[derive(Debug)]
pub(super) struct Owned {
    window: usize,
    values: Box<[u8]>,
    kind: Kind,
    vectors: Box<[[u8; 64]]>,
}

impl Owned {
    /// `None` for values that are no signed bytes and for windows of more than 10 bits whose table is
    /// not hashed.
    pub(super) fn new(state_bits: u32, values: &[f32]) -> Option<Self> {
        let bytes = values.iter().map(|v| {
            let byte = *v as i8;
            (f32::from(byte).to_bits() == v.to_bits()).then_some((byte as u8).wrapping_add(128))
        });
        let bytes = bytes.collect::<Option<Vec<u8>>>()?;
        if bytes.len() != 1 << state_bits {
            return None;
        }
        if HASHED_BITS.contains(&state_bits)
            && let Some((map, vector)) = hashed(state_bits, &bytes)
        {
            // A window that no kernel takes is the upper bits of one that they do.
            let more = usize::from(state_bits == 11);
            return Some(Self {
                window: state_bits as usize + more,
                values: longer(&bytes, more),
                kind: Kind::Hashed(map.map(|row| row << more)),
                vectors: Box::new([vector]),
            });
        }
        if state_bits > MAX_BITS {
            return None;
        }
        let more = usize::from(state_bits == 9);
        let (window, values) = (state_bits as usize + more, longer(&bytes, more));
        let mut pairs = values.iter().zip(values.iter().rev());
        let is_odd = window >= 8 && pairs.all(|(a, b)| u16::from(*a) + u16::from(*b) == 256);
        let before = window.saturating_sub(8);
        let newest = 1usize << (window - before);
        let kept = if is_odd { newest / 2 } else { newest };
        let mut vectors = vec![[0; 64]; (kept << before).div_ceil(64)];
        let windows = (0..1usize << before).flat_map(|old| (0..kept).map(move |new| new << before | old));
        for (place, window) in vectors.as_flattened_mut().iter_mut().zip(windows) {
            *place = values.get(window).copied()?;
        }
        let kind = if is_odd { Kind::Odd } else { Kind::Any };
        Some(Self { window, values, kind, vectors: vectors.into() })
    }

    pub(super) fn borrow(&self) -> Table<'_> {
        Table { window: self.window, values: &self.values, kind: self.kind, vectors: &self.vectors }
    }
}

/// The same values by windows with `more` older bits, which change nothing.
fn longer(values: &[u8], more: usize) -> Box<[u8]> {
    values.iter().flat_map(|value| core::iter::repeat_n(*value, 1 << more)).collect()
}

/// The map of [`Kind::Hashed`] and the values by the index, if there is one.
fn hashed(state_bits: u32, values: &[u8]) -> Option<([u8; 8], [u8; 64])> {
    let older = (state_bits as usize).checked_sub(INDEX_BITS)?;
    let mut vector = [0; 64];
    for (value, window) in vector.iter_mut().zip(values.iter().step_by(1 << older)) {
        *value = *window;
    }
    // What each older bit adds to the index.
    let mut added = [0usize; 8];
    for (bit, added) in added.iter_mut().enumerate().take(older) {
        let changed = values.get(1 << bit..)?.iter().step_by(1 << older);
        let adds =
            |more: usize| changed.clone().enumerate().all(|(i, value)| vector.get(i ^ more) == Some(value));
        *added = (0..vector.len()).find(|more| adds(*more))?;
    }
    let index = |window: usize| {
        let bits = added.iter().enumerate().filter(|(bit, _)| *bit < older && window >> bit & 1 == 1);
        bits.fold(window >> older, |index, (_, added)| index ^ added)
    };
    let all = values.iter().enumerate().all(|(window, value)| vector.get(index(window)) == Some(value));
    let row = |k: usize| {
        let bits = added.iter().enumerate().filter(|(_, added)| *added >> k & 1 == 1);
        bits.map(|(bit, _)| 1 << bit).sum()
    };
    all.then(|| (core::array::from_fn(|i| row(7 - i)), vector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_map_of_older_bits_is_found() {
        let added = [0b10_1101, 0b01_0010, 0b11_1000, 0b00_0101, 0b11_0011, 0b01_1111, 0b10_0000, 0b00_1001];
        for state_bits in HASHED_BITS {
            let older = state_bits as usize - 6;
            let index = |w: usize| {
                let bits = (0..older).filter(|bit| w >> bit & 1 == 1);
                bits.fold(w >> older, |index, bit| index ^ added[bit])
            };
            let values: Vec<f32> =
                (0..1usize << state_bits).map(|w| (index(w) as i32 * 3 - 90) as f32).collect();
            let table = Owned::new(state_bits, &values).unwrap();
            let Kind::Hashed(map) = table.kind else { panic!("not hashed: {:?}", table.kind) };
            for (w, value) in table.values.iter().enumerate() {
                let field = w as u8 & ((1u16 << (table.window - 6)) - 1) as u8;
                let more: usize = (0..6).map(|k| ((map[7 - k] & field).count_ones() as usize & 1) << k).sum();
                assert_eq!(table.vectors[0][w >> (table.window - 6) ^ more], *value, "window {w}");
            }
        }
    }

    #[test]
    fn table_of_many_values_is_not_hashed() {
        let values = |count: i32| (0..count).map(|w| (w * 7 % 251 - 125) as f32).collect::<Vec<_>>();
        assert_eq!(Owned::new(10, &values(1024)).unwrap().kind, Kind::Any);
        assert!(Owned::new(12, &values(4096)).is_none());
    }
}

//! Values of windows by lookups in registers.
//!
//! A lookup is of 64 entries, by the 6 lowest bits of a byte, or of 128, by 7. The bits of an index are sums
//! without carry of bits of a path, so they come from bytes of the path by linear maps of 8 bits to 8
//! (`vgf2p8affineqb`): one for each byte that a window reaches into. Where the newest byte of a path has at
//! most 6 bits of a window, these need no map: tables are in the order that puts them where they are. Windows of
//! 6 and 7 bits that are indices themselves need none at all.

use core::arch::x86_64::*;

use super::super::*;
use super::strip::Bytes;
use crate::operands::{INDEX_BITS, Kind};

/// Tables of more than 64 values: of windows of 7 bits, of 8, and of 10, with odd tables and others.
pub(super) const SEVEN: u8 = 0;
pub(super) const EIGHT: u8 = 1;
pub(super) const EIGHT_ODD: u8 = 2;
pub(super) const TEN: u8 = 3;
pub(super) const TEN_ODD: u8 = 4;
/// From here on tables of 64 values: the kind is the bits of a window, perhaps one more.
pub(super) const SIX: u8 = 6;

/// Bytes of a path that a window may reach into: the newest one, the one before it, and the next.
const NEWEST: usize = 0;
const BEFORE: usize = 1;
const FAR: usize = 2;

/// Looks up the windows of the `SETS` rows of a byte.
pub(super) struct Lookup<const KIND: u8, const SETS: usize> {
    /// Of each row the 64 or 128 values; for other kinds see [`crate::operands::Table::vectors`].
    tables: [__m512i; 16],
    /// Of each row the linear maps of the newest byte, of the one before and of the next to the index.
    maps: [[__m512i; 3]; SETS],
}

impl<const KIND: u8, const SETS: usize> Lookup<KIND, SETS> {
    /// Bits of a weight.
    const STEP: usize = 8 / SETS;
    /// Bits of the index of a table that is put in order, see [`Lookup::ORDERS`].
    const WIDTH: usize = if KIND == SEVEN { 7 } else { INDEX_BITS };

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) fn new(words: &Words<'_>) -> Self {
        let (window, kind) = (words.table.window, words.table.kind);
        let width = if KIND < SIX { window.min(8) } else { INDEX_BITS };
        let mut maps = [[0u64; 3]; SETS];
        for k in 0..width {
            // The bits of a window that bit `k` of the index is the sum of.
            let newest = 1u32 << (window - width + k);
            let sum = match kind {
                Kind::Hashed(map) => newest | u32::from(map[7 - k]),
                Kind::Odd if k < 7 => newest | 1 << (window - 1),
                _ => newest,
            };
            for (set, maps) in maps.iter_mut().enumerate() {
                let bits = Self::bits(set);
                let [far, before, newest, _] = if KIND < SIX {
                    // Of the 8 newest bits, turned.
                    [0, 0, ((sum << 8 >> window) as u8).rotate_left(bits as u32), 0]
                } else {
                    ((u64::from(sum) << (16 + bits) >> window) as u32).to_le_bytes()
                };
                for (map, sum) in maps.iter_mut().zip([newest, before, far]) {
                    *map |= u64::from(sum) << (8 * (7 - Self::place(set, k)));
                }
            }
        }
        let mut tables = [_mm512_setzero_si512(); 16];
        for (entries, bytes) in tables.iter_mut().zip(words.table.vectors) {
            *entries = load_bytes(bytes);
        }
        if KIND >= SIX || KIND == SEVEN {
            let [low, high, ..] = tables;
            let orders = Self::ORDERS.iter().flat_map(|order| &order[..Self::WIDTH - INDEX_BITS + 1]);
            for (entries, order) in tables.iter_mut().zip(orders) {
                *entries = _mm512_permutex2var_epi8(low, load_bytes(order), high);
            }
        }
        let maps = maps.map(|maps| maps.map(|map| _mm512_set1_epi64(map.cast_signed())));
        Self { tables, maps }
    }

    /// Where bit `k` of an index comes to lie for row `set`.
    #[inline(always)]
    const fn place(set: usize, k: usize) -> usize {
        if Self::stays(set) { (k + Self::bits(set)) % Self::WIDTH } else { k }
    }

    /// Of each row the entries of a table of 64 or 128 values in the order of its indices.
    const ORDERS: [[[u8; 64]; 2]; SETS] = {
        let mut orders = [[[0; 64]; 2]; SETS];
        let mut i = 0;
        while i < SETS * 128 * Self::WIDTH {
            let (set, entry, k) = (i / Self::WIDTH / 128, i / Self::WIDTH % 128, i % Self::WIDTH);
            orders[set][entry / 64][entry % 64] |= ((entry >> Self::place(set, k) & 1) << k) as u8;
            i += 1;
        }
        orders
    };

    /// Bits that the newest byte has of the windows of row `set`.
    #[inline(always)]
    const fn bits(set: usize) -> usize {
        Self::STEP * (set + 1)
    }

    /// Whether these stay where they are in the index.
    #[inline(always)]
    const fn stays(set: usize) -> bool {
        (KIND >= SIX || KIND == SEVEN) && Self::bits(set) <= Self::WIDTH
    }

    /// The values of the rows of each byte.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    pub(super) fn values(&self, bytes: Bytes<'_>) -> [__m512i; SETS] {
        let mut values = [_mm512_setzero_si512(); SETS];
        for (set, values) in values.iter_mut().enumerate() {
            *values = self.row(bytes, set);
        }
        values
    }

    /// The values of row `set` of each byte.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    pub(super) fn row(&self, bytes: Bytes<'_>, set: usize) -> __m512i {
        match KIND {
            SEVEN => self.pair(set, Self::path(bytes, set)),
            SIX => _mm512_permutexvar_epi8(Self::path(bytes, set), self.tables[set]),
            EIGHT..SIX => self.whole(bytes, set),
            _ => _mm512_permutexvar_epi8(self.hashed(bytes, set), self.tables[set]),
        }
    }

    /// The windows of 6 or 7 bits of row `set`, below other bits: what they have of the byte before lies at the same
    /// place for all rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn path(bytes: Bytes<'_>, set: usize) -> __m512i {
        let bits = Self::bits(set);
        match bits.checked_sub(Self::WIDTH) {
            None => {
                let own = _mm512_set1_epi8((u8::MAX >> (8 - bits)) as i8);
                let before = match KIND {
                    SEVEN => _mm512_srli_epi16::<1>(bytes.before()),
                    _ => _mm512_srli_epi16::<2>(bytes.before()),
                };
                select(own, bytes.newest(), before)
            }
            Some(0) => bytes.newest(),
            Some(1) => _mm512_srli_epi16::<1>(bytes.newest()),
            Some(_) => _mm512_srli_epi16::<2>(bytes.newest()),
        }
    }

    /// The values of row `set` by the 8 newest bits of a window, and by older ones.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    fn whole(&self, bytes: Bytes<'_>, set: usize) -> __m512i {
        let bits = Self::bits(set);
        // The 8 newest bits, turned by as many as are in the newest byte.
        let own = _mm512_set1_epi8((u8::MAX >> (8 - bits)) as i8);
        let turned = if bits == 8 { bytes.newest() } else { select(own, bytes.newest(), bytes.before()) };
        let index = _mm512_gf2p8affine_epi64_epi8::<0>(turned, self.maps[set][NEWEST]);
        let upper = _mm512_movepi8_mask(index);
        match KIND {
            EIGHT => _mm512_mask_blend_epi8(upper, self.pair(0, index), self.pair(1, index)),
            EIGHT_ODD => negate(upper, self.pair(0, index)),
            TEN_ODD => {
                negate(upper, self.four(0, 1, index, [10, 9].map(|back| older(bytes, bits, back) ^ upper)))
            }
            _ => {
                let older = [10, 9].map(|back| older(bytes, bits, back));
                _mm512_mask_blend_epi8(upper, self.four(0, 2, index, older), self.four(1, 2, index, older))
            }
        }
    }

    /// Of four pairs `by` apart the one that the two masks tell, the lower bit first.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn four(&self, at: usize, by: usize, index: __m512i, [first, second]: [u64; 2]) -> __m512i {
        let [a, b] = [self.pair(at, index), self.pair(at + by, index)];
        let [c, d] = [self.pair(at + 2 * by, index), self.pair(at + 3 * by, index)];
        let (low, high) = (_mm512_mask_blend_epi8(first, a, b), _mm512_mask_blend_epi8(first, c, d));
        _mm512_mask_blend_epi8(second, low, high)
    }

    /// The index of row `set` in a table of 64 values, below other bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    fn hashed(&self, bytes: Bytes<'_>, set: usize) -> __m512i {
        let (bits, window) = (Self::bits(set), usize::from(KIND));
        let maps = &self.maps[set];
        let mut index = bytes.newest();
        if !Self::stays(set) {
            index = _mm512_gf2p8affine_epi64_epi8::<0>(index, maps[NEWEST]);
        }
        if Self::stays(set) && bits < INDEX_BITS {
            index = _mm512_and_si512(index, _mm512_set1_epi8((u8::MAX >> (8 - bits)) as i8));
        }
        if window > bits {
            index = _mm512_xor_si512(index, _mm512_gf2p8affine_epi64_epi8::<0>(bytes.before(), maps[BEFORE]));
        }
        if window > bits + 8 {
            index = _mm512_xor_si512(index, _mm512_gf2p8affine_epi64_epi8::<0>(bytes.far(), maps[FAR]));
        }
        index
    }

    /// Entries of 128 by the lower 7 bits of each byte.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn pair(&self, pair: usize, index: __m512i) -> __m512i {
        _mm512_permutex2var_epi8(self.tables[2 * pair], index, self.tables[2 * pair + 1])
    }
}

/// Which windows have the bit set that is the `back`th from their newest one back, where the newest byte has
/// `bits` of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn older(bytes: Bytes<'_>, bits: usize, back: usize) -> u64 {
    let source = if back > bits + 8 { bytes.far() } else { bytes.before() };
    _mm512_test_epi8_mask(source, _mm512_set1_epi8((1u8 << ((bits + 16 - back) % 8)) as i8))
}

/// The bits of `first` where `mask` has ones, else those of `second`.
#[inline]
#[target_feature(enable = "avx512f")]
fn select(mask: __m512i, first: __m512i, second: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0b1100_1010>(mask, first, second)
}

/// The bytes in `mask` negated.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn negate(mask: u64, bytes: __m512i) -> __m512i {
    _mm512_mask_sub_epi8(bytes, mask, _mm512_setzero_si512(), bytes)
}

//! The values that codes stand for before scale and zero point, and rounding to them.

use super::params::{Codes, GroupedParams, Range, Zero};
use crate::error::{Error, Result};
use cmf_format::encoding::grouped::{CodeMap, Minifloat, Special};
use fearless_simd::f32x8;
use fearless_simd::prelude::*;

/// Rounding to the nearest of a set of levels. Each method is branch-free where it can be, so that
/// loops over it vectorise.
pub(super) trait Levels: Copy + Sync {
    /// The level nearest to `x`.
    fn level(self, x: f32) -> f32;
    /// The code of the level nearest to `x`.
    fn code(self, x: f32) -> u8;
    /// The codes of the levels nearest to `values`, each taken through `map` first.
    #[inline(always)]
    fn codes(self, values: &[f32], map: impl Fn(f32) -> f32, codes: &mut [u8]) {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = self.code(map(*value));
        }
    }
    /// The levels nearest to eight values.
    #[inline(always)]
    fn levels<S: Simd>(self, x: f32x8<S>) -> f32x8<S> {
        let mut lanes = <[f32; 8]>::from(x);
        for lane in &mut lanes {
            *lane = self.level(*lane);
        }
        f32x8::simd_from(x.simd, lanes)
    }
}

/// 1.5 * 2^23: adding it to a number of magnitude below 2^22 rounds that to an integer, ties to
/// even, held in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// Consecutive integers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Integers {
    low: f32,
    high: f32,
    code_of_zero: u32,
}

impl Integers {
    fn new(low: i32, high: i32) -> Self {
        let low = low as f32;
        Self { low, high: high as f32, code_of_zero: (ROUND + low).to_bits() }
    }
}

impl Levels for Integers {
    #[inline(always)]
    fn level(self, x: f32) -> f32 {
        (clamp(x, self.low, self.high) + ROUND) - ROUND
    }

    #[inline(always)]
    fn code(self, x: f32) -> u8 {
        let rounded = clamp(x, self.low, self.high) + ROUND;
        rounded.to_bits().wrapping_sub(self.code_of_zero) as u8
    }

    #[inline(always)]
    fn levels<S: Simd>(self, x: f32x8<S>) -> f32x8<S> {
        (x.max(self.low).min(self.high) + ROUND) - ROUND
    }
}

/// Sign, exponent and mantissa, exponent 0 subnormal, of a range that f32 holds with room to spare.
#[derive(Clone, Copy, Debug)]
pub(super) struct SmallFloats {
    low: f32,
    high: f32,
    /// The smallest normal number, 2^(1 - bias).
    min_normal: f32,
    /// Exponent bits that turn 2^e into `2^(e + 23 - mantissa_bits)`.
    to_magic: u32,
    dropped_bits: u32,
    /// Code of `min_normal`.
    first_normal: u32,
    sign_shift: u32,
}

impl SmallFloats {
    /// OCP E4M3.
    pub(super) const E4M3: Self = Self {
        low: -448.0,
        high: 448.0,
        min_normal: 0.015_625,
        to_magic: 20 << 23,
        dropped_bits: 20,
        first_normal: 8,
        sign_shift: 7,
    };

    /// `None` for ranges near the ends of f32, which a table serves.
    fn new(float: Minifloat, low: f32, high: f32) -> Option<Self> {
        let mantissa_bits = u32::from(float.mantissa_bits);
        let min_exponent = 1 - float.bias;
        if !(-90..=90).contains(&min_exponent) || high > 1e27 {
            return None;
        }
        Some(Self {
            low,
            high,
            min_normal: 2f32.powi(min_exponent),
            to_magic: (23 - mantissa_bits) << 23,
            dropped_bits: 23 - mantissa_bits,
            first_normal: 1 << mantissa_bits,
            sign_shift: mantissa_bits + u32::from(float.exponent_bits),
        })
    }
}

impl Levels for SmallFloats {
    #[inline(always)]
    fn level(self, x: f32) -> f32 {
        let x = clamp(x, self.low, self.high);
        let binade = (x.to_bits() & 0x7F80_0000).max(self.min_normal.to_bits());
        let magic = f32::from_bits(binade + self.to_magic) * 1.5;
        (x + magic) - magic
    }

    #[inline(always)]
    fn code(self, x: f32) -> u8 {
        let level = self.level(x);
        let magnitude = level.abs();
        // Adding the smallest normal number aligns a subnormal's mantissa.
        let subnormal = magnitude < self.min_normal;
        let aligned = if subnormal { magnitude + self.min_normal } else { magnitude };
        let code = (aligned.to_bits() >> self.dropped_bits)
            .wrapping_sub(self.min_normal.to_bits() >> self.dropped_bits)
            .wrapping_add(if subnormal { 0 } else { self.first_normal });
        let sign = if level < 0.0 { 1 << self.sign_shift } else { 0 };
        (code | sign) as u8
    }
}

/// Up to 16 levels in any places: a chain of selections. A tie goes to the lower level.
#[derive(Clone, Debug)]
pub(super) struct FewLevels {
    /// Midpoints, padded with infinity.
    midpoints: [f32; 15],
    levels: [f32; 16],
    codes: [u8; 16],
}

impl Levels for &FewLevels {
    #[inline(always)]
    fn level(self, x: f32) -> f32 {
        let mut level = self.levels[0];
        for (midpoint, above) in self.midpoints.iter().zip(&self.levels[1..]) {
            level = if x > *midpoint { *above } else { level };
        }
        level
    }

    #[inline(always)]
    fn code(self, x: f32) -> u8 {
        let index: u32 = self.midpoints.iter().map(|midpoint| u32::from(x > *midpoint)).sum();
        self.codes[index as usize & 15]
    }

    #[inline(always)]
    fn levels<S: Simd>(self, x: f32x8<S>) -> f32x8<S> {
        let mut level = f32x8::splat(x.simd, self.levels[0]);
        for (midpoint, above) in self.midpoints.iter().zip(&self.levels[1..]) {
            level = x.simd_gt(*midpoint).select(f32x8::splat(x.simd, *above), level);
        }
        level
    }

    /// One midpoint after the other for some values at a time, which vectorises.
    #[inline(always)]
    fn codes(self, values: &[f32], map: impl Fn(f32) -> f32, codes: &mut [u8]) {
        for (values, codes) in values.chunks(32).zip(codes.chunks_mut(32)) {
            let (mut mapped, mut index) = ([0f32; 32], [0u32; 32]);
            mapped.iter_mut().zip(values).for_each(|(mapped, value)| *mapped = map(*value));
            for midpoint in self.midpoints {
                index.iter_mut().zip(&mapped).for_each(|(index, x)| *index += u32::from(*x > midpoint));
            }
            codes.iter_mut().zip(index).for_each(|(code, index)| *code = self.codes[index as usize & 15]);
        }
    }
}

/// Any number of levels: a binary search. A tie goes to the lower level.
#[derive(Clone, Debug)]
pub(super) struct ManyLevels {
    midpoints: Vec<f32>,
    levels: Vec<f32>,
    codes: Vec<u8>,
}

impl ManyLevels {
    #[inline(always)]
    fn index(&self, x: f32) -> usize {
        self.midpoints.partition_point(|midpoint| x > *midpoint)
    }
}

impl Levels for &ManyLevels {
    fn level(self, x: f32) -> f32 {
        self.levels[self.index(x)]
    }

    fn code(self, x: f32) -> u8 {
        self.codes[self.index(x)]
    }
}

#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    // Not f32::clamp: these two selections are one instruction each.
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// One of the sets of levels.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Integers(Integers),
    SmallFloats(SmallFloats),
    Few(Box<FewLevels>),
    Many(ManyLevels),
}

/// Evaluates an expression with `$levels` bound to the concrete set, so that its loops are compiled
/// for each.
macro_rules! with_levels {
    ($kind:expr, $levels:ident => $body:expr) => {
        match $kind {
            $crate::encode::levels::Kind::Integers(set) => {
                let $levels = *set;
                $body
            }
            $crate::encode::levels::Kind::SmallFloats(set) => {
                let $levels = *set;
                $body
            }
            $crate::encode::levels::Kind::Few(set) => {
                let $levels = &**set;
                $body
            }
            $crate::encode::levels::Kind::Many(set) => {
                let $levels = set;
                $body
            }
        }
    };
}
pub(super) use with_levels;

/// The levels of a `grouped` term with what the format needs to know of them.
#[derive(Clone, Debug)]
pub(super) struct LevelSet {
    pub(super) kind: Kind,
    pub(super) code_map: CodeMap,
    /// Entries of the table child, by code.
    pub(super) table: Option<Vec<f32>>,
    /// The lowest level.
    pub(super) low: f32,
    /// The highest level.
    pub(super) high: f32,
}

/// NF4 (Dettmers et al., "QLoRA", 2023), as bitsandbytes stores it.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

impl LevelSet {
    /// The levels that the parameters ask for.
    ///
    /// # Errors
    /// `BadArgument` for a width outside 1 to 8, or one that the code map does not have.
    pub(super) fn new(params: &GroupedParams) -> Result<Self> {
        if !(1..=8).contains(&params.bits) {
            return Err(Error::bad_argument("bits").expected("1 to 8").found(params.bits));
        }
        match &params.codes {
            Codes::Integer => Self::integers(params),
            _ if matches!(params.zero, Zero::Code | Zero::Subtract) => {
                Err(Error::bad_argument("zero").expected("`none` or `add` for codes that are not integers"))
            }
            Codes::E2m1 => Self::minifloat(params.bits, Minifloat::E2M1),
            Codes::E2m3 => Self::minifloat(params.bits, Minifloat::E2M3),
            Codes::E3m2 => Self::minifloat(params.bits, Minifloat::E3M2),
            Codes::E4m3 => Self::minifloat(params.bits, Minifloat::E4M3),
            Codes::E5m2 => Self::minifloat(params.bits, Minifloat::E5M2),
            Codes::Minifloat { signed, exponent_bits, mantissa_bits, bias } => Self::minifloat(
                params.bits,
                Minifloat {
                    sign_bits: (*signed).into(),
                    exponent_bits: *exponent_bits,
                    mantissa_bits: *mantissa_bits,
                    bias: *bias,
                    special: Special::None,
                },
            ),
            Codes::Nf4 => Self::table(params.bits, &NF4),
            Codes::Binary => Self::table(params.bits, &[-1.0, 1.0]),
            Codes::Table(table) => Self::table(params.bits, table),
        }
    }

    fn integers(params: &GroupedParams) -> Result<Self> {
        let half = 1i32 << (params.bits - 1);
        let (low, high) = match params.range {
            _ if params.zero != Zero::None => (0, 2 * half - 1),
            Range::Full => (-half, half - 1),
            Range::Symmetric if params.bits == 1 => {
                return Err(Error::bad_argument("range")
                    .expected("2 bits or more for `symmetric`")
                    .found("1 bit"));
            }
            Range::Symmetric => (1 - half, half - 1),
            Range::Unsigned => (0, 2 * half - 1),
        };
        Ok(Self {
            kind: Kind::Integers(Integers::new(low, high)),
            code_map: CodeMap::Integer { offset: low },
            table: None,
            low: low as f32,
            high: high as f32,
        })
    }

    fn minifloat(bits: u8, float: Minifloat) -> Result<Self> {
        let width =
            u32::from(float.sign_bits) + u32::from(float.exponent_bits) + u32::from(float.mantissa_bits);
        if float.exponent_bits == 0 || u32::from(bits) != width || !(-127..=127).contains(&float.bias) {
            return Err(Error::bad_argument("bits")
                .expected(format_args!("{width}, of which 1 or more of exponent, and a bias of -127 to 127"))
                .found(bits));
        }
        let values: Vec<f32> = codes(bits).map(|code| float.value(code)).collect();
        let sorted = sorted(&values)?;
        let (low, high) = (sorted[0].0, sorted[sorted.len() - 1].0);
        let kind = SmallFloats::new(float, low, high).map_or_else(|| kind_of(&sorted), Kind::SmallFloats);
        Ok(Self { kind, code_map: CodeMap::Minifloat(float), table: None, low, high })
    }

    fn table(bits: u8, table: &[f32]) -> Result<Self> {
        if table.len() != 1 << bits {
            return Err(Error::bad_argument("table")
                .expected(format_args!("{} entries", 1 << bits))
                .found(table.len()));
        }
        if let Some(entry) = table.iter().find(|v| !v.is_finite()) {
            return Err(Error::bad_argument("table").expected("finite entries").found(entry));
        }
        let sorted = sorted(table)?;
        Ok(Self {
            kind: kind_of(&sorted),
            code_map: CodeMap::Table,
            table: Some(table.to_vec()),
            low: sorted[0].0,
            high: sorted[sorted.len() - 1].0,
        })
    }
}

fn codes(bits: u8) -> impl Iterator<Item = u8> {
    0..=u8::MAX >> (8 - bits)
}

/// Finite levels with their codes, ascending, the lowest code for equal levels. At least two.
fn sorted(by_code: &[f32]) -> Result<Vec<(f32, u8)>> {
    let mut levels: Vec<(f32, u8)> = by_code
        .iter()
        .zip(0u8..=255)
        .filter(|(level, _)| level.is_finite())
        // Plus zero, so that both zeros are one level.
        .map(|(level, code)| (level + 0.0, code))
        .collect();
    levels.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    levels.dedup_by_key(|level| level.0);
    if levels.len() < 2 {
        return Err(Error::bad_argument("codes").expected("two or more different values"));
    }
    Ok(levels)
}

fn kind_of(sorted: &[(f32, u8)]) -> Kind {
    let midpoint = |pair: &[(f32, u8)]| pair[0].0 * 0.5 + pair[1].0 * 0.5;
    let (levels, codes) = sorted.iter().copied().unzip();
    let many = ManyLevels { midpoints: sorted.windows(2).map(midpoint).collect(), levels, codes };
    if sorted.len() > 16 {
        return Kind::Many(many);
    }
    let mut few = FewLevels {
        midpoints: [f32::INFINITY; 15],
        levels: [many.levels[sorted.len() - 1]; 16],
        codes: [many.codes[sorted.len() - 1]; 16],
    };
    few.midpoints[..sorted.len() - 1].copy_from_slice(&many.midpoints);
    few.levels[..sorted.len()].copy_from_slice(&many.levels);
    few.codes[..sorted.len()].copy_from_slice(&many.codes);
    Kind::Few(Box::new(few))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn all() -> Vec<(GroupedParams, Vec<f32>)> {
        let mut all = Vec::new();
        for (codes, bits) in [
            (Codes::Integer, 1),
            (Codes::Integer, 4),
            (Codes::Integer, 8),
            (Codes::E2m1, 4),
            (Codes::E2m3, 6),
            (Codes::E3m2, 6),
            (Codes::E4m3, 8),
            (Codes::E5m2, 8),
            (Codes::Nf4, 4),
            (Codes::Binary, 1),
            (Codes::Table(vec![3.0, -1.0, 0.25, 0.0]), 2),
            (Codes::Minifloat { signed: false, exponent_bits: 3, mantissa_bits: 0, bias: 2 }, 3),
            (Codes::Minifloat { signed: true, exponent_bits: 7, mantissa_bits: 0, bias: 120 }, 8),
        ] {
            let params = GroupedParams { bits, codes, ..GroupedParams::default() };
            let values = by_code(&params);
            all.push((params, values));
        }
        all
    }

    /// Values of all codes from the format's own definition.
    fn by_code(params: &GroupedParams) -> Vec<f32> {
        let set = LevelSet::new(params).unwrap();
        codes(params.bits)
            .map(|code| match set.code_map {
                CodeMap::Integer { offset } => (i32::from(code) + offset) as f32,
                CodeMap::Minifloat(float) => float.value(code),
                CodeMap::Table => set.table.as_ref().unwrap()[usize::from(code)],
            })
            .collect()
    }

    #[test]
    fn every_level_is_its_own_nearest() {
        for (params, values) in all() {
            let set = LevelSet::new(&params).unwrap();
            for value in values.iter().copied().filter(|v| v.is_finite()) {
                let (level, code) = with_levels!(&set.kind, l => (l.level(value), l.code(value)));
                assert_eq!((level, values[usize::from(code)]), (value, value), "{params:?}");
            }
        }
    }

    #[test]
    fn level_and_code_are_a_nearest_one() {
        for (params, values) in all() {
            let set = LevelSet::new(&params).unwrap();
            let span = set.high - set.low;
            for i in 0..2000 {
                let x = set.low - 0.1 * span + 1.2 * span * (i as f32 / 2000.0);
                let (level, code) = with_levels!(&set.kind, l => (l.level(x), l.code(x)));
                let least = values
                    .iter()
                    .filter(|v| v.is_finite())
                    .map(|v| (x - v).abs())
                    .fold(f32::INFINITY, f32::min);
                assert_eq!((x - level).abs(), least, "{params:?} at {x}");
                assert_eq!(values[usize::from(code)], level, "{params:?} at {x}");
            }
        }
    }

    #[test]
    fn saturates_far_outside() {
        for (params, _) in all() {
            let set = LevelSet::new(&params).unwrap();
            let ends = with_levels!(&set.kind, l => (l.level(-1e38), l.level(1e38)));
            assert_eq!(ends, (set.low, set.high), "{params:?}");
        }
    }

    #[test]
    fn rejects_width_that_a_minifloat_does_not_have() {
        let params = GroupedParams { bits: 5, codes: Codes::E2m1, ..GroupedParams::default() };
        assert!(LevelSet::new(&params).is_err());
    }

    #[test]
    fn rejects_table_of_one_value() {
        let params =
            GroupedParams { bits: 1, codes: Codes::Table(vec![1.0, 1.0]), ..GroupedParams::default() };
        assert!(LevelSet::new(&params).is_err());
    }
}

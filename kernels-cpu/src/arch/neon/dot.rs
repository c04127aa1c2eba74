//! Sums of products of bytes: what instruction sets of 64-bit Arm differ in.
//!
//! `sdot` and `smmla` are written as assembly: their intrinsics are not stable yet.

use core::arch::aarch64::*;
use core::arch::asm;

use super::memory::*;

/// Rows, and tokens, of a square of products.
pub(super) const SIDE: usize = 4;

/// A way to sum products of bytes. Weights are signed bytes, activations are from -127 to 127. A value
/// is the proof that the machine has the instructions.
pub(in crate::arch) trait Dot: Copy {
    /// The way for few tokens.
    type Few: Dot;

    fn few(self) -> Self::Few;

    /// Adds the 16 products, some in each lane: which is up to the instruction.
    fn dot(self, sums: int32x4_t, weights: int8x16_t, q: int8x16_t) -> int32x4_t;

    /// 16 columns of four rows as [`Dot::square`] wants them.
    fn of_rows(self, rows: [int8x16_t; SIDE]) -> [int8x16_t; SIDE];

    /// 16 columns of four tokens as [`Dot::square`] wants them.
    fn of_tokens(self, tokens: [int8x16_t; SIDE]) -> [int8x16_t; SIDE];

    /// For each token the sums of products with each row, over as many times 16 columns as there are.
    fn square(self, rows: &[[int8x16_t; SIDE]], tokens: &[[int8x16_t; SIDE]]) -> [int32x4_t; SIDE];
}

/// Products of 16 bits, added in pairs: what every machine has.
#[derive(Clone, Copy)]
pub(in crate::arch) struct Wide(());

impl Wide {
    #[target_feature(enable = "neon")]
    pub(in crate::arch) fn new() -> Self {
        Self(())
    }
}

impl Dot for Wide {
    type Few = Self;

    #[inline(always)]
    fn few(self) -> Self {
        self
    }

    #[inline(always)]
    fn dot(self, sums: int32x4_t, weights: int8x16_t, q: int8x16_t) -> int32x4_t {
        // SAFETY: `self` was made where there is NEON.
        unsafe { wide(sums, weights, q) }
    }

    #[inline(always)]
    fn of_rows(self, rows: [int8x16_t; SIDE]) -> [int8x16_t; SIDE] {
        rows
    }

    #[inline(always)]
    fn of_tokens(self, tokens: [int8x16_t; SIDE]) -> [int8x16_t; SIDE] {
        tokens
    }

    #[inline(always)]
    fn square(self, rows: &[[int8x16_t; SIDE]], tokens: &[[int8x16_t; SIDE]]) -> [int32x4_t; SIDE] {
        // SAFETY: `self` was made where there is NEON.
        unsafe { wide_square(rows, tokens) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn wide(sums: int32x4_t, weights: int8x16_t, q: int8x16_t) -> int32x4_t {
    // At most 128 * 127 * 2, which 16 bits hold.
    let pairs = vmull_s8(vget_low_s8(weights), vget_low_s8(q));
    vpadalq_s16(sums, vmlal_high_s8(pairs, weights, q))
}

#[inline]
#[target_feature(enable = "neon")]
fn wide_square(rows: &[[int8x16_t; SIDE]], tokens: &[[int8x16_t; SIDE]]) -> [int32x4_t; SIDE] {
    core::array::from_fn(|t| {
        let mut sums = [vdupq_n_s32(0); SIDE];
        for (rows, tokens) in rows.iter().zip(tokens) {
            for r in 0..SIDE {
                sums[r] = wide(sums[r], rows[r], tokens[t]);
            }
        }
        sums_of_four(sums)
    })
}

/// Four products in each lane: `sdot`.
#[derive(Clone, Copy)]
pub(in crate::arch) struct Dotprod(());

impl Dotprod {
    #[target_feature(enable = "neon,dotprod")]
    pub(in crate::arch) fn new() -> Self {
        Self(())
    }

    /// Adds the products of the words of `rows` with word `WORD` of `q`.
    #[inline(always)]
    fn dot_word<const WORD: i32>(self, mut sums: int32x4_t, rows: int8x16_t, q: int8x16_t) -> int32x4_t {
        // SAFETY: `self` was made where there is the instruction, which changes `sums` alone.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {rows:v}.16b, {q:v}.4b[{word}]",
                sums = inout(vreg) sums, rows = in(vreg) rows, q = in(vreg) q, word = const WORD,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

impl Dot for Dotprod {
    type Few = Self;

    #[inline(always)]
    fn few(self) -> Self {
        self
    }

    #[inline(always)]
    fn dot(self, mut sums: int32x4_t, weights: int8x16_t, q: int8x16_t) -> int32x4_t {
        // SAFETY: `self` was made where there is the instruction, which changes `sums` alone.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {weights:v}.16b, {q:v}.16b",
                sums = inout(vreg) sums, weights = in(vreg) weights, q = in(vreg) q,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }

    /// Four columns of all rows in each vector.
    #[inline(always)]
    fn of_rows(self, rows: [int8x16_t; SIDE]) -> [int8x16_t; SIDE] {
        // SAFETY: `self` was made where there is NEON.
        unsafe { columns(rows) }
    }

    #[inline(always)]
    fn of_tokens(self, tokens: [int8x16_t; SIDE]) -> [int8x16_t; SIDE] {
        tokens
    }

    #[inline(always)]
    fn square(self, rows: &[[int8x16_t; SIDE]], tokens: &[[int8x16_t; SIDE]]) -> [int32x4_t; SIDE] {
        let mut sums = zeros();
        for (rows, tokens) in rows.iter().zip(tokens) {
            for t in 0..SIDE {
                sums[t] = self.dot_word::<0>(sums[t], rows[0], tokens[t]);
                sums[t] = self.dot_word::<1>(sums[t], rows[1], tokens[t]);
                sums[t] = self.dot_word::<2>(sums[t], rows[2], tokens[t]);
                sums[t] = self.dot_word::<3>(sums[t], rows[3], tokens[t]);
            }
        }
        sums
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn columns(rows: [int8x16_t; SIDE]) -> [int8x16_t; SIDE] {
    transpose_words(rows.map(|row| vreinterpretq_s32_s8(row))).map(|column| vreinterpretq_s8_s32(column))
}

#[inline(always)]
fn zeros() -> [int32x4_t; SIDE] {
    // SAFETY: every machine of this architecture on which there is a vector type has NEON.
    unsafe { [vdupq_n_s32(0); SIDE] }
}

/// Squares of two rows by two tokens: `smmla`, beside `sdot`.
#[derive(Clone, Copy)]
pub(in crate::arch) struct Matmul(Dotprod);

impl Matmul {
    #[target_feature(enable = "neon,dotprod,i8mm")]
    pub(in crate::arch) fn new() -> Self {
        Self(Dotprod::new())
    }

    /// Adds the products of two rows and two tokens, 8 columns each.
    #[inline(always)]
    fn two_by_two(self, mut sums: int32x4_t, rows: int8x16_t, tokens: int8x16_t) -> int32x4_t {
        // SAFETY: `self` was made where there is the instruction, which changes `sums` alone.
        unsafe {
            asm!(
                ".arch_extension i8mm",
                "smmla {sums:v}.4s, {rows:v}.16b, {tokens:v}.16b",
                sums = inout(vreg) sums, rows = in(vreg) rows, tokens = in(vreg) tokens,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

impl Dot for Matmul {
    type Few = Dotprod;

    #[inline(always)]
    fn few(self) -> Dotprod {
        self.0
    }

    #[inline(always)]
    fn dot(self, sums: int32x4_t, weights: int8x16_t, q: int8x16_t) -> int32x4_t {
        self.0.dot(sums, weights, q)
    }

    /// 8 columns of rows 0 and 1, the next 8, then the same of rows 2 and 3.
    #[inline(always)]
    fn of_rows(self, rows: [int8x16_t; SIDE]) -> [int8x16_t; SIDE] {
        // SAFETY: `self` was made where there is NEON.
        unsafe { pairs(rows) }
    }

    #[inline(always)]
    fn of_tokens(self, tokens: [int8x16_t; SIDE]) -> [int8x16_t; SIDE] {
        // SAFETY: `self` was made where there is NEON.
        unsafe { pairs(tokens) }
    }

    #[inline(always)]
    fn square(self, rows: &[[int8x16_t; SIDE]], tokens: &[[int8x16_t; SIDE]]) -> [int32x4_t; SIDE] {
        // Rows 0 and 1 by tokens 0 and 1, rows 2 and 3 by them, then both by tokens 2 and 3.
        let mut sums = zeros();
        for (rows, tokens) in rows.iter().zip(tokens) {
            for i in 0..2 {
                sums[0] = self.two_by_two(sums[0], rows[i], tokens[i]);
                sums[1] = self.two_by_two(sums[1], rows[2 + i], tokens[i]);
                sums[2] = self.two_by_two(sums[2], rows[i], tokens[2 + i]);
                sums[3] = self.two_by_two(sums[3], rows[2 + i], tokens[2 + i]);
            }
        }
        // SAFETY: `self` was made where there is NEON.
        unsafe { by_tokens(sums) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn pairs(of: [int8x16_t; SIDE]) -> [int8x16_t; SIDE] {
    let [a, b, c, d] = of.map(|of| vreinterpretq_s64_s8(of));
    [vzip1q_s64(a, b), vzip2q_s64(a, b), vzip1q_s64(c, d), vzip2q_s64(c, d)]
        .map(|pair| vreinterpretq_s8_s64(pair))
}

/// Of squares of two by two the rows of each token.
#[inline]
#[target_feature(enable = "neon")]
fn by_tokens(squares: [int32x4_t; SIDE]) -> [int32x4_t; SIDE] {
    let [a, b, c, d] = squares;
    [vuzp1q_s32(a, b), vuzp2q_s32(a, b), vuzp1q_s32(c, d), vuzp2q_s32(c, d)]
}

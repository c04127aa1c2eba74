//! The pass of [`super::viterbi`] on vectors of 32 states, AVX-512.
//!
//! The highest five bits of a group or state are its lane, the others its vector. A group's states
//! then lie in `2^k` consecutive vectors, and its minimum needs no movement between lanes. The state
//! `c << (L-k) | g` comes from the group `g` of vector `j` and lane `h << k | r` (`r`: `k` bits) and
//! lies in vector `r << (L-k-5) | j` and lane `c << (5-k) | h`: one permutation of lanes, of which
//! there are `2^k`.

const LANE_BITS: u32 = 5;
const LANES: usize = 1 << LANE_BITS;

/// A trellis in the order of this path, on a machine that has it.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    step_bits: u32,
    group_bits: u32,
    /// Values of the states.
    values: Vec<[i16; LANES]>,
    /// For each `r`, the lane that each lane of a state's vector takes its group from.
    sources: Vec<[u16; LANES]>,
}

/// Buffers of a pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    groups: Vec<[u16; LANES]>,
    next: Vec<[u16; LANES]>,
    /// For each step, vector of groups and bit of `k`: the bit of each lane.
    fallen: Vec<u32>,
}

impl Lanes {
    /// `None` where the machine or the widths do not allow it.
    pub(super) fn new(state_bits: u32, step_bits: u32, values: &[i16]) -> Option<Self> {
        let group_bits = state_bits.checked_sub(step_bits)?;
        if !available() || group_bits < LANE_BITS || !(1..=4).contains(&step_bits) {
            return None;
        }
        let vector_bits = state_bits - LANE_BITS;
        let in_order = |vector: usize| {
            std::array::from_fn(|lane| values.get(lane << vector_bits | vector).copied().unwrap_or_default())
        };
        let shift = LANE_BITS - step_bits;
        let source =
            |r: usize| std::array::from_fn(|lane| ((lane & ((1 << shift) - 1)) << step_bits | r) as u16);
        Some(Self {
            step_bits,
            group_bits,
            values: (0..1 << vector_bits).map(in_order).collect(),
            sources: (0..1 << step_bits).map(source).collect(),
        })
    }

    /// Runs over the targets, from the costs of `groups` to those after the last step.
    pub(super) fn forward(&self, targets: &[i16], groups: &mut [u16], buffers: &mut Buffers) {
        let vectors = groups.len() / LANES;
        let vector_bits = self.group_bits - LANE_BITS;
        buffers.groups.clear();
        buffers.groups.extend((0..vectors).map(|vector| -> [u16; LANES] {
            std::array::from_fn(|lane| groups[lane << vector_bits | vector])
        }));
        buffers.next.resize(vectors, [0; LANES]);
        let words = targets.len() * vectors * self.step_bits as usize;
        if buffers.fallen.len() < words {
            buffers.fallen.resize(words, 0);
        }
        run(self, targets, buffers);
        for (vector, costs) in buffers.groups.iter().enumerate() {
            for (lane, cost) in costs.iter().enumerate() {
                groups[lane << vector_bits | vector] = *cost;
            }
        }
    }

    #[inline]
    pub(super) fn fallen(&self, buffers: &Buffers, step: usize, group: usize) -> usize {
        let vector_bits = self.group_bits - LANE_BITS;
        let (lane, vector) = (group >> vector_bits, group & ((1 << vector_bits) - 1));
        let at = ((step << vector_bits) + vector) * self.step_bits as usize;
        let words = &buffers.fallen[at..at + self.step_bits as usize];
        words.iter().rev().fold(0, |fallen, word| fallen << 1 | (word >> lane & 1) as usize)
    }
}

#[cfg(target_arch = "x86_64")]
fn available() -> bool {
    fearless_simd::Level::new().as_avx512().is_some()
}

#[cfg(not(target_arch = "x86_64"))]
fn available() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_: &Lanes, _: &[i16], _: &mut Buffers) {}

#[cfg(target_arch = "x86_64")]
fn run(trellis: &Lanes, targets: &[i16], buffers: &mut Buffers) {
    let Some(avx512) = fearless_simd::Level::new().as_avx512() else { return };
    match trellis.step_bits {
        1 => avx512::one(avx512, trellis, targets, buffers),
        2 => avx512::two(avx512, trellis, targets, buffers),
        3 => avx512::three(avx512, trellis, targets, buffers),
        _ => avx512::four(avx512, trellis, targets, buffers),
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::super::viterbi::{RENORM_STEPS, doublings};
    use super::{Buffers, LANES, Lanes};
    use fearless_simd::{Avx512, SimdFrom, i16x32, u16x32};
    use std::arch::x86_64::{
        __m512i, _mm512_adds_epi16, _mm512_adds_epu16, _mm512_and_si512, _mm512_min_epu16,
        _mm512_mulhi_epi16, _mm512_permutexvar_epi16, _mm512_set1_epi16, _mm512_setzero_si512,
        _mm512_subs_epi16, _mm512_subs_epu16, _mm512_ternarylogic_epi32, _mm512_test_epi16_mask,
    };

    /// `a & b | c` of three operands.
    const AND_OR: i32 = 0xEA;

    #[inline(always)]
    fn unsigned(simd: Avx512, lanes: [u16; LANES]) -> __m512i {
        u16x32::simd_from(simd, lanes).into()
    }

    #[inline(always)]
    fn signed(simd: Avx512, lanes: [i16; LANES]) -> __m512i {
        i16x32::simd_from(simd, lanes).into()
    }

    #[inline(always)]
    fn stored(simd: Avx512, lanes: __m512i) -> [u16; LANES] {
        u16x32::simd_from(simd, lanes).into()
    }

    macro_rules! pass {
        ($name:ident, $k:literal) => {
            fearless_simd::kernel!(
                pub(super) fn $name(simd: Avx512, trellis: &Lanes, targets: &[i16], buffers: &mut Buffers) {
                    const K: usize = $k;
                    let Buffers { groups, next, fallen } = buffers;
                    let count = groups.len();
                    // Lane permutation and vector of the groups that a vector of states comes from.
                    let vector_bits = count.trailing_zeros();
                    let index_mask = count - 1;
                    let keep = _mm512_set1_epi16(!((1i16 << K) - 1));
                    let mut base = _mm512_setzero_si512();
                    for ((step, target), fallen) in
                        targets.iter().enumerate().zip(fallen.chunks_exact_mut(count * K))
                    {
                        let target = _mm512_set1_epi16(*target);
                        let mut least = _mm512_set1_epi16(-1);
                        let (values, _) = trellis.values.as_chunks::<{ 1 << K }>();
                        let (fallen, _) = fallen.as_chunks_mut::<K>();
                        for (((to, fallen), values), block) in
                            next.iter_mut().zip(fallen).zip(values).zip(0usize..)
                        {
                            let mut cost = _mm512_set1_epi16(-1);
                            for p in 0..1usize << K {
                                let vector = block << K | p;
                                let source = unsigned(simd, trellis.sources[vector >> vector_bits]);
                                let from = unsigned(simd, groups[vector & index_mask]);
                                let mut difference = _mm512_subs_epi16(target, signed(simd, values[p]));
                                for _ in 0..doublings(K as u32) {
                                    difference = _mm512_adds_epi16(difference, difference);
                                }
                                let distance = _mm512_mulhi_epi16(difference, difference);
                                let tag = _mm512_set1_epi16(p as i16);
                                let tagged = _mm512_ternarylogic_epi32::<AND_OR>(distance, keep, tag);
                                let from = _mm512_permutexvar_epi16(source, from);
                                cost = _mm512_min_epu16(cost, _mm512_adds_epu16(from, tagged));
                            }
                            for (bit, fallen) in fallen.iter_mut().enumerate() {
                                *fallen = _mm512_test_epi16_mask(cost, _mm512_set1_epi16(1 << bit));
                            }
                            let cost = _mm512_subs_epu16(_mm512_and_si512(cost, keep), base);
                            least = _mm512_min_epu16(least, cost);
                            *to = stored(simd, cost);
                        }
                        std::mem::swap(groups, next);
                        base = _mm512_setzero_si512();
                        if step % RENORM_STEPS == RENORM_STEPS - 1 {
                            let least = stored(simd, least).into_iter().fold(u16::MAX, u16::min);
                            base = _mm512_set1_epi16(least as i16);
                        }
                    }
                }
            );
        };
    }

    pass!(one, 1);
    pass!(two, 2);
    pass!(three, 3);
    pass!(four, 4);
}

//! One pass of the Viterbi algorithm over a trellis, in 16-bit integers, so that every machine finds
//! the same path.
//!
//! A state `s` has the `L` bits of a window. What led to `s` differs in the `k` bits that fell out:
//! the `2^k` states `(s << k | p) mod 2^L` are a *group*, and the next step only asks for the least
//! cost of each group and which `p` had it. So a step goes from the costs of `2^(L-k)` groups to
//! those of the next: `cost(s) = group(s mod 2^(L-k)) + distance(target, value(s))`, and
//! `group(g) = min over p of cost(g << k | p)`.
//!
//! Costs are `u16` with saturation. Their lowest `k` bits hold `p`, so that a minimum brings the
//! predecessor with it and a tie goes to the least `p`.

use super::lanes::{self, Lanes};

/// Steps between two subtractions of the least cost.
pub(super) const RENORM_STEPS: usize = 4;

/// What a pass needs to know of a trellis.
#[derive(Clone, Debug)]
pub(super) struct Fixed {
    pub(super) state_bits: u32,
    pub(super) step_bits: u32,
    /// Value of each window times `factor`.
    values: Vec<i16>,
    /// From the units of the values to those of `values`.
    factor: f32,
    /// The largest target: a target so far from every value that all distances saturate says nothing.
    limit: f32,
    /// The values in the order of the vector path, where this machine and these widths have it.
    lanes: Option<Lanes>,
}

/// Buffers of a pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    /// Targets in fixed point.
    pub(super) targets: Vec<i16>,
    /// Costs of the groups after the last step.
    pub(super) groups: Vec<u16>,
    /// Costs of the states.
    costs: Vec<u16>,
    /// The bits that fell out, for each step and group.
    fallen: Vec<u8>,
    pub(super) lanes: lanes::Buffers,
}

impl Fixed {
    /// `rms` is that of `values`.
    pub(super) fn new(state_bits: u32, step_bits: u32, values: &[f32], rms: f32) -> Self {
        let largest = values.iter().fold(0f32, |largest, v| largest.max(v.abs()));
        // Values that i16 does not hold would be mistaken for others; few tables have any.
        let most = (32_000.0 * rms / largest).min(8192.0);
        let factor = if rms > 0.0 { most.min(UNITS[step_bits as usize - 1]) / rms } else { 0.0 };
        let reach = REACH * 32_767.0 / (factor * (1u32 << doublings(step_bits)) as f32);
        let limit = if rms > 0.0 { largest + reach } else { 0.0 };
        let values: Vec<i16> = values.iter().map(|v| fixed(*v, factor)).collect();
        let lanes = Lanes::new(state_bits, step_bits, &values);
        Self { state_bits, step_bits, values, factor, limit, lanes }
    }

    /// The same without the vector path.
    #[cfg(test)]
    pub(super) fn scalar(mut self) -> Self {
        self.lanes = None;
        self
    }

    pub(super) fn group_bits(&self) -> u32 {
        self.state_bits - self.step_bits
    }

    /// Runs over the targets. `start` is the group that the path begins in; without one, it may begin
    /// anywhere.
    pub(super) fn forward(
        &self,
        targets: impl Iterator<Item = f32>,
        start: Option<usize>,
        buffers: &mut Buffers,
    ) {
        buffers.targets.clear();
        buffers
            .targets
            .extend(targets.map(|target| fixed(target.clamp(-self.limit, self.limit), self.factor)));
        let groups = 1usize << self.group_bits();
        let unreachable = u16::MAX << self.step_bits;
        buffers.groups.clear();
        buffers.groups.resize(groups, if start.is_some() { unreachable } else { 0 });
        if let Some(start) = start.and_then(|start| buffers.groups.get_mut(start)) {
            *start = 0;
        }
        match &self.lanes {
            Some(lanes) => lanes.forward(&buffers.targets, &mut buffers.groups, &mut buffers.lanes),
            None => self.forward_scalar(buffers),
        }
    }

    /// The bits that fell out of the window when step `step` of the last pass led to `group`.
    #[inline]
    pub(super) fn fallen(&self, buffers: &Buffers, step: usize, group: usize) -> usize {
        match &self.lanes {
            Some(lanes) => lanes.fallen(&buffers.lanes, step, group),
            None => usize::from(buffers.fallen[(step << self.group_bits()) + group]),
        }
    }

    fn forward_scalar(&self, buffers: &mut Buffers) {
        let length = buffers.targets.len() << self.group_bits();
        if buffers.fallen.len() < length {
            buffers.fallen.resize(length, 0);
        }
        buffers.costs.resize(self.values.len(), 0);
        match self.step_bits {
            1 => forward::<1>(self, buffers),
            2 => forward::<2>(self, buffers),
            3 => forward::<3>(self, buffers),
            _ => forward::<4>(self, buffers),
        }
    }
}

/// Fixed-point units of each rms of the values. Finer than 8192 needs [`doublings`].
const UNITS: [f32; 4] = [4096.0, 8192.0, 8192.0, 8192.0];

/// Times that a difference is doubled, with saturation, before it is squared: the larger the rate, the
/// smaller the differences that matter and the sooner the others may saturate. With these, paths are
/// within 0.01 dB of those found with costs in f32.
pub(super) const fn doublings(step_bits: u32) -> u32 {
    step_bits.saturating_sub(2)
}

/// How far beyond the largest value a target may be, in the largest difference that does not saturate.
const REACH: f32 = 0.3;

fn fixed(value: f32, factor: f32) -> i16 {
    // A conversion from f32 saturates.
    (value * factor).round_ties_even() as i16
}

/// Distance of a value from its target: at most 2^14, so that four of them saturate a cost.
#[inline(always)]
fn distance(target: i16, value: i16, doublings: u32) -> u16 {
    let mut difference = target.saturating_sub(value);
    for _ in 0..doublings {
        difference = difference.saturating_add(difference);
    }
    ((i32::from(difference) * i32::from(difference)) >> 16) as u16
}

#[multiversion::multiversion(targets("x86_64+avx2"))]
fn forward<const K: usize>(trellis: &Fixed, buffers: &mut Buffers) {
    let Buffers { targets, groups, costs, fallen, .. } = buffers;
    let mask = (1u16 << K) - 1;
    let count = groups.len();
    let mut base = 0;
    for ((step, target), fallen) in targets.iter().enumerate().zip(fallen.chunks_exact_mut(count)) {
        for (costs, values) in costs.chunks_exact_mut(count).zip(trellis.values.chunks_exact(count)) {
            for (((cost, value), group), index) in costs.iter_mut().zip(values).zip(&*groups).zip(0u16..) {
                let distance = distance(*target, *value, doublings(K as u32));
                *cost = group.saturating_add(distance & !mask | index & mask);
            }
        }
        let mut least = u16::MAX;
        let (costs, _) = costs.as_chunks::<16>();
        if K == 4 {
            for ((group, fallen), costs) in groups.iter_mut().zip(fallen).zip(costs) {
                let cost = costs.iter().fold(u16::MAX, |least, cost| least.min(*cost));
                *fallen = (cost & mask) as u8;
                *group = (cost & !mask).saturating_sub(base);
                least = least.min(*group);
            }
        } else {
            let costs = costs.as_flattened().chunks_exact(1 << K);
            for ((group, fallen), costs) in groups.iter_mut().zip(fallen).zip(costs) {
                let cost = costs.iter().fold(u16::MAX, |least, cost| least.min(*cost));
                *fallen = (cost & mask) as u8;
                *group = (cost & !mask).saturating_sub(base);
                least = least.min(*group);
            }
        }
        base = if step % RENORM_STEPS == RENORM_STEPS - 1 { least } else { 0 };
    }
}

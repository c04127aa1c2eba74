//! Paths through a bitshift trellis (spec: trellis): the codes whose windows come closest to a row of
//! targets.
//!
//! The trellis and its computed code are those of QTIP (Tseng, Sun, Hou, De Sa, "QTIP: Quantization
//! with Trellises and Incoherence Processing", NeurIPS 2024); the search is the Viterbi algorithm.
//! All arithmetic that decides between paths is in integers: the same targets give the same codes on
//! every machine.

mod lanes;
mod tables;
#[cfg(test)]
mod tests;
mod viterbi;

use crate::error::{Error, Result};
use tables::hashed as hashed_table;
pub use tables::trained as trained_table;
use viterbi::{Buffers, Fixed};

/// Multiplier and addend of the computed code "1MAD" (QTIP, section 3.1.1).
pub const BYTE_SUM_MULTIPLIER: u32 = 34_038_481;
/// See [`BYTE_SUM_MULTIPLIER`].
pub const BYTE_SUM_ADDEND: u32 = 76_625_530;

/// The best ratio of the rms of the scaled values to that of Gaussian targets, for 1 to 4 bits a step:
/// below 1 where what is reproduced has less power than the source, above 1 where the values must
/// reach the source's tails.
const SPREAD: [f32; 4] = [0.9, 1.08, 1.2, 1.3];

/// Lengths of a window on each side of the seam from which the bits at the seam are found.
const SEAM_WINDOWS: usize = 4;

/// A bitshift trellis: `2^L` windows of `L` bits, `k` new bits a step, and the value of each window.
#[derive(Clone, Debug)]
pub struct Trellis {
    values: Vec<f32>,
    rms: f32,
    /// The best scale for Gaussian targets of unit variance.
    unit: f32,
    fixed: Fixed,
}

/// Buffers that encoding reuses.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    buffers: Buffers,
}

impl Trellis {
    /// A trellis whose windows have the given values.
    ///
    /// # Errors
    /// A bad argument, where `state_bits` is not 6 to 16 or `step_bits` not 1 to 4, where there are not
    /// `2^state_bits` values, and where a value is not finite.
    pub fn table(state_bits: u32, step_bits: u32, values: Vec<f32>) -> Result<Self> {
        check(state_bits, step_bits)?;
        if values.len() != 1 << state_bits {
            let expected = format!("{} values", 1 << state_bits);
            return Err(Error::bad_argument("table of a trellis").expected(expected).found(values.len()));
        }
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(Error::bad_argument("table of a trellis").expected("finite values").found(value));
        }
        let squares: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let rms = (squares / values.len() as f64).sqrt() as f32;
        let fixed = Fixed::new(state_bits, step_bits, &values, rms);
        let spread = SPREAD[step_bits.clamp(1, 4) as usize - 1];
        let unit = if rms > 0.0 { spread / rms } else { 0.0 };
        Ok(Self { values, rms, unit, fixed })
    }

    /// The computed code with [`BYTE_SUM_MULTIPLIER`] and [`BYTE_SUM_ADDEND`].
    ///
    /// # Errors
    /// As [`Trellis::table`].
    pub fn byte_sum(state_bits: u32, step_bits: u32) -> Result<Self> {
        Self::byte_sum_with(state_bits, step_bits, BYTE_SUM_MULTIPLIER, BYTE_SUM_ADDEND)
    }

    /// The computed code: the value of window `s` is the sum of the four bytes of
    /// `s * multiplier + addend` modulo 2^32, minus 510. Of 8000 pairs drawn at random,
    /// 2459782711 and 3212142825 come closest to a Gaussian source at 12 state bits and 1 or 2 step
    /// bits: 0.1 dB closer than [`Trellis::byte_sum`].
    ///
    /// # Errors
    /// As [`Trellis::table`].
    pub fn byte_sum_with(state_bits: u32, step_bits: u32, multiplier: u32, addend: u32) -> Result<Self> {
        check(state_bits, step_bits)?;
        let value = |state: u32| {
            let x = state.wrapping_mul(multiplier).wrapping_add(addend);
            x.to_le_bytes().into_iter().map(f32::from).sum::<f32>() - 510.0
        };
        Self::table(state_bits, step_bits, (0..1 << state_bits).map(value).collect())
    }

    /// The trained table of these widths ([`trained_table`]), in units of 1/127 of its largest value.
    ///
    /// # Errors
    /// A bad argument, where there is no such table: `state_bits` is not 6 to 10 or `step_bits` not 1
    /// to 4.
    pub fn trained(state_bits: u32, step_bits: u32) -> Result<Self> {
        check(state_bits, step_bits)?;
        let (values, unit) = trained_table(state_bits, step_bits).ok_or_else(|| {
            Error::bad_argument("state bits of a trained trellis").expected("6 to 10").found(state_bits)
        })?;
        let values = values.iter().map(|v| f32::from(*v)).collect();
        Ok(Self { unit, ..Self::table(state_bits, step_bits, values)? })
    }

    /// The trained table of these widths that has 64 values: the newest six bits of a window, and a
    /// linear map of the others, say which. In units of 1/127 of its largest value.
    ///
    /// # Errors
    /// A bad argument, where there is no such table: `state_bits` is not 10 or 12 or `step_bits` not 1
    /// or 2.
    pub fn hashed(state_bits: u32, step_bits: u32) -> Result<Self> {
        check(state_bits, step_bits)?;
        let table = hashed_table(state_bits, step_bits).ok_or_else(|| {
            Error::bad_argument("widths of a hashed trellis")
                .expected("state bits of 10 or 12, step bits of 1 or 2")
                .found(format_args!("{state_bits} and {step_bits}"))
        })?;
        let values = (0..1usize << state_bits).map(|window| table.value(window)).collect();
        Ok(Self { unit: table.unit, ..Self::table(state_bits, step_bits, values)? })
    }

    /// `L`.
    pub fn state_bits(&self) -> u32 {
        self.fixed.state_bits
    }

    /// `k`.
    pub fn step_bits(&self) -> u32 {
        self.fixed.step_bits
    }

    /// The value of each window.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Root of the mean of the squared values.
    pub fn rms(&self) -> f32 {
        self.rms
    }

    /// The scale of least squared error for targets of this root mean square that are Gaussian:
    /// `target / scale` is what [`Trellis::encode`] takes, `value * scale` what it approximates.
    pub fn best_scale(&self, rms: f32) -> f32 {
        rms * self.unit
    }

    /// Codes of the closed path of (nearly) least squared error to `targets`, and its values. The
    /// targets are in the units of the values. A target that is not finite counts as 0 or as the
    /// largest value. The three slices have the same length.
    pub fn encode(&self, targets: &[f32], scratch: &mut Scratch, codes: &mut [u8], values: &mut [f32]) {
        let n = targets.len().min(codes.len()).min(values.len());
        let (targets, codes, values) = (&targets[..n], &mut codes[..n], &mut values[..n]);
        if n * (self.step_bits() as usize) < self.state_bits() as usize {
            self.encode_short(targets, codes, values);
        } else {
            let seam = self.seam(targets, scratch);
            self.fixed.forward(targets.iter().copied(), Some(seam), &mut scratch.buffers);
            let mut group = seam;
            for (step, code) in codes.iter_mut().enumerate().rev() {
                let state = self.back(scratch, step, &mut group);
                *code = (state >> self.fixed.group_bits()) as u8;
            }
        }
        self.decode(codes, values);
    }

    /// The values of a closed path of codes. The slices have the same length.
    pub fn decode(&self, codes: &[u8], values: &mut [f32]) {
        let (k, shift) = (self.step_bits(), self.fixed.group_bits());
        let window = self.state_bits().div_ceil(k) as usize;
        let next = |state: usize, code: &u8| state >> k | usize::from(*code) << shift;
        // The window before the first step, met by going round backwards.
        let before = codes.iter().rev().cycle().take(if codes.is_empty() { 0 } else { window });
        let mut newest_first = [0u8; 16];
        newest_first.iter_mut().zip(before).for_each(|(to, code)| *to = *code);
        let mut state = newest_first[..window.min(16)].iter().rev().fold(0, next);
        for (value, code) in values.iter_mut().zip(codes) {
            state = next(state, code);
            *value = self.values[state];
        }
    }

    /// One step back from a group: the state that led to it, and the group which that came from.
    #[inline]
    fn back(&self, scratch: &Scratch, step: usize, group: &mut usize) -> usize {
        let state = *group << self.step_bits() | self.fixed.fallen(&scratch.buffers, step, *group);
        *group = state & ((1 << self.fixed.group_bits()) - 1);
        state
    }

    /// The group in which a good path passes from the last target to the first.
    fn seam(&self, targets: &[f32], scratch: &mut Scratch) -> usize {
        let n = targets.len();
        let side = (SEAM_WINDOWS * self.state_bits() as usize).div_ceil(self.step_bits() as usize);
        let before = side.min(n - n / 2);
        let after = side.min(n / 2);
        let around = targets[n - before..].iter().chain(&targets[..after]);
        self.fixed.forward(around.copied(), None, &mut scratch.buffers);
        let ends = scratch.buffers.groups.iter().enumerate();
        let mut group = ends.min_by_key(|(_, cost)| **cost).map_or(0, |(group, _)| group);
        for step in (before..before + after).rev() {
            self.back(scratch, step, &mut group);
        }
        group
    }

    /// Every closed path in turn, for fewer bits than a window.
    fn encode_short(&self, targets: &[f32], codes: &mut [u8], values: &mut [f32]) {
        let k = self.step_bits();
        let code = |path: usize, step: usize| (path >> (step as u32 * k) & ((1 << k) - 1)) as u8;
        let mut best = (f64::INFINITY, 0);
        for path in 0..1usize << (targets.len() as u32 * k) {
            codes.iter_mut().enumerate().for_each(|(step, to)| *to = code(path, step));
            self.decode(codes, values);
            let error = |(t, v): (&f32, &f32)| f64::from(*t - *v) * f64::from(*t - *v);
            let error: f64 = targets.iter().zip(&*values).map(error).sum();
            if error < best.0 {
                best = (error, path);
            }
        }
        codes.iter_mut().enumerate().for_each(|(step, to)| *to = code(best.1, step));
    }
}

fn check(state_bits: u32, step_bits: u32) -> Result<()> {
    if !(6..=16).contains(&state_bits) {
        return Err(Error::bad_argument("state bits of a trellis").expected("6 to 16").found(state_bits));
    }
    if !(1..=4).contains(&step_bits) {
        return Err(Error::bad_argument("step bits of a trellis").expected("1 to 4").found(step_bits));
    }
    Ok(())
}

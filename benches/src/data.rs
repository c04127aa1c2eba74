//! Values that look like trained weights, the same in every run.

/// SplitMix64 (Steele, Lea & Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Near normal, mean 0 and deviation 1: a sum of eight uniform bytes and 64 finer bits.
    fn normal(&mut self) -> f32 {
        let (coarse, fine) = (self.next(), self.next());
        let sum: u32 = coarse.to_le_bytes().iter().map(|b| u32::from(*b)).sum();
        let fine = (fine >> 40) as f32 / (1 << 24) as f32;
        // Eight bytes have mean 1020 and variance 8 * (256^2 - 1) / 12; `fine` fills the steps.
        (sum as f32 + fine - 1020.5) / 209.0
    }
}

/// `count` weights of a spread that layers of language models have.
pub(crate) fn weights(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.normal() * 0.02).collect()
}

/// `count` random bytes.
pub(crate) fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut out: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    out.truncate(count);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_their_spread() {
        let values = weights(1, 1 << 16);
        let mean: f64 = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 5e-4, "{mean}");
        assert!((square.sqrt() - 0.02).abs() < 5e-4, "{}", square.sqrt());
    }
}

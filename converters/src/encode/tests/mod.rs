//! Laws of the encoders, checked on what the format crate decodes.

mod codebook;
mod grouped;
mod low_rank;
mod nested;
mod planes;
mod sign_low_rank;
mod sparse;
mod terms;

use super::random::SplitMix64;
use super::{Matrix, decode};
use cmf_format::NodeData;

/// A shape and values that go with it.
struct Source {
    values: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Source {
    /// Close to normal with deviation 0.02, as weights are.
    fn normal(rows: usize, cols: usize, seed: u64) -> Self {
        let mut random = SplitMix64::new(seed);
        let mut next = || 0.02 * ((0..12).map(|_| random.unit()).sum::<f64>() - 6.0) as f32;
        Self { values: (0..rows * cols).map(|_| next()).collect(), rows, cols }
    }

    /// As [`Source::normal`] divided by a uniform number: tails that fall with the cube.
    fn heavy(rows: usize, cols: usize, seed: u64) -> Self {
        let mut source = Self::normal(rows, cols, seed);
        let mut random = SplitMix64::new(!seed);
        source.values.iter_mut().for_each(|v| *v /= (random.unit() as f32).max(0.01).sqrt());
        source
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::new(&self.values, self.rows, self.cols).unwrap()
    }

    /// Squared error of a node against these values.
    fn error(&self, node: &NodeData) -> f64 {
        squared_error(&self.values, &decode(node).unwrap())
    }

    /// Signal to noise in dB.
    fn snr(&self, node: &NodeData) -> f64 {
        let power: f64 = self.values.iter().map(|v| f64::from(*v).powi(2)).sum();
        10.0 * (power / self.error(node)).log10()
    }
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// Weighted squared error of row-major values.
fn weighted_error(values: &[f32], decoded: &[f32], weights: &[f32]) -> f64 {
    let errors = values.iter().zip(decoded).zip(weights.iter().cycle());
    errors.map(|((v, d), w)| f64::from(*w) * (f64::from(*v) - f64::from(*d)).powi(2)).sum()
}

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// The stored bytes of a node and its children, in order.
fn bytes(node: &NodeData) -> Vec<u8> {
    let mut all = node.descriptor.clone();
    for segment in &node.segments {
        all.extend_from_slice(segment.bytes().unwrap());
    }
    for child in &node.children {
        all.extend(bytes(child));
    }
    all
}

fn hash(node: &NodeData) -> String {
    blake3::hash(&bytes(node)).to_hex()[..16].to_owned()
}

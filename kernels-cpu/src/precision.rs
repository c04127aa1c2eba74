//! How activations are multiplied.

/// How activations are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As f32, with f32 sums.
    #[default]
    Exact,
    /// Rounded to 8 bits with a scale for each 64, with integer sums.
    Fast,
}

//! How tensors of any rank are matrices, and how matrices are cut into row blocks.

use std::ops::Range;

/// Largest last extent that makes a tensor of three extents a convolution.
const KERNEL_LIMIT: u64 = 16;

/// The matrices of a tensor: `count` times `[rows, cols]`, one below the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Number of matrices.
    pub(crate) count: u64,
    /// Outputs of each.
    pub(crate) rows: u64,
    /// Inputs of each.
    pub(crate) cols: u64,
}

impl Geometry {
    /// The matrices of a tensor of this shape, which has elements.
    ///
    /// Two extents are a matrix, one a row. Three are experts `[E, m, n]`, each a matrix, unless
    /// the last is a convolution's kernel of at most 16: then, as with four and more,
    /// `[outputs, the rest]`.
    pub(crate) fn of(shape: &[u64]) -> Self {
        match *shape {
            [] => Self { count: 1, rows: 1, cols: 1 },
            [n] => Self { count: 1, rows: 1, cols: n },
            [rows, cols] => Self { count: 1, rows, cols },
            [count, rows, cols] if cols > KERNEL_LIMIT => Self { count, rows, cols },
            [rows, ref rest @ ..] => Self { count: 1, rows, cols: rest.iter().product() },
        }
    }

    /// Cuts `[rows, cols]` into blocks of rows that take about `unit_bytes` at `bits` bits per
    /// weight. Blocks are of one size but the last, in whole steps of `step` rows where possible, and
    /// in whole steps of `least`, which divides `step`, even where these take more bytes.
    pub(crate) fn row_blocks(
        &self,
        bits: f64,
        unit_bytes: u64,
        step: u64,
        least: u64,
    ) -> impl Iterator<Item = Range<u64>> + use<> {
        let row_bytes = (self.cols as f64 * bits / 8.0).max(1.0);
        let most = ((unit_bytes as f64 / row_bytes) as u64).clamp(1, self.rows.max(1));
        let even = self.rows.div_ceil(self.rows.div_ceil(most).max(1));
        let size = match even.next_multiple_of(step.max(1)) {
            stepped if stepped <= most => stepped,
            _ => (most / step.max(1) * step.max(1)).max(least.max(1)),
        };
        let rows = self.rows;
        (0..rows.div_ceil(size)).map(move |i| i * size..((i + 1) * size).min(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_become_matrices() {
        let of = |shape: &[u64]| {
            let g = Geometry::of(shape);
            (g.count, g.rows, g.cols)
        };
        assert_eq!(of(&[]), (1, 1, 1));
        assert_eq!(of(&[7]), (1, 1, 7));
        assert_eq!(of(&[3, 5]), (1, 3, 5));
        assert_eq!(of(&[8, 64, 32]), (8, 64, 32));
        assert_eq!(of(&[768, 80, 3]), (1, 768, 240));
        assert_eq!(of(&[4, 3, 2, 5]), (1, 4, 30));
    }

    #[test]
    fn blocks_cover_all_rows_within_the_bound() {
        for (rows, cols, bits, step) in
            [(49_152, 576, 4.25, 16), (1, 9_000_000, 16.0, 4), (576, 576, 16.0, 2), (17, 3, 1.0, 64)]
        {
            let geometry = Geometry { count: 1, rows, cols };
            let blocks: Vec<_> = geometry.row_blocks(bits, 2 << 20, step, 1).collect();
            assert_eq!(blocks.first().map(|b| b.start), Some(0));
            assert_eq!(blocks.last().map(|b| b.end), Some(rows));
            assert!(blocks.windows(2).all(|w| w[0].end == w[1].start));
            let fits =
                |b: &Range<u64>| (b.end - b.start) as f64 * cols as f64 * bits / 8.0 <= (2 << 20) as f64;
            assert!(blocks.iter().all(|b| fits(b) || b.end - b.start == 1), "{blocks:?}");
        }
    }

    #[test]
    fn blocks_of_wide_matrices_are_whole_steps() {
        let geometry = Geometry { count: 1, rows: 128, cols: 11_008 };
        let blocks: Vec<_> = geometry.row_blocks(2.1, 65_536, 64, 64).collect();
        assert_eq!(blocks, [0..64, 64..128]);
    }
}

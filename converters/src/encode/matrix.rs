//! The input of every encoder: a checked row-major matrix.

use crate::error::{Error, Result};

/// A row-major f32 matrix `[rows, cols]` whose values are all finite, with an optional weight per
/// column.
///
/// A weight is the mean square of the activation that the column meets; encoders that minimise an
/// error then minimise `sum_ij weight_j * (w_ij - w'_ij)^2`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    weights: Option<&'a [f32]>,
}

impl<'a> Matrix<'a> {
    /// Checks the length and that every value is finite.
    ///
    /// # Errors
    /// `BadArgument` when `values` is not `rows * cols` long, `Unsupported` with row and column of
    /// the first NaN or infinity: no quantiser keeps those, `dense` and `lossless` do.
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::bad_argument("matrix")
                .expected(format_args!("{rows} x {cols} values"))
                .found(values.len()));
        }
        match first_non_finite(values) {
            Some(index) => {
                Err(Error::unsupported(format!("value at row {}, column {}", index / cols, index % cols))
                    .expected("a finite number")
                    .found(values[index]))
            }
            None => Ok(Self { values, rows, cols, weights: None }),
        }
    }

    /// Adds a weight per column.
    ///
    /// # Errors
    /// `BadArgument` when there is not one finite, non-negative weight a column.
    pub fn with_weights(self, weights: &'a [f32]) -> Result<Self> {
        if weights.len() != self.cols {
            return Err(Error::bad_argument("column weights").expected(self.cols).found(weights.len()));
        }
        if let Some(col) = weights.iter().position(|w| !w.is_finite() || *w < 0.0) {
            return Err(Error::bad_argument(format!("weight of column {col}"))
                .expected("a finite number of 0 or more")
                .found(weights[col]));
        }
        Ok(Self { weights: Some(weights), ..self })
    }

    /// The same shape and weights over other values.
    pub(crate) fn with_values<'b>(&self, values: &'b [f32]) -> Result<Matrix<'b>>
    where
        'a: 'b,
    {
        Ok(Matrix { weights: self.weights, ..Matrix::new(values, self.rows, self.cols)? })
    }

    /// The values, row-major.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Rows: outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The weight of each column, where there are any.
    pub fn weights(&self) -> Option<&'a [f32]> {
        self.weights
    }

    /// Weight of a column; 1 without weights.
    pub(crate) fn weight(&self, col: usize) -> f32 {
        self.weights.map_or(1.0, |w| w[col])
    }
}

/// Index of the first NaN or infinity.
fn first_non_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 4096;
    values.chunks(CHUNK).enumerate().find_map(|(chunk, values)| {
        // Folded without a branch, so that the loop vectorises.
        let bad = values.iter().fold(false, |bad, v| bad | (v.to_bits() & 0x7FFF_FFFF >= 0x7F80_0000));
        bad.then(|| values.iter().position(|v| !v.is_finite()))?.map(|index| chunk * CHUNK + index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn names_row_and_column_of_a_nan() {
        let mut values = vec![1.0; 3 * 5000];
        values[2 * 5000 + 7] = f32::NAN;
        let error = Matrix::new(&values, 3, 5000).map(drop).map_err(|e| (e.kind(), e.to_string()));
        assert_eq!(
            error,
            Err((
                ErrorKind::Unsupported,
                "value at row 2, column 7: expected a finite number, found NaN".to_owned()
            ))
        );
    }

    #[test]
    fn rejects_wrong_length() {
        assert!(Matrix::new(&[0.0; 5], 2, 3).is_err_and(|e| e.kind() == ErrorKind::BadArgument));
    }

    #[test]
    fn rejects_negative_weight() -> Result<()> {
        let values = [0.0; 4];
        let matrix = Matrix::new(&values, 2, 2)?;
        assert!(matrix.with_weights(&[1.0, -1.0]).is_err());
        Ok(())
    }
}

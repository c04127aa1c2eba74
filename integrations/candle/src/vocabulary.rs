//! What errors of the rows of an embedding and of a head cost: tokens are not equally likely.

use crate::config::{Config, EMBEDDING};
use crate::error::{Error, Result};
use crate::eval::Distribution;
use crate::llama::{embedding, head};
use crate::weights::{Linear, Rows, Weights};
use candle_core::{D, Device, Tensor};

/// Most positions whose predictions are averaged over.
const POSITIONS: usize = 8192;
/// Rows in memory at once while they are measured.
const ROWS_AT_ONCE: usize = 4096;
/// Share of a row's weight that all rows have: a token that calibration never met may still come.
const SHARED: f64 = 0.01;
/// Power of the mean probabilities that stands for those of other texts: what is rare in one is less
/// so in another. (0.8 to 0.9 is likeliest on held-out text, 0.75 fits its tail.)
const SMOOTHING: f64 = 0.8;

/// Predictions of the undisturbed model, averaged.
///
/// A small error e of the head's row v moves the logit of token v by e·h, h being what the head
/// reads, and the prediction by a divergence of p(1 - p)(e·h)²/2, p being the probability of the
/// token (the second-order term of the divergence). So row v costs in proportion to the mean of
/// p(1 - p). An embedding's row costs in proportion to how often its token comes, for which the mean
/// of p stands: it is known for tokens that the text does not hold.
pub(crate) struct Vocabulary<'w> {
    config: &'w Config,
    embedding: Box<dyn Rows + 'w>,
    head: Box<dyn Linear + 'w>,
    /// The head's rows, where they are not the embedding's.
    head_rows: Option<Box<dyn Rows + 'w>>,
    /// One position of so many is used.
    stride: usize,
    positions: usize,
    /// Sums over positions of p and of p (1 - p), by token.
    likely: Vec<f64>,
    uncertain: Vec<f64>,
}

/// What errors of the head, and of the embedding, cost.
pub(crate) struct OfRows<'w> {
    /// Second moments of the head's input, or what stands for them, `[hidden, hidden]`.
    pub(crate) moments: Vec<f32>,
    /// Weights of rows, by name of the matrix.
    pub(crate) weights: Vec<(&'w str, Vec<f32>)>,
    /// Sensitivities, by name of the matrix: nats per token for each unit of relative error.
    pub(crate) sensitivity: Vec<(&'w str, f64)>,
}

impl<'w> Vocabulary<'w> {
    pub(crate) fn new(weights: &'w dyn Weights, config: &'w Config, tokens: usize) -> Result<Self> {
        let head_name = config.head_name();
        let own_rows = || weights.rows(head_name, config.vocab, config.hidden);
        Ok(Self {
            config,
            head_rows: (head_name != EMBEDDING).then(own_rows).transpose()?,
            embedding: embedding(weights, config)?,
            head: head(weights, config)?,
            stride: tokens.div_ceil(POSITIONS).max(1),
            positions: 0,
            likely: vec![0.0; config.vocab],
            uncertain: vec![0.0; config.vocab],
        })
    }

    /// Adds the predictions of a window, whose `states`, `[tokens, hidden]`, the head reads.
    pub(crate) fn add(&mut self, states: &Tensor) -> Result<()> {
        let positions: Vec<u32> = (0..states.dim(0)? as u32).step_by(self.stride).collect();
        self.positions += positions.len();
        let states = states.index_select(&Tensor::new(positions, &Device::Cpu)?, 0)?;
        let logits = Tensor::cat(&self.head.forward(&states)?, D::Minus1)?.flatten_all()?.to_vec1()?;
        let predictions = Distribution::new(logits, self.config.vocab);
        for row in predictions.probabilities().chunks_exact(self.config.vocab) {
            for ((p, likely), uncertain) in row.iter().zip(&mut self.likely).zip(&mut self.uncertain) {
                *likely += f64::from(*p);
                *uncertain += f64::from(p * (1.0 - p));
            }
        }
        Ok(())
    }

    /// `moments` are those of what the head reads, `[hidden, hidden]`; `of_embedding` is the
    /// sensitivity of the rows that the embedding gives.
    ///
    /// Of a head that is the embedding too, an error E costs twice: as a head
    /// `sum_v s_v e_v H e_vᵀ / 2`, and as an embedding `c sum_v p_v |e_v|²/|w_v|²` with c the
    /// embedding's sensitivity, s the mean of p (1 - p). Both are stated as one measure,
    /// `sum_v r_v e_v M e_vᵀ`, with M = H + λI, λ such that both parts have their share in the sum
    /// over all rows, and r_v such that the cost of an error as large as w_v is right for each row.
    pub(crate) fn rows(&self, moments: &[f32], of_embedding: Option<f64>) -> Result<OfRows<'w>> {
        let n = self.config.hidden;
        let over = |value: f64, by: f64| if by > 0.0 { value / by } else { 0.0 };
        let mean = |sums: &[f64]| -> Vec<f64> {
            let sum = sums.iter().sum::<f64>();
            let smoothed: Vec<f64> = sums.iter().map(|own| own.powf(SMOOTHING)).collect();
            let factor = over((1.0 - SHARED) * sum, smoothed.iter().sum());
            let shared = SHARED * sum / sums.len().max(1) as f64;
            let positions = self.positions.max(1) as f64;
            smoothed.into_iter().map(|own| (own * factor + shared) / positions).collect()
        };
        let (likely, uncertain) = (mean(&self.likely), mean(&self.uncertain));
        let floats = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<_>>();
        let moments_of_head = Tensor::from_slice(moments, (n, n), &Device::Cpu)?;
        // w H wᵀ of each row of the head, and w wᵀ of each row of the embedding.
        let (mut products, mut squares) = (Vec::new(), Vec::new());
        let ids: Vec<u32> = (0..self.config.vocab as u32).collect();
        for ids in ids.chunks(ROWS_AT_ONCE) {
            let rows = self.embedding.gather(ids)?;
            squares.extend(rows.sqr()?.sum(D::Minus1)?.to_vec1::<f32>()?);
            let rows = self.head_rows.as_ref().map_or(Ok(rows), |head| head.gather(ids))?;
            products.extend((rows.matmul(&moments_of_head)? * &rows)?.sum(D::Minus1)?.to_vec1::<f32>()?);
        }
        if products.iter().chain(&squares).any(|v| !v.is_finite()) {
            return Err(Error::model("the embedding's rows are not finite"));
        }
        let weighed = |weights: &[f64], of: &[f32]| -> f64 {
            weights.iter().zip(of).map(|(w, v)| w * f64::from(*v)).sum()
        };
        let of_head = weighed(&uncertain, &products) / 2.0;
        let of_embedding = of_embedding.unwrap_or(of_head);
        let head_name = self.config.head_name();
        if head_name != EMBEDDING {
            let of_rows: Vec<_> =
                likely.iter().zip(&squares).map(|(p, square)| over(*p, f64::from(*square)) as f32).collect();
            return Ok(OfRows {
                moments: moments.to_vec(),
                weights: vec![(head_name, floats(&uncertain)), (EMBEDDING, of_rows)],
                sensitivity: vec![(head_name, of_head), (EMBEDDING, of_embedding)],
            });
        }
        let lambda = over(2.0 * of_embedding, weighed(&likely, &squares));
        let row = |((p, s), (product, square)): ((&f64, &f64), (&f32, &f32))| {
            let (product, square) = (f64::from(*product), f64::from(*square));
            over(s * product + 2.0 * of_embedding * p, product + lambda * square) as f32
        };
        let weights: Vec<f32> =
            likely.iter().zip(&uncertain).zip(products.iter().zip(&squares)).map(row).collect();
        let mut moments = moments.to_vec();
        moments.iter_mut().step_by(n + 1).for_each(|h| *h += lambda as f32);
        Ok(OfRows {
            moments,
            weights: vec![(EMBEDDING, weights)],
            sensitivity: vec![(EMBEDDING, of_head + of_embedding)],
        })
    }
}

//! Encoding to `codebook`: vectors as sums of entries of trained codebooks.

use super::kmeans::{Samples, Training, train};
use super::matrix::Matrix;
use super::params::CodebookParams;
use super::random::SplitMix64;
use super::search::{Block, Books, LANES, Scratch, search};
use super::store::Stored;
use super::{format_error, node_shape};
use crate::error::{Error, Result};
use cmf_format::NodeData;
use cmf_format::encoding::codebook as format;
use rayon::prelude::*;
use std::sync::Arc;

/// Most pairs of a training vector and an entry.
const MAX_PAIRS: usize = 1 << 28;
/// Most elements of a vector that is trained.
const MAX_VECTOR: usize = 64;
/// Vectors that one thread takes at a time.
const TASK_VECTORS: usize = 64 * LANES;

/// Trained codebooks, which several matrices may share.
#[derive(Clone, Debug)]
pub struct Codebooks {
    /// The codebooks child of the nodes.
    node: Arc<NodeData>,
    /// Its values.
    books: Books,
    shape: Shape,
}

/// The parameters that codebooks and the nodes that use them must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    bits: u8,
    books: u8,
    vector_rows: u32,
    vector_cols: u32,
}

impl Shape {
    fn new(params: &CodebookParams) -> Result<Self> {
        let CodebookParams { bits, codebooks, vector_rows, vector_cols, scaled, scale_cols, beam, .. } =
            *params;
        let bad = |what: &str, expected: &str| Err(Error::bad_argument(what).expected(expected));
        if !(1..=format::MAX_CODE_BITS).contains(&bits) || codebooks == 0 {
            return bad("bits", "codes of 1 to 16 bits and 1 or more codebooks");
        }
        let elements = u64::from(vector_rows) * u64::from(vector_cols);
        if !(1..=MAX_VECTOR as u64).contains(&elements) {
            return bad("vector", "1 to 64 elements");
        }
        if scale_cols % vector_cols != 0 || (!scaled && scale_cols != 0) {
            return bad("scale_cols", "a multiple of vector_cols, 0 without a scale");
        }
        if !(1..=64).contains(&beam) {
            return bad("beam", "1 to 64");
        }
        Ok(Self { bits, books: codebooks, vector_rows, vector_cols })
    }

    fn dim(self) -> usize {
        (self.vector_rows * self.vector_cols) as usize
    }
}

/// Trains codebooks on a sample of the vectors of all matrices, in proportion to their sizes.
///
/// # Errors
/// `BadArgument` for parameters out of range or nothing to train on.
pub fn codebooks(matrices: &[Matrix<'_>], params: &CodebookParams) -> Result<Codebooks> {
    let shape = Shape::new(params)?;
    let layouts: Vec<Vectors<'_>> =
        matrices.iter().map(|matrix| Vectors::new(*matrix, shape, params)).collect::<Result<_>>()?;
    let total: usize = layouts.iter().map(Vectors::count).sum();
    if total == 0 {
        return Err(Error::bad_argument("matrix").expected("elements to train codebooks on"));
    }
    let wanted = (1usize << shape.bits).saturating_mul(params.samples_per_entry.max(1) as usize);
    let count = wanted.min(MAX_PAIRS >> shape.bits).min(total);
    let mut random = SplitMix64::new(params.seed);
    let mut samples = Samples {
        dim: shape.dim(),
        values: Vec::with_capacity(count * shape.dim()),
        weights: Vec::with_capacity(count * shape.dim()),
    };
    let mut layout = layouts.iter();
    let (mut current, mut first) = (layout.next(), 0);
    for sample in 0..count {
        // One vector from each of `count` equal stretches.
        let stretch = |end: usize| (end as u128 * total as u128 / count as u128) as usize;
        let (from, to) = (stretch(sample), stretch(sample + 1));
        let index = from + random.below(to - from);
        while let Some(vectors) = current {
            if index < first + vectors.count() {
                vectors.sample(index - first, &mut samples);
                break;
            }
            first += vectors.count();
            current = layout.next();
        }
    }
    let entries = 1 << shape.bits;
    let training = Training {
        books: shape.books.into(),
        entries,
        iterations: params.iterations,
        beam: params.beam as usize,
        seed: random.next(),
    };
    let (books, _) = train(&samples, &training);
    let Stored { node, values } =
        params.entries.pack("codebook entry", &books.values, books.books * entries, books.dim)?;
    Ok(Codebooks { node: node.into(), books: Books { values, ..books }, shape })
}

/// Encodes a matrix with codebooks of its own.
///
/// # Errors
/// As [`codebooks`].
pub fn codebook(matrix: &Matrix<'_>, params: &CodebookParams) -> Result<NodeData> {
    codebook_with(matrix, params, &codebooks(core::slice::from_ref(matrix), params)?)
}

/// Encodes a matrix with given codebooks; the node holds them as a child that others may share.
///
/// # Errors
/// `BadArgument` for codebooks of another shape than the parameters ask for.
pub fn codebook_with(
    matrix: &Matrix<'_>,
    params: &CodebookParams,
    codebooks: &Codebooks,
) -> Result<NodeData> {
    let shape = Shape::new(params)?;
    if shape != codebooks.shape {
        return Err(Error::bad_argument("codebooks")
            .expected(format_args!("{shape:?}"))
            .found(format_args!("{:?}", codebooks.shape)));
    }
    let mut vectors = Vectors::new(*matrix, shape, params)?;
    let books = &codebooks.books;
    let codes = vectors.codes(books, params.beam as usize);
    if let Some(scale) = &mut vectors.scale {
        // The scale that fits the codes best. Codes found again for it would gain 0.005 dB.
        let fitted = vectors.layout.fitted_scales(books, &codes, &scale.values);
        let (rows, cols) = vectors.layout.scale_shape();
        *scale = params.scale.pack("scale", &fitted, rows, cols)?;
    }
    let descriptor = format::Descriptor {
        codebooks: shape.books,
        bits: shape.bits,
        has_scale: params.scaled,
        vector_rows: shape.vector_rows,
        vector_cols: shape.vector_cols,
        scale_cols: params.scale_cols,
    };
    let (rows, cols) = node_shape(matrix.rows(), matrix.cols());
    let scale = vectors.scale.map(|scale| Arc::new(scale.node));
    format::pack(&descriptor, rows, cols, &codes, codebooks.node.clone(), scale).map_err(format_error)
}

/// Where the vectors of a matrix lie.
#[derive(Clone, Copy, Debug)]
struct Layout<'a> {
    matrix: Matrix<'a>,
    vector_rows: usize,
    vector_cols: usize,
    /// Vectors that share a scale, side by side.
    vectors_per_scale: usize,
    down: usize,
    across: usize,
}

impl Layout<'_> {
    fn count(&self) -> usize {
        self.down * self.across
    }

    /// Rows and columns of the scales.
    fn scale_shape(&self) -> (usize, usize) {
        (self.down, self.across.div_ceil(self.vectors_per_scale))
    }

    fn scale_of(&self, vector: usize) -> usize {
        vector / self.across * self.scale_shape().1 + vector % self.across / self.vectors_per_scale
    }

    /// Calls `each(k, value, weight)` for every element of a vector that lies in the matrix.
    fn elements(&self, vector: usize, mut each: impl FnMut(usize, f32, f32)) {
        let (top, left) = (vector / self.across * self.vector_rows, vector % self.across * self.vector_cols);
        for i in 0..self.vector_rows.min(self.matrix.rows() - top) {
            let start = (top + i) * self.matrix.cols() + left;
            let cols = self.vector_cols.min(self.matrix.cols() - left);
            for (j, value) in self.matrix.values()[start..start + cols].iter().enumerate() {
                each(i * self.vector_cols + j, *value, self.matrix.weight(left + j));
            }
        }
    }

    /// Root of the mean square of what shares a scale.
    fn root_mean_squares(&self) -> Vec<f32> {
        let (rows, cols) = self.scale_shape();
        let mut sums = vec![(0f64, 0u64); rows * cols];
        for vector in 0..self.count() {
            let sum = &mut sums[self.scale_of(vector)];
            self.elements(vector, |_, value, _| {
                sum.0 += f64::from(value) * f64::from(value);
                sum.1 += 1;
            });
        }
        sums.iter().map(|(sum, count)| (sum / (*count).max(1) as f64).sqrt() as f32).collect()
    }

    /// Scales of least squared error for given codes; the present ones where nothing is to be won.
    fn fitted_scales(&self, books: &Books, codes: &[u16], present: &[f32]) -> Vec<f32> {
        let mut sums = vec![(0f64, 0f64); present.len()];
        let mut decoded = vec![0f32; books.dim];
        for (vector, codes) in codes.chunks_exact(books.books).enumerate() {
            decoded.fill(0.0);
            for (book, code) in codes.iter().enumerate() {
                decoded.iter_mut().zip(books.entry(book, *code)).for_each(|(d, c)| *d += c);
            }
            let sum = &mut sums[self.scale_of(vector)];
            self.elements(vector, |k, value, weight| {
                let (value, entry, weight) = (f64::from(value), f64::from(decoded[k]), f64::from(weight));
                sum.0 += weight * value * entry;
                sum.1 += weight * entry * entry;
            });
        }
        let fitted = sums.iter().zip(present);
        fitted
            .map(
                |((shared, own), present)| {
                    if *own > 0.0 && *shared > 0.0 { (shared / own) as f32 } else { *present }
                },
            )
            .collect()
    }
}

/// The vectors of a matrix, over their scales.
struct Vectors<'a> {
    layout: Layout<'a>,
    scale: Option<Stored>,
    dim: usize,
}

impl<'a> Vectors<'a> {
    fn new(matrix: Matrix<'a>, shape: Shape, params: &CodebookParams) -> Result<Self> {
        let (vector_rows, vector_cols) = (shape.vector_rows as usize, shape.vector_cols as usize);
        let layout = Layout {
            matrix,
            vector_rows,
            vector_cols,
            vectors_per_scale: match params.scale_cols {
                0 => matrix.cols().div_ceil(vector_cols).max(1),
                cols => cols as usize / vector_cols,
            },
            down: matrix.rows().div_ceil(vector_rows),
            across: matrix.cols().div_ceil(vector_cols),
        };
        let (rows, cols) = layout.scale_shape();
        let scale = match params.scaled {
            true => Some(params.scale.pack("scale", &layout.root_mean_squares(), rows, cols)?),
            false => None,
        };
        Ok(Self { layout, scale, dim: shape.dim() })
    }

    fn count(&self) -> usize {
        self.layout.count()
    }

    fn scale(&self, vector: usize) -> f32 {
        self.scale.as_ref().map_or(1.0, |scale| scale.values[self.layout.scale_of(vector)])
    }

    /// Appends a vector over its scale, weighted as its error counts in the matrix. Elements beyond
    /// the edge have no weight.
    fn sample(&self, vector: usize, samples: &mut Samples) {
        let start = samples.values.len();
        samples.values.resize(start + self.dim, 0.0);
        samples.weights.resize(start + self.dim, 0.0);
        let scale = self.scale(vector);
        self.layout.elements(vector, |k, value, weight| {
            samples.values[start + k] = over(value, scale);
            samples.weights[start + k] = weight * scale * scale;
        });
    }

    /// The codes of all vectors, in order.
    fn codes(&self, books: &Books, beam: usize) -> Vec<u16> {
        let mut codes = vec![0; self.count() * books.books];
        let mut_tasks = codes.par_chunks_mut(TASK_VECTORS * books.books).enumerate();
        mut_tasks.for_each_init(
            || (Scratch::default(), Block::new(self.dim)),
            |(scratch, block), (task, codes)| {
                for (number, codes) in codes.chunks_mut(LANES * books.books).enumerate() {
                    let first = task * TASK_VECTORS + number * LANES;
                    self.fill(first, codes.len() / books.books, block);
                    let (found, _) = search(books, block, beam, scratch);
                    for (lane, codes) in codes.chunks_exact_mut(books.books).enumerate() {
                        codes.iter_mut().zip(found).for_each(|(code, found)| *code = found[lane]);
                    }
                }
            },
        );
        codes
    }

    fn fill(&self, first: usize, lanes: usize, block: &mut Block) {
        block.weights.iter_mut().for_each(|weights| weights.fill(0.0));
        block.elements.iter_mut().for_each(|elements| elements.fill(0.0));
        for lane in 0..lanes {
            let scale = self.scale(first + lane);
            self.layout.elements(first + lane, |k, value, weight| {
                block.elements[k][lane] = over(value, scale);
                block.weights[k][lane] = weight;
            });
        }
        let all_ones = |weights: &[f32; LANES]| weights[..lanes].iter().all(|weight| *weight == 1.0);
        block.uniform = block.weights.iter().all(all_ones);
    }
}

/// A value over its scale; 0 where the scale is.
fn over(value: f32, scale: f32) -> f32 {
    let quotient = value / scale;
    if quotient.is_finite() { quotient } else { 0.0 }
}

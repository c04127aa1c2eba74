//! A matrix to multiply with: terms between transforms.

use crate::activations::Activations;
use crate::arch::Simd;
use crate::error::{Result, argument};
use crate::hadamard;
use crate::isa::Isa;
use crate::node::{Node, Plan, TILE_ELEMS, Wanted, each_tile, nested};
use crate::operands::{BLOCK, Input};
use crate::pool;
use crate::precision::Precision;
use crate::scratch::Scratch;
use crate::work::Work;
use cmf_format::DType;
use cmf_format::archive::MatrixView;
use cmf_format::encoding::View;
use cmf_format::encoding::sparse::Op;
use cmf_format::transform::{Side, left_multiply};
use core::ops::Range;
use rayon::prelude::*;

/// Products of weights and tokens below which one thread is faster than several, which have to wake up;
/// and the same by quantised activations.
const FEW_PRODUCTS: usize = 1 << 18;
const FEW_FAST_PRODUCTS: usize = 1 << 20;
/// How many times fewer are worth it among threads of one pool.
const NEAR: usize = 8;
/// Tokens from which on rows of the sum of several terms are decoded, in exact products.
const MANY_TOKENS: usize = 8;
/// Rows of a thread's part are a multiple: trellis paths have up to 32 rows in a word.
const PART_ROWS: usize = 32;

/// A matrix of a `.cmf`, ready to be multiplied with: y = x Wᵀ.
///
/// Packed bytes are read where they lie; only tables and other small parts are prepared, once. Another
/// set of units is another [`MatrixView`], and so another value of this type, which costs no more than
/// opening it.
#[derive(Debug)]
pub struct Linear<'a> {
    view: MatrixView<'a>,
    /// Of each term.
    plans: Vec<Plan>,
    /// The same in products.
    parts: Vec<Part>,
    /// Whether products with terms can be added up: else rows of their sum are decoded.
    by_terms: bool,
    simd: Simd,
}

/// What a term is in products.
#[derive(Debug)]
enum Part {
    /// Itself.
    Own,
    /// Nothing: a later term has its values too.
    Covered,
    /// The sum of itself and of terms that it covers.
    Sum(Box<Plan>),
}

impl<'a> Linear<'a> {
    /// Prepares the opened terms of `view` for the instruction set `isa`.
    ///
    /// # Errors
    /// `Argument` when this machine lacks the instruction set.
    pub fn new(view: MatrixView<'a>, isa: Isa) -> Result<Self> {
        let simd = Simd::new(isa).ok_or_else(|| argument("isa", format!("{isa:?} is not available")))?;
        let cols = view.cols();
        let by_terms = view.terms().all(|(_, col, term)| {
            let end = col.saturating_add(term.cols());
            let replaces = matches!(term, View::Sparse(sparse) if sparse.descriptor().op == Op::Replace);
            col.is_multiple_of(BLOCK) && (end == cols || end.is_multiple_of(BLOCK)) && !replaces
        });
        let plans = view.terms().map(|(_, _, term)| Plan::new(term)).collect();
        let parts = Part::of_terms(&view);
        Ok(Self { view, plans, parts, by_terms, simd })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.view.rows()
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.view.cols()
    }

    /// What the matrix was made of.
    pub fn view(&self) -> &MatrixView<'a> {
        &self.view
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.simd.isa()
    }

    /// Whether activations that were loaded for `other` serve here too.
    pub fn shares_input(&self, other: &Linear<'_>) -> bool {
        self.cols() == other.cols() && self.view.input_transforms() == other.view.input_transforms()
    }

    /// y = x Wᵀ: `x` was loaded with this matrix's input-side transforms, `y` is
    /// `[x.tokens(), rows]`, row-major. Work is shared by the threads of the rayon pool that this is
    /// called in; values do not depend on their number.
    ///
    /// # Errors
    /// `Argument` when shapes do not fit, `Value` when the payload breaks a rule of its encoding.
    pub fn multiply(&self, x: &Activations, y: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        Self::multiply_all(&[self], x, y, scratch)
    }

    /// As [`Linear::multiply`], for matrices that share their input: `y` has the products of the
    /// first, then those of the second, and so on. Threads share the rows of all at once, which small
    /// matrices alone are not worth.
    ///
    /// # Errors
    /// As [`Linear::multiply`].
    pub fn multiply_all(
        matrices: &[&Self],
        x: &Activations,
        y: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let tokens = x.tokens();
        let rows = matrices.iter().fold(0, |rows: usize, matrix| rows.saturating_add(matrix.rows()));
        let fits = matrices.iter().all(|matrix| matrix.cols() == x.cols());
        if !fits || y.len() != rows.saturating_mul(tokens) {
            let cols: Vec<usize> = matrices.iter().map(|matrix| matrix.cols()).collect();
            let problem =
                format!("{tokens} x {} by {rows} rows of {cols:?} columns into {} values", x.cols(), y.len());
            return Err(argument("activations", problem));
        }
        if y.is_empty() {
            return Ok(());
        }
        // Threads get whole parts of each matrix, so that values do not depend on their number.
        if let [others @ .., _] = matrices
            && !others.iter().all(|matrix| matrix.rows().is_multiple_of(PART_ROWS))
        {
            return each_part(matrices, tokens, y, |matrix, _, y| matrix.multiply(x, y, scratch));
        }
        match tokens {
            1 => Self::products(matrices, x, y, scratch)?,
            _ => {
                let mut products = core::mem::take(&mut scratch.products);
                let turned = products.sized(y.len());
                let done = Self::products(matrices, x, turned, scratch);
                each_part(matrices, tokens, turned, |matrix, first, products| {
                    let y = y.get_mut(first * tokens..(first + matrix.rows()) * tokens).unwrap_or(&mut []);
                    transpose(products, tokens, y);
                    Ok(())
                })?;
                scratch.products = products;
                done?;
            }
        }
        each_part(matrices, tokens, y, |matrix, _, y| {
            let transforms = matrix.view.output_transforms();
            y.chunks_exact_mut(matrix.rows()).try_for_each(|y| {
                hadamard::apply_all(matrix.simd, transforms, Side::Output, y, &mut scratch.vector)
            })
        })
    }

    /// Products without the output-side transforms, `[rows of all matrices, tokens]`.
    fn products(matrices: &[&Self], x: &Activations, out: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let tokens = x.tokens();
        let rows = out.len() / tokens.max(1);
        out.fill(0.0);
        let products = out.len().saturating_mul(x.cols());
        let few = match x.precision() {
            Precision::Exact => FEW_PRODUCTS,
            Precision::Fast => FEW_FAST_PRODUCTS,
        };
        let few = if pool::is_near() { few / NEAR } else { few };
        let threads = if products < few { 1 } else { rayon::current_num_threads() };
        let part = rows.div_ceil(threads).next_multiple_of(PART_ROWS);
        let workers = scratch.workers(threads);
        let rows_of_all = |start: usize, out: &mut [f32], work: &mut Work| {
            let end = start + out.len() / tokens;
            let mut first = 0;
            for matrix in matrices {
                let own = start.max(first)..end.min(first + matrix.rows());
                if !own.is_empty() {
                    let part = (own.start - start) * tokens..(own.end - start) * tokens;
                    let out = out.get_mut(part).unwrap_or(&mut []);
                    matrix.rows_of_products(own.start - first..own.end - first, x, out, work)?;
                }
                first += matrix.rows();
            }
            Ok(())
        };
        if let ([work, ..], true) = (&mut *workers, part >= rows) {
            rows_of_all(0, out, work)?;
        } else {
            let parts = out.par_chunks_mut(part * tokens).zip(workers.par_iter_mut()).enumerate();
            parts.try_for_each(|(i, (out, work))| rows_of_all(i * part, out, work))?;
        }
        let Some(work) = scratch.workers(1).first_mut() else { return Ok(()) };
        each_part(matrices, tokens, out, |matrix, _, out| {
            matrix.each_part(|node, row, col| {
                if !node.plan.is_whole() {
                    return Ok(());
                }
                let rows = 0..node.view.rows();
                let out = out.get_mut(row * tokens..(row + rows.end) * tokens).unwrap_or(&mut []);
                let wanted = Wanted { simd: matrix.simd, rows, out, work };
                node.multiply(&term_input(x, col, node.view.cols()), wanted)
            })
        })
    }

    /// Calls `f` with each term, its first row and its first column, if terms can be added up.
    fn each_term(&self, mut f: impl FnMut(Node<'_, 'a>, usize, usize) -> Result<()>) -> Result<()> {
        if !self.by_terms {
            return Ok(());
        }
        for (i, ((row, col, view), plan)) in self.view.terms().zip(&self.plans).enumerate() {
            f(Node { view, plan }, row, col).map_err(|e| e.within(format_args!("term {i}")))?;
        }
        Ok(())
    }

    /// As [`Linear::each_term`], with terms that others cover left out.
    fn each_part(&self, mut f: impl FnMut(Node<'_, 'a>, usize, usize) -> Result<()>) -> Result<()> {
        let mut parts = self.parts.iter();
        self.each_term(|node, row, col| match parts.next() {
            Some(Part::Covered) => Ok(()),
            Some(Part::Sum(plan)) => f(Node { plan, ..node }, row, col),
            _ => f(node, row, col),
        })
    }

    /// Rows that are decoded together at least.
    fn least_rows(&self) -> usize {
        self.plans.iter().map(Plan::least_rows).max().unwrap_or(1)
    }

    /// Rows `rows` of the products.
    fn rows_of_products(
        &self,
        rows: Range<usize>,
        x: &Activations,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let tokens = x.tokens();
        // Several terms are decoded once, and their sum is multiplied with many tokens.
        let is_exact = x.precision() == Precision::Exact || self.plans.iter().all(Plan::is_always_exact);
        let by_sum = is_exact
            && tokens >= MANY_TOKENS
            && self.parts.iter().filter(|part| !matches!(part, Part::Covered)).count() > 1
            && !self.plans.iter().any(Plan::is_whole);
        if !self.by_terms || by_sum {
            let input = x.input(0..self.cols().div_ceil(BLOCK));
            let wanted = Wanted { simd: self.simd, rows, out, work };
            return each_tile(
                self.cols(),
                self.least_rows(),
                &input,
                wanted,
                &mut |Wanted { rows, out, work, .. }| self.sum_rows(rows, out, work),
            );
        }
        self.each_part(|node, row, col| {
            let (start, end) = (rows.start.max(row), rows.end.min(row + node.view.rows()));
            if start >= end || node.plan.is_whole() {
                return Ok(());
            }
            let part = (start - rows.start) * tokens..(end - rows.start) * tokens;
            let out = out.get_mut(part).unwrap_or(&mut []);
            let wanted = Wanted { simd: self.simd, rows: start - row..end - row, out, work };
            node.multiply(&term_input(x, col, node.view.cols()), wanted)
        })
    }

    /// Decodes rows `rows` of W into `out`, row-major, to the bit as the reference decode does.
    ///
    /// # Errors
    /// `Argument` when the matrix does not have these rows or `out` another length, `Value` when
    /// the payload breaks a rule.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let cols = self.cols();
        let fits = rows.start <= rows.end && rows.end <= self.rows();
        if !fits || Some(out.len()) != rows.len().checked_mul(cols) {
            let problem = format!("{rows:?} of [{}, {cols}] into {} values", self.rows(), out.len());
            return Err(argument("rows", problem));
        }
        if out.is_empty() {
            return Ok(());
        }
        let threads = match out.len() < FEW_PRODUCTS || !self.view.output_transforms().is_empty() {
            true => 1,
            false => rayon::current_num_threads(),
        };
        let part = rows.len().div_ceil(threads).next_multiple_of(PART_ROWS);
        let workers = scratch.workers(threads);
        match &mut *workers {
            [work, ..] if part >= rows.len() => self.decode_part(rows, out, work),
            _ => {
                let parts = out.par_chunks_mut(part * cols).zip(workers.par_iter_mut()).enumerate();
                parts.try_for_each(|(i, (out, work))| {
                    let start = rows.start + i * part;
                    self.decode_part(start..start + out.len() / cols, out, work)
                })
            }
        }
    }

    fn decode_part(&self, rows: Range<usize>, out: &mut [f32], work: &mut Work) -> Result<()> {
        let cols = self.cols();
        left_multiply(self.view.output_transforms(), rows, cols, out, &mut |rows, out| {
            self.sum_rows(rows, out, work)?;
            let mut scratch = core::mem::take(&mut work.raw);
            for row in out.chunks_exact_mut(cols) {
                for transform in self.view.input_transforms().iter().rev() {
                    let transform = core::slice::from_ref(transform);
                    hadamard::apply_all(self.simd, transform, Side::Output, row, &mut scratch)?;
                }
            }
            work.raw = scratch;
            Ok(())
        })
    }

    /// Rows of the sum of the terms, in the order of the terms.
    fn sum_rows(&self, rows: Range<usize>, out: &mut [f32], work: &mut Work) -> Result<()> {
        let cols = self.cols();
        if !self.by_terms {
            return self.view.sum_rows(rows, out);
        }
        let single = self.plans.len() == 1;
        // The identity of IEEE addition: a single term keeps its negative zeros.
        out.fill(-0.0);
        self.each_term(|node, row, col| {
            let (start, end) = (rows.start.max(row), rows.end.min(row + node.view.rows()));
            if start >= end {
                return Ok(());
            }
            let part = (start - rows.start) * cols..(end - rows.start) * cols;
            let out = out.get_mut(part).unwrap_or(&mut []);
            let width = node.view.cols();
            if single && width == cols {
                return node.decode(Wanted { simd: self.simd, rows: start - row..end - row, out, work });
            }
            let mut tile = core::mem::take(&mut work.tile);
            let height = TILE_ELEMS.div_ceil(width.max(1)).max(self.least_rows());
            let mut done = Ok(());
            for (first, out) in (start..end).step_by(height).zip(out.chunks_mut(height * cols)) {
                let own = first - row..(first + out.len() / cols) - row;
                let needed = own.len() * width;
                let values = tile.sized(needed.div_ceil(BLOCK));
                let values = values.as_flattened_mut().get_mut(..needed).unwrap_or(&mut []);
                done = node.decode(Wanted { simd: self.simd, rows: own, out: &mut *values, work });
                for (values, out) in values.chunks_exact(width.max(1)).zip(out.chunks_exact_mut(cols)) {
                    let out = out.get_mut(col..).unwrap_or(&mut []);
                    out.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
                if done.is_err() {
                    break;
                }
            }
            work.tile = tile;
            done
        })
    }

    /// As [`Linear::decode_rows`], rounded to elements of type `dtype`.
    ///
    /// # Errors
    /// As [`Linear::decode_rows`], and `Argument` for a type that values cannot be rounded to.
    pub fn decode_elements(
        &self,
        rows: Range<usize>,
        dtype: DType,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let needed = rows.len().checked_mul(self.cols());
        if needed.and_then(|n| n.checked_mul(dtype.bytes())) != Some(out.len()) {
            return Err(argument("out", format!("{} bytes for {rows:?}", out.len())));
        }
        let mut values = core::mem::take(&mut scratch.products);
        let values_of = values.sized(needed.unwrap_or(0));
        let done = self.decode_rows(rows, values_of, scratch).and_then(|()| dtype.encode(values_of));
        scratch.products = values;
        out.copy_from_slice(&done?);
        Ok(())
    }

    /// Decodes the rows `ids`, in this order, into `out`, `[ids.len(), cols]`: an embedding's gather.
    ///
    /// # Errors
    /// As [`Linear::decode_rows`].
    pub fn gather(&self, ids: &[u32], out: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let cols = self.cols();
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.rows()) {
            return Err(argument("ids", format!("row {id} of {}", self.rows())));
        }
        if Some(out.len()) != ids.len().checked_mul(cols) {
            return Err(argument("out", format!("{} values for {} rows of {cols}", out.len(), ids.len())));
        }
        if out.is_empty() {
            return Ok(());
        }
        let threads = if ids.len() < 8 { 1 } else { rayon::current_num_threads() };
        let part = ids.len().div_ceil(threads).max(1);
        let workers = scratch.workers(threads);
        let parts = out.par_chunks_mut(part * cols).zip(ids.par_chunks(part)).zip(workers.par_iter_mut());
        let rows = |out: &mut [f32], ids: &[u32], work: &mut Work| {
            let rows = ids.iter().zip(out.chunks_exact_mut(cols));
            rows.into_iter().try_for_each(|(id, out)| {
                let row = *id as usize;
                self.decode_part(row..row + 1, out, work)
            })
        };
        if threads == 1 {
            return parts.map(|((out, ids), work)| rows(out, ids, work)).collect();
        }
        parts.try_for_each(|((out, ids), work)| rows(out, ids, work))
    }
}

impl Part {
    /// Levels of `nested` that follow each other at one place are the last of them.
    fn of_terms(view: &MatrixView<'_>) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        for (i, (row, col, upper)) in view.terms().enumerate() {
            let below = view.terms().take(i).zip(&parts).position(|((r, c, lower), part)| {
                (r, c) == (row, col)
                    && match part {
                        Part::Own => nested::is_level(lower) && nested::follows(upper, lower),
                        Part::Covered => false,
                        Part::Sum(_) => nested::follows(upper, lower),
                    }
            });
            let sum = below.and_then(|below| Some((below, nested::level(upper)?)));
            if let Some((below, plan)) = sum {
                if let Some(below) = parts.get_mut(below) {
                    *below = Part::Covered;
                }
                parts.push(Part::Sum(Box::new(plan)));
            } else {
                parts.push(Part::Own);
            }
        }
        parts
    }
}

/// Hands each matrix to `each`, with its first row among those of all and its part of `values`, which has
/// `tokens` values a row.
fn each_part(
    matrices: &[&Linear<'_>],
    tokens: usize,
    values: &mut [f32],
    mut each: impl FnMut(&Linear<'_>, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let (mut first, mut rest) = (0, values);
    for matrix in matrices {
        let length = (matrix.rows() * tokens).min(rest.len());
        let (own, beyond) = rest.split_at_mut(length);
        each(matrix, first, own)?;
        (first, rest) = (first + matrix.rows(), beyond);
    }
    Ok(())
}

/// The columns of a term.
fn term_input(x: &Activations, col: usize, cols: usize) -> Input<'_> {
    let first = col / BLOCK;
    x.input(first..first + cols.div_ceil(BLOCK))
}

/// `[rows, tokens]` to `[tokens, rows]`.
fn transpose(products: &[f32], tokens: usize, out: &mut [f32]) {
    const TILE: usize = 16;
    let rows = products.len() / tokens.max(1);
    for row in (0..rows).step_by(TILE) {
        for token in 0..tokens {
            let end = rows.min(row + TILE);
            let from = products.get(row * tokens + token..).unwrap_or(&[]).iter().step_by(tokens);
            let to = out.get_mut(token * rows + row..token * rows + end).unwrap_or(&mut []);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

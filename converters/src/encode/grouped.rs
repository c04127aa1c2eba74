//! Encoding to `grouped`: scales and zero points of all groups, then codes.

use super::grid::{Extremes, Grid, NARROW};
use super::kernels::{Columns, codes, codes_by_column, pack_row};
use super::levels::{LevelSet, Levels, with_levels};
use super::matrix::Matrix;
use super::mse;
use super::params::{Codes, GroupedParams, Method, Store, Zero};
use super::rule::{Fit, Rule};
use super::store::Stored;
use super::vectors::Group;
use super::{format_error, hqq, node_shape};
use crate::error::{Error, Result};
use cmf_format::encoding::{dense, grouped as format};
use cmf_format::{DType, NodeData, bits};
use rayon::prelude::*;

/// Elements that one thread takes at a time.
const TASK_ELEMENTS: usize = 1 << 16;
/// Most levels of scales whose scales are quantised again.
const MAX_NESTING: usize = 3;

/// Quantises a matrix in groups.
///
/// Codes are rounded with scales and zero points as they are stored. The result does not depend on
/// the number of threads.
///
/// # Errors
/// `BadArgument` for parameters that do not fit together, `Unsupported` for a scale or zero point
/// that its store cannot hold.
pub fn grouped(matrix: &Matrix<'_>, params: &GroupedParams) -> Result<NodeData> {
    check_nesting(params, MAX_NESTING)?;
    params.hqq.check()?;
    let levels = LevelSet::new(params)?;
    let encoder = Encoder {
        matrix: *matrix,
        grid: Grid::new(matrix.rows(), matrix.cols(), params.group_rows, params.group_cols),
        rule: Rule::new(params, &levels)?,
        params,
        levels: &levels,
    };
    encoder.run()
}

fn check_nesting(params: &GroupedParams, depth: usize) -> Result<()> {
    [&params.scale, &params.zero_store].into_iter().try_for_each(|store| {
        match (store, depth.checked_sub(1)) {
            (Store::Grouped(inner), Some(depth)) => check_nesting(inner, depth),
            (Store::Grouped(_), None) => Err(Error::bad_argument("scale")
                .expected(format_args!("at most {MAX_NESTING} levels of `grouped`"))),
            _ => Ok(()),
        }
    })
}

struct Encoder<'a> {
    matrix: Matrix<'a>,
    grid: Grid,
    rule: Rule<'a>,
    params: &'a GroupedParams,
    levels: &'a LevelSet,
}

impl Encoder<'_> {
    fn run(&self) -> Result<NodeData> {
        let (grid, rule) = (&self.grid, &self.rule);
        let fits = self.fits();
        let scales: Vec<f32> = fits.iter().map(|fit| rule.scale_store.round_scale(fit.scale)).collect();
        let scale = self.params.scale.pack("scale", &scales, grid.down, grid.across)?;
        let zero = self.zeros(&fits, &scale.values)?;
        let zeros = zero.as_ref().map(|zero| zero.values.as_slice());
        let stream = self.stream(&scale.values, zeros)?;

        let table =
            self.levels.table.as_ref().map(|table| {
                dense::pack_values(DType::F32, 1, table.len() as u64, table).map_err(format_error)
            });
        let descriptor = format::Descriptor {
            bits: self.params.bits,
            code_map: self.levels.code_map,
            scale_op: format::ScaleOp::Multiply,
            zero_op: match self.params.zero {
                Zero::None => format::ZeroOp::None,
                Zero::Code | Zero::Subtract => format::ZeroOp::Subtract,
                Zero::Add => format::ZeroOp::Add,
            },
            group_rows: self.params.group_rows,
            group_cols: self.params.group_cols,
        };
        let children = format::Children {
            scale: Some(scale.node),
            zero: zero.map(|zero| zero.node),
            table: table.transpose()?,
        };
        let (rows, cols) = node_shape(grid.rows, grid.cols);
        format::pack_stream(&descriptor, rows, cols, stream, children).map_err(format_error)
    }

    /// Scale and base of every group before they are stored.
    fn fits(&self) -> Vec<Fit> {
        let mut fits = self.roundings();
        if self.params.method == Method::Mse {
            let steps = match self.params.codes {
                Codes::Integer => self.rule.high - self.rule.low,
                // Levels that crowd around zero: the grid's fineness in steps of a 4-bit code.
                _ => 15.0,
            };
            self.for_each_group(&mut fits, |group, fit| {
                *fit = with_levels!(&self.levels.kind, levels => mse::search(levels, &self.rule, steps, group, *fit));
            });
        }
        fits
    }

    /// Zero points for scales as they were stored.
    fn zeros(&self, fits: &[Fit], scales: &[f32]) -> Result<Option<Stored>> {
        if self.params.zero == Zero::None {
            return Ok(None);
        }
        let (grid, rule, hqq) = (&self.grid, &self.rule, &self.params.hqq);
        let mut fits: Vec<Fit> =
            fits.iter().zip(scales).map(|(fit, scale)| Fit { scale: *scale, ..*fit }).collect();
        match self.params.method {
            Method::Rtn => {}
            // The search has fitted the base to a scale that hardly differs.
            Method::Mse if self.params.scale.is_fine() => {}
            Method::Mse => self.for_each_group(&mut fits, |group, fit| {
                fit.base = with_levels!(&self.levels.kind, levels =>
                    mse::refit_base(levels, rule, group, fit.scale, fit.base));
            }),
            Method::Hqq => self.for_each_group(&mut fits, |group, fit| {
                fit.base = with_levels!(&self.levels.kind, levels =>
                    hqq::fit_base(levels, rule, hqq, group.values, fit.scale, fit.base));
            }),
        }
        let zeros: Vec<f32> = fits.iter().map(|fit| rule.zero_point(fit.scale, fit.base)).collect();
        match self.params.zero {
            Zero::Code => self.integer_zeros(zeros).map(Some),
            _ => self.params.zero_store.pack("zero point", &zeros, grid.down, grid.across).map(Some),
        }
    }

    /// Zero points as codes of the same width, without a scale.
    fn integer_zeros(&self, values: Vec<f32>) -> Result<Stored> {
        let bits = u32::from(self.params.bits);
        let stride = stride(self.grid.across, bits)?;
        let mut stream = vec![0; stride * self.grid.down];
        for (zeros, packed) in values.chunks(self.grid.across.max(1)).zip(stream.chunks_mut(stride.max(1))) {
            let codes: Vec<u8> = zeros.iter().map(|zero| *zero as u8).collect();
            pack_row(&codes, bits, packed);
        }
        let descriptor = format::Descriptor {
            bits: self.params.bits,
            code_map: format::CodeMap::Integer { offset: 0 },
            scale_op: format::ScaleOp::None,
            zero_op: format::ZeroOp::None,
            group_rows: 0,
            group_cols: 0,
        };
        let (rows, cols) = node_shape(self.grid.down, self.grid.across);
        let node = format::pack_stream(&descriptor, rows, cols, stream, format::Children::default())
            .map_err(format_error)?;
        Ok(Stored { node, values })
    }

    /// Round to nearest for every group.
    fn roundings(&self) -> Vec<Fit> {
        let grid = &self.grid;
        let mut all = vec![Fit::default(); grid.groups()];
        if all.is_empty() {
            return all;
        }
        all.par_chunks_mut(grid.across).with_min_len(self.bands_a_task()).enumerate().for_each_init(
            || Extremes::new(grid),
            |ends, (i, fits)| {
                ends.reset();
                grid.band(i).for_each(|row| ends.add(&self.matrix.values()[row * grid.cols..][..grid.cols]));
                for (fit, (least, greatest)) in fits.iter_mut().zip(ends.groups()) {
                    *fit = self.rule.rounding(least, greatest);
                }
            },
        );
        all
    }

    fn for_each_group(&self, all: &mut [Fit], each: impl Fn(Group<'_>, &mut Fit) + Sync) {
        let grid = &self.grid;
        if all.is_empty() {
            return;
        }
        all.par_chunks_mut(grid.across).with_min_len(self.bands_a_task()).enumerate().for_each_init(
            Default::default,
            |buffers: &mut (Vec<f32>, Vec<f32>), (i, items)| {
                for (j, item) in items.iter_mut().enumerate() {
                    let group = Group {
                        values: grid.group(self.matrix.values(), i, j, &mut buffers.0),
                        weights: self
                            .matrix
                            .weights()
                            .map(|weights| grid.weights(weights, i, j, &mut buffers.1)),
                    };
                    each(group, item);
                }
            },
        );
    }

    fn bands_a_task(&self) -> usize {
        (TASK_ELEMENTS / (self.grid.group_rows * self.grid.cols).max(1)).max(1)
    }

    /// The bit stream of the codes.
    fn stream(&self, scales: &[f32], zeros: Option<&[f32]>) -> Result<Vec<u8>> {
        with_levels!(&self.levels.kind, levels => self.stream_of(levels, scales, zeros))
    }

    fn stream_of<L: Levels>(&self, levels: L, scales: &[f32], zeros: Option<&[f32]>) -> Result<Vec<u8>> {
        let (grid, bits) = (&self.grid, u32::from(self.params.bits));
        let stride = stride(grid.cols, bits)?;
        let mut stream = vec![0; stride * grid.rows];
        if stream.is_empty() {
            return Ok(stream);
        }
        let rows_a_task = (TASK_ELEMENTS / grid.cols).max(1);
        stream.par_chunks_mut(rows_a_task * stride).enumerate().for_each(|(task, packed)| {
            let mut row_codes = vec![0; grid.cols];
            let mut columns = (usize::MAX, Columns::default());
            for (k, packed) in packed.chunks_exact_mut(stride).enumerate() {
                let row = task * rows_a_task + k;
                let band = row / grid.group_rows;
                let affine = |j: usize| {
                    let group = band * grid.across + j;
                    self.rule.affine(scales[group], zeros.map_or(0.0, |zeros| zeros[group]))
                };
                let values = &self.matrix.values()[row * grid.cols..][..grid.cols];
                if grid.group_cols >= NARROW {
                    let groups = values.chunks(grid.group_cols).zip(row_codes.chunks_mut(grid.group_cols));
                    for (j, (values, out)) in groups.enumerate() {
                        codes(levels, affine(j), values, out);
                    }
                } else {
                    if columns.0 != band {
                        columns = (band, Columns::default());
                        (0..grid.across).for_each(|j| columns.1.push(affine(j), grid.span(j).len()));
                    }
                    codes_by_column(levels, &columns.1, values, &mut row_codes);
                }
                pack_row(&row_codes, bits, packed);
            }
        });
        Ok(stream)
    }
}

/// Bytes of one row of codes.
fn stride(cols: usize, bits: u32) -> Result<usize> {
    bits::row_bytes(cols as u64, bits)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| Error::bad_argument("columns").expected("a row that fits memory").found(cols))
}

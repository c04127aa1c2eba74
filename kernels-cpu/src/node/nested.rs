//! `nested`: bit planes, which become codes of a byte each for some rows at a time.

use super::grouped::{self, Source};
use super::{Plan as AnyPlan, read_child};
use crate::arch::{self, Simd};
use crate::error::Result;
use crate::operands::{BLOCK, Codes, GRANULES, Input, Map, Zero};
use crate::work::{Work, sized, sized_with};
use cmf_format::encoding::View as AnyView;
use cmf_format::encoding::nested::{Level, Rounding, Values, View};
use core::ops::Range;

/// Rows whose planes are put together at a time.
const ROWS: usize = 16;

/// Tokens from which on values of large tables are looked up once for all.
const MANY: usize = 8;

/// What is prepared of a node.
#[derive(Debug)]
pub(crate) struct Plan {
    level: Part,
    /// The level below, whose values are taken off.
    lower: Option<Part>,
}

/// What is prepared of a level.
#[derive(Debug)]
struct Part {
    /// Bits of its codes, and planes that they are made of.
    bits: usize,
    planes: usize,
    /// The codes of those planes, unless they are the level's.
    rounded: Option<Box<[u8; 256]>>,
    row_bytes: usize,
    blocks: usize,
    meaning: Meaning,
}

#[derive(Debug)]
enum Meaning {
    Integer(grouped::Plan),
    /// A table for each row, or for all.
    Table(Box<AnyPlan>),
}

/// Takes some rows, their codes and their part of the output.
type Kernel<'k> = dyn FnMut(Range<usize>, &[[u8; BLOCK]], &mut [f32], &mut Work) -> Result<()> + 'k;

impl Plan {
    /// `None` for what the kernels do not do: groups of columns that are no multiple of 16.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let descriptor = view.descriptor();
        let lower = match (&descriptor.lower, view.lower()) {
            (Some(level), Some(values)) => Some(Part::new(view, level, values)?),
            _ => None,
        };
        Some(Self { level: Part::new(view, &descriptor.level, view.level())?, lower })
    }

    /// Whether products with so many tokens are best made of the codes: else rows are decoded first.
    pub(super) fn is_fused(&self, tokens: usize) -> bool {
        let is_fast = matches!(self.level.meaning, Meaning::Integer(_)) || self.level.bits <= 4;
        self.lower.is_none() && (is_fast || tokens < MANY)
    }

    /// Products with the level, which has none below.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    pub(super) fn multiply(
        &self,
        simd: Simd,
        view: &View<'_>,
        rows: Range<usize>,
        input: &Input<'_>,
        is_fast: bool,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        self.level.multiply(simd, view, view.level(), rows, input, is_fast, out, work)
    }

    pub(super) fn decode(
        &self,
        simd: Simd,
        view: &View<'_>,
        rows: Range<usize>,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        self.level.decode(simd, view, view.level(), rows.clone(), out, work)?;
        let (Some(part), Some(values)) = (&self.lower, view.lower()) else { return Ok(()) };
        let mut lanes = core::mem::take(&mut work.lanes);
        let lower = sized(&mut lanes, out.len().div_ceil(16)).as_flattened_mut();
        let lower = lower.get_mut(..out.len()).unwrap_or(&mut []);
        let done = part.decode(simd, view, values, rows, lower, work).map_err(|e| e.within("lower"));
        simd.run(
            #[inline(always)]
            || out.iter_mut().zip(&*lower).for_each(|(out, lower)| *out -= lower),
        );
        work.lanes = lanes;
        done
    }
}

impl Part {
    fn new(view: &View<'_>, level: &Level, values: &Values<'_>) -> Option<Self> {
        let (rows, cols) = (view.rows(), view.cols());
        if rows == 0 || cols == 0 {
            return None;
        }
        let most = u8::MAX >> (8 - level.bits);
        let meaning = match values {
            Values::Integer { scale, zero } => {
                Meaning::Integer(grouped::Plan::of_bytes(most, cols, level.group_cols as usize, scale, zero)?)
            }
            Values::Table(table) => Meaning::Table(Box::new(AnyPlan::new(table))),
        };
        // The last plane's bit is added.
        let half_up = |code: usize| code.div_ceil(2).min(most.into()) as u8;
        Some(Self {
            bits: level.bits.into(),
            planes: level.planes().into(),
            rounded: (level.rounding == Rounding::HalfUp).then(|| Box::new(core::array::from_fn(half_up))),
            row_bytes: cols.div_ceil(32) * 4,
            blocks: cols.div_ceil(BLOCK),
            meaning,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    fn multiply(
        &self,
        simd: Simd,
        view: &View<'_>,
        values: &Values<'_>,
        rows: Range<usize>,
        input: &Input<'_>,
        is_fast: bool,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        self.each_rows(simd, view, rows, input.tokens, out, work, &mut |rows, panel, out, work| match (
            &self.meaning,
            values,
        ) {
            (Meaning::Integer(plan), Values::Integer { scale, zero }) => {
                let source = source(&rows, panel, scale, zero, view.cols());
                plan.multiply_source(simd, &source, rows, input, is_fast, out, work)
            }
            (Meaning::Table(plan), Values::Table(table)) => {
                let each = &mut |codes: Codes<'_>, out: &mut [f32]| arch::exact(simd, &codes, input, out);
                self.each_table(simd, plan, table, rows, panel, input.tokens, out, work, each)
            }
            _ => Ok(()),
        })
    }

    fn decode(
        &self,
        simd: Simd,
        view: &View<'_>,
        values: &Values<'_>,
        rows: Range<usize>,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let cols = view.cols();
        self.each_rows(simd, view, rows, cols, out, work, &mut |rows, panel, out, work| match (
            &self.meaning,
            values,
        ) {
            (Meaning::Integer(plan), Values::Integer { scale, zero }) => {
                let source = source(&rows, panel, scale, zero, cols);
                plan.decode_source(simd, &source, rows, out, work)
            }
            (Meaning::Table(plan), Values::Table(table)) => {
                let each = &mut |codes: Codes<'_>, out: &mut [f32]| arch::decode(simd, &codes, cols, out);
                self.each_table(simd, plan, table, rows, panel, cols, out, work, each)
            }
            _ => Ok(()),
        })
    }

    /// Hands the codes of some rows at a time to `kernel`, and their part of `out`, which has `width`
    /// values a row.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    fn each_rows(
        &self,
        simd: Simd,
        view: &View<'_>,
        rows: Range<usize>,
        width: usize,
        out: &mut [f32],
        work: &mut Work,
        kernel: &mut Kernel<'_>,
    ) -> Result<()> {
        let mut panel = core::mem::take(&mut work.panel);
        let all = sized_with(&mut panel, ROWS * self.blocks, [0; BLOCK]);
        let outs = out.chunks_mut((ROWS * width).max(1));
        let mut done = Ok(());
        for (start, out) in rows.clone().step_by(ROWS).zip(outs) {
            let rows = start..rows.end.min(start + ROWS);
            let codes = all.get_mut(..rows.len() * self.blocks).unwrap_or(&mut []);
            for (row, codes) in rows.clone().zip(codes.chunks_exact_mut(self.blocks)) {
                let mut planes: [&[u8]; 8] = [&[]; 8];
                for (plane, bytes) in planes.iter_mut().zip(view.planes()) {
                    *plane = bytes.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[]);
                }
                arch::planes(simd, planes.get(..self.planes).unwrap_or(&planes), codes);
                if let Some(of) = &self.rounded {
                    codes.as_flattened_mut().iter_mut().for_each(|code| *code = of[usize::from(*code)]);
                }
            }
            done = kernel(rows, codes, out, work);
            if done.is_err() {
                break;
            }
        }
        work.panel = panel;
        done
    }

    /// Hands each row with its table to `kernel`, and its part of `out`, which has `width` values.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    fn each_table(
        &self,
        simd: Simd,
        plan: &AnyPlan,
        table: &AnyView<'_>,
        rows: Range<usize>,
        panel: &[[u8; BLOCK]],
        width: usize,
        out: &mut [f32],
        work: &mut Work,
        kernel: &mut dyn FnMut(Codes<'_>, &mut [f32]),
    ) -> Result<()> {
        let (mut raw, mut scales) = (core::mem::take(&mut work.raw), core::mem::take(&mut work.scales));
        let granules = self.blocks.next_multiple_of(2) * GRANULES;
        let ones = sized(&mut scales, granules);
        ones.fill(1.0);
        let mut values = [0.0; 256];
        let mut done = Ok(());
        let parts = panel.chunks_exact(self.blocks).zip(out.chunks_exact_mut(width.max(1)));
        for (row, (panel, out)) in rows.zip(parts) {
            done = read_child(simd, table, plan, row..row + 1, 1, &mut raw, work.below());
            if done.is_err() {
                break;
            }
            values.iter_mut().zip(&raw).for_each(|(value, from)| *value = *from);
            let codes = Codes {
                bits: 8,
                used_bits: self.bits,
                bytes: panel.as_flattened(),
                row_bytes: self.blocks * BLOCK,
                rows: 1,
                blocks: self.blocks,
                group_granules: granules,
                map: Map::Values(&values),
                scales: ones,
                stored: None,
                zeros: &[],
                zero: Zero::None,
            };
            kernel(codes, out);
        }
        (work.raw, work.scales) = (raw, scales);
        done
    }
}

/// Codes of rows with scales and zero points.
fn source<'v, 'a>(
    rows: &Range<usize>,
    panel: &'v [[u8; BLOCK]],
    scale: &'v AnyView<'a>,
    zero: &'v AnyView<'a>,
    cols: usize,
) -> Source<'v, 'a> {
    Source { first: rows.start, codes: panel.as_flattened(), scale: Some(scale), zero: Some(zero), cols }
}

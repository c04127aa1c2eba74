//! `nested`: bit planes, which become codes of a byte each for some rows at a time.

use super::grouped::{self, Source};
use super::{Node, Plan as AnyPlan, Wanted, read_child};
use crate::arch;
use crate::error::Result;
use crate::operands::{BLOCK, Codes, GRANULES, Input, Map, Zero};
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

/// Takes the codes of some rows.
type Kernel<'k> = dyn FnMut(&[[u8; BLOCK]], Wanted<'_>) -> Result<()> + 'k;

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
    pub(super) fn multiply(&self, view: &View<'_>, input: &Input<'_>, wanted: Wanted<'_>) -> Result<()> {
        self.level.multiply(view, view.level(), input, wanted)
    }

    pub(super) fn decode(&self, view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let level = Wanted { simd, rows: rows.clone(), out: &mut *out, work: &mut *work };
        self.level.decode(view, view.level(), level)?;
        let (Some(part), Some(values)) = (&self.lower, view.lower()) else { return Ok(()) };
        let mut lanes = core::mem::take(&mut work.lanes);
        let lower = lanes.sized(out.len().div_ceil(16)).as_flattened_mut();
        let lower = lower.get_mut(..out.len()).unwrap_or(&mut []);
        let wanted = Wanted { simd, rows, out: &mut *lower, work: &mut *work };
        let done = part.decode(view, values, wanted).map_err(|e| e.within("lower"));
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

    fn multiply(
        &self,
        view: &View<'_>,
        values: &Values<'_>,
        input: &Input<'_>,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        self.each_rows(view, input.tokens, wanted, &mut |panel, wanted| match (&self.meaning, values) {
            (Meaning::Integer(plan), Values::Integer { scale, zero }) => {
                let source = source(&wanted.rows, panel, scale, zero, view.cols());
                plan.multiply_source(&source, input, wanted)
            }
            (Meaning::Table(plan), Values::Table(view)) => {
                let simd = wanted.simd;
                self.each_table(Node { view, plan }, panel, input.tokens, wanted, &mut |codes, out| {
                    arch::exact(simd, &codes, input, out);
                })
            }
            _ => Ok(()),
        })
    }

    fn decode(&self, view: &View<'_>, values: &Values<'_>, wanted: Wanted<'_>) -> Result<()> {
        let cols = view.cols();
        self.each_rows(view, cols, wanted, &mut |panel, wanted| match (&self.meaning, values) {
            (Meaning::Integer(plan), Values::Integer { scale, zero }) => {
                plan.decode_source(&source(&wanted.rows, panel, scale, zero, cols), wanted)
            }
            (Meaning::Table(plan), Values::Table(view)) => {
                let simd = wanted.simd;
                self.each_table(Node { view, plan }, panel, cols, wanted, &mut |codes, out| {
                    arch::decode(simd, &codes, cols, out);
                })
            }
            _ => Ok(()),
        })
    }

    /// Hands the codes of some rows at a time to `kernel`. `out` has `width` values a row.
    fn each_rows(
        &self,
        view: &View<'_>,
        width: usize,
        wanted: Wanted<'_>,
        kernel: &mut Kernel<'_>,
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let mut panel = core::mem::take(&mut work.panel);
        let all = panel.sized(ROWS * self.blocks);
        let wanted = Wanted { simd, rows, out, work: &mut *work };
        let done = wanted.parts(ROWS, width, &mut |wanted| {
            let codes = all.get_mut(..wanted.rows.len() * self.blocks).unwrap_or(&mut []);
            for (row, codes) in wanted.rows.clone().zip(codes.chunks_exact_mut(self.blocks)) {
                let mut planes: [&[u8]; 8] = [&[]; 8];
                for (plane, bytes) in planes.iter_mut().zip(view.planes()) {
                    *plane = bytes.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or(&[]);
                }
                arch::planes(simd, planes.get(..self.planes).unwrap_or(&planes), codes);
                if let Some(of) = &self.rounded {
                    codes.as_flattened_mut().iter_mut().for_each(|code| *code = of[usize::from(*code)]);
                }
            }
            kernel(codes, wanted)
        });
        work.panel = panel;
        done
    }

    /// Hands each row with its table to `kernel`, and its part of `out`, which has `width` values.
    fn each_table(
        &self,
        table: Node<'_, '_>,
        panel: &[[u8; BLOCK]],
        width: usize,
        wanted: Wanted<'_>,
        kernel: &mut dyn FnMut(Codes<'_>, &mut [f32]),
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let mut scales = core::mem::take(&mut work.scales);
        let granules = self.blocks.next_multiple_of(2) * GRANULES;
        let ones = scales.sized(granules);
        ones.fill(1.0);
        let mut values = [0.0; 256];
        let mut done = Ok(());
        let parts = panel.chunks_exact(self.blocks).zip(out.chunks_exact_mut(width.max(1)));
        for (row, (panel, out)) in rows.zip(parts) {
            let own = values.get_mut(..table.view.cols()).unwrap_or(&mut []);
            done = read_child(table, 1, Wanted { simd, rows: row..row + 1, out: own, work: work.below() });
            if done.is_err() {
                break;
            }
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
        work.scales = scales;
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

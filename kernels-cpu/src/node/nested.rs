//! `nested`: bit planes, which become codes of a byte each for some rows at a time.

use super::grouped::{self, Source};
use super::{Node, Plan as AnyPlan, Wanted, are_same_bytes, is_same, read_child};
use crate::arch;
use crate::error::Result;
use crate::operands::{BLOCK, Codes, GRANULES, HalfTables, Input, Map, Planes, Zero};
use cmf_format::DType;
use cmf_format::encoding::View as AnyView;
use cmf_format::encoding::nested::{Level, Rounding, Values, View};
use core::ops::Range;

/// Rows whose planes are put together at a time.
const ROWS: usize = 16;
/// The same of long rows, and the blocks of such a row: codes of a byte each stay in the first cache.
const ROWS_OF_LONG: usize = 8;
const LONG: usize = 32;

/// Tokens from which on codes are put together before they are multiplied.
const FEW: usize = 4;
/// Tokens from which on values of tables are looked up once for all.
const MANY: usize = 8;

/// Columns for each value of a table from which on it is worth making integers of them.
const COLS_OF_VALUE: usize = 8;

/// Largest value of tables whose products are sums of integers.
const LARGEST: f32 = 1e37;

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
    /// Whether the last plane's bit is added.
    rounds: bool,
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
        let lower = match (&view.descriptor().lower, view.lower()) {
            (Some(level), Some(values)) => Some(Part::new(view, level, values)?),
            _ => None,
        };
        Some(Self { lower, ..Self::of_level(view)? })
    }

    /// The values of the level, whatever is below.
    pub(super) fn of_level(view: &View<'_>) -> Option<Self> {
        Some(Self { level: Part::new(view, &view.descriptor().level, view.level())?, lower: None })
    }

    /// Whether products with `input` are best made of the codes: else rows are decoded first.
    pub(super) fn is_fused(&self, input: &Input<'_>) -> bool {
        if is_few(input) {
            return true;
        }
        let is_integer = matches!(self.level.meaning, Meaning::Integer(_));
        self.lower.is_none() && (is_integer || input.tokens < MANY)
    }

    /// Products with the level, less those with the level below.
    pub(super) fn multiply(&self, view: &View<'_>, input: &Input<'_>, wanted: Wanted<'_>) -> Result<()> {
        let (Some(part), Some(values)) = (&self.lower, view.lower()) else {
            return self.level.multiply(view, view.level(), input, wanted);
        };
        wanted.parts(ROWS, input.tokens, &mut |Wanted { simd, rows, out, work }| {
            let level = Wanted { simd, rows: rows.clone(), out: &mut *out, work: &mut *work };
            self.level.multiply(view, view.level(), input, level)?;
            let mut products = [0.0; ROWS * FEW];
            let lower = products.get_mut(..out.len()).unwrap_or(&mut []);
            part.multiply(view, values, input, Wanted { simd, rows, out: &mut *lower, work })
                .map_err(|e| e.within("lower"))?;
            out.iter_mut().zip(lower).for_each(|(out, lower)| *out -= *lower);
            Ok(())
        })
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

/// Whether a node is a level with none below.
pub(crate) fn is_level(view: &AnyView<'_>) -> bool {
    matches!(view, AnyView::Nested(view) if view.lower().is_none())
}

/// Whether the level below of `upper` is the level of `lower`, so that their sum is the level of `upper`.
pub(crate) fn follows(upper: &AnyView<'_>, lower: &AnyView<'_>) -> bool {
    let (AnyView::Nested(upper), AnyView::Nested(lower)) = (upper, lower) else { return false };
    let (Some(below), Some(values)) = (upper.descriptor().lower, upper.lower()) else { return false };
    let level = lower.descriptor().level;
    (upper.rows(), upper.cols(), below) == (lower.rows(), lower.cols(), level)
        && lower.planes().len() <= upper.planes().len()
        && lower.planes().iter().zip(upper.planes()).all(|(a, b)| are_same_bytes(a, b))
        && match (values, lower.level()) {
            (Values::Integer { scale, zero }, Values::Integer { scale: own, zero: of }) => {
                is_same(scale, own) && is_same(zero, of)
            }
            (Values::Table(table), Values::Table(own)) => is_same(table, own),
            _ => false,
        }
}

/// How to work with a node's level alone.
pub(crate) fn level(view: &AnyView<'_>) -> Option<AnyPlan> {
    let AnyView::Nested(view) = view else { return None };
    Plan::of_level(view).map(AnyPlan::Nested)
}

/// Whether codes are multiplied with quantised activations while they are read.
fn is_few(input: &Input<'_>) -> bool {
    input.is_quantised() && input.tokens < FEW
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
        Some(Self {
            bits: level.bits.into(),
            planes: level.planes().into(),
            rounds: level.rounding == Rounding::HalfUp,
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
        match (&self.meaning, values) {
            (Meaning::Integer(plan), Values::Integer { scale, zero })
                if is_few(input) && arch::reads_planes(wanted.simd) =>
            {
                let source = source(&wanted.rows, &[], scale, zero, view.cols());
                plan.each_scaled(
                    &source,
                    input.tokens,
                    wanted,
                    &mut |scaled, Wanted { simd, rows, out, work }| {
                        let needed = 3 * scaled.of_block * self.blocks;
                        let prepared = work.lanes.sized(needed.div_ceil(16)).as_flattened_mut();
                        arch::planes_fast(simd, &self.planes(view, &rows), scaled, input, prepared, out);
                        Ok(())
                    },
                )
            }
            (Meaning::Table(plan), Values::Table(table))
                if is_few(input) && view.cols() >= COLS_OF_VALUE * table.cols() =>
            {
                self.multiply_tables(view, Node { view: table, plan }, input, wanted)
            }
            _ => self.multiply_codes(view, values, input, wanted),
        }
    }

    /// Products with rows whose tables are integers times a step.
    fn multiply_tables(
        &self,
        view: &View<'_>,
        table: Node<'_, '_>,
        input: &Input<'_>,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let mut scales = core::mem::take(&mut work.scales);
        let entries = table.view.cols();
        let all = scales.sized(ROWS * entries);
        let wanted = Wanted { simd, rows, out, work: &mut *work };
        let done = wanted.parts(ROWS, input.tokens, &mut |Wanted { simd, rows, out, work }| {
            let tables = all.get_mut(..rows.len() * entries).unwrap_or(&mut []);
            read_child(table, 1, Wanted { simd, rows: rows.clone(), out: &mut *tables, work: work.below() })?;
            let wanted = Wanted { simd, rows: rows.clone(), out: &mut *out, work: &mut *work };
            // All are looked at, which is faster than to stop at the first.
            let are_finite = simd.run(
                #[inline(always)]
                || tables.iter().fold(true, |all, value| all & (value.abs() <= LARGEST)),
            );
            if !are_finite {
                return self.exact_tables(view, table, input, wanted);
            }
            let pieces = work.panel.sized(2 * self.blocks);
            if arch::planes_tables(simd, &self.planes(view, &rows), tables, input, pieces, out) {
                return Ok(());
            }
            self.each_rows(view, input.tokens, Wanted { simd, rows, out, work }, &mut |panel, wanted| {
                let outs = wanted.out.chunks_exact_mut(input.tokens);
                let rows = panel.chunks_exact(self.blocks).zip(tables.chunks_exact(entries));
                for ((codes, values), out) in rows.zip(outs) {
                    arch::table_fast(simd, codes, values, input, out);
                }
                Ok(())
            })
        });
        work.scales = scales;
        done
    }

    fn multiply_codes(
        &self,
        view: &View<'_>,
        values: &Values<'_>,
        input: &Input<'_>,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        match (&self.meaning, values) {
            (Meaning::Integer(plan), Values::Integer { scale, zero }) => {
                self.each_rows(view, input.tokens, wanted, &mut |panel, wanted| {
                    let source = source(&wanted.rows, panel, scale, zero, view.cols());
                    plan.multiply_source(&source, input, wanted)
                })
            }
            (Meaning::Table(plan), Values::Table(table)) => {
                self.exact_tables(view, Node { view: table, plan }, input, wanted)
            }
            _ => Ok(()),
        }
    }

    /// Products with the values of tables as they are.
    fn exact_tables(
        &self,
        view: &View<'_>,
        table: Node<'_, '_>,
        input: &Input<'_>,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        if input.tokens < FEW
            && let Some(tables) = half_tables(table.view, &wanted.rows)
        {
            let planes = self.planes(view, &wanted.rows);
            if arch::planes_halves(wanted.simd, &planes, &tables, input, wanted.out) {
                return Ok(());
            }
        }
        self.each_rows(view, input.tokens, wanted, &mut |panel, wanted| {
            let simd = wanted.simd;
            self.each_table(table, panel, input.tokens, wanted, &mut |codes, out| {
                arch::exact(simd, &codes, input, out);
            })
        })
    }

    /// Rows of the planes.
    fn planes<'v>(&self, view: &'v View<'_>, rows: &Range<usize>) -> Planes<'v> {
        let mut planes: [&[u8]; 8] = [&[]; 8];
        for (plane, bytes) in planes.iter_mut().zip(view.planes()) {
            *plane = bytes.get(rows.start * self.row_bytes..rows.end * self.row_bytes).unwrap_or(&[]);
        }
        Planes {
            planes,
            count: self.planes,
            row_bytes: self.row_bytes,
            rows: rows.len(),
            blocks: self.blocks,
            rounds: self.rounds,
            most: u8::MAX >> (8 - self.bits),
        }
    }

    fn decode(&self, view: &View<'_>, values: &Values<'_>, wanted: Wanted<'_>) -> Result<()> {
        let cols = view.cols();
        if let Values::Table(table) = values
            && let Some(tables) = half_tables(table, &wanted.rows)
        {
            let planes = self.planes(view, &wanted.rows);
            if arch::planes_decode(wanted.simd, &planes, &tables, cols, wanted.out) {
                return Ok(());
            }
        }
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
        let height = if self.blocks < LONG { ROWS } else { ROWS_OF_LONG };
        let all = panel.sized(height * self.blocks);
        let wanted = Wanted { simd, rows, out, work: &mut *work };
        let done = wanted.parts(height, width, &mut |wanted| {
            let codes = all.get_mut(..wanted.rows.len() * self.blocks).unwrap_or(&mut []);
            arch::planes(simd, &self.planes(view, &wanted.rows), codes);
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

/// Tables of f16 values of these rows.
fn half_tables<'v>(table: &'v AnyView<'_>, rows: &Range<usize>) -> Option<HalfTables<'v>> {
    let AnyView::Dense(table) = table else { return None };
    let length = 2 * table.cols();
    let (start, stride) = if table.rows() == 1 { (0, 0) } else { (rows.start * length, length) };
    let bytes = table.bytes().get(start..)?;
    (table.dtype() == DType::F16).then_some(HalfTables { bytes, stride, length })
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

//! `grouped`: codes with scales and zero points, which are spread out for some rows at a time.

use super::{Node, Plan as AnyPlan, Wanted, read_child};
use crate::arch;
use crate::error::Result;
use crate::operands::{
    BLOCK, Codes, GRANULE, GRANULES, Input, Map, Scaled, Small, StoredScales, Twice, Zero, room,
};
use cmf_format::DType;
use cmf_format::bits::row_bytes;
use cmf_format::encoding::View as AnyView;
use cmf_format::encoding::grouped::{CodeMap, ScaleOp, View, ZeroOp};
use core::ops::Range;

/// Takes some rows of codes, their zero points and their part of the output.
type Kernel<'k> = dyn FnMut(Codes<'_>, &mut [f32], &mut [f32]) + 'k;

/// Tokens from which on weights are decoded once for all.
const FEW: usize = 4;

/// Rows for which scales are spread out at a time.
const ROWS: usize = 16;

/// Codes of rows from `first` on, and what they are scaled with.
pub(super) struct Source<'v, 'a> {
    pub(super) first: usize,
    pub(super) codes: &'v [u8],
    pub(super) scale: Option<&'v AnyView<'a>>,
    pub(super) zero: Option<&'v AnyView<'a>>,
    pub(super) cols: usize,
}

impl<'v, 'a> Source<'v, 'a> {
    fn of(view: &'v View<'a>) -> Self {
        Self { first: 0, codes: view.codes(), scale: view.scale(), zero: view.zero(), cols: view.cols() }
    }
}

/// What is prepared of a node.
#[derive(Debug)]
pub(crate) struct Plan {
    bits: usize,
    /// Values of all codes, unless they are a sum with a signed byte.
    values: Option<Box<[f32; 256]>>,
    offset: i16,
    /// What is taken off codes and zero points alike, so that products can be sums of integers although there
    /// are `values`: the difference fits a signed byte.
    lifted: i16,
    zero: Zero,
    row_bytes: usize,
    blocks: usize,
    group_rows: usize,
    /// Granules of a group.
    group_granules: usize,
    scale: Option<Box<AnyPlan>>,
    zeros: Option<Box<AnyPlan>>,
}

impl Plan {
    /// `None` for what the kernels do not do: quotients, tables for each row, groups of columns that
    /// are no multiple of 16.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let cols = view.cols();
        let group_cols = match view.descriptor().group_cols as usize {
            0 => cols,
            n => n.min(cols),
        };
        let fits = group_cols == cols || group_cols.is_multiple_of(GRANULE);
        if fits { Self::with_groups(view, group_cols) } else { None }
    }

    fn with_groups(view: &View<'_>, group_cols: usize) -> Option<Self> {
        let descriptor = view.descriptor();
        let (rows, cols) = (view.rows(), view.cols());
        if cols == 0 || rows == 0 || descriptor.scale_op == ScaleOp::Divide {
            return None;
        }
        let (mut values, mut offset) = (None, 0);
        let most = (1 << descriptor.bits) - 1;
        match (descriptor.code_map, view.table()) {
            (CodeMap::Integer { offset: own }, _) if (-128..=0).contains(&own) && own + most <= 127 => {
                offset = i16::try_from(own).ok()?;
            }
            (CodeMap::Integer { offset }, _) => {
                values = Some(of_codes(|code| (i64::from(code) + i64::from(offset)) as f32));
            }
            (CodeMap::Minifloat(float), _) => values = Some(of_codes(|code| float.value(code))),
            (CodeMap::Table, Some(table)) if table.rows() == 1 && table.cols() <= 256 => {
                let mut of = Box::new([0.0; 256]);
                table.decode_rows(0..1, of.get_mut(..table.cols())?).ok()?;
                values = Some(of);
            }
            (CodeMap::Table, _) => return None,
        }
        let child = |view: Option<&AnyView<'_>>| view.map(|view| Box::new(AnyPlan::new(view)));
        Some(Self {
            bits: descriptor.bits.into(),
            values,
            offset,
            lifted: 0,
            zero: match descriptor.zero_op {
                ZeroOp::None => Zero::None,
                ZeroOp::Subtract => Zero::Subtract,
                ZeroOp::Add => Zero::Add,
            },
            row_bytes: usize::try_from(row_bytes(cols as u64, descriptor.bits.into())?).ok()?,
            blocks: cols.div_ceil(BLOCK),
            group_rows: match descriptor.group_rows as usize {
                0 => rows,
                n => n,
            },
            group_granules: group_cols.div_ceil(GRANULE),
            scale: child(view.scale()),
            zeros: child(view.zero()),
        })
    }

    /// Codes of a byte each, in rows of whole blocks: `(code - zero) * scale`, of no more than `most`.
    pub(super) fn of_bytes(
        most: u8,
        cols: usize,
        group_cols: usize,
        scale: &AnyView<'_>,
        zero: &AnyView<'_>,
    ) -> Option<Self> {
        let group_cols = if group_cols == 0 { cols } else { group_cols.min(cols) };
        if cols == 0 || !(group_cols == cols || group_cols.is_multiple_of(GRANULE)) {
            return None;
        }
        Some(Self {
            bits: 8,
            values: (most > 127).then(|| of_codes(f32::from)),
            offset: 0,
            lifted: if most > 127 { 128 } else { 0 },
            zero: Zero::Subtract,
            row_bytes: cols.div_ceil(BLOCK) * BLOCK,
            blocks: cols.div_ceil(BLOCK),
            group_rows: 1,
            group_granules: group_cols.div_ceil(GRANULE),
            scale: Some(Box::new(AnyPlan::new(scale))),
            zeros: Some(Box::new(AnyPlan::new(zero))),
        })
    }

    /// Blocks of a row of scales.
    fn stride(&self) -> usize {
        self.blocks.next_multiple_of(2)
    }

    pub(super) fn multiply(&self, view: &View<'_>, input: &Input<'_>, wanted: Wanted<'_>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let is_fast = self.is_fast(input);
        let prepared =
            work.lanes.sized(if is_fast { room(self.blocks, rows.len(), self.row_bytes) } else { 0 });
        let done = if is_fast && input.tokens >= FEW {
            false
        } else if let Some(codes) = self.as_stored(view, rows.clone()) {
            match is_fast {
                true => arch::fast_stored(simd, &codes, input, prepared, out),
                false => arch::exact_stored(simd, &codes, input, out),
            }
        } else if let Some(twice) = self.as_twice(view, rows.clone()) {
            match is_fast {
                true => arch::fast_twice(simd, &twice, input, prepared, out),
                false => arch::exact_twice(simd, &twice, input, out),
            }
        } else {
            false
        };
        if done {
            return Ok(());
        }
        self.multiply_source(&Source::of(view), input, Wanted { simd, rows, out, work })
    }

    /// Whether products are sums of integers.
    fn is_fast(&self, input: &Input<'_>) -> bool {
        input.is_quantised() && (self.values.is_none() || self.lifted > 0)
    }

    /// [`Plan::multiply`] with scales that are spread out.
    pub(super) fn multiply_source(
        &self,
        source: &Source<'_, '_>,
        input: &Input<'_>,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let mut lanes = core::mem::take(&mut work.lanes);
        let of_tokens = lanes.sized(input.tokens);
        let wanted = Wanted { simd, rows, out, work: &mut *work };
        let done = self.each_rows(source, input.tokens, wanted, &mut |codes, zeros, out| {
            if !self.is_fast(input) {
                arch::exact(simd, &Codes { zeros, ..codes }, input, out);
                return;
            }
            let map = Map::Signed(self.offset - self.lifted);
            arch::fast(simd, &Codes { map, ..codes }, input, of_tokens, out);
            if codes.zero == Zero::Subtract {
                let lifted = f32::from(self.lifted);
                zeros.iter_mut().zip(codes.scales).for_each(|(zero, scale)| *zero = (lifted - *zero) * scale);
            }
            if codes.zero != Zero::None {
                arch::zero_sums(simd, zeros.as_chunks::<GRANULES>().0, codes.stride(), input, out);
            }
        });
        work.lanes = lanes;
        done
    }

    /// Rows with their scales as they lie, if they are f16, one for each row and group, and have no zero
    /// points.
    fn as_stored<'v>(&'v self, view: &'v View<'_>, rows: Range<usize>) -> Option<Codes<'v>> {
        let Some(AnyView::Dense(scale)) = view.scale() else { return None };
        let groups = scale.cols();
        let simple = self.zero == Zero::None
            && scale.dtype() == DType::F16
            && scale.rows() == view.rows()
            && self.group_rows == 1
            && (groups == 1 || self.group_granules.is_power_of_two());
        let values = scale.bytes().as_chunks::<2>().0.get(rows.start * groups..rows.end * groups)?;
        simple.then(|| Codes {
            stored: Some(StoredScales {
                values,
                groups,
                granules_log: if groups == 1 { 31 } else { self.group_granules.trailing_zeros() },
            }),
            ..self.codes(&Source::of(view), rows, &[])
        })
    }

    /// Rows whose scales and zero points are codes as recipes make them.
    fn as_twice<'v>(&'v self, view: &'v View<'_>, rows: Range<usize>) -> Option<Twice<'v>> {
        if self.group_granules != 2 || self.group_rows != 1 {
            return None;
        }
        let zero = match (self.zero, view.zero(), &self.zeros) {
            (Zero::None, ..) => None,
            (Zero::Add, Some(view), Some(plan)) => Some(small(view, plan, rows.clone())?),
            _ => return None,
        };
        let scale = small(view.scale()?, self.scale.as_ref()?, rows.clone())?;
        (view.scale()?.rows() == view.rows()).then(|| Twice {
            codes: self.codes(&Source::of(view), rows, &[]),
            scale,
            zero,
        })
    }

    /// Rows `rows` with these scales.
    fn codes<'v>(&'v self, source: &Source<'v, '_>, rows: Range<usize>, scales: &'v [f32]) -> Codes<'v> {
        let first = rows.start.saturating_sub(source.first);
        Codes {
            bits: self.bits,
            used_bits: self.bits,
            bytes: source.codes.get(first * self.row_bytes..).unwrap_or(&[]),
            row_bytes: self.row_bytes,
            rows: rows.len(),
            blocks: self.blocks,
            group_granules: self.group_granules,
            map: match &self.values {
                Some(values) => Map::Values(values),
                None => Map::Signed(self.offset),
            },
            scales,
            stored: None,
            zeros: &[],
            zero: self.zero,
        }
    }

    pub(super) fn decode(&self, view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
        self.decode_source(&Source::of(view), wanted)
    }

    pub(super) fn decode_source(&self, source: &Source<'_, '_>, wanted: Wanted<'_>) -> Result<()> {
        let (simd, cols) = (wanted.simd, source.cols);
        self.each_rows(source, cols, wanted, &mut |codes, zeros, out| {
            arch::decode(simd, &Codes { zeros, ..codes }, cols, out);
        })
    }

    /// Hands some rows at a time with their scales and zero points to `kernel`, and their part of
    /// `out`, which has `width` values a row.
    fn each_rows(
        &self,
        source: &Source<'_, '_>,
        width: usize,
        wanted: Wanted<'_>,
        kernel: &mut Kernel<'_>,
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let (mut scales, mut zeros) = (core::mem::take(&mut work.scales), core::mem::take(&mut work.zeros));
        let length = ROWS * self.stride() * GRANULES;
        let (all_scales, all_zeros) = (scales.sized(length), zeros.sized(length));
        let wanted = Wanted { simd, rows, out, work: &mut *work };
        let done = wanted.parts(ROWS, width, &mut |Wanted { simd, rows, out, work }| {
            let part = rows.len() * self.stride() * GRANULES;
            let scales = all_scales.get_mut(..part).unwrap_or(&mut []);
            let zeros = all_zeros.get_mut(..part).unwrap_or(&mut []);
            let mut spread = |view, plan, out: &mut [f32]| {
                self.spread(
                    view,
                    plan,
                    self.granules(source.cols),
                    Wanted { simd, rows: rows.clone(), out, work },
                )
            };
            spread(source.scale, &self.scale, scales)?;
            if self.zero != Zero::None {
                spread(source.zero, &self.zeros, zeros)?;
            }
            kernel(self.codes(source, rows, scales), zeros, out);
            Ok(())
        });
        (work.scales, work.zeros) = (scales, zeros);
        done
    }

    /// Hands some rows at a time to `kernel` with what is taken off for zero points, which are subtracted, times
    /// scales: a pair for each block where groups are whole blocks, else for each granule. `out` has `width`
    /// values a row.
    pub(super) fn each_scaled(
        &self,
        source: &Source<'_, '_>,
        width: usize,
        wanted: Wanted<'_>,
        kernel: &mut dyn FnMut(&Scaled<'_>, Wanted<'_>) -> Result<()>,
    ) -> Result<()> {
        let is_one = self.group_granules >= source.cols.div_ceil(GRANULE);
        let across = match is_one || self.group_granules.is_multiple_of(GRANULES) {
            true => Across {
                of_value: self.group_granules.div_ceil(GRANULES),
                used: self.blocks,
                width: self.blocks,
            },
            false => Across { width: self.blocks * GRANULES, ..self.granules(source.cols) },
        };
        let Wanted { simd, rows, out, work } = wanted;
        let (mut scales, mut zeros) = (core::mem::take(&mut work.scales), core::mem::take(&mut work.zeros));
        let (all_scales, all_zeros) = (scales.sized(ROWS * across.width), zeros.sized(ROWS * across.width));
        let wanted = Wanted { simd, rows, out, work: &mut *work };
        let done = wanted.parts(ROWS, width, &mut |Wanted { simd, rows, out, work }| {
            let part = rows.len() * across.width;
            let scales = all_scales.get_mut(..part).unwrap_or(&mut []);
            let zeros = all_zeros.get_mut(..part).unwrap_or(&mut []);
            let mut spread = |view, plan, out: &mut [f32]| {
                self.spread(view, plan, across, Wanted { simd, rows: rows.clone(), out, work })
            };
            spread(source.scale, &self.scale, scales)?;
            spread(source.zero, &self.zeros, zeros)?;
            simd.run(
                #[inline(always)]
                || zeros.iter_mut().zip(&*scales).for_each(|(zero, scale)| *zero *= -*scale),
            );
            let scaled = Scaled { of_block: across.width / self.blocks, scales, terms: zeros };
            kernel(&scaled, Wanted { simd, rows, out, work })
        });
        (work.scales, work.zeros) = (scales, zeros);
        done
    }

    /// A value for each granule, for whole pairs of blocks.
    fn granules(&self, cols: usize) -> Across {
        Across {
            of_value: self.group_granules,
            used: cols.div_ceil(GRANULE),
            width: self.stride() * GRANULES,
        }
    }

    /// The values of groups, as often as `across` says.
    fn spread(
        &self,
        view: Option<&AnyView<'_>>,
        plan: &Option<Box<AnyPlan>>,
        across: Across,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let Across { of_value, used, width } = across;
        let (Some(view), Some(plan)) = (view, plan) else {
            for out in out.chunks_exact_mut(width) {
                let (own, beyond) = out.split_at_mut(used.min(width));
                own.fill(1.0);
                beyond.fill(0.0);
            }
            return Ok(());
        };
        let mut raw = core::mem::take(&mut work.raw);
        let values = raw.sized(rows.len() * view.cols());
        let wanted = Wanted { simd, rows, out: &mut *values, work: work.below() };
        let done = read_child(Node { view, plan }, self.group_rows, wanted);
        for (values, out) in values.chunks_exact(view.cols().max(1)).zip(out.chunks_exact_mut(width)) {
            let (own, beyond) = out.split_at_mut(used.min(width));
            simd.run(
                #[inline(always)]
                || spread_row(values, of_value, own),
            );
            beyond.fill(0.0);
        }
        work.raw = raw;
        done
    }
}

/// Codes of which each column has scales and zero points of its own, as those of SpQR's scales have.
#[derive(Debug)]
pub(crate) struct Columns {
    /// Without scales and zero points.
    codes: Plan,
    zero: Zero,
    scale: Option<Box<AnyPlan>>,
    zeros: Option<Box<AnyPlan>>,
}

impl Columns {
    /// `None` for other groups, quotients, and children that are not as wide.
    pub(super) fn new(view: &View<'_>) -> Option<Self> {
        let is_wide = |child: Option<&AnyView<'_>>| child.is_none_or(|child| child.cols() == view.cols());
        if view.descriptor().group_cols != 1 || !is_wide(view.scale()) || !is_wide(view.zero()) {
            return None;
        }
        let mut codes = Plan::with_groups(view, view.cols())?;
        let (scale, zeros) = (codes.scale.take(), codes.zeros.take());
        let zero = core::mem::replace(&mut codes.zero, Zero::None);
        Some(Self { codes, zero, scale, zeros })
    }

    pub(super) fn decode(&self, view: &View<'_>, wanted: Wanted<'_>) -> Result<()> {
        let Wanted { simd, rows, out, work } = wanted;
        let cols = view.cols();
        let source = Source { scale: None, zero: None, ..Source::of(view) };
        let codes = Wanted { simd, rows: rows.clone(), out: &mut *out, work: &mut *work };
        self.codes.decode_source(&source, codes)?;
        let (mut scales, mut zeros) = (core::mem::take(&mut work.scales), core::mem::take(&mut work.zeros));
        let (scale, zero) = (scales.sized(cols), zeros.sized(cols));
        scale.fill(1.0);
        let (mut row, mut rest, mut done) = (rows.start, out, Ok(()));
        while row < rows.end && done.is_ok() {
            let end = rows.end.min((row / self.codes.group_rows + 1) * self.codes.group_rows);
            let (own, next) = rest.split_at_mut((end - row) * cols);
            let mut read = |view: Option<&AnyView<'_>>, plan: &Option<Box<AnyPlan>>, out: &mut [f32]| {
                let (Some(view), Some(plan)) = (view, plan) else { return Ok(()) };
                let wanted = Wanted { simd, rows: row..row + 1, out, work: work.below() };
                read_child(Node { view, plan }, self.codes.group_rows, wanted)
            };
            done = read(view.scale(), &self.scale, &mut *scale);
            if done.is_ok() {
                done = read(view.zero(), &self.zeros, &mut *zero);
            }
            simd.run(
                #[inline(always)]
                || {
                    for out in own.chunks_exact_mut(cols) {
                        for ((v, scale), zero) in out.iter_mut().zip(&*scale).zip(&*zero) {
                            *v = match self.zero {
                                Zero::None => *v * scale,
                                Zero::Subtract => (*v - zero) * scale,
                                Zero::Add => *v * scale + zero,
                            };
                        }
                    }
                },
            );
            (row, rest) = (end, next);
        }
        (work.scales, work.zeros) = (scales, zeros);
        done
    }
}

/// How values of groups are spread out over a row.
#[derive(Clone, Copy)]
struct Across {
    /// How often each value comes.
    of_value: usize,
    /// How many values come in all, before zeros.
    used: usize,
    width: usize,
}

/// Codes with a scale of f16 for each 16 of a row, if that is what they are.
fn small<'v>(view: &'v AnyView<'_>, plan: &'v AnyPlan, rows: Range<usize>) -> Option<Small<'v>> {
    let (AnyView::Grouped(view), AnyPlan::Grouped(plan)) = (view, plan) else { return None };
    let AnyView::Dense(scale) = view.scale()? else { return None };
    let simple = plan.values.is_none()
        && plan.zero == Zero::None
        && plan.group_granules == 1
        && plan.group_rows == 1
        && scale.dtype() == DType::F16
        && scale.rows() == view.rows()
        && scale.cols() == view.cols().div_ceil(GRANULE);
    let scales = scale.bytes().as_chunks::<2>().0.get(rows.start * scale.cols()..rows.end * scale.cols())?;
    let bytes = view.codes().get(rows.start * plan.row_bytes..rows.end * plan.row_bytes)?;
    simple.then_some(Small {
        bits: plan.bits,
        offset: plan.offset,
        bytes,
        row_bytes: plan.row_bytes,
        scales,
        groups: scale.cols(),
    })
}

/// Each value as many times as a group has granules.
#[inline(always)]
fn spread_row(values: &[f32], group_granules: usize, out: &mut [f32]) {
    match (values, group_granules) {
        ([only], _) => out.fill(*only),
        (_, 1) => out.iter_mut().zip(values).for_each(|(out, v)| *out = *v),
        (_, 2) => {
            let (pairs, last) = out.as_chunks_mut::<2>();
            pairs.iter_mut().zip(values).for_each(|(out, v)| *out = [*v; 2]);
            last.iter_mut().zip(values.last()).for_each(|(out, v)| *out = *v);
        }
        (_, 4) if out.len().is_multiple_of(4) => {
            out.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(out, v)| *out = [*v; 4]);
        }
        (_, n) => out.chunks_mut(n).zip(values).for_each(|(out, v)| out.fill(*v)),
    }
}

fn of_codes(value: impl Fn(u8) -> f32) -> Box<[f32; 256]> {
    Box::new(core::array::from_fn(|code| value(code as u8)))
}

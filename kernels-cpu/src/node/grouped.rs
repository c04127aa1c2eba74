//! `grouped`: codes with scales and zero points, which are spread out for some rows at a time.

use super::{Plan as AnyPlan, read_child};
use crate::arch::{self, Simd};
use crate::error::Result;
use crate::operands::{BLOCK, Codes, GRANULE, GRANULES, Input, Map, Small, StoredScales, Twice, Zero};
use crate::work::{Work, sized};
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
        let descriptor = view.descriptor();
        let (rows, cols) = (view.rows(), view.cols());
        let group_cols = match descriptor.group_cols as usize {
            0 => cols,
            n => n.min(cols),
        };
        let fits = group_cols == cols || group_cols.is_multiple_of(GRANULE);
        if !fits || cols == 0 || rows == 0 || descriptor.scale_op == ScaleOp::Divide {
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
        let is_fast = is_fast && self.values.is_none();
        if is_fast
            && self.zero == Zero::None
            && let Some(codes) = self.as_stored(view, rows.clone())
            && arch::fast_stored(simd, &codes, input, sized(&mut work.lanes, self.stride()), out)
        {
            return Ok(());
        }
        if is_fast
            && input.tokens < FEW
            && !input.halves.is_empty()
            && let Some(twice) = self.as_twice(view, rows.clone())
        {
            let vectors = self.stride() + self.blocks.div_ceil(8);
            if arch::fast_twice(simd, &twice, input, sized(&mut work.lanes, vectors), out) {
                return Ok(());
            }
        }
        self.multiply_source(simd, &Source::of(view), rows, input, is_fast, out, work)
    }

    /// [`Plan::multiply`] with scales that are spread out.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    pub(super) fn multiply_source(
        &self,
        simd: Simd,
        source: &Source<'_, '_>,
        rows: Range<usize>,
        input: &Input<'_>,
        is_fast: bool,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let is_fast = is_fast && self.values.is_none();
        let mut lanes = core::mem::take(&mut work.lanes);
        let of_tokens = sized(&mut lanes, input.tokens);
        let done = self.each_rows(simd, source, rows, input.tokens, out, work, &mut |codes, zeros, out| {
            if !is_fast {
                arch::exact(simd, &Codes { zeros, ..codes }, input, out);
                return;
            }
            arch::fast(simd, &codes, input, of_tokens, out);
            if codes.zero == Zero::Subtract {
                zeros.iter_mut().zip(codes.scales).for_each(|(zero, scale)| *zero *= -*scale);
            }
            if codes.zero != Zero::None {
                arch::zero_sums(simd, zeros.as_chunks::<GRANULES>().0, codes.stride(), input, out);
            }
        });
        work.lanes = lanes;
        done
    }

    /// Rows with their scales as they lie, if they are f16, one for each row and group.
    fn as_stored<'v>(&'v self, view: &'v View<'_>, rows: Range<usize>) -> Option<Codes<'v>> {
        let Some(AnyView::Dense(scale)) = view.scale() else { return None };
        let groups = scale.cols();
        let simple = scale.dtype() == DType::F16
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

    /// Rows of 4 bits whose scales and zero points are codes as recipes make them.
    fn as_twice<'v>(&'v self, view: &'v View<'_>, rows: Range<usize>) -> Option<Twice<'v>> {
        if self.bits != 4 || self.group_granules != 2 || self.group_rows != 1 {
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

    pub(super) fn decode(
        &self,
        simd: Simd,
        view: &View<'_>,
        rows: Range<usize>,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        self.decode_source(simd, &Source::of(view), rows, out, work)
    }

    pub(super) fn decode_source(
        &self,
        simd: Simd,
        source: &Source<'_, '_>,
        rows: Range<usize>,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let cols = source.cols;
        self.each_rows(simd, source, rows, cols, out, work, &mut |codes, zeros, out| {
            arch::decode(simd, &Codes { zeros, ..codes }, cols, out);
        })
    }

    /// Hands some rows at a time with their scales and zero points to `kernel`, and their part of
    /// `out`, which has `width` values a row.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    fn each_rows(
        &self,
        simd: Simd,
        source: &Source<'_, '_>,
        rows: Range<usize>,
        width: usize,
        out: &mut [f32],
        work: &mut Work,
        kernel: &mut Kernel<'_>,
    ) -> Result<()> {
        let (mut scales, mut zeros) = (core::mem::take(&mut work.scales), core::mem::take(&mut work.zeros));
        let length = ROWS * self.stride() * GRANULES;
        let (all_scales, all_zeros) = (sized(&mut scales, length), sized(&mut zeros, length));
        let outs = out.chunks_mut((ROWS * width).max(1));
        let mut done = Ok(());
        for (start, out) in rows.clone().step_by(ROWS).zip(outs) {
            let rows = start..rows.end.min(start + ROWS);
            let part = rows.len() * self.stride() * GRANULES;
            let scales = all_scales.get_mut(..part).unwrap_or(&mut []);
            let zeros = all_zeros.get_mut(..part).unwrap_or(&mut []);
            done = self.spread(simd, source.scale, &self.scale, rows.clone(), source.cols, scales, work);
            if done.is_ok() && self.zero != Zero::None {
                done = self.spread(simd, source.zero, &self.zeros, rows.clone(), source.cols, zeros, work);
            }
            if done.is_err() {
                break;
            }
            let codes = self.codes(source, rows, scales);
            kernel(codes, zeros, out);
        }
        (work.scales, work.zeros) = (scales, zeros);
        done
    }

    /// The values of groups, one for each granule, 0 beyond the last column.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    fn spread(
        &self,
        simd: Simd,
        child: Option<&AnyView<'_>>,
        plan: &Option<Box<AnyPlan>>,
        rows: Range<usize>,
        cols: usize,
        out: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let width = self.stride() * GRANULES;
        let granules = cols.div_ceil(GRANULE);
        let (Some(view), Some(plan)) = (child, plan) else {
            for out in out.chunks_exact_mut(width) {
                let (own, beyond) = out.split_at_mut(granules.min(width));
                own.fill(1.0);
                beyond.fill(0.0);
            }
            return Ok(());
        };
        let mut raw = core::mem::take(&mut work.raw);
        let count = rows.len() * view.cols();
        let done = read_child(simd, view, plan, rows, self.group_rows, &mut raw, work.below());
        let values = raw.get(..count).unwrap_or(&[]).chunks_exact(view.cols().max(1));
        for (values, out) in values.zip(out.chunks_exact_mut(width)) {
            let (own, beyond) = out.split_at_mut(granules.min(width));
            simd.run(
                #[inline(always)]
                || spread_row(values, self.group_granules, own),
            );
            beyond.fill(0.0);
        }
        work.raw = raw;
        done
    }
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

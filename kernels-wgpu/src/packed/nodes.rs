//! Each encoding as the kernels read it. The numbers are those that the files of `wgsl/` ask for.

use super::numbers::{Placed, decode, place, place_table, place_values};
use super::{Packed, Reader};
use crate::error::{Error, Result, index, product};
use crate::matrix::ALIGNMENT;
use crate::params::TermParams;
use crate::windows::{self, Together};
use cmf_format::DType;
use cmf_format::encoding::nested::{Level, Map, Rounding, Values};
use cmf_format::encoding::sparse::{Layout, Op, position_bits};
use cmf_format::encoding::trellis::{Axis, Code};
use cmf_format::encoding::{View, codebook, dense, grouped, nested, sign_low_rank, sparse, trellis};
use core::ops::Range;
use std::borrow::Cow;

/// Rows of a block of rows are a multiple of this many; 0 if only all rows together can be read.
pub(crate) fn row_step(view: &View<'_>) -> usize {
    match view {
        View::Grouped(view) => view.descriptor().group_rows.max(1) as usize,
        View::Codebook(view) => view.descriptor().vector_rows as usize,
        View::Trellis(view) => match view.descriptor().axis {
            Axis::Along => view.descriptor().scale_rows.max(1) as usize,
            Axis::Down => 0,
        },
        View::Sparse(_) => 0,
        _ => 1,
    }
}

pub(super) fn packed<'v>(view: &'v View<'_>, rows: Range<usize>) -> Result<Packed<'v>> {
    let cols = index("columns", view.cols() as u64)?;
    let height = index("rows", rows.len() as u64)?;
    if height == 0 || cols == 0 {
        return Err(Error::argument("a term without elements"));
    }
    let encoding =
        |name: &str| crate::template::ENCODINGS.iter().position(|e| *e == name).unwrap_or(0) as i64;
    let base = |name: &str, quads: i64| Base { encoding: encoding(name), quads, cols, rows: height };
    match view {
        View::Dense(view) => dense_node(view, rows, base("dense", 1)),
        View::Lossless(view) => lossless_node(view, rows, base("dense", 1)),
        View::Grouped(view) => grouped_node(view, rows, base("grouped", 8)),
        View::Trellis(view) => trellis_node(view, rows, base("trellis", 1)),
        View::Codebook(view) => codebook_node(view, rows, base("codebook", 1)),
        View::Nested(view) => nested_node(view, rows, base("nested", 1)),
        View::SignLowRank(view) => sign_node(view, rows, base("sign_low_rank", 1)),
        View::Sparse(view) => sparse_node(view, rows, base("sparse", 1)),
        View::LowRank(_) => Err(Error::unsupported("a low_rank node where its factors are asked for")),
    }
}

/// What every node has.
#[derive(Clone, Copy)]
struct Base {
    encoding: i64,
    quads: i64,
    cols: u32,
    rows: u32,
}

impl Base {
    fn packed<'v>(
        self,
        numbers: &[(&'static str, i64)],
        codes: Vec<Cow<'v, [u8]>>,
        side: Vec<u8>,
        term: TermParams,
    ) -> Packed<'v> {
        let mut all = vec![
            ("ENCODING", self.encoding),
            ("QUADS", self.quads),
            ("TAIL", i64::from(!i64::from(self.cols).rem_euclid(4 * self.quads).eq(&0))),
        ];
        for (name, default) in [
            ("SCALE", 0),
            ("ZERO", 0),
            ("LUT", 0),
            ("SHIFT", 1),
            ("FACTOR", 0),
            ("LEVELS", 1),
            ("VEC", 0),
            ("WIDE", 0),
        ] {
            if !numbers.iter().any(|(n, _)| *n == name) {
                all.push((name, default));
            }
        }
        all.extend(numbers);
        let steps = self.cols.div_ceil((4 * self.quads) as u32);
        Packed {
            reader: Reader::Quads,
            numbers: all,
            steps,
            codes,
            side,
            term,
            table: None,
            together: None,
            hashed: None,
            under: None,
            rows: self.rows,
            cols: self.cols,
        }
    }
}

/// Rows `rows` of segment bytes with `stride` bytes a row.
fn slice<'b>(bytes: &'b [u8], rows: &Range<usize>, stride: usize) -> Result<&'b [u8]> {
    let range = rows.start.checked_mul(stride).zip(rows.end.checked_mul(stride));
    range
        .and_then(|(start, end)| bytes.get(start..end))
        .ok_or_else(|| Error::argument(format!("rows {rows:?} of {} bytes", bytes.len())))
}

/// How columns become groups: a shift where the number of columns is a power of two.
fn group_division(group_cols: u32) -> (i64, u32) {
    match group_cols {
        0 => (1, 31),
        n if n.is_power_of_two() => (1, n.trailing_zeros()),
        n => (0, n),
    }
}

fn dense_node<'v>(view: &'v dense::View<'_>, rows: Range<usize>, base: Base) -> Result<Packed<'v>> {
    let kind = match view.dtype() {
        DType::F32 => 1,
        DType::F16 => 2,
        DType::BF16 => 3,
        _ => return dense_values(&decode_dense(view, rows)?, base),
    };
    let stride = base.cols as usize * view.dtype().bytes();
    dense_bytes(kind, Cow::Borrowed(slice(view.bytes(), &rows, stride)?), base)
}

fn decode_dense(view: &dense::View<'_>, rows: Range<usize>) -> Result<Vec<f32>> {
    let stride = view.cols() * view.dtype().bytes();
    let mut values = vec![0.0; rows.len() * view.cols()];
    view.dtype().decode(slice(view.bytes(), &rows, stride)?, &mut values)?;
    Ok(values)
}

/// Lossless frames are decoded here: the device gets the elements.
fn lossless_node<'v>(
    view: &cmf_format::encoding::lossless::View<'_>,
    rows: Range<usize>,
    base: Base,
) -> Result<Packed<'v>> {
    let dtype = view.dtype();
    let mut bytes = vec![0; rows.len() * view.cols() * dtype.bytes()];
    view.decode_bytes(rows, &mut bytes)?;
    match dtype {
        DType::F32 => dense_bytes(1, Cow::Owned(bytes), base),
        DType::F16 => dense_bytes(2, Cow::Owned(bytes), base),
        DType::BF16 => dense_bytes(3, Cow::Owned(bytes), base),
        _ => {
            let mut values = vec![0.0; bytes.len() / dtype.bytes()];
            dtype.decode(&bytes, &mut values)?;
            dense_values(&values, base)
        }
    }
}

fn dense_values<'v>(values: &[f32], base: Base) -> Result<Packed<'v>> {
    let mut bytes = Vec::new();
    let placed = place_values(&mut bytes, values, None)?;
    dense_bytes(placed.kind, Cow::Owned(bytes), base)
}

/// A dense matrix of decoded values, as small as is exact.
pub(crate) fn dense_of<'v>(values: &[f32], rows: u32, cols: u32) -> Result<Packed<'v>> {
    dense_values(values, Base { encoding: 0, quads: 1, cols, rows })
}

/// A dense f32 matrix whose values come later.
pub(crate) fn dense_to_come(rows: u32, cols: u32) -> Result<Packed<'static>> {
    dense_bytes(1, Cow::Borrowed(&[]), Base { encoding: 0, quads: 1, cols, rows })
}

fn dense_bytes(kind: i64, bytes: Cow<'_, [u8]>, base: Base) -> Result<Packed<'_>> {
    product("elements", &[base.rows.into(), base.cols.into()])?;
    let whole = if kind == 1 { 4 } else { 8 };
    let vec = base.cols.is_multiple_of(whole);
    let base = Base { quads: if vec && kind != 1 { 2 } else { 1 }, ..base };
    let row_words = if vec { base.cols / (whole / 4) } else { 0 };
    let term = TermParams { row_words, ..TermParams::default() };
    // The helpers of 16-bit numbers are wanted in any case; no scale of this kind exists.
    let numbers = [("KIND", kind), ("VEC", i64::from(vec))];
    Ok(base.packed(&numbers, vec![bytes], Vec::new(), term))
}

fn grouped_node<'v>(view: &'v grouped::View<'_>, rows: Range<usize>, base: Base) -> Result<Packed<'v>> {
    let descriptor = *view.descriptor();
    let bits = u32::from(descriptor.bits);
    let row_words = index("row", (u64::from(base.cols) * u64::from(bits)).div_ceil(32))?;
    product("codes", &[base.rows.into(), row_words.into()])?;
    let codes = slice(view.codes(), &rows, row_words as usize * 4)?;
    let mut side = Vec::new();
    let groups = match descriptor.group_rows {
        0 => 0..1,
        n => rows.start / n as usize..rows.end.div_ceil(n as usize),
    };
    let mut child = |view: Option<&View<'_>>| match view {
        Some(view) => place(&mut side, view, groups.clone(), None),
        None => Ok(Placed::default()),
    };
    let (scale, zero) = (child(view.scale())?, child(view.zero())?);
    let (map, offset, table) = match descriptor.code_map {
        grouped::CodeMap::Integer { offset } => {
            if offset.checked_add(255).is_none() {
                return Err(Error::unsupported(format!("offset {offset} of codes")));
            }
            (0, offset, Placed::default())
        }
        grouped::CodeMap::Minifloat(float) => {
            let values: Vec<f32> = (0..1u32 << bits).map(|code| float.value(code as u8)).collect();
            (1, 0, place_values(&mut side, &values, Some(1))?)
        }
        grouped::CodeMap::Table => match view.table() {
            Some(table) => (1, 0, place_table(&mut side, table, rows)?),
            None => return Err(Error::argument("the table is missing")),
        },
    };
    let (shift, group_cols) = group_division(descriptor.group_cols);
    let (scale_op, zero_op) = (descriptor.scale_op as i64, descriptor.zero_op as i64);
    let single = scale.col_stride == 0 && zero.col_stride == 0;
    let group = match descriptor.group_cols {
        _ if scale_op == 0 && zero_op == 0 => 0,
        _ if single => 1,
        n if n % 32 == 0 => 1,
        n if n % 4 == 0 => 2,
        _ => 3,
    };
    let factor = if group == 1 && scale_op == 1 && zero_op != 2 { 2 } else { 0 };
    let last_group = match descriptor.group_cols {
        0 => 0,
        n => (base.cols - 1) / n,
    };
    let numbers = [
        ("BITS", bits.into()),
        ("MASK", (1 << bits) - 1),
        ("MAP", map),
        ("GROUP", group),
        ("SCALE_OP", scale_op),
        ("ZERO_OP", zero_op),
        ("SCALE", scale.kind),
        ("ZERO", zero.kind),
        ("SHIFT", shift),
        ("FACTOR", factor),
        ("VEC", i64::from(bits.is_multiple_of(4) && row_words.is_multiple_of(4))),
    ];
    let term = TermParams {
        row_words,
        group_rows: descriptor.group_rows,
        group_cols,
        scale_at: scale.at,
        scale_row_stride: scale.row_stride,
        scale_col_stride: scale.col_stride,
        zero_at: zero.at,
        zero_row_stride: zero.row_stride,
        zero_col_stride: zero.col_stride,
        table_at: table.at,
        table_row_stride: table.row_stride,
        a: offset as u32,
        b: last_group,
        ..TermParams::default()
    };
    Ok(base.packed(&numbers, vec![codes.into()], side, term))
}

fn trellis_node<'v>(view: &'v trellis::View<'_>, rows: Range<usize>, base: Base) -> Result<Packed<'v>> {
    let descriptor = *view.descriptor();
    let (state, step) = (i64::from(descriptor.state_bits), i64::from(descriptor.step_bits));
    let path_elems = index("path", view.path_elems() as u64)?;
    let path_words = index("path", view.path_words() as u64)?;
    let (elems, codes) = match descriptor.axis {
        Axis::Along => (base.cols, slice(view.paths(), &rows, view.axis_words() * 4)?),
        Axis::Down if rows == (0..view.rows()) => (base.rows, view.paths()),
        Axis::Down => return Err(Error::limit("paths down the columns cannot be cut")),
    };
    index("paths", codes.len() as u64 / 4)?;
    let ring_words = |elems: u32| i64::from(elems) * step % 32 == 0;
    let whole = ring_words(path_elems) && ring_words(elems % path_elems);
    // Columns of a step along a row: those that fill a word, or three words of 3 bits.
    let (words, quads) = if 32 % step == 0 { (1, 8 / step) } else { (3, 8) };
    let per_step = (4 * quads) as u32;
    let way = match descriptor.axis {
        Axis::Down if whole && base.cols.is_multiple_of(4) => 1,
        Axis::Along if whole && path_elems.is_multiple_of(per_step) && base.cols.is_multiple_of(per_step) => {
            2
        }
        _ => 0,
    };
    let mut side = Vec::new();
    let groups = match descriptor.scale_rows {
        0 => 0..1,
        n => rows.start / n as usize..rows.end.div_ceil(n as usize),
    };
    let scale = place(&mut side, view.scale(), groups, None)?;
    let (code, multiplier, addend, table) = match descriptor.code {
        Code::ByteSum { multiplier, addend } => (1, multiplier, addend, Placed::default()),
        Code::Table => match view.table() {
            Some(table) => {
                side.resize(side.len().next_multiple_of(ALIGNMENT as usize), 0);
                (0, 0, 0, place_table(&mut side, table, 0..1)?)
            }
            None => return Err(Error::argument("the table is missing")),
        },
    };
    let (shift, group_cols) = group_division(descriptor.scale_cols);
    let by_row = scale.col_stride == 0;
    // A uniform buffer is an array of vectors.
    let entries = 1usize << state;
    let table_bytes = table.at as usize * 4..side.len();
    let whole_table = code == 0 && state >= 2 && table_bytes.len() == entries * 4;
    let (together, hashed) = match side.get(table_bytes.clone()) {
        Some(table) if whole_table && way == 1 => {
            let values = bytemuck::pod_collect_to_vec::<u8, f32>(table);
            let together = Together::of(state, step, &values);
            // Where one look gives no more than three rows.
            let few = together.is_none_or(|t| t.rows <= 3);
            let sizes = (descriptor.state_bits.into(), descriptor.step_bits.into());
            (together, if few { windows::hashed(sizes.0, sizes.1, &values) } else { None })
        }
        _ => (None, None),
    };
    let numbers = [
        ("STATE", state),
        ("STEP", step),
        ("MASK", (1 << state) - 1),
        ("CODE", code),
        ("LUT", i64::from(whole_table)),
        ("ENTRIES", if whole_table { entries as i64 } else { 0 }),
        ("AT_ONCE", together.map_or(1, |t| t.rows)),
        ("HASHED", hashed.is_some().into()),
        ("MAPPED", windows::mapped_bits(descriptor.state_bits.into(), descriptor.step_bits.into()) as i64),
        ("JOINT", together.map_or(0, |t| t.bits)),
        ("WAY", way),
        ("WORDS", words),
        ("ALONG", i64::from(descriptor.axis == Axis::Along)),
        ("GROUP", if by_row { 0 } else { 3 }),
        ("SCALE", scale.kind),
        ("SHIFT", shift),
        ("FACTOR", i64::from(by_row)),
        ("VEC", i64::from(way == 1)),
    ];
    let term = TermParams {
        row_words: index("paths", view.axis_words() as u64)?,
        group_rows: descriptor.scale_rows,
        group_cols,
        scale_at: scale.at,
        scale_row_stride: scale.row_stride,
        scale_col_stride: scale.col_stride,
        table_at: table.at,
        a: path_elems,
        b: path_words,
        c: multiplier,
        d: addend,
        e: elems,
        ..TermParams::default()
    };
    // A window's position on its ring is counted in bits.
    product("ring", &[path_elems.into(), 2 * step as u64 + 16])?;
    let base = Base { quads: if way == 2 { quads } else { 1 }, ..base };
    let packed = base.packed(&numbers, vec![codes.into()], side, term);
    Ok(Packed { table: whole_table.then_some(table_bytes), together, hashed, ..packed })
}

fn codebook_node<'v>(view: &'v codebook::View<'_>, rows: Range<usize>, base: Base) -> Result<Packed<'v>> {
    let descriptor = *view.descriptor();
    let (books, bits) = (u64::from(descriptor.codebooks), u64::from(descriptor.bits));
    let (down, across) = (descriptor.vector_rows, descriptor.vector_cols);
    let vectors = u64::from(base.cols.div_ceil(across));
    let row_words = index("row", (vectors * books * bits).div_ceil(32))?;
    product("row", &[vectors, books, bits])?;
    let vector_rows = rows.start / down as usize..rows.end.div_ceil(down as usize);
    product("codes", &[vector_rows.len() as u64, row_words.into()])?;
    let codes = slice(view.codes(), &vector_rows, row_words as usize * 4)?;
    let mut side = Vec::new();
    let scale = match view.scale() {
        Some(scale) => place(&mut side, scale, vector_rows, None)?,
        None => Placed::default(),
    };
    let entries = place_table(&mut side, view.entries(), 0..view.entries().rows())?;
    product("entries", &[view.entries().rows() as u64, view.entries().cols() as u64])?;
    let (shift, group_cols) = group_division(descriptor.scale_cols);
    let numbers = [
        ("BOOKS", books as i64),
        ("BITS", bits as i64),
        ("MASK", (1 << bits) - 1),
        ("VECTOR_ROWS", down.into()),
        ("VECTOR_COLS", across.into()),
        ("SCALE", scale.kind),
        ("SHIFT", shift),
    ];
    let term = TermParams {
        row_words,
        group_cols,
        scale_at: scale.at,
        scale_row_stride: scale.row_stride,
        scale_col_stride: scale.col_stride,
        a: entries.at,
        ..TermParams::default()
    };
    Ok(base.packed(&numbers, vec![codes.into()], side, term))
}

fn nested_node<'v>(view: &'v nested::View<'_>, rows: Range<usize>, base: Base) -> Result<Packed<'v>> {
    let descriptor = *view.descriptor();
    let row_words = base.cols.div_ceil(32);
    let plane_words = product("plane", &[base.rows.into(), row_words.into()])?;
    product("planes", &[plane_words.into(), view.planes().len() as u64])?;
    let planes = view.planes().iter().map(|p| slice(p, &rows, row_words as usize * 4).map(Cow::Borrowed));
    let codes = planes.collect::<Result<Vec<_>>>()?;
    let mut side = Vec::new();
    let mut level = |level: &Level, values: &Values<'_>| {
        let mut term =
            TermParams { row_words, group_cols: level.group_cols, a: plane_words, ..TermParams::default() };
        match values {
            Values::Integer { scale, zero } => {
                let scale = place(&mut side, scale, rows.clone(), Some(1))?;
                let zero = place(&mut side, zero, rows.clone(), Some(1))?;
                term.scale_at = scale.at;
                term.scale_row_stride = scale.row_stride;
                term.scale_col_stride = scale.col_stride;
                term.zero_at = zero.at;
                term.zero_row_stride = zero.row_stride;
                term.zero_col_stride = zero.col_stride;
            }
            Values::Table(table) => {
                let table = place_table(&mut side, table, rows.clone())?;
                term.table_at = table.at;
                term.table_row_stride = table.row_stride;
            }
        }
        Ok::<_, Error>(term)
    };
    let term = level(&descriptor.level, view.level())?;
    let under = match (descriptor.lower, view.lower()) {
        (Some(lower), Some(values)) => level(&lower, values)?,
        _ => TermParams::default(),
    };
    let bits = i64::from(descriptor.level.bits);
    let lower_bits = descriptor.lower.map_or(0, |l| i64::from(l.bits));
    let rounds = |l: &Level| i64::from(l.rounding == Rounding::HalfUp);
    let is_table = |l: &Level| i64::from(l.map == Map::Table);
    let numbers = [
        ("BITS", bits),
        ("MASK", (1 << bits) - 1),
        ("ROUND", rounds(&descriptor.level)),
        ("MAP", is_table(&descriptor.level)),
        ("LOWER_BITS", lower_bits),
        ("LOWER_MASK", (1 << lower_bits) - 1),
        ("LOWER_ROUND", descriptor.lower.as_ref().map_or(0, rounds)),
        ("LOWER_MAP", descriptor.lower.as_ref().map_or(0, is_table)),
        ("PLANES", view.planes().len() as i64),
        ("SCALE", 1),
        ("ZERO", 1),
        ("LEVELS", 2),
    ];
    let mut packed = base.packed(&numbers, codes, side, term);
    packed.under = Some(under);
    Ok(packed)
}

fn sign_node<'v>(view: &'v sign_low_rank::View<'_>, rows: Range<usize>, base: Base) -> Result<Packed<'v>> {
    let magnitude = view.magnitude();
    let rank = magnitude.rank();
    let row_words = base.cols.div_ceil(32);
    let signs = slice(view.signs(), &rows, row_words as usize * 4)?;
    let a = transposed(magnitude.a_t(), rows)?;
    let b = decode(magnitude.b(), 0..rank)?;
    product("factor", &[rank as u64, base.rows.max(base.cols).into()])?;
    let mut side = Vec::new();
    let (a, b) = (place_values(&mut side, &a, None)?, place_values(&mut side, &b, None)?);
    let numbers = [("SCALE", a.kind), ("ZERO", b.kind)];
    let term = TermParams {
        row_words,
        scale_at: a.at,
        zero_at: b.at,
        a: index("rank", rank as u64)?,
        ..TermParams::default()
    };
    Ok(base.packed(&numbers, vec![signs.into()], side, term))
}

/// Columns `rows` of a factor [rank, rows] as rows of `rank` values.
pub(crate) fn transposed(a_t: &View<'_>, rows: Range<usize>) -> Result<Vec<f32>> {
    let (rank, all) = (a_t.rows(), a_t.cols());
    let values = decode(a_t, 0..rank)?;
    let mut out = Vec::with_capacity(rank.saturating_mul(rows.len()));
    for row in rows {
        out.extend((0..rank).map(|k| values.get(k * all + row).copied().unwrap_or(0.0)));
    }
    Ok(out)
}

fn sparse_node<'v>(view: &'v sparse::View<'_>, rows: Range<usize>, base: Base) -> Result<Packed<'v>> {
    if rows != (0..view.rows()) {
        return Err(Error::limit("sparse rows cannot be cut"));
    }
    let descriptor = *view.descriptor();
    let values = decode(view.values(), 0..view.values().rows())?;
    let mut side = Vec::new();
    let values = place_values(&mut side, &values, None)?;
    let mut codes: Vec<Cow<'v, [u8]>> = vec![view.row_offsets().into(), view.positions().into()];
    let after = index("row offsets", view.row_offsets().len() as u64 / 4)?;
    let mut term = TermParams { scale_at: values.at, b: after, ..TermParams::default() };
    term.a = index("count", descriptor.count)?;
    let (layout, index_bits) = match descriptor.layout {
        Layout::Csr { block, index_bits } => {
            (term.c, term.d) = (block.rows, block.cols);
            (1, i64::from(index_bits))
        }
        Layout::Bitmap { block } => {
            (term.c, term.d) = (block.rows, block.cols);
            term.row_words = base.cols.div_ceil(block.cols).div_ceil(32);
            (2, 0)
        }
        Layout::Nm { n, m } => {
            let kept = product("kept", &[base.cols.div_ceil(m.into()).into(), n.into()])?;
            let bits = position_bits(m);
            codes = vec![view.positions().into()];
            term.b = 0;
            term.row_words = index("row", (u64::from(kept) * u64::from(bits)).div_ceil(32))?;
            term.zero_at = kept;
            term.zero_row_stride = n.into();
            term.zero_col_stride = bits;
            term.e = m.into();
            product("positions", &[kept.into(), bits.into()])?;
            (3, 0)
        }
    };
    if layout != 3 {
        term.e = base.cols.div_ceil(term.d);
        product("values", &[descriptor.count, term.c.into(), term.d.into()])?;
        product("columns", &[u64::from(term.e) + 1, term.d.into()])?;
    }
    let replaces = descriptor.op == Op::Replace;
    let numbers = [
        ("LAYOUT", layout),
        ("INDEX_BITS", index_bits),
        ("REPLACES", i64::from(replaces)),
        ("SCALE", values.kind),
    ];
    let mut packed = base.packed(&numbers, codes, side, term);
    packed.reader = Reader::Sparse { replaces };
    packed.steps = 1;
    Ok(packed)
}

//! Reference decode of one node, on one thread.

use crate::clock::Time;
use crate::data;
use crate::row::{Bench, Goal, Outcome, Row, Suite};
use anyhow::{Result, bail};
use cmf_converters::encode::{
    self, CodebookParams, Codes, GroupedParams, LowRankParams, Matrix, Range, Select, SparseLayout,
    SparseParams, Store, TermParams, Zero,
};
use cmf_format::encoding::sparse::{self, Op};
use cmf_format::encoding::trellis::{Axis, Code, Descriptor as Trellis};
use cmf_format::encoding::{View, dense, lossless, nested, sign_low_rank};
use cmf_format::{DType, NodeData};
use std::hint::black_box;

/// Shape of the decoded matrix: 8 MiB of f32, more than the caches of one core.
const ROWS: usize = 512;
const COLS: usize = 4096;

pub(crate) fn suite() -> Suite {
    let mut rows = Vec::new();
    let mut row = |name: &str, make: fn(&[f32]) -> Result<NodeData>| {
        rows.push(Row::new(format!("decode/{name}"), [], move |bench| values(bench, make)));
    };
    row("dense/f32", |w| plain(DType::F32, w));
    row("dense/f16", |w| plain(DType::F16, w));
    row("dense/bf16", |w| plain(DType::BF16, w));
    row("dense/f8_e4m3", |w| plain(DType::F8E4M3, w));
    row("dense/f8_e5m2", |w| plain(DType::F8E5M2, w));
    row("grouped/int2", |w| grouped(w, 2, GroupedParams { zero: Zero::Add, ..Default::default() }));
    row("grouped/int3", |w| grouped(w, 3, GroupedParams { zero: Zero::Add, ..Default::default() }));
    row("grouped/int4", |w| grouped(w, 4, GroupedParams::default()));
    row("grouped/int4-zero", |w| grouped(w, 4, GroupedParams { zero: Zero::Add, ..Default::default() }));
    row("grouped/int4-double", |w| grouped(w, 4, GroupedParams { scale: twice(), ..Default::default() }));
    row("grouped/int5", |w| grouped(w, 5, GroupedParams::default()));
    row("grouped/int6", |w| grouped(w, 6, GroupedParams::default()));
    row("grouped/int8", |w| grouped(w, 8, GroupedParams::default()));
    row("grouped/nf4", |w| grouped(w, 4, GroupedParams { codes: Codes::Nf4, ..Default::default() }));
    row("sparse/csr-1%", |w| sparse(w, Select::Fraction(0.01), SparseLayout::Csr));
    row("sparse/bitmap-50%", |w| sparse(w, Select::Fraction(0.5), SparseLayout::Bitmap));
    row("sparse/n_m-2:4", two_of_four);
    row("low_rank/rank-16", |w| {
        term(w, TermParams::LowRank(LowRankParams { power_iterations: 0, ..Default::default() }))
    });
    row("codebook/2x8-bit", |w| {
        codebook(w, CodebookParams { bits: 8, codebooks: 2, vector_cols: 8, ..Default::default() })
    });
    row("codebook/1x12-bit", |w| {
        codebook(w, CodebookParams { bits: 12, codebooks: 1, vector_cols: 4, ..Default::default() })
    });
    row("trellis/1-bit", |w| trellis(w, Trellis { step_bits: 1, ..TRELLIS }));
    row("trellis/2-bit", |w| trellis(w, TRELLIS));
    row("trellis/2-bit-16", |w| trellis(w, Trellis { state_bits: 16, ..TRELLIS }));
    row("trellis/2-bit-table", |w| trellis(w, Trellis { code: Code::Table, ..TRELLIS }));
    row("trellis/2-bit-along", |w| trellis(w, Trellis { axis: Axis::Along, ..TRELLIS }));
    row("trellis/3-bit-along", |w| trellis(w, Trellis { axis: Axis::Along, step_bits: 3, ..TRELLIS }));
    row("sign_low_rank/rank-16", signs);
    row("nested/table-4", |w| planes(w, 4));
    row("nested/table-8", |w| planes(w, 8));
    row("lossless/bf16-values", |w| exact(DType::BF16, w));
    row("lossless/f32-values", |w| exact(DType::F32, w));
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let name = format!("decode/lossless/{}-bytes", dtype.name());
        rows.push(Row::new(name, [Goal::BytesPerSecond(1e9)], move |bench| elements(bench, dtype)));
    }
    Suite {
        title: "decode: one node to f32, or to its own bytes, one thread; peer: memcpy of the output",
        rows,
    }
}

/// Decodes a node that `make` makes of weights.
fn values(bench: &Bench<'_>, make: fn(&[f32]) -> Result<NodeData>) -> Result<Outcome> {
    let weights = data::weights(1, ROWS * COLS);
    let node = make(&weights)?;
    let view = node.view()?;
    let (mut ours, mut copy) = (vec![0f32; weights.len()], vec![0f32; weights.len()]);
    let outcome = bench.compare(
        Time::Cpu,
        size_of_val(ours.as_slice()) as u64,
        &mut || {
            view.decode_rows(0..ROWS, &mut ours)?;
            black_box(&mut ours);
            Ok(())
        },
        ("memcpy", &mut || {
            copy.copy_from_slice(black_box(&weights));
            black_box(&mut copy);
            Ok(())
        }),
    )?;
    let bits = node.stored_bytes() as f64 * 8.0 / weights.len() as f64;
    Ok(outcome.note(format!("{bits:.2} bits a weight")))
}

/// Decodes a `lossless` node to its own bytes.
fn elements(bench: &Bench<'_>, dtype: DType) -> Result<Outcome> {
    let node = exact(dtype, &data::weights(1, ROWS * COLS))?;
    let View::Lossless(view) = node.view()? else { bail!("expected a lossless node") };
    let source = vec![1u8; ROWS * COLS * dtype.bytes()];
    let (mut ours, mut copy) = (source.clone(), source.clone());
    let outcome = bench.compare(
        Time::Cpu,
        source.len() as u64,
        &mut || {
            view.decode_bytes(0..ROWS, &mut ours)?;
            black_box(&mut ours);
            Ok(())
        },
        ("memcpy", &mut || {
            copy.copy_from_slice(black_box(&source));
            black_box(&mut copy);
            Ok(())
        }),
    )?;
    let share = node.stored_bytes() as f64 / source.len() as f64;
    Ok(outcome.note(format!("{:.1}% of the bytes", share * 100.0)))
}

fn term(weights: &[f32], params: TermParams) -> Result<NodeData> {
    let nodes = encode::terms(&Matrix::new(weights, ROWS, COLS)?, &[params])?;
    nodes.into_iter().next().ok_or_else(|| anyhow::anyhow!("expected a node"))
}

fn plain(dtype: DType, weights: &[f32]) -> Result<NodeData> {
    Ok(dense::pack_values(dtype, ROWS as u64, COLS as u64, weights)?)
}

fn exact(dtype: DType, weights: &[f32]) -> Result<NodeData> {
    Ok(lossless::pack(dtype, ROWS as u64, COLS as u64, &dtype.encode(weights)?)?)
}

fn grouped(weights: &[f32], bits: u8, params: GroupedParams) -> Result<NodeData> {
    term(weights, TermParams::Grouped(GroupedParams { bits, ..params }))
}

/// Scales in 8 bits, in groups of 64 scales.
fn twice() -> Store {
    Store::Grouped(Box::new(GroupedParams { bits: 8, range: Range::Unsigned, ..Default::default() }))
}

fn sparse(weights: &[f32], select: Select, layout: SparseLayout) -> Result<NodeData> {
    term(weights, TermParams::Sparse(SparseParams { select, layout, ..Default::default() }))
}

/// Codebooks that are hardly trained: how good they are does not matter here.
fn codebook(weights: &[f32], params: CodebookParams) -> Result<NodeData> {
    term(
        weights,
        TermParams::Codebook(CodebookParams { iterations: 1, beam: 1, samples_per_entry: 4, ..params }),
    )
}

/// Paths down whole columns, a scale for each row.
const TRELLIS: Trellis = Trellis {
    state_bits: 12,
    step_bits: 2,
    code: Code::BYTE_SUM,
    axis: Axis::Down,
    path_elems: 0,
    scale_rows: 1,
    scale_cols: 0,
};

/// Any codes: how good they are does not matter here.
fn trellis(weights: &[f32], d: Trellis) -> Result<NodeData> {
    let codes: Vec<u8> =
        weights.iter().map(|w| (w.to_bits() >> 7) as u8 & ((1 << d.step_bits) - 1)).collect();
    let scale = dense::pack_values(DType::F16, ROWS as u64, 1, &[0.01; ROWS])?;
    let entries = 1usize << d.state_bits;
    let table = match d.code {
        Code::Table => {
            Some(dense::pack_values(DType::F16, 1, entries as u64, &data::weights(2, entries))?.into())
        }
        Code::ByteSum { .. } => None,
    };
    Ok(cmf_format::encoding::trellis::pack(&d, ROWS as u64, COLS as u64, &codes, scale, table)?)
}

/// The signs of the weights, on factors of f16 that hold any numbers.
fn signs(weights: &[f32]) -> Result<NodeData> {
    const RANK: usize = 16;
    let positive: Vec<bool> = weights.iter().map(|w| w.is_sign_positive()).collect();
    let factor =
        |len: usize| dense::pack_values(DType::F16, RANK as u64, len as u64, &data::weights(2, RANK * len));
    Ok(sign_low_rank::pack(&positive, factor(ROWS)?, factor(COLS)?)?)
}

/// Codes of the weights' size on tables that hold any numbers.
fn planes(weights: &[f32], bits: u8) -> Result<NodeData> {
    let top = f32::from((1u16 << bits) - 1);
    let codes: Vec<u8> = weights.iter().map(|w| ((w * 10.0 + 0.5) * top).clamp(0.0, top) as u8).collect();
    let (rows, cols) = (ROWS as u64, COLS as u64);
    let entries = 1usize << bits;
    let table = dense::pack_values(DType::F16, rows, entries as u64, &data::weights(2, ROWS * entries))?;
    let level = nested::LevelData {
        level: nested::Level {
            bits,
            map: nested::Map::Table,
            rounding: nested::Rounding::Floor,
            group_cols: 0,
        },
        children: vec![table.into()],
    };
    Ok(nested::pack(rows, cols, &nested::planes(&codes, COLS, bits)?, &level, None)?)
}

/// The first and the last of every four, as f16.
fn two_of_four(weights: &[f32]) -> Result<NodeData> {
    let kept: Vec<f32> = weights.as_chunks::<4>().0.iter().flat_map(|four| [four[0], four[3]]).collect();
    let positions: Vec<u16> = [0, 3].repeat(kept.len() / 2);
    let (rows, cols) = (ROWS as u64, COLS as u64);
    let values = dense::pack_values(DType::F16, rows, cols / 2, &kept)?;
    Ok(sparse::pack_n_m(Op::Add, rows, cols, (2, 4), &positions, values)?)
}

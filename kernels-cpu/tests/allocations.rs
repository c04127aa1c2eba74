//! Nothing is allocated once buffers have met their largest matrix.
//!
//! A single test, because the allocator counts what all threads ask for.

mod common;

use cmf_format::encoding::grouped::{CodeMap, Minifloat, ZeroOp};
use cmf_format::encoding::nested::Rounding;
use cmf_format::encoding::sparse::{Block, Op};
use cmf_format::write::TransformEntry;
use cmf_format::{DType, NodeData};
use cmf_kernels_cpu::{Activations, Isa, Linear, Precision, Scratch};
use common::*;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const ROWS: usize = 132;
const COLS: usize = 200;

/// Bytes that `work` asks for beyond what is there, by what is held at a time.
fn allocated(work: impl FnOnce() -> Result<(), cmf_format::Error>) -> Result<usize, String> {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    work().map_err(|e| e.to_string())?;
    Ok(ALLOCATOR.peak_usage() - before)
}

fn one(node: NodeData) -> Vec<NodeData> {
    vec![node]
}

/// What kernels multiply with as it lies.
fn fused() -> Result<Vec<(String, Vec<NodeData>)>> {
    let n = &mut Numbers(1);
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let node = plain(dtype, ROWS, COLS, &n.values(ROWS * COLS, 1.0))?;
        cases.push((format!("dense {dtype:?}"), one(node)));
    }
    for (bits, group_cols) in [(2, 16), (3, 32), (4, 32), (4, 64), (4, 0), (8, 64)] {
        let node = Grouped::symmetric(bits, group_cols).node(ROWS, COLS, n)?;
        cases.push((format!("grouped {bits} bits, groups of {group_cols}"), one(node)));
    }
    let four = Grouped::symmetric(4, 32);
    let zero = CodeMap::Integer { offset: 0 };
    for own in [
        Grouped { zero: ZeroOp::Subtract, map: zero, ..four },
        Grouped { zero: ZeroOp::Add, map: zero, ..four },
        Grouped { zero: ZeroOp::Add, map: zero, twice: true, ..four },
        Grouped { twice: true, ..four },
        Grouped { group_rows: 3, ..four },
        Grouped { group_rows: 16, group_cols: 1, zero: ZeroOp::Add, ..four },
        Grouped { map: CodeMap::Table, ..four },
        Grouped { map: CodeMap::Minifloat(Minifloat::E2M1), ..four },
    ] {
        cases.push((format!("{own:?}"), one(own.node(ROWS, COLS, n)?)));
    }
    for (state_bits, step_bits, hashed) in
        [(6, 2, false), (7, 2, false), (8, 1, false), (8, 2, false), (10, 2, false), (12, 2, true)]
    {
        let own = Trellis { state_bits, step_bits, hashed, scale_rows: 32, ..Trellis::PLAIN };
        cases.push((format!("{own:?}"), one(own.node(ROWS, COLS, n)?)));
    }
    cases.push(("nested, table".into(), one(planes(ROWS, COLS, 4)?)));
    cases.push(("nested, integers".into(), levels(ROWS, COLS, &[4], Rounding::HalfUp, 32)?));
    cases.push(("nested, over each other".into(), levels(ROWS, COLS, &[2, 4], Rounding::Floor, 32)?));
    cases.push(("nested, tables over each other".into(), tables(ROWS, COLS, &[2, 3, 8], Rounding::Floor)?));
    let upper = levels(ROWS, COLS, &[2, 4], Rounding::Floor, 32)?.pop();
    cases.push(("nested, a level over another".into(), upper.into_iter().collect()));
    cases.push(("codebook".into(), one(vectors(ROWS, COLS, 8, 2, 0)?)));
    let block = Block { rows: 2, cols: 4 };
    for listing in [
        Listing::Csr(Block::ONE),
        Listing::Csr(block),
        Listing::Bitmap(Block::ONE),
        Listing::Bitmap(block),
        Listing::Nm(2, 4),
    ] {
        for values in [Some(DType::F16), None] {
            let own = Sparse { listing, values, ..Sparse::PLAIN };
            cases.push((format!("{own:?}"), one(own.node(ROWS, COLS, n)?)));
        }
    }
    cases.push((
        "grouped + sparse".into(),
        vec![four.node(ROWS, COLS, n)?, Sparse::PLAIN.node(ROWS, COLS, n)?],
    ));
    for dtype in [DType::BF16, DType::F16, DType::F32, DType::F8E4M3] {
        cases.push((format!("lossless {dtype:?}"), one(packed(dtype, ROWS, COLS)?)));
    }
    cases.push(("sign_low_rank".into(), one(signs(ROWS, COLS, 5, DType::F16)?)));
    cases.push(("sign_low_rank, codes".into(), one(signs_of_codes(ROWS, COLS, 5)?)));
    let terms = (0..3).map(|_| signs(ROWS, COLS, 16, DType::F16)).collect::<Result<Vec<_>>>()?;
    cases.push(("sign_low_rank, three".into(), terms));
    cases.push(("codebook, groups of 64".into(), one(vectors_of(8, ROWS, COLS, 4, 1, 64)?)));
    cases.push(("low_rank".into(), one(factors(ROWS, COLS)?)));
    let terms = vec![Trellis::PLAIN.node(ROWS, COLS, n)?, four.node(ROWS, COLS, n)?];
    cases.push(("trellis + grouped".into(), terms));
    Ok(cases)
}

/// What goes by the reference decode.
fn decoded() -> Result<Vec<(String, Vec<NodeData>)>> {
    let n = &mut Numbers(1);
    let codes = Grouped::symmetric(4, 32).node(ROWS, COLS, n)?;
    Ok(vec![
        ("grouped, groups of 20".into(), one(Grouped::symmetric(3, 20).node(ROWS, COLS, n)?)),
        ("trellis, 4 bits".into(), one(Trellis { step_bits: 4, ..Trellis::PLAIN }.node(ROWS, COLS, n)?)),
        (
            "grouped, sparse".into(),
            vec![codes, Sparse { op: Op::Replace, ..Sparse::PLAIN }.node(ROWS, COLS, n)?],
        ),
        ("codebook, vectors of 5".into(), one(vectors(ROWS, COLS, 5, 2, 0)?)),
    ])
}

/// Bytes that operations on a matrix ask for the second time, of those that ask for any: products,
/// between transforms of both sides, then rows without transforms.
fn measure(nodes: &[NodeData]) -> Result<Vec<String>, String> {
    let text = |e: Box<dyn std::error::Error>| e.to_string();
    let terms = || nodes.iter().map(|node| (0, 0, node.clone())).collect();
    let permuted: Vec<u8> = (0..COLS as u32).rev().flat_map(u32::to_le_bytes).collect();
    let scale = plain(DType::F32, 1, ROWS, &Numbers(2).values(ROWS, 1.0)).map_err(text)?;
    let between = Parts {
        terms: terms(),
        input: vec![
            TransformEntry::Permute(permuted.into()),
            TransformEntry::SignHadamard { block: 8, seed: 5 },
        ],
        output: vec![TransformEntry::SignHadamard { block: 4, seed: 6 }, TransformEntry::Scale(scale.into())],
    };
    let alone = Parts { terms: terms(), ..Parts::default() };
    let mut found = Vec::new();
    let mut note = |what: String, bytes: usize| {
        if bytes > 0 {
            found.push(format!("{what}: {bytes} bytes"));
        }
    };
    for (parts, has_transforms) in [(between, true), (alone, false)] {
        let bytes = parts.archive(ROWS, COLS).map_err(text)?;
        let archive = parse(&bytes).map_err(text)?;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let linear = Linear::new(view(&archive).map_err(text)?, isa).map_err(|e| e.to_string())?;
            let (mut x, mut scratch) = (Activations::new(), Scratch::new());
            if !has_transforms {
                let mut rows = vec![0.0; 3 * COLS];
                let mut gather = || allocated(|| linear.gather(&[7, 0, 131], &mut rows, &mut scratch));
                gather()?;
                note(format!("{isa:?}, rows"), gather()?);
                continue;
            }
            for precision in [Precision::Exact, Precision::Fast] {
                for batch in [1, 32] {
                    let values = Numbers(2).values(batch * COLS, 1.0);
                    let mut y = vec![0.0; batch * ROWS];
                    let mut multiply = || {
                        allocated(|| {
                            x.load(&values, COLS, linear.view().input_transforms(), precision, isa)?;
                            linear.multiply(&x, &mut y, &mut scratch)
                        })
                    };
                    multiply()?;
                    note(format!("{isa:?}, {precision:?}, {batch} vectors"), multiply()?);
                }
            }
        }
    }
    Ok(found)
}

#[test]
fn nothing_is_allocated_the_second_time() -> Result {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let mut wrong = Vec::new();
    for (name, nodes) in fused()? {
        let found = pool.install(|| measure(&nodes))?;
        // Rows of factors, unlike products with them, go by the reference decode.
        let counts = |what: &String| name != "low_rank" || !what.contains("rows");
        wrong.extend(found.into_iter().filter(counts).map(|what| format!("{name}: {what}")));
    }
    for (name, nodes) in decoded()? {
        eprintln!("by the reference decode: {name}: {:?}", pool.install(|| measure(&nodes))?.first());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

//! What belongs to no encoding: shapes, sums, levels, attributes, references, integrity.

use crate::vectors::case::{Accept, Files, Matrix, Tensor, Term, Unit};
use crate::vectors::frames::{self, Block, EXPONENTS, exponents, short_frame};
use crate::vectors::naive::{
    Blocks, Grouped, Map, Piece, blocks, cycle, dense, f16s, f32s, grouped, low_rank,
};
use crate::vectors::transform::Transform;
use cmf_format::write::StepEntry;
use cmf_format::{Compression, DType, Result, SegmentData};

const FOLDER: &str = "container";

fn numbers(rows: usize, cols: usize, first: usize) -> Piece {
    let values: Vec<f32> = (0..rows * cols).map(|i| ((first + i) % 251) as f32 / 7.0 - 10.0).collect();
    f32s(rows, cols, &values)
}

fn four_bit(rows: usize, cols: usize) -> Piece {
    let scale = f16s(rows, 1, &(0..rows).map(|i| 0x3000 + i as u16 * 77).collect::<Vec<_>>());
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 11 % 16) as u8).collect();
    let g = Grouped { map: Map::Integer(-8), scale_op: 1, scale: Some(&scale), ..Grouped::default() };
    grouped(&g, rows, cols, &codes)
}

pub(super) fn add(files: &mut Files) -> Result<()> {
    smallest(files)?;
    shapes(files)?;
    sums(files)?;
    levels(files)?;
    names(files)?;
    limits(files)?;
    attributes(files)?;
    references(files)?;
    integrity(files)
}

fn smallest(files: &mut Files) -> Result<()> {
    Accept::new(
        FOLDER,
        "nothing",
        "an archive without tensors, attributes and segments: it ends where its directory ends",
    )
    .finish(files)?;
    Accept::new(
        FOLDER,
        "scalar",
        "one tensor of one element and rank 0, with the default alignment and chunk groups",
    )
    .options(256, 65_536)
    .tensor(Tensor::new("x", DType::F32, &[], vec![Matrix::sum(1, 1, vec![numbers(1, 1, 3).into()])]))
    .finish(files)
}

fn shapes(files: &mut Files) -> Result<()> {
    let one = |name: &str, shape: &[u64], rows, cols| {
        Tensor::new(
            name,
            DType::F32,
            shape,
            vec![Matrix::sum(rows, cols, vec![numbers(rows, cols, rows).into()])],
        )
    };
    let experts: Vec<Matrix> =
        (0..4).map(|e| Matrix::sum(3, 5, vec![numbers(3, 5, e * 20).into()])).collect();
    let mut mixed = experts.clone();
    mixed[1] = Matrix::sum(3, 5, vec![four_bit(3, 5).into()]);
    mixed[3] = Matrix::sum(3, 5, vec![low_rank(&numbers(1, 3, 0), &numbers(1, 5, 0)).into()]);
    Accept::new(
        FOLDER,
        "shapes",
        "ranks 0 to 16, extents of 0 and 1, experts and convolutions; a vector may be a row or a column",
    )
    .tensor(one("rank0", &[], 1, 1))
    .tensor(one("rank1.row", &[7], 1, 7))
    .tensor(one("rank1.column", &[7], 7, 1))
    .tensor(one("rank2", &[3, 5], 3, 5))
    .tensor(one("rank2.transposed_cut", &[3, 5], 5, 3))
    .tensor(one("rank16", &[1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1], 2, 3))
    .tensor(one("convolution", &[2, 3, 2, 2], 2, 12))
    .tensor(Tensor::new("experts", DType::F32, &[4, 3, 5], experts))
    .tensor(Tensor::new("experts.mixed", DType::F32, &[2, 2, 3, 5], mixed))
    .tensor(Tensor::new("empty.rank1", DType::F16, &[0], vec![]))
    .tensor(Tensor::new("empty.rank3", DType::BF16, &[3, 0, 5], vec![]))
    .tensor(Tensor::new("empty.large", DType::BF16, &[0, u64::MAX], vec![]))
    .finish(files)?;

    let shared = four_bit(2, 9);
    Accept::new(FOLDER, "tied", "tensors that name the same matrices, in another shape too; one that names some of them; a node that two matrices share")
        .tensor(Tensor::of("a.embedding", shared.clone()))
        .tensor(Tensor::of("z.head", shared.clone()))
        .tensor(Tensor::new("z.reshaped", DType::F32, &[9, 2], vec![Matrix::sum(2, 9, vec![shared.clone().into()])]))
        .tensor(Tensor::sum("sum", DType::F32, vec![numbers(2, 9, 0).into(), shared.into()]))
        .tensor(Tensor::new("b.blocks", DType::U8, &[2, 1, 4], (0..2).map(|i| Matrix::sum(1, 4, vec![cycle(DType::U8, 1, 4, i * 4).into()])).collect()))
        .finish(files)
}

fn sums(files: &mut Files) -> Result<()> {
    // 2^24 + 1 - 2^24 and its other orders.
    let term = |v: f32| Term::from(f32s(1, 1, &[v]));
    let order = |values: [f32; 3]| values.map(term).to_vec();
    let large = 16_777_216.0;
    let none = Matrix { rows: 2, cols: 3, units: vec![], ..Matrix::default() };
    let empty_unit = Matrix::sum(2, 3, vec![]);
    Accept::new(
        FOLDER,
        "sum_order",
        "terms are added one by one in their order, from -0.0; what no term covers is -0.0",
    )
    .tensor(Tensor::sum("large.one.minus", DType::F32, order([large, 1.0, -large])))
    .tensor(Tensor::sum("large.minus.one", DType::F32, order([large, -large, 1.0])))
    .tensor(Tensor::sum("negative_zero", DType::F32, vec![term(-0.0)]))
    .tensor(Tensor::sum("both_zeros", DType::F32, vec![term(-0.0), term(0.0)]))
    .tensor(Tensor::sum("infinities", DType::F32, vec![term(f32::INFINITY), term(-f32::INFINITY)]))
    .tensor(Tensor::new("no_unit", DType::F32, &[2, 3], vec![none]))
    .tensor(Tensor::new("no_term", DType::F32, &[2, 3], vec![empty_unit]))
    .finish(files)?;

    let regions = vec![
        numbers(2, 3, 0).at_place(0, 0),
        numbers(3, 2, 9).at_place(1, 2),
        numbers(1, 6, 20).at_place(3, 0),
        numbers(4, 1, 30).at_place(0, 5),
    ];
    let matrix = Matrix::sum(5, 6, regions);
    Accept::new(
        FOLDER,
        "regions",
        "terms that cover parts of the matrix, overlap, and leave a row uncovered",
    )
    .tensor(Tensor::new("w", DType::F32, &[5, 6], vec![matrix]))
    .finish(files)?;

    // SpQR: 3-bit codes with quantised scales and zero points, outliers, and a low-rank residual.
    let (rows, cols) = (4, 48);
    let codes3 = |count: usize, step: usize| (0..count).map(|i| (i * step % 8) as u8).collect::<Vec<_>>();
    let second = |first: usize| {
        let bits = |i: usize| 0x2800 + ((first + i) * 91 % 512) as u16;
        let (scale, zero) = (f16s(1, 3, &[bits(0), bits(1), bits(2)]), f16s(1, 3, &[0x4200, 0x4000, 0x4400]));
        let g = Grouped {
            bits: 3,
            map: Map::Integer(0),
            scale_op: 1,
            scale: Some(&scale),
            zero_op: 1,
            zero: Some(&zero),
            group: (16, 1),
        };
        grouped(&g, rows, 3, &codes3(rows * 3, first))
    };
    let (scale, zero) = (second(3), second(5));
    let base = Grouped {
        bits: 3,
        map: Map::Integer(0),
        scale_op: 1,
        scale: Some(&scale),
        zero_op: 1,
        zero: Some(&zero),
        group: (1, 16),
    };
    let base = grouped(&base, rows, cols, &codes3(rows * cols, 5));
    let outliers = f16s(5, 1, &[0x4500, 0xC500, 0x4900, 0x3555, 0xC800]);
    let csr = Blocks {
        replace: false,
        index_bits: 16,
        block: (1, 1),
        entries: &[(0, 3), (0, 47), (2, 0), (3, 16), (3, 17)],
        values: &outliers,
    };
    let residual = low_rank(&f16s(2, 4, &[0x2E66; 8]), &f16s(2, 48, &[0x2A3D; 96]));
    Accept::new(FOLDER, "spqr", "a grouped base with scales and zero points that are quantised again, outliers in rows, and a low-rank residual")
        .tensor(Tensor::sum("w", DType::F16, vec![base.into(), blocks(&csr, rows, cols).into(), residual.into()]))
        .finish(files)
}

/// Two blocks of rows; level 1 refines both, level 2 only the second.
fn two_blocks() -> Matrix {
    let unit = |level, start, rows, pieces: Vec<Piece>| Unit {
        level,
        rows: (start, rows),
        terms: pieces.into_iter().map(|p| p.at_place(start, 0)).collect(),
    };
    Matrix {
        rows: 5,
        cols: 7,
        units: vec![
            unit(0, 0, 3, vec![four_bit(3, 7)]),
            unit(0, 3, 2, vec![four_bit(2, 7)]),
            unit(1, 0, 3, vec![numbers(3, 7, 3), numbers(3, 7, 5)]),
            unit(1, 3, 2, vec![]),
            unit(2, 3, 2, vec![numbers(2, 7, 8)]),
        ],
        ..Matrix::default()
    }
}

fn levels(files: &mut Files) -> Result<()> {
    let shape = [5, 7];
    Accept::new(FOLDER, "levels", "two blocks of rows and three levels: a unit without terms, a block without the last level; another tensor has one level")
        .tensor(Tensor::new("w", DType::F32, &shape, vec![two_blocks()]))
        .tensor(Tensor::of("v", numbers(2, 3, 0)))
        .finish(files)?;

    let gap = Matrix {
        units: vec![Unit { level: 0, rows: (2, 1), terms: vec![numbers(1, 7, 0).at_place(2, 0)] }],
        ..two_blocks()
    };
    Accept::new(FOLDER, "uncovered_rows", "units that leave rows out: they have no terms")
        .tensor(Tensor::new("w", DType::F32, &shape, vec![gap]))
        .finish(files)?;

    let step = |tensor: &str, unit: usize, loss: Option<f64>| StepEntry {
        unit: (tensor.into(), 0, unit),
        expected_loss: loss,
    };
    Accept::new(
        FOLDER,
        "schedule",
        "a schedule that goes up one block before the other, with expected losses where they are known",
    )
    .tensor(Tensor::new("w", DType::F32, &shape, vec![two_blocks()]))
    .tensor(Tensor::of("v", numbers(2, 3, 0)))
    .schedule(vec![
        step("w", 1, None),
        step("v", 0, Some(9.5)),
        step("w", 0, Some(-0.0)),
        step("w", 3, None),
        step("w", 4, Some(2.25)),
        step("w", 2, Some(1e-9)),
    ])
    .finish(files)
}

fn names(files: &mut Files) -> Result<()> {
    let longest = "n".repeat(4096);
    let mut file = Accept::new(
        FOLDER,
        "names",
        "tensor names that are allowed: the longest, other scripts, spaces, slashes, dots, backslashes, an escape as text",
    );
    for name in [
        "a",
        "a b",
        "a.b/c:0",
        "a..b",
        "...",
        "/",
        "a//b",
        "模型.权重",
        "Ω",
        "é",
        "e\u{301}",
        "a\\x00",
        "C:\\NUL",
        "\u{FEFF}",
        "\u{200B}",
        "~",
        longest.as_str(),
    ] {
        file = file.tensor(Tensor::exact(name, cycle(DType::U8, 1, 1, 1)));
    }
    let file_name = format!("{}.txt", "f".repeat(251));
    file.attribute("comb.json", "application/json", b"{}")
        .attribute(".hidden", "text/plain; charset=utf-8", b"")
        .attribute(&file_name, "text/plain", b"x")
        // Shares its string with a tensor.
        .attribute("a", "a", b"y")
        .finish(files)
}

fn limits(files: &mut Files) -> Result<()> {
    let transforms = (0..16).map(|seed| Transform::SignHadamard(2, seed)).collect();
    let inputs = Matrix { inputs: transforms, ..Matrix::sum(1, 4, vec![numbers(1, 4, 0).into()]) };
    Accept::new(
        FOLDER,
        "largest",
        "16 transforms on a side and a tree of 256 nodes, which every reader accepts",
    )
    .tensor(Tensor::new("transforms", DType::F32, &[1, 4], vec![inputs]))
    .tensor(Tensor::of("tree", tree(&f32s(1, 2, &[2.0, 3.0]))))
    .finish(files)
}

/// A tree of 255 nodes and that of `table`, 8 deep: each node is both scale and zero point of the
/// one above.
pub(in crate::vectors) fn tree(table: &Piece) -> Piece {
    let both = |child: &Piece, map| {
        let g = Grouped {
            bits: 1,
            map,
            scale_op: 1,
            scale: Some(child),
            zero_op: 2,
            zero: Some(child),
            group: (0, 0),
        };
        grouped(&g, 1, 1, &[1])
    };
    let mut piece = f32s(1, 1, &[0.5]);
    for _ in 0..6 {
        piece = both(&piece, Map::Integer(0));
    }
    both(&piece, Map::Table(table))
}

fn attributes(files: &mut Files) -> Result<()> {
    let zstd = |stored: Vec<u8>, decoded_bytes| SegmentData {
        compression: Compression::Zstd,
        decoded_bytes,
        ..SegmentData::from(stored)
    };
    let runs = [vec![b'a'; 100], b"bc".to_vec(), vec![b'd'; 98]].concat();
    let blocks = [Block::Repeat(b'a', 100), Block::Raw(b"bc"), Block::Repeat(b'd', 98)];
    let text: Vec<u8> = (0..300).map(|i| (i % 251) as u8).collect();
    let windowed = frames::windowed_frame(17 << 3, Some(300), &[Block::Raw(&text)]);
    let config = br#"{"model_type":"llama"}"#;
    Accept::new(FOLDER, "attributes", "attributes raw, empty, twice the same bytes, in zstd frames of raw and repeated blocks, of Huffman codes, and with a window of 2^27")
        .attribute("config.json", "application/json", config)
        .attribute("copy of config.json", "application/json", config)
        .attribute("empty.txt", "text/plain", b"")
        .stored_attribute("runs.txt", "text/plain", &runs, zstd(short_frame(200, &blocks), 200))
        .stored_attribute("huffman.bin", "application/octet-stream", &exponents(), zstd(EXPONENTS.to_vec(), 600))
        .stored_attribute("window.bin", "application/octet-stream", &text, zstd(windowed, 300))
        .finish(files)?;

    // The same frame as the codes of a term: 8-bit codes, rows of 200.
    let codes = Piece {
        values: runs.iter().map(|c| f32::from(*c)).collect(),
        ..grouped(&Grouped { bits: 8, ..Grouped::default() }, 1, 200, &runs)
    };
    let mut node = cmf_format::NodeData::clone(&codes.node);
    node.segments = vec![zstd(short_frame(200, &blocks), 200)];
    let compressed = Piece { node: node.into(), ..codes };
    Accept::new(FOLDER, "compressed_term", "a node whose segment is a zstd frame, which an attribute shares")
        .tensor(Tensor::of("w", compressed))
        .stored_attribute("runs.txt", "text/plain", &runs, zstd(short_frame(200, &blocks), 200))
        .finish(files)
}

fn references(files: &mut Files) -> Result<()> {
    let identity = |first: u8| core::array::from_fn(|i| first.wrapping_add(i as u8));
    Accept::new(
        FOLDER,
        "shards",
        "tensors of which two lie in two shards, and one is empty and lies in a shard too",
    )
    .reference("model-00001-of-00002.cmf", false, identity(1), 4096)
    .reference("model-00002-of-00002.cmf", false, identity(101), u64::MAX)
    .tensor(Tensor::of("here", numbers(1, 3, 0)))
    .tensor(Tensor::new("there", DType::BF16, &[100, 200], vec![]).in_shard("model-00001-of-00002.cmf"))
    .tensor(Tensor::new("there.too", DType::F32, &[], vec![]).in_shard("model-00002-of-00002.cmf"))
    .tensor(Tensor::new("there.empty", DType::F32, &[0], vec![]).in_shard("model-00002-of-00002.cmf"))
    .finish(files)?;
    let factors = low_rank(&numbers(2, 3, 1), &numbers(2, 4, 2));
    Accept::new(
        FOLDER,
        "delta",
        "tensors that are those of a base archive plus a low-rank term, and those of the base as they are",
    )
    .reference("base.cmf", true, identity(7), 1_000_000)
    .reference("unused.cmf", false, identity(9), 300)
    .tensor(Tensor::sum("adapted", DType::F32, vec![factors.into()]).delta_to("base.cmf"))
    .tensor(Tensor::new("unchanged", DType::F32, &[3, 4], vec![]).delta_to("base.cmf"))
    .tensor(Tensor::of("new", numbers(1, 2, 0)))
    .finish(files)
}

fn integrity(files: &mut Files) -> Result<()> {
    let bytes: Vec<u8> = (0..4097).map(|i| (i % 251) as u8).collect();
    Accept::new(
        FOLDER,
        "chunk_groups",
        "segments of 1, 2 and 5 chunk groups of 1024 bytes, whose chaining values are segment 0",
    )
    .attribute("1024.bin", "application/octet-stream", &bytes[..1024])
    .attribute("1025.bin", "application/octet-stream", &bytes[..1025])
    .attribute("4097.bin", "application/octet-stream", &bytes)
    .tensor(Tensor::exact("w", dense(DType::U8, 1, 8, &bytes[..8])))
    .finish(files)?;
    Accept::new(
        FOLDER,
        "larger_chunk_groups",
        "chunk groups of 2048 bytes, two chunks of the hash function each",
    )
    .options(64, 2048)
    .attribute("2049.bin", "application/octet-stream", &bytes[..2049])
    .finish(files)?;
    Accept::new(FOLDER, "alignment", "segments aligned to 4096 bytes, the last of no bytes")
        .options(4096, 65_536)
        .attribute("a.txt", "text/plain", b"a")
        .attribute("b.txt", "text/plain", b"")
        .finish(files)
}

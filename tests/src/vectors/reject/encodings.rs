//! "Checks at open" and "Checks on payload" of every encoding's page.

use super::Rejects;
use super::bases::{self, Base};
use crate::vectors::accept::trellis::{BYTE_SUM, codes};
use crate::vectors::case::FailsAt;
use crate::vectors::frames::{Block, short_frame, squeeze, windowed_frame};
use crate::vectors::image::Image;
use crate::vectors::image::table::{DESCRIPTORS, NODES, REFS};
use crate::vectors::naive::{
    Blocks, Codebook, Grouped, Map, NestedLevel, NestedMap, Piece, Trellis, Windows, blocks, codebook, cycle,
    f16s, f32s, grouped, lossless, low_rank, n_of_m, nested, sign_low_rank, trellis,
};
use cmf_format::{DType, Result};

/// The archive of one node, to break one rule of its encoding. The descriptor of the node ends the
/// table, its segments come first, and its record is the last.
struct Target<'o, 'f> {
    out: &'o mut Rejects<'f>,
    encoding: &'static str,
    base: Base,
    descriptor: usize,
}

impl<'o, 'f> Target<'o, 'f> {
    fn new(out: &'o mut Rejects<'f>, encoding: &'static str, piece: &Piece) -> Result<Self> {
        let base = bases::one(piece)?;
        let descriptors =
            base.parts().tables.iter().find(|t| t.kind == DESCRIPTORS).map_or(0, |t| t.bytes.len());
        Ok(Self { out, encoding, base, descriptor: descriptors - piece.node.descriptor.len() })
    }

    fn name(&self, name: &str) -> String {
        format!("{}_{name}", self.encoding)
    }

    /// Sets descriptor bytes.
    fn set(&self, field: usize, value: &[u8]) -> Image {
        let at = self.base.image().at(DESCRIPTORS, self.descriptor + field, 0);
        self.base.image().put(at, value)
    }

    /// A descriptor that the rules at open refuse.
    fn descriptor(&mut self, name: &str, why: &str, field: usize, value: &[u8]) {
        let image = self.set(field, value);
        let name = self.name(name);
        self.out.structure(&name, why, image);
    }

    /// A descriptor with a number that this version does not know.
    fn unknown(&mut self, name: &str, why: &str, field: usize, value: &[u8]) {
        let bytes = self.set(field, value).seal();
        let name = self.name(name);
        self.out.at(FailsAt::Tensor("w"), "unsupported", &name, why, bytes);
    }

    /// A descriptor of the wrong length, a segment and a child too few and too many, and a segment
    /// too short and too long.
    fn shape(&mut self, segments: &[usize], children: usize) {
        let nodes =
            self.base.parts().tables.iter().find(|t| t.kind == NODES).map_or(0, |t| t.bytes.len() / 48);
        let last = nodes - 1;
        let why = "the descriptor is 8 bytes longer than the page says";
        let longer = self.base.parts().push(DESCRIPTORS, &[0; 8]).build();
        let length = longer.bytes[longer.at(NODES, last, 28)];
        let longer = longer.u32(NODES, last, 28, u32::from(length) + 8);
        let name = self.name("descriptor_long");
        self.out.structure(&name, why, longer);

        for (i, bytes) in segments.iter().enumerate() {
            for (word, bytes) in [("short", bytes.wrapping_sub(1)), ("long", bytes + 1)] {
                if bytes > 1 << 20 {
                    continue;
                }
                let image = self.base.parts().segment(i, vec![0; bytes], bytes as u64, 0).build();
                let name = self.name(&format!("segment{i}_{word}"));
                self.out.structure(&name, &format!("segment {i} is one byte too {word}"), image);
            }
        }
        // A segment more; what comes after it in the refs moves up by one.
        let record = self.base.image();
        let first = u32::from(record.bytes[record.at(NODES, last, 32)]) as usize;
        let at = (first + segments.len()) * 4;
        let more = self.base.parts().table(REFS, |t| drop(t.bytes.splice(at..at, [0; 4])));
        let image = more.build().u16(NODES, last, 36, segments.len() as u16 + 1);
        let name = self.name("segment_more");
        self.out.structure(&name, "a segment more than the page says", image);
        if last > 0 {
            let image = self.base.parts().push(REFS, &[0; 4]).build();
            let image = image.u16(NODES, last, 38, children as u16 + 1);
            let name = self.name("child_more");
            self.out.structure(&name, "a child more than the page says", image);
        }
    }

    /// Another shape of a child than the page says; `child` is its node.
    fn child(&mut self, name: &str, why: &str, child: usize, rows: u64, cols: u64) {
        let image = self.base.image().u64(NODES, child, 8, rows).u64(NODES, child, 16, cols);
        let name = self.name(name);
        self.out.structure(&name, why, image);
    }

    /// Payload that the rules on payload refuse when it is decoded.
    fn decode(&mut self, name: &str, why: &str, segment: usize, at: usize, value: &[u8]) {
        let bytes = self.base.image().payload(segment, at, value).seal();
        let name = self.name(name);
        self.out.at(FailsAt::Tensor("w"), "value", &name, why, bytes);
    }

    /// Payload that only verification refuses.
    fn verify(&mut self, name: &str, why: &str, segment: usize, at: usize, value: &[u8]) {
        let bytes = self.base.image().payload(segment, at, value).seal();
        let name = self.name(name);
        self.out.at(FailsAt::Verify, "value", &name, why, bytes);
    }
}

pub(super) fn add(out: &mut Rejects<'_>) -> Result<()> {
    dense_rules(out)?;
    grouped_rules(out)?;
    sparse_rules(out)?;
    low_rank_rules(out)?;
    codebook_rules(out)?;
    lossless_rules(out)?;
    sign_low_rank_rules(out)?;
    nested_rules(out)?;
    trellis_rules(out)
}

fn dense_rules(out: &mut Rejects<'_>) -> Result<()> {
    let mut t = Target::new(out, "dense", &cycle(DType::U16, 2, 3, 0))?;
    t.shape(&[12], 0);
    t.descriptor("reserved0", "reserved bytes are not 0", 2, &[1]);
    t.descriptor("reserved1", "reserved bytes are not 0", 7, &[1]);
    t.unknown("dtype_zero", "element type 0", 0, &[0]);
    t.unknown("dtype_unknown", "element type 20", 0, &[20]);
    let image = t.base.image().u64(NODES, 0, 8, 1 << 62).u64(NODES, 0, 16, 4);
    let name = t.name("overflow");
    t.out.structure(&name, "rows times columns overflows 64 bits", image);
    let image = t.base.image().u64(NODES, 0, 8, 1 << 63).u64(NODES, 0, 16, 1);
    let name = t.name("bytes_overflow");
    t.out.structure(&name, "rows times columns times bytes overflows 64 bits", image);

    let c64 = bases::one(&cycle(DType::C64, 1, 2, 0))?;
    out.at(FailsAt::Tensor("w"), "argument", "dense_c64", "c64 has no real values to decode", c64.bytes());
    Ok(())
}

fn grouped_rules(out: &mut Rejects<'_>) -> Result<()> {
    let (scale, zero) = (f32s(2, 2, &[1.0, 2.0, 3.0, 4.0]), f16s(2, 2, &[0, 1, 2, 3]));
    let g = Grouped {
        bits: 3,
        map: Map::Integer(-4),
        scale_op: 1,
        scale: Some(&scale),
        zero_op: 1,
        zero: Some(&zero),
        group: (1, 4),
    };
    let mut t = Target::new(out, "grouped", &grouped(&g, 2, 5, &[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]))?;
    t.shape(&[8], 2);
    t.descriptor("bits_zero", "codes of 0 bits", 0, &[0]);
    t.descriptor("bits_nine", "codes of 9 bits", 0, &[9]);
    t.unknown("code_map", "code map number 3", 1, &[3, 1, 1, 1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    t.unknown("scale_op", "scale operation 3", 2, &[3]);
    t.unknown("zero_op", "zero operation 3", 3, &[3]);
    t.descriptor("scale_not_asked", "a scale that the descriptor does not ask for", 2, &[0]);
    t.descriptor("zero_not_asked", "a zero point that the descriptor does not ask for", 3, &[0]);
    t.descriptor(
        "table_missing",
        "a table that is not there",
        1,
        &[2, 1, 1, 1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
    );
    t.descriptor("group_rows", "the children have more rows than there are groups", 4, &[3]);
    t.descriptor("group_cols", "the children have fewer columns than there are groups", 8, &[2]);
    for (field, name) in
        [(16, "exponent_bits"), (17, "mantissa_bits"), (18, "sign_bits"), (19, "special"), (20, "bias")]
    {
        t.descriptor(&format!("integer_{name}"), "a minifloat field of an integer map is not 0", field, &[1]);
    }
    t.descriptor("reserved", "reserved bytes are not 0", 31, &[1]);
    t.verify("padding", "a bit after the last code of a row is set", 0, 1, &[0xFF]);

    let map = Map::Minifloat(1, 2, 1, 1, 0);
    let mut t = Target::new(
        out,
        "grouped_minifloat",
        &grouped(&Grouped { map, ..Grouped::default() }, 1, 8, &[0, 1, 2, 3, 4, 5, 6, 7]),
    )?;
    let image = t.base.image().u64(NODES, 0, 8, 1).u64(NODES, 0, 16, u64::MAX);
    let name = t.name("overflow");
    t.out.structure(&name, "columns times bits overflows 64 bits", image);
    t.descriptor("offset", "the offset of a minifloat map is not 0", 12, &[1]);
    t.descriptor("width", "sign, exponent and mantissa are not as wide as a code", 17, &[2]);
    t.descriptor("no_exponent", "a minifloat without exponent", 16, &[0, 3]);
    t.descriptor("two_signs", "a minifloat of two sign bits", 17, &[0, 2]);
    t.descriptor("bias_high", "a bias of 128", 20, &[128]);
    t.descriptor("bias_low", "a bias of -128", 20, &(-128i32).to_le_bytes());
    t.unknown("special", "special number 3", 19, &[3]);

    let table = f32s(1, 4, &[1.0, 2.0, 3.0, 4.0]);
    let g = Grouped { bits: 2, map: Map::Table(&table), ..Grouped::default() };
    let mut t = Target::new(out, "grouped_table", &grouped(&g, 2, 4, &[0, 1, 2, 3, 3, 2, 1, 0]))?;
    t.descriptor("offset", "the offset of a table map is not 0", 12, &[1]);
    t.child("rows", "a table of neither 1 row nor as many as the matrix has", 0, 4, 1);
    t.child("cols", "a table with fewer entries than there are codes", 0, 2, 2);
    Ok(())
}

fn sparse_rules(out: &mut Rejects<'_>) -> Result<()> {
    let values = cycle(DType::I8, 4, 1, 1);
    let entries = [(0, 1), (0, 4), (2, 0), (2, 2)];
    let csr = Blocks { replace: false, index_bits: 16, block: (1, 1), entries: &entries, values: &values };
    let mut t = Target::new(out, "sparse_csr", &blocks(&csr, 3, 5))?;
    t.shape(&[16, 8], 1);
    t.unknown("op", "operation number 2", 0, &[2]);
    t.unknown("layout_zero", "layout number 0", 1, &[0]);
    t.unknown("layout", "layout number 4", 1, &[4]);
    t.descriptor("index_bits", "column indices of 8 bits", 2, &[8]);
    t.descriptor("reserved", "the reserved byte is not 0", 3, &[1]);
    t.descriptor("block_rows_zero", "blocks of 0 rows", 4, &[0]);
    t.descriptor("block_cols_zero", "blocks of 0 columns", 8, &[0]);
    t.descriptor("block_large", "blocks of 65537 elements", 8, &65_537u32.to_le_bytes());
    t.descriptor("n", "n is not 0 where there is none", 12, &[1]);
    t.descriptor("m", "m is not 0 where there is none", 14, &[1]);
    t.descriptor("count", "more entries than columns and values", 16, &[5]);
    t.descriptor("count_large", "2^32 entries", 16, &(1u64 << 32).to_le_bytes());
    let offsets = |list: [u32; 4]| list.iter().flat_map(|o| o.to_le_bytes()).collect::<Vec<u8>>();
    t.decode("first_offset", "the first offset is not 0", 0, 0, &offsets([1, 2, 2, 4]));
    t.decode("last_offset", "the last offset is not the number of entries", 0, 0, &offsets([0, 2, 2, 3]));
    t.decode("offsets_fall", "offsets fall", 0, 0, &offsets([0, 2, 1, 4]));
    t.decode("offset_beyond", "an offset beyond the number of entries", 0, 0, &offsets([0, 5, 5, 4]));
    t.decode("columns_twice", "a column comes twice", 1, 0, &[1, 0, 1, 0]);
    t.decode("columns_fall", "columns fall", 1, 0, &[4, 0, 1, 0]);
    t.decode("column_beyond", "a column beyond the last", 1, 2, &[5, 0]);

    let bitmap = Blocks { index_bits: 0, ..csr };
    let mut t = Target::new(out, "sparse_bitmap", &blocks(&bitmap, 3, 5))?;
    t.shape(&[16, 12], 1);
    t.descriptor("index_bits", "a bitmap with index bits", 2, &[16]);
    t.descriptor("n", "n is not 0 where there is none", 12, &[1]);
    t.decode("first_offset", "the first offset is not 0", 0, 0, &offsets([1, 2, 2, 4]));
    t.descriptor("values_rows", "more rows of values than entries need", 16, &[3]);
    let image = t.base.parts().segment(2, vec![], 0, 0).build().u64(NODES, 0, 16, 0);
    let name = t.name("values_cols");
    t.out.structure(&name, "values without columns", image);
    t.decode("bits_more", "more bits than entries", 1, 0, &[0x1F]);
    t.decode("bits_fewer", "fewer bits than entries", 1, 0, &[0x02]);
    t.decode("bits_beyond", "a bit beyond the last column", 1, 0, &[0x22]);

    let values = cycle(DType::I8, 2, 4, 1);
    let piece = n_of_m(false, (2, 3), (2, 5), &[0, 1, 1, 2, 0, 2, 0, 1], &values);
    let mut t = Target::new(out, "sparse_n_m", &piece)?;
    t.shape(&[8], 1);
    t.descriptor("index_bits", "n of m with index bits", 2, &[16]);
    t.descriptor("block", "n of m with blocks", 4, &[2]);
    t.descriptor("n_zero", "0 of 3 columns are kept", 12, &[0]);
    t.descriptor("n_above_m", "4 of 3 columns are kept", 12, &[4]);
    t.descriptor("m_one", "1 of 1 column is kept", 12, &[1, 0, 1, 0]);
    t.descriptor("count", "another number of values", 16, &[9]);
    t.child("values_shape", "values of another shape", 0, 4, 2);
    t.decode("position_beyond", "a position that is not below m", 0, 0, &[0b10_01_11_00]);
    t.decode("positions_equal", "a position comes twice", 0, 0, &[0b10_01_01_01]);
    t.decode("positions_fall", "positions fall", 0, 0, &[0b10_01_00_01]);
    t.verify("padding", "a bit after the last position of a row is set", 0, 1, &[1]);
    Ok(())
}

fn low_rank_rules(out: &mut Rejects<'_>) -> Result<()> {
    let (a_t, b) = (cycle(DType::I8, 2, 3, 0), cycle(DType::I8, 2, 5, 9));
    let mut t = Target::new(out, "low_rank", &low_rank(&a_t, &b))?;
    t.shape(&[], 2);
    t.descriptor("rank", "another rank than the factors have", 0, &[3]);
    t.descriptor("rank_zero", "factors of rank 0", 0, &[0]);
    t.descriptor("reserved", "reserved bytes are not 0", 7, &[1]);
    t.child("rows", "a first factor of another shape", 0, 3, 2);
    t.child("cols", "a second factor of another shape", 1, 5, 2);
    Ok(())
}

fn sign_low_rank_rules(out: &mut Rejects<'_>) -> Result<()> {
    let (a_t, b) = (cycle(DType::I8, 2, 3, 0), cycle(DType::I8, 2, 5, 9));
    let mut t = Target::new(out, "sign_low_rank", &sign_low_rank(&[0, 1, 1, 0, 1].repeat(3), &a_t, &b))?;
    t.shape(&[12], 2);
    t.descriptor("rank", "another rank than the factors have", 0, &[3]);
    t.descriptor("rank_zero", "factors of rank 0", 0, &[0]);
    t.descriptor("reserved", "reserved bytes are not 0", 7, &[1]);
    t.child("rows", "a first factor of another shape", 0, 3, 2);
    t.child("cols", "a second factor of another shape", 1, 5, 2);
    t.verify("padding", "a bit after the last sign of a row is set", 0, 0, &[0x20]);
    Ok(())
}

fn nested_rules(out: &mut Rejects<'_>) -> Result<()> {
    let (scale, zero) = (f16s(2, 2, &[0x3C00; 4]), f32s(2, 2, &[1.0, 2.0, 3.0, 4.0]));
    let table = f32s(2, 4, &[-1.0, 0.0, 1.0, 2.0, -2.0, 0.0, 2.0, 4.0]);
    let lower = NestedLevel { bits: 2, half_up: false, map: NestedMap::Table(&table) };
    let level = NestedLevel { bits: 3, half_up: false, map: NestedMap::Integer(&scale, &zero, 4) };
    let codes = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1];
    let mut t = Target::new(out, "nested", &nested(&level, Some(&lower), (2, 5), &codes))?;
    t.shape(&[8, 8, 8], 3);
    t.descriptor("bits_zero", "codes of 0 bits", 0, &[0]);
    t.descriptor("bits_nine", "codes of 9 bits", 0, &[9]);
    t.descriptor("bits_more", "a plane fewer than the codes have bits", 0, &[4]);
    t.descriptor(
        "half_up_missing",
        "codes to be rounded without the plane that they are rounded by",
        2,
        &[1],
    );
    t.descriptor("lower_as_many", "as many bits below", 3, &[3]);
    t.descriptor("lower_fewer", "a table below for codes of other bits", 3, &[1]);
    t.descriptor("lower_none", "fields of a level below that is not there", 3, &[0]);
    t.descriptor("lower_map", "children of another map", 4, &[0]);
    t.descriptor("reserved", "reserved bytes are not 0", 7, &[1]);
    t.descriptor("group_cols", "the children have fewer columns than there are groups", 8, &[2]);
    t.descriptor("table_group_cols", "columns of a group for a table", 12, &[4]);
    t.unknown("map", "map number 2", 1, &[2]);
    t.unknown("rounding", "rounding number 2", 2, &[2]);
    t.unknown("lower_map_number", "map number 2 of the level below", 4, &[2]);
    t.unknown("lower_rounding_number", "rounding number 2 of the level below", 5, &[2]);
    t.child("scale_shape", "scales of another shape", 0, 4, 1);
    t.child("table_cols", "a table with fewer entries than there are codes", 2, 4, 2);
    t.verify("padding", "a bit after the last column of a row of the last plane is set", 2, 4, &[0x22]);

    let level = NestedLevel { bits: 8, half_up: false, map: NestedMap::Integer(&scale, &zero, 4) };
    let mut t = Target::new(out, "nested_eight", &nested(&level, None, (2, 5), &codes))?;
    t.descriptor("half_up", "codes of 8 bits to be rounded half up", 2, &[1]);
    t.descriptor("lower_group_cols", "columns of a group of a level below that is not there", 12, &[1]);
    Ok(())
}

fn codebook_rules(out: &mut Rejects<'_>) -> Result<()> {
    let entries = cycle(DType::I8, 8, 2, 0);
    let scale = f16s(2, 2, &[0x3C00; 4]);
    let c = Codebook { codebooks: 2, bits: 2, vector: (1, 2), entries: &entries, scale: Some((&scale, 4)) };
    let mut t = Target::new(out, "codebook", &codebook(&c, 2, 5, &[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]))?;
    t.shape(&[8], 2);
    t.descriptor("none", "no codebooks", 0, &[0]);
    t.descriptor("bits_zero", "codes of 0 bits", 1, &[0]);
    t.descriptor("bits_seventeen", "codes of 17 bits", 1, &[17]);
    t.descriptor("has_scale", "`has_scale` is 2", 2, &[2]);
    t.descriptor("reserved", "the reserved byte is not 0", 3, &[1]);
    t.descriptor("vector_rows_zero", "vectors of 0 rows", 4, &[0]);
    t.descriptor("vector_cols_zero", "vectors of 0 columns", 8, &[0]);
    t.descriptor("vector_large", "vectors of more than 65536 elements", 4, &32_769u32.to_le_bytes());
    t.descriptor("scale_cols", "columns of a scale that are no multiple of a vector's", 12, &[3]);
    t.child("entries_rows", "fewer entries than there are codes", 0, 4, 4);
    t.child("scale_rows", "scales of another shape", 1, 4, 1);
    t.verify("padding", "a bit after the last code of a row is set", 0, 3, &[1]);

    let c = Codebook { scale: None, ..c };
    let mut t = Target::new(out, "codebook_unscaled", &codebook(&c, 2, 5, &[0; 12]))?;
    t.descriptor("scale_cols", "columns of a scale without a scale", 12, &[2]);
    t.descriptor("scale_missing", "a scale that is not there", 2, &[1]);
    Ok(())
}

fn trellis_rules(out: &mut Rejects<'_>) -> Result<()> {
    let scale = f16s(5, 1, &[0x3C00; 5]);
    let base = Trellis {
        state_bits: 8,
        step_bits: 2,
        along: false,
        path: 3,
        code: BYTE_SUM,
        scale: &scale,
        group: (1, 0),
    };
    let mut t = Target::new(out, "trellis", &trellis(&base, 5, 3, &codes(2, 15)))?;
    t.shape(&[24], 1);
    t.descriptor("state_bits_five", "windows of 5 bits", 0, &[5]);
    t.descriptor("state_bits_seventeen", "windows of 17 bits", 0, &[17]);
    t.descriptor("step_bits_zero", "steps of 0 bits", 1, &[0]);
    t.descriptor("step_bits_five", "steps of 5 bits", 1, &[5]);
    t.unknown("code", "code number 2", 2, &[2]);
    t.descriptor("axis", "`axis` is 2", 3, &[2]);
    t.descriptor("path_elems", "more paths than there are words", 4, &[1]);
    t.descriptor(
        "table_missing",
        "a table that is not there",
        2,
        &[0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    t.descriptor("scale_rows", "more rows of scales than the descriptor says", 16, &[2]);
    t.descriptor("reserved", "reserved bytes are not 0", 31, &[1]);
    t.verify("padding", "a bit after the last weight of a path is set", 0, 0, &[0x40]);
    t.verify("padding_last", "a bit after the last weight of the last path is set", 0, 23, &[0x80]);
    for (name, rows, cols) in [("overflow", 1 << 62, 3), ("bits_overflow", u64::MAX, 1)] {
        let image = t.base.image().u64(NODES, 1, 8, rows).u64(NODES, 1, 16, cols);
        let name = t.name(name);
        t.out.structure(&name, "the length of the paths overflows 64 bits", image);
    }

    let (one, table) = (f16s(1, 1, &[0x3C00]), cycle(DType::I8, 1, 64, 0));
    let base = Trellis {
        state_bits: 6,
        code: Windows::Table(&table),
        along: true,
        scale: &one,
        path: 0,
        group: (0, 0),
        ..base
    };
    let mut t = Target::new(out, "trellis_table", &trellis(&base, 2, 17, &codes(2, 34)))?;
    t.descriptor("multiplier", "the multiplier of a table is not 0", 8, &[1]);
    t.descriptor("addend", "the addend of a table is not 0", 15, &[1]);
    t.descriptor("not_asked", "a table that the descriptor does not ask for", 2, &[1]);
    t.descriptor("state_bits", "fewer entries than there are windows", 0, &[7]);
    t.child("rows", "a table of more than one row", 1, 2, 32);
    t.verify("padding", "a bit after the last weight of a row is set", 0, 4, &[0x0C]);
    Ok(())
}

fn lossless_rules(out: &mut Rejects<'_>) -> Result<()> {
    // Two frames of one row: exponents in a frame of zstd, the rest raw.
    let bytes: Vec<u8> = (0..40u16).flat_map(|i| (0x3F80 + i % 20 * 6 % 128).to_le_bytes()).collect();
    let piece = lossless(DType::BF16, (2, 20), 1, &bytes, squeeze);
    let chunk = squeeze(&[0x7F; 20]).map_or(0, |c| c.len());
    let mut t = Target::new(out, "lossless", &piece)?;
    t.shape(&[32, 2 * (chunk + 20)], 0);
    t.unknown("dtype", "element type 20", 0, &[20]);
    t.descriptor("reserved", "reserved bytes are not 0", 2, &[1]);
    t.descriptor("rows_per_frame_zero", "frames of no rows", 4, &[0]);
    t.descriptor("rows_per_frame_two", "one frame, but ends of two", 4, &[2]);
    t.descriptor(
        "rows_per_frame_large",
        "a frame of more than 2^24 elements",
        4,
        &(1u32 << 24).to_le_bytes(),
    );
    t.descriptor("chunk_bytes", "another length of the chunks", 8, &[1]);
    let ends = |list: [usize; 4]| list.iter().flat_map(|e| (*e as u64).to_le_bytes()).collect::<Vec<u8>>();
    let (a, b) = (chunk, chunk + 20);
    t.decode("ends_fall", "ends fall", 0, 0, &ends([b, a, b + a, b + b]));
    t.decode("end_beyond", "an end beyond the chunks", 0, 0, &ends([a, b, 3 * b, b + b]));
    t.decode("last_end", "the last end is not the end of the chunks", 0, 0, &ends([a, b, b + a, b + b - 1]));
    t.decode("chunk_long", "a chunk longer than its plane", 0, 0, &ends([a, b + 1, b + a, b + b]));
    t.decode(
        "chunk_short",
        "a chunk that is shorter than its plane, and no frame",
        0,
        0,
        &ends([a + 1, b, b + a, b + b]),
    );
    t.decode("frame_magic", "a chunk that should be a frame, with another magic number", 1, 0, &[0]);
    t.decode("frame_size", "a frame that states another length", 1, 5, &[19]);
    t.decode("frame_block", "a frame that holds fewer bytes than it states", 1, 6, &[(19 << 3) | 3]);

    let large: Vec<u8> = (0..600u16).flat_map(|i| (0x3F80 + i % 128).to_le_bytes()).collect();
    let window = |plane: &[u8]| {
        let run = plane.iter().all(|b| *b == 0x7F);
        run.then(|| windowed_frame(17 << 3 | 1, Some(600), &[Block::Repeat(0x7F, 600)]))
    };
    let base = bases::one(&lossless(DType::BF16, (1, 600), 1, &large, window))?;
    let why = "a frame with a window above 2^27";
    out.at(FailsAt::Tensor("w"), "value", "lossless_window", why, base.bytes());
    let twice = |plane: &[u8]| {
        let run = plane.iter().all(|b| *b == 0x7F);
        run.then(|| {
            [short_frame(40, &[Block::Repeat(0x7F, 40)]), short_frame(0, &[Block::Raw(b"")])].concat()
        })
    };
    let base = bases::one(&lossless(DType::BF16, (2, 20), 2, &bytes, twice))?;
    let why = "two frames in one chunk";
    out.at(FailsAt::Tensor("w"), "value", "lossless_two_frames", why, base.bytes());
    Ok(())
}

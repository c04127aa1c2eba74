//! `grouped`.

use crate::common::{Bed, Near, Random, TestResult, bed, check, check_many, check_tiles, dense_node, scales};
use cmf_format::encoding::grouped::{
    Children, CodeMap, Descriptor, Minifloat, ScaleOp, ZeroOp, groups, pack,
};
use cmf_format::{DType, NodeData};
use std::sync::Arc;

/// What a case is made of.
#[derive(Clone, Copy)]
struct Form {
    bits: u8,
    map: CodeMap,
    scale_op: ScaleOp,
    zero_op: ZeroOp,
    group: (u32, u32),
    scale: DType,
    shape: (usize, usize),
}

const PLAIN: Form = Form {
    bits: 4,
    map: CodeMap::Integer { offset: -8 },
    scale_op: ScaleOp::Multiply,
    zero_op: ZeroOp::None,
    group: (1, 32),
    scale: DType::F16,
    shape: (19, 128),
};

impl Form {
    fn node(&self) -> Result<NodeData, cmf_format::Error> {
        let mut random = Random::new(u64::from(self.bits));
        let (rows, cols) = self.shape;
        let down = groups(rows as u64, self.group.0) as usize;
        let across = groups(cols as u64, self.group.1) as usize;
        let codes: Vec<u8> = (0..rows * cols).map(|_| random.below(1 << self.bits) as u8).collect();
        let mut child = |present: bool, dtype| present.then(|| scales(dtype, down, across, &mut random));
        let scale = child(self.scale_op != ScaleOp::None, self.scale).transpose()?;
        let zero = child(self.zero_op != ZeroOp::None, DType::F32).transpose()?;
        let table = match self.map {
            CodeMap::Table => Some(dense_node(DType::F32, 1, 1 << self.bits, &mut random)?),
            _ => None,
        };
        let descriptor = Descriptor {
            bits: self.bits,
            code_map: self.map,
            scale_op: self.scale_op,
            zero_op: self.zero_op,
            group_rows: self.group.0,
            group_cols: self.group.1,
        };
        pack(&descriptor, rows as u64, cols as u64, &codes, Children { scale, zero, table })
    }

    fn check(&self, bed: &Bed, name: &str) -> TestResult {
        // A product and a sum may be fused, a quotient may be a product with the reciprocal.
        let near = match (self.scale_op, self.zero_op) {
            (ScaleOp::Divide, _) | (_, ZeroOp::Add) => Near::Within(3e-7),
            _ => Near::Exact,
        };
        check(bed, name, &[Arc::new(self.node()?)], near)
    }
}

#[test]
fn every_width_decodes_at_any_shape() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    for bits in 1..=8 {
        Form { bits, ..PLAIN }.check(&bed, &format!("{bits} bits"))?;
    }
    let node = Arc::new(PLAIN.node()?);
    check_many(&bed, "4 bits, several tiles", std::slice::from_ref(&node), Near::Exact)?;
    check_tiles(&bed, "4 bits, tiles", &[Arc::clone(&node), node], Near::Exact)?;
    for (bits, shape) in [(3, (8, 67)), (3, (3, 1)), (4, (9, 100))] {
        Form { bits, shape, ..PLAIN }.check(&bed, &format!("{bits} bits, {shape:?}"))?;
    }
    Ok(())
}

#[test]
fn scales_and_zeros_of_any_group_apply() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let zeros = [ZeroOp::Add, ZeroOp::Subtract, ZeroOp::None].into_iter().cycle();
    let groups = [(1, 0), (1, 64), (1, 16), (1, 12), (1, 5), (4, 4), (0, 1), (3, 96)];
    for (group, zero_op) in groups.into_iter().zip(zeros) {
        let form = Form { group, zero_op, scale: DType::F32, ..PLAIN };
        form.check(&bed, &format!("groups {group:?}, {zero_op:?}"))?;
    }
    for scale_op in [ScaleOp::None, ScaleOp::Divide] {
        Form { scale_op, scale: DType::BF16, ..PLAIN }.check(&bed, &format!("{scale_op:?}"))?;
    }
    Ok(())
}

#[test]
fn minifloats_and_tables_map_codes() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let maps = [
        (4, CodeMap::Minifloat(Minifloat::E2M1)),
        (6, CodeMap::Minifloat(Minifloat::E3M2)),
        (4, CodeMap::Table),
        (3, CodeMap::Table),
        (8, CodeMap::Table),
    ];
    for (bits, map) in maps {
        Form { bits, map, ..PLAIN }.check(&bed, &format!("{map:?} of {bits} bits"))?;
    }
    Ok(())
}

//! `codebook` and `nested`.

use crate::common::{Near, Random, TestResult, bed, check, check_tiles, dense_node, scales};
use cmf_format::DType;
use cmf_format::encoding::codebook;
use cmf_format::encoding::grouped::groups;
use cmf_format::encoding::nested::{Level, LevelData, Map, Rounding, pack_levels, planes};
use std::sync::Arc;

#[test]
fn codebooks_of_any_vector_decode() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let mut random = Random::new(6);
    for (codebooks, bits, vector_rows, vector_cols, scaled, rows, cols) in [
        (1, 8, 1, 8, false, 16u32, 64u32),
        (2, 5, 1, 8, true, 9, 40),
        (1, 11, 2, 4, true, 7, 33),
        (3, 3, 3, 3, false, 10, 29),
        (1, 16, 1, 1, true, 4, 31),
    ] {
        let descriptor = codebook::Descriptor {
            codebooks,
            bits,
            has_scale: scaled,
            vector_rows,
            vector_cols,
            scale_cols: if scaled { 2 * vector_cols } else { 0 },
        };
        let (rows, cols): (u32, u32) = (rows, cols);
        let (down, across) = (rows.div_ceil(vector_rows), cols.div_ceil(vector_cols));
        let count = down as usize * across as usize * usize::from(codebooks);
        let codes: Vec<u16> = (0..count).map(|_| random.below(1 << bits) as u16).collect();
        let entries = usize::from(codebooks) << bits;
        let entries = dense_node(DType::F16, entries, (vector_rows * vector_cols) as usize, &mut random)?;
        let scale = match scaled {
            true => {
                let groups = groups(u64::from(cols), descriptor.scale_cols) as usize;
                Some(Arc::new(scales(DType::F16, down as usize, groups, &mut random)?))
            }
            false => None,
        };
        let node = codebook::pack(&descriptor, rows.into(), cols.into(), &codes, entries, scale)?;
        check(&bed, &format!("{descriptor:?}"), &[Arc::new(node)], Near::Exact)?;
    }
    Ok(())
}

#[test]
fn nested_levels_add_up() -> TestResult {
    let Some(bed) = bed()? else { return Ok(()) };
    let (rows, cols) = (11, 72);
    let mut random = Random::new(7);
    let codes: Vec<u8> = (0..rows * cols).map(|_| random.below(64) as u8).collect();
    for (map, rounding, group_cols) in [
        (Map::Integer, Rounding::Floor, 32),
        (Map::Integer, Rounding::HalfUp, 5),
        (Map::Table, Rounding::Floor, 0),
    ] {
        let level = |bits: u8, rounding, random: &mut Random| {
            let across = groups(cols as u64, group_cols) as usize;
            let children = match map {
                Map::Integer => vec![
                    Arc::new(scales(DType::F16, rows, across, random)?),
                    Arc::new(scales(DType::F32, 1, across, random)?),
                ],
                Map::Table => vec![Arc::new(dense_node(DType::F16, rows, 1 << bits, random)?)],
            };
            Ok::<_, cmf_format::Error>(LevelData {
                level: Level { bits, map, rounding, group_cols },
                children,
            })
        };
        let levels = [
            level(2, rounding, &mut random)?,
            level(3, rounding, &mut random)?,
            level(6, Rounding::Floor, &mut random)?,
        ];
        let nodes = pack_levels(rows as u64, cols as u64, &planes(&codes, cols, 6)?, &levels)?;
        let nodes: Vec<_> = nodes.into_iter().map(Arc::new).collect();
        for held in 1..=nodes.len() {
            let name = format!("{map:?}, {rounding:?}, groups of {group_cols}, {held} levels");
            check(&bed, &name, nodes.get(..held).ok_or("levels")?, Near::Within(1e-6))?;
        }
        if map == Map::Integer && rounding == Rounding::Floor {
            check_tiles(&bed, "levels in tiles", &nodes, Near::Within(1e-6))?;
        }
    }
    Ok(())
}

use super::*;
use crate::encoding::testing::{bits as value_bits, damages, decoded, dense_f32, pattern, survives};
use proptest::prelude::*;

fn level(bits: u8, map: Map, rounding: Rounding, group_cols: u32) -> Level {
    Level { bits, map, rounding, group_cols }
}

fn codes(bits: u8, count: usize) -> Vec<u8> {
    (0..count).map(|i| ((i * 73 + i / 5) % (1 << bits)) as u8).collect()
}

/// Children of a level, and the value of each code of `planes` bits by the formula of the spec.
fn level_and_values(
    level: Level,
    (rows, cols): (usize, usize),
    broadcast: bool,
    codes: &[u8],
    planes: u8,
) -> Result<(LevelData, Vec<f32>)> {
    let down = if broadcast { 1 } else { rows };
    let across = super::super::grouped::groups(cols as u64, level.group_cols) as usize;
    let numbers = |count: usize| -> Vec<f32> {
        pattern(count).iter().map(|v| v * 0.37 + f32::from(level.bits)).collect()
    };
    let (scales, zeros, table) =
        (numbers(down * across), numbers(down * across + 7)[7..].to_vec(), numbers(down << level.bits));
    let mut values = Vec::new();
    for (i, code) in codes.iter().enumerate() {
        let (row, col) = (if broadcast { 0 } else { i / cols }, i % cols);
        let dropped = u32::from(planes - level.bits);
        let mut code = u32::from(*code);
        if level.rounding == Rounding::HalfUp {
            code += 1 << dropped >> 1;
        }
        let code = (code >> dropped).min((1 << level.bits) - 1) as usize;
        let group = row * across + col.checked_div(level.group_cols as usize).unwrap_or(0);
        values.push(match level.map {
            Map::Integer => (code as f32 - zeros[group]) * scales[group],
            Map::Table => table[(row << level.bits) + code],
        });
    }
    let children = match level.map {
        Map::Integer => vec![dense_f32(down, across, &scales)?, dense_f32(down, across, &zeros)?],
        Map::Table => vec![dense_f32(down, 1 << level.bits, &table)?],
    };
    Ok((LevelData { level, children: children.into_iter().map(Arc::new).collect() }, values))
}

/// A node of patterned codes, and its values.
fn node_and_values(
    upper: Level,
    lower: Option<Level>,
    (rows, cols): (usize, usize),
    broadcast: bool,
) -> Result<(NodeData, Vec<f32>)> {
    let count = upper.planes();
    let codes = codes(count, rows * cols);
    let planes = planes(&codes, cols, count)?;
    let (upper, mut values) = level_and_values(upper, (rows, cols), broadcast, &codes, count)?;
    let lower = match lower {
        Some(lower) => {
            let (lower, below) = level_and_values(lower, (rows, cols), false, &codes, count)?;
            values.iter_mut().zip(below).for_each(|(v, below)| *v -= below);
            Some(lower)
        }
        None => None,
    };
    Ok((pack(rows as u64, cols as u64, &planes, &upper, lower.as_ref())?, values))
}

#[test]
fn levels_of_every_width_decode() -> Result<()> {
    for bits in 1..=8 {
        for lower_bits in 0..bits {
            for map in [Map::Integer, Map::Table] {
                let lower = (lower_bits > 0).then_some(level(lower_bits, map, Rounding::Floor, 0));
                let (node, values) =
                    node_and_values(level(bits, map, Rounding::Floor, 0), lower, (3, 33), false)?;
                assert_eq!(value_bits(&decoded(&node)?), value_bits(&values), "{bits} over {lower_bits}");
            }
        }
    }
    Ok(())
}

#[test]
fn half_up_takes_the_next_plane_and_saturates() -> Result<()> {
    // Codes of three planes; two bits of them, rounded half up.
    let planes = planes(&[0, 1, 2, 3, 4, 5, 6, 7], 8, 3)?;
    let table = vec![Arc::new(dense_f32(1, 4, &[0.0, 1.0, 2.0, 3.0])?)];
    let own = LevelData { level: level(2, Map::Table, Rounding::HalfUp, 0), children: table };
    let node = pack(1, 8, &planes, &own, None)?;
    assert_eq!(node.segments.len(), 3);
    assert_eq!(decoded(&node)?, [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
    Ok(())
}

#[test]
fn nodes_of_all_levels_add_up_to_the_last() -> Result<()> {
    let (rows, cols) = (4, 21);
    let codes = codes(6, rows * cols);
    let planes = planes(&codes, cols, 6)?;
    let mut levels = Vec::new();
    let mut last = Vec::new();
    for bits in [2, 3, 5, 6] {
        let own = level(bits, Map::Table, Rounding::Floor, 0);
        let (data, values) = level_and_values(own, (rows, cols), false, &codes, 6)?;
        levels.push(data);
        last = values;
    }
    let nodes = pack_levels(rows as u64, cols as u64, &planes, &levels)?;
    let mut sum = vec![0f32; rows * cols];
    for node in &nodes {
        sum.iter_mut().zip(decoded(node)?).for_each(|(sum, v)| *sum += v);
    }
    assert!(sum.iter().zip(&last).all(|(sum, last)| (sum - last).abs() <= 1e-5 * last.abs().max(1.0)));
    // The planes of a lower level are the same bytes in a higher one.
    assert_eq!(nodes[0].segments[1].bytes(), nodes[3].segments[1].bytes());
    Ok(())
}

#[test]
fn rejects_levels_out_of_range() -> Result<()> {
    let planes = planes(&[0, 1], 2, 8)?;
    let of = |bits: u8, rounding: Rounding, group_cols: u32| -> Result<LevelData> {
        let one = Arc::new(dense_f32(1, 1, &[1.0])?);
        let children = vec![one.clone(), one];
        Ok(LevelData { level: level(bits, Map::Integer, rounding, group_cols), children })
    };
    for (own, lower) in [
        (of(0, Rounding::Floor, 0)?, None),
        (of(9, Rounding::Floor, 0)?, None),
        (of(8, Rounding::HalfUp, 0)?, None),
        (of(3, Rounding::Floor, 0)?, Some(of(3, Rounding::Floor, 0)?)),
        (of(3, Rounding::Floor, 0)?, Some(of(4, Rounding::Floor, 0)?)),
        (of(3, Rounding::Floor, 0)?, Some(of(0, Rounding::HalfUp, 0)?)),
    ] {
        let error = pack(1, 2, &planes, &own, lower.as_ref()).err().map(|e| e.kind());
        assert_eq!(error, Some(ErrorKind::Structure), "{:?} {:?}", own.level, lower.map(|l| l.level));
    }
    Ok(())
}

#[test]
fn rejects_codes_that_do_not_fit() {
    for (codes, bits) in [(&[4u8, 0][..], 2), (&[0, 0, 0], 2), (&[0, 0], 0), (&[0, 0], 9)] {
        let error = planes(codes, 2, bits).err().map(|e| e.kind());
        assert_eq!(error, Some(ErrorKind::Argument), "{codes:?} {bits}");
    }
}

#[test]
fn verify_sees_padding_bits_of_every_plane() -> Result<()> {
    let (node, values) = node_and_values(level(3, Map::Table, Rounding::Floor, 0), None, (1, 5), false)?;
    for plane in 0..3 {
        let mut node = node.clone();
        let mut bytes = node.segments[plane].bytes().unwrap_or(&[]).to_vec();
        bytes[3] = 1;
        node.segments[plane] = bytes.into();
        let mut out = vec![0.0; 5];
        node.view()?.decode_rows(0..1, &mut out)?;
        assert_eq!(value_bits(&out), value_bits(&values));
        assert_eq!(node.view()?.verify().err().map(|e| e.kind()), Some(ErrorKind::Value));
    }
    Ok(())
}

fn any_level(bits: u8, (table, half_up): (bool, bool), group_cols: u32) -> Level {
    let rounding = if half_up { Rounding::HalfUp } else { Rounding::Floor };
    match table {
        true => level(bits, Map::Table, rounding, 0),
        false => level(bits, Map::Integer, rounding, group_cols),
    }
}

proptest! {
    #[test]
    fn decodes_to_naive_values(
        shape in (0usize..6, 0usize..40),
        (bits, lower_bits) in (1u8..8, 0u8..8),
        (upper, lower) in (any::<(bool, bool)>(), any::<(bool, bool)>()),
        (group_cols, lower_cols) in (0u32..12, 0u32..12),
        broadcast in any::<bool>(),
    ) {
        let lower_bits = lower_bits % bits;
        let lower = (lower_bits > 0).then(|| any_level(lower_bits, lower, lower_cols));
        let (node, values) = node_and_values(any_level(bits, upper, group_cols), lower, shape, broadcast)?;
        prop_assert_eq!(value_bits(&decoded(&node)?), value_bits(&values));
    }

    #[test]
    fn damage_is_no_panic(damages in damages()) {
        let lower = Some(level(2, Map::Table, Rounding::HalfUp, 0));
        let (node, _) = node_and_values(level(4, Map::Integer, Rounding::Floor, 4), lower, (3, 9), false)?;
        survives(&node, &damages);
    }
}

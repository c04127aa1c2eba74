//! The order of units: which bytes lower the expected loss most.
//!
//! The units of one block of rows form a *chain*: each level refines those below it. The loss of a
//! model is taken as the sum of what its chains leave, so the best units for a number of bytes are a
//! knapsack problem with a precedence in each chain. Its Lagrangian relaxation (Everett 1963; for
//! bit allocation Shoham and Gersho 1988) is solved by one sort: along the lower convex hull of each
//! chain's losses over its bytes, by loss decrease per byte. Every prefix that ends with a vertex of
//! a hull is then the best choice for its bytes, and any other is within the units of one edge.

use crate::error::{Error, Result};
use cmf_format::write::{Content, MatrixEntry, StepEntry, TensorEntry, UnitEntry};
use cmf_format::{NodeData, SegmentSource};
use std::collections::{BTreeMap, HashMap};

/// A level of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelLoss {
    /// Bytes that the unit of this level takes beside those of the levels below: decoded bytes of
    /// its segments.
    pub bytes: u64,
    /// Loss that remains with this level and all below it: finite, in a measure that can be added
    /// over chains.
    pub loss: f64,
}

/// A unit in its place in the order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduledUnit {
    /// Index of the chain.
    pub chain: usize,
    /// Level in the chain.
    pub level: usize,
    /// Sum over all chains of the loss that remains with this unit and all before it; none as long as
    /// a unit of level 0 is missing.
    pub expected_loss: Option<f64>,
}

/// Orders the units of `chains`, each a slice of its levels from 0 on.
///
/// First come all units of level 0, in the order of the chains: no model is without them. Then come
/// the others by loss decrease per byte along each chain's lower convex hull; among equals, that of
/// the first chain. Levels that do not lower the loss come last. O(n log n), and the same for the
/// same input everywhere.
///
/// # Errors
/// `BadArgument` for a loss that is not finite.
pub fn order<C: AsRef<[LevelLoss]>>(chains: &[C]) -> Result<Vec<ScheduledUnit>> {
    let mut units = Vec::with_capacity(chains.iter().map(|chain| chain.as_ref().len()).sum());
    let mut edges = Vec::new();
    for (chain, levels) in chains.iter().enumerate() {
        let levels = levels.as_ref();
        if let Some(level) = levels.iter().position(|level| !level.loss.is_finite()) {
            return Err(Error::bad_argument(format!("loss of chain {chain}, level {level}"))
                .expected("a finite number")
                .found(levels[level].loss));
        }
        if !levels.is_empty() {
            units.push(ScheduledUnit { chain, level: 0, expected_loss: None });
        }
        edges_of(chain, levels, &mut edges);
    }
    let required = units.len();
    // Stable: among equals the order of chains, and of the levels of one chain, stays.
    edges.sort_by(|a, b| b.rate.total_cmp(&a.rate));
    for edge in edges {
        let levels = edge.first_level..edge.first_level + edge.levels;
        units.extend(levels.map(|level| ScheduledUnit { chain: edge.chain, level, expected_loss: None }));
    }
    state_losses(chains, &mut units, required);
    Ok(units)
}

/// Levels between two vertices of a chain's hull.
struct Edge {
    chain: usize,
    first_level: usize,
    levels: usize,
    bytes: u64,
    gain: f64,
    /// Loss decrease per byte.
    rate: f64,
}

impl Edge {
    fn new(chain: usize, first_level: usize, levels: usize, bytes: u64, gain: f64) -> Self {
        let rate = match bytes {
            // What takes no bytes is taken at once if it helps, and last if it harms.
            0 if gain == 0.0 => 0.0,
            0 => gain.signum() * f64::INFINITY,
            // Adding 0 makes a negative zero a positive one, which sorts as its equal.
            _ => gain / bytes as f64 + 0.0,
        };
        Self { chain, first_level, levels, bytes, gain, rate }
    }
}

/// The edges of the lower convex hull of a chain, from level 0 on: their rates never rise.
fn edges_of(chain: usize, levels: &[LevelLoss], edges: &mut Vec<Edge>) {
    let start = edges.len();
    for (level, pair) in (1..).zip(levels.windows(2)) {
        let [below, own] = pair else { continue };
        let mut edge = Edge::new(chain, level, 1, own.bytes, below.loss - own.loss);
        // A level that gains more by the byte than the one below it makes that one worth taking.
        while edges.len() > start
            && let Some(last) = edges.pop_if(|last| last.rate < edge.rate)
        {
            let bytes = last.bytes.saturating_add(edge.bytes);
            let levels = last.levels + edge.levels;
            edge = Edge::new(chain, last.first_level, levels, bytes, last.gain + edge.gain);
        }
        edges.push(edge);
    }
}

/// States the loss from the last unit of level 0 on.
fn state_losses<C: AsRef<[LevelLoss]>>(chains: &[C], units: &mut [ScheduledUnit], required: usize) {
    // From the end, where losses are small, so that rounding stays small too.
    let mut loss: f64 = chains.iter().filter_map(|chain| chain.as_ref().last()).map(|level| level.loss).sum();
    for unit in units.iter_mut().skip(required.saturating_sub(1)).rev() {
        unit.expected_loss = Some(loss);
        let levels = chains.get(unit.chain).map(AsRef::as_ref).unwrap_or(&[]);
        let below = unit.level.checked_sub(1).and_then(|below| levels.get(below));
        if let (Some(below), Some(own)) = (below, levels.get(unit.level)) {
            loss += below.loss - own.loss;
        }
    }
}

/// What is known of the losses of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorLosses {
    /// What its losses are multiplied with, so that they can be added to those of other tensors:
    /// measured, it turns the error of a tensor into the divergence that it causes.
    pub coefficient: f64,
    /// For each block of rows that has several levels, by its matrix in the tensor and its first row,
    /// the loss that remains after each level.
    pub blocks: HashMap<(usize, u64), Vec<f64>>,
}

/// The schedule of `tensors`, whose losses are looked up by name; none when there is nothing to choose,
/// that is no unit above level 0, and none when nothing is known of a block of several levels.
///
/// Segments that several units share cost nothing, whichever comes first: a codebook of many is no
/// reason to take them late.
///
/// # Errors
/// `BadArgument` for a block with another number of losses than it has levels, and for losses that
/// are not finite.
pub fn schedule(
    tensors: &[TensorEntry],
    losses: &BTreeMap<String, TensorLosses>,
) -> Result<Option<Vec<StepEntry>>> {
    let mut uses = HashMap::new();
    for matrix in tensors.iter().flat_map(matrices) {
        let mut chains: BTreeMap<u64, Vec<(SegmentKey, u64)>> = BTreeMap::new();
        for unit in &matrix.units {
            unit_segments(unit, chains.entry(unit.row_start).or_default());
        }
        for (segment, _) in chains.into_values().flatten() {
            *uses.entry(segment).or_insert(0u32) += 1;
        }
    }
    // Lower levels of the chain have brought what is in `before`; what other chains use too belongs
    // to none.
    let mut before = Vec::new();
    let mut bytes = |unit: &UnitEntry| {
        if unit.level == 0 {
            before.clear();
        }
        let from = before.len();
        unit_segments(unit, &mut before);
        let own = before.iter().skip(from).filter(|(segment, _)| uses.get(segment) == Some(&1));
        own.fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes))
    };
    let (mut chains, mut places) = (Vec::new(), Vec::new());
    for (t, tensor) in tensors.iter().enumerate() {
        let known = losses.get(&tensor.name);
        let coefficient = known.map_or(1.0, |known| known.coefficient);
        for (m, matrix) in matrices(tensor).iter().enumerate() {
            let mut blocks: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
            for (u, unit) in matrix.units.iter().enumerate() {
                blocks.entry(unit.row_start).or_default().push(u);
            }
            for (row_start, units) in blocks {
                let stated: Vec<f64> = match known.and_then(|known| known.blocks.get(&(m, row_start))) {
                    Some(stated) if stated.len() == units.len() => stated.clone(),
                    Some(stated) => {
                        return Err(Error::bad_argument(format!("losses of matrix {m}, row {row_start}"))
                            .tensor(&tensor.name)
                            .expected(units.len())
                            .found(stated.len()));
                    }
                    None if units.len() == 1 => vec![0.0],
                    None => return Ok(None),
                };
                let level = |(unit, loss): (&usize, f64)| LevelLoss {
                    bytes: matrix.units.get(*unit).map_or(0, &mut bytes),
                    loss: loss * coefficient,
                };
                chains.push(units.iter().zip(stated).map(level).collect::<Vec<_>>());
                places.push((t, m, units));
            }
        }
    }
    if chains.iter().all(|chain| chain.len() < 2) {
        return Ok(None);
    }
    let step = |unit: ScheduledUnit| {
        let (t, m, units) = places.get(unit.chain)?;
        let name = tensors.get(*t)?.name.clone();
        Some(StepEntry { unit: (name, *m, *units.get(unit.level)?), expected_loss: unit.expected_loss })
    };
    Ok(order(&chains)?.into_iter().map(step).collect())
}

fn matrices(tensor: &TensorEntry) -> &[MatrixEntry] {
    match &tensor.content {
        Content::Matrices(matrices) | Content::Delta(_, matrices) => matrices,
        Content::Shard(_) => &[],
    }
}

/// What tells segments apart that are in memory or in a spool.
#[derive(PartialEq, Eq, Hash)]
enum SegmentKey {
    Memory(*const u8, usize),
    Stored([u8; 32]),
}

/// Adds the segments of a unit that are not there yet, each once, with their decoded bytes.
fn unit_segments(unit: &UnitEntry, found: &mut Vec<(SegmentKey, u64)>) {
    fn walk(node: &NodeData, found: &mut Vec<(SegmentKey, u64)>) {
        for segment in &node.segments {
            let key = match &segment.source {
                SegmentSource::Bytes(bytes) => SegmentKey::Memory(bytes.as_ptr(), bytes.len()),
                SegmentSource::Stored(stored) => SegmentKey::Stored(stored.hash),
            };
            if found.iter().all(|(known, _)| *known != key) {
                found.push((key, segment.decoded_bytes));
            }
        }
        node.children.iter().for_each(|child| walk(child, found));
    }
    unit.terms.iter().for_each(|term| walk(&term.node, found));
}

#[cfg(test)]
mod tests {
    use super::*;
    use cmf_format::encoding::dense;
    use cmf_format::write::TermEntry;
    use cmf_format::{Archive, ArchiveBuilder, DType, Limits, WriteOptions};
    use proptest::prelude::*;

    type Chain = Vec<LevelLoss>;

    fn chain(levels: &[(u64, f64)]) -> Chain {
        levels.iter().map(|(bytes, loss)| LevelLoss { bytes: *bytes, loss: *loss }).collect()
    }

    fn pairs(chains: &[Chain]) -> Result<Vec<(usize, usize)>> {
        Ok(order(chains)?.iter().map(|unit| (unit.chain, unit.level)).collect())
    }

    #[test]
    fn level_0_comes_first_then_gain_by_byte() -> Result<()> {
        let chains = [
            chain(&[(8, 10.0), (10, 5.0), (10, 4.0)]),
            chain(&[(3, 0.0)]),
            chain(&[(8, 30.0), (10, 20.0), (40, 18.0)]),
        ];
        let units = order(&chains)?;
        assert_eq!(pairs(&chains)?, [(0, 0), (1, 0), (2, 0), (2, 1), (0, 1), (0, 2), (2, 2)]);
        let losses: Vec<_> = units.iter().map(|unit| unit.expected_loss).collect();
        assert_eq!(losses, [None, None, Some(40.0), Some(30.0), Some(25.0), Some(24.0), Some(22.0)]);
        Ok(())
    }

    #[test]
    fn a_level_that_only_pays_with_the_next_comes_with_it() -> Result<()> {
        // 0 for the first 10 bytes, 8 for 20: 0.4 a byte, before 0.3.
        let chains = [chain(&[(1, 8.0), (10, 8.0), (10, 0.0)]), chain(&[(1, 6.0), (10, 3.0)])];
        assert_eq!(pairs(&chains)?, [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1)]);
        Ok(())
    }

    #[test]
    fn what_harms_comes_last_and_ties_go_by_chain() -> Result<()> {
        let chains = [
            chain(&[(1, 4.0), (10, 5.0)]),
            chain(&[(1, 4.0), (10, 3.0), (10, 2.0)]),
            chain(&[(1, 4.0), (5, 3.5), (0, 3.5), (0, 3.0)]),
            chain(&[(1, 4.0), (10, 4.0)]),
        ];
        // The last of chain 2 are free: a tenth of it for each of 5 bytes.
        let expected =
            [(0, 0), (1, 0), (2, 0), (3, 0), (2, 1), (2, 2), (2, 3), (1, 1), (1, 2), (3, 1), (0, 1)];
        assert_eq!(pairs(&chains)?, expected);
        Ok(())
    }

    #[test]
    fn rejects_a_loss_that_is_no_number() {
        let error = order(&[chain(&[(1, 1.0), (1, f64::NAN)])]).map_err(|e| e.to_string());
        assert!(error.is_err_and(|e| e.contains("chain 0, level 1")));
    }

    #[test]
    fn nothing_is_in_order() -> Result<()> {
        assert_eq!(order::<Chain>(&[])?, []);
        assert_eq!(order(&[chain(&[])])?, []);
        Ok(())
    }

    fn any_chains() -> impl Strategy<Value = Vec<Chain>> {
        let level = (1u64..30, 0u32..40).prop_map(|(bytes, loss)| LevelLoss { bytes, loss: f64::from(loss) });
        prop::collection::vec(prop::collection::vec(level, 1..5), 1..5)
    }

    /// Bytes above level 0 and loss of every choice of one level for each chain.
    fn choices(chains: &[Chain]) -> Vec<(u64, f64)> {
        let mut all = vec![(0, 0.0)];
        for levels in chains {
            let mut bytes = 0;
            let mut own = Vec::new();
            for (i, level) in levels.iter().enumerate() {
                bytes += if i == 0 { 0 } else { level.bytes };
                own.push((bytes, level.loss));
            }
            all = all.iter().flat_map(|(b, l)| own.iter().map(move |(ob, ol)| (b + ob, l + ol))).collect();
        }
        all
    }

    proptest! {
        #[test]
        fn every_unit_comes_once_and_after_the_one_below(chains in any_chains()) {
            let units = order(&chains)?;
            let mut next = vec![0; chains.len()];
            for unit in &units {
                prop_assert_eq!(unit.level, next[unit.chain]);
                next[unit.chain] += 1;
            }
            prop_assert!(next.iter().zip(&chains).all(|(n, chain)| *n == chain.len()));
        }

        #[test]
        fn losses_are_the_sums_of_what_the_chains_leave(chains in any_chains()) {
            let mut held = vec![0.0; chains.len()];
            for (i, unit) in order(&chains)?.iter().enumerate() {
                held[unit.chain] = chains[unit.chain][unit.level].loss;
                let expected = (i + 1 >= chains.len()).then(|| held.iter().sum::<f64>());
                prop_assert_eq!(unit.expected_loss, expected);
            }
        }

        #[test]
        fn no_choice_of_levels_is_better_by_more_than_an_edge(chains in any_chains()) {
            let all = choices(&chains);
            let best = |bytes| all.iter().filter(|(b, _)| *b <= bytes).map(|(_, l)| *l).fold(f64::INFINITY, f64::min);
            let mut edges = Vec::new();
            chains.iter().enumerate().for_each(|(i, levels)| edges_of(i, levels, &mut edges));
            let longest = edges.iter().map(|edge| edge.bytes).max().unwrap_or(0);
            let units = order(&chains)?;
            let (mut bytes, mut least) = (0, f64::INFINITY);
            let mut prefixes = Vec::new();
            for unit in units.iter().skip(chains.len() - 1) {
                bytes += if unit.level == 0 { 0 } else { chains[unit.chain][unit.level].bytes };
                least = least.min(unit.expected_loss.unwrap_or(f64::INFINITY));
                prefixes.push((bytes, least));
            }
            for budget in 0..=bytes {
                let fits = |limit: u64| prefixes.iter().rev().find(|(b, _)| *b <= limit).map_or(f64::INFINITY, |(_, l)| *l);
                prop_assert!(fits(budget) >= best(budget));
                prop_assert!(fits(budget + longest) <= best(budget));
            }
            // Vertices of hulls are exact.
            edges.sort_by(|a, b| b.rate.total_cmp(&a.rate));
            let mut loss: f64 = chains.iter().map(|levels| levels[0].loss).sum();
            let mut bytes = 0;
            for edge in edges.iter().filter(|edge| edge.gain > 0.0) {
                bytes += edge.bytes;
                loss -= edge.gain;
                prop_assert_eq!(loss, best(bytes));
            }
        }
    }

    #[test]
    fn a_million_units_are_ordered_in_one_sort() -> Result<()> {
        let levels = |i: u64| {
            let scale = (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64;
            chain(&[(512, scale), (512, scale / 4.0), (256, scale / 9.0), (256, scale / 16.0)])
        };
        let chains: Vec<Chain> = (0..250_000).map(levels).collect();
        let started = std::time::Instant::now();
        let units = order(&chains)?;
        assert_eq!(units.len(), 1_000_000);
        assert!(units.windows(2).skip(250_000).all(|pair| pair[0].expected_loss >= pair[1].expected_loss));
        // A sort that was quadratic would take hours.
        assert!(started.elapsed().as_secs() < 60);
        Ok(())
    }

    /// Two blocks of two levels, whose second level takes `bytes` bytes.
    fn tensor(name: &str, cols: [u64; 2]) -> Result<TensorEntry> {
        let node = |cols: u64, seed: u64| {
            let values: Vec<f32> = (0..cols).map(|i| (i * 31 + seed) as f32).collect();
            dense::pack_values(DType::F32, 1, cols, &values).map_err(|e| Error::bad_argument(e.to_string()))
        };
        let mut units = Vec::new();
        for (level, cols) in (0u16..).zip(cols) {
            for row_start in 0..2 {
                let node = node(cols, name.len() as u64 * 97 + row_start * 7 + u64::from(level))?;
                let terms = vec![TermEntry { row_start, col_start: 0, optional: false, node: node.into() }];
                units.push(UnitEntry { level, row_start, rows: 1, terms });
            }
        }
        let matrix = MatrixEntry { rows: 2, cols: cols[0], units, ..MatrixEntry::default() };
        let content = Content::Matrices(vec![matrix]);
        Ok(TensorEntry { name: name.into(), dtype: DType::F32, shape: vec![2, cols[0]], content })
    }

    fn losses(rows: [[f64; 2]; 2]) -> TensorLosses {
        let block = |(row_start, losses): (u64, [f64; 2])| ((0, row_start), losses.to_vec());
        TensorLosses { coefficient: 1.0, blocks: (0u64..).zip(rows).map(block).collect() }
    }

    #[test]
    fn what_levels_share_belongs_to_the_lowest_of_them() -> Result<()> {
        let (mut nested, plain) = (tensor("a", [8, 16])?, tensor("bb", [8, 8])?);
        // A third level that holds the second's bytes too, as planes of `nested` are held.
        if let Content::Matrices(matrices) = &mut nested.content {
            let third = |unit: &UnitEntry| UnitEntry { level: 2, ..unit.clone() };
            let units = matrices[0].units[2..].iter().map(third).collect::<Vec<_>>();
            matrices[0].units.extend(units);
        }
        let losses = |of: &[f64]| TensorLosses {
            blocks: (0..2).map(|row_start| ((0, row_start), of.to_vec())).collect(),
            coefficient: 1.0,
        };
        let known =
            [("a".to_owned(), losses(&[3.0, 2.0, 2.0])), ("bb".to_owned(), losses(&[3.0, 2.0]))].into();
        let steps = schedule(&[nested, plain], &known)?.ok_or_else(|| Error::bad_argument("no schedule"))?;
        // The same gain for 64 bytes and for 32.
        let order: Vec<_> = steps.iter().skip(4).take(2).map(|step| step.unit.0.as_str()).collect();
        assert_eq!(order, ["bb", "bb"]);
        Ok(())
    }

    #[test]
    fn the_archive_lies_in_the_order_of_the_schedule() -> Result<()> {
        let tensors = [tensor("a", [8, 8])?, tensor("bb", [8, 4])?, tensor("ccc", [8, 8])?];
        let mut all = BTreeMap::from([
            ("a".to_owned(), losses([[9.0, 8.0], [9.0, 5.0]])),
            ("bb".to_owned(), losses([[4.0, 1.0], [4.0, 3.5]])),
            ("ccc".to_owned(), losses([[1.0, 0.5], [1.0, 0.25]])),
        ]);
        let order = |losses: &BTreeMap<String, TensorLosses>| -> Result<Vec<(String, usize)>> {
            let mut builder = ArchiveBuilder::new(WriteOptions::default());
            let steps = schedule(&tensors, losses)?.ok_or_else(|| Error::bad_argument("no schedule"))?;
            builder.schedule(steps.clone());
            tensors.iter().for_each(|tensor| {
                builder.tensor(tensor.clone());
            });
            let failed = |e: cmf_format::Error| Error::bad_argument(e.to_string());
            let archive =
                Archive::parse(builder.to_vec().map_err(failed)?, &Limits::default()).map_err(failed)?;
            archive.verify().map_err(failed)?;
            let stated: Vec<_> = archive.schedule().map(|step| step.expected_loss()).collect();
            assert_eq!(stated, steps.iter().map(|step| step.expected_loss).collect::<Vec<_>>());
            Ok(steps.into_iter().skip(6).map(|step| (step.unit.0, step.unit.2)).collect())
        };
        // Rates by 8 bytes and 4 floats: 1 and 4 of 32, 3 and 0.5 of 16, 0.5 and 0.75 of 32.
        let named =
            |names: &[(&str, usize)]| names.iter().map(|(n, u)| ((*n).to_owned(), *u)).collect::<Vec<_>>();
        assert_eq!(order(&all)?, named(&[("bb", 2), ("a", 3), ("a", 2), ("bb", 3), ("ccc", 3), ("ccc", 2)]));
        all.entry("ccc".into()).and_modify(|known| known.coefficient = 100.0);
        assert_eq!(order(&all)?, named(&[("ccc", 3), ("ccc", 2), ("bb", 2), ("a", 3), ("a", 2), ("bb", 3)]));
        Ok(())
    }

    #[test]
    fn levels_without_losses_have_no_schedule_and_one_level_needs_none() -> Result<()> {
        let both = || -> Result<_> { Ok([tensor("a", [8, 8])?, tensor("bb", [8, 8])?]) };
        let known = BTreeMap::from([("a".to_owned(), losses([[2.0, 1.0], [2.0, 1.0]]))]);
        assert_eq!(schedule(&both()?, &known)?, None);
        let mut tensors = both()?;
        if let Content::Matrices(matrices) = &mut tensors[1].content {
            matrices.iter_mut().for_each(|matrix| matrix.units.truncate(2));
        }
        assert_eq!(schedule(&tensors, &known)?.map(|steps| steps.len()), Some(6));
        assert_eq!(schedule(&tensors[1..], &known)?, None);
        Ok(())
    }

    #[test]
    fn rejects_another_number_of_losses_than_levels() -> Result<()> {
        let mut short = losses([[1.0, 0.5], [1.0, 0.5]]);
        short.blocks.insert((0, 1), vec![1.0]);
        let error = schedule(&[tensor("a", [8, 8])?], &BTreeMap::from([("a".to_owned(), short)]));
        assert!(
            error.is_err_and(|e| e.to_string().contains("tensor `a`: losses of matrix 0, row 1: expected 2"))
        );
        Ok(())
    }
}

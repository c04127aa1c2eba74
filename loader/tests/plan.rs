//! Plans against a naive recomputation, over random archives, schedules and budgets.

mod common;

use cmf_format::encoding::dense;
use cmf_format::wire::HEADER_BYTES;
use cmf_format::write::{Content, MatrixEntry, StepEntry, TensorEntry, TransformEntry, UnitEntry};
use cmf_format::{Archive, ArchiveBuilder, DType, Limits, NodeData, SegmentData, WriteOptions};
use cmf_loader::{Budget, ErrorKind, Levels, Model, Plan, Schedule, plan};
use common::{Fallible, Outcome, bits, entry, numbers, term, write};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What a random matrix is made of.
#[derive(Clone, Debug)]
struct Shape {
    cols: u64,
    /// For each block of rows: rows, and for each level which of a few contents it has. Equal
    /// contents are shared segments.
    blocks: Vec<(u64, Vec<u8>)>,
    scaled: bool,
    compressed: bool,
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let blocks = prop::collection::vec((1u64..5, prop::collection::vec(0u8..4, 1..5)), 1..4);
    let shape = (1u64..40, blocks, any::<bool>(), any::<bool>());
    let shape =
        shape.prop_map(|(cols, blocks, scaled, compressed)| Shape { cols, blocks, scaled, compressed });
    prop::collection::vec(shape, 1..5)
}

fn node(rows: u64, cols: u64, content: u8, compressed: bool) -> Fallible<NodeData> {
    let values: Vec<f32> = (0..rows * cols).map(|i| (i % 7) as f32 + f32::from(content)).collect();
    let mut node = dense::pack_values(DType::F32, rows, cols, &values)?;
    if compressed {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        node.segments = vec![SegmentData::compressed(bytes, 3)?];
    }
    Ok(node)
}

fn matrix(shape: &Shape) -> Fallible<MatrixEntry> {
    let highest = shape.blocks.iter().map(|(_, levels)| levels.len()).max().unwrap_or(0);
    let mut units = Vec::new();
    for level in 0..highest {
        let mut row_start = 0;
        for (rows, contents) in &shape.blocks {
            if let Some(content) = contents.get(level) {
                let node = node(*rows, shape.cols, *content, shape.compressed)?;
                let terms = vec![term(row_start, node)];
                units.push(UnitEntry { level: level as u16, row_start, rows: *rows, terms });
            }
            row_start += rows;
        }
    }
    let rows = shape.blocks.iter().map(|(rows, _)| rows).sum();
    let input_transforms = match shape.scaled {
        true => vec![TransformEntry::Scale(node(1, shape.cols, 1, false)?.into())],
        false => Vec::new(),
    };
    Ok(MatrixEntry { rows, cols: shape.cols, units, input_transforms, ..MatrixEntry::default() })
}

/// An archive of these matrices, and in an order that `picks` chooses among all that are allowed.
fn archive(shapes: &[Shape], picks: Option<&[usize]>) -> Fallible<Vec<u8>> {
    let mut builder = ArchiveBuilder::new(WriteOptions { alignment_bytes: 64, ..WriteOptions::default() });
    builder.attribute("config.json", "application/json", vec![b' '; 5000]);
    let mut waiting: Vec<Vec<StepEntry>> = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let matrix = matrix(shape)?;
        let name = format!("w{i}");
        for (start, _) in shape.blocks.iter().scan(0, |row, (rows, _)| Some((replace_add(row, *rows), ()))) {
            let units = matrix.units.iter().enumerate().filter(|(_, unit)| unit.row_start == start);
            let step = |(unit, _)| StepEntry { unit: (name.clone(), 0, unit), expected_loss: None };
            waiting.push(units.map(step).rev().collect());
        }
        let shape = [matrix.rows, matrix.cols];
        builder.tensor(entry(&name, DType::F32, &shape, vec![matrix]));
    }
    if let Some(picks) = picks {
        let mut steps = Vec::new();
        for pick in picks.iter().cycle() {
            waiting.retain(|chain| !chain.is_empty());
            let count = waiting.len();
            let Some(chain) = waiting.get_mut(pick % count.max(1)) else { break };
            steps.extend(chain.pop());
        }
        // Tensors that are equal are stored once, under the first name.
        let parsed = Archive::parse(builder.to_vec()?, &Limits::default())?;
        let stored = |step: &StepEntry| {
            let first = |name: &str| parsed.tensor(name).map(|t| t.record().first_matrix.get());
            parsed.tensors().find(|t| first(t.name()) == first(&step.unit.0)).map(|t| t.name() == step.unit.0)
        };
        steps.retain(|step| stored(step).unwrap_or(false));
        let count = steps.len() as f64;
        for (i, step) in steps.iter_mut().enumerate() {
            step.expected_loss = Some(count - i as f64);
        }
        builder.schedule(steps);
    }
    Ok(builder.to_vec()?)
}

fn replace_add(row: &mut u64, rows: u64) -> u64 {
    let before = *row;
    *row += rows;
    before
}

/// Segments of transforms, by way of their nodes.
fn transform_segments(archive: &Archive<Vec<u8>>) -> BTreeSet<u32> {
    let records = archive.matrices().flat_map(|m| {
        let (inputs, outputs) = m.transforms();
        inputs.into_iter().chain(outputs).collect::<Vec<_>>()
    });
    records.filter_map(|r| archive.node(r.node.get())).flat_map(|node| node.all_segments()).collect()
}

/// Segments of the first `steps` units.
fn unit_segments(archive: &Archive<Vec<u8>>, steps: usize) -> BTreeSet<u32> {
    archive.schedule().take(steps).filter_map(|step| step.unit()).flat_map(|unit| unit.segments()).collect()
}

fn naive_bytes(archive: &Archive<Vec<u8>>, steps: usize) -> u64 {
    let mut segments = unit_segments(archive, steps);
    segments.extend(transform_segments(archive));
    let bytes = segments.iter().filter_map(|i| archive.segment(*i)).map(|s| s.record().decoded_bytes.get());
    HEADER_BYTES + archive.header().directory_bytes.get() + bytes.sum::<u64>()
}

fn naive_required(archive: &Archive<Vec<u8>>) -> usize {
    let levels: Vec<_> = archive.schedule().map(|step| step.unit().map(|unit| unit.level())).collect();
    levels.iter().rposition(|level| *level == Some(0)).map_or(0, |last| last + 1)
}

fn naive_mapped(archive: &Archive<Vec<u8>>, steps: usize, page_bytes: u64) -> u64 {
    let always = transform_segments(archive);
    let mut pages = BTreeSet::new();
    let mut bytes = 0;
    for segment in unit_segments(archive, steps).difference(&always).filter_map(|i| archive.segment(*i)) {
        let record = segment.record();
        match record.compression {
            0 if record.stored_bytes.get() > 0 => {
                let end = record.offset.get() + record.stored_bytes.get();
                pages.extend(record.offset.get() / page_bytes..end.div_ceil(page_bytes));
            }
            _ => bytes += record.decoded_bytes.get(),
        }
    }
    let transforms: u64 =
        always.iter().filter_map(|i| archive.segment(*i)).map(|s| s.record().decoded_bytes.get()).sum();
    let head = HEADER_BYTES + archive.header().directory_bytes.get();
    head + transforms + bytes + pages.len() as u64 * page_bytes
}

#[expect(clippy::expect_used, reason = "a strategy cannot return an error")]
fn any_archive() -> impl Strategy<Value = Archive<Vec<u8>>> {
    let picks = prop::option::of(prop::collection::vec(any::<usize>(), 1..40));
    (shapes(), picks).prop_map(|(shapes, picks)| {
        let bytes = archive(&shapes, picks.as_deref()).expect("a valid archive");
        Archive::parse(bytes, &Limits::default()).expect("parses")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_prefix_is_counted_to_the_byte(archive in any_archive()) {
        let schedule = Schedule::of(&archive);
        let required = naive_required(&archive);
        prop_assert_eq!(schedule.steps(), archive.units().len());
        prop_assert_eq!(schedule.required_steps(), required);
        for steps in 0..=schedule.steps() {
            let bytes = naive_bytes(&archive, steps);
            prop_assert_eq!(schedule.resident_bytes(steps), bytes);
            // Each budget around the prefix, to the byte.
            for budget in [bytes - 1, bytes, bytes + 1] {
                let longest = (0..=schedule.steps()).rev().find(|n| naive_bytes(&archive, *n) <= budget);
                match plan(&archive, Budget::Bytes(budget)) {
                    Ok(plan) => {
                        prop_assert_eq!(Some(plan.units()), longest);
                        prop_assert!(plan.units() >= required);
                        prop_assert!(plan.resident_bytes() <= budget);
                        prop_assert!(plan.next_bytes().is_none_or(|next| plan.resident_bytes() + next > budget));
                        prop_assert_eq!(plan.resident_bytes(), naive_bytes(&archive, plan.units()));
                    }
                    Err(error) => {
                        prop_assert!(longest.is_none_or(|n| n < required));
                        prop_assert_eq!(error.minimum_bytes, naive_bytes(&archive, required));
                        prop_assert_eq!(error.budget_bytes, budget);
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_file_states_is_what_is_counted(archive in any_archive()) {
        archive.verify_sizes().expect("the writer counts as the verifier");
        let schedule = Schedule::of(&archive);
        if transform_segments(&archive).is_disjoint(&unit_segments(&archive, schedule.steps())) {
            for (steps, step) in (1..).zip(archive.schedule()) {
                let stated = step.record().cumulative_bytes.get();
                prop_assert_eq!(schedule.resident_bytes(steps), schedule.overhead_bytes() + stated);
            }
        }
    }

    #[test]
    fn a_larger_budget_drops_nothing(archive in any_archive(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let schedule = Schedule::of(&archive);
        let range = (schedule.maximum_bytes() - schedule.minimum_bytes()) as usize + 2;
        let at = |index: prop::sample::Index| schedule.minimum_bytes() + index.index(range) as u64;
        let (low, high) = (at(a).min(at(b)), at(a).max(at(b)));
        let (low, high) = (schedule.plan(Budget::Bytes(low)).expect("fits"), schedule.plan(Budget::Bytes(high)).expect("fits"));
        for unit in 0..archive.units().len() as u32 {
            prop_assert!(!low.includes(unit) || high.includes(unit));
        }
        let segments = |plan: &Plan| {
            let held = plan.of(&archive).expect("of this archive");
            (0..archive.segments().len() as u32).filter(|i| held.holds_segment(*i)).collect::<BTreeSet<_>>()
        };
        let mut expected = unit_segments(&archive, low.units());
        expected.extend(transform_segments(&archive));
        prop_assert_eq!(&segments(&low), &expected);
        prop_assert!(segments(&low).is_subset(&segments(&high)));
    }

    #[test]
    fn a_refinement_comes_with_what_it_refines(archive in any_archive(), index in any::<prop::sample::Index>()) {
        let schedule = Schedule::of(&archive);
        let range = (schedule.maximum_bytes() - schedule.minimum_bytes()) as usize + 1;
        let plan = schedule.plan(Budget::Bytes(schedule.minimum_bytes() + index.index(range) as u64)).expect("fits");
        let held = plan.of(&archive).expect("of this archive");
        for matrix in archive.matrices() {
            let mut rows = 0;
            for (block, level) in held.levels(&matrix) {
                prop_assert_eq!(block.start, rows);
                rows = block.end;
                for unit in matrix.units().filter(|unit| unit.rows() == block) {
                    prop_assert_eq!(plan.includes(unit.index()), unit.level() <= level);
                }
            }
            prop_assert_eq!(rows, matrix.rows());
        }
    }

    #[test]
    fn pages_are_counted_once(archive in any_archive(), page in prop::sample::select(vec![1u64, 64, 4096, 16384])) {
        let schedule = Schedule::of(&archive);
        for steps in schedule.required_steps()..=schedule.steps() {
            let plan = schedule.plan(Budget::Bytes(schedule.resident_bytes(steps))).expect("fits");
            prop_assert_eq!(plan.mapped_bytes(page), naive_mapped(&archive, plan.units(), page));
        }
    }

    #[test]
    fn payload_lies_in_the_order_of_the_schedule(archive in any_archive()) {
        let always = transform_segments(&archive);
        let mut last = None;
        let mut seen = BTreeSet::new();
        for unit in archive.schedule().filter_map(|step| step.unit()) {
            for segment in unit.segments().into_iter().filter(|i| !always.contains(i)) {
                if seen.insert(segment) {
                    prop_assert!(last < Some(segment));
                    last = Some(segment);
                }
            }
        }
        // So a plan is one cut: nothing lies between its segments but what they share.
        let payload: BTreeSet<u32> = seen.clone();
        if let (Some(first), Some(last)) = (payload.first(), payload.last()) {
            prop_assert_eq!((last - first + 1) as usize, payload.len());
        }
    }
}

/// Two blocks of rows, whose levels 1 and 2 come at different places of the schedule.
fn uneven() -> Fallible<ArchiveBuilder> {
    let unit = |level: u16, row_start: u64| {
        // Different in each unit, so that nothing is shared.
        let factor = (u64::from(level) + row_start + 1) as f32;
        let values: Vec<f32> = numbers(1000).iter().map(|v| v * factor).collect();
        let node = dense::pack_values(DType::F32, 20, 50, &values)?;
        Ok(UnitEntry { level, row_start, rows: 20, terms: vec![term(row_start, node)] })
    };
    let units = [(0, 0), (0, 20), (1, 0), (1, 20), (2, 0)].map(|(level, row)| unit(level, row));
    let units = units.into_iter().collect::<Fallible<Vec<_>>>()?;
    let mut builder = ArchiveBuilder::new(WriteOptions::default());
    let matrix = MatrixEntry { rows: 40, cols: 50, units, ..MatrixEntry::default() };
    builder.tensor(entry("w", DType::F32, &[40, 50], vec![matrix]));
    let other = dense::pack_values(DType::F32, 3, 5, &numbers(15))?;
    builder.tensor(entry("v", DType::F32, &[3, 5], vec![MatrixEntry::from_node(other)]));
    let step = |name: &str, unit, loss| StepEntry { unit: (name.into(), 0, unit), expected_loss: Some(loss) };
    builder.schedule(vec![
        step("w", 0, 9.0),
        step("w", 2, 8.0),
        step("w", 1, 7.0),
        step("v", 0, 6.0),
        step("w", 4, 2.0),
        step("w", 3, 1.0),
    ]);
    Ok(builder)
}

#[test]
fn the_minimum_ends_with_the_last_unit_of_level_0() -> Outcome {
    let archive = Archive::parse(uneven()?.to_vec()?, &Limits::default())?;
    let least = plan(&archive, Budget::Minimum)?;
    assert_eq!((least.units(), least.expected_loss()), (4, Some(6.0)));
    let all = plan(&archive, Budget::Maximum)?;
    assert_eq!((all.units(), all.expected_loss(), all.next_bytes()), (6, Some(1.0), None));
    assert_eq!(all.resident_bytes(), all.maximum_bytes());
    Ok(())
}

#[test]
fn bits_per_weight_count_all_elements_once() -> Outcome {
    let mut builder = uneven()?;
    let tied = dense::pack_values(DType::F32, 3, 5, &numbers(15))?;
    builder.tensor(entry("x", DType::F32, &[15], vec![MatrixEntry::from_node(tied)]));
    let archive = Archive::parse(builder.to_vec()?, &Limits::default())?;
    let all = plan(&archive, Budget::Maximum)?;
    assert_eq!(all.schedule().elements(), 40 * 50 + 15);
    assert_eq!(all.bits_per_weight(), all.resident_bytes() as f64 * 8.0 / 2015.0);
    let bits = all.bits_per_weight();
    assert_eq!(plan(&archive, Budget::BitsPerWeight(bits))?.budget_bytes(), all.resident_bytes());
    assert_eq!(plan(&archive, Budget::BitsPerWeight(bits - 0.01))?.units(), 5);
    assert!(plan(&archive, Budget::BitsPerWeight(1.0)).is_err());
    Ok(())
}

#[test]
fn blocks_decode_at_their_own_levels() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::open(write(dir.path(), "a.cmf", &uneven()?)?)?;
    let schedule = model.schedule()?.clone();
    let tensor = model.tensor("w").ok_or("no tensor")?;
    let mut by_level = Vec::new();
    for level in 0..3 {
        let mut values = vec![0.0; 2000];
        tensor.decode(Levels::UpTo(level), &mut values)?;
        by_level.push(values);
    }
    for (steps, levels) in [(4, [1usize, 0]), (5, [2, 0]), (6, [2, 1])] {
        let plan = model.plan(Budget::Bytes(schedule.resident_bytes(steps)))?;
        let held = plan.of(model.archive()).ok_or("of another")?;
        let matrix = tensor.stored()?.matrices().next().ok_or("no matrix")?;
        assert_eq!(held.levels(&matrix), [(0..20, levels[0] as u16), (20..40, levels[1] as u16)]);
        let mut values = vec![f32::NAN; 2000];
        tensor.decode(Levels::Plan(&plan), &mut values)?;
        assert_eq!(bits(&values[..1000]), bits(&by_level[levels[0]][..1000]), "{steps}");
        assert_eq!(bits(&values[1000..]), bits(&by_level[levels[1]][1000..]), "{steps}");
        let mut parallel = vec![f32::NAN; 2000];
        tensor.decode_parallel(Levels::Plan(&plan), &mut parallel)?;
        assert_eq!(bits(&parallel), bits(&values));
        let mut row = vec![f32::NAN; 50];
        tensor.decode_rows(Levels::Plan(&plan), 25..26, &mut row)?;
        assert_eq!(bits(&row), bits(&values[25 * 50..26 * 50]));
    }
    Ok(())
}

#[test]
fn a_budget_below_the_minimum_names_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::open(write(dir.path(), "a.cmf", &uneven()?)?)?;
    let minimum = model.schedule()?.minimum_bytes();
    let error = model.plan(Budget::Bytes(minimum - 1)).err().ok_or("it fits")?;
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert_eq!(error.below_minimum().map(|e| e.minimum_bytes), Some(minimum));
    assert!(error.to_string().contains(&format!("expected at least {minimum} bytes")), "{error}");
    Ok(())
}

#[test]
fn rejects_the_plan_of_another_file() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::open(write(dir.path(), "a.cmf", &uneven()?)?)?;
    let mut other = uneven()?;
    other.attribute("a", "text/plain", b"b".to_vec());
    let other = Model::open(write(dir.path(), "b.cmf", &other)?)?;
    let plan = other.plan(Budget::Maximum)?;
    let error = model.tensor("w").ok_or("no tensor")?.open(Levels::Plan(&plan)).err().ok_or("opened")?;
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.to_string().contains("plan: is of another archive"), "{error}");
    Ok(())
}

#[test]
fn one_plan_spans_all_shards() -> Outcome {
    let dir = tempfile::tempdir()?;
    let shard = |name: &str, tensor: &str, losses: [f64; 3]| -> Fallible<(TensorEntry, [u8; 32], u64)> {
        let unit = |level: u16| {
            let factor = (usize::from(level) + tensor.len()) as f32;
            let values: Vec<f32> = numbers(200).iter().map(|v| v * factor).collect();
            let node = dense::pack_values(DType::F32, 4, 50, &values)?;
            Ok(UnitEntry { level, row_start: 0, rows: 4, terms: vec![term(0, node)] })
        };
        let units = (0..3).map(unit).collect::<Fallible<Vec<_>>>()?;
        let matrix = MatrixEntry { rows: 4, cols: 50, units, ..MatrixEntry::default() };
        let own = entry(tensor, DType::F32, &[4, 50], vec![matrix]);
        let mut builder = ArchiveBuilder::new(WriteOptions::default());
        builder.tensor(own.clone());
        let steps = losses.iter().enumerate();
        let steps =
            steps.map(|(i, loss)| StepEntry { unit: (tensor.into(), 0, i), expected_loss: Some(*loss) });
        builder.schedule(steps.collect());
        write(dir.path(), name, &builder)?;
        let layout = builder.layout()?;
        Ok((
            TensorEntry { content: Content::Shard(name.into()), ..own },
            layout.identity(),
            layout.file_bytes(),
        ))
    };
    let mut main = ArchiveBuilder::new(WriteOptions::default());
    for (name, tensor, losses) in [("s1.cmf", "a", [9.0, 8.0, 7.5]), ("s2.cmf", "bb", [5.0, 2.0, 1.75])] {
        let (entry, identity, file_bytes) = shard(name, tensor, losses)?;
        main.shard(name, identity, file_bytes).tensor(entry);
    }
    let model = Model::open(write(dir.path(), "main.cmf", &main)?)?;
    let schedule = model.schedule()?;
    assert_eq!((schedule.steps(), schedule.required_steps(), schedule.elements()), (6, 2, 400));
    // Decreases: 3 in the second file, then 1 in the first, then a half and a quarter.
    let losses: Vec<_> = (0..=6).map(|steps| schedule.expected_loss(steps)).collect();
    assert_eq!(losses, [None, None, Some(14.0), Some(11.0), Some(10.0), Some(9.5), Some(9.25)]);
    let head = |model: &Model| HEADER_BYTES + model.archive().header().directory_bytes.get();
    let shards = model.references().map(|r| Ok(head(r.open()?))).collect::<Fallible<Vec<_>>>()?;
    let heads = head(&model) + shards.iter().sum::<u64>();
    assert_eq!(schedule.overhead_bytes(), heads);
    assert_eq!(schedule.maximum_bytes(), heads + 6 * 800);
    let plan = model.plan(Budget::Bytes(heads + 3 * 800))?;
    for (name, level) in [("a", 0), ("bb", 1)] {
        let tensor = model.tensor(name).ok_or("no tensor")?;
        let (mut planned, mut expected) = (vec![0.0; 200], vec![0.0; 200]);
        tensor.decode(Levels::Plan(&plan), &mut planned)?;
        tensor.decode(Levels::UpTo(level), &mut expected)?;
        assert_eq!(bits(&planned), bits(&expected), "{name}");
    }
    Ok(())
}

#[test]
fn a_model_without_units_is_its_directory() -> Outcome {
    let mut builder = ArchiveBuilder::new(WriteOptions::default());
    builder.tensor(entry("empty", DType::F32, &[0], vec![]));
    let archive = Archive::parse(builder.to_vec()?, &Limits::default())?;
    let all = plan(&archive, Budget::Minimum)?;
    assert_eq!((all.units(), all.resident_bytes(), all.bits_per_weight()), (0, all.overhead_bytes(), 0.0));
    assert_eq!(plan(&archive, Budget::Bytes(0)).map_err(|e| e.minimum_bytes), Err(all.overhead_bytes()));
    Ok(())
}

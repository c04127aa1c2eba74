//! The container: what is written parses, and what breaks a rule does not.

use cmf_format::archive::{Cut, MatrixView, TensorView};
use cmf_format::encoding::{dense, grouped};
use cmf_format::write::{Content, MatrixEntry, StepEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{Archive, ArchiveBuilder, DType, Error, ErrorKind, Limits, NodeData, WriteOptions};

type Outcome = Result<(), Error>;

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 251) as f32 - 100.0).collect()
}

fn dense_tensor(name: &str, rows: u64, cols: u64) -> Result<TensorEntry, Error> {
    let values = numbers((rows * cols) as usize);
    let node = dense::pack_values(DType::F32, rows, cols, &values)?;
    Ok(tensor(name, &[rows, cols], vec![MatrixEntry::from_node(node)]))
}

fn tensor(name: &str, shape: &[u64], matrices: Vec<MatrixEntry>) -> TensorEntry {
    TensorEntry {
        name: name.into(),
        dtype: DType::F32,
        shape: shape.to_vec(),
        content: Content::Matrices(matrices),
    }
}

fn four_bit(rows: u64, cols: u64) -> Result<NodeData, Error> {
    let descriptor = grouped::Descriptor {
        bits: 4,
        code_map: grouped::CodeMap::Integer { offset: -8 },
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: 32,
    };
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i % 16) as u8).collect();
    let groups = cols.div_ceil(32);
    let scales = vec![0.5; (rows * groups) as usize];
    let scale = dense::pack_values(DType::F16, rows, groups, &scales)?;
    grouped::pack(
        &descriptor,
        rows,
        cols,
        &codes,
        grouped::Children { scale: Some(scale), ..Default::default() },
    )
}

/// Two dense tensors that are tied, a sum of a grouped and a dense term in two levels and two row
/// blocks, an empty tensor, and an attribute.
fn sample() -> Result<ArchiveBuilder, Error> {
    let mut builder =
        ArchiveBuilder::new(WriteOptions { chunk_group_bytes: 1024, ..WriteOptions::default() });
    builder.attribute("config.json", "application/json", b"{}".to_vec());
    builder.tensor(dense_tensor("tied.b", 40, 50)?);
    builder.tensor(dense_tensor("tied.a", 40, 50)?);
    builder.tensor(tensor("empty", &[0, 7], vec![]));
    let term =
        |row_start, node: NodeData| TermEntry { row_start, col_start: 0, optional: false, node: node.into() };
    let unit =
        |level, row_start, node| UnitEntry { level, row_start, rows: 5, terms: vec![term(row_start, node)] };
    let residual = || dense::pack_values(DType::F16, 5, 33, &[0.25; 165]);
    builder.tensor(tensor(
        "sum",
        &[10, 33],
        vec![MatrixEntry {
            rows: 10,
            cols: 33,
            units: vec![
                unit(0, 0, four_bit(5, 33)?),
                unit(0, 5, four_bit(5, 33)?),
                unit(1, 0, residual()?),
                unit(1, 5, residual()?),
            ],
            ..MatrixEntry::default()
        }],
    ));
    Ok(builder)
}

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|e| e.kind())
}

#[test]
fn parses_verifies_and_decodes_what_it_wrote() -> Outcome {
    let bytes = sample()?.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    archive.verify()?;
    let names: Vec<_> = archive.tensors().map(|t| t.name()).collect();
    assert_eq!(names, ["empty", "sum", "tied.a", "tied.b"]);
    let Some(tied) = archive.tensor("tied.b") else { panic!("tied.b is missing") };
    let view = TensorView::open(&tied, 0)?;
    let mut out = vec![0.0; 50];
    view.decode_rows(3..4, &mut out)?;
    assert_eq!(out, numbers(2000)[150..200]);
    assert!(view.is_exact());
    Ok(())
}

#[test]
fn tied_tensors_are_stored_once() -> Outcome {
    let bytes = sample()?.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    assert_eq!(archive.matrices().len(), 2);
    Ok(())
}

#[test]
fn levels_add_up() -> Outcome {
    let bytes = sample()?.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    let Some(sum) = archive.tensor("sum") else { panic!("sum is missing") };
    let mut low = vec![0.0; 330];
    TensorView::open(&sum, 0)?.decode_rows(0..10, &mut low)?;
    let mut high = vec![0.0; 330];
    TensorView::open(&sum, 1)?.decode_rows(0..10, &mut high)?;
    assert_eq!(low[..3], [-4.0, -3.5, -3.0]);
    assert!(low.iter().zip(&high).all(|(l, h)| l + 0.25 == *h));
    Ok(())
}

#[test]
fn blocks_of_rows_have_levels_of_their_own() -> Outcome {
    let bytes = sample()?.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    let Some(sum) = archive.tensor("sum") else { panic!("sum is missing") };
    let Some(matrix) = sum.matrices().next() else { panic!("no matrix") };
    let (mut low, mut high, mut mixed) = (vec![0.0; 330], vec![0.0; 330], vec![0.0; 330]);
    MatrixView::open(&matrix, 0)?.decode_rows(0..10, &mut low)?;
    MatrixView::open(&matrix, 1)?.decode_rows(0..10, &mut high)?;
    // Units: level 0 of both blocks, then level 1 of the first and of the second.
    let first = matrix.record().first_unit.get();
    let held = |unit: u32| unit != first + 2;
    MatrixView::open(&matrix, Cut::Units(&held))?.decode_rows(0..10, &mut mixed)?;
    assert_eq!(mixed[..165], low[..165]);
    assert_eq!(mixed[165..], high[165..]);
    Ok(())
}

#[test]
fn a_schedule_may_name_tied_tensors_each() -> Outcome {
    let step = |tensor: &str, unit| StepEntry { unit: (tensor.into(), 0, unit), expected_loss: None };
    let mut builder = sample()?;
    let sums = [3, 2, 1, 0].map(|unit| step("sum", unit));
    let [third, second, first, zeroth] = sums;
    builder.schedule(vec![step("tied.b", 0), first, zeroth, third, step("tied.a", 0), second]);
    let bytes = builder.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    archive.verify()?;
    // Units of `sum` come before that of the tied tensors in their table.
    let order: Vec<_> = archive.schedule().map(|step| step.record().unit.get()).collect();
    assert_eq!(order, [4, 1, 0, 3, 2]);
    Ok(())
}

#[test]
fn rejects_a_schedule_that_names_what_is_not_there() -> Outcome {
    let names = [("tied.a", 0, 1), ("tied.a", 1, 0), ("sum", 0, 4), ("nothing", 0, 0)];
    for (tensor, matrix, unit) in names {
        let mut builder = sample()?;
        builder.schedule(vec![StepEntry { unit: (tensor.into(), matrix, unit), expected_loss: None }]);
        assert_eq!(kind(builder.to_vec()), Some(ErrorKind::Argument), "{tensor} {matrix} {unit}");
    }
    Ok(())
}

#[test]
fn transforms_wrap_the_sum_and_rows_read_alone() -> Outcome {
    use cmf_format::transform::{Side, Transform};
    use cmf_format::write::TransformEntry;
    let (rows, cols) = (12u64, 20u64);
    let values = numbers((rows * cols) as usize);
    let factors: Vec<f32> = (0..cols).map(|i| 1.0 + i as f32 / 8.0).collect();
    let order: Vec<u32> = (0..rows as u32).map(|i| (i * 5) % 12).collect();
    let mut matrix = MatrixEntry::from_node(dense::pack_values(DType::F32, rows, cols, &values)?);
    let scale = dense::pack_values(DType::F32, 1, cols, &factors)?;
    matrix.input_transforms =
        vec![TransformEntry::Scale(scale.into()), TransformEntry::SignHadamard { block: 4, seed: 7 }];
    let indices: Vec<u8> = order.iter().flat_map(|i| i.to_le_bytes()).collect();
    matrix.output_transforms =
        vec![TransformEntry::SignHadamard { block: 4, seed: 9 }, TransformEntry::Permute(indices.into())];
    let mut builder = ArchiveBuilder::default();
    builder.tensor(tensor("w", &[rows, cols], vec![matrix]));
    let bytes = builder.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    archive.verify()?;
    let Some(w) = archive.tensor("w") else { panic!("w is missing") };
    let mut whole = vec![0.0; (rows * cols) as usize];
    let view = TensorView::open(&w, 0)?;
    assert!(!view.is_exact());
    view.decode_rows(0..rows as usize, &mut whole)?;
    for row in 0..rows as usize {
        let mut alone = vec![0.0; cols as usize];
        TensorView::open_rows(&w, 0, row as u64..row as u64 + 1)?.decode_rows(row..row + 1, &mut alone)?;
        assert_eq!(alone, whole[row * cols as usize..][..cols as usize], "row {row}");
    }
    // The same product by acting on an activation.
    let x: Vec<f32> = (0..cols).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut inner = x.clone();
    Transform::scale(factors).apply(Side::Input, &mut inner)?;
    Transform::sign_hadamard(cols as usize, 4, 7)?.apply(Side::Input, &mut inner)?;
    let dot = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f32>();
    let mut y: Vec<f32> = values.chunks(cols as usize).map(|row| dot(row, &inner)).collect();
    Transform::sign_hadamard(rows as usize, 4, 9)?.apply(Side::Output, &mut y)?;
    Transform::permute(order)?.apply(Side::Output, &mut y)?;
    for (row, y) in whole.chunks(cols as usize).zip(y) {
        assert!((dot(row, &x) - y).abs() <= 1e-3 * y.abs().max(100.0), "{} {y}", dot(row, &x));
    }
    Ok(())
}

#[test]
fn order_of_adding_does_not_matter() -> Outcome {
    let mut builder = ArchiveBuilder::default();
    builder.tensor(dense_tensor("a", 3, 4)?).tensor(dense_tensor("b", 5, 6)?);
    let mut other = ArchiveBuilder::default();
    other.tensor(dense_tensor("b", 5, 6)?).tensor(dense_tensor("a", 3, 4)?);
    assert_eq!(builder.to_vec()?, other.to_vec()?);
    Ok(())
}

#[test]
fn every_flipped_bit_of_the_head_is_an_error() -> Outcome {
    let bytes = sample()?.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    let identity = archive.identity();
    let head = 256 + archive.header().directory_bytes.get() as usize;
    for at in 0..head {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        // `minor`, `edition` and `may_ignore` may differ; then the identity does.
        let survivor = Archive::parse(&damaged, &Limits::default());
        assert!(survivor.is_err() || survivor.is_ok_and(|a| a.identity() != identity), "byte {at}");
    }
    Ok(())
}

#[test]
fn every_flipped_payload_byte_fails_verification() -> Outcome {
    let bytes = sample()?.to_vec()?;
    let head = 256 + Archive::parse(&bytes, &Limits::default())?.header().directory_bytes.get() as usize;
    for at in (head..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let archive = Archive::parse(&damaged, &Limits::default())?;
        assert!(archive.verify().is_err(), "byte {at}");
    }
    Ok(())
}

#[test]
fn every_truncation_is_an_error() -> Outcome {
    let bytes = sample()?.to_vec()?;
    for length in (0..bytes.len()).step_by(13) {
        let found = kind(Archive::parse(&bytes[..length], &Limits::default()));
        let expected = if length == 0 { ErrorKind::NotCmf } else { ErrorKind::Truncated };
        assert_eq!(found, Some(expected), "{length} bytes");
    }
    Ok(())
}

#[test]
fn rejects_bytes_after_the_end() -> Outcome {
    let mut bytes = sample()?.to_vec()?;
    bytes.push(0);
    assert_eq!(kind(Archive::parse(&bytes, &Limits::default())), Some(ErrorKind::Structure));
    Ok(())
}

#[test]
fn names_other_formats() {
    for (bytes, name) in [
        (&b"GGUF\x03\0\0\0"[..], "GGUF"),
        (b"PK\x03\x04....", "zip"),
        (b"\x80\x04\x95", "pickle"),
        (b"CMF\x01rest", "Cortiq"),
        (b"\x0a\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
        (b"", "empty"),
    ] {
        let error = Archive::parse(bytes, &Limits::default()).err().map(|e| e.to_string());
        assert!(error.as_deref().is_some_and(|e| e.contains(name)), "{error:?} names {name}");
    }
}

#[test]
fn verifies_only_the_range_asked_for() -> Outcome {
    let mut bytes = sample()?.to_vec()?;
    let (index, offset) = {
        let archive = Archive::parse(&bytes, &Limits::default())?;
        let Some(large) = archive.segments().max_by_key(|s| s.record().stored_bytes.get()) else {
            panic!("no segment");
        };
        (large.index(), large.record().offset.get())
    };
    bytes[offset as usize + 5000] ^= 1;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    let Some(segment) = archive.segment(index) else { panic!("no segment") };
    segment.verify_range(0..4096)?;
    segment.verify_range(5120..8000)?;
    assert_eq!(kind(segment.verify_range(5000..5001)), Some(ErrorKind::Hash));
    Ok(())
}

#[test]
fn the_writer_refuses_what_the_reader_would() -> Outcome {
    for name in ["", "a\0b", "x/../y", "a\u{202E}b"] {
        let mut builder = ArchiveBuilder::default();
        builder.tensor(dense_tensor(name, 1, 1)?);
        assert!(builder.to_vec().is_err(), "{name:?}");
    }
    let mut twice = ArchiveBuilder::default();
    twice.tensor(dense_tensor("a", 1, 1)?).tensor(dense_tensor("a", 1, 2)?);
    assert!(twice.to_vec().is_err());
    Ok(())
}

/// Gives one byte more at each visit, as a source that reads on demand might.
struct Dripping(Vec<u8>);

impl cmf_format::Source for Dripping {
    fn head(&self) -> &[u8] {
        &self.0
    }

    fn file_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<std::borrow::Cow<'_, [u8]>, Error> {
        Ok(self.0[offset as usize..(offset + bytes) as usize].into())
    }

    fn visit(
        &self,
        offset: u64,
        bytes: u64,
        visit: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut rest = &self.0[offset as usize..(offset + bytes) as usize];
        for length in 1.. {
            let (part, after) = rest.split_at(rest.len().min(length));
            visit(part)?;
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

#[test]
fn hashes_do_not_depend_on_how_a_source_visits() -> Outcome {
    Archive::parse(Dripping(sample()?.to_vec()?), &Limits::default())?.verify()
}

#[test]
fn chunk_groups_cover_their_segment() -> Outcome {
    let bytes = sample()?.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    for segment in archive.segments() {
        let groups = segment.chunk_groups()?;
        let mut end = 0;
        for group in groups.indices() {
            assert_eq!(groups.bytes(group).start, end);
            end = groups.bytes(group).end;
        }
        assert_eq!(end, segment.record().stored_bytes.get());
        let end = groups.indices().end;
        let beyond = groups.verify(end - 1..end + 1, &mut |_, _| {});
        assert_eq!(kind(beyond), Some(ErrorKind::Argument));
    }
    Ok(())
}

#[test]
fn every_damaged_chunk_group_of_a_run_is_named() -> Outcome {
    let mut bytes = sample()?.to_vec()?;
    let (index, offset) = {
        let archive = Archive::parse(&bytes, &Limits::default())?;
        let Some(large) = archive.segments().max_by_key(|s| s.record().stored_bytes.get()) else {
            panic!("no segment");
        };
        (large.index(), large.record().offset.get() as usize)
    };
    for group in [1, 2, 5] {
        bytes[offset + 1024 * group + 17] ^= 1;
    }
    let archive = Archive::parse(Dripping(bytes), &Limits::default())?;
    let Some(segment) = archive.segment(index) else { panic!("no segment") };
    let mut found = Vec::new();
    segment.chunk_groups()?.verify(1..6, &mut |group, error| found.push((group, error.offset())))?;
    let at = |group: u64| (group, Some((offset as u64) + 1024 * group));
    assert_eq!(found, [at(1), at(2), at(5)]);
    Ok(())
}

#[test]
fn rows_opened_alone_decode_as_all_rows_do() -> Outcome {
    let bytes = sample()?.to_vec()?;
    let archive = Archive::parse(&bytes, &Limits::default())?;
    for name in ["sum", "tied.a"] {
        let Some(tensor) = archive.tensor(name) else { panic!("{name} is missing") };
        let all = TensorView::open(&tensor, u16::MAX)?;
        let mut expected = vec![0.0; all.rows() * all.cols()];
        all.decode_rows(0..all.rows(), &mut expected)?;
        for start in 0..all.rows() {
            let part = TensorView::open_rows(&tensor, u16::MAX, start as u64..start as u64 + 3)?;
            let end = all.rows().min(start + 3);
            let mut found = vec![0.0; (end - start) * all.cols()];
            part.decode_rows(start..end, &mut found)?;
            assert_eq!(found, expected[start * all.cols()..end * all.cols()], "{name} {start}");
            assert_eq!(part.is_exact(), all.is_exact());
            if end < all.rows() {
                let mut beyond = vec![0.0; all.cols()];
                assert_eq!(kind(part.decode_rows(end..end + 1, &mut beyond)), Some(ErrorKind::Argument));
            }
        }
    }
    Ok(())
}

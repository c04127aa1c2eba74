//! Shards and bases: found by bare name, held to length and identity, followed by every method.

mod common;

use cmf_format::write::{Content, MatrixEntry, TensorEntry};
use cmf_format::{Archive, ArchiveBuilder, DType, Limits};
use cmf_loader::{Backend, Error, ErrorKind, Levels, Model, OpenOptions, ReferenceKind};
use common::*;
use std::path::{Path, PathBuf};

fn in_shard(name: &str, shape: &[u64], shard: &str) -> TensorEntry {
    TensorEntry { content: Content::Shard(shard.into()), ..entry(name, DType::F32, shape, vec![]) }
}

fn delta(name: &str, shape: &[u64], base: &str, matrices: Vec<MatrixEntry>) -> TensorEntry {
    TensorEntry { content: Content::Delta(base.into(), matrices), ..entry(name, DType::F32, shape, vec![]) }
}

/// A matrix of ones.
fn ones(rows: u64, cols: u64) -> Fallible<MatrixEntry> {
    let values = vec![1.0; (rows * cols) as usize];
    let node = cmf_format::encoding::dense::pack_values(DType::F16, rows, cols, &values)?;
    Ok(MatrixEntry::from_node(node))
}

fn identity(bytes: &[u8]) -> Fallible<([u8; 32], u64)> {
    Ok((Archive::parse(bytes, &Limits::default())?.identity(), bytes.len() as u64))
}

/// Writes `builder` and refers to it from `from`.
fn shard(dir: &Path, name: &str, builder: &ArchiveBuilder, from: &mut ArchiveBuilder) -> Outcome {
    let (identity, bytes) = identity(&std::fs::read(write(dir, name, builder)?)?)?;
    from.shard(name, identity, bytes);
    Ok(())
}

fn base(dir: &Path, name: &str, builder: &ArchiveBuilder, from: &mut ArchiveBuilder) -> Outcome {
    let (identity, bytes) = identity(&std::fs::read(write(dir, name, builder)?)?)?;
    from.base(name, identity, bytes);
    Ok(())
}

struct Sharded {
    dir: tempfile::TempDir,
    path: PathBuf,
}

/// `main.cmf` with tensor `here`, and `there` in `second.cmf`.
fn sharded() -> Fallible<Sharded> {
    let dir = tempfile::tempdir()?;
    let (mut second, mut main) = (ArchiveBuilder::new(small_groups()), ArchiveBuilder::new(small_groups()));
    second.tensor(dense_entry("there", 30, 40)?);
    shard(dir.path(), "second.cmf", &second, &mut main)?;
    main.tensor(dense_entry("here", 3, 4)?).tensor(in_shard("there", &[30, 40], "second.cmf"));
    let path = write(dir.path(), "main.cmf", &main)?;
    Ok(Sharded { dir, path })
}

impl Sharded {
    fn second(&self) -> PathBuf {
        self.dir.path().join("second.cmf")
    }

    /// The error of decoding `there`, by either backend.
    fn errors(&self) -> Fallible<Vec<Error>> {
        let errors = BACKENDS.map(|backend| {
            let model = Model::open_with(&self.path, &options(backend))?;
            assert_eq!(decoded(&model, "here", Levels::All)?, numbers(12));
            let tensor = model.tensor("there").ok_or("missing")?;
            let error = tensor.decode(Levels::All, &mut [0.0; 1200]).err().ok_or("decoded")?;
            assert!(!model.verify_all(|_, _| {}).is_ok());
            Ok(error)
        });
        errors.into_iter().collect()
    }

    /// Asserts that decoding `there` is a `Reference` error which names the shard and says `part`.
    fn refuses(&self, part: &str) -> Outcome {
        for error in self.errors()? {
            assert_eq!(error.kind(), ErrorKind::Reference, "{error}");
            assert!(error.path().ends_with("main.cmf"));
            let text = error.to_string();
            assert!(text.contains("shard `second.cmf`: ") && text.contains(part), "{text}");
        }
        Ok(())
    }
}

#[test]
fn tensors_in_shards_are_like_others() -> Outcome {
    let sharded = sharded()?;
    for backend in BACKENDS {
        let model = Model::open_with(&sharded.path, &options(backend))?;
        assert_eq!(decoded(&model, "there", Levels::All)?, numbers(1200));
        let tensor = model.tensor("there").ok_or("missing")?;
        let mut row = [0.0; 40];
        tensor.decode_rows(Levels::All, 7..8, &mut row)?;
        assert_eq!(row, numbers(1200)[280..320]);
        assert_eq!(tensor.bytes()?.map(|b| b.len()), Some(4800));
        assert_eq!(tensor.stored()?.matrices().len(), 1);
        assert_eq!(tensor.summary()?.shard.as_deref(), Some("second.cmf"));
        let reference = tensor.reference().ok_or("no reference")?;
        assert_eq!((reference.name(), reference.kind()), ("second.cmf", ReferenceKind::Shard));
        tensor.verify()?;
        let totals = model.totals()?;
        assert_eq!((totals.files, totals.elements), (2, 1212));
        let found = model.verify_all(|_, _| {});
        assert!(found.is_ok(), "{:?}", found.errors);
        assert_eq!((found.files, found.bytes), (2, totals.file_bytes));
    }
    Ok(())
}

#[test]
fn a_shard_is_opened_when_it_is_needed_and_once() -> Outcome {
    let sharded = sharded()?;
    let away = sharded.dir.path().join("away");
    std::fs::rename(sharded.second(), &away)?;
    let model = Model::open(&sharded.path)?;
    assert_eq!(decoded(&model, "here", Levels::All)?, numbers(12));
    assert!(decoded(&model, "there", Levels::All).is_err());
    // A download has come in.
    std::fs::rename(&away, sharded.second())?;
    assert_eq!(decoded(&model, "there", Levels::All)?, numbers(1200));
    std::fs::remove_file(sharded.second())?;
    assert_eq!(decoded(&model, "there", Levels::All)?, numbers(1200));
    Ok(())
}

#[test]
fn a_model_in_the_working_directory_finds_its_shards() -> Outcome {
    let sharded = sharded()?;
    std::env::set_current_dir(sharded.dir.path())?;
    let model = Model::open("main.cmf")?;
    // The folder is the one at opening, whatever the working directory becomes.
    std::env::set_current_dir("/")?;
    assert_eq!(decoded(&model, "there", Levels::All)?, numbers(1200));
    Ok(model.check_unchanged()?)
}

#[test]
fn a_shard_may_lie_where_the_caller_says() -> Outcome {
    let sharded = sharded()?;
    let elsewhere = tempfile::tempdir()?;
    let moved = elsewhere.path().join("other name");
    std::fs::copy(sharded.second(), &moved)?;
    std::fs::remove_file(sharded.second())?;
    let references = [("second.cmf".to_owned(), moved)].into();
    let model = Model::open_with(&sharded.path, &OpenOptions { references, ..OpenOptions::default() })?;
    assert_eq!(decoded(&model, "there", Levels::All)?, numbers(1200));
    Ok(())
}

#[test]
fn rejects_missing_shard() -> Outcome {
    let sharded = sharded()?;
    std::fs::remove_file(sharded.second())?;
    sharded.refuses("second.cmf: No such file")
}

#[cfg(unix)]
#[test]
fn rejects_symbolic_link() -> Outcome {
    let sharded = sharded()?;
    let real = sharded.dir.path().join("real.cmf");
    std::fs::rename(sharded.second(), &real)?;
    std::os::unix::fs::symlink(&real, sharded.second())?;
    sharded.refuses("is a symbolic link, which is not followed")
}

#[test]
fn rejects_folder_in_place_of_shard() -> Outcome {
    let sharded = sharded()?;
    std::fs::remove_file(sharded.second())?;
    std::fs::create_dir(sharded.second())?;
    sharded.refuses("expected a file, found a directory")
}

#[test]
fn rejects_shard_of_another_format() -> Outcome {
    let sharded = sharded()?;
    std::fs::write(sharded.second(), b"GGUF\x03\0\0\0")?;
    sharded.refuses("found a GGUF file")?;
    let error = sharded.errors()?.pop().ok_or("no error")?;
    assert_eq!(error.format_error().map(|e| e.kind()), Some(cmf_format::ErrorKind::NotCmf));
    Ok(())
}

#[test]
fn rejects_shard_of_another_length() -> Outcome {
    let sharded = sharded()?;
    let mut other = ArchiveBuilder::new(small_groups());
    other.tensor(dense_entry("there", 30, 40)?).tensor(dense_entry("more", 3, 4)?);
    write(sharded.dir.path(), "second.cmf", &other)?;
    sharded.refuses("bytes, found ")
}

#[test]
fn rejects_shard_of_another_identity() -> Outcome {
    let sharded = sharded()?;
    let mut other = ArchiveBuilder::new(small_groups());
    let values: Vec<f32> = numbers(1200).into_iter().rev().collect();
    let node = cmf_format::encoding::dense::pack_values(DType::F32, 30, 40, &values)?;
    other.tensor(entry("there", DType::F32, &[30, 40], vec![MatrixEntry::from_node(node)]));
    write(sharded.dir.path(), "second.cmf", &other)?;
    sharded.refuses("expected identity ")
}

/// A model whose shard holds `held`, while the model states tensor `there` of shape [30, 40].
fn with_shard(held: impl FnOnce(&Path, &mut ArchiveBuilder) -> Outcome) -> Fallible<Sharded> {
    let dir = tempfile::tempdir()?;
    let (mut second, mut main) = (ArchiveBuilder::new(small_groups()), ArchiveBuilder::new(small_groups()));
    held(dir.path(), &mut second)?;
    shard(dir.path(), "second.cmf", &second, &mut main)?;
    main.tensor(dense_entry("here", 3, 4)?).tensor(in_shard("there", &[30, 40], "second.cmf"));
    let path = write(dir.path(), "main.cmf", &main)?;
    Ok(Sharded { dir, path })
}

/// The message of decoding `there`.
fn message(sharded: &Sharded) -> Fallible<String> {
    let model = Model::open(&sharded.path)?;
    let tensor = model.tensor("there").ok_or("missing")?;
    let error = tensor.decode(Levels::All, &mut [0.0; 1200]).err().ok_or("decoded")?;
    assert_eq!(error.kind(), ErrorKind::Reference);
    Ok(error.to_string())
}

#[test]
fn rejects_shard_without_the_tensor() -> Outcome {
    let sharded = with_shard(|_, second| {
        second.tensor(dense_entry("other", 30, 40)?);
        Ok(())
    })?;
    assert!(message(&sharded)?.contains("tensor `there`: is not there"));
    Ok(())
}

#[test]
fn rejects_shard_with_another_shape() -> Outcome {
    let sharded = with_shard(|_, second| {
        second.tensor(dense_entry("there", 40, 30)?);
        Ok(())
    })?;
    assert!(message(&sharded)?.contains("expected shape [30, 40], found [40, 30]"));
    Ok(())
}

#[test]
fn rejects_shard_with_another_type() -> Outcome {
    let sharded = with_shard(|_, second| {
        let tensor = TensorEntry { dtype: DType::F16, ..dense_entry("there", 30, 40)? };
        second.tensor(tensor);
        Ok(())
    })?;
    assert!(message(&sharded)?.contains("expected type f32, found f16"));
    Ok(())
}

#[test]
fn rejects_shard_that_refers_further() -> Outcome {
    let sharded = with_shard(|dir, second| {
        let mut third = ArchiveBuilder::default();
        third.tensor(dense_entry("there", 30, 40)?);
        shard(dir, "third.cmf", &third, second)?;
        second.tensor(in_shard("there", &[30, 40], "third.cmf"));
        Ok(())
    })?;
    assert!(message(&sharded)?.contains("expected its values, found a reference to `third.cmf`"));
    Ok(())
}

#[test]
fn rejects_archive_that_refers_to_itself() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut main = ArchiveBuilder::default();
    main.base("main.cmf", [7; 32], 4096).tensor(delta("w", &[3, 4], "main.cmf", vec![ones(3, 4)?]));
    let path = write(dir.path(), "main.cmf", &main)?;
    let bytes = std::fs::metadata(&path)?.len();
    let mut main = ArchiveBuilder::default();
    main.base("main.cmf", [7; 32], bytes).tensor(delta("w", &[3, 4], "main.cmf", vec![ones(3, 4)?]));
    let path = write(dir.path(), "main.cmf", &main)?;
    let model = Model::open(&path)?;
    let error =
        model.tensor("w").ok_or("missing")?.decode(Levels::All, &mut [0.0; 12]).err().ok_or("decoded")?;
    assert_eq!(error.kind(), ErrorKind::Reference);
    assert!(error.to_string().contains("base `main.cmf`: expected identity 0707"), "{error}");
    Ok(())
}

#[test]
fn rejects_names_that_leave_the_folder() -> Outcome {
    let sharded = sharded()?;
    let mut bytes = std::fs::read(&sharded.path)?;
    for name in [&b"../ond.cmf"[..], b"/etc/x.cmf", b"a\\cond.cmf", b".........."] {
        let directory =
            256 + Archive::parse(&bytes, &Limits::default())?.header().directory_bytes.get() as usize;
        let mut hostile = bytes.clone();
        let head = &mut hostile[256..directory];
        let at = head.windows(10).position(|w| w == b"second.cmf").ok_or("no name")?;
        head[at..at + 10].copy_from_slice(name);
        let hash = cmf_format::hash::hash(head);
        hostile[64..96].copy_from_slice(&hash);
        std::fs::write(&sharded.path, &hostile)?;
        let error = Model::open(&sharded.path).err().ok_or("opened")?;
        assert_eq!(error.kind(), ErrorKind::Format(cmf_format::ErrorKind::Structure), "{error}");
    }
    bytes.clear();
    Ok(())
}

#[test]
fn damage_in_a_shard_is_found_there() -> Outcome {
    let sharded = sharded()?;
    let mut bytes = std::fs::read(sharded.second())?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(sharded.second(), &bytes)?;
    for backend in BACKENDS {
        let model = Model::open_with(&sharded.path, &options(backend))?;
        let found = model.verify_all(|_, _| {});
        let [error] = &found.errors[..] else { return Err(format!("{:?}", found.errors).into()) };
        assert_eq!(error.kind(), ErrorKind::Format(cmf_format::ErrorKind::Hash));
        assert!(error.path().ends_with("second.cmf"));
        let error = model.verify_tensor("there").err().ok_or("verified")?;
        assert_eq!(error.format_error().and_then(|e| e.tensor()), Some("there"));
        model.verify_tensor("here")?;
    }
    Ok(())
}

#[test]
fn a_delta_is_added_to_its_base() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut below = ArchiveBuilder::default();
    for name in ["same", "sum", "other.columns", "levels"] {
        below.tensor(dense_entry(name, 40, 50)?);
    }
    let mut main = ArchiveBuilder::default();
    base(dir.path(), "base.cmf", &below, &mut main)?;
    main.tensor(delta("same", &[40, 50], "base.cmf", vec![]));
    main.tensor(delta("sum", &[40, 50], "base.cmf", vec![ones(40, 50)?]));
    main.tensor(delta("other.columns", &[40, 50], "base.cmf", vec![ones(8, 250)?]));
    main.tensor(delta("levels", &[40, 50], "base.cmf", vec![levels_matrix()?]));
    let path = write(dir.path(), "main.cmf", &main)?;
    let mut alone = ArchiveBuilder::default();
    alone.tensor(entry("levels", DType::F32, &[40, 50], vec![levels_matrix()?]));
    let alone = Model::open(write(dir.path(), "alone.cmf", &alone)?)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        assert_eq!(decoded(&model, "same", Levels::All)?, numbers(2000));
        let plus_one: Vec<f32> = numbers(2000).iter().map(|v| v + 1.0).collect();
        assert_eq!(decoded(&model, "sum", Levels::All)?, plus_one);
        assert_eq!(decoded(&model, "other.columns", Levels::All)?, plus_one);
        for levels in [Levels::All, Levels::UpTo(0)] {
            let terms = decoded(&alone, "levels", levels)?;
            let expected: Vec<f32> = numbers(2000).iter().zip(&terms).map(|(b, t)| b + t).collect();
            assert_eq!(bits(&decoded(&model, "levels", levels)?), bits(&expected));
        }
        for name in ["same", "sum", "other.columns"] {
            let whole = decoded(&model, name, Levels::All)?;
            let tensor = model.tensor(name).ok_or("missing")?;
            let cols = tensor.matrix_shape()?.cols as usize;
            for (row, expected) in whole.chunks(cols).enumerate() {
                let mut out = vec![0.0; cols];
                tensor.decode_rows(Levels::All, row as u64..row as u64 + 1, &mut out)?;
                assert_eq!(out, expected);
            }
            let mut bytes = vec![0; 8000];
            tensor.read_elements(0..(2000 / cols) as u64, &mut bytes)?;
            assert!(bytes.chunks(4).eq(whole.iter().map(|v| v.to_le_bytes())));
            let mut parallel = vec![0.0; 2000];
            tensor.decode_parallel(Levels::All, &mut parallel)?;
            assert_eq!(parallel, whole);
            assert!(tensor.bytes()?.is_none() && !tensor.open(Levels::All)?.is_exact());
            assert_eq!(tensor.summary()?.base.as_deref(), Some("base.cmf"));
            tensor.verify()?;
        }
        assert!(model.verify_all(|_, _| {}).is_ok());
    }
    Ok(())
}

#[test]
fn rejects_base_rows_larger_than_the_limit() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (mut below, mut main) = (ArchiveBuilder::default(), ArchiveBuilder::default());
    let node = cmf_format::encoding::dense::pack_values(DType::F32, 1, 2000, &numbers(2000))?;
    below.tensor(entry("w", DType::F32, &[40, 50], vec![MatrixEntry::from_node(node)]));
    base(dir.path(), "base.cmf", &below, &mut main)?;
    main.tensor(delta("w", &[40, 50], "base.cmf", vec![ones(40, 50)?]));
    let path = write(dir.path(), "main.cmf", &main)?;
    let limits = Limits { decoded_tensor_bytes: 7999, ..Limits::default() };
    let model = Model::open_with(&path, &OpenOptions { limits, ..OpenOptions::default() })?;
    let tensor = model.tensor("w").ok_or("missing")?;
    let error = tensor.decode_rows(Levels::All, 3..4, &mut [0.0; 50]).err().ok_or("decoded")?;
    assert_eq!(error.kind(), ErrorKind::Format(cmf_format::ErrorKind::Limit));
    Ok(())
}

/// `files` files, each a delta of ones to the one before.
fn chain(dir: &Path, files: usize) -> Fallible<PathBuf> {
    let mut builder = ArchiveBuilder::default();
    builder.tensor(dense_entry("w", 3, 4)?);
    for i in 0..files {
        let mut next = ArchiveBuilder::default();
        let name = format!("{i}.cmf");
        base(dir, &name, &builder, &mut next)?;
        next.tensor(delta("w", &[3, 4], &name, vec![ones(3, 4)?]));
        builder = next;
    }
    write(dir, "top.cmf", &builder)
}

#[test]
fn deltas_of_deltas_add_up() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::open(chain(dir.path(), 5)?)?;
    let expected: Vec<f32> = numbers(12).iter().map(|v| v + 5.0).collect();
    assert_eq!(decoded(&model, "w", Levels::All)?, expected);
    Ok(())
}

#[test]
fn rejects_chain_without_end() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::open(chain(dir.path(), 30)?)?;
    let error =
        model.tensor("w").ok_or("missing")?.decode(Levels::All, &mut [0.0; 12]).err().ok_or("decoded")?;
    assert_eq!(error.kind(), ErrorKind::Reference);
    assert!(error.to_string().contains("more than 16 deep"), "{error}");
    Ok(())
}

#[test]
fn a_base_may_be_sharded() -> Outcome {
    let sharded = sharded()?;
    let mut main = ArchiveBuilder::default();
    let (identity, bytes) = identity(&std::fs::read(&sharded.path)?)?;
    main.base("main.cmf", identity, bytes);
    main.tensor(delta("there", &[30, 40], "main.cmf", vec![ones(30, 40)?]));
    let path = write(sharded.dir.path(), "fine-tune.cmf", &main)?;
    let model = Model::open_with(&path, &options(Backend::Pread))?;
    let expected: Vec<f32> = numbers(1200).iter().map(|v| v + 1.0).collect();
    assert_eq!(decoded(&model, "there", Levels::All)?, expected);
    Ok(())
}

//! Conversion end to end: files in, archive out.

use cmf_converters::convert::{ConvertOptions, ConvertReport, convert};
use cmf_converters::error::{Error, ErrorKind, Result};
use cmf_converters::moments::{self, ROW_WEIGHTS_PREFIX};
use cmf_converters::recipe::{BUILTIN_NAMES, Recipe};
use cmf_converters::source::{self, Source};
use cmf_format::archive::TensorView;
use cmf_format::encoding::dense;
use cmf_format::write::{Content, MatrixEntry, TensorEntry};
use cmf_format::{Archive, ArchiveBuilder, DType, Limits};
use safetensors::tensor::{Dtype, TensorView as View, serialize_to_file};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// Smooth pseudo-random values, heavy in the tails.
fn weights(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (uniform() + uniform() + uniform()) * 0.1 / (0.3 + uniform().abs())).collect()
}

/// A Hugging Face directory with matrices, vectors, experts, integers, and an empty tensor.
fn model(folder: &Path) -> std::result::Result<PathBuf, Box<dyn std::error::Error>> {
    let path = folder.join("model");
    std::fs::create_dir_all(&path)?;
    std::fs::write(path.join("config.json"), b"{ \"hidden_size\": 96 }\n")?;
    std::fs::write(path.join("tokenizer.json"), "{\"x\": \"y\"}\n".repeat(5000))?;
    let parts = [
        ("a.weight", Dtype::BF16, vec![80, 96], DType::BF16.encode(&weights(80 * 96, 1))?),
        ("b.weight", Dtype::F32, vec![130, 75], DType::F32.encode(&weights(130 * 75, 2))?),
        ("experts", Dtype::F16, vec![3, 48, 64], DType::F16.encode(&weights(3 * 48 * 64, 3))?),
        ("norm.weight", Dtype::F32, vec![96], DType::F32.encode(&weights(96, 4))?),
        ("ids", Dtype::I64, vec![5], (0..5i64).flat_map(|i| (i << 40).to_le_bytes()).collect()),
        ("empty", Dtype::F32, vec![0, 4], vec![]),
        ("scalar", Dtype::F32, vec![], 1.5f32.to_le_bytes().to_vec()),
    ];
    let views = parts
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, View::new(*dtype, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    serialize_to_file(views, Some(metadata), &path.join("model.safetensors"))?;
    Ok(path)
}

fn run(source: &dyn Source, output: &Path, options: &ConvertOptions) -> Result<ConvertReport> {
    convert(source, output, options, &|_| {})
}

fn recipe(name: &str) -> Result<ConvertOptions> {
    Ok(ConvertOptions::new(Recipe::load(name)?))
}

/// Small units, so that matrices are cut into several row blocks.
fn in_blocks(name: &str) -> Result<ConvertOptions> {
    let mut options = recipe(name)?;
    options.recipe.unit_bytes = 4096;
    Ok(options)
}

/// Elements of the tensors of which `take` says so by their number.
fn elements_of(source: &dyn Source, take: fn(u64) -> bool) -> u64 {
    source.tensors().iter().filter_map(source::TensorInfo::elements).filter(|n| take(*n)).sum()
}

#[test]
fn every_recipe_gives_a_valid_archive_close_to_the_source() -> Outcome {
    let folder = tempfile::tempdir()?;
    let source = source::open(&model(folder.path())?)?;
    for name in BUILTIN_NAMES {
        let output = folder.path().join(format!("{name}.cmf"));
        let report = run(source.as_ref(), &output, &in_blocks(name)?)?;
        let level_bits: Vec<_> = report.levels.iter().map(|level| level.bits_per_weight).collect();
        let most = report.bits_per_weight * elements_of(source.as_ref(), |_| true) as f64
            / elements_of(source.as_ref(), |n| n >= 4096) as f64;
        assert!(level_bits.iter().is_sorted(), "{name}: {level_bits:?}");
        assert!(level_bits.iter().all(|bits| *bits <= most * 1.0001), "{name}: {level_bits:?} of {most}");
        let archive = Archive::parse(std::fs::read(&output)?, &Limits::default())?;
        archive.verify()?;
        for (i, info) in source.tensors().iter().enumerate() {
            let tensor = archive.tensor(&info.name).ok_or("tensor is missing")?;
            assert_eq!((tensor.dtype(), tensor.shape()), (info.dtype, info.shape.clone()));
            let elements = info.elements().ok_or("too many")?;
            let mut expected = Vec::new();
            source.read_values(i, 0..elements, &mut expected)?;
            let mut found = vec![0.0; expected.len()];
            let view = TensorView::open(&tensor, u16::MAX)?;
            view.decode_rows(0..view.rows(), &mut found)?;
            let signal: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
            let noise: f64 = expected.iter().zip(&found).map(|(x, y)| f64::from(x - y).powi(2)).sum();
            let bound = match *name {
                "keep" | "lossless" => 0.0,
                "q8" => 1e-4,
                "q6" => 1e-3,
                _ => 0.35,
            };
            assert!(noise <= bound * signal, "{name} {}: {noise} of {signal}", info.name);
        }
        assert!(!output.with_file_name(format!(".{name}.cmf.partial")).exists());
    }
    Ok(())
}

/// Sixty-four rows of 2 bits are more than a unit of `any-size` should be, and one Hadamard block.
#[test]
fn matrices_with_rows_of_many_columns_are_rotated_too() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    let bytes = DType::F32.encode(&weights(64 * 4400, 1))?;
    let view = View::new(Dtype::F32, vec![64, 4400], &bytes)?;
    serialize_to_file([("up_proj.weight", view)], None, &path)?;
    let output = folder.path().join("model.cmf");
    let report = run(source::open(&path)?.as_ref(), &output, &recipe("any-size")?)?;
    assert!(report.levels.last().is_some_and(|level| level.snr_db > 40.0), "{:?}", report.levels);
    Archive::parse(std::fs::read(&output)?, &Limits::default())?.verify()?;
    Ok(())
}

#[test]
fn rows_lie_in_the_order_of_what_their_errors_cost() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (rows, cols) = (300, 64);
    let values = weights(rows * cols, 9);
    let bytes = DType::F32.encode(&values)?;
    let path = folder.path().join("model.safetensors");
    serialize_to_file([("embed", View::new(Dtype::F32, vec![rows, cols], &bytes)?)], None, &path)?;
    let mut calibration = ArchiveBuilder::default();
    let heavy = |row: usize| row % 7 == 3;
    let cost: Vec<f32> = (0..rows).map(|row| if heavy(row) { 1000.0 } else { 1.0 }).collect();
    let node = dense::pack_values(DType::F32, 1, rows as u64, &cost)?;
    calibration.tensor(TensorEntry {
        name: format!("{ROW_WEIGHTS_PREFIX}embed"),
        dtype: DType::F32,
        shape: vec![1, rows as u64],
        content: Content::Matrices(vec![MatrixEntry::from_node(node)]),
    });
    let moments = folder.path().join("moments.cmf");
    std::fs::write(&moments, calibration.to_vec()?)?;
    let mut options = recipe("any-size")?;
    options.moments = Some(moments::open(&moments)?.into());
    options.recipe.unit_bytes = 720;
    let output = folder.path().join("model.cmf");
    run(source::open(&path)?.as_ref(), &output, &options)?;
    let archive = Archive::parse(std::fs::read(&output)?, &Limits::default())?;
    archive.verify()?;
    let view = TensorView::open(&archive.tensor("embed").ok_or("no tensor")?, u16::MAX)?;
    let mut found = vec![0.0; values.len()];
    view.decode_rows(0..rows, &mut found)?;
    for (row, (expected, found)) in values.chunks_exact(cols).zip(found.chunks_exact(cols)).enumerate() {
        let signal: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
        let noise: f64 = expected.iter().zip(found).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        assert!(noise < 1e-2 * signal, "row {row}: {noise} of {signal}");
    }
    // The blocks that have heavy rows get several levels before others get their second.
    let matrix = archive.tensor("embed").and_then(|t| t.matrices().next()).ok_or("no matrix")?;
    let start = |unit: u32| matrix.units().find(|u| u.index() == unit).map(|u| u.record().row_start.get());
    let order: Vec<u64> = archive.schedule().filter_map(|step| start(step.record().unit.get())).collect();
    let starts: BTreeSet<u64> = order.iter().copied().collect();
    assert!(starts.iter().nth(1).is_some_and(|second| *second <= 43), "{starts:?}");
    let above: Vec<u64> = order.iter().copied().skip(starts.len()).collect();
    assert!(above.iter().take(6).all(|start| *start < 43), "{above:?}");
    Ok(())
}

#[test]
fn threads_do_not_change_a_byte() -> Outcome {
    let folder = tempfile::tempdir()?;
    let source = source::open(&model(folder.path())?)?;
    for name in ["q4-sparse", "vq2", "q3-lowrank", "lossless"] {
        let mut files = Vec::new();
        for jobs in [1, 3] {
            let output = folder.path().join(format!("{name}-{jobs}.cmf"));
            run(source.as_ref(), &output, &ConvertOptions { jobs, ..in_blocks(name)? })?;
            files.push(std::fs::read(&output)?);
        }
        assert!(files[0] == files[1], "{name}");
    }
    Ok(())
}

#[test]
fn keeps_the_files_of_the_model_and_the_recipe() -> Outcome {
    let folder = tempfile::tempdir()?;
    let directory = model(folder.path())?;
    let source = source::open(&directory)?;
    let output = folder.path().join("out.cmf");
    run(source.as_ref(), &output, &recipe("q4")?)?;
    let archive = Archive::parse(std::fs::read(&output)?, &Limits::default())?;
    for name in ["config.json", "tokenizer.json"] {
        let attribute = archive.attribute(name).ok_or("attribute is missing")?;
        assert_eq!(attribute.bytes()?, std::fs::read(directory.join(name))?);
    }
    let stored = archive.attribute("cmf.recipe.toml").ok_or("recipe is missing")?.bytes()?;
    assert_eq!(Recipe::from_toml(std::str::from_utf8(&stored)?)?, Recipe::load("q4")?);
    Ok(())
}

#[test]
fn refuses_to_replace_without_force() -> Outcome {
    let folder = tempfile::tempdir()?;
    let source = source::open(&model(folder.path())?)?;
    let output = folder.path().join("out.cmf");
    std::fs::write(&output, b"precious")?;
    let error = run(source.as_ref(), &output, &recipe("q4")?).err().map(|e| e.kind());
    assert_eq!(error, Some(ErrorKind::BadArgument));
    assert_eq!(std::fs::read(&output)?, b"precious");
    run(source.as_ref(), &output, &ConvertOptions { force: true, ..recipe("q4")? })?;
    assert_ne!(std::fs::read(&output)?, b"precious");
    Ok(())
}

/// A source that breaks off after some reads, as if the process were killed: the panic leaves
/// everything on disk as it is.
struct Breaks<'a> {
    inner: &'a dyn Source,
    left: std::sync::atomic::AtomicI64,
}

impl Breaks<'_> {
    fn tick(&self) {
        let left = self.left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        assert!(left > 0, "killed");
    }
}

impl Source for Breaks<'_> {
    fn tensors(&self) -> &[source::TensorInfo] {
        self.inner.tensors()
    }
    fn read_elements(&self, index: usize, range: std::ops::Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        self.tick();
        self.inner.read_elements(index, range, out)
    }
    fn read_values(&self, index: usize, range: std::ops::Range<u64>, out: &mut Vec<f32>) -> Result<()> {
        self.tick();
        self.inner.read_values(index, range, out)
    }
    fn native_nodes(
        &self,
        index: usize,
        range: std::ops::Range<u64>,
        rows: u64,
        cols: u64,
    ) -> Result<Option<Vec<cmf_format::NodeData>>> {
        self.inner.native_nodes(index, range, rows, cols)
    }
    fn archive(&self) -> Option<&source::CmfSource> {
        self.inner.archive()
    }
    fn is_exact(&self, index: usize) -> Result<bool> {
        self.inner.is_exact(index)
    }
    fn attributes(&self) -> Result<Vec<source::AttributeFile>> {
        self.inner.attributes()
    }
    fn inputs(&self) -> &[source::InputFile] {
        self.inner.inputs()
    }
    fn format(&self) -> source::SourceFormat {
        self.inner.format()
    }
}

#[test]
fn goes_on_after_a_kill_to_the_same_bytes() -> Outcome {
    let folder = tempfile::tempdir()?;
    let source = source::open(&model(folder.path())?)?;
    let options = ConvertOptions { jobs: 1, ..in_blocks("q4")? };
    let whole = folder.path().join("whole.cmf");
    let report = run(source.as_ref(), &whole, &options)?;
    assert!(report.blocks > 6, "{} blocks", report.blocks);
    for cut in [1, 4, 6] {
        let output = folder.path().join(format!("cut-{cut}.cmf"));
        let breaks = Breaks { inner: source.as_ref(), left: cut.into() };
        let killed =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&breaks, &output, &options)));
        assert!(killed.is_err(), "the source broke off");
        assert!(!output.exists());
        let resumed = run(source.as_ref(), &output, &options)?;
        assert_eq!(resumed.resumed_blocks as i64, cut, "blocks before the kill");
        assert!(std::fs::read(&output)? == std::fs::read(&whole)?);
    }
    Ok(())
}

#[test]
fn a_damaged_work_folder_is_not_believed() -> Outcome {
    let folder = tempfile::tempdir()?;
    let source = source::open(&model(folder.path())?)?;
    let options = ConvertOptions { jobs: 1, ..in_blocks("q4")? };
    let whole = folder.path().join("whole.cmf");
    run(source.as_ref(), &whole, &options)?;
    for file in ["segments", "journal"] {
        let output = folder.path().join(format!("{file}.cmf"));
        let breaks = Breaks { inner: source.as_ref(), left: 5.into() };
        let killed =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&breaks, &output, &options)));
        assert!(killed.is_err());
        let path = folder.path().join(format!(".{file}.cmf.partial")).join(file);
        let mut bytes = std::fs::read(&path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes)?;
        let resumed = run(source.as_ref(), &output, &options)?;
        assert!(resumed.resumed_blocks < 5, "{file}: {}", resumed.resumed_blocks);
        assert!(std::fs::read(&output)? == std::fs::read(&whole)?, "{file}");
    }
    Ok(())
}

#[test]
fn an_error_leaves_no_file() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("nan.safetensors");
    let bytes = DType::F32.encode(&[f32::NAN; 128 * 64])?;
    serialize_to_file([("w", View::new(Dtype::F32, vec![128, 64], &bytes)?)], None, &path)?;
    let source = source::open(&path)?;
    let output = folder.path().join("out.cmf");
    let error = run(source.as_ref(), &output, &recipe("q4")?).err().ok_or("NaN was quantised")?;
    assert!(error.to_string().contains("tensor `w`"), "{error}");
    let left: Vec<_> = std::fs::read_dir(folder.path())?.collect::<std::io::Result<Vec<_>>>()?;
    assert_eq!(left.len(), 1, "{left:?}");
    Ok(())
}

#[test]
fn shards_are_valid_archives_that_the_main_one_names() -> Outcome {
    let folder = tempfile::tempdir()?;
    let source = source::open(&model(folder.path())?)?;
    let output = folder.path().join("out.cmf");
    let report =
        run(source.as_ref(), &output, &ConvertOptions { shard_bytes: Some(10_000), ..recipe("q8")? })?;
    assert!(report.files.len() > 2, "{:?}", report.files);
    assert_eq!(report.files[0], output);
    let main = Archive::parse(std::fs::read(&output)?, &Limits::default())?;
    main.verify()?;
    for reference in main.references() {
        let shard = Archive::parse(std::fs::read(folder.path().join(reference.name()))?, &Limits::default())?;
        shard.verify()?;
        assert_eq!(shard.identity(), reference.record().identity);
    }
    let tensor = main.tensor("a.weight").ok_or("tensor is missing")?;
    assert!(tensor.reference().is_some());
    Ok(())
}

#[test]
fn plain_blocks_of_a_tensor_lie_end_to_end() -> Outcome {
    let folder = tempfile::tempdir()?;
    let source = source::open(&model(folder.path())?)?;
    let output = folder.path().join("out.cmf");
    run(source.as_ref(), &output, &in_blocks("keep")?)?;
    let archive = Archive::parse(std::fs::read(&output)?, &Limits::default())?;
    let matrix = archive.tensor("a.weight").and_then(|t| t.matrices().next()).ok_or("matrix is missing")?;
    let segments: Vec<_> = matrix.units().flat_map(|u| u.segments()).collect();
    assert!(segments.len() > 1);
    let records: Vec<_> = segments.iter().filter_map(|i| archive.segment(*i)).map(|s| *s.record()).collect();
    for pair in records.windows(2) {
        assert_eq!(pair[0].offset.get() + pair[0].stored_bytes.get(), pair[1].offset.get());
    }
    Ok(())
}

#[test]
fn index_and_directory_give_the_same_archive_as_one_file() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("sharded");
    std::fs::create_dir_all(&path)?;
    let (a, b) = (DType::F32.encode(&weights(64 * 96, 1))?, DType::F32.encode(&weights(64 * 96, 2))?);
    let view = |bytes| View::new(Dtype::F32, vec![64, 96], bytes);
    serialize_to_file([("a", view(&a)?), ("b", view(&b)?)], None, &folder.path().join("one.safetensors"))?;
    serialize_to_file([("a", view(&a)?)], None, &path.join("model-00001-of-00002.safetensors"))?;
    serialize_to_file([("b", view(&b)?)], None, &path.join("model-00002-of-00002.safetensors"))?;
    let index = r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    std::fs::write(path.join("model.safetensors.index.json"), index)?;
    let one = source::open(&folder.path().join("one.safetensors"))?;
    for input in [path.clone(), path.join("model.safetensors.index.json")] {
        let sharded = source::open(&input)?;
        assert_eq!(sharded.tensors(), one.tensors());
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for i in 0..2 {
            sharded.read_elements(i, 0..96, &mut x)?;
            one.read_elements(i, 0..96, &mut y)?;
            assert_eq!(x, y);
        }
    }
    Ok(())
}

#[test]
fn hostile_indexes_and_headers_are_errors() -> Outcome {
    let folder = tempfile::tempdir()?;
    let write = |name: &str, bytes: &[u8]| -> std::io::Result<PathBuf> {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path)
    };
    let kind = |path: &Path| source::open(path).err().map(|e: Error| e.kind());
    let escape = write("x.safetensors.index.json", br#"{"weight_map": {"a": "../../etc/passwd"}}"#)?;
    assert_eq!(kind(&escape), Some(ErrorKind::BadFile));
    let mut huge = (u64::MAX / 2).to_le_bytes().to_vec();
    huge.extend_from_slice(b"{}");
    assert_eq!(kind(&write("huge.safetensors", &huge)?), Some(ErrorKind::BadFile));
    let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut short = (header.len() as u64).to_le_bytes().to_vec();
    short.extend_from_slice(header);
    short.extend_from_slice(&[0; 4]);
    assert_eq!(kind(&write("short.safetensors", &short)?), Some(ErrorKind::BadFile));
    let zip = source::open(&write("model.pt", b"PK\x03\x04 and so on")?).err().map(|e| e.to_string());
    assert!(zip.as_deref().is_some_and(|e| e.contains("zip")), "{zip:?}");
    Ok(())
}

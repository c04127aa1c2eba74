//! What opens, what does not, and what opening costs.

mod common;

use cmf_format::encoding::dense;
use cmf_format::write::MatrixEntry;
use cmf_format::{ArchiveBuilder, DType, Limits};
use cmf_loader::{Backend, Error, ErrorKind, Levels, Model, OpenOptions};
use common::*;

fn open_bytes(bytes: &[u8], backend: Backend) -> Fallible<Result<Model, Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file.cmf");
    std::fs::write(&path, bytes)?;
    Ok(Model::open_with(&path, &options(backend)))
}

#[test]
fn other_formats_are_named_with_the_path() -> Outcome {
    for backend in BACKENDS {
        for (bytes, name) in [
            (&b"GGUF\x03\0\0\0"[..], "GGUF"),
            (b"PK\x03\x04....", "zip"),
            (b"\x80\x04\x95", "pickle"),
            (b"CMF\x01rest", "Cortiq"),
            (b"\x0a\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
            (b"", "empty"),
        ] {
            let error = open_bytes(bytes, backend)?.err().ok_or("opened")?;
            assert_eq!(error.kind(), ErrorKind::Format(cmf_format::ErrorKind::NotCmf));
            assert_eq!(error.kind().name(), "not_cmf");
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("file.cmf: "), "{text}");
            assert!(error.path().ends_with("file.cmf"));
        }
    }
    Ok(())
}

#[test]
fn a_truncated_file_says_so() -> Outcome {
    let bytes = sample()?.to_vec()?;
    for backend in BACKENDS {
        for length in [1, 255, 256, 300, 5000, bytes.len() - 1] {
            let error = open_bytes(&bytes[..length], backend)?.err().ok_or("opened")?;
            let expected = ErrorKind::Format(cmf_format::ErrorKind::Truncated);
            assert_eq!(error.kind(), expected, "{length}: {error}");
        }
    }
    Ok(())
}

#[test]
fn a_missing_file_and_a_folder_are_io_errors() -> Outcome {
    let dir = tempfile::tempdir()?;
    for path in [dir.path().join("none.cmf"), dir.path().to_owned()] {
        let error = Model::open(&path).err().ok_or("opened")?;
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(error.path(), path);
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_refused_without_waiting() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("pipe.cmf");
    let status = std::process::Command::new("mkfifo").arg(&path).status()?;
    assert!(status.success());
    let error = Model::open(&path).err().ok_or("opened")?;
    assert_eq!(error.kind(), ErrorKind::Io);
    Ok(())
}

#[test]
fn a_model_is_opened_by_symbolic_link() -> Outcome {
    let (dir, path) = sample_file()?;
    let link = dir.path().join("link.cmf");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&path, &link)?;
    #[cfg(not(unix))]
    std::fs::copy(&path, &link)?;
    Ok(Model::open(&link)?.check_unchanged()?)
}

#[test]
fn limits_are_kept() -> Outcome {
    let (_dir, path) = sample_file()?;
    for backend in BACKENDS {
        let limits = Limits { directory_bytes: 1000, ..Limits::default() };
        let error =
            Model::open_with(&path, &OpenOptions { limits, ..options(backend) }).err().ok_or("opened")?;
        assert_eq!(error.kind(), ErrorKind::Format(cmf_format::ErrorKind::Limit));
    }
    let limits = Limits { decoded_segment_bytes: 4000, ..Limits::default() };
    let model = Model::open_with(&path, &OpenOptions { limits, ..options(Backend::Pread) })?;
    let error = model.tensor("tied.a").ok_or("missing")?.bytes().err().ok_or("read")?;
    assert_eq!(error.kind(), ErrorKind::Format(cmf_format::ErrorKind::Limit));
    Ok(())
}

#[test]
fn a_directory_longer_than_the_first_read_is_read_whole() -> Outcome {
    let mut builder = ArchiveBuilder::default();
    for i in 0..1000 {
        builder.tensor(dense_entry(&format!("tensor.{i:04}"), 1, 2)?);
    }
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "many.cmf", &builder)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        assert!(model.archive().header().directory_bytes.get() > 64 * 1024);
        assert_eq!(model.tensors().len(), 1000);
        assert!(model.tensor("tensor.0999").is_some());
    }
    Ok(())
}

#[test]
fn models_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Model>();
    shared::<cmf_loader::OpenTensor<'_>>();
    shared::<Error>();
}

/// Kilobytes of the map of `path` that this process has brought in.
#[cfg(target_os = "linux")]
fn resident_kilobytes(path: &std::path::Path) -> Fallible<Option<u64>> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let name = path.to_str().ok_or("path is not UTF-8")?;
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(name));
    let Some(line) = lines.find(|line| line.starts_with("Rss:")) else { return Ok(None) };
    Ok(Some(line.split_whitespace().nth(1).ok_or("no number")?.parse()?))
}

#[cfg(target_os = "linux")]
#[test]
fn opening_and_listing_touch_no_payload() -> Outcome {
    let mut builder = ArchiveBuilder::default();
    for i in 0..16u64 {
        let bytes: Vec<u8> = (0..4u64 << 20).map(|n| ((n * (i + 1)) >> 8) as u8).collect();
        let node = dense::pack(DType::F32, 1024, 1024, bytes)?;
        let matrix = MatrixEntry::from_node(node);
        builder.tensor(entry(&format!("tensor.{i}"), DType::F32, &[1024, 1024], vec![matrix]));
    }
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "large.cmf", &builder)?.canonicalize()?;
    let model = Model::open(&path)?;
    for tensor in model.tensors() {
        assert_eq!(tensor.shape(), [1024, 1024]);
        assert_eq!(tensor.summary()?.terms.len(), 1);
        assert_eq!(tensor.bytes()?.map(|b| b.len()), Some(4 << 20));
    }
    assert_eq!(resident_kilobytes(&path)?, Some(0));
    // The measure works: decoding one row brings some pages in, but not the file.
    model.tensor("tensor.7").ok_or("missing")?.decode_rows(
        cmf_loader::Levels::All,
        5..6,
        &mut [0.0; 1024],
    )?;
    let kilobytes = resident_kilobytes(&path)?.ok_or("not mapped")?;
    assert!(0 < kilobytes && kilobytes < 16 * 1024, "{kilobytes} kB");
    Ok(())
}

#[test]
fn bytes_in_memory_are_a_file() -> Outcome {
    let (dir, path) = sample_file()?;
    let file = Model::open(&path)?;
    let model = Model::from_bytes(std::fs::read(&path)?, "sample", &OpenOptions::default())?;
    // Whatever becomes of the file.
    dir.close()?;
    assert_eq!((model.backend(), model.identity()), (Backend::Memory, file.identity()));
    model.check_unchanged()?;
    for tensor in model.tensors().filter(|tensor| tensor.name() != "partly.known") {
        let values = decoded(&model, tensor.name(), Levels::All)?;
        assert_eq!(bits(&values), bits(&decoded(&file, tensor.name(), Levels::All)?));
    }
    let cut = Model::from_bytes(vec![0; 10], "cut", &OpenOptions::default()).err().ok_or("opened")?;
    assert!(cut.to_string().starts_with("cut: "), "{cut}");
    Ok(())
}

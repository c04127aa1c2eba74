//! Files that are cut, written to, replaced or removed while they are open: errors, no signals.

mod common;

use cmf_loader::{Backend, Error, ErrorKind, Levels, Model};
use common::*;
use std::fs::{File, OpenOptions};
use std::path::Path;

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|e| e.kind())
}

fn each_backend(check: impl Fn(Model, &Path) -> Outcome) -> Outcome {
    for backend in FILES {
        let (_dir, path) = sample_file()?;
        check(Model::open_with(&path, &options(backend))?, &path)?;
    }
    Ok(())
}

fn cut(path: &Path, bytes: u64) -> Outcome {
    Ok(OpenOptions::new().write(true).open(path)?.set_len(bytes)?)
}

#[test]
fn an_open_file_is_unchanged() -> Outcome {
    each_backend(|model, _| Ok(model.check_unchanged()?))
}

#[test]
fn a_cut_file_is_an_error_wherever_it_is_read() -> Outcome {
    for left in [0, 100, 5000] {
        each_backend(|model, path| {
            cut(path, left)?;
            // The directory is in memory.
            assert_eq!(model.tensors().filter(|t| !t.name().is_empty()).count(), model.tensors().len());
            let changed = Some(ErrorKind::Changed);
            assert_eq!(kind(model.check_unchanged()), changed);
            let tensor = model.tensor("tied.a").ok_or("missing")?;
            let last = model.tensor("lossless").ok_or("missing")?;
            assert_eq!(kind(last.decode(Levels::All, &mut [0.0; 3000])), changed);
            assert_eq!(kind(last.decode_rows(Levels::All, 59..60, &mut [0.0; 50])), changed);
            assert_eq!(kind(last.verify()), changed);
            assert_eq!(kind(tensor.read_elements(39..40, &mut [0; 200])), changed);
            if left == 0 || model.backend() == Backend::Mmap {
                assert_eq!(kind(tensor.bytes()), changed);
                assert_eq!(kind(tensor.decode(Levels::All, &mut [0.0; 2000])), changed);
                assert_eq!(kind(model.attribute("config.json").ok_or("missing")?.bytes()), changed);
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn verifying_a_cut_file_finds_it_changed() -> Outcome {
    for left in [0, 100, 5000] {
        each_backend(|model, path| {
            cut(path, left)?;
            let found = model.verify_all(|_, _| {});
            assert_eq!(found.errors.first().map(Error::kind), Some(ErrorKind::Changed));
            assert!(found.errors.len() > 1);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_cut_file_under_a_tensor_that_is_open_is_an_error() -> Outcome {
    each_backend(|model, path| {
        // Opened without touching payload: the elements are read when they are decoded.
        let tensor = model.tensor("tied.a").ok_or("missing")?.open(Levels::All)?;
        cut(path, 0)?;
        assert_eq!(kind(tensor.decode_rows(0..40, &mut [0.0; 2000])), Some(ErrorKind::Changed));
        Ok(())
    })
}

#[test]
fn a_file_replaced_by_renaming_can_still_be_read() -> Outcome {
    each_backend(|model, path| {
        let other = path.with_extension("new");
        std::fs::write(&other, vec![0; 10])?;
        std::fs::rename(&other, path)?;
        assert_eq!(decoded(&model, "tied.a", Levels::All)?, numbers(2000));
        assert_eq!(kind(model.check_unchanged()), Some(ErrorKind::Changed));
        Ok(())
    })
}

#[test]
fn a_removed_file_can_still_be_read() -> Outcome {
    each_backend(|model, path| {
        std::fs::remove_file(path)?;
        assert_eq!(decoded(&model, "tied.a", Levels::All)?, numbers(2000));
        assert_eq!(kind(model.check_unchanged()), Some(ErrorKind::Changed));
        Ok(())
    })
}

#[test]
fn a_file_written_to_is_found_changed() -> Outcome {
    each_backend(|model, path| {
        let times = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::options().write(true).open(path)?.set_times(times)?;
        assert_eq!(kind(model.check_unchanged()), Some(ErrorKind::Changed));
        let found = model.verify_all(|_, _| {});
        assert_eq!(found.errors.iter().map(Error::kind).collect::<Vec<_>>(), [ErrorKind::Changed]);
        Ok(())
    })
}

#[test]
fn what_was_checked_at_opening_stays_checked() -> Outcome {
    each_backend(|model, path| {
        let names: Vec<String> = model.tensors().map(|t| t.name().to_owned()).collect();
        std::fs::write(path, vec![0xFF; model.file_bytes() as usize])?;
        assert!(model.tensors().map(|t| t.name().to_owned()).eq(names));
        // Payload is another one now, and says so where an encoding or a hash can tell.
        assert!(!model.verify_all(|_, _| {}).is_ok());
        Ok(())
    })
}

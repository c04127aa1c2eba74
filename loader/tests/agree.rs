//! Both backends give what the format's own decoder gives over the bytes in memory.

mod common;

use cmf_format::archive::TensorView;
use cmf_format::{Archive, Limits};
use cmf_loader::{Backend, Levels, Model};
use common::*;

/// Calls `check` with the model, by either backend, and the archive parsed from memory.
fn each_backend(check: impl Fn(&Model, &Archive<Vec<u8>>) -> Outcome) -> Outcome {
    let (_dir, path) = sample_file()?;
    let archive = Archive::parse(std::fs::read(&path)?, &Limits::default())?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        assert_eq!(model.backend(), backend);
        check(&model, &archive).map_err(|e| format!("{backend:?}: {e}"))?;
    }
    Ok(())
}

fn expected(archive: &Archive<Vec<u8>>, name: &str, level: u16) -> Fallible<Vec<f32>> {
    let view = TensorView::open(&archive.tensor(name).ok_or("no such tensor")?, level)?;
    let mut out = vec![0.0; view.rows() * view.cols()];
    view.decode_rows(0..view.rows(), &mut out)?;
    Ok(out)
}

#[test]
fn tensors_are_listed_as_stored() -> Outcome {
    each_backend(|model, archive| {
        assert_eq!(model.identity(), archive.identity());
        assert_eq!(model.file_bytes(), archive.header().file_bytes.get());
        assert_eq!(model.tensors().len(), archive.tensors().len());
        for (found, stored) in model.tensors().zip(archive.tensors()) {
            assert_eq!(found.name(), stored.name());
            assert_eq!((found.dtype(), found.shape()), (stored.dtype(), stored.shape()));
        }
        assert!(model.tensor("not there").is_none());
        Ok(())
    })
}

#[test]
fn every_level_decodes() -> Outcome {
    each_backend(|model, archive| {
        for tensor in model.tensors() {
            for (levels, level) in [(Levels::All, u16::MAX), (Levels::UpTo(0), 0), (Levels::UpTo(1), 1)] {
                let found = decoded(model, tensor.name(), levels)?;
                let expected = expected(archive, tensor.name(), level)?;
                assert_eq!(bits(&found), bits(&expected), "{} {levels:?}", tensor.name());
            }
        }
        Ok(())
    })
}

#[test]
fn parallel_decoding_gives_the_same_bits() -> Outcome {
    let mut builder = sample()?;
    // More than one block of rows, the last one short.
    builder.tensor(dense_entry("large", 700, 1000)?);
    let node = grouped_twice(701, 1003)?;
    let matrix = cmf_format::write::MatrixEntry::from_node(node);
    builder.tensor(entry("large.grouped", cmf_format::DType::F32, &[701, 1003], vec![matrix]));
    let rotated = cmf_format::write::MatrixEntry {
        output_transforms: vec![cmf_format::write::TransformEntry::SignHadamard { block: 64, seed: 3 }],
        ..cmf_format::write::MatrixEntry::from_node(grouped_twice(704, 1000)?)
    };
    builder.tensor(entry("large.rotated", cmf_format::DType::F32, &[704, 1000], vec![rotated]));
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "large.cmf", &builder)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        for tensor in model.tensors() {
            let mut found = vec![0.0; tensor.elements() as usize];
            tensor.decode_parallel(Levels::All, &mut found)?;
            let expected = decoded(&model, tensor.name(), Levels::All)?;
            assert_eq!(bits(&found), bits(&expected), "{}", tensor.name());
        }
    }
    Ok(())
}

#[test]
fn rows_are_those_of_the_whole() -> Outcome {
    each_backend(|model, archive| {
        for tensor in model.tensors() {
            let shape = tensor.matrix_shape()?;
            let whole = expected(archive, tensor.name(), u16::MAX)?;
            for start in 0..shape.all_rows() {
                let end = shape.all_rows().min(start + 1 + start % 4);
                let mut out = vec![0.0; ((end - start) * shape.cols) as usize];
                tensor.decode_rows(Levels::All, start..end, &mut out)?;
                let range = (start * shape.cols) as usize..(end * shape.cols) as usize;
                assert_eq!(bits(&out), bits(&whole[range]), "{} {start}..{end}", tensor.name());
            }
        }
        Ok(())
    })
}

#[test]
fn experts_decode_alone() -> Outcome {
    each_backend(|model, archive| {
        let tensor = model.tensor("experts").ok_or("no experts")?;
        let whole = expected(archive, "experts", u16::MAX)?;
        assert_eq!(tensor.matrix_shape()?.count, 3);
        for (i, expected) in whole.chunks(200).enumerate() {
            let mut out = vec![0.0; 200];
            tensor.decode_matrix(i, Levels::All, &mut out)?;
            assert_eq!(bits(&out), bits(expected));
        }
        assert!(tensor.decode_matrix(3, Levels::All, &mut [0.0; 200]).is_err());
        Ok(())
    })
}

#[test]
fn elements_are_exact_or_rounded() -> Outcome {
    each_backend(|model, archive| {
        for tensor in model.tensors() {
            let view = TensorView::open(&archive.tensor(tensor.name()).ok_or("missing")?, u16::MAX)?;
            let row_bytes = view.cols() * tensor.dtype().bytes();
            let mut expected = vec![0; view.rows() * row_bytes];
            view.read_elements(0..view.rows(), &mut expected)?;
            let mut found = vec![0; expected.len()];
            tensor.read_elements(0..view.rows() as u64, &mut found)?;
            assert_eq!(found, expected, "{}", tensor.name());
            assert_eq!(tensor.open(Levels::All)?.is_exact(), view.is_exact(), "{}", tensor.name());
            let some = view.rows() / 3..view.rows() / 2;
            let mut found = vec![0; some.len() * row_bytes];
            tensor.read_elements(some.start as u64..some.end as u64, &mut found)?;
            assert_eq!(found, expected[some.start * row_bytes..some.end * row_bytes]);
        }
        Ok(())
    })
}

#[test]
fn bytes_are_given_where_they_are_the_values() -> Outcome {
    each_backend(|model, _| {
        for tensor in model.tensors() {
            let adjacent = ["blocks.adjacent", "empty", "scalar", "tied.a", "tied.b"];
            let bytes = tensor.bytes()?;
            assert_eq!(bytes.is_some(), adjacent.contains(&tensor.name()), "{}", tensor.name());
            let Some(bytes) = bytes else { continue };
            let mut expected = vec![0; bytes.len()];
            tensor.read_elements(0..tensor.matrix_shape()?.all_rows(), &mut expected)?;
            assert_eq!(bytes, expected);
            let borrowed = matches!(bytes, std::borrow::Cow::Borrowed(_));
            assert_eq!(borrowed, model.backend() != Backend::Pread);
        }
        Ok(())
    })
}

#[test]
fn attributes_come_back() -> Outcome {
    each_backend(|model, _| {
        let names: Vec<_> = model.attributes().map(|a| a.name()).collect();
        assert_eq!(names, ["config.json", "tokenizer.json"]);
        let tokenizer = model.attribute("tokenizer.json").ok_or("no tokenizer")?;
        assert_eq!(tokenizer.media_type(), "application/json");
        assert_eq!(tokenizer.bytes()?, vec![b'x'; 9000]);
        assert_eq!(tokenizer.bytes_len(), 9000);
        assert!(tokenizer.stored_bytes() < 9000);
        assert!(model.attribute("other").is_none());
        Ok(())
    })
}

#[test]
fn rejects_slices_and_rows_that_do_not_fit() -> Outcome {
    each_backend(|model, _| {
        for tensor in model.tensors() {
            let elements = tensor.elements() as usize;
            assert!(tensor.decode(Levels::All, &mut vec![0.0; elements + 1]).is_err());
            let rows = tensor.matrix_shape()?.all_rows();
            let mut row = vec![0.0; tensor.matrix_shape()?.cols as usize];
            assert!(tensor.decode_rows(Levels::All, rows..rows + 1, &mut row).is_err());
            let reversed = std::ops::Range { start: 1, end: 0 };
            assert!(tensor.decode_rows(Levels::All, reversed, &mut []).is_err());
            assert!(tensor.decode_rows(Levels::All, u64::MAX..u64::MAX, &mut []).is_err());
            assert!(tensor.read_elements(0..rows, &mut vec![0; elements * 20 + 1]).is_err());
        }
        Ok(())
    })
}

#[test]
fn opened_tensors_decode_from_many_threads() -> Outcome {
    each_backend(|model, archive| {
        let opened = model.tensor("levels").ok_or("missing")?.open(Levels::All)?;
        let whole = expected(archive, "levels", u16::MAX)?;
        std::thread::scope(|scope| {
            let rows = (0..opened.rows()).map(|row| {
                let opened = &opened;
                scope.spawn(move || {
                    let mut out = vec![0.0; opened.cols()];
                    opened.decode_rows(row..row + 1, &mut out).map(|()| out)
                })
            });
            let rows: Vec<_> = rows.collect();
            for (row, expected) in rows.into_iter().zip(whole.chunks(50)) {
                let found = row.join().map_err(|_| "a thread panicked")??;
                assert_eq!(bits(&found), bits(expected));
            }
            Ok(())
        })
    })
}

#[test]
fn unknown_terms_cost_quality_or_their_tensor_alone() -> Outcome {
    let mut builder = sample()?;
    let mut matrix = levels_matrix()?;
    matrix.units[0].terms.push(term(0, unknown_node()));
    builder.tensor(entry("unknown", cmf_format::DType::F32, &[40, 50], vec![matrix]));
    let dir = tempfile::tempdir()?;
    let path = write(dir.path(), "newer.cmf", &builder)?;
    for backend in BACKENDS {
        let model = Model::open_with(&path, &options(backend))?;
        assert_eq!(model.tensor("partly.known").ok_or("missing")?.open(Levels::All)?.left_out(), 1);
        let known = decoded(&model, "levels", Levels::All)?;
        assert_eq!(bits(&decoded(&model, "partly.known", Levels::All)?), bits(&known));
        let unknown = model.tensor("unknown").ok_or("missing")?;
        let error = unknown.decode(Levels::All, &mut vec![0.0; 2000]).err().ok_or("decoded")?;
        assert_eq!(error.kind(), cmf_loader::ErrorKind::Format(cmf_format::ErrorKind::Unsupported));
        let terms = unknown.summary()?.terms;
        assert!(terms.iter().any(|t| t.encoding == "id 60000" && !t.known));
        unknown.verify()?;
        let found = model.verify_all(|_, _| {});
        assert!(found.is_ok() && found.unknown_terms == 2, "{:?}", found.errors);
        // Rows that the unknown term does not touch.
        unknown.decode_rows(Levels::All, 20..40, &mut vec![0.0; 1000])?;
    }
    Ok(())
}

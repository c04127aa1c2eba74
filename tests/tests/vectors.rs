//! Reads every committed vector of the spec with this reader and compares what it says: values to
//! the bit, and the kind of each error.

use cmf_format::archive::{Tensor, TensorView};
use cmf_format::{Archive, Error, Limits};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

type Failure = Box<dyn std::error::Error>;
type Outcome = Result<(), Failure>;
type Bytes<'a> = &'a [u8];

struct Vector {
    path: PathBuf,
    bytes: Vec<u8>,
    expected: Value,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/vectors")
}

/// All vectors in the folders below `kind`.
fn vectors(kind: &str) -> Result<Vec<Vector>, Failure> {
    let mut found = Vec::new();
    for folder in fs::read_dir(root().join(kind))? {
        for file in fs::read_dir(folder?.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|e| e == "cmf") {
                let expected = serde_json::from_slice(&fs::read(path.with_extension("json"))?)?;
                found.push(Vector { bytes: fs::read(&path)?, path, expected });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no vectors below {kind}");
    Ok(found)
}

/// Calls `check` with every vector and lists those that fail.
fn each(kind: &str, check: impl Fn(&Vector) -> Outcome) -> Outcome {
    let failed = |v: &Vector| Some(format!("{}: {}", v.path.display(), check(v).err()?));
    let failures: Vec<String> = vectors(kind)?.iter().filter_map(failed).collect();
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("\n").into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or("")
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Fails with what differs.
fn same<T: PartialEq + std::fmt::Debug>(what: impl std::fmt::Display, found: T, expected: T) -> Outcome {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: found {found:?}, expected {expected:?}").into()),
    }
}

/// All values of a tensor at a level, in the form of the vectors, row by row.
fn rows(tensor: &Tensor<'_, Bytes<'_>>, level: u16) -> Result<(Vec<String>, usize), Error> {
    let view = TensorView::open(tensor, level)?;
    let mut values = vec![0.0; view.rows() * view.cols()];
    view.decode_rows(0..view.rows(), &mut values)?;
    let mut by_row = Vec::new();
    for row in 0..view.rows() {
        let mut one = vec![0.0; view.cols()];
        view.decode_rows(row..row + 1, &mut one)?;
        by_row.extend(one);
    }
    assert!(values.iter().zip(&by_row).all(|(a, b)| a.to_bits() == b.to_bits()), "row reads agree");
    let word = |v: &f32| if v.is_nan() { "nan".to_owned() } else { format!("{:08x}", v.to_bits()) };
    let text =
        values.chunks(view.cols().max(1)).map(|row| row.iter().map(word).collect::<Vec<_>>().join(" "));
    Ok((text.collect(), view.matrices().iter().map(|m| m.left_out().len()).sum()))
}

fn check_tensor(tensor: &Tensor<'_, Bytes<'_>>, expected: &Value) -> Outcome {
    let name = text(expected, "name");
    same("name", tensor.name(), name)?;
    same(format!("`{name}`: dtype"), tensor.dtype().name(), text(expected, "dtype"))?;
    let shape: Vec<Value> = tensor.shape().into_iter().map(Value::from).collect();
    same(format!("`{name}`: shape"), shape.as_slice(), list(expected, "shape"))?;
    let reference = tensor.reference().map(|r| r.name());
    same(format!("`{name}`: reference"), reference, expected["reference"]["archive"].as_str())?;
    let base = expected["reference"]["kind"].as_str() == Some("base");
    same(format!("`{name}`: delta"), tensor.is_delta(), base)?;
    let readable = expected["readable"] == Value::Bool(true);
    if !readable {
        let kind = rows(tensor, u16::MAX).map_err(|e| e.kind().name()).err();
        same(format!("`{name}`: error"), kind, Some("unsupported"))?;
    }
    for level in list(expected, "levels") {
        let number = level["level"].as_u64().unwrap_or(u64::MAX) as u16;
        let (values, left_out) = rows(tensor, number)?;
        let values: Vec<Value> = values.into_iter().map(Value::from).collect();
        same(format!("`{name}`: values of level {number}"), values.as_slice(), list(level, "values"))?;
        same(format!("`{name}`: left out"), Some(left_out as u64), level["left_out"].as_u64())?;
    }
    let here = readable && (reference.is_none() || base);
    let exact = here && TensorView::open(tensor, u16::MAX)?.is_exact();
    same(format!("`{name}`: exact"), exact, expected.get("elements").is_some())?;
    if exact {
        let view = TensorView::open(tensor, u16::MAX)?;
        let mut out = vec![0; tensor.elements() as usize * tensor.dtype().bytes()];
        view.read_elements(0..view.rows(), &mut out)?;
        same(format!("`{name}`: elements"), hex(&out).as_str(), text(expected, "elements"))?;
    }
    Ok(())
}

fn check_accept(vector: &Vector) -> Outcome {
    let expected = &vector.expected;
    let archive = Archive::parse(vector.bytes.as_slice(), &Limits::default())?;
    archive.verify()?;
    same("identity", hex(&archive.identity()).as_str(), text(expected, "identity"))?;
    same("tensors", archive.tensors().len(), list(expected, "tensors").len())?;
    for (tensor, expected) in archive.tensors().zip(list(expected, "tensors")) {
        check_tensor(&tensor, expected)?;
    }
    same("attributes", archive.attributes().len(), list(expected, "attributes").len())?;
    for (attribute, expected) in archive.attributes().zip(list(expected, "attributes")) {
        same("attribute", attribute.name(), text(expected, "name"))?;
        same("media type", attribute.media_type(), text(expected, "media_type"))?;
        same(attribute.name(), hex(&attribute.bytes()?).as_str(), text(expected, "bytes"))?;
    }
    same("references", archive.references().len(), list(expected, "references").len())?;
    for (reference, expected) in archive.references().zip(list(expected, "references")) {
        same("reference", reference.name(), text(expected, "name"))?;
        same("kind", format!("{:?}", reference.kind()).to_lowercase().as_str(), text(expected, "kind"))?;
        same("identity", hex(&reference.record().identity).as_str(), text(expected, "identity"))?;
        same("file_bytes", Some(reference.record().file_bytes.get()), expected["file_bytes"].as_u64())?;
    }
    Ok(())
}

/// What reading to the end gives: the stage that failed, and how.
fn outcome(vector: &Vector) -> Option<(&'static str, Error)> {
    let archive = match Archive::parse(vector.bytes.as_slice(), &Limits::default()) {
        Ok(archive) => archive,
        Err(error) => return Some(("parse", error)),
    };
    let expected = &vector.expected;
    if let Some(name) = expected["tensor"].as_str() {
        let error = archive.tensor(name).and_then(|t| rows(&t, u16::MAX).err());
        return error.map(|error| ("decode", error));
    }
    if let Some(name) = expected["attribute"].as_str() {
        let error = archive.attribute(name).and_then(|a| a.bytes().err());
        return error.map(|error| ("decode", error));
    }
    archive.verify().err().map(|error| ("verify", error))
}

fn check_reject(vector: &Vector) -> Outcome {
    let expected = &vector.expected;
    let folder = vector.path.parent().and_then(Path::file_name).and_then(|f| f.to_str());
    same("folder", folder, expected["kind"].as_str())?;
    let (stage, error) = outcome(vector).ok_or("nothing fails")?;
    let found = (stage, error.kind().name());
    same(format!("`{error}`"), found, (text(expected, "fails_at"), text(expected, "kind")))
}

#[test]
fn accept_vectors_hold_what_they_say() -> Outcome {
    each("accept", check_accept)
}

#[test]
fn reject_vectors_fail_as_they_say() -> Outcome {
    each("reject", check_reject)
}

#[test]
fn vectors_say_why_they_exist() -> Outcome {
    for vector in vectors("accept")?.iter().chain(&vectors("reject")?) {
        assert!(text(&vector.expected, "why").len() > 5, "{}", vector.path.display());
    }
    Ok(())
}

#[test]
fn vectors_stay_small() -> Outcome {
    let mut bytes = 0;
    for vector in vectors("accept")?.iter().chain(&vectors("reject")?) {
        bytes += vector.bytes.len() as u64 + fs::metadata(vector.path.with_extension("json"))?.len();
    }
    // About 60 to 120 KB an encoding: what a clone and the replay of all of them bear.
    assert!(bytes < 2_000_000, "{bytes} bytes");
    Ok(())
}

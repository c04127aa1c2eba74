//! Each encoding of the format's table has all that an encoding must have. Forgetting is red.

use cmf_format::ErrorKind;
use cmf_format::encoding::TABLE;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names of the encodings for which `has` is false.
fn missing(has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    TABLE.iter().map(|(_, _, name)| *name).filter(|name| !has(name)).collect()
}

/// Whether a folder below the root has a file whose name begins with `prefix`.
fn has_file(folder: &str, prefix: &str) -> bool {
    fs::read_dir(root().join(folder)).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with(prefix)))
    })
}

#[test]
fn every_encoding_has_a_page() {
    assert_eq!(missing(|name| root().join("spec/encodings").join(format!("{name}.md")).is_file()), [""; 0]);
}

#[test]
fn every_encoding_has_vectors_that_must_be_read() {
    assert_eq!(missing(|name| has_file(&format!("spec/vectors/accept/{name}"), "")), [""; 0]);
}

#[test]
fn every_encoding_has_vectors_that_must_be_refused() {
    assert_eq!(missing(|name| has_file("spec/vectors/reject/structure", &format!("{name}_"))), [""; 0]);
}

#[test]
fn every_encoding_has_a_fuzz_seed() {
    assert_eq!(missing(|name| has_file("fuzz/seeds/decode", name)), [""; 0]);
}

#[test]
fn every_encoding_has_a_bench_row() {
    let names = cmf_benches::names();
    assert_eq!(missing(|name| names.iter().any(|n| n.starts_with(&format!("decode/{name}/")))), [""; 0]);
}

#[test]
fn every_error_kind_of_a_file_has_vectors() {
    // `io` is never the file's fault.
    let kinds = [
        ErrorKind::NotCmf,
        ErrorKind::Truncated,
        ErrorKind::UnsupportedVersion,
        ErrorKind::Unsupported,
        ErrorKind::Limit,
        ErrorKind::Structure,
        ErrorKind::Hash,
        ErrorKind::Value,
        ErrorKind::Argument,
    ];
    let without = |kind: &ErrorKind| !has_file(&format!("spec/vectors/reject/{}", kind.name()), "");
    assert_eq!(kinds.into_iter().filter(without).collect::<Vec<_>>(), []);
}

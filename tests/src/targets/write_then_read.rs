//! Writing: whatever a builder accepts is a valid archive that decodes to what went in, and its
//! bytes depend on nothing but its content.

use super::decode::same;
use super::limits;
use crate::generate::{self, Plan, UNKNOWN};
use crate::naive::{Matrix, Outcome, decoded};
use arbitrary::Unstructured;
use cmf_format::archive::TensorView;
use cmf_format::write::{Content, TensorEntry};
use cmf_format::{Archive, ArchiveBuilder, DType};

/// Builds an archive out of arbitrary bytes, writes, reads and compares it.
pub fn write_then_read(input: &[u8]) {
    let Ok(plan) = generate::plan(&mut Unstructured::new(input)) else { return };
    let written = build(&plan, false).to_vec();
    let reversed = build(&plan, true).to_vec();
    let (bytes, reversed) = match (written, reversed) {
        (Ok(bytes), Ok(reversed)) => (bytes, reversed),
        (Err(_), Err(_)) => return,
        (written, _) => panic!("the order of adding matters: {:?}", written.err()),
    };
    assert!(bytes == reversed, "the order of adding changes the bytes");
    assert!(build(&plan, false).to_vec().is_ok_and(|again| again == bytes), "the bytes change");
    let archive = match Archive::parse(&bytes, &limits()) {
        Ok(archive) => archive,
        Err(error) => panic!("what was written is refused: {error}"),
    };
    if let Err(error) = archive.verify() {
        panic!("what was written does not verify: {error}");
    }
    assert_eq!(archive.tensors().len(), plan.tensors.len());
    for tensor in &plan.tensors {
        compare(&archive, tensor);
    }
    for (name, media_type, segment) in &plan.attributes {
        let found = archive.attribute(name);
        assert_eq!(found.map(|a| a.media_type().to_owned()).as_ref(), Some(media_type));
        let bytes = found.and_then(|a| a.bytes().ok()).map(|b| b.into_owned());
        assert_eq!(bytes, Some(decoded(segment)), "attribute {name}");
    }
}

fn build(plan: &Plan, reversed: bool) -> ArchiveBuilder {
    let mut builder = ArchiveBuilder::new(plan.options);
    let mut tensors: Vec<&TensorEntry> = plan.tensors.iter().collect();
    let mut attributes: Vec<_> = plan.attributes.iter().collect();
    if reversed {
        tensors.reverse();
        attributes.reverse();
    }
    for (name, media_type, segment) in attributes {
        builder.attribute(name, media_type, segment.clone());
    }
    for tensor in tensors {
        builder.tensor(tensor.clone());
    }
    builder
}

/// Decodes a tensor at each level and compares it with sums that the naive decoder makes.
fn compare(archive: &Archive<&Vec<u8>>, entry: &TensorEntry) {
    let Some(tensor) = archive.tensor(&entry.name) else { panic!("`{}` is missing", entry.name) };
    assert_eq!((tensor.dtype(), tensor.shape()), (entry.dtype, entry.shape.clone()));
    let Content::Matrices(matrices) = &entry.content else { return };
    let top = matrices.iter().flat_map(|m| &m.units).map(|u| u.level).max().unwrap_or(0);
    for level in 0..=top {
        let view = match TensorView::open(&tensor, level) {
            Ok(view) => view,
            Err(error) => panic!("`{}` does not open: {error}", entry.name),
        };
        let left_out = view.matrices().iter().map(|m| m.left_out().len()).sum::<usize>();
        let unknown = matrices.iter().flat_map(|m| &m.units).filter(|u| u.level <= level);
        let unknown = unknown.flat_map(|u| &u.terms).filter(|t| t.node.encoding == UNKNOWN).count();
        assert_eq!(left_out, unknown, "terms that are left out");
        let mut out = vec![f32::NAN; view.rows() * view.cols()];
        if let Err(error) = view.decode_rows(0..view.rows(), &mut out) {
            panic!("`{}` does not decode: {error}", entry.name);
        }
        let expected: Outcome<Vec<Vec<f32>>> =
            matrices.iter().map(|m| Matrix::of_entry(m, UNKNOWN)?.values(level)).collect();
        let expected = expected.map(|parts| parts.concat());
        assert!(
            expected.as_ref().is_ok_and(|expected| same(&out, expected)),
            "level {level}: {out:?}, naive: {expected:?}"
        );
        if view.is_exact() && entry.dtype != DType::C64 {
            let mut bytes = vec![0; out.len() * entry.dtype.bytes()];
            let mut again = vec![0.0; out.len()];
            assert!(view.read_elements(0..view.rows(), &mut bytes).is_ok());
            assert!(entry.dtype.decode(&bytes, &mut again).is_ok() && same(&again, &out));
        }
    }
}

//! What `cmf inspect` shows.

mod common;

use cmf_loader::Model;
use common::*;

#[test]
fn encodings_are_named_with_their_children() -> Outcome {
    let (_dir, path) = sample_file()?;
    let model = Model::open(&path)?;
    let summary = model.tensor("levels").ok_or("missing")?.summary()?;
    let terms: Vec<_> = summary.terms.iter().map(|t| (t.encoding.as_str(), t.level, t.count)).collect();
    assert_eq!(
        terms,
        [("grouped(scale=grouped)", 0, 2), ("sparse", 0, 1), ("dense", 1, 2), ("low_rank", 1, 1)]
    );
    assert!(summary.terms.iter().all(|t| t.known && !t.optional));
    Ok(())
}

#[test]
fn bits_per_weight_count_all_side_data_once() -> Outcome {
    let (_dir, path) = sample_file()?;
    let model = Model::open(&path)?;
    let dense = model.tensor("tied.a").ok_or("missing")?.summary()?;
    assert_eq!((dense.stored_bytes, dense.bits_per_weight), (8000, 32.0));
    let empty = model.tensor("empty").ok_or("missing")?.summary()?;
    assert_eq!((empty.stored_bytes, empty.bits_per_weight, empty.terms.len()), (0, 0.0, 0));
    let levels = model.tensor("levels").ok_or("missing")?.summary()?;
    let sum: u64 = levels.terms.iter().map(|t| t.stored_bytes).sum();
    // The two residuals of level 1 are the same bytes, stored once.
    assert_eq!(levels.terms[2].stored_bytes, 2000);
    // The two blocks of level 0 share theirs too, and no segment is in two of the groups.
    assert_eq!(levels.stored_bytes, sum);
    assert_eq!(levels.bits_per_weight, sum as f64 * 8.0 / 2000.0);
    Ok(())
}

#[test]
fn totals_add_up_to_the_payload() -> Outcome {
    let (_dir, path) = sample_file()?;
    let model = Model::open(&path)?;
    let totals = model.totals()?;
    let segments = model.archive().segments().map(|s| s.record().stored_bytes.get());
    let hashes = model.archive().header().chunk_hash_segment.get();
    let hashes = model.archive().segment(hashes).map_or(0, |s| s.record().stored_bytes.get());
    assert_eq!(totals.tensor_bytes + totals.attribute_bytes + hashes, segments.sum::<u64>());
    assert_eq!((totals.files, totals.tensors), (1, model.tensors().len()));
    assert_eq!(totals.file_bytes, model.file_bytes());
    // `tied.a` and `tied.b` are one; `blocks.*`, `experts` and the others are their own.
    assert_eq!(totals.elements, 2000 + 1 + 2000 + 48 * 16 + 15 * 33 + 600 + 3000 + 2000 + 2000);
    Ok(())
}

//! What converters read: safetensors files and indexes, GGUF files, recipes, and archives that are
//! converted again. Whatever is accepted can be read in parts, and what is kept as it is comes
//! back as it was.

use super::decode::same;
use super::file;
use cmf_converters::convert::{ConvertOptions, convert};
use cmf_converters::encode::{self, Matrix, TermParams};
use cmf_converters::error::ErrorKind;
use cmf_converters::gguf::{self, Gguf, ReadAt};
use cmf_converters::recipe::{Recipe, Storage};
use cmf_converters::source::{self, DirectorySource, Source, TensorInfo};
use cmf_format::DType;
use std::hint::black_box;
use std::path::Path;

/// Most elements of a tensor that is read.
const MAX_ELEMENTS: u64 = 1 << 14;
/// Longest file that is converted as a whole.
const MAX_CONVERTED_BYTES: usize = 1 << 13;

/// Reads an input as one of the formats: the first byte says which.
pub fn converters(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 6 {
        0 => in_file(bytes, safetensors),
        1 => gguf(bytes),
        2 => in_file(bytes, |path, bytes| drop(read(path, bytes))),
        3 => recipe(bytes),
        4 => index(bytes),
        _ => {
            let Some(archive) = file(bytes) else { return };
            in_file(&archive, |path, bytes| drop(read(path, bytes)));
        }
    }
}

/// Runs `work` on a file of these bytes.
fn in_file(bytes: &[u8], work: impl FnOnce(&Path, &[u8])) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join("input");
    if std::fs::write(&path, bytes).is_ok() {
        work(&path, bytes);
    }
}

/// Opens a file as whatever it is and reads all of its small tensors.
fn read(path: &Path, bytes: &[u8]) -> Option<Box<dyn Source>> {
    let source = match source::open(path) {
        Ok(source) => source,
        Err(error) => {
            black_box(error.to_string());
            return None;
        }
    };
    let names: Vec<&str> = source.tensors().iter().map(|t| t.name.as_str()).collect();
    assert!(names.is_sorted_by(|a, b| a < b), "names are not ascending: {names:?}");
    black_box(source.attributes().is_ok());
    for (i, tensor) in source.tensors().iter().enumerate() {
        parts(source.as_ref(), i, tensor);
    }
    if bytes.len() <= MAX_CONVERTED_BYTES {
        keep(path, source.as_ref());
    }
    Some(source)
}

/// Elements of a tensor if they are few.
fn elements(tensor: &TensorInfo) -> Option<u64> {
    tensor.elements().filter(|n| *n <= MAX_ELEMENTS)
}

/// A tensor read in two parts is the tensor read as a whole.
fn parts(source: &dyn Source, index: usize, tensor: &TensorInfo) {
    let Some(elements) = elements(tensor) else { return };
    let (mut whole, mut values) = (Vec::new(), Vec::new());
    assert!(source.read_elements(index, 0..elements + 1, &mut whole).is_err(), "reads past the end");
    let outcome = source.read_elements(index, 0..elements, &mut whole);
    let is_exact = source.is_exact(index).unwrap_or(false);
    if outcome.is_err() {
        return;
    }
    assert_eq!(whole.len() as u64, elements * tensor.dtype.bytes() as u64);
    // Whatever matrices a source makes of a tensor, the slices of its first axis are whole rows.
    let run = match tensor.shape.as_slice() {
        [first, _, ..] => elements / (*first).max(1),
        _ => elements,
    };
    let cut = elements / run.max(1) / 2 * run;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let read = source
        .read_elements(index, 0..cut, &mut first)
        .and_then(|()| source.read_elements(index, cut..elements, &mut second));
    match read {
        Ok(()) => assert!([first, second].concat() == whole, "`{}` read in parts differs", tensor.name),
        // An archive may hold the tensor in longer rows.
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "`{}` in parts: {error}", tensor.name),
    }
    // Decoded values are more precise than the elements that they are rounded to.
    if source.read_values(index, 0..elements, &mut values).is_ok() && is_exact {
        let mut decoded = vec![0.0; values.len()];
        let plain = tensor.dtype.decode(&whole, &mut decoded).is_ok();
        assert!(plain && same(&decoded, &values), "values of `{}` are not its elements", tensor.name);
    }
}

/// Converts with everything kept as it is: all elements come back.
fn keep(path: &Path, source: &dyn Source) {
    if source.tensors().iter().any(|t| elements(t).is_none()) {
        return;
    }
    let Ok(recipe) = Recipe::load("keep") else { return };
    let output = path.with_extension("cmf");
    let options = ConvertOptions { jobs: 1, ..ConvertOptions::new(recipe) };
    if let Err(error) = convert(source, &output, &options, &|_| ()) {
        black_box(error.to_string());
        return;
    }
    let converted = match source::open(&output) {
        Ok(converted) => converted,
        Err(error) => panic!("what was converted does not open: {error}"),
    };
    assert_eq!(converted.tensors(), source.tensors());
    for (i, tensor) in source.tensors().iter().enumerate() {
        let Some(elements) = elements(tensor) else { continue };
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let (read, again) = (
            source.read_values(i, 0..elements, &mut before),
            converted.read_values(i, 0..elements, &mut after),
        );
        match (read, again) {
            (Ok(()), Ok(())) => assert!(same(&before, &after), "`{}` is not kept", tensor.name),
            (Err(_), _) => {}
            (Ok(()), Err(error)) => panic!("`{}` cannot be read any more: {error}", tensor.name),
        }
    }
}

/// A safetensors file, which the safetensors crate takes or refuses likewise. What begins as a file
/// of another format is opened as that one.
fn safetensors(path: &Path, bytes: &[u8]) {
    let peer = ::safetensors::SafeTensors::deserialize(bytes);
    let Some(source) = read(path, bytes) else { return };
    if bytes.starts_with(b"GGUF") || source.archive().is_some() {
        return;
    }
    let peer = match peer {
        Ok(peer) => peer,
        Err(error) => panic!("the safetensors crate refuses: {error}"),
    };
    assert_eq!(peer.len(), source.tensors().len());
    for (i, tensor) in source.tensors().iter().enumerate() {
        let Some(elements) = elements(tensor) else { continue };
        let mut found = Vec::new();
        assert!(source.read_elements(i, 0..elements, &mut found).is_ok());
        let expected = peer.tensor(&tensor.name).map(|view| view.data().to_vec());
        assert!(expected.is_ok_and(|expected| expected == found), "`{}` differs", tensor.name);
    }
}

/// The head of a GGUF file, all its values, and the first rows of each tensor: as blocks and as a
/// node they are the same.
fn gguf(bytes: &[u8]) {
    let bytes = bytes.to_vec();
    let found = match Gguf::read(&bytes, &gguf::Limits::default()) {
        Ok(found) => found,
        Err(error) => {
            black_box(error.to_string());
            return;
        }
    };
    black_box(found.metadata().to_json(4).to_string());
    assert_eq!(found.metadata().iter().count(), found.metadata().len());
    for (key, value) in found.metadata().iter() {
        black_box((found.metadata().get(key), value.as_u64()));
    }
    for tensor in found.tensors() {
        assert!(tensor.offset() + tensor.bytes() <= bytes.len() as u64, "`{}` passes the end", tensor.name());
        assert_eq!(tensor.shape().iter().product::<u64>(), tensor.rows() * tensor.cols());
        let rows = tensor.rows().min(3);
        if tensor.cols() > MAX_ELEMENTS || rows == 0 {
            continue;
        }
        let mut blocks = vec![0; (rows * tensor.row_bytes()) as usize];
        assert!(bytes.read_exact_at(tensor.offset(), &mut blocks).is_ok());
        let mut values = vec![0.0; (rows * tensor.cols()) as usize];
        assert!(gguf::decode(tensor.ty(), &blocks, &mut values).is_ok(), "`{}`", tensor.name());
        let node = match gguf::block_node(tensor.ty(), rows, tensor.cols(), &blocks) {
            Ok(node) => node,
            Err(error) => panic!("`{}` makes no node: {error}", tensor.name()),
        };
        let mut again = vec![0.0; values.len()];
        let decoded = node.view().and_then(|view| view.decode_rows(0..rows as usize, &mut again));
        assert!(decoded.is_ok() && same(&values, &again), "`{}` of {:?} differs", tensor.name(), tensor.ty());
    }
}

/// A recipe, which survives being written out, and whose terms encode a small matrix.
fn recipe(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    let recipe = match Recipe::from_toml(text) {
        Ok(recipe) => recipe,
        Err(error) => {
            black_box(error.to_string());
            return;
        }
    };
    match recipe.to_toml().map(|text| Recipe::from_toml(&text)) {
        Ok(Ok(again)) => assert_eq!(format!("{again:?}"), format!("{recipe:?}")),
        outcome => panic!("a recipe does not survive: {outcome:?}"),
    }
    let tensor = TensorInfo { name: "layers.0.weight".into(), dtype: DType::F32, shape: vec![6, 32] };
    let Storage::Terms(rule) = recipe.storage_of(&tensor) else { return };
    // Large codebooks and many iterations are slow, which their author asked for.
    let small = |term: &TermParams| match term {
        TermParams::Codebook(own) => own.bits <= 6 && own.codebooks <= 3,
        _ => true,
    };
    let values = crate::samples::pattern(6 * 32);
    if let Ok(matrix) = Matrix::new(&values, 6, 32)
        && rule.terms.iter().all(small)
        && let Ok(nodes) = encode::terms(&matrix, &rule.terms)
    {
        for node in &nodes {
            assert_eq!((node.rows, node.cols), (6, 32));
            let decoded = encode::decode(node);
            assert!(decoded.is_ok(), "what was encoded does not decode: {decoded:?}");
        }
    }
}

/// An index of shards beside two shards.
fn index(bytes: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let shard = |name: &str| {
        let header = format!("{{\"{name}\":{{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}}}");
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1, 2]].concat()
    };
    let path = folder.path().join("model.safetensors.index.json");
    let written = [("a", "1.safetensors"), ("b", "2.safetensors")]
        .iter()
        .all(|(tensor, file)| std::fs::write(folder.path().join(file), shard(tensor)).is_ok())
        && std::fs::write(&path, bytes).is_ok();
    if !written {
        return;
    }
    match DirectorySource::open_index(&path) {
        Ok(source) => {
            for (i, tensor) in source.tensors().iter().enumerate() {
                assert!(matches!(tensor.name.as_str(), "a" | "b"), "`{}` is nowhere", tensor.name);
                parts(&source, i, tensor);
            }
        }
        Err(error) => {
            black_box(error.to_string());
        }
    }
}

//! Hugging Face directories and sharded safetensors indexes.

use super::{AttributeFile, CmfSource, InputFile, SafetensorsFile, Source, SourceFormat, TensorInfo, files};
use crate::error::{Error, Result};
use cmf_format::NodeData;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// Endings of weights that a directory may hold instead.
const OTHER_WEIGHTS: [&str; 8] = [".gguf", ".cmf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx"];
/// Largest index that is read.
const INDEX_LIMIT_BYTES: u64 = 100_000_000;

/// The safetensors files of a directory as one model.
#[derive(Debug)]
pub struct DirectorySource {
    directory: PathBuf,
    parts: Vec<SafetensorsFile>,
    tensors: Vec<TensorInfo>,
    /// Part of each tensor and its place there.
    places: Vec<(usize, usize)>,
    inputs: Vec<InputFile>,
    /// Whether the directory's other files travel along.
    carries_files: bool,
}

impl DirectorySource {
    /// Opens a directory: by its `*.safetensors.index.json` if there is one, else all its
    /// safetensors files.
    ///
    /// # Errors
    /// `Io`; `BadFile` when files and index do not agree or a tensor comes twice; `Unsupported`
    /// for a directory without safetensors files.
    pub fn open(directory: &Path) -> Result<Self> {
        let failed = |e| Error::io("cannot be read", e).file(directory);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        if let Some(index) = names.iter().find(|n| n.ends_with(".safetensors.index.json")) {
            return Self::from_index(&directory.join(index), true);
        }
        let other = names.iter().find(|name| OTHER_WEIGHTS.iter().any(|end| name.ends_with(end))).cloned();
        names.retain(|name| name.ends_with(".safetensors"));
        // A model saved twice, whole and as consolidated shards, is still one model.
        if names.iter().any(|n| n == "model.safetensors") {
            names.retain(|n| n == "model.safetensors");
        }
        if names.is_empty() {
            let error = Error::unsupported("weights").file(directory).expected(".safetensors files");
            return Err(match other {
                Some(name) if name.ends_with(".gguf") || name.ends_with(".cmf") => {
                    error.found(format_args!("{name}: name that file instead of the directory"))
                }
                Some(name) => error.found(name),
                None => error,
            });
        }
        Self::from_parts(directory, &names, None, true)
    }

    /// Opens the shards that an index file names; they lie beside it.
    ///
    /// # Errors
    /// As [`DirectorySource::open`].
    pub fn open_index(path: &Path) -> Result<Self> {
        Self::from_index(path, true)
    }

    fn from_index(path: &Path, carries_files: bool) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let metadata = std::fs::metadata(path).map_err(|e| Error::io("cannot be read", e).file(path))?;
        if metadata.len() > INDEX_LIMIT_BYTES {
            return Err(Error::limit("index length").file(path).found(metadata.len()));
        }
        let text = std::fs::read(path).map_err(|e| Error::io("cannot be read", e).file(path))?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|e| Error::bad_file(format!("index: {e}")).file(path).caused_by(e))?;
        let names: BTreeSet<_> = index.weight_map.values().cloned().collect();
        for name in &names {
            let mut components = Path::new(name).components();
            let bare = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
            if !bare || name.contains(['/', '\\']) {
                return Err(Error::bad_file(format!(
                    "shard `{}` is not a bare file name",
                    name.escape_debug()
                ))
                .file(path));
            }
        }
        let directory = path.parent().unwrap_or(Path::new("."));
        let names: Vec<_> = names.into_iter().collect();
        Self::from_parts(directory, &names, Some((path, &index.weight_map)), carries_files)
    }

    fn from_parts(
        directory: &Path,
        names: &[String],
        index: Option<(&Path, &BTreeMap<String, String>)>,
        carries_files: bool,
    ) -> Result<Self> {
        let parts = names
            .iter()
            .map(|name| SafetensorsFile::open(&directory.join(name)))
            .collect::<Result<Vec<_>>>()?;
        let mut all = BTreeMap::new();
        for (p, (part, file)) in parts.iter().zip(names).enumerate() {
            for (t, tensor) in part.tensors().iter().enumerate() {
                if let Some((path, map)) = index
                    && map.get(&tensor.name) != Some(file)
                {
                    let found = map.get(&tensor.name).map_or("no shard", String::as_str);
                    return Err(Error::bad_file("index")
                        .file(path)
                        .tensor(&tensor.name)
                        .expected(file)
                        .found(found));
                }
                if all.insert(tensor.name.clone(), (p, t)).is_some() {
                    return Err(Error::bad_file("is in two files")
                        .file(directory.join(file))
                        .tensor(&tensor.name));
                }
            }
        }
        if let Some((path, map)) = index
            && let Some((name, shard)) = map.iter().find(|(name, _)| !all.contains_key(*name))
        {
            return Err(Error::bad_file("index names a tensor that its shard does not hold")
                .file(path)
                .tensor(name)
                .expected(shard));
        }
        let places: Vec<_> = all.into_values().collect();
        let tensors = places.iter().filter_map(|(p, t)| parts.get(*p)?.tensors().get(*t).cloned()).collect();
        let inputs = parts.iter().flat_map(|p| p.inputs().iter().cloned()).collect();
        Ok(Self { directory: directory.to_path_buf(), parts, tensors, places, inputs, carries_files })
    }

    fn place(&self, index: usize) -> Result<(&SafetensorsFile, usize)> {
        self.places
            .get(index)
            .and_then(|(part, tensor)| Some((self.parts.get(*part)?, *tensor)))
            .ok_or_else(|| Error::bad_argument(format!("tensor index {index}")).file(&self.directory))
    }
}

impl Source for DirectorySource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_elements(&self, index: usize, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let (part, tensor) = self.place(index)?;
        part.read_elements(tensor, range, out)
    }

    fn read_values(&self, index: usize, range: Range<u64>, out: &mut Vec<f32>) -> Result<()> {
        let (part, tensor) = self.place(index)?;
        part.read_values(tensor, range, out)
    }

    fn native_nodes(&self, _: usize, _: Range<u64>, _: u64, _: u64) -> Result<Option<Vec<NodeData>>> {
        Ok(None)
    }

    fn archive(&self) -> Option<&CmfSource> {
        None
    }

    fn is_exact(&self, _: usize) -> Result<bool> {
        Ok(true)
    }

    fn attributes(&self) -> Result<Vec<AttributeFile>> {
        let mut found = match self.carries_files {
            true => files::carried(&self.directory)?,
            false => Vec::new(),
        };
        // The shards of one model state the same metadata; the first speaks for all.
        if let Some(part) = self.parts.first() {
            found.extend(part.attributes()?);
        }
        Ok(found)
    }

    fn inputs(&self) -> &[InputFile] {
        &self.inputs
    }

    fn format(&self) -> SourceFormat {
        SourceFormat::Safetensors
    }
}

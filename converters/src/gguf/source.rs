//! A GGUF model: one file, or all files of a split one.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::Limits;
use super::metadata::Metadata;
use super::read_at::ReadAt;
use super::reader::{Gguf, TensorInfo};
use crate::error::{Error, Result};

/// The files of a model, opened and checked, and the directory of all tensors in them.
#[derive(Debug)]
pub struct GgufSource {
    parts: Vec<Part>,
    /// Part and place in it of each tensor.
    tensors: Vec<(usize, usize)>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
    gguf: Gguf,
}

/// What the `split.` keys of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Split {
    number: u64,
    count: u64,
    tensors: Option<u64>,
}

impl GgufSource {
    /// Opens a model within the default [`Limits`].
    ///
    /// # Errors
    /// As [`GgufSource::open_within`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_within(path, &Limits::default())
    }

    /// Opens a model. Of a split one, `path` is the first file; the others lie beside it.
    ///
    /// # Errors
    /// As [`Gguf::read`]; `BadArgument` for a later file of a split model; `BadFile` if the files
    /// do not belong together or a tensor is in two of them.
    pub fn open_within(path: impl AsRef<Path>, limits: &Limits) -> Result<Self> {
        let path = path.as_ref();
        let first = Part::open(path.to_path_buf(), limits)?;
        let split = first.split();
        let mut parts = vec![first];
        if split.count > 1 {
            if split.number != 0 {
                return Err(Error::bad_argument("file of a split model")
                    .file(path)
                    .expected("the first one")
                    .found(format!("number {} of {}", split.number.saturating_add(1), split.count)));
            }
            for number in 1..split.count {
                let part = Part::open(sibling(path, number, split.count)?, limits)?;
                part.check_split(Split { number, tensors: part.split().tensors, ..split })?;
                parts.push(part);
            }
        }
        let source = Self::index(parts)?;
        match split.tensors {
            Some(tensors) if split.count > 1 && tensors != source.len() as u64 => {
                Err(Error::bad_file("split.tensors.count").file(path).expected(source.len()).found(tensors))
            }
            _ => Ok(source),
        }
    }

    fn index(parts: Vec<Part>) -> Result<Self> {
        let mut tensors = Vec::new();
        let mut by_name = HashMap::new();
        for (number, part) in parts.iter().enumerate() {
            for (place, tensor) in part.gguf.tensors().iter().enumerate() {
                if by_name.insert(tensor.name().to_owned(), tensors.len()).is_some() {
                    return Err(Error::bad_file("in two files of the model")
                        .file(&part.path)
                        .tensor(tensor.name()));
                }
                tensors.push((number, place));
            }
        }
        Ok(Self { parts, tensors, by_name })
    }

    /// Metadata of the first file, where a split model has all of it.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.parts.first().map(|part| part.gguf.metadata())
    }

    /// The files and their heads.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&Path, &Gguf)> {
        self.parts.iter().map(|part| (part.path.as_path(), &part.gguf))
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// All tensors, in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter().filter_map(|&(part, place)| self.parts.get(part)?.gguf.tensors().get(place))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.locate(name).map(|(_, tensor)| tensor)
    }

    /// The file that holds the tensor of this name.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.locate(name).map(|(part, _)| part.path.as_path())
    }

    /// Reads the stored bytes of a range of rows of the tensor seen as a matrix; they replace what
    /// is in `out`. May be called by many threads.
    ///
    /// # Errors
    /// `BadArgument` for an unknown name or rows that the tensor does not have, `Limit` if the rows
    /// do not fit in memory, `Io`.
    pub fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let Some((part, tensor)) = self.locate(name) else {
            return Err(Error::bad_argument("no such tensor in the model").tensor(name));
        };
        let context = |error: Error| error.file(&part.path).tensor(name);
        let count =
            rows.end.checked_sub(rows.start).filter(|_| rows.end <= tensor.rows()).ok_or_else(|| {
                context(
                    Error::bad_argument("rows")
                        .expected(format!("a range inside 0..{}", tensor.rows()))
                        .found(format!("{rows:?}")),
                )
            })?;
        // Products of numbers below those whose product was checked when the file was opened.
        let bytes = count.saturating_mul(tensor.row_bytes());
        let start = tensor.offset().saturating_add(rows.start.saturating_mul(tensor.row_bytes()));
        let too_large = || context(Error::limit("rows do not fit in memory").found(format!("{bytes} bytes")));
        let len = usize::try_from(bytes).map_err(|_| too_large())?;
        out.clear();
        out.try_reserve_exact(len).map_err(|_| too_large())?;
        out.resize(len, 0);
        part.file
            .read_exact_at(start, out)
            .map_err(|error| context(Error::io("cannot read rows", error).at(start)))
    }

    fn locate(&self, name: &str) -> Option<(&Part, &TensorInfo)> {
        let &(part, place) = self.tensors.get(*self.by_name.get(name)?)?;
        let part = self.parts.get(part)?;
        Some((part, part.gguf.tensors().get(place)?))
    }
}

impl Part {
    fn open(path: PathBuf, limits: &Limits) -> Result<Self> {
        let file = File::open(&path).map_err(|error| Error::io("cannot open the file", error).file(&path))?;
        let gguf = Gguf::read(&file, limits).map_err(|error| error.file(&path))?;
        Ok(Self { path, file, gguf })
    }

    fn split(&self) -> Split {
        let number = |key| self.gguf.metadata().get(key).and_then(|value| value.as_u64());
        Split {
            number: number("split.no").unwrap_or(0),
            count: number("split.count").unwrap_or(1),
            tensors: number("split.tensors.count"),
        }
    }

    fn check_split(&self, expected: Split) -> Result<()> {
        let found = self.split();
        if found == expected {
            return Ok(());
        }
        let say = |split: Split| format!("file {} of {}", split.number.saturating_add(1), split.count);
        Err(Error::bad_file("split").file(&self.path).expected(say(expected)).found(say(found)))
    }
}

/// The path of another file of a split model: `NAME-00001-of-00003.gguf` with its own number.
fn sibling(first: &Path, number: u64, count: u64) -> Result<PathBuf> {
    let suffix = |number: u64| format!("-{:05}-of-{count:05}.gguf", number.saturating_add(1));
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name.strip_suffix(&suffix(0)) {
        Some(stem) => Ok(first.with_file_name(format!("{stem}{}", suffix(number)))),
        None => Err(Error::bad_file("name of the first file of a split model")
            .file(first)
            .expected(format!("`*{}`", suffix(0)))),
    }
}

//! Dense weights of every format that conversion reads.

use crate::card::Card;
use crate::error::{Error, Result};
use crate::weights::{DenseValues, missing};
use cmf_converters::source::{self, Source};
use std::path::{Path, PathBuf};

/// A model of any format: a Hugging Face directory, safetensors, GGUF or `.cmf` at its best.
pub struct AnyModel {
    path: PathBuf,
    source: Box<dyn Source>,
}

impl AnyModel {
    /// Opens what `path` is.
    ///
    /// # Errors
    /// What [`source::open`] gives.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), source: source::open(path)? })
    }

    /// The file called `name` that travels with the model.
    ///
    /// # Errors
    /// `Io`.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let found = self.source.attributes()?.into_iter().find(|file| file.name == name);
        Ok(found.map(|file| file.bytes))
    }

    /// Its configuration, tokenizer and chat template.
    ///
    /// # Errors
    /// As [`Card::read`].
    pub fn card(&self) -> Result<Card> {
        Card::read(&|name| self.file(name), &|name| self.shape(name))
            .map_err(|e| Error::new(e.kind(), format!("{}: {e}", self.path.display())))
    }

    /// Says which files it is read from, and in which state: name, length and time of each.
    pub fn fingerprint(&self) -> String {
        self.source.inputs().iter().map(|f| format!("{:?} {} {}\n", f.path, f.bytes, f.modified_ns)).collect()
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.source.tensors().binary_search_by(|t| t.name.as_str().cmp(name)).ok()
    }
}

impl DenseValues for AnyModel {
    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        Some(self.source.tensors().get(self.index(name)?)?.shape.clone())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let index = self.index(name).ok_or_else(|| missing(name))?;
        let elements = self.source.tensors().get(index).and_then(|t| t.elements()).unwrap_or(0);
        let mut values = Vec::new();
        self.source.read_values(index, 0..elements, &mut values)?;
        Ok(values)
    }
}

//! Shards and bases: other files of the same model.

use crate::error::{Error, Result};
use crate::model::Model;
use crate::open::open;
use crate::source::FileSource;

pub use cmf_format::archive::ReferenceKind;

/// How many files may be between a tensor and the file that was opened. References cannot form a
/// circle, since each states the hash of the other's header, but they can form a long chain.
const CHAIN_FILES: u32 = 16;

/// Another file that a file refers to.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'m> {
    pub(crate) model: &'m Model,
    pub(crate) record: cmf_format::archive::Reference<'m, FileSource>,
}

impl<'m> Reference<'m> {
    /// Bare file name.
    pub fn name(&self) -> &'m str {
        self.record.name()
    }

    /// Why it is referred to.
    pub fn kind(&self) -> ReferenceKind {
        self.record.kind()
    }

    /// The identity that it must have.
    pub fn identity(&self) -> [u8; 32] {
        self.record.record().identity
    }

    /// The length that it must have.
    pub fn file_bytes(&self) -> u64 {
        self.record.record().file_bytes.get()
    }

    /// Opens the file, or gives it when it is open already.
    ///
    /// # Errors
    /// `Reference` when it is missing, is no regular file, cannot be opened, or has not the stated
    /// length and identity.
    pub fn open(&self) -> Result<&'m Model> {
        let model = self.model;
        let cell = model.referred.get(self.record.index() as usize);
        let cell = cell.ok_or_else(|| self.error("is not in the archives table".into()))?;
        match cell.get() {
            Some(opened) => Ok(opened),
            None => {
                let opened = self.open_new()?;
                Ok(cell.get_or_init(|| opened))
            }
        }
    }

    fn open_new(&self) -> Result<Model> {
        let model = self.model;
        if model.chain_files >= CHAIN_FILES {
            return Err(self.error(format!("files refer to each other more than {CHAIN_FILES} deep")));
        }
        let elsewhere = model.options.references.get(self.name());
        let (path, file) = match (elsewhere, &model.directory) {
            (Some(path), _) => (path.clone(), open(path)),
            (None, Some(directory)) => (directory.path_of(self.name()), directory.open(self.name())),
            (None, None) => return Err(self.error("has no directory to be found in".into())),
        };
        let opened = file
            .map_err(|e| Error::io(&path, e))
            .and_then(|file| Model::from_file(file, &path, &model.options, model.chain_files + 1))
            .map_err(|e| Error::in_reference(model.path(), self.called(), e))?;
        let found = opened.file_bytes();
        if found != self.file_bytes() {
            return Err(self.error(format!("expected {} bytes, found {found}", self.file_bytes())));
        }
        if opened.identity() != self.identity() {
            let (expected, found) = (hex(&self.identity()), hex(&opened.identity()));
            return Err(self.error(format!("expected identity {expected}, found {found}")));
        }
        Ok(opened)
    }

    /// An error about this reference.
    pub(crate) fn error(&self, problem: String) -> Error {
        Error::reference(self.model.path(), self.called(), problem)
    }

    fn called(&self) -> String {
        let kind = match self.kind() {
            ReferenceKind::Shard => "shard",
            ReferenceKind::Base => "base",
        };
        format!("{kind} `{}`", self.name())
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

//! An open model.

use crate::attribute::Attribute;
use crate::error::{Error, Result};
use crate::open::{Backend, Directory, OpenOptions, open};
use crate::plan::{Budget, Plan, Schedule, Want};
use crate::references::{Reference, ReferenceKind};
use crate::source::FileSource;
use crate::tensor::Tensor;
use cmf_format::Archive;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// An open `.cmf` and the files that it refers to.
///
/// It is shared between threads by reference; nothing in it changes but that shards are opened.
#[derive(Debug)]
pub struct Model {
    archive: Archive<FileSource>,
    pub(crate) options: OpenOptions,
    /// Where shards and bases are found; `None` when there are none.
    pub(crate) directory: Option<Directory>,
    /// One for each record of the archives table.
    pub(crate) referred: Vec<OnceLock<Model>>,
    schedule: OnceLock<Schedule>,
    /// Files between this one and the one that was opened by path.
    pub(crate) chain_files: u32,
}

impl Model {
    /// Opens and maps the file at `path`: its header and directory are read and checked, its
    /// payload is not touched.
    ///
    /// The file must not be written to while it is open, see the
    /// [crate's documentation](crate#files-that-change).
    ///
    /// # Errors
    /// `Io` when it cannot be opened, `Format` when it is not an archive that this reader takes:
    /// the error says what it is when that is known.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// Opens the file at `path` as `options` say.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let file = open(path).map_err(|e| Error::io(path, e))?;
        Self::from_file(file, path, options, 0)
    }

    pub(crate) fn from_file(
        file: File,
        path: &Path,
        options: &OpenOptions,
        chain_files: u32,
    ) -> Result<Self> {
        let source = FileSource::new(file, path, options.backend, &options.limits)?;
        Self::from_source(source, options, chain_files)
    }

    /// Opens a file that is in memory: embedded in a program, or come by any way. `name` is what it is called
    /// in errors, and where shards and bases are looked for that [`OpenOptions::references`] does not name.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_bytes(
        bytes: impl Into<Arc<[u8]>>,
        name: impl AsRef<Path>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let source = FileSource::of_bytes(bytes.into(), name.as_ref(), &options.limits)?;
        Self::from_source(source, options, 0)
    }

    fn from_source(source: FileSource, options: &OpenOptions, chain_files: u32) -> Result<Self> {
        let path = source.path().to_owned();
        let path = path.as_path();
        let archive = Archive::parse(source, &options.limits).map_err(|e| Error::format(path, e))?;
        archive.source().check_open_file()?;
        let references = archive.references().len();
        let directory = match references {
            0 => None,
            _ => Some(Directory::of(path).map_err(|e| Error::io(path, e))?),
        };
        let referred = (0..references).map(|_| OnceLock::new()).collect();
        Ok(Self {
            archive,
            options: options.clone(),
            directory,
            referred,
            schedule: OnceLock::new(),
            chain_files,
        })
    }

    /// The checked directory of this file.
    pub fn archive(&self) -> &Archive<FileSource> {
        &self.archive
    }

    pub(crate) fn source(&self) -> &FileSource {
        self.archive.source()
    }

    /// The path that the file was opened by.
    pub fn path(&self) -> &Path {
        self.source().path()
    }

    /// How bytes are reached.
    pub fn backend(&self) -> Backend {
        self.source().backend()
    }

    /// Length of this file.
    pub fn file_bytes(&self) -> u64 {
        self.archive.header().file_bytes.get()
    }

    /// The archive's identity: BLAKE3 of its header, which covers every byte of the file.
    pub fn identity(&self) -> [u8; 32] {
        self.archive.identity()
    }

    /// The order of the units of this file and its shards, which are opened, with the bytes that each
    /// prefix takes. A base counts in full. Made at the first call.
    ///
    /// # Errors
    /// `Reference` when a shard or base is missing or not the one that is referred to.
    pub fn schedule(&self) -> Result<&Schedule> {
        if let Some(schedule) = self.schedule.get() {
            return Ok(schedule);
        }
        let schedule = self.make_schedule(None)?;
        Ok(self.schedule.get_or_init(|| schedule))
    }

    /// [`Model::schedule`] of a part of the model, or with a part that is held always: `want` says of
    /// each tensor by name what is wanted of it. States no losses: those of the file are for its own
    /// order.
    ///
    /// # Errors
    /// As [`Model::schedule`].
    pub fn schedule_for(&self, want: &dyn Fn(&str) -> Want) -> Result<Schedule> {
        self.make_schedule(Some(want))
    }

    fn make_schedule(&self, want: Option<&dyn Fn(&str) -> Want>) -> Result<Schedule> {
        let mut files = vec![&self.archive];
        let (mut fixed_bytes, mut fixed_elements) = (0u64, 0u64);
        for reference in self.references() {
            let model = reference.open()?;
            match reference.kind() {
                ReferenceKind::Shard => files.push(&model.archive),
                ReferenceKind::Base => {
                    let base = model.schedule()?;
                    fixed_bytes = fixed_bytes.saturating_add(base.maximum_bytes());
                    fixed_elements = fixed_elements.saturating_add(base.elements());
                }
            }
        }
        Ok(Schedule::of_files(files, fixed_bytes, fixed_elements, want))
    }

    /// The plan for a budget: the longest prefix of [`Model::schedule`] that fits.
    ///
    /// # Errors
    /// `Argument` when the budget is below the minimum, which the error names; as
    /// [`Model::schedule`].
    pub fn plan(&self, budget: Budget) -> Result<Plan> {
        self.schedule()?.plan(budget).map_err(|e| Error::budget(self.path(), e))
    }

    /// All tensors, ascending in name, those in shards included.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.archive.tensors().map(|record| Tensor { model: self, record })
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.archive.tensor(name).map(|record| Tensor { model: self, record })
    }

    pub(crate) fn expect_tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.tensor(name).ok_or_else(|| {
            Error::argument(self.path(), format!("tensor `{}`", name.escape_debug()), "is not there".into())
        })
    }

    /// All attributes, ascending in name.
    pub fn attributes(&self) -> impl ExactSizeIterator<Item = Attribute<'_>> {
        self.archive.attributes().map(|record| Attribute { source: self.source(), record })
    }

    /// The attribute called `name`.
    pub fn attribute(&self, name: &str) -> Option<Attribute<'_>> {
        self.archive.attribute(name).map(|record| Attribute { source: self.source(), record })
    }

    /// The shards and bases that this file refers to, ascending in name.
    pub fn references(&self) -> impl ExactSizeIterator<Item = Reference<'_>> {
        self.archive.references().map(|record| Reference { model: self, record })
    }

    /// Checks that this file was not cut, written to, replaced or removed since it was opened.
    ///
    /// A file that was replaced by renaming another over it can still be read: it is the old one.
    ///
    /// # Errors
    /// `Changed` when it was, `Io` when the system does not say.
    pub fn check_unchanged(&self) -> Result<()> {
        self.source().check_unchanged()
    }
}

//! The bytes of one open file, from a map or read on demand.

use crate::error::{Error, Result};
use crate::mmap::Map;
use crate::open::Backend;
use crate::positional::read_exact_at;
use crate::resident::Runs;
use crate::stamp::Stamp;
use cmf_format::{Archive, ErrorKind, Limits, Source};
use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, PoisonError, RwLock};

type FormatError = cmf_format::Error;

/// What is read at once when a file is opened: header and directory of a small model.
const FIRST_READ_BYTES: u64 = 64 * 1024;
/// Most bytes that [`Source::visit`] reads in one go: a buffer that stays in the cache.
const VISIT_READ_BYTES: u64 = 64 * 1024;
/// Most bytes of the map that it brings in at once.
const VISIT_MAP_BYTES: u64 = 1 << 20;

thread_local! {
    static VISIT_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An open file that archives are parsed from.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    /// `path` whatever the working directory becomes.
    absolute: PathBuf,
    file: File,
    stamp: Stamp,
    /// Most bytes that are read into memory at once.
    limit_bytes: u64,
    /// Header and directory, in memory of this process: what is checked once stays checked.
    head: Vec<u8>,
    /// The whole file, with [`Backend::Mmap`].
    map: Option<Map>,
    /// What a [`Resident`](crate::Resident) holds, with [`Backend::Pread`].
    owned: OnceLock<Owned>,
    /// Bytes that were read, as far as this process can count them.
    read_bytes: AtomicU64,
}

/// Pages of the file in memory of this process.
#[derive(Debug)]
struct Owned {
    /// The place where they are put. Its other pages are those of the file, and are not touched.
    map: Map,
    runs: RwLock<Runs>,
}

impl Owned {
    fn covers(&self, range: &Range<u64>) -> bool {
        self.runs.read().unwrap_or_else(PoisonError::into_inner).covers(range)
    }
}

impl FileSource {
    /// Reads header and directory of `file`, and maps it; `path` is what it is called in errors.
    pub(crate) fn new(file: File, path: &Path, backend: Backend, limits: &Limits) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            let found = if metadata.is_dir() { "a directory" } else { "neither file nor directory" };
            let problem = format!("expected a file, found {found}");
            return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, problem)));
        }
        let stamp = Stamp::of(&metadata);
        let size = |bytes: u64| {
            usize::try_from(bytes).map_err(|_| {
                let problem = format!("{bytes} bytes do not fit the address space");
                Error::format(path, FormatError::new(ErrorKind::Limit, "file", problem))
            })
        };
        let mut head = vec![0; size(FIRST_READ_BYTES.min(stamp.bytes))?];
        read_exact_at(&file, &mut head, 0).map_err(io)?;
        let head_bytes = Archive::<FileSource>::head_bytes(&head, stamp.bytes, limits)
            .map_err(|e| Error::format(path, e))?;
        // A new buffer is zero without being written to; growing the old one would write it twice.
        let mut whole = vec![0; size(head_bytes)?];
        let read = head.get(..head.len().min(whole.len())).unwrap_or(&[]);
        let (start, rest) = whole.split_at_mut(read.len());
        start.copy_from_slice(read);
        read_exact_at(&file, rest, read.len() as u64).map_err(io)?;
        let map = match backend {
            Backend::Mmap => Some(Map::new(&file, size(stamp.bytes)?).map_err(io)?),
            Backend::Pread => None,
        };
        let limit_bytes = limits.decoded_segment_bytes;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (owned, read_bytes) = (OnceLock::new(), AtomicU64::new(0));
        Ok(Self {
            path: path.to_owned(),
            absolute,
            file,
            stamp,
            limit_bytes,
            head: whole,
            map,
            owned,
            read_bytes,
        })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which backend reads it.
    pub fn backend(&self) -> Backend {
        match self.map {
            Some(_) => Backend::Mmap,
            None => Backend::Pread,
        }
    }

    /// Bytes `range`, borrowed from the map or from what is held; `None` without either.
    pub(crate) fn mapped(&self, range: Range<u64>) -> Option<&[u8]> {
        let bytes = match &self.map {
            Some(map) => map.bytes(),
            None => self.owned.get().filter(|owned| owned.covers(&range))?.map.bytes(),
        };
        bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }

    /// Bytes that were read from the file so far: by [`FileSource::hold`], and with
    /// [`Backend::Pread`] by everything else but opening. What a map brings in when it is touched is
    /// not counted.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Prepares for [`FileSource::hold`].
    pub(crate) fn prepare(&self) -> cmf_format::Result<()> {
        if self.map.is_some() || self.owned.get().is_some() {
            return Ok(());
        }
        if cfg!(not(target_os = "linux")) {
            let problem = "pages of a file that is not mapped can be held on Linux only";
            return Err(FormatError::new(ErrorKind::Unsupported, "file", problem));
        }
        let bytes = usize::try_from(self.stamp.bytes).unwrap_or(usize::MAX);
        let map = Map::new(&self.file, bytes).map_err(|e| failed(0, e))?;
        let _ = self.owned.set(Owned { map, runs: RwLock::default() });
        Ok(())
    }

    /// Makes the pages of `range` resident, which begins and ends with a page or beyond the file.
    pub(crate) fn hold(&self, range: Range<u64>) -> cmf_format::Result<()> {
        let (range, place) = self.place(range)?;
        let bytes = range.end.saturating_sub(range.start);
        self.check_length(range.start)?;
        let result = match (&self.map, self.owned.get()) {
            (Some(map), _) => map.hold(place),
            (None, Some(owned)) => self.own(owned, range.clone(), place),
            (None, None) => return Ok(()),
        };
        result.map_err(|e| failed(range.start, e))?;
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the memory of the pages of `range` back, which begins and ends as for
    /// [`FileSource::hold`].
    pub(crate) fn release(&self, range: Range<u64>) -> cmf_format::Result<()> {
        let (range, place) = self.place(range)?;
        let result = match (&self.map, self.owned.get()) {
            (Some(map), _) => map.release(place),
            (None, Some(owned)) => self.disown(owned, range.clone(), place),
            (None, None) => return Ok(()),
        };
        result.map_err(|e| failed(range.start, e))
    }

    /// Leaves it to the system again which pages are in memory.
    pub(crate) fn forget(&self) {
        let _ = match (&self.map, self.owned.get()) {
            (Some(map), _) => map.forget(),
            (None, Some(_)) => return drop(self.release(0..self.stamp.bytes)),
            (None, None) => Ok(()),
        };
    }

    #[cfg(target_os = "linux")]
    fn own(&self, owned: &Owned, range: Range<u64>, place: Range<usize>) -> std::io::Result<()> {
        owned.map.own(place, |out| read_exact_at(&self.file, out, range.start))?;
        let mut runs = owned.runs.write().unwrap_or_else(PoisonError::into_inner);
        let mut more = Runs::default();
        more.push(range);
        *runs = runs.plus(&more);
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn disown(&self, owned: &Owned, range: Range<u64>, place: Range<usize>) -> std::io::Result<()> {
        // First nothing is borrowed from there any more.
        let mut less = Runs::default();
        less.push(range);
        let mut runs = owned.runs.write().unwrap_or_else(PoisonError::into_inner);
        *runs = runs.minus(&less);
        owned.map.disown(place, &self.file)
    }

    #[cfg(not(target_os = "linux"))]
    fn own(&self, _: &Owned, _: Range<u64>, _: Range<usize>) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    #[cfg(not(target_os = "linux"))]
    fn disown(&self, _: &Owned, _: Range<u64>, _: Range<usize>) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// `range` as far as the file goes, also as places in memory.
    fn place(&self, range: Range<u64>) -> cmf_format::Result<(Range<u64>, Range<usize>)> {
        let end = range.end.min(self.stamp.bytes);
        let range = range.start.min(end)..end;
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) => Ok((range, start..end)),
            _ => Err(FormatError::new(ErrorKind::Limit, "file", "does not fit the address space")),
        }
    }

    /// Fills `out` from `offset` on.
    pub(crate) fn read_into(&self, offset: u64, out: &mut [u8]) -> cmf_format::Result<()> {
        let range = self.range(offset, out.len() as u64)?;
        if let Some(bytes) = self.mapped(range) {
            self.check_length(offset)?;
            out.copy_from_slice(bytes);
            return Ok(());
        }
        self.read_at(out, offset)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> cmf_format::Result<()> {
        self.read_bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        read_exact_at(&self.file, out, offset).map_err(|e| failed(offset, e))
    }

    /// An error of this file: of kind `Changed` when reading failed and the file is another one
    /// than it was.
    pub(crate) fn error(&self, error: FormatError) -> Error {
        if error.kind() == ErrorKind::Io && self.change().is_some() {
            return Error::changed_while(&self.path, error);
        }
        Error::format(&self.path, error)
    }

    /// Whether the open file, wherever it is now, is as it was.
    pub(crate) fn check_open_file(&self) -> Result<()> {
        self.change().map_or(Ok(()), |change| Err(Error::changed(&self.path, change)))
    }

    /// Whether the open file is as it was, and still is what its path leads to.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.check_open_file()?;
        match std::fs::metadata(&self.absolute) {
            Ok(metadata) => match self.stamp.change(&Stamp::of(&metadata)) {
                Some(change) => Err(Error::changed(&self.path, change)),
                None => Ok(()),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::changed(&self.path, "was removed since it was opened".into()))
            }
            Err(e) => Err(Error::io(&self.path, e)),
        }
    }

    /// How the open file, wherever it is now, differs from when it was opened.
    fn change(&self) -> Option<String> {
        match self.file.metadata() {
            Ok(metadata) => self.stamp.change(&Stamp::of(&metadata)),
            Err(e) => Some(e.to_string()),
        }
    }

    /// Before mapped bytes are touched: that they are still there.
    fn check_length(&self, offset: u64) -> cmf_format::Result<()> {
        let found = self.file.metadata().map_err(|e| failed(offset, e))?.len();
        if found >= self.stamp.bytes {
            return Ok(());
        }
        let expected = format!("{} bytes as when it was opened", self.stamp.bytes);
        Err(FormatError::expected(ErrorKind::Io, "file", expected, found).at(offset))
    }

    fn range(&self, offset: u64, bytes: u64) -> cmf_format::Result<Range<u64>> {
        match offset.checked_add(bytes).filter(|end| *end <= self.stamp.bytes) {
            Some(end) => Ok(offset..end),
            None => {
                let found = format!("a file of {:#x}", self.stamp.bytes);
                let expected = format!("{bytes} bytes");
                Err(FormatError::expected(ErrorKind::Truncated, "file", expected, found).at(offset))
            }
        }
    }
}

impl Source for FileSource {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn file_bytes(&self) -> u64 {
        self.stamp.bytes
    }

    fn borrows(&self) -> bool {
        self.map.is_some()
    }

    fn read(&self, offset: u64, bytes: u64) -> cmf_format::Result<Cow<'_, [u8]>> {
        let range = self.range(offset, bytes)?;
        if let Some(bytes) = self.mapped(range) {
            self.check_length(offset)?;
            return Ok(Cow::Borrowed(bytes));
        }
        let mut out = Vec::new();
        let length = usize::try_from(bytes).ok().filter(|_| bytes <= self.limit_bytes);
        match length.map(|length| (length, out.try_reserve_exact(length))) {
            Some((length, Ok(()))) => out.resize(length, 0),
            _ => {
                let expected = format!("at most {} bytes in memory", self.limit_bytes);
                return Err(FormatError::expected(ErrorKind::Limit, "file", expected, bytes).at(offset));
            }
        }
        self.read_at(&mut out, offset)?;
        Ok(Cow::Owned(out))
    }

    fn visit(
        &self,
        offset: u64,
        bytes: u64,
        visit: &mut dyn FnMut(&[u8]) -> cmf_format::Result<()>,
    ) -> cmf_format::Result<()> {
        let range = self.range(offset, bytes)?;
        let part_bytes = if self.map.is_some() { VISIT_MAP_BYTES } else { VISIT_READ_BYTES };
        let parts = range.clone().step_by(part_bytes as usize);
        let mut parts = parts.map(|start| start..range.end.min(start.saturating_add(part_bytes)));
        if let Some(map) = &self.map {
            return parts.try_for_each(|part| {
                let bytes = self.mapped(part.clone()).unwrap_or(&[]);
                map.populate(part.start as usize..part.end as usize).map_err(|e| failed(part.start, e))?;
                visit(bytes)
            });
        }
        if let Some(bytes) = self.mapped(range.clone()) {
            return visit(bytes);
        }
        let mut buffer = VISIT_BUFFER.take();
        buffer.resize(VISIT_READ_BYTES as usize, 0);
        let result = parts.try_for_each(|part| {
            let bytes = buffer.get_mut(..(part.end - part.start) as usize).unwrap_or(&mut []);
            self.read_at(bytes, part.start)?;
            visit(bytes)
        });
        VISIT_BUFFER.set(buffer);
        result
    }
}

fn failed(offset: u64, error: std::io::Error) -> FormatError {
    FormatError::new(ErrorKind::Io, "file", error.to_string()).at(offset)
}

//! The bytes of one open file: from a map, read on demand, or in memory.

use crate::error::{Error, Result};
use crate::mmap::{BLOCK_BYTES, Map};
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
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

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
    stamp: Stamp,
    /// Most bytes that are read into memory at once.
    limit_bytes: u64,
    /// Header and directory, in memory of this process: what is checked once stays checked.
    head: Vec<u8>,
    bytes: Bytes,
    /// Bytes that were read, as far as this process can count them.
    read_bytes: AtomicU64,
}

/// Where the bytes are: the only thing in which backends differ.
#[derive(Debug)]
enum Bytes {
    /// The whole file, mapped.
    Mapped(File, Map),
    /// In the file; and in memory what a [`Resident`](crate::Resident) holds of it.
    Read(File, OnceLock<Owned>),
    /// In memory.
    Memory(Arc<[u8]>),
}

impl Bytes {
    fn file(&self) -> Option<&File> {
        match self {
            Bytes::Mapped(file, _) | Bytes::Read(file, _) => Some(file),
            Bytes::Memory(_) => None,
        }
    }
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

    /// Reads bytes `range` of `file` to their place.
    #[cfg(target_os = "linux")]
    fn own(&self, file: &File, range: Range<u64>, place: Range<usize>) -> std::io::Result<()> {
        self.map.own(place, |out| read_exact_at(file, out, range.start))?;
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        let mut more = Runs::default();
        more.push(range);
        *runs = runs.plus(&more);
        Ok(())
    }

    /// Frees the memory of bytes `range`.
    #[cfg(target_os = "linux")]
    fn disown(&self, file: &File, range: Range<u64>, place: Range<usize>) -> std::io::Result<()> {
        // First nothing is borrowed from there any more.
        let mut less = Runs::default();
        less.push(range);
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        *runs = runs.minus(&less);
        // Readers of what stays do not wait for what goes.
        drop(runs);
        self.map.disown(place, file)
    }

    #[cfg(not(target_os = "linux"))]
    fn own(&self, _: &File, _: Range<u64>, _: Range<usize>) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    #[cfg(not(target_os = "linux"))]
    fn disown(&self, _: &File, _: Range<u64>, _: Range<usize>) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
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
        let size = |bytes| size(path, bytes);
        let read = |out: &mut [u8], offset| read_exact_at(&file, out, offset).map_err(io);
        let head = head(path, stamp.bytes, limits, &read)?;
        let bytes = match backend {
            Backend::Mmap => {
                let map = Map::new(&file, size(stamp.bytes)?).map_err(io)?;
                Bytes::Mapped(file, map)
            }
            Backend::Pread => Bytes::Read(file, OnceLock::new()),
            Backend::Memory => {
                let (mut all, length) = (Vec::new(), size(stamp.bytes)?);
                all.try_reserve_exact(length).map_err(|e| io(std::io::Error::other(e)))?;
                all.resize(length, 0);
                read(&mut all, 0)?;
                // Nobody wrote to it meanwhile, as far as its time tells.
                if let Some(change) = stamp.change(&Stamp::of(&file.metadata().map_err(io)?)) {
                    return Err(Error::changed(path, change));
                }
                Bytes::Memory(all.into())
            }
        };
        Ok(Self::with(path, stamp, limits, head, bytes))
    }

    /// A file that is in memory, called `path`.
    pub(crate) fn of_bytes(bytes: Arc<[u8]>, path: &Path, limits: &Limits) -> Result<Self> {
        let stamp = Stamp::of_bytes(bytes.len() as u64);
        let read = |out: &mut [u8], offset: u64| {
            let part = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)?.get(..out.len()));
            out.copy_from_slice(
                part.ok_or_else(|| Error::io(path, std::io::ErrorKind::UnexpectedEof.into()))?,
            );
            Ok(())
        };
        let head = head(path, stamp.bytes, limits, &read)?;
        Ok(Self::with(path, stamp, limits, head, Bytes::Memory(bytes)))
    }

    fn with(path: &Path, stamp: Stamp, limits: &Limits, head: Vec<u8>, bytes: Bytes) -> Self {
        Self {
            path: path.to_owned(),
            absolute: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            stamp,
            limit_bytes: limits.decoded_segment_bytes,
            head,
            bytes,
            read_bytes: AtomicU64::new(0),
        }
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which backend reads it.
    pub fn backend(&self) -> Backend {
        match self.bytes {
            Bytes::Mapped(..) => Backend::Mmap,
            Bytes::Read(..) => Backend::Pread,
            Bytes::Memory(_) => Backend::Memory,
        }
    }

    /// Bytes `range`, borrowed from where they are in memory; `None` where they must be read.
    pub(crate) fn mapped(&self, range: Range<u64>) -> Option<&[u8]> {
        let bytes = match &self.bytes {
            Bytes::Mapped(_, map) => map.bytes(),
            Bytes::Read(_, owned) => owned.get().filter(|owned| owned.covers(&range))?.map.bytes(),
            Bytes::Memory(bytes) => bytes,
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
        let Bytes::Read(file, owned) = &self.bytes else { return Ok(()) };
        if owned.get().is_some() {
            return Ok(());
        }
        if cfg!(not(target_os = "linux")) {
            let problem = "pages of a file that is not mapped can be held on Linux only";
            return Err(FormatError::new(ErrorKind::Unsupported, "file", problem));
        }
        let bytes = usize::try_from(self.stamp.bytes).unwrap_or(usize::MAX);
        let map = Map::new(file, bytes).map_err(|e| failed(0, e))?;
        let _ = owned.set(Owned { map, runs: RwLock::default() });
        Ok(())
    }

    /// `runs` in parts of about `part_bytes`, each of which can be held or released by itself at little
    /// cost.
    pub(crate) fn parts(&self, runs: &Runs, part_bytes: u64) -> Vec<Range<u64>> {
        let blocks = part_bytes.checked_next_multiple_of(BLOCK_BYTES as u64);
        runs.parts(blocks.unwrap_or(u64::MAX), self.block_phase().unwrap_or(0))
    }

    /// `runs`, and the rest of blocks of memory that they have a part of, as far as it is in
    /// `within`.
    pub(crate) fn with_whole_blocks(&self, runs: Runs, within: impl FnOnce() -> Runs) -> Runs {
        match self.block_phase() {
            Some(phase) => runs.plus(&runs.blocks(BLOCK_BYTES as u64, phase).within(&within())),
            None => runs,
        }
    }

    /// What is added to a position in the file so that blocks of memory begin at multiples of their size;
    /// `None` where memory does not come in blocks.
    fn block_phase(&self) -> Option<u64> {
        match &self.bytes {
            Bytes::Read(_, owned) => owned.get().map(|owned| owned.map.block_phase() as u64),
            Bytes::Mapped(..) | Bytes::Memory(_) => None,
        }
    }

    /// Makes the pages of `range` resident, which begins and ends with a page or beyond the file.
    pub(crate) fn hold(&self, range: Range<u64>) -> cmf_format::Result<()> {
        let (range, place) = self.place(range)?;
        let bytes = range.end.saturating_sub(range.start);
        self.check_length(range.start)?;
        let result = match &self.bytes {
            Bytes::Mapped(_, map) => map.hold(place),
            Bytes::Read(file, owned) => match owned.get() {
                Some(owned) => owned.own(file, range.clone(), place),
                None => return Ok(()),
            },
            Bytes::Memory(_) => return Ok(()),
        };
        result.map_err(|e| failed(range.start, e))?;
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the memory of the pages of `range` back, which begins and ends as for
    /// [`FileSource::hold`].
    pub(crate) fn release(&self, range: Range<u64>) -> cmf_format::Result<()> {
        let (range, place) = self.place(range)?;
        let result = match &self.bytes {
            Bytes::Mapped(_, map) => map.release(place),
            Bytes::Read(file, owned) => match owned.get() {
                Some(owned) => owned.disown(file, range.clone(), place),
                None => return Ok(()),
            },
            Bytes::Memory(_) => return Ok(()),
        };
        result.map_err(|e| failed(range.start, e))
    }

    /// Leaves it to the system again which pages are in memory.
    pub(crate) fn forget(&self) {
        match &self.bytes {
            Bytes::Mapped(_, map) => drop(map.forget()),
            Bytes::Read(..) => drop(self.release(0..self.stamp.bytes)),
            Bytes::Memory(_) => {}
        }
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
        // What is in memory is borrowed.
        let Some(file) = self.bytes.file() else {
            return Err(failed(offset, std::io::ErrorKind::UnexpectedEof.into()));
        };
        read_exact_at(file, out, offset).map_err(|e| failed(offset, e))
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
        if self.bytes.file().is_none() {
            return Ok(());
        }
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
        match self.bytes.file()?.metadata() {
            Ok(metadata) => self.stamp.change(&Stamp::of(&metadata)),
            Err(e) => Some(e.to_string()),
        }
    }

    /// Before mapped bytes are touched: that they are still there.
    fn check_length(&self, offset: u64) -> cmf_format::Result<()> {
        let Some(file) = self.bytes.file() else { return Ok(()) };
        let found = file.metadata().map_err(|e| failed(offset, e))?.len();
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
        matches!(self.bytes, Bytes::Mapped(..) | Bytes::Memory(_))
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
        let part_bytes = if self.borrows() { VISIT_MAP_BYTES } else { VISIT_READ_BYTES };
        let parts = range.clone().step_by(part_bytes as usize);
        let mut parts = parts.map(|start| start..range.end.min(start.saturating_add(part_bytes)));
        if let Bytes::Mapped(file, map) = &self.bytes {
            return parts.try_for_each(|part| {
                let bytes = self.mapped(part.clone()).unwrap_or(&[]);
                self.check_length(part.start)?;
                let range = part.start as usize..part.end as usize;
                map.ready(file, range).map_err(|e| failed(part.start, e))?;
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

fn size(path: &Path, bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| {
        let problem = format!("{bytes} bytes do not fit the address space");
        Error::format(path, FormatError::new(ErrorKind::Limit, "file", problem))
    })
}

/// Header and directory of a file of `file_bytes` bytes, which `read` reads from an offset on.
fn head(
    path: &Path,
    file_bytes: u64,
    limits: &Limits,
    read: &dyn Fn(&mut [u8], u64) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut first = vec![0; size(path, FIRST_READ_BYTES.min(file_bytes))?];
    read(&mut first, 0)?;
    let head_bytes = Archive::<FileSource>::head_bytes(&first, file_bytes, limits);
    let head_bytes = head_bytes.map_err(|e| Error::format(path, e))?;
    // A new buffer is zero without being written to; growing the old one would write it twice.
    let mut whole = vec![0; size(path, head_bytes)?];
    let there = first.get(..first.len().min(whole.len())).unwrap_or(&[]);
    let (start, rest) = whole.split_at_mut(there.len());
    start.copy_from_slice(there);
    read(rest, there.len() as u64)?;
    Ok(whole)
}

fn failed(offset: u64, error: std::io::Error) -> FormatError {
    FormatError::new(ErrorKind::Io, "file", error.to_string()).at(offset)
}

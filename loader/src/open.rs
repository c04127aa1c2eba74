//! How files are opened: by path, or by bare name in a directory.

use cmf_format::Limits;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// How the bytes of files are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// A read-only shared map: no copies. Files must not be written to while they are open, see the
    /// [crate's documentation](crate#files-that-change).
    #[default]
    Mmap,
    /// Reads into memory when bytes are needed. For network file systems, directories that
    /// strangers write to, and systems without maps.
    Pread,
    /// The whole file in memory of this process, read when it is opened: whatever becomes of the file, no
    /// byte changes. What lies in memory already is opened by
    /// [`Model::from_bytes`](crate::Model::from_bytes).
    Memory,
}

/// Choices for [`Model::open_with`](crate::Model::open_with).
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// How bytes are reached.
    pub backend: Backend,
    /// Ceilings for what a file may state. With [`Backend::Pread`], `decoded_segment_bytes` also
    /// bounds each read into memory.
    pub limits: Limits,
    /// Where shards and bases lie that are not in the directory of the file that refers to them,
    /// by the name that it calls them. Length and identity must still be the stated ones.
    pub references: BTreeMap<String, PathBuf>,
}

/// Opens `path` for reading; symbolic links are followed.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::{Mode, OFlags};
        // Without NONBLOCK, opening a named pipe waits for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
    }
    #[cfg(not(unix))]
    File::open(path)
}

/// A directory in which files are opened by bare name. On Unix it stays the same directory
/// whatever its path comes to lead to.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    #[cfg(unix)]
    handle: std::os::fd::OwnedFd,
}

impl Directory {
    /// The directory that `file` lies in.
    pub(crate) fn of(file: &Path) -> io::Result<Self> {
        let path = match file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        #[cfg(unix)]
        {
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let handle = rustix::fs::open(&path, flags, Mode::empty())?;
            Ok(Self { path, handle })
        }
        #[cfg(not(unix))]
        Ok(Self { path })
    }

    /// What the file `name` is called in errors.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        match self.path == Path::new(".") {
            true => PathBuf::from(name),
            false => self.path.join(name),
        }
    }

    /// Opens the file `name` of this directory; `name` must be one and no symbolic link.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        let invalid = |problem| io::Error::new(io::ErrorKind::InvalidInput, problem);
        let mut parts = Path::new(name).components();
        let bare = matches!(parts.next(), Some(std::path::Component::Normal(part)) if part == name);
        if !bare || parts.next().is_some() {
            return Err(invalid("is no bare file name"));
        }
        let link = || invalid("is a symbolic link, which is not followed");
        #[cfg(unix)]
        {
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
            match rustix::fs::openat(&self.handle, name, flags, Mode::empty()) {
                Ok(file) => Ok(file.into()),
                // FreeBSD says EMLINK.
                Err(rustix::io::Errno::LOOP | rustix::io::Errno::MLINK) => Err(link()),
                Err(e) => Err(e.into()),
            }
        }
        #[cfg(not(unix))]
        {
            let path = self.path.join(name);
            if std::fs::symlink_metadata(&path)?.is_symlink() {
                return Err(link());
            }
            File::open(path)
        }
    }
}

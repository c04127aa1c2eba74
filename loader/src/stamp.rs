//! What tells one state of a file from another.

use std::fs::Metadata;
use std::time::SystemTime;

/// Length, time of the last change and identity of a file at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Length.
    pub(crate) bytes: u64,
    modified: Option<SystemTime>,
    /// Device and inode, where the system has them.
    id: Option<(u64, u64)>,
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), modified: metadata.modified().ok(), id: id(metadata) }
    }

    /// That of a file in memory.
    pub(crate) fn of_bytes(bytes: u64) -> Self {
        Self { bytes, modified: None, id: None }
    }

    /// How the file that had this stamp, and has `now`, was changed; `None` when it was not.
    pub(crate) fn change(&self, now: &Stamp) -> Option<String> {
        if self.id != now.id {
            return Some("another file has taken its place since it was opened".into());
        }
        if self.bytes != now.bytes {
            return Some(format!("expected {} bytes as when it was opened, found {}", self.bytes, now.bytes));
        }
        (self.modified != now.modified).then(|| "was written to since it was opened".into())
    }
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "other systems have none")]
fn id(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn id(_: &Metadata) -> Option<(u64, u64)> {
    None
}

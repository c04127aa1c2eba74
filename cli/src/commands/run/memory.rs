//! What the system counts as this process's memory.

use std::path::Path;

/// Resident bytes of the maps of the file at `path`.
pub(super) fn mapped_bytes(path: &Path) -> Option<u64> {
    let path = std::fs::canonicalize(path).ok()?;
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let (mut ours, mut bytes) = (false, 0u64);
    for line in maps.lines() {
        if let Some(resident) = line.strip_prefix("Rss:").filter(|_| ours) {
            let kibibytes = resident.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?;
            bytes = bytes.saturating_add(kibibytes.saturating_mul(1024));
        } else if line.starts_with(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c)) {
            ours = line.ends_with(path.to_str()?);
        }
    }
    Some(bytes)
}

/// Resident bytes of this process, now and at most.
pub(super) fn process_bytes() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

//! What memory a process may still take: the system's own estimate, and the limits of the control
//! groups (cgroups, versions 1 and 2) that it is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The part of the available memory that the budget `auto` takes. The rest is for activations, the
/// key-value cache and whatever else grows in the meantime.
pub const AUTO_SHARE: f64 = 0.75;

/// Bytes that this process may take before the system swaps or kills it, as far as the system
/// knows: the least of `MemAvailable` and of what each control group above it has left. Cached pages
/// of files that a group would give back count as left.
///
/// # Errors
/// `Unsupported` where there is no `/proc/meminfo`, and what reading it gives.
pub fn available_bytes() -> io::Result<u64> {
    available_below(Path::new("/"))
}

/// [`available_bytes`] of the system whose files are below `root`.
fn available_below(root: &Path) -> io::Result<u64> {
    let info = fs::read_to_string(root.join("proc/meminfo")).map_err(|e| {
        let problem = format!("/proc/meminfo, which says how much memory is available: {e}");
        io::Error::new(io::ErrorKind::Unsupported, problem)
    })?;
    let available = field(&info, "MemAvailable:").and_then(|kib| kib.checked_mul(1024));
    let available = available
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "/proc/meminfo has no MemAvailable"))?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    Ok(groups.lines().flat_map(|line| left_in_groups(root, line)).fold(available, u64::min))
}

/// The files of a version of control groups: where they lie, the limit, what is used, and the name of
/// what is used by pages that can be given back.
struct Version {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    cached: &'static str,
}

const V1: Version = Version {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: "total_inactive_file ",
};
const V2: Version =
    Version { mount: "sys/fs/cgroup", limit: "memory.max", used: "memory.current", cached: "inactive_file " };

/// What is left in the group of a line of `/proc/self/cgroup` (`number:controllers:path`), and in
/// each group above it.
fn left_in_groups(root: &Path, line: &str) -> Vec<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let version = match controllers {
        "" => V2,
        _ if controllers.split(',').any(|controller| controller == "memory") => V1,
        _ => return Vec::new(),
    };
    let mount = root.join(version.mount);
    // In a container the path may be that outside, and the group of the process is the mount itself.
    let own = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect::<PathBuf>();
    let mut left = Vec::new();
    for group in own.ancestors() {
        left.extend(left_in(&mount.join(group), &version));
    }
    left
}

/// What is left in one group; `None` without a limit.
fn left_in(group: &Path, version: &Version) -> Option<u64> {
    let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    // "max" in version 2 is no number; version 1 states a number beyond any memory.
    let (limit, used) = (number(version.limit)?, number(version.used)?);
    let cached = fs::read_to_string(group.join("memory.stat")).ok();
    let cached = cached.and_then(|stat| field(&stat, version.cached)).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

/// The number behind `name`, which begins a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> io::Result<tempfile::TempDir> {
        let root = tempfile::tempdir()?;
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap_or(root.path()))?;
            fs::write(path, text)?;
        }
        Ok(root)
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable:   1000 kB\n");

    #[test]
    fn without_groups_it_is_what_the_system_says() -> io::Result<()> {
        assert_eq!(available_below(system(&[MEMINFO])?.path())?, 1000 * 1024);
        Ok(())
    }

    #[test]
    fn the_tightest_group_above_counts_and_its_cached_pages_are_left() -> io::Result<()> {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "70000\n"),
            ("sys/fs/cgroup/a/memory.max", "100000\n"),
            ("sys/fs/cgroup/a/memory.current", "80000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 30000\nactive_file 9\n"),
        ])?;
        assert_eq!(available_below(root.path())?, 50_000);
        Ok(())
    }

    #[test]
    fn reads_version_1_and_falls_back_to_the_mount_in_a_container() -> io::Result<()> {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n3:memory:/docker/0123\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "900000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 200000\n"),
        ])?;
        assert_eq!(available_below(root.path())?, 100_000);
        Ok(())
    }

    #[test]
    fn says_that_it_is_not_supported_elsewhere() -> io::Result<()> {
        let error = available_below(system(&[])?.path()).map_err(|e| e.kind());
        assert_eq!(error, Err(io::ErrorKind::Unsupported));
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_system_has_some() -> io::Result<()> {
        assert!(available_bytes()? > 1 << 20);
        Ok(())
    }
}

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
    left_below(root, &left_in)
}

/// The least of what the system has left and of what `left_in` says of each group above the process.
fn left_below(root: &Path, left_in: &dyn Fn(&Path, &Version) -> Option<u64>) -> io::Result<u64> {
    let info = fs::read_to_string(root.join("proc/meminfo")).map_err(|e| {
        let problem = format!("/proc/meminfo, which says how much memory is available: {e}");
        io::Error::new(io::ErrorKind::Unsupported, problem)
    })?;
    let available = field(&info, "MemAvailable:").and_then(|kib| kib.checked_mul(1024));
    let available = available
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "/proc/meminfo has no MemAvailable"))?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    Ok(groups.lines().flat_map(|line| left_in_groups(root, line, left_in)).fold(available, u64::min))
}

/// Bytes that this process may have in all, of which it has `owned_bytes` in memory of its own: like
/// [`available_bytes`], but with `memory.high` as a limit too, and with all cached pages of files
/// counted as left, its own among them.
///
/// # Errors
/// As [`available_bytes`].
#[cfg(feature = "pressure")]
pub(crate) fn room_bytes(owned_bytes: u64) -> io::Result<u64> {
    room_below(Path::new("/"), owned_bytes)
}

#[cfg(feature = "pressure")]
fn room_below(root: &Path, owned_bytes: u64) -> io::Result<u64> {
    let left = left_below(root, &|group, version| {
        let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
        let limits = [number(version.limit), version.high.and_then(number)];
        let limit = limits.into_iter().flatten().min()?;
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached = [version.cached, version.active].map(|name| field(&stat, name).unwrap_or(0));
        let cached = cached.into_iter().fold(0, u64::saturating_add);
        Some(limit.saturating_sub(number(version.used)?.saturating_sub(cached)))
    })?;
    Ok(left.saturating_add(owned_bytes))
}

/// For how much of the last ten seconds something waited for memory, in per cent: of the system, or of
/// a group that this process is in, whichever is more. 0 where the system does not say.
#[cfg(feature = "pressure")]
pub(crate) fn stalled_percent() -> f64 {
    stalled_below(Path::new("/"))
}

#[cfg(feature = "pressure")]
fn stalled_below(root: &Path) -> f64 {
    let stalled = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
        some.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse::<f64>().ok()
    };
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let own = groups.lines().filter_map(|line| line.strip_prefix("0::"));
    let own = own.map(|path| root.join(V2.mount).join(path.trim_start_matches('/')).join("memory.pressure"));
    let all = own.chain([root.join("proc/pressure/memory")]).filter_map(stalled);
    all.filter(|percent| percent.is_finite()).fold(0.0, f64::max)
}

/// The files of a version of control groups: where they lie, the limit, what is used, and the name of
/// what is used by pages that can be given back.
struct Version {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    cached: &'static str,
    /// The limit from which on the system slows the group down.
    #[cfg_attr(not(feature = "pressure"), allow(dead_code, reason = "only pressure asks for it"))]
    high: Option<&'static str>,
    /// Pages of files that were used lately.
    #[cfg_attr(not(feature = "pressure"), allow(dead_code, reason = "only pressure asks for it"))]
    active: &'static str,
}

const V1: Version = Version {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: "total_inactive_file ",
    high: None,
    active: "total_active_file ",
};
const V2: Version = Version {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    cached: "inactive_file ",
    high: Some("memory.high"),
    active: "active_file ",
};

/// What is left in the group of a line of `/proc/self/cgroup` (`number:controllers:path`), and in
/// each group above it.
fn left_in_groups(root: &Path, line: &str, left_in: &dyn Fn(&Path, &Version) -> Option<u64>) -> Vec<u64> {
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

    #[cfg(feature = "pressure")]
    #[test]
    fn room_counts_all_cached_pages_and_the_limit_that_slows_down() -> io::Result<()> {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "100000\n"),
            ("sys/fs/cgroup/a/memory.high", "90000\n"),
            ("sys/fs/cgroup/a/memory.current", "80000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 30000\nactive_file 9000\n"),
        ])?;
        assert_eq!(room_below(root.path(), 500)?, 49_500);
        Ok(())
    }

    #[cfg(feature = "pressure")]
    #[test]
    fn the_group_that_waits_most_counts() -> io::Result<()> {
        let stall = |avg10| format!("some avg10={avg10} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00\n");
        let root = system(&[
            ("proc/self/cgroup", "0::/a\n"),
            ("proc/pressure/memory", &stall("1.50")),
            ("sys/fs/cgroup/a/memory.pressure", &stall("12.25")),
        ])?;
        assert_eq!(stalled_below(root.path()), 12.25);
        assert_eq!(stalled_below(system(&[])?.path()), 0.0);
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_system_has_some() -> io::Result<()> {
        assert!(available_bytes()? > 1 << 20);
        Ok(())
    }
}

//! Host memory of this process: its limit, its peak use, and kills by the kernel's OOM killer.

use std::fs;
use std::path::{Path, PathBuf};

use foil_common::oom::MemoryKind;
use foil_proto::v1::MemoryShortage;
use nix::sys::resource::{Resource, getrlimit};

/// Number of kills by the kernel's OOM killer in this process's control group or, if that is unknown, on this
/// host. It never decreases, so an increase after a process was killed points to memory as the cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OomKillCounter(u64);

impl OomKillCounter {
    /// Zero if no counter can be read.
    pub(crate) fn read() -> Self {
        let read = |path: &Path| counter(&fs::read_to_string(path).ok()?, "oom_kill");
        let group = ControlGroup::own().and_then(|group| read(&group.dir.join(group.kills)));
        Self(group.or_else(|| read(Path::new("/proc/vmstat"))).unwrap_or(0))
    }
}

/// The tightest memory limit of this process and its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    pub(crate) bytes: u64,
    /// Whether it limits the address space (RLIMIT_AS) rather than resident memory.
    is_address_space: bool,
}

impl MemoryLimit {
    /// The minimum of RLIMIT_AS, the control groups' limits and the host's memory; `None` if none of them is
    /// known.
    pub(crate) fn read() -> Option<Self> {
        let addresses = getrlimit(Resource::RLIMIT_AS).ok().map(|(soft, _)| soft);
        let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kibibytes(&text, "MemTotal"));
        let resident = ControlGroup::own().and_then(|group| group.limit()).into_iter().chain(host).min();
        let pages = resident.map(|bytes| Self { bytes, is_address_space: false });
        let addresses = addresses.map(|bytes| Self { bytes, is_address_space: true });
        pages.into_iter().chain(addresses).min_by_key(|limit| limit.bytes)
    }
}

/// Adds the process's peak use and its limit of host memory to the shortage.
pub(crate) fn with_usage(shortage: MemoryShortage) -> MemoryShortage {
    if shortage.place != MemoryKind::Host.name() {
        return shortage;
    }
    let limit = MemoryLimit::read();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = if limit.is_some_and(|limit| limit.is_address_space) { "VmPeak" } else { "VmHWM" };
    MemoryShortage {
        peak_bytes: shortage.peak_bytes.or_else(|| kibibytes(&status, field)),
        limit_bytes: shortage.limit_bytes.or(limit.map(|limit| limit.bytes)),
        ..shortage
    }
}

/// The memory control group of this process.
#[derive(Debug, PartialEq, Eq)]
struct ControlGroup {
    /// The mount point of the control groups.
    root: PathBuf,
    dir: PathBuf,
    kills: &'static str,
    limit: &'static str,
}

impl ControlGroup {
    fn own() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        Self::candidates(&groups).into_iter().find(|group| group.dir.join(group.kills).exists())
    }

    /// Possible directories of the group, from the text of /proc/self/cgroup: version 2 first, then version
    /// 1. In a container, the group's own directory is often mounted as the root.
    fn candidates(groups: &str) -> Vec<Self> {
        let path = |line: &str| line.splitn(3, ':').nth(2).unwrap_or_default().trim_matches('/').to_owned();
        let unified = groups.lines().find(|line| line.starts_with("0::")).map(path);
        let memory = groups.lines().find(|line| line.split(':').nth(1).is_some_and(has_memory)).map(path);
        let at = |root: &str, path: &str, kills, limit| Self {
            root: root.into(),
            dir: Path::new(root).join(path),
            kills,
            limit,
        };
        let second = |path: &str| at("/sys/fs/cgroup", path, "memory.events", "memory.max");
        let first =
            |path: &str| at("/sys/fs/cgroup/memory", path, "memory.oom_control", "memory.limit_in_bytes");
        let mut found = Vec::new();
        found.extend(unified.iter().flat_map(|path| [second(path), second("")]));
        found.extend(memory.iter().flat_map(|path| [first(path), first("")]));
        found
    }

    /// The minimum limit of the group and its ancestors.
    fn limit(&self) -> Option<u64> {
        let above = self.dir.ancestors().take_while(|dir| dir.starts_with(&self.root));
        let read = |dir: &Path| fs::read_to_string(dir.join(self.limit)).ok()?.trim().parse().ok();
        above.filter_map(read).min()
    }
}

fn has_memory(controllers: &str) -> bool {
    controllers.split(',').any(|controller| controller == "memory")
}

/// A counter from lines of the form `name value`.
fn counter(events: &str, name: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A value from lines of the form `name: N kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use foil_common::oom;

    use super::*;

    #[test]
    fn the_oom_kill_counter_is_read() {
        assert_eq!(counter("low 0\noom 3\noom_kill 2\noom_group_kill 9\n", "oom_kill"), Some(2));
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", "oom_kill"), Some(5));
        assert_eq!(counter("low 0\n", "oom_kill"), None);
        assert!(OomKillCounter::read() >= OomKillCounter::default());
    }

    #[test]
    fn the_control_group_is_found_in_both_versions() {
        let dirs = |text: &str| -> Vec<String> {
            ControlGroup::candidates(text).iter().map(|group| group.dir.display().to_string()).collect()
        };
        assert_eq!(dirs("0::/pod/rank\n"), ["/sys/fs/cgroup/pod/rank", "/sys/fs/cgroup/"]);
        let mixed = "5:devices:/\n4:cpu,memory:/pod\n";
        assert_eq!(dirs(mixed), ["/sys/fs/cgroup/memory/pod", "/sys/fs/cgroup/memory/"]);
        assert!(dirs("5:devices:/\n").is_empty());
    }

    #[test]
    fn the_tightest_limit_of_all_ancestors_applies() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("pod/rank");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("pod/memory.max"), "4096\n").unwrap();
        fs::write(root.path().join("memory.max"), "8192\n").unwrap();
        let group =
            ControlGroup { root: root.path().into(), dir, kills: "memory.events", limit: "memory.max" };
        assert_eq!(group.limit(), Some(4096));
    }

    #[test]
    fn only_a_shortage_of_host_memory_gets_sizes() {
        let host = with_usage(oom::of_unknown_size(MemoryKind::Host));
        assert!(host.peak_bytes.is_some_and(|bytes| bytes > 1 << 20), "{host:?}");
        assert!(host.limit_bytes.is_some_and(|bytes| bytes > 1 << 20), "{host:?}");
        assert_eq!(
            with_usage(oom::of_unknown_size(MemoryKind::Device)),
            oom::of_unknown_size(MemoryKind::Device)
        );
    }
}

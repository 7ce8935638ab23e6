//! Whether the kernel killed for want of memory.

use std::fs;

/// How often the kernel's out-of-memory killer has struck in this process's control group and on this host.
/// It grows only, so a greater reading after a process was killed points at memory as the cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KillCounter(u64);

impl KillCounter {
    /// Zero where neither counter can be read.
    pub(super) fn read() -> Self {
        let group = own_group()
            .and_then(|group| fs::read_to_string(format!("/sys/fs/cgroup{group}/memory.events")).ok())
            .or_else(|| fs::read_to_string("/sys/fs/cgroup/memory.events").ok())
            .and_then(|events| counter(&events, "oom_kill"));
        let host = fs::read_to_string("/proc/vmstat").ok().and_then(|events| counter(&events, "oom_kill"));
        Self(group.unwrap_or(0) + host.unwrap_or(0))
    }
}

/// The path of this process in the unified hierarchy (control groups, version 2).
fn own_group() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().find_map(|line| line.strip_prefix("0::")).map(|path| path.trim_end_matches('/').to_owned())
}

/// Lines are `name value`.
fn counter(events: &str, name: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_counter() {
        assert_eq!(counter("low 0\noom 3\noom_kill 2\noom_group_kill 9\n", "oom_kill"), Some(2));
        assert_eq!(counter("low 0\n", "oom_kill"), None);
        assert!(KillCounter::read() >= KillCounter::default());
    }
}

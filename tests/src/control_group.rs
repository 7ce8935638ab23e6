//! A bound on the memory of some processes, kept by the kernel.

use std::fs;
use std::path::{Path, PathBuf};

/// A memory control group (version 1 or 2) in which the kernel kills; removed at the end.
pub struct ControlGroup(PathBuf);

impl ControlGroup {
    /// With so many bytes. None, said on standard error, where this machine lets no one make one.
    pub fn new(limit: u64) -> Option<Self> {
        let name = format!("foil-test-{}", std::process::id());
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (root, file) in versions {
            let dir = Path::new(root).join(&name);
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self(dir);
            // Without swap to hide in, where there is any.
            for swap in ["memory.swappiness", "memory.swap.max"] {
                let _ = fs::write(group.0.join(swap), "0");
            }
            if fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        eprintln!("skipped: no memory control group can be made here");
        None
    }

    /// Where processes are put into it.
    pub fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

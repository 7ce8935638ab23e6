//! Memory limits with control groups.

use std::fs;
use std::path::{Path, PathBuf};

/// A memory control group (version 1 or 2), removed on drop.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// A group limited to `limit` bytes. `None`, with a message on standard error, if it cannot be created.
    pub fn new(limit: u64) -> Option<Self> {
        let name = format!("foil-test-{}", std::process::id());
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (root, file) in versions {
            let dir = Path::new(root).join(&name);
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self(dir);
            // Disables swap, if there is any.
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

    /// The directory of the group.
    pub fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

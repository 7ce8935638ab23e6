//! The agent's directory for the files of its ranks. The agent holds a lock on it while it runs, so that
//! directories of dead agents can be recognized and removed.

#![expect(clippy::disallowed_methods, reason = "the removal of files is retried until a deadline")]

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use foil_common::private;

use crate::task_io::shared_objects;

/// Lock file that marks a directory as an agent's. The kernel releases the lock however the agent ends.
const LOCK: &str = ".foil-agent.lock";
/// Time to wait for the lock: an agent of the same name may be ending, or another may be removing this
/// directory.
const TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Creates `path`, or takes it over from a dead agent and removes the files of its ranks.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            private::make_directory(path)?;
            if !private::is_own_directory(path) {
                let reason = "it belongs to another user or is a link";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
            }
            if let Some(lock) = try_lock(path, true)? {
                remove_ranks(path)?;
                return Ok(Self { path: path.to_owned(), _lock: lock });
            }
            if Instant::now() >= deadline {
                let reason =
                    "another agent of this name uses it; give this one another --agent-id or --work-dir";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
            }
            thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Removes the directories of dead agents next to this one, in a separate thread.
    pub(super) fn purge_others(&self) {
        let Some(parent) = self.path.parent().map(Path::to_owned) else { return };
        let purging = thread::Builder::new().name("purge".to_owned()).spawn(move || purge(&parent));
        if let Err(error) = purging {
            tracing::warn!(%error, "cannot remove the files of dead agents");
        }
    }
}

impl Drop for WorkDir {
    /// Removes the directory, unless it still contains files of ranks that could not be reaped. The next
    /// agent removes those.
    fn drop(&mut self) {
        if is_agent_dir(&self.path, |name| name == shared_objects::FOLDER) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Locks the directory; `None` if another process holds the lock.
fn try_lock(path: &Path, create: bool) -> io::Result<Option<File>> {
    let file = path.join(LOCK);
    let lock = match File::options().read(true).write(true).create(create).truncate(false).open(&file) {
        // Another agent has removed the directory in between.
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Another agent may have removed the file between open and lock.
    let is_same = fs::metadata(&file).is_ok_and(|now| lock.metadata().is_ok_and(|it| it.ino() == now.ino()));
    Ok(is_same.then_some(lock))
}

/// Whether a directory contains only an agent's lock and names that `allowed` accepts.
fn is_agent_dir(path: &Path, allowed: impl Fn(&str) -> bool) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return false };
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.iter().any(|name| name == LOCK) && names.iter().all(|name| name == LOCK || allowed(name))
}

/// Whether a name in an agent's directory belongs to a rank or to the objects that ranks share.
fn is_of_ranks(name: &str) -> bool {
    name.starts_with(shared_objects::RANK) || name == shared_objects::FOLDER
}

fn remove_ranks(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if is_of_ranks(&entry.file_name().to_string_lossy()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn purge(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if !private::is_own_directory(&path) || !is_agent_dir(&path, is_of_ranks) {
            continue;
        }
        // Held until everything is removed, so that a new agent of this name waits.
        let Ok(Some(_lock)) = try_lock(&path, false) else { continue };
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(dir = %path.display(), "removed the files of a dead agent"),
            Err(error) => {
                tracing::warn!(%error, dir = %path.display(), "cannot remove the files of a dead agent");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory as a killed agent leaves it.
    fn dead(parent: &Path, name: &str) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir_all(path.join("rank-s1")).unwrap();
        fs::write(path.join("rank-s1/model.safetensors"), "weights").unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        path
    }

    #[test]
    fn only_directories_of_dead_agents_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let gone = dead(parent.path(), "foil-agent-1");
        let users = dead(parent.path(), "foil-mine");
        fs::write(users.join("notes.txt"), "kept").unwrap();
        let unmarked = parent.path().join("foil-run");
        fs::create_dir_all(unmarked.join("rank-s1")).unwrap();
        let living = WorkDir::open(&parent.path().join("foil-agent-2")).unwrap();
        fs::create_dir(living.path.join("rank-s2")).unwrap();

        purge(parent.path());
        assert!(!gone.exists());
        assert!(users.join("rank-s1").exists() && unmarked.exists() && living.path.join("rank-s2").exists());
    }

    #[test]
    fn a_directory_belongs_to_one_agent_and_old_files_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let path = dead(parent.path(), "foil-run-1");
        let agent = WorkDir::open(&path).unwrap();
        assert!(!path.join("rank-s1").exists());
        assert!(try_lock(&path, true).unwrap().is_none(), "it is locked");
        drop(agent);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_is_private_and_a_link_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let agent = WorkDir::open(&parent.path().join("foil-a")).unwrap();
        assert_eq!(fs::metadata(&agent.path).unwrap().permissions().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink(&agent.path, parent.path().join("foil-b")).unwrap();
        let refused = WorkDir::open(&parent.path().join("foil-b")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}

//! The agent's directory for its ranks' files: held by a lock for as long as the agent lives, so that what a killed agent
//! has left can be told from what a living one uses, and removed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use foil_common::private;

/// Marks a directory as an agent's. Locked by the agent, however long it lives and however it ends.
const LOCK: &str = ".foil-agent.lock";
/// What a rank's directory in it is called, before the session's name.
const RANK: &str = "rank-";
/// For an agent of the same name that is just ending, or for one that purges what this one's predecessor has left.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Makes `path`, or takes it over from an agent that is gone, whose ranks' files are removed.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            private::make_directory(path)?;
            if !private::is_own_directory(path) {
                let reason = "it is another user's or a link";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
            }
            if let Some(lock) = hold(path, true)? {
                remove_ranks(path)?;
                return Ok(Self { path: path.to_owned(), _lock: lock });
            }
            if Instant::now() >= deadline {
                let reason =
                    "another agent of this name uses it; give this one another --agent-id or --work-dir";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Removes, in a thread of its own, what killed agents have left beside this directory.
    pub(super) fn purge_others(&self) {
        let Some(parent) = self.path.parent().map(Path::to_owned) else { return };
        let purging = thread::Builder::new().name("purge".to_owned()).spawn(move || purge(&parent));
        if let Err(error) = purging {
            tracing::warn!(%error, "the files of agents that are gone stay where they are");
        }
    }
}

impl Drop for WorkDir {
    /// What is left in it belongs to ranks that could not be reaped; then the next agent removes it.
    fn drop(&mut self) {
        if is_agents(&self.path, |_| false) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The lock on the directory, where nobody else holds it.
fn hold(path: &Path, make: bool) -> io::Result<Option<File>> {
    let file = path.join(LOCK);
    let lock = match File::options().read(true).write(true).create(make).truncate(false).open(&file) {
        // A purge has removed the directory meanwhile.
        Err(error) if make && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // A purge may have removed the file between its opening and its locking.
    let is_same = fs::metadata(&file).is_ok_and(|now| lock.metadata().is_ok_and(|it| it.ino() == now.ino()));
    Ok(is_same.then_some(lock))
}

/// Whether a directory holds nothing but an agent's lock and what `also` admits.
fn is_agents(path: &Path, also: impl Fn(&str) -> bool) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return false };
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.iter().any(|name| name == LOCK) && names.iter().all(|name| name == LOCK || also(name))
}

fn remove_ranks(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(RANK) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn purge(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if !private::is_own_directory(&path) || !is_agents(&path, |name| name.starts_with(RANK)) {
            continue;
        }
        // Held until all is gone, so that an agent that comes back under this name waits.
        let Ok(Some(_lock)) = hold(&path, false) else { continue };
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(dir = %path.display(), "removed the files of an agent that is gone"),
            Err(error) => {
                tracing::warn!(%error, dir = %path.display(), "the files of an agent that is gone cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// As an agent leaves it that was killed.
    fn dead(parent: &Path, name: &str) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir_all(path.join("rank-s1")).unwrap();
        fs::write(path.join("rank-s1/model.safetensors"), "weights").unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        path
    }

    #[test]
    fn what_killed_agents_left_is_removed_and_nothing_else() {
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
    fn a_directory_is_one_agents_and_its_predecessors_files_are_gone() {
        let parent = tempfile::tempdir().unwrap();
        let path = dead(parent.path(), "foil-run-1");
        let agent = WorkDir::open(&path).unwrap();
        assert!(!path.join("rank-s1").exists());
        assert!(hold(&path, true).unwrap().is_none(), "it is held");
        drop(agent);
        assert!(!path.exists());
    }

    #[test]
    fn it_is_made_for_its_owner_alone_and_a_link_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let agent = WorkDir::open(&parent.path().join("foil-a")).unwrap();
        assert_eq!(fs::metadata(&agent.path).unwrap().permissions().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink(&agent.path, parent.path().join("foil-b")).unwrap();
        let refused = WorkDir::open(&parent.path().join("foil-b")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}

//! Objects that the ranks of one agent share through hard links, so that a file takes disk space and page
//! cache once.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Prefix of the name of a rank's directory in the agent's directory, followed by the session's name.
pub(crate) const RANK: &str = "rank-";
/// The folder of shared objects in an agent's directory.
pub(crate) const FOLDER: &str = "shared";

/// A folder of files named by their hash. Its files never change; a file without other links is removed.
#[derive(Debug)]
pub(crate) struct SharedObjects {
    dir: PathBuf,
}

impl SharedObjects {
    /// Opens the folder in `dir`. `None` if it cannot be created, since ranks work without it.
    pub(crate) fn open(dir: &Path) -> Option<Self> {
        let dir = dir.join(FOLDER);
        match fs::create_dir_all(&dir) {
            Ok(()) => Some(Self { dir }),
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "ranks of this machine cannot share their files");
                None
            }
        }
    }

    /// Removes files that no rank uses from the folder in `dir`, if it exists.
    pub(crate) fn sweep_in(dir: &Path) {
        Self { dir: dir.join(FOLDER) }.sweep();
    }

    /// Number of ranks that share the folder; each has a rank directory next to it.
    pub(crate) fn ranks(&self) -> u64 {
        let beside = self.dir.parent().and_then(|dir| fs::read_dir(dir).ok());
        let is_rank = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(RANK);
        beside.into_iter().flatten().flatten().filter(is_rank).count() as u64
    }

    /// Links the object `hash` of `size` bytes to `file`. Returns false if no rank has it.
    pub(crate) fn take(&self, hash: &str, size: u64, file: &Path) -> bool {
        let shared = self.dir.join(hash);
        fs::metadata(&shared).is_ok_and(|found| found.len() == size) && fs::hard_link(&shared, file).is_ok()
    }

    /// Offers `file`, whose content has the hash. If another rank was first, `file` becomes a link to that
    /// rank's file.
    pub(crate) fn offer(&self, hash: &str, file: &Path) {
        let shared = self.dir.join(hash);
        let offered = match fs::hard_link(file, &shared) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => replace(file, &shared),
            result => result,
        };
        if let Err(error) = offered {
            tracing::debug!(%error, file = %file.display(), "a file is not shared");
        }
    }

    /// Links `file` to the name `claim` as well. Returns false if a file of another rank has that name. The
    /// name is free again once `file` is removed and the folder has been swept.
    pub(crate) fn claim(&self, claim: &str, file: &Path) -> io::Result<bool> {
        match fs::hard_link(file, self.dir.join(claim)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes files that no rank uses. A rank that takes such a file in between downloads it.
    pub(crate) fn sweep(&self) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let unused = entries.filter(|entry| entry.metadata().is_ok_and(|found| found.nlink() == 1));
        for entry in unused {
            // Another rank may have removed it first.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Replaces `file` by a link to `shared`.
fn replace(file: &Path, shared: &Path) -> io::Result<()> {
    let name = file.with_extension("shared");
    fs::hard_link(shared, &name)?;
    fs::rename(&name, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(file: &Path) -> u64 {
        fs::metadata(file).unwrap().ino()
    }

    #[test]
    fn files_of_one_content_become_one_and_go_with_their_last_user() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = ["a", "b", "c"].map(|name| dir.path().join(name));
        let shared = SharedObjects::open(dir.path()).unwrap();
        fs::write(&first, "weights").unwrap();
        fs::write(&second, "weights").unwrap();
        assert!(!shared.take("hash", 7, &third));
        shared.offer("hash", &first);
        shared.offer("hash", &second);
        assert!(!shared.take("hash", 8, &third), "a file of another size is none of that object");
        assert!(shared.take("hash", 7, &third));
        assert!(inode(&first) == inode(&second) && inode(&first) == inode(&third));
        for file in [&first, &second] {
            fs::remove_file(file).unwrap();
        }
        shared.sweep();
        assert!(dir.path().join("shared/hash").exists());
        fs::remove_file(&third).unwrap();
        shared.sweep();
        assert!(!dir.path().join("shared/hash").exists());
    }
}

//! Files and directories that only their owner can read.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{Mode, umask};

/// Takes all rights of group and others from what this process, and each that it starts, makes from here on: files are
/// 0600 and directories 0700 at most.
pub fn withhold_new_files() {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

/// Makes a directory with its missing parents; what is made is 0700, whatever the process's umask. What is there keeps
/// its mode, which is its owner's choice.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Whether a directory is this user's own, and itself rather than a link to one. Where others may write beside it, they
/// could have made it.
pub fn is_own_directory(directory: &Path) -> bool {
    let owner = nix::unistd::geteuid().as_raw();
    fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_the_owners_and_what_is_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        make_directory(&root.path().join("a/b")).unwrap();
        assert_eq!((mode(&root.path().join("a")), mode(&root.path().join("a/b"))), (0o700, 0o700));
        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        make_directory(&open).unwrap();
        assert_eq!(mode(&open), 0o755);
        assert!(is_own_directory(&open) && !is_own_directory(&root.path().join("none")));
        std::os::unix::fs::symlink(&open, root.path().join("link")).unwrap();
        assert!(!is_own_directory(&root.path().join("link")));
    }
}

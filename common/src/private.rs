//! Files and directories that only their owner can access.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

/// Sets a umask of 077 for this process and its children: new files are 0600 and new directories 0700 at
/// most.
pub fn restrict_umask() {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

/// Creates a directory and its missing parents with mode 0700, whatever the umask. Existing ones keep their
/// mode, which is their owner's choice.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// A file that holds a secret but is accessible to every user of this machine.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} holds a secret and is open to all users of this machine (mode {mode:03o}); run `chmod 600 {path}`",
    path = path.display()
)]
pub struct Exposed {
    path: PathBuf,
    mode: u32,
}

/// Refuses a file that others can access. Its group may have access: orchestrators mount secrets that way.
pub fn check_private(path: &Path, metadata: &Metadata) -> Result<(), Exposed> {
    let mode = metadata.mode() & 0o777;
    // A pipe or a device (`<(…)`) has no content that others could open.
    if !metadata.is_file() || mode & 0o007 == 0 {
        return Ok(());
    }
    Err(Exposed { path: path.to_owned(), mode })
}

/// Whether a directory belongs to this user and is not a link. In a folder that others can write to, they
/// could have created it.
pub fn is_own_directory(directory: &Path) -> bool {
    let owner = nix::unistd::geteuid().as_raw();
    fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_directories_are_private_and_existing_ones_keep_their_mode() {
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

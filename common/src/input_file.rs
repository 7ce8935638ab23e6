//! Opening files that a user names.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;

/// Opens a regular file. Others are refused: a pipe would wait for its writer forever, and a device may have
/// no end.
pub fn open(path: &Path) -> io::Result<File> {
    // Non-blocking, as opening a pipe would wait for a writer; it makes no difference for regular files.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let what =
        format!("it is {}; a regular file is expected: write the content to one first", describe(kind));
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// The content of a regular file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let what = format!("it is larger than {} MiB", limit >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

/// The content of a regular text file of at most `limit` bytes.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Description of a file that [`is_lfs_pointer`] recognizes, and what to do about it.
pub const LFS_POINTER: &str = "a Git LFS pointer in place of the file: fetch it with `git lfs pull`";

/// Parses a JSON file that transformers also reads, which accepts no byte-order mark. A [`Value`] takes up to
/// 150 times the memory of its text, so parse only the needed fields of a file that may be large.
///
/// [`Value`]: serde_json::Value
///
/// # Errors
/// A description of what the bytes are instead.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if is_lfs_pointer(bytes) {
        return Err(format!("it is {LFS_POINTER}"));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err("it starts with a byte-order mark: save it as UTF-8 without one".to_owned());
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// Whether these are the first bytes of a Git LFS pointer, the placeholder of a large file that was not
/// fetched.
pub fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(b"version https://git-lfs.github.com/spec/")
}

fn describe(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use serde_json::Value;
    use std::fs;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        for (path, what) in
            [(pipe.as_path(), "a pipe"), (Path::new("/dev/zero"), "a device"), (dir.path(), "a directory")]
        {
            let error = read(path, 10).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("regular file"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_json_is_described() {
        assert_eq!(json::<Value>(b"{}").unwrap(), serde_json::json!({}));
        let error = |bytes: &[u8]| json::<Value>(bytes).unwrap_err();
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        assert!(error(pointer).contains("git lfs pull"));
        assert!(error(b"\xef\xbb\xbf{}").contains("byte-order mark"));
        assert!(error(b"{").contains("EOF"));
    }

    #[test]
    fn no_more_is_read_than_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        fs::write(&path, "abc").unwrap();
        assert_eq!(read_text(&path, 3).unwrap(), "abc");
        assert_eq!(read(&path, 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path, 3).unwrap_err().to_string().contains("UTF-8"));
        // A link is followed.
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert_eq!(read(&dir.path().join("link"), 3).unwrap(), b"\xff");
    }
}

//! Downloaded objects on this rank's disk, by hash, so that bytes move only when they must.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use foil_common::safe_path;
use foil_common::storage::object::Digest;
use foil_proto::v1;

/// Rounds that an unused object is kept: the policy and the reward model of a round are used in the next.
const ROUNDS_KEPT: u32 = 1;

/// Where objects come from and go to; the Artifacts service, but for tests.
pub trait Objects: Send {
    /// The same store, for another thread.
    fn share(&self) -> Box<dyn Objects>;
    /// Writes the object's bytes to `file`, checked against its size and hash.
    fn download(&self, object: &v1::Object, file: &Path) -> Result<(), ObjectError>;
    /// Stores bytes under `key`; the object's path is left empty.
    fn upload(&self, key: &str, bytes: Vec<u8>) -> Result<v1::Object, ObjectError>;
    /// Stores a file of known digest under `key`; the object's path is left empty.
    fn upload_file(&self, key: &str, file: &Path, digest: &Digest) -> Result<v1::Object, ObjectError>;
}

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("object {key}: {message}")]
    Store { key: String, message: String },
    #[error("object {key} is missing or damaged: {message}")]
    Damaged { key: String, message: String },
    #[error("the coordinator no longer knows this attempt: {message}")]
    Stale { message: String },
    #[error("{}: {source}", path.display())]
    Disk { path: PathBuf, source: io::Error },
    #[error("artifact {artifact} holds an object named `{path}`, which is no plain file name")]
    Path { artifact: String, path: String },
}

/// Names the content of an artifact, or of some of its files: hex BLAKE3 over their names and hashes.
pub fn fingerprint<'o>(objects: impl IntoIterator<Item = &'o v1::Object>) -> String {
    let files: BTreeMap<&str, &str> =
        objects.into_iter().map(|object| (object.path.as_str(), object.blake3.as_str())).collect();
    let mut hasher = blake3::Hasher::new();
    for (path, hash) in files {
        hasher.update(path.as_bytes()).update(&[0]).update(hash.as_bytes()).update(&[0]);
    }
    hasher.finalize().to_hex().to_string()
}

/// Files under one directory: `objects/{blake3}`, and `artifacts/{fingerprint}/{file name}` linked to them.
pub struct Cache {
    dir: PathBuf,
    remote: Box<dyn Objects>,
    round: u32,
    /// The last round each object was used in, by hash.
    used: BTreeMap<String, u32>,
    /// The same of directories, by fingerprint.
    directories: BTreeMap<String, u32>,
}

impl Cache {
    /// `dir` is made where it is missing and must be this process's own.
    pub fn open(dir: &Path, remote: Box<dyn Objects>) -> Result<Self, ObjectError> {
        let cache = Self {
            dir: dir.to_owned(),
            remote,
            round: 0,
            used: BTreeMap::new(),
            directories: BTreeMap::new(),
        };
        for part in ["objects", "artifacts", "scratch"] {
            create_dir(&dir.join(part))?;
        }
        Ok(cache)
    }

    /// Drops what was not used since the round before `round`.
    pub fn enter_round(&mut self, round: u32) {
        self.round = round;
        let stale = |used: &u32| used + ROUNDS_KEPT < round;
        let (objects, directories) = (self.dir.join("objects"), self.dir.join("artifacts"));
        let dropped: BTreeSet<PathBuf> = (self.used.iter())
            .filter(|(_, used)| stale(used))
            .map(|(hash, _)| objects.join(hash))
            .chain(
                self.directories
                    .iter()
                    .filter(|(_, used)| stale(used))
                    .map(|(print, _)| directories.join(print)),
            )
            .collect();
        self.used.retain(|_, used| !stale(used));
        self.directories.retain(|_, used| !stale(used));
        for path in dropped {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(%error, path = %path.display(), "a cached file could not be removed");
            }
        }
    }

    /// The object's file, downloaded where it is not here yet.
    pub fn object(&mut self, object: &v1::Object) -> Result<PathBuf, ObjectError> {
        if object.blake3.is_empty() || !object.blake3.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = format!("`{}` is no hash", object.blake3);
            return Err(ObjectError::Store { key: object.key.clone(), message });
        }
        let file = self.dir.join("objects").join(&object.blake3);
        if !self.used.contains_key(&object.blake3) {
            self.remote.download(object, &file)?;
        }
        self.used.insert(object.blake3.clone(), self.round);
        Ok(file)
    }

    pub fn read(&mut self, object: &v1::Object) -> Result<Vec<u8>, ObjectError> {
        let file = self.object(object)?;
        fs::read(&file).map_err(disk(&file))
    }

    /// A directory with the artifact's files under their names.
    pub fn directory(&mut self, artifact: &v1::Artifact) -> Result<PathBuf, ObjectError> {
        let print = fingerprint(&artifact.objects);
        let dir = self.dir.join("artifacts").join(&print);
        let known = self.directories.contains_key(&print);
        if !known {
            create_dir(&dir)?;
        }
        for object in &artifact.objects {
            let source = self.object(object)?;
            if !known {
                let inside = safe_path::parse(&object.path).ok_or_else(|| ObjectError::Path {
                    artifact: artifact.name.clone(),
                    path: object.path.clone(),
                })?;
                let file = dir.join(inside);
                create_dir(file.parent().unwrap_or(&dir))?;
                fs::hard_link(&source, &file).map_err(disk(&file))?;
            }
        }
        self.directories.insert(print, self.round);
        Ok(dir)
    }

    /// An empty directory to write an output into.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, ObjectError> {
        let dir = self.dir.join("scratch").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(disk(&dir))?;
        }
        create_dir(&dir)?;
        Ok(dir)
    }

    /// Takes over a file written here, so that nobody downloads it to this rank again.
    pub fn adopt(&mut self, file: &Path, digest: &Digest) -> Result<(), ObjectError> {
        let kept = self.dir.join("objects").join(&digest.blake3);
        if self.used.insert(digest.blake3.clone(), self.round).is_none() {
            fs::rename(file, &kept).map_err(disk(file))?;
        }
        Ok(())
    }

    /// Where this cache gets its objects, for another thread.
    pub fn objects(&self) -> Box<dyn Objects> {
        self.remote.share()
    }

    pub fn upload(&self, key: &str, bytes: Vec<u8>) -> Result<v1::Object, ObjectError> {
        self.remote.upload(key, bytes)
    }

    pub fn upload_file(&self, key: &str, file: &Path, digest: &Digest) -> Result<v1::Object, ObjectError> {
        self.remote.upload_file(key, file, digest)
    }
}

/// Size and hash of a file, read on this thread.
pub fn digest_of(file: &Path) -> Result<Digest, ObjectError> {
    let mut hasher = blake3::Hasher::new();
    let opened = fs::File::open(file).map_err(disk(file))?;
    hasher.update_reader(opened).map_err(disk(file))?;
    Ok(Digest { size: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}

fn create_dir(dir: &Path) -> Result<(), ObjectError> {
    fs::create_dir_all(dir).map_err(disk(dir))
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> ObjectError {
    move |source| ObjectError::Disk { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::task_io::memory_objects::MemoryObjects;

    #[test]
    fn an_object_is_downloaded_once_and_dropped_when_two_rounds_have_passed() {
        let dir = tempfile::tempdir().unwrap();
        let remote = MemoryObjects::default();
        let object = remote.put("inputs/a", b"bytes", "config.json");
        let mut cache = Cache::open(dir.path(), Box::new(remote.clone())).unwrap();
        assert_eq!(cache.read(&object).unwrap(), b"bytes");
        let artifact =
            v1::Artifact { name: "policy@0".into(), objects: vec![object.clone()], ..Default::default() };
        let directory = cache.directory(&artifact).unwrap();
        assert_eq!(fs::read(directory.join("config.json")).unwrap(), b"bytes");
        cache.enter_round(1);
        assert_eq!((cache.read(&object).unwrap().len(), remote.downloads()), (5, 1));
        cache.enter_round(2);
        assert!(!directory.exists());
        assert_eq!(cache.read(&object).unwrap().len(), 5);
        cache.enter_round(4);
        assert_eq!((cache.read(&object).unwrap().len(), remote.downloads()), (5, 2));
    }

    #[test]
    fn a_file_written_here_is_not_downloaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let remote = MemoryObjects::default();
        let object = remote.put("jobs/j/model", b"weights", "model.safetensors");
        let mut cache = Cache::open(dir.path(), Box::new(remote.clone())).unwrap();
        let written = cache.scratch("out").unwrap().join("model.safetensors");
        fs::write(&written, b"weights").unwrap();
        cache.adopt(&written, &digest_of(&written).unwrap()).unwrap();
        assert_eq!((cache.read(&object).unwrap().as_slice(), remote.downloads()), (b"weights".as_slice(), 0));
    }

    #[test]
    fn a_path_out_of_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let remote = MemoryObjects::default();
        for path in ["../x", "/x", "a/b/c", ""] {
            let objects = vec![remote.put("k", b"bytes", path)];
            let artifact = v1::Artifact { name: "policy@0".into(), objects, ..Default::default() };
            let mut cache = Cache::open(dir.path(), Box::new(remote.clone())).unwrap();
            assert!(matches!(cache.directory(&artifact), Err(ObjectError::Path { .. })), "{path}");
        }
    }

    #[test]
    fn the_fingerprint_follows_names_and_hashes_whatever_their_order() {
        let object = |path: &str, blake3: &str| v1::Object {
            path: path.into(),
            blake3: blake3.into(),
            ..Default::default()
        };
        let one = fingerprint(&[object("a", "1"), object("b", "2")]);
        assert_eq!(one, fingerprint(&[object("b", "2"), object("a", "1")]));
        assert_ne!(one, fingerprint(&[object("a", "2"), object("b", "1")]));
    }
}

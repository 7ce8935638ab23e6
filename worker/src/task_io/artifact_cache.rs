//! A cache of downloaded objects on this rank's disk, addressed by hash.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use foil_common::oom::Bytes;
use foil_common::safe_path;
use foil_common::storage::object::Digest;
use nix::sys::statvfs::statvfs;

use super::shared_objects::SharedObjects;
use crate::task::{Artifact, Object};

/// Number of rounds for which an unused object is kept. The policy and the reward model of a round are used
/// in the next one.
pub(crate) const KEEP_ROUNDS: u32 = 1;

/// The store of a job's objects: the Artifacts service, or memory in tests.
pub trait ObjectStore: Send {
    /// A handle to the same store for another thread.
    fn share(&self) -> Box<dyn ObjectStore>;
    /// Downloads the object to `file` and checks its size and hash.
    fn download(&self, object: &Object, file: &Path) -> Result<(), ObjectError>;
    /// Uploads bytes under `key`; the returned object's path is empty.
    fn upload(&self, key: &str, bytes: Vec<u8>) -> Result<Object, ObjectError>;
    /// Uploads a file of known digest under `key`; the returned object's path is empty.
    fn upload_file(&self, key: &str, file: &Path, digest: &Digest) -> Result<Object, ObjectError>;
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
    #[error(
        "{}: the job needs {} there for models and checkpoints, of which {} are there already, but only {} are free",
        path.display(), Bytes(*needed), Bytes(*held), Bytes(*free)
    )]
    NoRoom { path: PathBuf, needed: u64, held: u64, free: u64 },
    #[error("artifact {artifact} holds an object named `{path}`, which is not a safe file name")]
    Path { artifact: String, path: String },
}

/// Identifies the content of an artifact or of some of its files: BLAKE3 in hex over their names and hashes.
pub fn fingerprint<'o>(objects: impl IntoIterator<Item = &'o Object>) -> String {
    let files: BTreeMap<&str, &str> =
        objects.into_iter().map(|object| (object.path.as_str(), object.blake3.as_str())).collect();
    let mut hasher = blake3::Hasher::new();
    for (path, hash) in files {
        hasher.update(path.as_bytes()).update(&[0]).update(hash.as_bytes()).update(&[0]);
    }
    hasher.finalize().to_hex().to_string()
}

/// Files in one directory: `objects/{blake3}`, and `artifacts/{fingerprint}/{file name}` with links to them.
pub struct ArtifactCache {
    dir: PathBuf,
    remote: Box<dyn ObjectStore>,
    /// Objects shared by all ranks of this agent.
    shared: Option<SharedObjects>,
    round: u32,
    /// The last round in which each object was used, by hash.
    used: BTreeMap<String, u32>,
    /// The last round in which each artifact's directory was used, by fingerprint.
    directories: BTreeMap<String, u32>,
}

impl ArtifactCache {
    /// Opens a cache in `dir`, which is created if it does not exist and must be exclusive to this process.
    pub fn open(dir: &Path, remote: Box<dyn ObjectStore>) -> Result<Self, ObjectError> {
        let cache = Self {
            dir: dir.to_owned(),
            remote,
            shared: None,
            round: 0,
            used: BTreeMap::new(),
            directories: BTreeMap::new(),
        };
        for part in ["objects", "artifacts", "scratch"] {
            create_dir(&dir.join(part))?;
        }
        Ok(cache)
    }

    /// Shares objects with the other ranks whose directories are in `dir`.
    #[must_use]
    pub fn shared_in(self, dir: &Path) -> Self {
        Self { shared: SharedObjects::open(dir), ..self }
    }

    /// Number of ranks that share objects, including this one.
    pub fn ranks(&self) -> u64 {
        self.shared.as_ref().map_or(1, |shared| shared.ranks().max(1))
    }

    /// Fails unless this cache can grow to `needed` bytes.
    pub fn require(&self, needed: u64) -> Result<(), ObjectError> {
        let objects = self.used.keys().map(|hash| self.dir.join("objects").join(hash));
        let held = objects.filter_map(|file| fs::metadata(file).ok()).map(|found| found.len()).sum();
        let found = statvfs(&self.dir).map_err(|error| disk(&self.dir)(error.into()))?;
        let free = found.blocks_available() * found.fragment_size();
        if free.saturating_add(held) < needed {
            return Err(ObjectError::NoRoom { path: self.dir.clone(), needed, held, free });
        }
        Ok(())
    }

    /// Begins a round and removes everything last used before the previous round.
    pub fn begin_round(&mut self, round: u32) {
        self.round = round;
        let stale = |used: &u32| used + KEEP_ROUNDS < round;
        let (objects, directories) = (self.dir.join("objects"), self.dir.join("artifacts"));
        let dropped: BTreeSet<PathBuf> = (self.used.iter())
            .filter(|(_, used)| stale(used))
            .map(|(hash, _)| objects.join(hash))
            .chain(
                self.directories
                    .iter()
                    .filter(|(_, used)| stale(used))
                    .map(|(fingerprint, _)| directories.join(fingerprint)),
            )
            .collect();
        self.used.retain(|_, used| !stale(used));
        self.directories.retain(|_, used| !stale(used));
        for path in dropped {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(%error, path = %path.display(), "cannot remove a cached file");
            }
        }
        if let Some(shared) = &self.shared {
            shared.sweep();
        }
    }

    /// The object's file, downloaded if it is not cached.
    pub fn object(&mut self, object: &Object) -> Result<PathBuf, ObjectError> {
        if object.blake3.is_empty() || !object.blake3.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = format!("`{}` is not a hash", object.blake3);
            return Err(ObjectError::Store { key: object.key.clone(), message });
        }
        let file = self.dir.join("objects").join(&object.blake3);
        let is_shared = |shared: &SharedObjects| shared.take(&object.blake3, object.size, &file);
        if !self.used.contains_key(&object.blake3) && !self.shared.as_ref().is_some_and(is_shared) {
            self.remote.download(object, &file)?;
            self.share(&object.blake3, &file);
        }
        self.used.insert(object.blake3.clone(), self.round);
        Ok(file)
    }

    pub fn read(&mut self, object: &Object) -> Result<Vec<u8>, ObjectError> {
        let file = self.object(object)?;
        fs::read(&file).map_err(disk(&file))
    }

    /// A directory with the artifact's files under their names.
    pub fn directory(&mut self, artifact: &Artifact) -> Result<PathBuf, ObjectError> {
        let fingerprint = fingerprint(&artifact.objects);
        let dir = self.dir.join("artifacts").join(&fingerprint);
        let is_complete = self.directories.contains_key(&fingerprint);
        if !is_complete {
            create_dir(&dir)?;
        }
        for object in &artifact.objects {
            let source = self.object(object)?;
            if !is_complete {
                let inside = safe_path::parse(&object.path).ok_or_else(|| ObjectError::Path {
                    artifact: artifact.name.clone(),
                    path: object.path.clone(),
                })?;
                let file = dir.join(inside);
                create_dir(file.parent().unwrap_or(&dir))?;
                fs::hard_link(&source, &file).map_err(disk(&file))?;
            }
        }
        self.directories.insert(fingerprint, self.round);
        Ok(dir)
    }

    /// An empty directory for an output.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, ObjectError> {
        let dir = self.dir.join("scratch").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(disk(&dir))?;
        }
        create_dir(&dir)?;
        Ok(dir)
    }

    /// Claims a piece of work that one rank does for all ranks that share objects with it. Returns whether
    /// this rank is the first to claim it. A claim is held until the rank's next one. Without other ranks,
    /// every claim is granted.
    pub fn claim(&self, work: &str) -> bool {
        let Some(shared) = &self.shared else { return true };
        let name = format!("claim-{}", blake3::hash(work.as_bytes()).to_hex());
        let claimed = self.scratch("claim").and_then(|dir| {
            let file = dir.join(&name);
            fs::write(&file, work).and_then(|()| shared.claim(&name, &file)).map_err(disk(&file))
        });
        claimed.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot leave work to other ranks of this machine");
            true
        })
    }

    /// Moves a file written by this rank into the cache, so that it need not be downloaded.
    pub fn adopt(&mut self, file: &Path, digest: &Digest) -> Result<(), ObjectError> {
        let kept = self.dir.join("objects").join(&digest.blake3);
        if self.used.insert(digest.blake3.clone(), self.round).is_none() {
            fs::rename(file, &kept).map_err(disk(file))?;
            self.share(&digest.blake3, &kept);
        }
        Ok(())
    }

    fn share(&self, hash: &str, file: &Path) {
        if let Some(shared) = &self.shared {
            shared.offer(hash, file);
        }
    }

    /// The store behind this cache, for another thread.
    pub fn objects(&self) -> Box<dyn ObjectStore> {
        self.remote.share()
    }

    pub fn upload(&self, key: &str, bytes: Vec<u8>) -> Result<Object, ObjectError> {
        self.remote.upload(key, bytes)
    }

    pub fn upload_file(&self, key: &str, file: &Path, digest: &Digest) -> Result<Object, ObjectError> {
        self.remote.upload_file(key, file, digest)
    }
}

/// Size and hash of a file, computed on this thread.
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
    use crate::task_io::memory_objects::MemoryObjectStore;

    #[test]
    fn an_object_is_downloaded_once_and_removed_after_two_unused_rounds() {
        let dir = tempfile::tempdir().unwrap();
        let remote = MemoryObjectStore::default();
        let object = remote.put("inputs/a", b"bytes", "config.json");
        let mut cache = ArtifactCache::open(dir.path(), Box::new(remote.clone())).unwrap();
        assert_eq!(cache.read(&object).unwrap(), b"bytes");
        let artifact = Artifact { name: "policy@0".into(), objects: vec![object.clone()] };
        let directory = cache.directory(&artifact).unwrap();
        assert_eq!(fs::read(directory.join("config.json")).unwrap(), b"bytes");
        cache.begin_round(1);
        assert_eq!((cache.read(&object).unwrap().len(), remote.downloads()), (5, 1));
        cache.begin_round(2);
        assert!(!directory.exists());
        assert_eq!(cache.read(&object).unwrap().len(), 5);
        cache.begin_round(4);
        assert_eq!((cache.read(&object).unwrap().len(), remote.downloads()), (5, 2));
    }

    #[test]
    fn what_one_rank_has_another_does_not_download() {
        let dir = tempfile::tempdir().unwrap();
        let remote = MemoryObjectStore::default();
        let object = remote.put("inputs/a", b"bytes", "model.safetensors");
        let open = |rank: &str| {
            let cache = ArtifactCache::open(&dir.path().join(rank), Box::new(remote.clone())).unwrap();
            cache.shared_in(dir.path())
        };
        let (mut first, mut second) = (open("rank-1"), open("rank-2"));
        assert_eq!(first.read(&object).unwrap(), b"bytes");
        assert_eq!((second.read(&object).unwrap().as_slice(), remote.downloads()), (b"bytes".as_slice(), 1));
        fs::remove_dir_all(dir.path().join("rank-1")).unwrap();
        second.begin_round(1);
        assert_eq!(second.read(&object).unwrap(), b"bytes");
    }

    #[test]
    fn room_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let remote = MemoryObjectStore::default();
        let object = remote.put("inputs/a", b"bytes", "model.safetensors");
        let mut cache = ArtifactCache::open(dir.path(), Box::new(remote)).unwrap();
        cache.read(&object).unwrap();
        cache.require(5).unwrap();
        let error = cache.require(1 << 60).unwrap_err().to_string();
        let expected = format!("{}: the job needs 1048576.0 TiB there", dir.path().display());
        assert!(
            error.starts_with(&expected) && error.contains("of which 5 bytes are there already"),
            "{error}"
        );
        assert_eq!(cache.ranks(), 1);
        for rank in ["rank-1", "rank-2"] {
            fs::create_dir(dir.path().join(rank)).unwrap();
        }
        let cache =
            ArtifactCache::open(&dir.path().join("rank-1"), Box::new(MemoryObjectStore::default())).unwrap();
        assert_eq!(cache.shared_in(dir.path()).ranks(), 2);
    }

    #[test]
    fn work_is_claimed_once_among_ranks_that_share_objects() {
        let dir = tempfile::tempdir().unwrap();
        let alone = |rank: &str| {
            ArtifactCache::open(&dir.path().join(rank), Box::new(MemoryObjectStore::default())).unwrap()
        };
        let (mut first, second) =
            (alone("rank-1").shared_in(dir.path()), alone("rank-2").shared_in(dir.path()));
        assert!(first.claim("jobs/j/a1/") && !second.claim("jobs/j/a1/"));
        first.begin_round(1);
        assert!(!second.claim("jobs/j/a1/"), "a claim outlives a sweep");
        assert!(second.claim("jobs/j/a2/") && !first.claim("jobs/j/a2/"));
        // The first one's claim of a1 ended with its next claim.
        first.begin_round(2);
        assert_eq!(fs::read_dir(dir.path().join("shared")).unwrap().count(), 1);
        assert!(alone("rank-3").claim("jobs/j/a2/") && alone("rank-4").claim("jobs/j/a2/"));
    }

    #[test]
    fn a_file_written_here_is_not_downloaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let remote = MemoryObjectStore::default();
        let object = remote.put("jobs/j/model", b"weights", "model.safetensors");
        let mut cache = ArtifactCache::open(dir.path(), Box::new(remote.clone())).unwrap();
        let written = cache.scratch("out").unwrap().join("model.safetensors");
        fs::write(&written, b"weights").unwrap();
        cache.adopt(&written, &digest_of(&written).unwrap()).unwrap();
        assert_eq!((cache.read(&object).unwrap().as_slice(), remote.downloads()), (b"weights".as_slice(), 0));
    }

    #[test]
    fn a_path_outside_the_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let remote = MemoryObjectStore::default();
        for path in ["../x", "/x", "a/b/c", ""] {
            let objects = vec![remote.put("k", b"bytes", path)];
            let artifact = Artifact { name: "policy@0".into(), objects };
            let mut cache = ArtifactCache::open(dir.path(), Box::new(remote.clone())).unwrap();
            assert!(matches!(cache.directory(&artifact), Err(ObjectError::Path { .. })), "{path}");
        }
    }

    #[test]
    fn the_fingerprint_depends_on_names_and_hashes_but_not_their_order() {
        let object = |path: &str, blake3: &str| Object {
            path: path.into(),
            blake3: blake3.into(),
            ..Default::default()
        };
        let one = fingerprint(&[object("a", "1"), object("b", "2")]);
        assert_eq!(one, fingerprint(&[object("b", "2"), object("a", "1")]));
        assert_ne!(one, fingerprint(&[object("a", "2"), object("b", "1")]));
    }
}

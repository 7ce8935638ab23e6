//! The work directory of an export: next to its target, so that one rename puts the export in place. An
//! interrupted export resumes in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::card::ModelFile;
use crate::local_file::{remove, write_atomic};
use crate::size;

const STATE: &str = "state.json";
const LOCK: &str = "lock";
/// The files of the export.
const OUT: &str = "out";
/// Files of a coordinator's artifact, before they are converted.
const SOURCE: &str = "source";
/// Space that is left free.
const SPARE: u64 = 16 << 20;
/// Endings of the names of files that an export, or a tool that publishes one, writes.
const KNOWN: [&str; 8] =
    [".safetensors", ".json", ".jinja", ".txt", ".model", ".md", ".gitattributes", ".gguf"];

#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// The export's source and options.
    request: Value,
    shards: Vec<ModelFile>,
}

#[derive(Debug)]
pub(super) struct Work {
    dir: PathBuf,
    target: PathBuf,
    state: State,
    /// Released when the process ends.
    _lock: File,
}

impl Work {
    /// Opens the work directory of a target. Remains of another request are removed.
    pub(super) fn open(target: &Path, request: Value) -> Result<Self> {
        let whole =
            std::path::absolute(target).with_context(|| format!("cannot use {}", target.display()))?;
        let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
            bail!("{} cannot be written to; name a directory that is to be made", target.display());
        };
        let dir = parent.join(format!(".{}.foil-export", name.to_string_lossy()));
        let cannot = || format!("cannot write to {}", dir.display());
        fs::create_dir_all(&dir).with_context(cannot)?;
        let lock = File::create(dir.join(LOCK)).with_context(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another `foil export` is writing {}; wait for it", target.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        let earlier: Option<State> =
            fs::read(dir.join(STATE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let state = match earlier.filter(|state| state.request == request) {
            Some(state) => state,
            None => {
                for name in [OUT, SOURCE, STATE] {
                    remove(&dir.join(name)).with_context(cannot)?;
                }
                State { request, shards: Vec::new() }
            }
        };
        fs::create_dir_all(dir.join(OUT)).with_context(cannot)?;
        let mut work = Self { dir, target: whole, state, _lock: lock };
        work.forget_damaged();
        work.save()?;
        Ok(work)
    }

    /// Forgets the shards that are missing or differ from what was written.
    fn forget_damaged(&mut self) {
        let out = self.out();
        let is_whole = |shard: &ModelFile| {
            let file = File::open(out.join(&shard.name));
            let mut hasher = blake3::Hasher::new();
            file.is_ok_and(|file| hasher.update_reader(file).is_ok())
                && hasher.finalize().to_hex().as_str() == shard.blake3
        };
        self.state.shards.retain(is_whole);
    }

    fn save(&self) -> Result<()> {
        write_atomic(&self.dir.join(STATE), &serde_json::to_vec_pretty(&self.state)?)
    }

    pub(super) fn out(&self) -> PathBuf {
        self.dir.join(OUT)
    }

    pub(super) fn source(&self) -> PathBuf {
        self.dir.join(SOURCE)
    }

    /// The path of a shard while it is written.
    pub(super) fn unfinished(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.part"))
    }

    pub(super) fn finished(&self, name: &str) -> Option<ModelFile> {
        self.state.shards.iter().find(|shard| shard.name == name).cloned()
    }

    /// Moves a shard that is complete and synced to its place, and remembers it.
    pub(super) fn finish(&mut self, shard: ModelFile) -> Result<()> {
        let (part, path) = (self.unfinished(&shard.name), self.out().join(&shard.name));
        fs::rename(part, &path).with_context(|| format!("cannot write {}", path.display()))?;
        self.state.shards.push(shard);
        self.save()
    }

    /// Refuses an export that does not fit on its file system. `wanted` is its total size.
    pub(super) fn require_space(&self, wanted: u64) -> Result<()> {
        let there: u64 =
            self.state.shards.iter().map(|shard| shard.size).sum::<u64>() + size_of(&self.source());
        let found =
            statvfs(&self.dir).with_context(|| format!("cannot ask {} for its room", self.dir.display()))?;
        require(wanted.saturating_sub(there), found.blocks_available() * found.fragment_size(), &self.target)
    }

    /// Puts the export in its target's place and removes everything else.
    pub(super) fn place(self, force: bool) -> Result<()> {
        let cannot = || format!("cannot write {}", self.target.display());
        require_free(&self.target, force)?;
        let old = self.dir.join("replaced");
        remove(&old).with_context(cannot)?;
        if self.target.exists() {
            fs::rename(&self.target, &old).with_context(cannot)?;
        }
        fs::rename(self.out(), &self.target).with_context(cannot)?;
        if let Some(parent) = self.target.parent() {
            File::open(parent).and_then(|parent| parent.sync_all()).with_context(cannot)?;
        }
        remove(&self.dir).with_context(cannot)
    }

    /// Removes everything that was made.
    pub(super) fn abandon(self) {
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "cannot remove an unfinished export");
        }
    }
}

fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        metadata => metadata.map_or(0, |metadata| metadata.len()),
    };
    entries.map(size).sum()
}

fn require(wanted: u64, free: u64, target: &Path) -> Result<()> {
    if wanted.saturating_add(SPARE) > free {
        bail!(
            "{} needs {}, but its file system has {} free; free some space, or take another directory or --dtype bf16",
            target.display(),
            size::text(wanted),
            size::text(free)
        );
    }
    Ok(())
}

/// Refuses a target that is not empty. With `force`, it may hold an earlier export and nothing else, since
/// the directory is replaced.
pub(super) fn require_free(target: &Path, force: bool) -> Result<()> {
    let shown = target.display();
    if !target.is_dir() {
        if target.exists() {
            bail!("{shown} is a file; name a directory that is to be made");
        }
        return Ok(());
    }
    let entries = fs::read_dir(target).with_context(|| format!("cannot read {shown}"))?;
    let entries: Vec<fs::DirEntry> = entries.collect::<Result<_, _>>()?;
    if entries.is_empty() {
        return Ok(());
    }
    if !force {
        bail!("{shown} is there already; name another directory, or replace it with --force");
    }
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let is_export =
        entries.iter().any(|entry| ["config.json", "adapter_config.json"].contains(&name(entry).as_str()));
    let is_other = |entry: &&fs::DirEntry| {
        !entry.file_type().is_ok_and(|kind| kind.is_file())
            || !KNOWN.iter().any(|end| name(entry).ends_with(end))
    };
    match entries.iter().find(is_other) {
        _ if !is_export => {
            bail!("{shown} holds no model, so --force does not replace it; name another directory")
        }
        Some(other) => bail!(
            "{shown} holds {}, which an export does not write, so --force does not replace it; move that away, or name another \
             directory",
            name(other)
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shard(name: &str, content: &[u8]) -> ModelFile {
        ModelFile {
            name: name.into(),
            size: content.len() as u64,
            blake3: blake3::hash(content).to_hex().to_string(),
        }
    }

    #[test]
    fn an_interrupted_export_resumes_and_another_one_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("export");
        let mut work = Work::open(&target, json!(1)).unwrap();
        assert!(Work::open(&target, json!(1)).unwrap_err().to_string().contains("another `foil export`"));
        for name in ["a", "b"] {
            fs::write(work.unfinished(name), name).unwrap();
            work.finish(shard(name, name.as_bytes())).unwrap();
        }
        let path = work.out().join("b");
        drop(work);
        // A shard that was damaged in the meantime is written again.
        fs::write(path, "x").unwrap();
        let work = Work::open(&target, json!(1)).unwrap();
        assert!(work.finished("a").is_some() && work.finished("b").is_none());
        drop(work);
        let work = Work::open(&target, json!(2)).unwrap();
        assert!(work.finished("a").is_none() && !work.out().join("a").exists());
        fs::write(work.out().join("c"), "c").unwrap();
        work.place(false).unwrap();
        assert_eq!(fs::read_to_string(target.join("c")).unwrap(), "c");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left next to it");
    }

    #[test]
    fn only_an_earlier_export_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |target: &Path, force| require_free(target, force).err().map(|error| error.to_string());
        assert_eq!(refused(&dir.path().join("absent"), false), None);
        assert_eq!(refused(dir.path(), false), None, "an empty one is used");
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        assert!(refused(dir.path(), false).unwrap().contains("--force"));
        assert!(refused(dir.path(), true).unwrap().contains("holds no model"));
        fs::write(dir.path().join("config.json"), "").unwrap();
        assert_eq!(refused(dir.path(), true), None);
        fs::create_dir(dir.path().join(".git")).unwrap();
        assert!(refused(dir.path(), true).unwrap().contains("holds .git"));
        assert!(refused(&dir.path().join("config.json"), true).unwrap().contains("is a file"));
    }

    #[test]
    fn an_export_without_room_is_refused_with_both_sizes() {
        let error = require(3 << 30, 1 << 30, Path::new("out")).unwrap_err().to_string();
        assert!(error.contains("out needs 3.0 GiB") && error.contains("1.0 GiB free"), "{error}");
        require(0, 1 << 30, Path::new("out")).unwrap();
    }
}

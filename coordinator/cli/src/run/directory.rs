//! The output directory of a run: its owner, its content and its lock.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use foil_common::spec::without_scheduling;
use foil_proto::v1;
use serde_json::Value;

use crate::local_file::{remove, write_atomic};
use crate::results;

const SPEC: &str = "job.json";
const RESULT: &str = "result.json";
const STORE: &str = "store";
const LOGS: &str = "logs";

/// An output directory that belongs to one specification, locked by this process.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Released when the process ends.
    _lock: File,
}

impl Directory {
    /// Opens and locks `path` for a job. A directory of another specification is refused, unless that job
    /// failed or `fresh` is set; then the files of the earlier run are removed, and nothing else.
    pub(super) fn open(path: &Path, fresh: bool, spec: &v1::JobSpec) -> Result<Self> {
        let cannot =
            || format!("cannot use the output directory {}; give another with --out", path.display());
        fs::create_dir_all(path).with_context(cannot)?;
        let lock = File::create(path.join(".lock")).with_context(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another `foil run` is using {}; wait for it, or give another --out", path.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        let directory = Self { path: path.to_owned(), _lock: lock };
        let is_other =
            directory.owner().is_some_and(|owner| without_scheduling(&owner) != without_scheduling(spec));
        let has_failed = directory.result().is_some_and(|result| result["state"] != "succeeded");
        if fresh || (is_other && has_failed) {
            for name in results::NAMES.into_iter().chain([SPEC, RESULT, STORE, LOGS]) {
                remove(&path.join(name)).with_context(cannot)?;
            }
        } else if is_other {
            bail!(
                "{} belongs to a job with other settings (see {SPEC} there); give another --out, or --fresh to remove it",
                path.display()
            );
        }
        Ok(directory)
    }

    /// The specification that owns the directory.
    fn owner(&self) -> Option<v1::JobSpec> {
        serde_json::from_slice(&fs::read(self.path.join(SPEC)).ok()?).ok()
    }

    fn result(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.path.join(RESULT)).ok()?).ok()
    }

    /// Makes a specification the owner, once the coordinator has accepted its job.
    pub(super) fn claim(&self, spec: &v1::JobSpec) -> Result<()> {
        write_atomic(&self.path.join(SPEC), &serde_json::to_vec_pretty(spec)?)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.path.join(LOGS)
    }

    /// The summary of the job, if it succeeded and its models are there.
    pub(super) fn finished(&self) -> Option<Value> {
        let summary = self.result().filter(|summary| summary["state"] == "succeeded")?;
        let is_there = |name: &str| self.path.join(name).join("config.json").is_file();
        (is_there("policy") && is_there("reward")).then_some(summary)
    }

    pub(super) fn finish(&self, summary: &Value) -> Result<()> {
        write_atomic(&self.path.join(RESULT), &serde_json::to_vec_pretty(summary)?)
    }

    pub(super) fn remove_store(&self) -> Result<()> {
        let store = self.store();
        remove(&store).with_context(|| format!("cannot remove {}", store.display()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(name: &str) -> v1::JobSpec {
        v1::JobSpec { name: name.to_owned(), ..Default::default() }
    }

    fn open(path: &Path, fresh: bool, name: &str) -> Result<Directory, String> {
        Directory::open(path, fresh, &spec(name)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_belongs_to_one_job_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), false, "a").unwrap();
        assert!(open(dir.path(), false, "a").unwrap_err().contains("another `foil run` is using"));
        drop(first);
        // A job that was never accepted leaves no claim.
        open(dir.path(), false, "b").unwrap().claim(&spec("b")).unwrap();
        open(dir.path(), false, "b").unwrap();
        assert!(open(dir.path(), false, "c").unwrap_err().contains("give another --out, or --fresh"));
        let urgent = v1::JobSpec { priority: Some(100), ..spec("b") };
        drop(Directory::open(dir.path(), false, &urgent).unwrap());
        fs::write(dir.path().join("mine.txt"), "kept").unwrap();
        open(dir.path(), true, "c").unwrap();
        assert!(dir.path().join("mine.txt").exists() && !dir.path().join(SPEC).exists());
    }

    #[test]
    fn a_failed_job_is_replaced_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let directory = open(dir.path(), false, "a").unwrap();
        directory.claim(&spec("a")).unwrap();
        directory.finish(&json!({ "state": "failed" })).unwrap();
        drop(directory);
        assert!(open(dir.path(), false, "b").unwrap().result().is_none());
    }

    #[test]
    fn a_result_is_valid_while_its_models_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let directory = open(dir.path(), false, "a").unwrap();
        directory.finish(&json!({ "job": "j", "state": "succeeded" })).unwrap();
        assert!(directory.finished().is_none());
        for model in ["policy", "reward"] {
            write_atomic(&dir.path().join(model).join("config.json"), b"{}").unwrap();
        }
        assert_eq!(directory.finished().unwrap()["job"], "j");
    }
}

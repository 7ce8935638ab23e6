//! The output directory of a run: its owner, its content and its lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use foil_common::spec::{Difference, differences, without_scheduling};
use foil_proto::v1;
use serde_json::Value;

use super::lock::{Holder, LOCK, Program, lock};
use crate::local_file::{remove, write_atomic};
use crate::results;

pub(crate) const SPEC: &str = "job.json";
pub(crate) const RESULT: &str = "result.json";
pub(crate) const STORE: &str = "store";
const LOGS: &str = "logs";

/// An output directory that belongs to one specification, locked by this process.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Released when the process ends.
    lock: File,
    /// Whether this process made it.
    is_new: bool,
}

impl Directory {
    /// Opens and locks `path` for a job. A directory of another specification is refused, unless that job
    /// failed or `fresh` is set; then the files of the earlier run are removed, and nothing else.
    pub(super) fn open(path: &Path, fresh: bool, spec: &v1::JobSpec) -> Result<Self> {
        let cannot =
            || format!("cannot use the output directory {}; give another with --out", path.display());
        let is_new = !path.exists();
        fs::create_dir_all(path).with_context(cannot)?;
        let Some(lock) = lock(path).with_context(cannot)? else {
            match Holder::of(path) {
                Some(Holder { program: Program::Ui, url, .. }) => bail!(
                    "a `foil ui` has {} open, at {url}; end that by ctrl-c first, or give another --out",
                    path.display()
                ),
                _ => bail!(
                    "another `foil run` is using {}; wait for it, or give another --out",
                    path.display()
                ),
            }
        };
        let directory = Self { path: path.to_owned(), lock, is_new };
        let other = directory
            .owner()
            .map(|owner| without_scheduling(&owner))
            .filter(|owner| *owner != without_scheduling(spec));
        let has_failed = directory.result().is_some_and(|result| result["state"] != "succeeded");
        if fresh || (other.is_some() && has_failed) {
            for name in results::NAMES.into_iter().chain([SPEC, RESULT, STORE, LOGS]) {
                remove(&path.join(name)).with_context(cannot)?;
            }
        } else if let Some(other) = other {
            bail!(
                "{} belongs to a job with other settings: {}; give another --out, or --fresh to remove it",
                path.display(),
                told(&differences(&other, &without_scheduling(spec)))
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

    /// Removes a directory that this process made for a job that was not accepted. Its logs stay with it if
    /// something else went wrong.
    pub(super) fn discard(&self) {
        if !self.is_new || self.path.join(SPEC).exists() {
            return;
        }
        let removed = [STORE, LOGS, LOCK].iter().try_for_each(|name| remove(&self.path.join(name)));
        if let Err(error) = removed.and_then(|()| fs::remove_dir(&self.path)) {
            tracing::warn!(%error, "cannot remove {}", self.path.display());
        }
    }

    /// Lets `foil ui` and `foil report` of this directory find the run while it is in progress.
    pub(super) fn announce(&self, url: &str, job: &str) {
        let (url, job) = (url.trim_end_matches('/').to_owned(), job.to_owned());
        if let Err(error) = (Holder { program: Program::Run, url, job }).announce(&self.lock) {
            tracing::warn!(%error, "cannot write the lock file of {}", self.path.display());
        }
    }

    /// Withdraws the announcement before the coordinator ends.
    pub(super) fn withdraw(&self) {
        if let Err(error) = self.lock.set_len(0) {
            tracing::warn!(%error, "cannot write the lock file of {}", self.path.display());
        }
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

    /// The summary of the job, if it succeeded and its models are present.
    pub(super) fn finished(&self) -> Option<Value> {
        let summary = self.result().filter(|summary| summary["state"] == "succeeded")?;
        let is_there = |name: &str| self.path.join(name).join("config.json").is_file();
        (is_there("policy") && is_there("reward")).then_some(summary)
    }

    pub(super) fn finish(&self, summary: &Value) -> Result<()> {
        write_atomic(&self.path.join(RESULT), &serde_json::to_vec_pretty(summary)?)
    }
}

/// The settings in which the owner of a directory differs from a job.
fn told(others: &[Difference]) -> String {
    const SHOWN: usize = 3;
    if others.is_empty() {
        return "its inputs were read from other paths".to_owned();
    }
    let tell = |Difference { field, values: [there, here] }: &Difference| {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unset".to_owned());
        format!("{field} is {} there and {} here", text(there), text(here))
    };
    let mut told: Vec<String> = others.iter().take(SHOWN).map(tell).collect();
    match others.len().saturating_sub(SHOWN) {
        0 => {}
        more => told.push(format!("and {more} more, by {SPEC} there")),
    }
    told.join(", ")
}

/// A directory's absolute path as one shell word, for a command shown to the user. `None` if it is not one
/// line of text.
pub(crate) fn shell_word(directory: &Path) -> Option<String> {
    let whole = directory.canonicalize().ok()?;
    let path = whole.to_str().filter(|path| !path.contains(char::is_control))?;
    let is_plain = |character: char| character.is_alphanumeric() || "/._-+@=:,".contains(character);
    match path.chars().all(is_plain) {
        true => Some(path.to_owned()),
        false => Some(format!("'{}'", path.replace('\'', r"'\''"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

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
        let refused = open(dir.path(), false, "c").unwrap_err();
        assert!(refused.contains("name is b there and c here; give another --out, or --fresh"), "{refused}");
        let urgent = v1::JobSpec { priority: Some(100), ..spec("b") };
        drop(Directory::open(dir.path(), false, &urgent).unwrap());
        fs::write(dir.path().join("mine.txt"), "kept").unwrap();
        open(dir.path(), true, "c").unwrap();
        assert!(dir.path().join("mine.txt").exists() && !dir.path().join(SPEC).exists());
    }

    #[test]
    fn a_directory_made_for_a_refused_job_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs/a");
        let refused = open(&path, false, "a").unwrap();
        fs::create_dir_all(refused.store().join("meta")).unwrap();
        fs::create_dir_all(refused.logs()).unwrap();
        refused.discard();
        assert!(!path.exists() && dir.path().join("runs").exists());
        // Not one that was there, or whose job was accepted.
        fs::create_dir(&path).unwrap();
        open(&path, false, "a").unwrap().discard();
        assert!(path.exists());
        let accepted = open(&dir.path().join("b"), false, "b").unwrap();
        accepted.claim(&spec("b")).unwrap();
        accepted.discard();
        assert!(dir.path().join("b").join(SPEC).exists());
    }

    #[test]
    fn settings_that_differ_are_told_up_to_a_few() {
        let other =
            |field: &str| Difference { field: field.to_owned(), values: [None, Some("1".to_owned())] };
        let fields = ["a", "b.c", "d", "e", "f"].map(other);
        assert_eq!(told(&[]), "its inputs were read from other paths");
        assert_eq!(told(&fields[..1]), "a is unset there and 1 here");
        assert!(told(&fields).ends_with("d is unset there and 1 here, and 2 more, by job.json there"));
    }

    #[test]
    fn a_run_keeps_the_url_of_a_page_that_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap().unwrap();
        let url = "http://127.0.0.1:7".to_owned();
        let holder = Holder { program: Program::Ui, url, job: "j".into() };
        holder.announce(&held).unwrap();
        for _ in 0..2 {
            let refused = open(dir.path(), false, "a").unwrap_err();
            assert!(
                refused.contains("a `foil ui` has") && refused.contains("http://127.0.0.1:7"),
                "{refused}"
            );
        }
        drop(held);
        open(dir.path(), false, "a").unwrap();
        assert_eq!(Holder::of(dir.path()), None, "it belonged to a process that has ended");
    }

    #[test]
    fn a_run_in_progress_tells_where_it_is_and_takes_it_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "").unwrap();
        fs::set_permissions(dir.path().join(LOCK), Permissions::from_mode(0o644)).unwrap();
        let run = open(dir.path(), false, "a").unwrap();
        run.announce("http://127.0.0.1:7/", "j1");
        let holder = Holder::of(dir.path()).unwrap();
        assert_eq!((holder.program, holder.page().as_str()), (Program::Run, "http://127.0.0.1:7/jobs/j1"));
        let mode = fs::metadata(dir.path().join(LOCK)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(open(dir.path(), false, "a").unwrap_err().contains("another `foil run` is using"));
        assert_eq!(Holder::of(dir.path()), Some(holder), "a refused process leaves it unchanged");
        run.withdraw();
        assert_eq!(Holder::of(dir.path()), None);
        run.announce("http://127.0.0.1:8", "j1");
        drop(run);
        open(dir.path(), false, "a").unwrap();
        assert_eq!(Holder::of(dir.path()), None, "a process that was killed leaves its line, but no lock");
    }

    #[test]
    fn a_directory_is_one_word_of_a_shell() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().canonicalize().unwrap();
        let word = |name: &str| {
            fs::create_dir_all(whole.join(name)).unwrap();
            let word = shell_word(&whole.join(name)).unwrap();
            word.replace(whole.to_str().unwrap(), "T")
        };
        assert_eq!(word("letters-2"), "T/letters-2");
        assert_eq!(word("it's $HOME"), r"'T/it'\''s $HOME'");
        fs::create_dir(whole.join("a\nb")).unwrap();
        assert_eq!(shell_word(&whole.join("a\nb")), None);
        assert_eq!(shell_word(&whole.join("absent")), None);
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

//! Pruning of a finished run's store.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use foil_common::storage::object::SIDECAR;
use foil_proto::v1;

/// Removes from the store what a finished job does not need: models, which are also outside the store,
/// checkpoints and inputs. What the job's page shows is kept.
pub(super) fn prune_store(store: &Path, job: &v1::Job) -> Result<()> {
    let kept: HashSet<&str> = job
        .artifacts
        .iter()
        .flat_map(|artifact| &artifact.objects)
        .filter(|object| !is_weights(&object.path))
        .map(|object| object.key.as_str())
        .collect();
    let whole = ["data", "logs", "trackers"].map(|folder| format!("jobs/{}/{folder}/", job.id));
    let keeps = |key: &str| {
        key.starts_with("meta/")
            || whole.iter().any(|prefix| key.starts_with(prefix))
            || kept.contains(key.strip_suffix(SIDECAR).unwrap_or(key))
    };
    prune(store, store, &keeps).with_context(|| format!("cannot clean up {}", store.display()))
}

fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".bin")
}

/// Removes the files below a folder whose keys are not kept, and the folders that are left empty.
fn prune(root: &Path, folder: &Path, keeps: &dyn Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            prune(root, &path, keeps)?;
            // One that is not empty stays.
            let _ = fs::remove_dir(&path);
            continue;
        }
        let key = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
        if !keeps(&key) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_file::write_atomic;

    #[test]
    fn a_finished_runs_store_keeps_what_its_page_shows() {
        let dir = tempfile::tempdir().unwrap();
        let object = |key: &str, path: &str| v1::Object {
            key: key.to_owned(),
            path: path.to_owned(),
            ..Default::default()
        };
        let artifact = |kind: &str, objects: Vec<v1::Object>| v1::Artifact {
            kind: kind.to_owned(),
            objects,
            ..Default::default()
        };
        let policy = "jobs/j/phases/r01.policy.train/1/";
        let samples = "jobs/j/phases/r01.policy.generate/00000/1-1-1";
        let job = v1::Job {
            id: "j".to_owned(),
            artifacts: vec![
                artifact("samples", vec![object(samples, "00000")]),
                artifact(
                    "policy",
                    vec![
                        object(&format!("{policy}model.safetensors"), "model.safetensors"),
                        object(&format!("{policy}tokenizer.json"), "tokenizer.json"),
                    ],
                ),
            ],
            ..Default::default()
        };
        let kept = [
            "meta/log/1".to_owned(),
            "jobs/j/data/prompts.jsonl".to_owned(),
            "jobs/j/logs/1/0/s/0-9".to_owned(),
            "jobs/j/trackers/mlflow/complete".to_owned(),
            samples.to_owned(),
            format!("{samples}.b3"),
            format!("{policy}tokenizer.json"),
            format!("{policy}tokenizer.json.b3"),
        ];
        let removed = [
            "inputs/default/ab".to_owned(),
            "jobs/j/phases/r01.policy.train/1/checkpoint-7/0".to_owned(),
            "jobs/other/data/prompts.jsonl".to_owned(),
            format!("{policy}model.safetensors"),
            format!("{policy}model.safetensors.b3"),
        ];
        for key in kept.iter().chain(&removed) {
            write_atomic(&dir.path().join(key), b"x").unwrap();
        }
        prune_store(dir.path(), &job).unwrap();
        let is_there = |key: &String| dir.path().join(key).is_file();
        assert!(kept.iter().all(is_there) && !removed.iter().any(is_there));
        assert!(!dir.path().join("inputs").exists(), "no empty folders are left");
    }
}

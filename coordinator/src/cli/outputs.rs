//! What a finished job leaves on this machine: models, per-step metrics, samples with their scores.
//!
//! ```text
//! DIR/policy/  reward/          the last round's models, Hugging Face directories
//! DIR/rounds/policy@1/ …        every round's
//! DIR/metrics.jsonl             every training step
//! DIR/samples/round-01.jsonl    what the policy was trained on in round 1, and the scores
//! DIR/samples/round-01.evaluation.jsonl
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use foil_common::rpc::{Line, artifacts};
use foil_proto::v1;

use super::progress::Progress;
use super::report::LocalArtifacts;
use super::{pull, samples};

/// Everything [`bring`] writes, by name in its directory.
pub(crate) const NAMES: [&str; 5] = ["policy", "reward", "rounds", "metrics.jsonl", "samples"];

/// Downloads what the job has made so far.
pub(crate) async fn bring(
    line: &Line,
    job: &v1::Job,
    dir: &Path,
    progress: &Progress,
) -> Result<LocalArtifacts> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for artifact in
        job.artifacts.iter().filter(|artifact| ["policy", "reward"].contains(&artifact.kind.as_str()))
    {
        pull::artifact(line, artifact, &dir.join("rounds").join(&artifact.name), progress).await?;
    }
    metrics(line, job, &dir.join("metrics.jsonl")).await?;
    samples::write_all(line, job, &dir.join("samples")).await?;
    Ok(LocalArtifacts { policy: link_last(job, "policy", dir)?, reward: link_last(job, "reward", dir)? })
}

/// All training phases' steps in one file.
async fn metrics(line: &Line, job: &v1::Job, path: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for artifact in job.artifacts.iter().filter(|artifact| artifact.kind == "metrics") {
        for object in &artifact.objects {
            lines.extend_from_slice(&artifacts::download_bytes(line, object).await?);
            if lines.last().is_some_and(|byte| *byte != b'\n') {
                lines.push(b'\n');
            }
        }
    }
    write_whole(path, &lines)
}

/// Makes `dir/kind` the last round's model, sharing its bytes with `dir/rounds`.
fn link_last(job: &v1::Job, kind: &str, dir: &Path) -> Result<Option<String>> {
    let Some(artifact) = pull::last(job, kind) else { return Ok(None) };
    let (from, to) = (dir.join("rounds").join(&artifact.name), dir.join(kind));
    let part = dir.join(format!(".{kind}.part"));
    replace(&from, &part, &to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(Some(to.to_string_lossy().into_owned()))
}

fn replace(from: &Path, part: &Path, to: &Path) -> io::Result<()> {
    remove(part)?;
    fs::create_dir_all(part)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = part.join(entry.file_name());
        // Some file systems have no hard links.
        if fs::hard_link(entry.path(), &target).is_err() {
            fs::copy(entry.path(), &target)?;
        }
    }
    remove(to)?;
    fs::rename(part, to)
}

/// Removes a file or a directory, which need not be there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Writes a file that appears only when it is whole.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        fs::write(&part, bytes)?;
        fs::rename(part, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_model_replaces_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let policy = |round: u32| v1::Artifact {
            name: format!("policy@{round}"),
            kind: "policy".into(),
            ..Default::default()
        };
        let mut job = v1::Job::default();
        for round in 1..=2 {
            let model = dir.path().join(format!("rounds/policy@{round}"));
            write_whole(&model.join("config.json"), format!("{round}").as_bytes()).unwrap();
            job.artifacts.push(policy(round));
            let path = link_last(&job, "policy", dir.path()).unwrap().unwrap();
            assert_eq!(fs::read_to_string(Path::new(&path).join("config.json")).unwrap(), format!("{round}"));
        }
        assert!(link_last(&job, "reward", dir.path()).unwrap().is_none());
        assert_eq!(fs::read_to_string(dir.path().join("rounds/policy@1/config.json")).unwrap(), "1");
    }
}

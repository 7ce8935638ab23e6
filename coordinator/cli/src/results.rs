//! The results of a job on this machine: models, per-step metrics, completions with their scores.
//!
//! ```text
//! DIR/policy/  reward/          the last round's models, Hugging Face directories with a model card
//! DIR/rounds/policy@1/ …        the models of every round
//! DIR/metrics.jsonl             every training step, and each round's drift between sampler and trainer
//! DIR/samples/round-01.jsonl    completions that the policy was trained on in round 1, and their scores
//! DIR/samples/round-01.evaluation.jsonl
//! DIR/tensorboard/              TensorBoard's event files, of a job that reports to it
//! ```

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use foil_common::rpc::{LeaderChannel, artifacts};
use foil_coordinator::job::last_artifact;
use foil_proto::v1;
use serde_json::{Map, Value, json};

use super::local_file::{remove, write_atomic};
use super::progress::Progress;
use super::report::LocalArtifacts;
use super::trackers::{self, EVENT_FILES, Mirror};
use super::{card, download, samples};

/// Names of everything that [`download_results`] writes to its directory.
pub(crate) const NAMES: [&str; 6] = ["policy", "reward", "rounds", "metrics.jsonl", "samples", EVENT_FILES];

/// Downloads the job's results so far. `hardware` is what its ranks ran on, if that is known.
pub(crate) async fn download_results(
    line: &LeaderChannel,
    job: &v1::Job,
    dir: &Path,
    hardware: &[String],
    progress: &Progress,
) -> Result<LocalArtifacts> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for artifact in job.artifacts.iter().filter(|artifact| is_model(artifact)) {
        let model = dir.join("rounds").join(&artifact.name);
        download::artifact(line, artifact, &model, progress).await?;
        card::write(&model, &card::Provenance::new(job, artifact, hardware))?;
    }
    metrics(line, job, &dir.join("metrics.jsonl")).await?;
    samples::write_all(line, job, &dir.join("samples")).await?;
    if job.spec.as_ref().is_some_and(trackers::any) {
        Mirror::new(&dir.join(EVENT_FILES)).fetch(line, &job.id).await?;
    }
    Ok(LocalArtifacts { policy: link_last(job, "policy", dir)?, reward: link_last(job, "reward", dir)? })
}

/// Whether an artifact is a model's directory.
pub(crate) fn is_model(artifact: &v1::Artifact) -> bool {
    ["policy", "reward"].contains(&artifact.kind.as_str())
}

/// The steps of all training phases and the drift of each phase, in one file.
async fn metrics(line: &LeaderChannel, job: &v1::Job, path: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for artifact in job.artifacts.iter().filter(|artifact| artifact.kind == "metrics") {
        for object in &artifact.objects {
            lines.extend_from_slice(&artifacts::download_bytes(line, object).await?);
            if lines.last().is_some_and(|byte| *byte != b'\n') {
                lines.push(b'\n');
            }
        }
    }
    lines.extend_from_slice(drift_lines(job).as_bytes());
    write_atomic(path, &lines)
}

/// A line for each phase that measured drift.
fn drift_lines(job: &v1::Job) -> String {
    let mut lines = String::new();
    for round in &job.rounds {
        for (phase, prefix) in [("ref_log_probs", "log_probs_drift_"), ("evaluate", "drift_")] {
            let figure = |metric: &v1::Metric| {
                Some((format!("drift_{}", metric.name.strip_prefix(prefix)?), json!(metric.value)))
            };
            let figures: Map<String, Value> = round.policy.iter().filter_map(figure).collect();
            if figures.is_empty() {
                continue;
            }
            let phase = format!("r{:02}.policy.{phase}", round.round);
            let mut line =
                Map::from_iter([("phase".into(), json!(phase)), ("round".into(), json!(round.round))]);
            line.extend(figures);
            lines += &format!("{}\n", Value::Object(line));
        }
    }
    lines
}

/// Makes `dir/kind` the last round's model, as hard links to `dir/rounds`.
fn link_last(job: &v1::Job, kind: &str, dir: &Path) -> Result<Option<String>> {
    let Some(artifact) = last_artifact(job, kind) else { return Ok(None) };
    let (from, to) = (dir.join("rounds").join(&artifact.name), dir.join(kind));
    let part = dir.join(format!(".{kind}.part"));
    replace(&from, &part, &to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(Some(to.to_string_lossy().into_owned()))
}

fn replace(from: &Path, part: &Path, to: &Path) -> io::Result<()> {
    remove(part)?;
    link_tree(from, part)?;
    keep_card(to, part)?;
    remove(to)?;
    fs::rename(part, to)
}

/// Keeps an edited card in `earlier`, if that is the same model.
fn keep_card(earlier: &Path, part: &Path) -> io::Result<()> {
    let model = |dir: &Path| card::Provenance::read(dir).ok().flatten().map(|made| made.artifact.name);
    let (old, new) = (earlier.join(card::README), part.join(card::README));
    if old.is_file() && card::is_edited(&old) && model(earlier).is_some() && model(earlier) == model(part) {
        remove(&new)?;
        fs::copy(old, new)?;
    }
    Ok(())
}

/// Makes `to` a hard-linked copy of the directory `from`.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_tree(&entry.path(), &target)?;
        } else if fs::hard_link(entry.path(), &target).is_err() {
            // Some file systems do not support hard links.
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_that_measured_drift_has_a_line() {
        let metric = |name: &str, value| v1::Metric { name: name.into(), value, se: Some(0.1) };
        let policy = vec![
            metric("drift_mean", 0.5),
            metric("drift_max", 2.0),
            metric("kl", 1.0),
            metric("log_probs_drift_mean", 0.25),
        ];
        let rounds =
            vec![v1::RoundResult { round: 3, policy, ..Default::default() }, v1::RoundResult::default()];
        let lines = drift_lines(&v1::Job { rounds, ..Default::default() });
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected = [
            json!({ "phase": "r03.policy.ref_log_probs", "round": 3, "drift_mean": 0.25 }),
            json!({ "phase": "r03.policy.evaluate", "round": 3, "drift_mean": 0.5, "drift_max": 2.0 }),
        ];
        assert_eq!(lines, expected);
    }

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
            write_atomic(&model.join("config.json"), format!("{round}").as_bytes()).unwrap();
            job.artifacts.push(policy(round));
            let path = link_last(&job, "policy", dir.path()).unwrap().unwrap();
            assert_eq!(fs::read_to_string(Path::new(&path).join("config.json")).unwrap(), format!("{round}"));
        }
        assert!(link_last(&job, "reward", dir.path()).unwrap().is_none());
        assert_eq!(fs::read_to_string(dir.path().join("rounds/policy@1/config.json")).unwrap(), "1");
    }
}

//! The model to export: from a job on a coordinator, from a run's directory, or in a separate directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use foil_coordinator::job::find_artifact;
use foil_proto::v1;
use serde_json::Value;

use crate::card::Provenance;
use crate::client_args::ClientArgs;
use crate::results;
use crate::run::directory::RESULT;
use crate::ui::local_run::is_run;

/// The folder of an adapter in a model's directory.
pub(super) const ADAPTER: &str = "adapter";

/// A model to export.
#[derive(Debug)]
pub(super) enum Source {
    /// A directory on this machine.
    Local { dir: PathBuf, made: Option<Box<Provenance>> },
    /// An artifact of a job on a coordinator.
    Remote { client: Box<crate::client::Client>, artifact: v1::Artifact, made: Box<Provenance> },
}

impl Source {
    /// Finds what a user means: a directory, a model of a run's directory (`runs/hh/policy@best`), or a job's
    /// artifact (`hh/policy@best`).
    pub(super) async fn find(what: &str, client: &ClientArgs) -> Result<Self> {
        if let Some(dir) = local(what)? {
            let made = Provenance::read(&dir)?.map(Box::new);
            return Ok(Self::Local { dir, made });
        }
        let Some((job, wanted)) = what.split_once('/') else {
            bail!("{what} names no model; write {what}/policy@best, or give the directory of a model");
        };
        if wanted.contains('/') {
            bail!(
                "{what} is no directory of a model or of a `foil run`, and no artifact of a job such as JOB/policy@best"
            );
        }
        let client = client.connect()?;
        let job = client.find(job).await?;
        let artifact = find_artifact(&job, wanted).map_err(anyhow::Error::msg)?.clone();
        if !results::is_model(&artifact) {
            bail!("{what} is no model; `foil artifacts {}` lists the policies and reward models", job.id);
        }
        let made = Box::new(Provenance::new(&job, &artifact, &[]));
        Ok(Self::Remote { client: Box::new(client), artifact, made })
    }

    pub(super) fn made(&self) -> Option<&Provenance> {
        match self {
            Self::Local { made, .. } => made.as_deref(),
            Self::Remote { made, .. } => Some(made),
        }
    }

    /// The source's identity, by which a resumed export recognizes it.
    pub(super) fn identity(&self) -> Result<Value> {
        match self {
            Self::Remote { artifact, .. } => Ok(serde_json::to_value(artifact)?),
            Self::Local { dir, made } => {
                let dir = dir.canonicalize().with_context(|| format!("cannot read {}", dir.display()))?;
                let files = made.as_ref().map(|made| &made.artifact.objects);
                Ok(serde_json::json!({ "directory": dir, "files": files, "weights": weights(&dir) }))
            }
        }
    }
}

/// Names, sizes and times of a directory's weights.
fn weights(dir: &Path) -> Vec<(String, u64, Option<u64>)> {
    let entries = [dir.to_owned(), dir.join(ADAPTER)];
    let entries = entries.iter().flat_map(std::fs::read_dir).flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let (name, metadata) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata().ok()?);
            let since = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok();
            let time = since.and_then(|since| u64::try_from(since.as_nanos()).ok());
            name.ends_with(".safetensors").then_some((name, metadata.len(), time))
        })
        .collect();
    found.sort();
    found
}

/// The directory of a model on this machine; none if a job's artifact is meant.
fn local(what: &str) -> Result<Option<PathBuf>> {
    let path = Path::new(what);
    if is_run(path) {
        bail!(
            "{what} is the directory of a `foil run`; name one of its models, such as {what}/policy@best{}",
            models(path)
        );
    }
    if path.is_dir() {
        if !path.join("config.json").is_file() {
            bail!("{what} holds no model: there is no config.json in it");
        }
        return Ok(Some(path.to_owned()));
    }
    let (Some(parent), Some(name)) = (path.parent().filter(|parent| is_run(parent)), path.file_name()) else {
        return Ok(None);
    };
    let name = name.to_string_lossy();
    let dir = match name.split_once('@') {
        None | Some((_, "last")) => parent.join(name.split('@').next().unwrap_or_default()),
        Some((kind, "best")) => parent.join("rounds").join(format!("{kind}@{}", best_round(parent)?)),
        Some(_) => parent.join("rounds").join(&*name),
    };
    if !dir.join("config.json").is_file() {
        bail!("{} has no model {name}{}", parent.display(), models(parent));
    }
    Ok(Some(dir))
}

fn best_round(run: &Path) -> Result<u64> {
    let path = run.join(RESULT);
    if !path.exists() {
        bail!(
            "the run in {} has not ended, and its models are written at its end; the same `foil run` command resumes it",
            run.display()
        );
    }
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let summary: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let best = summary["best_round"].as_u64();
    best.with_context(|| {
        format!("{} names no best round: none was evaluated; name a round, as policy@1", path.display())
    })
}

/// The models of a run, for messages.
fn models(run: &Path) -> String {
    let entries = std::fs::read_dir(run.join("rounds")).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match names.is_empty() {
        true => String::new(),
        false => format!("; it has {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_a_run_are_named_like_artifacts() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("hh");
        for model in ["policy", "reward", "rounds/policy@1", "rounds/policy@2", "rounds/reward@1"] {
            std::fs::create_dir_all(run.join(model)).unwrap();
            std::fs::write(run.join(model).join("config.json"), "{}").unwrap();
        }
        std::fs::write(run.join("job.json"), "{}").unwrap();
        std::fs::write(run.join(RESULT), r#"{"best_round": 1}"#).unwrap();
        let found = |name: &str| local(&format!("{}/{name}", run.display()));
        let expect =
            |name: &str, path: &str| assert_eq!(found(name).unwrap(), Some(run.join(path)), "{name}");
        expect("policy", "policy");
        expect("policy@last", "policy");
        expect("policy@best", "rounds/policy@1");
        expect("policy@2", "rounds/policy@2");
        expect("rounds/reward@1", "rounds/reward@1");
        let error = found("policy@3").unwrap_err().to_string();
        assert!(error.contains("no model policy@3; it has policy@1, policy@2, reward@1"), "{error}");
        let error = local(run.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("hh/policy@best"), "{error}");
        assert!(local(dir.path().to_str().unwrap()).unwrap_err().to_string().contains("no config.json"));
        assert_eq!(local("hh/policy@best").unwrap(), None, "it is a job's");
        std::fs::create_dir(run.join("store")).unwrap();
        std::fs::remove_file(run.join(RESULT)).unwrap();
        let stopped = found("policy@best").unwrap_err().to_string();
        assert!(stopped.contains("has not ended"), "{stopped}");
        std::fs::write(run.join(RESULT), "{}").unwrap();
        assert!(found("policy@best").unwrap_err().to_string().contains("names no best round"));
    }
}

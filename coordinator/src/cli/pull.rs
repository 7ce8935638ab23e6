//! Bringing artifacts to this machine.

use std::path::Path;

use anyhow::{Context, Result, bail};
use foil_common::file_names;
use foil_common::rpc::{Line, artifacts};
use foil_proto::v1;

use super::args::PullArgs;
use super::client::Client;
use super::progress::{self, Progress};
use super::{output, outputs, report};

pub(crate) async fn pull(args: &PullArgs) -> Result<()> {
    let (name, wanted) = match args.what.split_once('/') {
        Some((job, artifact)) => (job, Some(artifact)),
        None => (args.what.as_str(), None),
    };
    let client = Client::connect(&args.client.coordinators())?;
    let job = client.find(name).await?;
    let line = client.line();
    let mut progress = Progress::new(true);
    match wanted {
        Some(wanted) => artifact(&line, find(&job, wanted)?, &args.dir, &progress).await?,
        None => {
            outputs::bring(&line, &job, &args.dir, &progress).await?;
        }
    }
    progress.finish();
    output::line(&args.dir.display().to_string())?;
    Ok(())
}

/// The artifact a user means: its name, `policy` or `reward` for the last one, `policy@best` for the best round's.
fn find<'a>(job: &'a v1::Job, wanted: &str) -> Result<&'a v1::Artifact> {
    let is_best = wanted.strip_suffix("@best").filter(|_| job.best_round > 0);
    let exact = is_best.map_or_else(|| wanted.to_owned(), |kind| format!("{kind}@{}", job.best_round));
    let found = job.artifacts.iter().find(|artifact| artifact.name == exact);
    if let Some(artifact) = found.or_else(|| last(job, wanted)) {
        return Ok(artifact);
    }
    let names: Vec<&str> = job.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    if names.is_empty() {
        bail!("job {} has no artifacts yet: it is {}", job.id, report::state_name(job));
    }
    bail!("job {} has no artifact {wanted}; it has {}", job.id, names.join(", "))
}

/// The last artifact of a kind.
pub(crate) fn last<'a>(job: &'a v1::Job, kind: &str) -> Option<&'a v1::Artifact> {
    let models = ["policy", "reward"].contains(&kind);
    job.artifacts.iter().rev().find(|artifact| models && artifact.kind == kind)
}

/// Downloads an artifact's files into `dir`. Each appears only when whole and of the right hash; those that are
/// there already are not fetched again.
pub(crate) async fn artifact(
    line: &Line,
    artifact: &v1::Artifact,
    dir: &Path,
    progress: &Progress,
) -> Result<()> {
    let total = artifact.objects.iter().map(|object| object.size).sum();
    let bar = progress.bytes(&format!("pulling {}", artifact.name), total);
    let moved = progress::moves(&bar);
    for object in &artifact.objects {
        let name = file_name(object).with_context(|| format!("artifact {}", artifact.name))?;
        let path = dir.join(name);
        if is_there(object, &path).await {
            moved(object.size);
        } else {
            artifacts::download_to_file(line, object, &path, &moved).await?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

async fn is_there(object: &v1::Object, path: &Path) -> bool {
    let same_size = path.metadata().is_ok_and(|metadata| metadata.len() == object.size);
    same_size && artifacts::digest_of_file(path).await.is_ok_and(|digest| digest.blake3 == object.blake3)
}

/// The name a file gets here. It comes from elsewhere, so it must not lead out of the directory.
fn file_name(object: &v1::Object) -> Result<&Path> {
    let name = match object.path.as_str() {
        "" => object.key.rsplit('/').next().unwrap_or_default(),
        path => path,
    };
    let inside = file_names::inside(name);
    inside.with_context(|| format!("{name:?} is no file name; the coordinator's answer is damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_found_by_name_last_and_best() {
        let artifact = |name: &str, kind: &str| v1::Artifact {
            name: name.into(),
            kind: kind.into(),
            ..Default::default()
        };
        let job = v1::Job {
            best_round: 1,
            artifacts: vec![
                artifact("policy@0", "policy"),
                artifact("policy@1", "policy"),
                artifact("samples/r02.policy.generate", "samples"),
                artifact("policy@2", "policy"),
            ],
            ..Default::default()
        };
        let name = |wanted| find(&job, wanted).map(|artifact| artifact.name.as_str());
        assert_eq!(name("policy").unwrap(), "policy@2");
        assert_eq!(name("policy@best").unwrap(), "policy@1");
        assert_eq!(name("samples/r02.policy.generate").unwrap(), "samples/r02.policy.generate");
        assert!(name("policy@7").unwrap_err().to_string().contains("it has policy@0, policy@1"));
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let object = |path: &str| v1::Object { path: path.into(), ..Default::default() };
        assert_eq!(file_name(&object("model.safetensors")).unwrap(), Path::new("model.safetensors"));
        for path in ["../x", "/etc/x", ".ssh", "a\\b"] {
            assert!(file_name(&object(path)).is_err(), "{path}");
        }
    }
}

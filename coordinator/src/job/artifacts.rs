//! A job's artifacts by the names that users give them.

use foil_proto::v1;

/// The artifact a user means: its name, `policy` or `reward` for the last one, `policy@best` for the best round's.
///
/// # Errors
/// Words for the user: what there is instead.
pub fn find_artifact<'a>(job: &'a v1::Job, wanted: &str) -> Result<&'a v1::Artifact, String> {
    let is_best = wanted.strip_suffix("@best").filter(|_| job.best_round > 0);
    let exact = is_best.map_or_else(|| wanted.to_owned(), |kind| format!("{kind}@{}", job.best_round));
    let found = job.artifacts.iter().find(|artifact| artifact.name == exact);
    if let Some(artifact) = found.or_else(|| last_artifact(job, wanted)) {
        return Ok(artifact);
    }
    let names: Vec<&str> = job.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    if names.is_empty() {
        let state = job.state().as_str_name().trim_start_matches("JOB_STATE_").to_ascii_lowercase();
        return Err(format!("job {} has no artifacts yet: it is {state}", job.id));
    }
    Err(format!("job {} has no artifact {wanted}; it has {}", job.id, names.join(", ")))
}

/// The last artifact of a kind.
pub fn last_artifact<'a>(job: &'a v1::Job, kind: &str) -> Option<&'a v1::Artifact> {
    let models = ["policy", "reward"].contains(&kind);
    job.artifacts.iter().rev().find(|artifact| models && artifact.kind == kind)
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
        let name = |wanted| find_artifact(&job, wanted).map(|artifact| artifact.name.as_str());
        assert_eq!(name("policy").unwrap(), "policy@2");
        assert_eq!(name("policy@best").unwrap(), "policy@1");
        assert_eq!(name("samples/r02.policy.generate").unwrap(), "samples/r02.policy.generate");
        assert!(name("policy@7").unwrap_err().contains("it has policy@0, policy@1"));
    }
}

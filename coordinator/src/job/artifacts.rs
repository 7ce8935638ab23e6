//! Lookup of a job's artifacts by the names that users type.

use foil_proto::v1;

use super::results;
use super::state::JobState;
use super::view;

/// Maximum number of names listed in an error.
const NAMED: usize = 20;

/// The artifact that a name refers to: its own name, `policy` or `policy@last` (likewise `reward`) for the
/// last one, or `policy@best` for the one of the best round.
///
/// # Errors
/// There is no such artifact; the message lists the existing ones.
pub fn find_artifact<'a>(job: &'a v1::Job, wanted: &str) -> Result<&'a v1::Artifact, String> {
    find(job.artifacts.iter(), job.best_round, wanted)
        .ok_or_else(|| missing(job.artifacts.iter(), &job.id, job.state(), wanted))
}

/// Like [`find_artifact`], among all artifacts that a job has committed.
///
/// # Errors
/// There is no such artifact; the message lists the existing ones.
pub fn find_committed<'a>(state: &'a JobState, wanted: &str) -> Result<&'a v1::Artifact, String> {
    let best_round = if wanted.ends_with("@best") { view::best_round(state) } else { 0 };
    find(results::artifacts(state), best_round, wanted)
        .ok_or_else(|| missing(results::artifacts(state), &state.id, view::wire_state(&state.status), wanted))
}

/// The last artifact of a kind.
pub fn last_artifact<'a>(job: &'a v1::Job, kind: &str) -> Option<&'a v1::Artifact> {
    last(job.artifacts.iter(), kind)
}

fn find<'a>(
    artifacts: impl DoubleEndedIterator<Item = &'a v1::Artifact> + Clone,
    best_round: u32,
    wanted: &str,
) -> Option<&'a v1::Artifact> {
    let wanted = wanted.strip_suffix("@last").unwrap_or(wanted);
    let is_best = wanted.strip_suffix("@best").filter(|_| best_round > 0);
    let exact = is_best.map_or_else(|| wanted.to_owned(), |kind| format!("{kind}@{best_round}"));
    artifacts.clone().find(|artifact| artifact.name == exact).or_else(|| last(artifacts, wanted))
}

fn last<'a>(
    artifacts: impl DoubleEndedIterator<Item = &'a v1::Artifact>,
    kind: &str,
) -> Option<&'a v1::Artifact> {
    let models = ["policy", "reward"].contains(&kind);
    artifacts.rev().find(|artifact| models && artifact.kind == kind)
}

fn missing<'a>(
    artifacts: impl Iterator<Item = &'a v1::Artifact>,
    job: &str,
    state: v1::JobState,
    wanted: &str,
) -> String {
    let names: Vec<&str> = artifacts.map(|artifact| artifact.name.as_str()).collect();
    if names.is_empty() {
        let state = state.as_str_name().trim_start_matches("JOB_STATE_").to_ascii_lowercase();
        return format!("job {job} has no artifacts yet: it is {state}");
    }
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = names[..names.len().min(NAMED)].join(", ");
    format!("job {job} has no artifact {wanted}; it has {shown}{more}")
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
        assert_eq!(name("policy@last").unwrap(), "policy@2");
        assert!(name("samples@last").is_err());
        assert_eq!(name("policy@best").unwrap(), "policy@1");
        assert_eq!(name("samples/r02.policy.generate").unwrap(), "samples/r02.policy.generate");
        assert!(name("policy@7").unwrap_err().contains("it has policy@0, policy@1"));
    }
}

//! Audits a job: compares its events and the logs of its ranks with its final artifacts.

use std::collections::BTreeMap;

use foil_proto::v1;
use foil_proto::v1::job_event::Event;
use serde_json::Value;

#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Number of committed phases and checkpoints.
    pub(crate) commits: usize,
    pub(crate) lost: Vec<String>,
    /// Number of training steps started, over all ranks.
    pub(crate) steps: usize,
    /// Number of uncommitted steps that were started again.
    pub(crate) replayed: usize,
    /// Steps that were started again although they had been committed.
    pub(crate) twice: Vec<String>,
}

/// A training step that a rank started.
#[derive(Debug, PartialEq, Eq)]
struct Begun {
    phase: String,
    attempt: u64,
    rank: u64,
    step: u64,
}

/// Audits a job using the `live` events of a watcher, the artifacts `kept` at the end, and the `logs` of its
/// agents and ranks.
pub(crate) fn audit(live: &[v1::JobEvent], kept: &[v1::Artifact], logs: &str, job: &str) -> Findings {
    let mut findings = Findings::default();
    // The last committed step of each phase and attempt; all steps if the phase is committed.
    let mut committed: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    for event in live.iter().filter_map(|event| event.event.as_ref()) {
        match event {
            Event::CheckpointCommitted(made) => {
                findings.commits += 1;
                let upto = committed.entry((&made.phase, made.attempt.into())).or_default();
                *upto = made.step.max(*upto);
            }
            Event::PhaseCommitted(done) => {
                findings.commits += 1;
                let artifact = done.artifact.as_ref();
                let attempt = artifact.map_or(0, |artifact| artifact.attempt);
                committed.insert((&done.phase, attempt.into()), u64::MAX);
                if !artifact.is_some_and(|artifact| kept.contains(artifact)) {
                    findings.lost.push(format!("{} of attempt {attempt}", done.phase));
                }
            }
            _ => {}
        }
    }
    let mut times: BTreeMap<(String, u64, u64), usize> = BTreeMap::new();
    for Begun { phase, attempt, rank, step } in logs.lines().filter_map(|line| begun(line, job)) {
        let again =
            committed.iter().any(|((of, made), upto)| *of == phase && attempt > *made && step <= *upto);
        if again {
            findings.twice.push(format!("step {step} of {phase} by rank {rank} in attempt {attempt}"));
        }
        findings.steps += 1;
        *times.entry((phase, rank, step)).or_default() += 1;
    }
    findings.replayed = times.values().map(|times| times - 1).sum();
    findings
}

/// The step in a log line, if the line belongs to the job.
fn begun(line: &str, job: &str) -> Option<Begun> {
    // Most lines are not about steps.
    if !line.contains("training step") {
        return None;
    }
    let line: Value = serde_json::from_str(line).ok()?;
    if line["job"] != job || line["message"] != "training step" {
        return None;
    }
    let number = |name: &str| line[name].as_u64();
    Some(Begun {
        phase: line["phase"].as_str()?.to_owned(),
        attempt: number("attempt")?,
        rank: number("rank")?,
        step: number("step")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: Event) -> v1::JobEvent {
        v1::JobEvent { revision: 1, at: None, event: Some(event) }
    }

    fn checkpoint(step: u64, attempt: u32) -> v1::JobEvent {
        event(Event::CheckpointCommitted(v1::CheckpointCommitted {
            phase: "sft".into(),
            step,
            attempt,
            bytes: 1,
        }))
    }

    fn artifact(attempt: u32) -> v1::Artifact {
        v1::Artifact { attempt, ..Default::default() }
    }

    fn phase(attempt: u32) -> v1::JobEvent {
        let artifact = artifact(attempt);
        event(Event::PhaseCommitted(v1::PhaseCommitted {
            phase: "sft".into(),
            artifact: Some(artifact),
            ..Default::default()
        }))
    }

    fn line(attempt: u64, step: u64) -> String {
        format!(
            r#"{{"job":"j","phase":"sft","attempt":{attempt},"rank":0,"step":{step},"message":"training step"}}"#
        )
    }

    #[test]
    fn replaying_uncommitted_steps_is_no_fault() {
        let live = [checkpoint(2, 1), phase(2)];
        let logs = [line(1, 1), line(1, 2), line(1, 3), line(2, 3), line(2, 4)].join("\n");
        let findings = audit(&live, &[artifact(2)], &logs, "j");
        assert_eq!((findings.commits, findings.steps, findings.replayed), (2, 5, 1));
        assert!(findings.twice.is_empty() && findings.lost.is_empty(), "{findings:?}");
        assert_eq!(audit(&live, &[artifact(2)], &logs, "other").steps, 0);
    }

    #[test]
    fn a_repeated_committed_step_and_a_lost_commit_are_found() {
        let live = [checkpoint(2, 1), phase(2)];
        let logs = [line(1, 1), line(1, 2), line(2, 2), line(3, 9)].join("\n");
        let findings = audit(&live, &[artifact(3)], &logs, "j");
        assert_eq!(findings.twice.len(), 2, "{findings:?}");
        assert_eq!(findings.lost, ["sft of attempt 2"]);
    }
}

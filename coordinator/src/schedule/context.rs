use foil_proto::v1;

use super::diagnosis::FailureSignal;
use super::{Deadlines, Decision, ProtocolError};
use crate::clock::Now;
use crate::job::JobState;
use crate::plan::{self, Phase};

/// Identity of an attempt, from which the names of everything that it creates derive.
#[derive(Debug, Clone)]
pub(super) struct AttemptId {
    pub(super) job: String,
    pub(super) attempt: u32,
    /// Term of the coordinator, so that names created by two leaders differ.
    pub(super) term: u64,
}

impl AttemptId {
    /// Prefix of the keys of a gang phase's objects.
    pub(super) fn gang_prefix(&self, phase: &str) -> String {
        format!("jobs/{}/phases/{phase}/a{}/", self.job, self.attempt)
    }

    /// Prefix of the keys of a chunk's results, which attempts share.
    pub(super) fn chunk_prefix(&self, phase: &str, chunk: u32) -> String {
        format!("jobs/{}/phases/{phase}/{chunk:05}/", self.job)
    }

    /// The artifact that a phase commits.
    pub(super) fn artifact(&self, phase: &Phase, objects: Vec<v1::Object>) -> v1::Artifact {
        let (name, kind) = plan::artifact_name(phase);
        v1::Artifact {
            name,
            kind: kind.to_owned(),
            job_id: self.job.clone(),
            phase: phase.id.to_string(),
            round: phase.round,
            attempt: self.attempt,
            objects,
        }
    }
}

/// Inputs of a decision in addition to the attempt's own parts, and the decision made so far.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) id: AttemptId,
    pub(super) state: &'a JobState,
    pub(super) now: Now,
    pub(super) deadlines: Deadlines,
    pub(super) out: Decision,
    /// The progress of the current phase has changed.
    pub(super) progressed: bool,
}

impl<'a> Context<'a> {
    /// The current gang phase, if a report is about it; none if the report is about a committed phase.
    pub(super) fn gang_phase(&self, phase: &str, attempt: u32) -> Result<Option<&'a Phase>, ProtocolError> {
        let current = self.state.phase().filter(|current| current.work.is_gang() && current.id == phase);
        match current {
            Some(current) if attempt == self.id.attempt => Ok(Some(current)),
            // Ranks repeat to a new leader what they reported to the previous one, which may have moved on.
            None if attempt == self.id.attempt && self.state.done(phase).is_some() => Ok(None),
            _ => Err(ProtocolError::Invalid(format!(
                "{phase} of attempt {attempt} is not the current gang phase"
            ))),
        }
    }
}

/// The rank that sent a message, with the result of verifying the message against the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender<'a> {
    pub(super) rank: usize,
    pub(super) flaw: Option<&'a str>,
}

impl Sender<'_> {
    /// Fails if verification found a flaw.
    pub(super) fn check_verified(&self) -> Result<(), ProtocolError> {
        self.flaw.map_or(Ok(()), |flaw| Err(ProtocolError::FalseReport(flaw.to_owned())))
    }
}

/// A problem that a phase has found. The attempt decides how to respond.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) rank: usize,
    pub(super) signal: Box<FailureSignal>,
    pub(super) severity: Severity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// The rank is lost.
    Rank,
    /// The attempt has failed; other ranks may still report the cause.
    Attempt,
    /// The attempt has failed for a known reason.
    Fatal,
}

impl Problem {
    pub(super) fn rank_lost(rank: usize, signal: FailureSignal) -> Self {
        Self { rank, signal: Box::new(signal), severity: Severity::Rank }
    }

    pub(super) fn attempt_failed(rank: usize, signal: FailureSignal) -> Self {
        Self { rank, signal: Box::new(signal), severity: Severity::Attempt }
    }

    pub(super) fn fatal(rank: usize, failure: v1::TaskFailure) -> Self {
        Self { rank, signal: Box::new(FailureSignal::Reported(failure)), severity: Severity::Fatal }
    }
}

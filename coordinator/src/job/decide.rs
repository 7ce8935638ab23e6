//! Decisions that follow from a job's durable state alone, whatever its ranks do.

use foil_proto::v1;

use super::event::{Cause, CauseClass, Change, Detail, Outcome};
use super::state::{JobState, JobStatus};

/// The next change that follows from the state alone, with its reason; none if something else must happen
/// first.
pub fn decide(state: &JobState) -> Option<(Change, String)> {
    match state.status {
        JobStatus::Cancelling { attempt: None } => {
            Some((Change::Ended(Outcome::Cancelled), "cancelled".to_owned()))
        }
        JobStatus::Recovering if state.phase().is_none() => {
            Some((Change::Ended(Outcome::Succeeded), "every phase is committed".to_owned()))
        }
        JobStatus::Recovering => {
            let failure = failure(state)?;
            let reason = failure.message.clone();
            Some((Change::Ended(Outcome::Failed(Box::new(failure))), reason))
        }
        JobStatus::Queued
        | JobStatus::Running { .. }
        | JobStatus::Cancelling { .. }
        | JobStatus::Ended { .. } => None,
    }
}

/// The cause recorded for a job that exceeded its timeout.
pub fn timed_out(state: &JobState) -> Cause {
    let timeout = state.spec.scheduling.timeout.unwrap_or_default();
    let message = format!(
        "the job did not end within its timeout of {} after its first start",
        foil_common::spec::duration_text(timeout)
    );
    let advice = "raise or remove timeout in the job file, and submit the job again".to_owned();
    Cause { advice, ..Cause::new(CauseClass::Timeout, &message) }
}

/// The end of a job that exceeded its timeout and has no attempt.
pub fn end_of_timeout(state: &JobState) -> Change {
    let cause = timed_out(state);
    let message = cause.message.clone();
    Change::Ended(Outcome::Failed(Box::new(job_failure(state, &cause, message))))
}

/// The failure that ends the job, if another attempt is not worthwhile.
fn failure(state: &JobState) -> Option<v1::JobFailure> {
    let last = state.failures.last()?;
    if last.class.is_final() || last.class == CauseClass::NoProgress {
        return Some(job_failure(state, last, last.message.clone()));
    }
    if state.failures.len() <= state.spec.scheduling.retries as usize {
        return None;
    }
    let message = match state.failures.len() {
        1 => format!("the attempt ended, and retries is 0: {}", last.message),
        attempts => format!("{attempts} attempts ended without a commit; the last: {}", last.message),
    };
    let detail = Detail { last_class: Some(last.class), ..last.detail.clone() };
    let cause = Cause { class: CauseClass::NoProgress, detail, ..last.clone() };
    Some(job_failure(state, &cause, message))
}

fn job_failure(state: &JobState, cause: &Cause, message: String) -> v1::JobFailure {
    let Detail { step, chunk, last_class, signal, rows, memory, .. } = cause.detail.clone();
    v1::JobFailure {
        class: cause.class.as_str().to_owned(),
        message,
        advice: cause.advice.clone(),
        phase: state.phase().map(|phase| phase.id.to_string()).unwrap_or_default(),
        rank: cause.rank,
        log_tail: cause.log_tail.clone(),
        round: state.phase().map_or(0, |phase| phase.round),
        step,
        chunk,
        attempt: state.attempt,
        failed_attempts: u32::try_from(state.failures.len()).unwrap_or(u32::MAX),
        last_class: last_class.map(|class| class.as_str().to_owned()).unwrap_or_default(),
        signal: signal.unwrap_or_default(),
        rows,
        memory,
    }
}

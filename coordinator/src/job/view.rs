//! A job and its events as users see them.

use foil_common::spec::BestMetric;
use foil_common::stats;
use foil_proto::v1::{self, job_event};
use prost::Message;

use super::event::Outcome;
use super::pages::{self, Cursor};
use super::results::metrics_of;
use super::state::{JobState, JobStatus};
use crate::clock::timestamp;
use crate::plan::{Phase, Work};

/// Size limit of a job message. With its envelope it fits in the 4 MiB that gRPC clients accept by default.
pub const JOB_BYTES: usize = 1 << 20;

/// The job in its current state. Parts that would make it larger than [`JOB_BYTES`] are left out and named in
/// `omitted`.
pub fn job(state: &JobState) -> v1::Job {
    let mut job = v1::Job {
        spec: Some(state.wire_spec()),
        start: metrics_of(state, 0, Work::EvaluatePolicy).to_vec(),
        plan: Some(v1::Plan { phases: Vec::new(), datasets: state.submitted.plan.datasets.clone() }),
        warnings: state.submitted.warnings.clone(),
        ..summary(state)
    };
    let mut room = JOB_BYTES.saturating_sub(job.encoded_len());
    let phases = whole_part(pages::phases(state, Cursor::default(), usize::MAX, room), &mut room);
    let rounds = whole_part(pages::rounds(state, Cursor::default(), usize::MAX, room), &mut room);
    let artifacts = whole_part(pages::artifacts(state, Cursor::default(), usize::MAX, room), &mut room);
    let is_omitted =
        [("plan", phases.is_none()), ("rounds", rounds.is_none()), ("artifacts", artifacts.is_none())];
    job.omitted =
        is_omitted.iter().filter(|(_, omitted)| *omitted).map(|(name, _)| (*name).to_owned()).collect();
    if let Some(plan) = &mut job.plan {
        plan.phases = phases.unwrap_or_default();
    }
    job.rounds = rounds.unwrap_or_default();
    job.artifacts = artifacts.unwrap_or_default();
    job
}

/// A part that fits into one page; its size is subtracted from `room`. None if it needs more pages.
fn whole_part<T: Message>(page: pages::Page<T>, room: &mut usize) -> Option<Vec<T>> {
    if page.next.is_some() {
        return None;
    }
    *room = room.saturating_sub(page.items.iter().map(pages::size_of).sum());
    Some(page.items)
}

/// The fields whose size does not grow with the job.
fn summary(state: &JobState) -> v1::Job {
    let (ended_at, failure) = match &state.status {
        JobStatus::Ended { at, outcome: Outcome::Failed(failure) } => (Some(*at), Some((**failure).clone())),
        JobStatus::Ended { at, .. } => (Some(*at), None),
        _ => (None, None),
    };
    v1::Job {
        id: state.id.clone(),
        name: state.name().to_owned(),
        state: wire_state(&state.status).into(),
        revision: state.revision,
        submitted_at: Some(timestamp(state.submitted_at)),
        ended_at: ended_at.map(timestamp),
        phase: if state.is_ended() {
            String::new()
        } else {
            state.phase().map(|phase| phase.id.to_string()).unwrap_or_default()
        },
        phases_done: u32::try_from(state.committed.len()).unwrap_or(u32::MAX),
        attempt: state.attempt,
        failure,
        best_round: best_round(state),
        spec_blake3: state.spec_blake3.clone(),
        phases_total: u32::try_from(state.phases.len()).unwrap_or(u32::MAX),
        pins: state.pins.wire(),
        priority: state.spec.scheduling.priority.value(),
        labels: state.spec.scheduling.labels.clone().into(),
        started_at: state.times.started.map(timestamp),
        preemptions: state.preemptions,
        tenant: state.submitted.tenant().to_owned(),
        owner: state.submitted.owner.clone(),
        expires_at: state.expires_at().map(timestamp),
        // Fields that the log does not keep, and fields that grow with the job.
        ..Default::default()
    }
}

/// The job as a row of a list.
pub fn listed(state: &JobState) -> v1::Job {
    let mut job = summary(state);
    if let Some(failure) = &mut job.failure {
        failure.log_tail.clear();
        failure.rows.clear();
    }
    job.pins.truncate(1);
    job
}

/// State as users see it: a job between two attempts counts as running.
pub fn wire_state(status: &JobStatus) -> v1::JobState {
    match status {
        JobStatus::Queued => v1::JobState::Queued,
        JobStatus::Running { .. } | JobStatus::Recovering => v1::JobState::Running,
        JobStatus::Cancelling { .. } => v1::JobState::Cancelling,
        JobStatus::Ended { outcome: Outcome::Succeeded, .. } => v1::JobState::Succeeded,
        JobStatus::Ended { outcome: Outcome::Failed(_), .. } => v1::JobState::Failed,
        JobStatus::Ended { outcome: Outcome::Cancelled, .. } => v1::JobState::Cancelled,
    }
}

/// An event at the job's current revision.
pub fn event(state: &JobState, event: job_event::Event, at: u64) -> v1::JobEvent {
    v1::JobEvent { revision: state.revision, at: Some(timestamp(at)), event: Some(event) }
}

pub fn notice(level: &str, text: String) -> job_event::Event {
    job_event::Event::Notice(v1::Notice { level: level.to_owned(), text })
}

/// The best evaluated round by the job's selection metric, measured on the half of the rows reserved for
/// selection. Ties go to the first; 0 if there is none. All rows count if there are too few for two halves,
/// or in a log that predates the split.
pub(super) fn best_round(state: &JobState) -> u32 {
    let figures: &[(Work, &str)] = match state.spec.evaluation.metric_for_best_model {
        BestMetric::GoldMean => &[(Work::EvaluatePolicy, "gold_mean")],
        // Unless the two start rewards differ, the gain has no unit, and the plain difference decides.
        BestMetric::RewardGain => {
            &[(Work::EvaluatePolicy, stats::REWARD_GAIN), (Work::EvaluatePolicy, stats::REWARD_DIFFERENCE)]
        }
        BestMetric::RewardMean => &[(Work::EvaluatePolicy, "reward_mean")],
        BestMetric::RewardAccuracy => &[(Work::EvaluateReward, "accuracy")],
    };
    let best = |(work, name): &(Work, &str)| {
        let halved = best_round_by(state, *work, &format!("{}{name}", stats::SELECTION));
        halved.or_else(|| best_round_by(state, *work, name))
    };
    figures.iter().find_map(best).unwrap_or(0)
}

fn best_round_by(state: &JobState, work: Work, name: &str) -> Option<u32> {
    let value = |round: u32| {
        state.done(&Phase::id_of(round, Work::EvaluatePolicy))?;
        metrics_of(state, round, work).iter().find(|metric| metric.name == name).map(|metric| metric.value)
    };
    let begun = state.committed.last().map_or(0, |done| done.artifact.round);
    let rounds = (1..=begun).filter_map(|round| Some((round, value(round)?)));
    let best = rounds.reduce(|best, round| if round.1 > best.1 { round } else { best });
    best.map(|(round, _)| round)
}

//! The coordinator's own metrics.

use foil_proto::v1::{self, job_event};

use super::core::{Action, Core};
use crate::clock::Now;
use crate::job::{Change, Event};
use crate::schedule::Counter;

const STATES: [&str; 7] =
    ["queued", "running", "recovering", "cancelling", "succeeded", "failed", "cancelled"];

pub(super) fn describe() {
    metrics::describe_gauge!("foil_jobs", "Jobs in each state.");
    metrics::describe_counter!("foil_job_transitions_total", "Changes of a job's state.");
    metrics::describe_counter!("foil_attempts_total", "Attempts that ended, by cause.");
    metrics::describe_counter!("foil_phases_committed_total", "Phases committed, by kind.");
    metrics::describe_counter!("foil_steps_committed_total", "Optimizer steps in committed phases.");
    metrics::describe_counter!("foil_chunks_done_total", "Chunks of map phases done.");
    metrics::describe_counter!("foil_ranks_lost_total", "Rank processes lost while they were needed.");
    metrics::describe_counter!(
        "foil_worker_faults_total",
        "Ranks that never connected or reported what is not so, through their agent's fault."
    );
    metrics::describe_gauge!(
        "foil_agents_set_aside",
        "Agents that get no ranks for a while, for such faults."
    );
    metrics::describe_counter!(
        "foil_chunks_leased_again_total",
        "Chunks leased a second time because they straggled."
    );
    metrics::describe_counter!("foil_duplicate_chunks_total", "Chunks that were computed twice.");
    metrics::describe_counter!(
        "foil_determinism_alarms_total",
        "Chunks computed twice with different bytes."
    );
    metrics::describe_gauge!("foil_loss", "Loss of the latest step, by objective.");
    metrics::describe_gauge!("foil_grad_norm", "Gradient norm of the latest step, by objective.");
    metrics::describe_gauge!("foil_reward_mean", "Mean reward of the latest evaluated policy.");
    metrics::describe_gauge!(
        "foil_drift_mean",
        "Nats per token between sampler and trainer in the latest phase that compared them, by kind."
    );
    metrics::describe_gauge!("foil_worker_heartbeat_age_seconds", "Time since an agent was last heard.");
    metrics::describe_histogram!("foil_phase_seconds", "Duration of committed phases, by kind.");
    metrics::describe_gauge!("foil_build_info", "1, with the version as a label.");
    metrics::gauge!("foil_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Counts what is on its way to the log.
pub(super) fn events(core: &Core, events: &[Event]) {
    for event in events {
        match &event.change {
            Change::AttemptEnded { cause, .. } => {
                metrics::counter!("foil_attempts_total", "cause" => cause.class.as_str()).increment(1);
            }
            Change::ChunkDone(_) => metrics::counter!("foil_chunks_done_total").increment(1),
            Change::CheckpointCommitted(made) => {
                metrics::counter!("foil_checkpoints_committed_total").increment(1);
                let bytes: u64 = made.objects.iter().map(|object| object.size).sum();
                metrics::gauge!("foil_checkpoint_bytes").set(bytes as f64);
            }
            Change::CheckpointLost { .. } => {
                metrics::counter!("foil_checkpoint_verify_failures_total").increment(1);
            }
            Change::PhaseCommitted(done) => {
                let state = core.state(&event.job);
                let phase = state.and_then(|state| state.phases.iter().find(|phase| phase.id == done.phase));
                let kind = phase.map_or("unknown", |phase| phase.work.kind());
                metrics::counter!("foil_phases_committed_total", "kind" => kind).increment(1);
                metrics::histogram!("foil_phase_seconds", "kind" => kind).record(done.seconds);
                let steps = phase.map_or(0, |phase| phase.steps);
                metrics::counter!("foil_steps_committed_total").increment(steps.into());
                if let Some(reward) = figure(&done.metrics, "reward_mean") {
                    metrics::gauge!("foil_reward_mean").set(reward);
                }
                if let Some(drift) = figure(&done.metrics, foil_common::drift::MEAN) {
                    metrics::gauge!("foil_drift_mean", "kind" => kind).set(drift);
                }
            }
            Change::Submitted(_)
            | Change::AttemptStarted { .. }
            | Change::RankStarted(_)
            | Change::CancelRequested
            | Change::Ended(_) => {}
        }
    }
}

pub(super) fn action(action: &Action) {
    match action {
        Action::Transition { from, to, reason } => {
            let labels = [("from", (*from).to_owned()), ("to", (*to).to_owned()), ("reason", reason.clone())];
            metrics::counter!("foil_job_transitions_total", &labels).increment(1);
        }
        Action::Count(counter) => {
            let name = match counter {
                Counter::RankLost => "foil_ranks_lost_total",
                Counter::ChunkReleased => "foil_chunks_leased_again_total",
                Counter::DuplicateChunk => "foil_duplicate_chunks_total",
                Counter::DeterminismAlarm => "foil_determinism_alarms_total",
                Counter::WorkerFault => "foil_worker_faults_total",
            };
            metrics::counter!(name).increment(1);
        }
        Action::Publish { event, .. } => {
            if let Some(job_event::Event::PhaseProgress(progress)) = &event.event {
                step(progress);
            }
        }
        Action::Agent { .. } | Action::Rank { .. } | Action::WriteSteps { .. } | Action::Sweep(_) => {}
    }
}

fn step(progress: &v1::PhaseProgress) {
    // r02.policy.train -> policy.train
    let objective = progress.phase.split_once('.').map_or("", |(_, work)| work).to_owned();
    if let Some(loss) = figure(&progress.step, "loss") {
        metrics::gauge!("foil_loss", "objective" => objective.clone()).set(loss);
    }
    if let Some(norm) = figure(&progress.step, "grad_norm") {
        metrics::gauge!("foil_grad_norm", "objective" => objective).set(norm);
    }
}

fn figure(metrics: &[v1::Metric], name: &str) -> Option<f64> {
    metrics.iter().find(|metric| metric.name == name).map(|metric| metric.value)
}

/// Levels, once per tick.
pub(super) fn levels(core: &Core, now: Now) {
    let census = core.census();
    for state in STATES {
        let count = u32::try_from(census.get(state).copied().unwrap_or_default()).unwrap_or(u32::MAX);
        metrics::gauge!("foil_jobs", "state" => state).set(count);
    }
    let set_aside = u32::try_from(core.cluster().set_aside()).unwrap_or(u32::MAX);
    metrics::gauge!("foil_agents_set_aside").set(set_aside);
    for (agent, age) in core.cluster().ages(now) {
        metrics::gauge!("foil_worker_heartbeat_age_seconds", "agent" => agent.to_owned())
            .set(age.as_secs_f64());
    }
}

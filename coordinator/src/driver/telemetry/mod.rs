//! The coordinator's own metrics, and the spans of its jobs.

mod spans;
mod tracker;

use std::time::Duration;

use foil_common::exposition::{self, Family};
use foil_common::otlp::{self, Span};
use foil_common::spec::DeviceKind;
use foil_proto::v1::{self, job_event};

use self::spans::Tracer;
use self::tracker::{Report, Stage, Tracker};
use super::core::{Action, Core};
use crate::clock::Now;
use crate::job::{Change, Committed, Event};
use crate::schedule::{Counter, ShardSaved, StepTaken, StepUsage};

const STATES: [&str; 7] =
    ["queued", "running", "recovering", "cancelling", "succeeded", "failed", "cancelled"];

/// Agent states, as counted by [`Cluster::counts`](crate::cluster::Cluster::counts).
const AGENT_STATES: [&str; 3] = ["connected", "disconnected", "expected"];

/// A new leader resends the spans that ended within this many milliseconds before its election, because the
/// previous leader may not have sent them. They are bit-identical, so a backend that identifies spans by id
/// keeps one of each.
const SEND_AGAIN: u64 = 30_000;

/// Interval at which gauges are set. It takes milliseconds if there are thousands of jobs and agents, during
/// which the leader does nothing else.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// The metrics and spans of a leader. Its gauges of jobs and agents are removed when it is dropped: a standby
/// has neither, and its series would be added to the leader's.
#[derive(Debug, Default)]
pub(super) struct Telemetry {
    tracker: Tracker,
    /// None if this process sends no spans.
    tracer: Option<Tracer>,
    /// When the gauges were last set.
    shown: Option<Duration>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        exposition::hide();
    }
}

impl Telemetry {
    /// The telemetry of a leader that continues after the given log events.
    pub(super) fn new(events: &[Event], now: Now) -> Self {
        let tracer = otlp::sends_spans().then(|| {
            let (tracer, spans) = Tracer::replay(events, now.wall.saturating_sub(SEND_AGAIN));
            spans.into_iter().for_each(otlp::send);
            tracer
        });
        Self { tracker: Tracker::default(), tracer, shown: None }
    }

    /// The spans that the events end, to be sent once the events are durable.
    pub(super) fn spans(&mut self, events: &[Event]) -> Vec<Span> {
        let Some(tracer) = &mut self.tracer else { return Vec::new() };
        events.iter().flat_map(|event| tracer.event(event)).collect()
    }

    /// Sets the gauges of jobs and agents if they are older than [`GAUGES_EVERY`].
    pub(super) fn show(&mut self, core: &Core, now: Now) {
        if self.shown.is_none_or(|shown| now.since(shown) >= GAUGES_EVERY) {
            self.shown = Some(now.mono);
            exposition::show(gauges(core, now));
        }
    }

    /// Counts events on their way to the log.
    pub(super) fn events(&mut self, core: &Core, events: &[Event]) {
        for event in events {
            self.event(core, event);
        }
    }

    fn event(&mut self, core: &Core, event: &Event) {
        let Event { job, at, change, .. } = event;
        match change {
            Change::AttemptStarted { .. } => recovered(self.tracker.attempt_started(job, *at)),
            Change::AttemptEnded { cause, .. } => {
                metrics::counter!("foil_attempts_total", "cause" => cause.class.as_str()).increment(1);
                self.tracker.attempt_ended(job, *at);
            }
            Change::ChunkDone(done) => {
                metrics::counter!("foil_chunks_done_total").increment(1);
                self.tracker.chunk_done(job, done.seconds);
                recovered(self.tracker.progressed(job, *at));
            }
            Change::CheckpointCommitted(made) => {
                metrics::counter!("foil_checkpoints_committed_total").increment(1);
                let bytes: u64 = made.objects.iter().map(|object| object.size).sum();
                metrics::gauge!("foil_checkpoint_bytes").set(bytes as f64);
                recovered(self.tracker.progressed(job, *at));
            }
            Change::CheckpointLost { .. } => {
                metrics::counter!("foil_checkpoint_verify_failures_total").increment(1);
            }
            Change::PhaseCommitted(done) => {
                phase_committed(core, job, done, self.tracker.straggler_ratio(job));
                recovered(self.tracker.progressed(job, *at));
            }
            Change::Ended(_) => self.tracker.ended(job),
            Change::Submitted(_)
            | Change::RankStarted(_)
            | Change::CancelRequested
            | Change::QuotaSet(_)
            | Change::Pinned(_)
            | Change::Unpinned { .. }
            | Change::Deleted(_)
            | Change::Erased => {}
        }
    }

    pub(super) fn action(&mut self, action: &Action) {
        match action {
            Action::Transition { from, to, reason } => {
                let labels =
                    [("from", (*from).to_owned()), ("to", (*to).to_owned()), ("reason", reason.clone())];
                metrics::counter!("foil_job_transitions_total", &labels).increment(1);
            }
            Action::Count(counter) => count_once(*counter),
            Action::Step { job, at, step } => {
                let report = self.tracker.step(job, step);
                step_taken(step, report);
                if let Some(goodput) = self.tracker.goodput() {
                    metrics::gauge!("foil_goodput_ratio").set(goodput);
                }
                if report != Report::Repeated {
                    recovered(self.tracker.progressed(job, *at));
                }
            }
            Action::Usage(usage) => used(usage),
            Action::Shard(ShardSaved { stall, upload }) => {
                metrics::histogram!("foil_checkpoint_stall_seconds").record(stall.as_secs_f64());
                metrics::histogram!("foil_checkpoint_upload_seconds").record(upload.as_secs_f64());
            }
            Action::Publish { event, .. } => {
                if let Some(job_event::Event::PhaseProgress(progress)) = &event.event {
                    step(progress);
                }
            }
            Action::Agent { .. }
            | Action::Rank { .. }
            | Action::WriteSteps { .. }
            | Action::CollectGarbage(_)
            | Action::Erase { .. } => {}
        }
    }
}

fn recovered(stage: Option<Stage>) {
    if let Some(Stage { name, seconds }) = stage {
        metrics::histogram!("foil_recovery_seconds", "stage" => name).record(seconds);
    }
}

fn phase_committed(core: &Core, job: &str, done: &Committed, straggler_ratio: Option<f64>) {
    let state = core.state(job);
    let phase = state.and_then(|state| state.phases.iter().find(|phase| phase.id == done.phase));
    let kind = phase.map_or("unknown", |phase| phase.work.kind());
    metrics::counter!("foil_phases_committed_total", "kind" => kind).increment(1);
    metrics::histogram!("foil_phase_seconds", "kind" => kind).record(done.seconds);
    let steps = phase.map_or(0, |phase| phase.steps);
    metrics::counter!("foil_steps_committed_total").increment(steps.into());
    if let Some(ratio) = straggler_ratio {
        metrics::gauge!("foil_straggler_ratio", "kind" => kind).set(ratio);
    }
    if let Some(reward) = figure(&done.metrics, "reward_mean") {
        metrics::gauge!("foil_reward_mean").set(reward);
    }
    if let Some(kl) = figure(&done.metrics, "kl") {
        metrics::gauge!("foil_kl").set(kl);
    }
    if let Some(drift) = figure(&done.metrics, foil_common::drift::MEAN) {
        metrics::gauge!("foil_drift_mean", "kind" => kind).set(drift);
    }
}

fn count_once(counter: Counter) {
    let name = match counter {
        Counter::RankLost => "foil_ranks_lost_total",
        Counter::ChunkReleased => "foil_chunks_leased_again_total",
        Counter::DuplicateChunk => "foil_duplicate_chunks_total",
        Counter::DeterminismAlarm => "foil_determinism_alarms_total",
        Counter::WorkerFault => "foil_worker_faults_total",
    };
    metrics::counter!(name).increment(1);
}

fn step_taken(step: &StepTaken, report: Report) {
    match report {
        Report::Repeated => return,
        Report::Replayed => metrics::counter!("foil_steps_replayed_total").increment(1),
        Report::New => {}
    }
    let phase = step.work.name();
    if let Some(seconds) = step.seconds {
        metrics::histogram!("foil_step_seconds", "phase" => phase).record(seconds.as_secs_f64());
    }
    metrics::counter!("foil_tokens_total", "phase" => phase).increment(step.tokens);
    if !step.is_finite {
        metrics::counter!("foil_nonfinite_total", "phase" => phase).increment(1);
    }
}

fn used(usage: &StepUsage) {
    let phase = usage.work.name();
    if let Some(wait) = usage.collective_wait {
        metrics::histogram!("foil_collective_wait_seconds", "phase" => phase).record(wait.as_secs_f64());
    }
    // Rank 0 represents all ranks: shares differ little, and a series per rank would outlive the job.
    if let Some(peak) = usage.device_memory_peak.filter(|_| usage.rank == 0) {
        metrics::gauge!("foil_gpu_memory_bytes", "phase" => phase).set(peak as f64);
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

fn gauges(core: &Core, now: Now) -> [Family; 6] {
    let counts = core.counts();
    let jobs = STATES.iter().fold(Family::new("foil_jobs", "Jobs in each state."), |jobs, state| {
        jobs.with(&[("state", state)], count(counts.get(state)))
    });
    let ages = Family::new("foil_worker_heartbeat_age_seconds", "Time since an agent was last heard.");
    let ages = core
        .cluster()
        .ages(now)
        .fold(ages, |ages, (agent, age)| ages.with(&[("agent", agent)], age.as_secs_f64()));
    let counts = core.cluster().counts();
    let agents = Family::new("foil_agents", "Agents, by the state of their streams.");
    let agents = AGENT_STATES
        .iter()
        .fold(agents, |agents, state| agents.with(&[("state", state)], count(counts.agents.get(state))));
    let devices = Family::new("foil_devices", "Devices of all agents, by kind and by what they are at.");
    let devices = counts.devices.iter().fold(devices, |devices, ((kind, state), number)| {
        devices.with(&[("kind", kind), ("state", state)], count(Some(number)))
    });
    let excluded = Family::new(
        "foil_agents_excluded",
        "Agents that get no ranks for a while, for what went wrong through their fault.",
    );
    let excluded = excluded.with(&[], count(Some(&core.cluster().excluded())));
    [jobs, ages, agents, devices, excluded, devices_wanted(core)]
}

/// Number of devices of each kind by which the cluster would have to grow so that no job waits; a metric for
/// autoscalers.
fn devices_wanted(core: &Core) -> Family {
    let family = Family::new("foil_queue_devices_wanted", "Devices that waiting jobs lack, by kind.");
    let wanted = core.devices_wanted();
    DeviceKind::NAMES
        .iter()
        .fold(family, |family, kind| family.with(&[("kind", kind)], count(wanted.get(kind))))
}

fn count(number: Option<&usize>) -> f64 {
    u32::try_from(number.copied().unwrap_or_default()).unwrap_or(u32::MAX).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Liveness;
    use crate::schedule::Deadlines;
    use crate::secret::SecretIssuer;

    fn rendered(core: &Core, now: Now) -> String {
        gauges(core, now).iter().map(Family::render).collect()
    }

    #[test]
    fn steps_and_shards_are_measured_once() {
        let recorder = exposition::builder().unwrap().build_recorder();
        let step = |attempt, number, seconds| Action::Step {
            job: "j".into(),
            at: 1000 * number,
            step: StepTaken {
                work: crate::plan::Work::TrainPolicy,
                phase: "r01.policy.train".into(),
                attempt,
                step: number,
                resumed_after: 0,
                seconds: Some(Duration::from_secs_f64(seconds)),
                tokens: 100,
                is_finite: number != 2,
            },
        };
        metrics::with_local_recorder(&recorder, || {
            let mut telemetry = Telemetry::default();
            for action in [step(1, 1, 0.5), step(1, 2, 0.5), step(1, 2, 0.5), step(2, 1, 0.5)] {
                telemetry.action(&action);
            }
            let saved = ShardSaved { stall: Duration::from_millis(20), upload: Duration::from_secs(2) };
            telemetry.action(&Action::Shard(saved));
            for (rank, millis, memory) in [(1, Some(250), Some(9 << 30)), (0, None, Some(2 << 30))] {
                let collective_wait = millis.map(Duration::from_millis);
                let work = crate::plan::Work::TrainPolicy;
                let usage = StepUsage { work, rank, collective_wait, device_memory_peak: memory };
                telemetry.action(&Action::Usage(usage));
            }
        });
        let text = recorder.handle().render();
        for line in [
            "foil_step_seconds_count{phase=\"policy.train\"} 3\n",
            "foil_step_seconds_sum{phase=\"policy.train\"} 1.5\n",
            "foil_tokens_total{phase=\"policy.train\"} 300\n",
            "foil_nonfinite_total{phase=\"policy.train\"} 1\n",
            "foil_steps_replayed_total 1\n",
            "foil_goodput_ratio 0.6666666666666667\n",
            "foil_checkpoint_stall_seconds_sum 0.02\n",
            "foil_checkpoint_upload_seconds_sum 2\n",
            "foil_collective_wait_seconds_count{phase=\"policy.train\"} 1\n",
            "foil_collective_wait_seconds_sum{phase=\"policy.train\"} 0.25\n",
            "foil_gpu_memory_bytes{phase=\"policy.train\"} 2147483648\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_lost_agent_has_no_series() {
        let at = |seconds| Now { mono: Duration::from_secs(seconds), wall: 0 };
        let issuer = SecretIssuer::new([1; 32]);
        let mut core = Core::replay([], 1, Liveness::default(), Deadlines::default(), issuer).unwrap();
        let device = |id: &str| v1::Device { id: id.into(), kind: "cpu".into(), ..Default::default() };
        for (connection, agent) in [(1, "a"), (2, "b")] {
            let devices = vec![device("cpu:0"), device("cpu:1")];
            let hello = v1::AgentRegister {
                agent_id: agent.into(),
                devices,
                instance: agent.into(),
                ..Default::default()
            };
            core.agent_registered(&hello, connection, at(0));
        }
        core.agent_disconnected("a", 1, at(1));
        let text = rendered(&core, at(2));
        assert!(text.contains("foil_worker_heartbeat_age_seconds{agent=\"a\"} 1\n"), "{text}");
        assert!(text.contains("foil_agents{state=\"connected\"} 1\n"), "{text}");
        assert!(text.contains("foil_agents{state=\"disconnected\"} 1\n"), "{text}");
        assert!(text.contains("foil_devices{kind=\"cpu\",state=\"free\"} 2\n"), "{text}");
        assert!(text.contains("foil_devices{kind=\"cpu\",state=\"unreachable\"} 2\n"), "{text}");
        core.agent_heard("b", 2, at(30));
        core.tick(at(30));
        let text = rendered(&core, at(30));
        assert!(!text.contains("agent=\"a\"") && text.contains("agent=\"b\""), "{text}");
        assert!(text.contains("foil_agents{state=\"disconnected\"} 0\n"), "{text}");
    }
}

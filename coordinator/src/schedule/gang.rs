//! Gang phases: all ranks step together; the loss of any rank ends the attempt.

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;
use serde_json::{Map as JsonMap, Value};

use super::assignment::{Assignment, GangMember};
use super::checkpoints::ShardSet;
use super::context::{Context, Problem, Sender};
use super::decision::{Effect, ShardSaved, StepTaken, StepUsage};
use super::diagnosis::FailureSignal;
use super::error::ProtocolError;
use super::map::activity_progress;
use super::ranks::RankSet;
use super::report::{GangResult, ShardReport, StepReport};
use super::slot::Slot;
use super::task::{self, inherited};
use crate::clock::Now;
use crate::job::Change;
use crate::plan::Phase;

/// The current gang phase.
#[derive(Debug)]
pub(super) struct GangPhase {
    id: String,
    pub(super) since: Duration,
    steps: u64,
    pub(super) state: GangState,
    /// Rank 0's step reports, one JSON object per line.
    pub(super) metric_lines: String,
    /// Rank 0's last step report.
    last_step: Option<StepReport>,
    shards: ShardSet,
    /// Address at which rank 0 waits for the others, once rank 0 has offered one.
    rendezvous: Option<v1::Rendezvous>,
}

/// ```text
///   WaitingForRanks ──all ranks idle──▶ Stepping ──all results in──▶ Committing ──steps durable──▶ committed
///                                          ▲
///   Adopted ───────────all ranks up────────┘
/// ```
#[derive(Debug)]
pub(super) enum GangState {
    WaitingForRanks,
    /// Possibly started by a previous leader: ranks report so when they reconnect.
    Adopted,
    Stepping,
    Committing {
        artifact: v1::Artifact,
        metrics: Vec<v1::Metric>,
    },
}

impl GangPhase {
    pub(super) fn new(phase: &Phase, now: Now) -> Self {
        Self {
            id: phase.id.to_string(),
            since: now.mono,
            steps: phase.steps.into(),
            state: GangState::WaitingForRanks,
            metric_lines: String::new(),
            last_step: None,
            shards: ShardSet::default(),
            rendezvous: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn adopt(&mut self) {
        self.state = GangState::Adopted;
    }

    /// True while the loss of a rank breaks the gang.
    pub(super) fn is_stepping(&self) -> bool {
        matches!(self.state, GangState::Stepping | GangState::Adopted)
    }

    /// True while the gang waits for ranks before it starts.
    pub(super) fn is_waiting_for_ranks(&self) -> bool {
        matches!(self.state, GangState::WaitingForRanks)
    }

    pub(super) fn advance(&mut self, ranks: &mut RankSet, cx: &mut Context<'_>) -> Result<(), Problem> {
        let Some(phase) = cx.state.phase() else { return Ok(()) };
        match self.state {
            GangState::WaitingForRanks if ranks.all(Slot::is_idle) => self.launch(phase, ranks, cx),
            // Ranks launched before the failover are already running and wait for the others.
            GangState::Adopted if ranks.all(Slot::is_available_for_gang) => self.launch(phase, ranks, cx),
            GangState::WaitingForRanks | GangState::Adopted => {
                self.replace_obsolete(ranks, cx);
                Ok(())
            }
            GangState::Stepping => {
                self.begin_commit(phase, ranks, cx)?;
                self.check_progress(ranks, cx)
            }
            GangState::Committing { .. } => Ok(()),
        }
    }

    /// Starts the phase on all idle ranks.
    fn launch(&mut self, phase: &Phase, ranks: &mut RankSet, cx: &mut Context<'_>) -> Result<(), Problem> {
        let task = task::gang_task(cx.state, phase).map_err(|error| error.into_problem(0, phase))?;
        let world = ranks.world();
        for (rank, number) in ranks.numbers().zip(0..) {
            if !ranks.slot(rank).is_some_and(Slot::is_idle) {
                continue;
            }
            ranks.assign(rank, Assignment::Gang(GangMember::new(cx.now)));
            let run = v1::RunGang {
                task: Some(task.clone()),
                attempt: cx.id.attempt,
                rank: number,
                world,
                key_prefix: cx.id.gang_prefix(&phase.id),
                resume: cx.state.checkpoints.last().cloned(),
                traceparent: cx.state.trace.rank(&phase.id, cx.id.attempt, number).to_string(),
            };
            ranks.send(rank, Command::Gang(run), cx);
        }
        self.state = GangState::Stepping;
        cx.progressed = true;
        cx.out.because(format!("all {world} ranks are up: {} starts", phase.id));
        Ok(())
    }

    /// Replaces ranks that still compute a chunk which another rank has finished, because the gang cannot
    /// wait for them.
    fn replace_obsolete(&self, ranks: &mut RankSet, cx: &mut Context<'_>) {
        if cx.now.since(self.since) < cx.deadlines.obsolete {
            return;
        }
        for rank in ranks.numbers() {
            if ranks.lease(rank).is_some() {
                let reason = "still computes a chunk that is done: its process is replaced";
                cx.out.because(format!("rank {rank} {reason}"));
                ranks.stop(rank, cx);
            }
        }
    }

    /// Fails if no rank has made progress for too long; blames the rank that is furthest behind.
    fn check_progress(&self, ranks: &RankSet, cx: &Context<'_>) -> Result<(), Problem> {
        let limit = cx.state.spec.resources.hang_timeout;
        let latest = ranks.members().map(|(_, member)| member.watchdog.last_progress()).max();
        let is_hung = latest.is_some_and(|latest| cx.now.since(latest) >= limit);
        if !self.is_stepping() || !is_hung {
            return Ok(());
        }
        let behind = ranks.members().min_by_key(|(_, member)| {
            (member.result.is_some(), member.step, member.watchdog.last_progress())
        });
        match behind {
            Some((rank, _)) => Err(Problem::rank_lost(rank, FailureSignal::Hung(limit))),
            None => Ok(()),
        }
    }

    // ---- reports of ranks ----

    pub(super) fn step_report(
        &mut self,
        rank: usize,
        report: StepReport,
        ranks: &mut RankSet,
        cx: &mut Context<'_>,
    ) -> Result<(), ProtocolError> {
        let Some(member) = ranks.member_mut(rank) else { return Ok(()) };
        let (step, steps) = (report.step, report.steps);
        if step <= member.step || step > steps {
            let text = format!("step {step} of {steps} does not come after step {}", member.step);
            return Err(ProtocolError::FalseReport(text));
        }
        member.watchdog.record_step(cx.now);
        member.step = step;
        if let Some(phase) = cx.state.phase() {
            cx.out.effects.push(Effect::Usage(StepUsage::reported(phase.work, rank, &report)));
        }
        if rank == 0 {
            if let Some(phase) = cx.state.phase() {
                let earlier = cx.state.checkpoints.iter().filter(|made| made.attempt < cx.id.attempt);
                let resumed_after = earlier.map(|made| made.step).max().unwrap_or(0);
                cx.out.effects.push(Effect::Step(StepTaken::new(
                    phase,
                    cx.id.attempt,
                    &report,
                    resumed_after,
                )));
            }
            self.metric_lines.push_str(&metric_line(cx, &self.id, &report));
            self.metric_lines.push('\n');
            self.last_step = Some(report);
            cx.progressed = true;
        }
        Ok(())
    }

    /// Relays the rendezvous address that rank 0 offers to the other ranks.
    pub(super) fn rendezvous_offer(
        &mut self,
        rank: usize,
        host: String,
        port: u32,
        ranks: &mut RankSet,
        cx: &mut Context<'_>,
    ) -> Result<(), ProtocolError> {
        if rank != 0 {
            let text = format!("rank {rank} offers a rendezvous, which only rank 0 may do");
            return Err(ProtocolError::Invalid(text));
        }
        let rendezvous = v1::Rendezvous { phase: self.id.clone(), attempt: cx.id.attempt, host, port };
        self.rendezvous = Some(rendezvous.clone());
        if let Some(member) = ranks.member_mut(0) {
            member.watchdog.record_step(cx.now);
        }
        let others: Vec<usize> = ranks.members().map(|(rank, _)| rank).filter(|rank| *rank > 0).collect();
        for rank in others {
            ranks.send(rank, Command::Rendezvous(rendezvous.clone()), cx);
        }
        Ok(())
    }

    /// Records a rank's durable shard of a checkpoint; the last shard commits the checkpoint.
    pub(super) fn checkpoint_shard(
        &mut self,
        from: &Sender<'_>,
        shard: ShardReport,
        ranks: &mut RankSet,
        cx: &mut Context<'_>,
    ) -> Result<(), ProtocolError> {
        let (step, attempt, prefix) = (shard.step, cx.id.attempt, cx.id.gang_prefix(&self.id));
        let saved = ShardSaved::reported(&shard);
        let object = shard.object;
        if !object.key.starts_with(&prefix) {
            return Err(ProtocolError::FalseReport(format!("{} is not a key below {prefix}", object.key)));
        }
        let Some(member) = ranks.member_mut(from.rank) else { return Ok(()) };
        member.watchdog.record_step(cx.now);
        // Ranks repeat to a new leader what they reported to the previous one.
        let last = cx.state.checkpoints.last();
        if last.is_some_and(|last| last.attempt == attempt && step <= last.step) {
            return Ok(());
        }
        from.check_verified()?;
        cx.out.effects.extend(saved.map(Effect::Shard));
        if let Some(objects) = self.shards.add(step, from.rank, object, ranks.numbers().len()) {
            let checkpoint = v1::Checkpoint { phase: self.id.clone(), step, attempt, objects };
            cx.out.because(format!("all ranks' shards of the checkpoint after step {step} are durable"));
            cx.out.changes.push(Change::CheckpointCommitted(checkpoint));
        }
        Ok(())
    }

    /// Readmits a rank that reconnects and is in this gang already; the rank repeats its reports so far.
    pub(super) fn rejoin(&self, rank: usize, ranks: &mut RankSet, cx: &mut Context<'_>) {
        if !ranks.assign(rank, Assignment::Gang(GangMember::new(cx.now))) {
            return;
        }
        if let Some(rendezvous) = self.rendezvous.clone().filter(|_| rank > 0) {
            ranks.send(rank, Command::Rendezvous(rendezvous), cx);
        }
        cx.progressed = true;
        cx.out.because(format!("rank {rank} continues with {}", self.id));
    }

    /// Progress as reported by rank 0: its steps, or its activity before and after them.
    pub(super) fn progress(&self, ranks: &RankSet, phase: &Phase) -> v1::PhaseProgress {
        if let Some(activity) = ranks.member(0).and_then(|member| member.watchdog.activity()) {
            return activity_progress(phase, activity);
        }
        let last = self.last_step.as_ref();
        v1::PhaseProgress {
            phase: phase.id.to_string(),
            done: last.map_or(0, |last| last.step),
            total: last.map_or(self.steps, |last| last.steps),
            unit: phase.work.unit().to_owned(),
            step: last.map(|last| last.metrics.clone()).unwrap_or_default(),
        }
    }
}

/// Checks a rank's result of the phase: its objects must be its own or inherited from the start model, and
/// they must be verified.
pub(super) fn check_result(
    from: &Sender<'_>,
    result: &GangResult,
    phase: &Phase,
    cx: &Context<'_>,
) -> Result<(), ProtocolError> {
    let prefix = cx.id.gang_prefix(&phase.id);
    let inherited = inherited(cx.state, phase);
    let is_own = |object: &v1::Object| object.key.strip_prefix(&prefix) == Some(object.path.as_str());
    let is_foreign = |object: &&v1::Object| !is_own(object) && !inherited.contains(object);
    if let Some(object) = result.objects.iter().find(is_foreign) {
        let text = format!("{} is not the key of {} below {prefix}", object.key, object.path);
        return Err(ProtocolError::FalseReport(text));
    }
    from.check_verified()?;
    if from.rank == 0 && result.objects.is_empty() {
        return Err(ProtocolError::FalseReport(format!("rank 0 finished {} without an object", phase.id)));
    }
    Ok(())
}

/// A step's line in `metrics.jsonl`.
fn metric_line(cx: &Context<'_>, phase: &str, report: &StepReport) -> String {
    let mut object = JsonMap::new();
    object.insert("phase".to_owned(), phase.into());
    object.insert("round".to_owned(), cx.state.phase().map_or(0, |phase| phase.round).into());
    object.insert("attempt".to_owned(), cx.id.attempt.into());
    object.insert("step".to_owned(), report.step.into());
    object.insert("steps".to_owned(), report.steps.into());
    for metric in &report.metrics {
        object.insert(metric.name.clone(), metric.value.into());
    }
    Value::Object(object).to_string()
}

use foil_proto::v1;

use super::context::{AttemptId, Context, Sender};
use super::gang::{self, GangPhase};
use super::loss_budget::LossBudget;
use super::map::MapPhase;
use super::ranks::RankSet;
use super::slot::Process;
use super::teardown::Teardown;
use super::{Deadlines, Decision, Effect, GangEvent, GangReport, Hello, Input, ProtocolError, Report};
use crate::clock::Now;
use crate::cluster::Placement;
use crate::job::{Cause, JobState};
use crate::secret::{self, SecretIssuer};

/// One attempt of a job.
#[derive(Debug)]
pub struct Attempt {
    pub(super) id: AttemptId,
    pub(super) deadlines: Deadlines,
    pub(super) ranks: RankSet,
    pub(super) phase: PhaseRun,
    pub(super) losses: LossBudget,
    /// Set once the attempt is ending.
    pub(super) teardown: Option<Teardown>,
    /// The progress of the current phase has changed since [`Attempt::progress`] was last called.
    pub(super) progressed: bool,
}

/// The phase that the attempt works on.
#[expect(clippy::large_enum_variant, reason = "one per attempt")]
#[derive(Debug)]
pub(super) enum PhaseRun {
    Map(MapPhase),
    Gang(GangPhase),
    /// Every phase is committed.
    Done,
}

impl PhaseRun {
    /// The phase to work on in a job's current state.
    fn current(state: &JobState, now: Now) -> Self {
        match state.phase() {
            None => Self::Done,
            Some(phase) if phase.work.is_gang() => Self::Gang(GangPhase::new(phase, now)),
            Some(phase) => Self::Map(MapPhase::new(phase, now)),
        }
    }

    /// Id of the phase; empty if every phase is committed.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Map(map) => map.id(),
            Self::Gang(gang) => gang.id(),
            Self::Done => "",
        }
    }
}

impl Attempt {
    /// An attempt whose ranks have no devices yet.
    pub fn new(state: &JobState, attempt: u32, term: u64, deadlines: Deadlines, now: Now) -> Self {
        Self {
            id: AttemptId { job: state.id.clone(), attempt, term },
            deadlines,
            ranks: RankSet::vacant(state),
            phase: PhaseRun::current(state, now),
            losses: LossBudget::default(),
            teardown: None,
            progressed: false,
        }
    }

    /// The ranks that need a device.
    pub fn vacancies(&self) -> Vec<usize> {
        if self.teardown.is_some() { Vec::new() } else { self.ranks.vacancies() }
    }

    /// Sessions whose processes may still be alive.
    pub fn sessions(&self) -> impl Iterator<Item = &str> {
        self.ranks.processes().map(|process| process.session.as_str())
    }

    /// The devices of the attempt's processes.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.ranks.processes().map(|process| &process.placement)
    }

    /// The agent on which a session's process runs.
    pub fn agent_of(&self, session: &str) -> Option<&str> {
        let process = self.ranks.processes().find(|process| process.session == session);
        process.map(|process| process.placement.agent.as_str())
    }

    /// Places a new process of a rank on a device; returns it with the command that starts it.
    pub fn start_rank(
        &mut self,
        rank: usize,
        placement: Placement,
        issuer: &SecretIssuer,
        now: Now,
    ) -> (Process, Effect) {
        let AttemptId { job, attempt, term } = self.id.clone();
        let session = format!("{job}-a{attempt}-r{rank}-t{term}-{}", self.ranks.next_process());
        let secret = issuer.secret(&session);
        let proof = secret::fingerprint(&secret);
        let agent = placement.agent.clone();
        let start = v1::StartRank {
            session_id: session.clone(),
            job_id: job,
            attempt,
            rank: u32::try_from(rank).unwrap_or(u32::MAX),
            world: self.ranks.world(),
            device_id: placement.device.clone(),
            threads: self.ranks.threads,
            secret,
        };
        let process = Process { session, placement, unseen: false, adopted: false, leaving: false, proof };
        self.ranks.occupy(rank, process.clone(), now);
        (process, Effect::Start { agent, start })
    }

    /// Handles one input. An error leaves the attempt unchanged.
    pub fn handle(&mut self, state: &JobState, input: Input, now: Now) -> Result<Decision, ProtocolError> {
        let mut cx = self.context(state, now);
        match input {
            Input::Hello(hello) => self.hello(hello, &mut cx)?,
            Input::Report { session, report, flaw } => {
                let rank = self.ranks.rank_of(&session).ok_or_else(|| self.stale(&session))?;
                self.report(&Sender { rank, flaw: flaw.as_deref() }, report, &mut cx)?;
            }
            Input::FalseReport { session, why } => self.false_report(&session, why, &mut cx),
            Input::StreamEnded { session } => self.stream_ended(&session, &mut cx),
            Input::Exited(exit) => self.exited(exit, &mut cx),
            Input::AgentBack { session } => self.ranks.agent_back(&session, &mut cx),
            Input::AgentLeaving { session } => self.ranks.mark_leaving(&session),
            Input::AgentLost { session } => self.agent_lost(&session, &mut cx),
            Input::StepsWritten { phase, result } => self.steps_written(&phase, result, &mut cx),
        }
        Ok(self.decided(cx))
    }

    /// Advances as far as the durable state and the clock allow. Call it until it changes nothing.
    pub fn advance(&mut self, state: &JobState, now: Now) -> Decision {
        let mut cx = self.context(state, now);
        let current = state.phase().map_or("", |phase| phase.id.as_str());
        if self.teardown.is_none() && self.phase.id() != current {
            self.phase = PhaseRun::current(state, now);
            self.losses.reset();
        }
        self.lose_overdue(&mut cx);
        if let Some(teardown) = &mut self.teardown {
            teardown.advance(&mut self.ranks, self.phase.id(), &mut cx);
        } else {
            self.advance_phase(&mut cx);
        }
        self.decided(cx)
    }

    fn advance_phase(&mut self, cx: &mut Context<'_>) {
        match &mut self.phase {
            PhaseRun::Map(map) if map.is_complete(cx) => map.commit(cx),
            PhaseRun::Map(_) => self.advance_map(cx),
            PhaseRun::Gang(gang) => {
                if let Err(problem) = gang.advance(&mut self.ranks, cx) {
                    self.act_on(problem, cx);
                }
            }
            PhaseRun::Done => self.teardown = Some(Teardown::complete(&self.ranks, cx)),
        }
    }

    fn advance_map(&mut self, cx: &mut Context<'_>) {
        self.lose_stuck(cx);
        if self.teardown.is_none()
            && let PhaseRun::Map(map) = &mut self.phase
            && let Err(problem) = map.lease_chunks(&mut self.ranks, cx)
        {
            self.act_on(problem, cx);
        }
    }

    /// Restarts all deadlines while the store is unavailable: commands wait for the log and results for the
    /// store, so no rank can be late. Call it repeatedly until the store is available.
    pub fn reset_deadlines(&mut self, now: Now) {
        self.ranks.reset_deadlines(now);
    }

    /// The step metrics so far of a gang phase, if it is running: one JSON object per line.
    pub fn step_lines(&self, phase: &str) -> Option<&str> {
        match &self.phase {
            PhaseRun::Gang(gang) if gang.id() == phase => Some(&gang.metric_lines),
            PhaseRun::Gang(_) | PhaseRun::Map(_) | PhaseRun::Done => None,
        }
    }

    /// The current phase's progress, if it has changed since the last call.
    pub fn progress(&mut self, state: &JobState) -> Option<v1::PhaseProgress> {
        if !std::mem::take(&mut self.progressed) || self.teardown.is_some() {
            return None;
        }
        let phase = state.phase()?;
        match &self.phase {
            PhaseRun::Map(map) => Some(map.progress(&self.ranks, state, phase)),
            PhaseRun::Gang(gang) => Some(gang.progress(&self.ranks, phase)),
            PhaseRun::Done => None,
        }
    }

    /// Stops all ranks because a user canceled the job.
    pub fn cancel(&mut self, now: Now) {
        if !self.teardown.as_ref().is_some_and(Teardown::is_recorded) {
            self.teardown = Some(Teardown::canceled(now));
        }
    }

    /// True while the attempt is idle because it lacks ranks.
    pub fn is_stalled(&self) -> bool {
        self.teardown.is_none() && matches!(&self.phase, PhaseRun::Gang(gang) if gang.is_waiting_for_ranks())
    }

    /// True once the attempt is giving its devices back.
    pub fn is_ending(&self) -> bool {
        self.teardown.is_some()
    }

    /// Ends a stalled attempt without blame, so that others can use the devices that it holds.
    pub fn yield_devices(&mut self, now: Now) {
        if self.is_stalled() {
            self.teardown = Some(Teardown::yielded(now));
        }
    }

    /// Ends the attempt without blame for a job of higher priority. Ranks get time to finish their step and
    /// save a checkpoint of it.
    pub fn preempt(&mut self, by: &str, now: Now) {
        if self.teardown.is_none() {
            self.teardown = Some(Teardown::preempted(by, now.mono + self.deadlines.checkpoint));
        }
    }

    /// Ends the attempt because the job has reached its timeout.
    pub fn time_out(&mut self, cause: Cause, now: Now) {
        let is_stopped = self.teardown.as_ref().is_some_and(Teardown::is_final);
        if !is_stopped {
            self.teardown = Some(Teardown::timed_out(cause, now));
        }
    }

    /// True when the attempt has no process left and its end is in the log.
    pub fn is_over(&self) -> bool {
        self.teardown.as_ref().is_some_and(Teardown::is_recorded) && self.ranks.is_empty()
    }

    fn hello(&mut self, hello: Hello, cx: &mut Context<'_>) -> Result<(), ProtocolError> {
        let rank = self.ranks.authenticate(&hello, &self.id)?;
        if self.teardown.is_some() {
            return Err(self.stale(&hello.session));
        }
        self.ranks.admit(rank, cx);
        if let Some(task) = hello.task {
            self.resume(rank, task, cx);
        }
        Ok(())
    }

    fn report(
        &mut self,
        from: &Sender<'_>,
        report: Report,
        cx: &mut Context<'_>,
    ) -> Result<(), ProtocolError> {
        match report {
            Report::Progress(progress) => {
                cx.progressed |= self.ranks.record_progress(from.rank, progress, self.phase.id(), cx.now);
                Ok(())
            }
            Report::Chunk(result) => self.chunk_result(from, result, cx),
            Report::Failure(failure) => {
                self.task_failed(from.rank, failure, cx);
                Ok(())
            }
            Report::Gang(report) => self.gang_report(from, report, cx),
        }
    }

    /// Handles a report about the current gang phase. A report about a committed phase is ignored, because
    /// ranks repeat to a new leader what they reported to the previous one.
    fn gang_report(
        &mut self,
        from: &Sender<'_>,
        report: GangReport,
        cx: &mut Context<'_>,
    ) -> Result<(), ProtocolError> {
        let current = cx.gang_phase(&report.phase, report.attempt)?;
        let (Some(phase), PhaseRun::Gang(gang)) = (current, &mut self.phase) else { return Ok(()) };
        let ranks = &mut self.ranks;
        match report.event {
            GangEvent::Step(step) => gang.step_report(from.rank, step, ranks, cx),
            GangEvent::Rendezvous { host, port } => gang.rendezvous_offer(from.rank, host, port, ranks, cx),
            GangEvent::Checkpoint(shard) => gang.checkpoint_shard(from, shard, ranks, cx),
            GangEvent::Finished(result) => {
                gang::check_result(from, &result, phase, cx)?;
                ranks.record_result(from.rank, result, cx.now);
                Ok(())
            }
        }
    }

    fn steps_written(&mut self, phase: &str, result: Result<v1::Object, String>, cx: &mut Context<'_>) {
        if self.teardown.is_some() {
            return;
        }
        if let PhaseRun::Gang(gang) = &mut self.phase
            && let Err(problem) = gang.steps_written(phase, result, cx)
        {
            self.act_on(problem, cx);
        }
    }

    fn stale(&self, session: &str) -> ProtocolError {
        ProtocolError::Stale { session: session.to_owned(), attempt: self.id.attempt }
    }

    fn context<'a>(&self, state: &'a JobState, now: Now) -> Context<'a> {
        Context {
            id: self.id.clone(),
            state,
            now,
            deadlines: self.deadlines,
            out: Decision::default(),
            progressed: false,
        }
    }

    fn decided(&mut self, cx: Context<'_>) -> Decision {
        self.progressed |= cx.progressed;
        cx.out
    }
}

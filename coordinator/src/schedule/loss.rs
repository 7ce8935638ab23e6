//! Failures of ranks and their consequences: a replacement, or the end of the attempt.

use foil_proto::v1;

use super::attempt::{Attempt, PhaseRun};
use super::context::{Context, Problem, Sender, Severity};
use super::diagnosis::{FailureSignal, Observation};
use super::ranks::Overdue;
use super::teardown::Teardown;
use super::{ChunkReport, Counter, Level, ProtocolError, chunk_results};
use crate::clock::Now;
use crate::job::{CauseClass, Change};

/// Number of losses per rank without progress after which starting another process is not worthwhile.
const LOSSES_PER_RANK: u32 = 3;

impl Attempt {
    pub(super) fn act_on(&mut self, problem: Problem, cx: &mut Context<'_>) {
        let Problem { rank, signal, severity } = problem;
        match severity {
            Severity::Rank => self.lose(rank, *signal, cx),
            Severity::Attempt => self.fail(self.observe(rank, *signal), cx.now),
            Severity::Fatal => self.fail_at_once(self.observe(rank, *signal), cx),
        }
    }

    /// A rank's failure signal, with what the rank was working on.
    fn observe(&self, rank: usize, signal: FailureSignal) -> Observation {
        let step = self.ranks.member(rank).map(|member| member.step);
        let lease = self.ranks.lease(rank).filter(|lease| lease.phase == self.phase.id());
        Observation { rank, signal, step, chunk: lease.map(|lease| lease.chunk) }
    }

    /// Handles the loss of a rank. In a gang it ends the attempt; in a map phase other ranks take over the
    /// work, and a new process replaces the rank.
    fn lose(&mut self, rank: usize, signal: FailureSignal, cx: &mut Context<'_>) {
        let observation = self.observe(rank, signal);
        let fault = self.ranks.fault_of(&observation);
        let is_leaving = self.ranks.is_leaving(rank);
        match observation.signal {
            // The caller vacates its slot: there is nothing left to stop.
            FailureSignal::Exited(_) | FailureSignal::AgentLost => {}
            _ => self.ranks.stop(rank, cx),
        }
        if let Some(teardown) = &mut self.teardown {
            return teardown.note(observation);
        }
        cx.out.count(Counter::RankLost);
        cx.out.because(format!("rank {rank} is lost: {}", observation.signal));
        let is_agents_fault = fault.is_some();
        cx.out.effects.extend(fault);
        if let PhaseRun::Gang(gang) = &self.phase
            && gang.is_stepping()
        {
            return self.fail(observation, cx.now);
        }
        let returned = observation.chunk.map(|chunk| format!("; chunk {chunk} goes to another rank"));
        let returned = returned.unwrap_or_default();
        let text =
            format!("rank {rank} is lost: {}{returned}; a new process takes its place", observation.signal);
        if is_agents_fault {
            self.losses.uncharged = Some(observation);
        } else if !is_leaving {
            self.count_loss(observation, cx.now);
        }
        if self.teardown.is_none() {
            cx.out.notice(Level::Warning, text);
        }
    }

    /// Counts a loss without progress; too many of them end the job.
    fn count_loss(&mut self, observation: Observation, now: Now) {
        self.losses.count += 1;
        let poison = match (&mut self.phase, observation.chunk) {
            (PhaseRun::Map(map), Some(chunk)) => map.record_death(chunk).then(|| format!("chunk {chunk}")),
            _ => None,
        };
        if poison.is_some() || self.losses.count >= LOSSES_PER_RANK * self.ranks.world() {
            let kill_at = now.mono + self.deadlines.settling;
            self.teardown = Some(Teardown::unrecoverable(observation, poison, kill_at));
        }
    }

    /// Charges the last agent's fault to the job like any other loss, because no other agent can take over.
    pub fn charge(&mut self, now: Now) {
        if let Some(teardown) = &mut self.teardown {
            teardown.charge();
        } else if let Some(observation) = self.losses.uncharged.take() {
            self.count_loss(observation, now);
        }
    }

    /// Ends the attempt after a failure; another attempt may follow.
    fn fail(&mut self, observation: Observation, now: Now) {
        self.teardown = Some(Teardown::failed(observation, now.mono + self.deadlines.settling));
    }

    /// Ends the attempt after a failure whose cause is known: ranks are stopped immediately, and only their
    /// last log lines are awaited.
    fn fail_at_once(&mut self, observation: Observation, cx: &mut Context<'_>) {
        cx.out.because(format!("rank {} failed for good: {}", observation.rank, observation.signal));
        self.teardown = Some(Teardown::failed(observation, cx.now.mono));
    }

    pub(super) fn stream_ended(&mut self, session: &str, cx: &mut Context<'_>) {
        if let Some(rank) = self.ranks.rank_of(session).filter(|rank| self.ranks.is_up(*rank)) {
            self.lose(rank, FailureSignal::StreamEnded, cx);
        }
    }

    /// Handles a false report: the rank's process is stopped, and its agent is at fault.
    pub(super) fn false_report(&mut self, session: &str, why: String, cx: &mut Context<'_>) {
        if let Some(rank) = self.ranks.rank_of(session).filter(|rank| self.ranks.is_up(*rank)) {
            self.lose(rank, FailureSignal::FalseReport(why), cx);
        }
    }

    pub(super) fn exited(&mut self, exit: v1::RankExited, cx: &mut Context<'_>) {
        let Some(rank) = self.ranks.rank_of(&exit.session_id) else { return };
        let signal = FailureSignal::Exited(exit);
        if !self.ranks.is_stopping(rank) {
            self.lose(rank, signal, cx);
        } else if self.teardown.is_some() {
            // The exit was requested, or explains why the stream ended.
            let observation = self.observe(rank, signal);
            self.teardown.iter_mut().for_each(|teardown| teardown.note(observation.clone()));
        }
        self.ranks.vacate(rank, cx);
    }

    pub(super) fn agent_lost(&mut self, session: &str, cx: &mut Context<'_>) {
        let Some(rank) = self.ranks.rank_of(session) else { return };
        if !self.ranks.is_stopping(rank) {
            self.lose(rank, FailureSignal::AgentLost, cx);
        }
        self.ranks.vacate(rank, cx);
    }

    pub(super) fn lose_overdue(&mut self, cx: &mut Context<'_>) {
        for (rank, overdue) in self.ranks.overdue(cx) {
            match overdue {
                Overdue::Hello(limit) => self.lose(rank, FailureSignal::NotStarted(limit), cx),
                Overdue::Exit => {
                    cx.out.because(format!("nobody reported the end of rank {rank}; assumed dead"));
                    self.ranks.vacate(rank, cx);
                }
            }
        }
    }

    /// Loses the ranks that hold a chunk and have stopped making progress.
    pub(super) fn lose_stuck(&mut self, cx: &mut Context<'_>) {
        let limit = cx.state.spec.resources.hang_timeout;
        for rank in self.ranks.stuck(limit, cx.now) {
            self.lose(rank, FailureSignal::Hung(limit), cx);
        }
    }

    /// Handles a rank's report that its task failed.
    pub(super) fn task_failed(&mut self, rank: usize, failure: v1::TaskFailure, cx: &mut Context<'_>) {
        let is_current = failure.phase == self.phase.id() && self.teardown.is_none();
        let class = CauseClass::from(failure.class());
        if is_current && class == CauseClass::Checkpoint {
            drop_checkpoint(&failure, cx);
        }
        let signal = FailureSignal::Reported(failure);
        if is_current && class.is_final() {
            self.fail_at_once(self.observe(rank, signal), cx);
        } else {
            self.lose(rank, signal, cx);
        }
    }

    /// Handles a chunk that a rank reports; it may belong to an earlier phase if it was leased twice.
    pub(super) fn chunk_result(
        &mut self,
        from: &Sender<'_>,
        result: ChunkReport,
        cx: &mut Context<'_>,
    ) -> Result<(), ProtocolError> {
        chunk_results::check_key(&result, cx)?;
        let known = chunk_results::known_hash(cx.state, &result.phase, result.chunk);
        if known.is_none() && self.teardown.is_none() {
            chunk_results::check_lease(from.rank, &result, self.ranks.lease(from.rank))?;
            from.check_verified()?;
        }
        let leased_at = self.ranks.lease(from.rank).map_or(0, |held| held.leased_at);
        self.ranks.release(from.rank, result.lease);
        if self.teardown.is_some() {
            return Ok(());
        }
        if let Some(known) = known {
            chunk_results::compare(from.rank, &result, &known, cx);
            return Ok(());
        }
        if let Some(failure) = chunk_results::check_metrics(&result, cx)? {
            self.act_on(Problem::fatal(from.rank, failure), cx);
            return Ok(());
        }
        self.losses.reset();
        if let PhaseRun::Map(map) = &mut self.phase {
            map.accept(result, leased_at, cx);
        }
        Ok(())
    }
}

/// The last checkpoint cannot be read: training falls back to the one before it, and users get a prominent
/// notice.
fn drop_checkpoint(failure: &v1::TaskFailure, cx: &mut Context<'_>) {
    let Some(lost) = cx.state.checkpoints.last() else { return };
    let (step, attempt) = (lost.step, lost.attempt);
    let before = cx.state.checkpoints.iter().rev().nth(1);
    let next = before.map_or_else(
        || "training starts this phase again".to_owned(),
        |before| format!("training continues after step {}", before.step),
    );
    cx.out.notice(Level::Error, format!("{}: it is dropped, and {next}", failure.message));
    let why = failure.message.clone();
    cx.out.changes.push(Change::CheckpointLost { step, attempt, why });
}

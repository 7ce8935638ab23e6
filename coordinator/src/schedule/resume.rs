//! Adoption of an attempt that a previous leader has started: its processes go on, and report what they are
//! working on.

use foil_proto::v1::{self, rank_task::Task};

use super::Deadlines;
use super::assignment::{Assignment, ChunkLease};
use super::attempt::{Attempt, PhaseRun};
use super::context::Context;
use super::slot::Process;
use super::watchdog::ProgressWatchdog;
use crate::clock::Now;
use crate::cluster::Placement;
use crate::job::{JobState, RankStarted};

impl Attempt {
    /// The current attempt as a previous leader left it: its processes are assumed alive, and report
    /// themselves what they are working on.
    pub fn adopt(state: &JobState, term: u64, deadlines: Deadlines, now: Now) -> Self {
        let mut adopted = Self::new(state, state.attempt, term, deadlines, now);
        for started in state.ranks.values() {
            adopted.ranks.occupy(started.rank as usize, adopted_process(started), now);
        }
        if let PhaseRun::Gang(gang) = &mut adopted.phase {
            gang.adopt();
        }
        adopted
    }

    /// Takes in the task that a reconnecting process is working on; its reports follow.
    pub(super) fn resume(&mut self, rank: usize, task: Option<&v1::RankTask>, cx: &mut Context<'_>) {
        match task.and_then(|task| task.task.as_ref()) {
            Some(Task::Chunk(run)) => self.resume_chunk(rank, run, cx),
            Some(Task::Gang(run)) => self.resume_gang(rank, run, cx),
            None => {}
        }
    }

    /// A rank holds a lease from the previous leader.
    fn resume_chunk(&mut self, rank: usize, run: &v1::RunChunk, cx: &mut Context<'_>) {
        let phase = run.task.as_ref().map(|task| task.phase.as_str()).unwrap_or_default();
        if cx.state.phases.iter().all(|planned| planned.id != phase) {
            return;
        }
        let lease = ChunkLease {
            phase: phase.to_owned(),
            chunk: run.chunk,
            lease: run.lease,
            key: run.key.clone(),
            since: cx.now.mono,
            watchdog: ProgressWatchdog::new(cx.now),
        };
        if self.ranks.assign(rank, Assignment::Chunk(lease)) {
            cx.progressed = true;
            cx.out.because(format!("rank {rank} goes on with chunk {} of {phase}", run.chunk));
        }
    }

    /// A rank is in a gang from the previous leader. If that phase is committed, it waits for its next task.
    fn resume_gang(&mut self, rank: usize, run: &v1::RunGang, cx: &mut Context<'_>) {
        let phase = run.task.as_ref().map(|task| task.phase.as_str()).unwrap_or_default();
        if let PhaseRun::Gang(gang) = &self.phase
            && gang.id() == phase
            && run.attempt == self.id.attempt
        {
            gang.rejoin(rank, &mut self.ranks, cx);
        }
    }
}

fn adopted_process(started: &RankStarted) -> Process {
    let RankStarted { session, agent, device, proof, .. } = started.clone();
    let placement = Placement { agent, device };
    Process { session, placement, unseen: true, adopted: true, leaving: false, proof }
}

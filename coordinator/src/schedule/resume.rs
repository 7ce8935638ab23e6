//! Adoption of an attempt that a previous leader started: its processes continue and report what they are
//! working on.

use super::assignment::{Assignment, ChunkLease};
use super::attempt::{Attempt, PhaseRun};
use super::context::Context;
use super::slot::Process;
use super::watchdog::ProgressWatchdog;
use super::{Deadlines, RunningTask};
use crate::clock::Now;
use crate::cluster::Placement;
use crate::job::{JobState, RankStarted};

impl Attempt {
    /// The current attempt as a previous leader left it: its processes are assumed alive until they report
    /// what they are working on.
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

    /// Handles the task that a reconnecting process is working on; its reports follow.
    pub(super) fn resume(&mut self, rank: usize, task: RunningTask, cx: &mut Context<'_>) {
        match task {
            RunningTask::Chunk { phase, chunk, lease, key, leased_at } => {
                let (since, watchdog) = (cx.now.mono, ProgressWatchdog::new(cx.now));
                let lease = ChunkLease { phase, chunk, lease, key, since, leased_at, watchdog };
                self.resume_chunk(rank, lease, cx);
            }
            RunningTask::Gang { phase, attempt } => self.resume_gang(rank, &phase, attempt, cx),
        }
    }

    /// A rank holds a lease from the previous leader.
    fn resume_chunk(&mut self, rank: usize, lease: ChunkLease, cx: &mut Context<'_>) {
        if cx.state.phases.iter().all(|planned| planned.id != lease.phase) {
            return;
        }
        let because = format!("rank {rank} continues with chunk {} of {}", lease.chunk, lease.phase);
        if self.ranks.assign(rank, Assignment::Chunk(lease)) {
            cx.progressed = true;
            cx.out.because(because);
        }
    }

    /// A rank is in a gang from the previous leader. If that phase is committed, the rank waits for its next
    /// task.
    fn resume_gang(&mut self, rank: usize, phase: &str, attempt: u32, cx: &mut Context<'_>) {
        if let PhaseRun::Gang(gang) = &self.phase
            && gang.id() == phase
            && attempt == self.id.attempt
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

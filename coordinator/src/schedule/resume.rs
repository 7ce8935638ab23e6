//! An attempt that a coordinator before this one began: its processes go on, and say what they are at.

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;
use foil_proto::v1::rank_message::Message;
use foil_proto::v1::rank_task;

use super::gang::Member;
use super::map::Chunk;
use super::pulse::Pulse;
use super::ranks::Process;
use super::{Busy, Deadlines, Decision, Effect, Run, Slot, Stage};
use crate::clock::Now;
use crate::cluster::Placement;
use crate::job::JobState;

impl Run {
    /// The current attempt, as a coordinator before this one left it: its processes live until the opposite is known,
    /// and say themselves what they are at.
    pub fn adopt(state: &JobState, term: u64, deadlines: Deadlines, now: Now) -> Self {
        let mut run = Self::new(state, state.attempt, term, deadlines, now);
        for (slot, rank) in run.slots.iter_mut().zip(0..) {
            if let Some(seat) = state.ranks.get(&rank) {
                let proof = seat.proof.clone();
                let placement = Placement { agent: seat.agent.clone(), device: seat.device.clone() };
                let process = Process {
                    session: seat.session.clone(),
                    placement,
                    unseen: true,
                    adopted: true,
                    leaving: false,
                    proof,
                };
                *slot = Slot::Starting { process, since: now.mono };
            }
        }
        if let Stage::Gang(gang) = &mut run.stage {
            gang.adopt();
        }
        run
    }

    /// A process from before this coordinator goes on with what it was at; what it tells of it follows.
    pub(super) fn resume(
        &mut self,
        state: &JobState,
        rank: usize,
        task: Option<&v1::RankTask>,
        now: Now,
        out: &mut Decision,
    ) {
        match task.and_then(|task| task.task.as_ref()) {
            Some(rank_task::Task::Chunk(run)) => self.resume_chunk(state, rank, run, now, out),
            Some(rank_task::Task::Gang(run)) => self.resume_gang(rank, run, now, out),
            None => {}
        }
    }

    /// A rank holds a lease of the coordinator before this one.
    fn resume_chunk(
        &mut self,
        state: &JobState,
        rank: usize,
        run: &v1::RunChunk,
        now: Now,
        out: &mut Decision,
    ) {
        let held = run.task.as_ref().map(|task| task.phase.as_str()).unwrap_or_default();
        let Some(phase) = state.phases.iter().position(|phase| phase.id == held) else { return };
        if let Some(Slot::Up { busy, .. }) = self.slots.get_mut(rank) {
            let pulse = Pulse::new(now);
            *busy = Busy::Chunk(Chunk {
                phase,
                chunk: run.chunk,
                lease: run.lease,
                key: run.key.clone(),
                since: now.mono,
                pulse,
            });
            self.progressed = true;
            out.because(format!("rank {rank} goes on with chunk {} of {held}", run.chunk));
        }
    }

    /// A rank is in the gang of a coordinator before this one; what it has told so far it tells again.
    fn resume_gang(&mut self, rank: usize, run: &v1::RunGang, now: Now, out: &mut Decision) {
        let phase = run.task.as_ref().map(|task| task.phase.as_str()).unwrap_or_default();
        // An earlier gang is committed: this rank waits for its next task.
        let (true, Stage::Gang(gang)) = (phase == self.phase_id && run.attempt == self.attempt, &self.stage)
        else {
            return;
        };
        let Some(Slot::Up { process, busy }) = self.slots.get_mut(rank) else { return };
        *busy = Busy::Gang(Member::new(now));
        if let Some(meeting) = gang.meeting.clone().filter(|_| rank > 0) {
            let (session, command) = (process.session.clone(), Command::Rendezvous(meeting));
            out.effects.push(Effect::Tell { session, command });
        }
        self.progressed = true;
        out.because(format!("rank {rank} goes on with {phase}"));
    }

    /// What a rank tells again of a gang that is committed: it has no other task yet.
    pub(super) fn is_history(&self, state: &JobState, message: &Message) -> bool {
        let (phase, attempt) = match message {
            Message::Step(report) => (&report.phase, report.attempt),
            Message::Rendezvous(offer) => (&offer.phase, offer.attempt),
            Message::Gang(result) => (&result.phase, result.attempt),
            _ => return false,
        };
        attempt == self.attempt && state.done(phase).is_some()
    }

    /// An agent that came back may have missed what it was told, or be heard for the first time.
    pub(super) fn agent_back(&mut self, session: &str, now: Now, out: &mut Decision) {
        let Some(slot) = self.rank_of(session).and_then(|rank| self.slots.get_mut(rank)) else { return };
        match slot {
            Slot::Starting { process, since } if process.unseen => {
                process.unseen = false;
                *since = now.mono;
            }
            Slot::Down { process, since } => {
                process.unseen = false;
                *since = now.mono;
                let (agent, session) = (process.placement.agent.clone(), process.session.clone());
                out.effects.push(Effect::Stop { agent, session });
            }
            Slot::Vacant | Slot::Starting { .. } | Slot::Up { .. } => {}
        }
    }
}

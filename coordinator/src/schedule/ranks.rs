//! The rank processes of an attempt: asked for, up, down, replaced.

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;

use super::blame::{Sign, Symptom};
use super::{Busy, Counter, Decision, Effect, Level, Refusal, Run, Stage};
use crate::clock::Now;
use crate::cluster::{AgentFault, Placement};
use crate::job::JobState;
use crate::secret::{self, SecretIssuer};

/// Losses per rank without a sign of progress after which another process is not worth starting.
const LOSSES_PER_RANK: u32 = 3;

/// A rank's seat in the attempt.
///
/// ```text
///   Vacant ──fill──▶ Starting ──hello──▶ Up
///      ▲                │ overdue         │ stream ended, failed, hung
///      └────reaped──── Down ◀─────────────┘
/// ```
#[derive(Debug)]
pub enum Slot {
    /// Waits for a device.
    Vacant,
    Starting {
        process: Process,
        since: Duration,
    },
    Up {
        process: Process,
        busy: Busy,
    },
    /// Dying; the device is its own until it is dead.
    Down {
        process: Process,
        since: Duration,
    },
}

#[derive(Debug, Clone)]
pub struct Process {
    pub session: String,
    pub placement: Placement,
    /// Its agent has not spoken to this coordinator, which only read of it: nothing tells it to stop, and it may live for
    /// as long as its agent is believed in.
    pub(super) unseen: bool,
    /// A coordinator before this one started it.
    pub(super) adopted: bool,
    /// Its agent was asked to end: however it ends now, neither the job nor its chunk is to blame.
    pub(super) leaving: bool,
    /// The fingerprint of its secret.
    pub proof: String,
}

impl Slot {
    pub(super) fn process(&self) -> Option<&Process> {
        match self {
            Self::Vacant => None,
            Self::Starting { process, .. } | Self::Up { process, .. } | Self::Down { process, .. } => {
                Some(process)
            }
        }
    }

    /// Idle, or in a gang already.
    pub(super) fn is_free_for_gang(&self) -> bool {
        matches!(self, Self::Up { busy: Busy::Idle | Busy::Gang(_), .. })
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Up { busy: Busy::Idle, .. })
    }
}

impl Run {
    /// The ranks that want a device.
    pub fn vacancies(&self) -> Vec<usize> {
        let vacant = |(rank, slot): (usize, &Slot)| matches!(slot, Slot::Vacant).then_some(rank);
        match self.closing {
            Some(_) => Vec::new(),
            None => self.slots.iter().enumerate().filter_map(vacant).collect(),
        }
    }

    /// Seats a new process on a device; answers with it and the command that starts it.
    pub fn fill(
        &mut self,
        rank: usize,
        placement: Placement,
        issuer: &SecretIssuer,
        now: Now,
    ) -> (Process, Effect) {
        self.processes += 1;
        let (attempt, term, number) = (self.attempt, self.term, self.processes);
        let session = format!("{}-a{attempt}-r{rank}-t{term}-{number}", self.job);
        let secret = issuer.secret(&session);
        let proof = secret::fingerprint(&secret);
        let start = v1::StartRank {
            session_id: session.clone(),
            job_id: self.job.clone(),
            attempt: self.attempt,
            rank: u32::try_from(rank).unwrap_or(u32::MAX),
            world: self.world(),
            device_id: placement.device.clone(),
            threads: self.threads,
            secret,
        };
        let agent = placement.agent.clone();
        let process = Process { session, placement, unseen: false, adopted: false, leaving: false, proof };
        if let Some(slot) = self.slots.get_mut(rank) {
            *slot = Slot::Starting { process: process.clone(), since: now.mono };
        }
        (process, Effect::Start { agent, start })
    }

    /// Sessions whose processes may still live.
    pub fn sessions(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().filter_map(Slot::process).map(|process| process.session.as_str())
    }

    /// The agent that a session's process runs on.
    pub fn agent_of(&self, session: &str) -> Option<&str> {
        let process = self.slots.iter().filter_map(Slot::process).find(|process| process.session == session);
        process.map(|process| process.placement.agent.as_str())
    }

    pub(super) fn rank_of(&self, session: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.process().is_some_and(|process| process.session == session))
    }

    pub(super) fn stale(&self, session: &str) -> Refusal {
        Refusal::Stale { session: session.to_owned(), attempt: self.attempt }
    }

    pub(super) fn hello(
        &mut self,
        state: &JobState,
        session: &str,
        hello: &v1::RankHello,
        now: Now,
        out: &mut Decision,
    ) -> Result<(), Refusal> {
        let rank = self.rank_of(session).ok_or_else(|| self.stale(session))?;
        let same = hello.attempt == self.attempt && hello.rank as usize == rank && hello.job_id == self.job;
        let stale = self.stale(session);
        let slot = self.slots.get_mut(rank).ok_or_else(|| stale.clone())?;
        let Slot::Starting { process, since } = slot else { return Err(stale) };
        if !secret::verify(&hello.secret, &process.proof) {
            return Err(Refusal::Stranger { session: session.to_owned() });
        }
        if !same || self.closing.is_some() {
            return Err(stale);
        }
        out.effects.push(Effect::Vouch { agent: process.placement.agent.clone() });
        out.because(format!("rank {rank} joined after {:.1} s", now.since(*since).as_secs_f64()));
        *slot = Slot::Up { process: process.clone(), busy: Busy::Idle };
        let command = Command::Welcome(v1::RankWelcome { spec: Some(state.submitted.spec.clone()) });
        out.effects.push(Effect::Tell { session: session.to_owned(), command });
        self.resume(state, rank, hello.task.as_ref(), now, out);
        Ok(())
    }

    pub(super) fn stream_ended(&mut self, session: &str, now: Now, out: &mut Decision) {
        if let Some(rank) = self.rank_of(session)
            && matches!(self.slots.get(rank), Some(Slot::Up { .. }))
        {
            self.lose(rank, Sign::StreamEnded, now, out);
        }
    }

    pub(super) fn exited(&mut self, exit: v1::RankExited, now: Now, out: &mut Decision) {
        let Some(rank) = self.rank_of(&exit.session_id) else { return };
        // Before it is down, the end is news; after, it is what was asked for or tells why the stream ended.
        let was_down = matches!(self.slots.get(rank), Some(Slot::Down { .. }));
        let sign = Sign::Exited(exit);
        if was_down {
            self.note(self.symptom(rank, sign));
        } else {
            self.lose(rank, sign, now, out);
        }
        self.vacate(rank, out);
    }

    pub(super) fn agent_leaving(&mut self, session: &str) {
        if let Some(rank) = self.rank_of(session)
            && let Some(Slot::Starting { process, .. } | Slot::Up { process, .. }) = self.slots.get_mut(rank)
        {
            process.leaving = true;
        }
    }

    pub(super) fn agent_lost(&mut self, session: &str, now: Now, out: &mut Decision) {
        let Some(rank) = self.rank_of(session) else { return };
        if !matches!(self.slots.get(rank), Some(Slot::Down { .. })) {
            self.lose(rank, Sign::AgentLost, now, out);
        }
        self.vacate(rank, out);
    }

    /// Something seen of a rank, with what the rank is at.
    pub(super) fn symptom(&self, rank: usize, sign: Sign) -> Symptom {
        Symptom { rank, sign, step: self.step_of(rank), chunk: self.chunk_of(rank) }
    }

    /// A rank is of no more use. In a gang that ends the attempt; elsewhere its work goes to others and another process
    /// takes its seat.
    pub(super) fn lose(&mut self, rank: usize, sign: Sign, now: Now, out: &mut Decision) {
        let symptom = self.symptom(rank, sign);
        let blame = self.blame_of(&symptom);
        let is_leaving = self.slots.get(rank).and_then(Slot::process).is_some_and(|process| process.leaving);
        match symptom.sign {
            // Its seat is vacated by whoever tells: there is nothing to stop any more.
            Sign::Exited(_) | Sign::AgentLost => {}
            _ => self.take_down(rank, now, out),
        }
        if self.closing.is_some() {
            self.note(symptom);
            return;
        }
        out.effects.push(Effect::Count(Counter::RankLost));
        out.because(format!("rank {rank} is lost: {}", symptom.sign));
        let is_blamed = blame.is_some();
        out.effects.extend(blame);
        if let Stage::Gang(gang) = &self.stage
            && gang.is_stepping()
        {
            self.fail(symptom, now);
            return;
        }
        let returned = symptom.chunk.map(|chunk| format!("; chunk {chunk} goes to another rank"));
        let returned = returned.unwrap_or_default();
        let text = format!("rank {rank} is lost: {}{returned}; a new process takes its place", symptom.sign);
        if is_blamed {
            self.excused = Some(symptom);
        } else if !is_leaving {
            self.count_loss(symptom, now);
        }
        if self.closing.is_none() {
            out.notice(Level::Warning, text);
        }
    }

    /// One more loss without progress; too many of them end the attempt for good.
    pub(super) fn count_loss(&mut self, symptom: Symptom, now: Now) {
        self.losses += 1;
        let chunk = symptom.chunk;
        let poisonous = chunk.is_some_and(|chunk| self.blame_chunk(chunk));
        if poisonous || self.losses >= LOSSES_PER_RANK * self.world() {
            let what = chunk.filter(|_| poisonous).map(|chunk| format!("chunk {chunk}"));
            self.give_up(symptom, what, now);
        }
    }

    /// The agent that is at fault, where that is not the job's or nobody's.
    fn blame_of(&self, symptom: &Symptom) -> Option<Effect> {
        let slot = self.slots.get(symptom.rank)?;
        let process = slot.process()?;
        let never_connected = matches!(slot, Slot::Starting { .. }) && !process.adopted;
        let fault = match symptom.sign {
            Sign::Misreported(_) => AgentFault::FalseReport,
            Sign::AgentLost => return None,
            _ if process.leaving => return None,
            _ if never_connected => AgentFault::NeverConnected,
            _ => return None,
        };
        Some(Effect::Blame { placement: process.placement.clone(), fault, why: symptom.sign.to_string() })
    }

    /// A rank said what is not so: its process is stopped, and its agent blamed.
    pub(super) fn misreported(&mut self, session: &str, why: String, now: Now, out: &mut Decision) {
        if let Some(rank) = self.rank_of(session)
            && matches!(self.slots.get(rank), Some(Slot::Up { .. }))
        {
            self.lose(rank, Sign::Misreported(why), now, out);
        }
    }

    /// Kills the process, once; its lease, if any, is free again.
    pub(super) fn take_down(&mut self, rank: usize, now: Now, out: &mut Decision) {
        let Some(slot) = self.slots.get_mut(rank) else { return };
        let process = match slot {
            Slot::Vacant | Slot::Down { .. } => return,
            Slot::Starting { process, .. } | Slot::Up { process, .. } => process.clone(),
        };
        let (agent, session) = (process.placement.agent.clone(), process.session.clone());
        out.effects.push(Effect::Stop { agent, session });
        *slot = Slot::Down { process, since: now.mono };
    }

    /// The process is dead: its device is free.
    fn vacate(&mut self, rank: usize, out: &mut Decision) {
        let Some(slot) = self.slots.get_mut(rank) else { return };
        if let Some(process) = slot.process() {
            let (placement, session) = (process.placement.clone(), process.session.clone());
            out.effects.push(Effect::Release { placement, session });
        }
        *slot = Slot::Vacant;
    }

    /// Processes that never said hello, and those whose death nobody reported. A job that bears no silence of its ranks for
    /// longer bears none at their start.
    pub(super) fn overdue_processes(&mut self, state: &JobState, now: Now, out: &mut Decision) {
        let patience = self.deadlines.start.min(state.spec.resources.hang_timeout);
        for rank in 0..self.slots.len() {
            match self.slots.get(rank) {
                // Its agent's silence will end it.
                Some(slot) if slot.process().is_some_and(|process| process.unseen) => {}
                Some(Slot::Starting { since, .. }) if now.since(*since) >= patience => {
                    let sign = Sign::NotStarted(patience);
                    self.lose(rank, sign, now, out);
                }
                Some(Slot::Down { since, .. }) if now.since(*since) >= self.deadlines.reaping => {
                    out.because(format!("nobody reported the end of rank {rank}; taken for dead"));
                    self.vacate(rank, out);
                }
                _ => {}
            }
        }
    }
}

//! The ranks of an attempt: their processes, devices and assignments.

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;

use super::assignment::{Assignment, ChunkLease, GangMember};
use super::context::{AttemptId, Context};
use super::diagnosis::{FailureSignal, Observation};
use super::slot::{Process, Slot};
use super::{Effect, GangResult, Hello, ProtocolError};
use crate::clock::Now;
use crate::cluster::AgentFault;
use crate::job::JobState;
use crate::secret;

/// One slot for each rank.
#[derive(Debug)]
pub(super) struct RankSet {
    slots: Vec<Slot>,
    /// Number of CPU threads of each rank.
    pub(super) threads: u32,
    /// Number of processes started so far; names the next session.
    processes: u64,
    /// Number of leases granted so far; names the next lease.
    leases: u64,
}

/// A process whose deadline has passed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Overdue {
    /// It did not say hello within this time.
    Hello(Duration),
    /// The agent did not report its death.
    Exit,
}

impl RankSet {
    /// Ranks without devices.
    pub(super) fn vacant(state: &JobState) -> Self {
        let resources = &state.spec.resources;
        let slots = (0..resources.ranks).map(|_| Slot::Vacant).collect();
        Self { slots, threads: resources.threads_per_rank, processes: 0, leases: 0 }
    }

    pub(super) fn world(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// All rank numbers.
    pub(super) fn numbers(&self) -> std::ops::Range<usize> {
        0..self.slots.len()
    }

    pub(super) fn slot(&self, rank: usize) -> Option<&Slot> {
        self.slots.get(rank)
    }

    pub(super) fn all(&self, predicate: impl Fn(&Slot) -> bool) -> bool {
        self.slots.iter().all(predicate)
    }

    /// True when no process is left.
    pub(super) fn is_empty(&self) -> bool {
        self.all(|slot| matches!(slot, Slot::Vacant))
    }

    pub(super) fn is_up(&self, rank: usize) -> bool {
        matches!(self.slots.get(rank), Some(Slot::Up { .. }))
    }

    pub(super) fn is_stopping(&self, rank: usize) -> bool {
        matches!(self.slots.get(rank), Some(Slot::Stopping { .. }))
    }

    pub(super) fn is_leaving(&self, rank: usize) -> bool {
        self.slots.get(rank).and_then(Slot::process).is_some_and(|process| process.leaving)
    }

    /// The ranks that need a device.
    pub(super) fn vacancies(&self) -> Vec<usize> {
        let vacant = |(rank, slot): (usize, &Slot)| matches!(slot, Slot::Vacant).then_some(rank);
        self.slots.iter().enumerate().filter_map(vacant).collect()
    }

    pub(super) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.slots.iter().filter_map(Slot::process)
    }

    pub(super) fn rank_of(&self, session: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.process().is_some_and(|process| process.session == session))
    }

    // ---- processes ----

    /// The number of the next process.
    pub(super) fn next_process(&mut self) -> u64 {
        self.processes += 1;
        self.processes
    }

    /// Puts a starting process into a rank's slot.
    pub(super) fn occupy(&mut self, rank: usize, process: Process, now: Now) {
        if let Some(slot) = self.slots.get_mut(rank) {
            *slot = Slot::Starting { process, since: now.mono };
        }
    }

    /// The rank of a process that says hello and proves that it is the process that was started.
    pub(super) fn authenticate(&self, hello: &Hello, id: &AttemptId) -> Result<usize, ProtocolError> {
        let session = &hello.session;
        let stale = || ProtocolError::Stale { session: session.clone(), attempt: id.attempt };
        let rank = self.rank_of(session).ok_or_else(stale)?;
        let Some(Slot::Starting { process, .. }) = self.slots.get(rank) else { return Err(stale()) };
        if !secret::verify(&hello.secret, &process.proof) {
            return Err(ProtocolError::Unauthenticated { session: session.clone() });
        }
        let same = hello.attempt == id.attempt && hello.rank == rank && hello.job == id.job;
        if same { Ok(rank) } else { Err(stale()) }
    }

    /// Welcomes a process that was started.
    pub(super) fn admit(&mut self, rank: usize, cx: &mut Context<'_>) {
        let Some(slot) = self.slots.get_mut(rank) else { return };
        let Slot::Starting { process, since } = slot else { return };
        let (process, since) = (process.clone(), *since);
        let (agent, session) = (process.placement.agent.clone(), process.session.clone());
        *slot = Slot::Up { process, assignment: Assignment::Idle };
        cx.out.effects.push(Effect::RankConnected { agent });
        cx.out.because(format!("rank {rank} joined after {:.1} s", cx.now.since(since).as_secs_f64()));
        let spec = Some(cx.state.wire_spec());
        let command = Command::Welcome(v1::RankWelcome { spec });
        cx.out.effects.push(Effect::Send { session, command });
    }

    /// Marks a process whose agent is shutting down.
    pub(super) fn mark_leaving(&mut self, session: &str) {
        let slot = self.rank_of(session).and_then(|rank| self.slots.get_mut(rank));
        if let Some(Slot::Starting { process, .. } | Slot::Up { process, .. }) = slot {
            process.leaving = true;
        }
    }

    /// Handles the first or a repeated registration of a process's agent, which may have missed a command to
    /// stop the process.
    pub(super) fn agent_back(&mut self, session: &str, cx: &mut Context<'_>) {
        let Some(slot) = self.rank_of(session).and_then(|rank| self.slots.get_mut(rank)) else { return };
        match slot {
            Slot::Starting { process, since } if process.unseen => {
                process.unseen = false;
                *since = cx.now.mono;
            }
            Slot::Stopping { process, since } => {
                process.unseen = false;
                *since = cx.now.mono;
                let (agent, session) = (process.placement.agent.clone(), process.session.clone());
                cx.out.effects.push(Effect::Stop { agent, session });
            }
            Slot::Vacant | Slot::Starting { .. } | Slot::Up { .. } => {}
        }
    }

    /// Kills a rank's process, once; its lease, if any, becomes free again.
    pub(super) fn stop(&mut self, rank: usize, cx: &mut Context<'_>) {
        let Some(slot) = self.slots.get_mut(rank) else { return };
        let process = match slot {
            Slot::Vacant | Slot::Stopping { .. } => return,
            Slot::Starting { process, .. } | Slot::Up { process, .. } => process.clone(),
        };
        let (agent, session) = (process.placement.agent.clone(), process.session.clone());
        cx.out.effects.push(Effect::Stop { agent, session });
        *slot = Slot::Stopping { process, since: cx.now.mono };
    }

    /// Asks all processes to finish their step, save a checkpoint of it and exit.
    pub(super) fn terminate_all(&self, cx: &mut Context<'_>) {
        for slot in &self.slots {
            let (Slot::Starting { process, .. } | Slot::Up { process, .. }) = slot else { continue };
            let (agent, session) = (process.placement.agent.clone(), process.session.clone());
            cx.out.effects.push(Effect::Terminate { agent, session });
        }
    }

    /// Frees the slot and the device of a dead process.
    pub(super) fn vacate(&mut self, rank: usize, cx: &mut Context<'_>) {
        let Some(slot) = self.slots.get_mut(rank) else { return };
        if let Some(process) = slot.process() {
            let (placement, session) = (process.placement.clone(), process.session.clone());
            cx.out.effects.push(Effect::Release { placement, session });
        }
        *slot = Slot::Vacant;
    }

    /// Processes that did not say hello in time, and those whose death was not reported in time. A job's hang
    /// timeout also limits the time for a process to start.
    pub(super) fn overdue(&self, cx: &Context<'_>) -> Vec<(usize, Overdue)> {
        let start_timeout = cx.deadlines.start.min(cx.state.spec.resources.hang_timeout);
        let overdue = |slot: &Slot| match slot {
            // Its agent's timeout takes care of it.
            slot if slot.process().is_some_and(|process| process.unseen) => None,
            Slot::Starting { since, .. } => {
                (cx.now.since(*since) >= start_timeout).then_some(Overdue::Hello(start_timeout))
            }
            Slot::Stopping { since, .. } => {
                (cx.now.since(*since) >= cx.deadlines.reaping).then_some(Overdue::Exit)
            }
            Slot::Vacant | Slot::Up { .. } => None,
        };
        self.slots.iter().enumerate().filter_map(|(rank, slot)| Some((rank, overdue(slot)?))).collect()
    }

    /// The agent that is at fault for a failure, if any.
    pub(super) fn fault_of(&self, observation: &Observation) -> Option<Effect> {
        let slot = self.slots.get(observation.rank)?;
        let process = slot.process()?;
        let never_connected = matches!(slot, Slot::Starting { .. }) && !process.adopted;
        let fault = match observation.signal {
            FailureSignal::FalseReport(_) => AgentFault::FalseReport,
            FailureSignal::AgentLost => return None,
            _ if process.leaving => return None,
            _ if never_connected => AgentFault::NeverConnected,
            _ => return None,
        };
        let placement = process.placement.clone();
        Some(Effect::AgentFault { placement, fault, why: observation.signal.to_string() })
    }

    /// Restarts all deadlines.
    pub(super) fn reset_deadlines(&mut self, now: Now) {
        for slot in &mut self.slots {
            match slot {
                Slot::Starting { since, .. } | Slot::Stopping { since, .. } => *since = now.mono,
                Slot::Up { assignment: Assignment::Chunk(lease), .. } => lease.watchdog.reset_deadline(now),
                Slot::Up { assignment: Assignment::Gang(member), .. } => member.watchdog.reset_deadline(now),
                Slot::Vacant | Slot::Up { assignment: Assignment::Idle, .. } => {}
            }
        }
    }

    // ---- assignments ----

    /// The number of the next lease.
    pub(super) fn next_lease(&mut self) -> u64 {
        self.leases += 1;
        self.leases
    }

    pub(super) fn first_idle(&self) -> Option<usize> {
        self.slots.iter().position(Slot::is_idle)
    }

    /// Sends a command to a rank that is up.
    pub(super) fn send(&self, rank: usize, command: Command, cx: &mut Context<'_>) {
        if let Some(Slot::Up { process, .. }) = self.slots.get(rank) {
            cx.out.effects.push(Effect::Send { session: process.session.clone(), command });
        }
    }

    /// Sets a rank's assignment. False if the rank is not up.
    pub(super) fn assign(&mut self, rank: usize, assigned: Assignment) -> bool {
        match self.slots.get_mut(rank) {
            Some(Slot::Up { assignment, .. }) => {
                *assignment = assigned;
                true
            }
            _ => false,
        }
    }

    /// Makes every rank that is up idle.
    pub(super) fn release_all(&mut self) {
        for rank in self.numbers() {
            self.assign(rank, Assignment::Idle);
        }
    }

    /// Makes a rank idle if it holds the lease.
    pub(super) fn release(&mut self, rank: usize, lease: u64) {
        if self.lease(rank).is_some_and(|held| held.lease == lease) {
            self.assign(rank, Assignment::Idle);
        }
    }

    /// The lease that a rank holds.
    pub(super) fn lease(&self, rank: usize) -> Option<&ChunkLease> {
        match self.slots.get(rank) {
            Some(Slot::Up { assignment: Assignment::Chunk(lease), .. }) => Some(lease),
            _ => None,
        }
    }

    /// The leases of a phase's chunks.
    pub(super) fn leases_of<'a>(&'a self, phase: &'a str) -> impl Iterator<Item = &'a ChunkLease> {
        self.numbers().filter_map(|rank| self.lease(rank)).filter(move |lease| lease.phase == phase)
    }

    /// The ranks that hold a chunk and have made no progress for `limit`.
    pub(super) fn stuck(&self, limit: Duration, now: Now) -> Vec<usize> {
        let is_stuck = |rank: &usize| {
            self.lease(*rank).is_some_and(|lease| now.since(lease.watchdog.last_progress()) >= limit)
        };
        self.numbers().filter(is_stuck).collect()
    }

    /// A rank's membership in a gang.
    pub(super) fn member(&self, rank: usize) -> Option<&GangMember> {
        match self.slots.get(rank) {
            Some(Slot::Up { assignment: Assignment::Gang(member), .. }) => Some(member),
            _ => None,
        }
    }

    pub(super) fn member_mut(&mut self, rank: usize) -> Option<&mut GangMember> {
        match self.slots.get_mut(rank) {
            Some(Slot::Up { assignment: Assignment::Gang(member), .. }) => Some(member),
            _ => None,
        }
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (usize, &GangMember)> {
        self.numbers().filter_map(|rank| Some((rank, self.member(rank)?)))
    }

    /// Records a rank's result of the gang phase.
    pub(super) fn record_result(&mut self, rank: usize, result: GangResult, now: Now) {
        if let Some(member) = self.member_mut(rank) {
            member.watchdog.record_step(now);
            member.result = Some(result);
        }
    }

    /// Records a progress report. False if it concerns a task that is over.
    pub(super) fn record_progress(
        &mut self,
        rank: usize,
        report: v1::TaskProgress,
        gang: &str,
        now: Now,
    ) -> bool {
        let Some(Slot::Up { assignment, .. }) = self.slots.get_mut(rank) else { return false };
        match assignment {
            Assignment::Chunk(lease) if lease.chunk == report.chunk => {
                lease.watchdog.record_report(report, now);
            }
            Assignment::Gang(member) if gang == report.phase => member.watchdog.record_report(report, now),
            Assignment::Idle | Assignment::Chunk(_) | Assignment::Gang(_) => return false,
        }
        true
    }
}

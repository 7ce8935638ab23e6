//! Which rank does what next: one attempt of one job, from its first process to the last one's death. Pure: facts and
//! the time go in, changes for the log and effects on the world come out, with the reason.

mod blame;
mod checkpoints;
mod closing;
mod gang;
mod map;
mod pulse;
mod ranks;
mod resume;
mod sealing;
mod task;
#[cfg(test)]
mod tests;

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;
use foil_proto::v1::rank_message::Message;

use crate::clock::Now;
use crate::cluster::{AgentFault, Placement};
use crate::job::{Change, JobState};
use blame::Symptom;
use closing::Closing;
use gang::{Gang, Member};
use map::{Chunk, Map};
pub use ranks::{Process, Slot};

/// Deadlines of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the command to start a process to its hello, or the job's own limit for silence where that is shorter.
    pub start: Duration,
    /// From the command to stop a process to the agent's word that it is dead.
    pub reaping: Duration,
    /// After the first sign that a gang broke, for the others to say what they saw.
    pub settling: Duration,
    /// For ranks to end by themselves after the job's last phase.
    pub exit: Duration,
    /// For a rank that still computes a chunk nobody needs, when a gang waits for it.
    pub obsolete: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(120),
            reaping: Duration::from_secs(10),
            settling: Duration::from_millis(500),
            exit: Duration::from_secs(10),
            obsolete: Duration::from_secs(5),
        }
    }
}

/// What an attempt is told.
#[derive(Debug, Clone)]
pub enum Input {
    Hello {
        session: String,
        hello: v1::RankHello,
    },
    Said {
        session: String,
        message: Message,
        /// What is wrong with it by the store's word.
        flaw: Option<String>,
    },
    /// What the session said is not so.
    Misreported {
        session: String,
        why: String,
    },
    StreamEnded {
        session: String,
    },
    Exited(v1::RankExited),
    /// The session's agent has registered, and its process runs.
    AgentBack {
        session: String,
    },
    /// The session's agent was asked to end, and the session with it.
    AgentLeaving {
        session: String,
    },
    /// The session's agent is given up.
    AgentLost {
        session: String,
    },
    /// The step figures of a gang phase are durable, or cannot be.
    StepsWritten {
        phase: String,
        result: Result<v1::Object, String>,
    },
}

/// What is to be done once the changes are durable.
#[expect(clippy::large_enum_variant, reason = "made once, moved once, dropped")]
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Start {
        agent: String,
        start: v1::StartRank,
    },
    Stop {
        agent: String,
        session: String,
    },
    Tell {
        session: String,
        command: Command,
    },
    Release {
        placement: Placement,
        session: String,
    },
    /// A rank failed through its agent's fault; the attempt is not charged with it unless [`Run::charge`] is called.
    Blame {
        placement: Placement,
        fault: AgentFault,
        why: String,
    },
    /// A rank of the agent's connected.
    Vouch {
        agent: String,
    },
    WriteSteps {
        phase: String,
        key: String,
        body: String,
    },
    Notice {
        level: Level,
        text: String,
    },
    Count(Counter),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// Things worth counting that no event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    RankLost,
    ChunkReleased,
    DuplicateChunk,
    DeterminismAlarm,
    WorkerFault,
}

/// What was decided, and why.
#[derive(Debug, Default)]
pub struct Decision {
    pub changes: Vec<Change>,
    pub effects: Vec<Effect>,
    pub reasons: Vec<String>,
}

impl Decision {
    fn because(&mut self, reason: impl Into<String>) {
        self.reasons.push(reason.into());
    }

    fn notice(&mut self, level: Level, text: String) {
        self.effects.push(Effect::Notice { level, text });
    }
}

/// A rank's word was against the protocol; its stream is to be closed with this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("session {session} is not one of attempt {attempt}'s; this process is stale and must exit")]
    Stale { session: String, attempt: u32 },
    #[error("{0}")]
    Invalid(String),
    /// Not an error of order but an untruth.
    #[error("{0}")]
    Untrue(String),
    #[error("this peer does not prove that it is the process of session {session}")]
    Stranger { session: String },
}

/// One attempt: its rank processes and what they are at.
#[derive(Debug)]
pub struct Run {
    job: String,
    attempt: u32,
    /// Of the coordinator: makes what it names its own.
    term: u64,
    threads: u32,
    slots: Vec<Slot>,
    deadlines: Deadlines,
    /// Leases given so far.
    leases: u64,
    /// Processes started so far; names the next session.
    processes: u64,
    /// Rank losses since the last sign of progress.
    losses: u32,
    /// The last loss through an agent's fault, not counted among them.
    excused: Option<Symptom>,
    /// Which phase of the plan `stage` belongs to.
    phase: usize,
    phase_id: String,
    phase_since: Duration,
    stage: Stage,
    closing: Option<Closing>,
    progressed: bool,
}

#[expect(clippy::large_enum_variant, reason = "one per attempt")]
#[derive(Debug)]
enum Stage {
    Map(Map),
    Gang(Gang),
    /// Every phase is committed.
    Over,
}

impl Run {
    /// An attempt whose ranks have no devices yet.
    pub fn new(state: &JobState, attempt: u32, term: u64, deadlines: Deadlines, now: Now) -> Self {
        let resources = &state.spec.resources;
        let mut run = Self {
            job: state.id.clone(),
            attempt,
            term,
            threads: resources.threads_per_rank,
            slots: (0..resources.ranks).map(|_| Slot::Vacant).collect(),
            deadlines,
            leases: 0,
            processes: 0,
            losses: 0,
            excused: None,
            phase: 0,
            phase_id: String::new(),
            phase_since: now.mono,
            stage: Stage::Over,
            closing: None,
            progressed: false,
        };
        run.enter(state, now);
        run
    }

    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    pub fn world(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// Ranks with a live stream.
    pub fn ranks_up(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Up { .. })).count()
    }

    /// Takes in one fact. A refusal changes nothing.
    pub fn handle(&mut self, state: &JobState, input: Input, now: Now) -> Result<Decision, Refusal> {
        let mut decision = Decision::default();
        match input {
            Input::Hello { session, hello } => self.hello(state, &session, &hello, now, &mut decision)?,
            Input::Said { session, message, flaw } => {
                self.said(state, &session, message, flaw.as_deref(), now, &mut decision)?;
            }
            Input::Misreported { session, why } => self.misreported(&session, why, now, &mut decision),
            Input::StreamEnded { session } => self.stream_ended(&session, now, &mut decision),
            Input::Exited(exit) => self.exited(exit, now, &mut decision),
            Input::AgentBack { session } => self.agent_back(&session, now, &mut decision),
            Input::AgentLeaving { session } => self.agent_leaving(&session),
            Input::AgentLost { session } => self.agent_lost(&session, now, &mut decision),
            Input::StepsWritten { phase, result } => {
                self.steps_written(state, &phase, result, now, &mut decision);
            }
        }
        Ok(decision)
    }

    /// Moves on as far as the durable state and the clock allow. To be called until it changes nothing.
    pub fn advance(&mut self, state: &JobState, now: Now) -> Decision {
        let mut decision = Decision::default();
        if self.closing.is_none() && self.phase != state.committed.len() {
            self.enter(state, now);
        }
        self.overdue_processes(state, now, &mut decision);
        if self.closing.is_some() {
            self.close(now, &mut decision);
            return decision;
        }
        match self.stage {
            Stage::Map(_) => self.advance_map(state, now, &mut decision),
            Stage::Gang(_) => self.advance_gang(state, now, &mut decision),
            Stage::Over => self.complete(now, &mut decision),
        }
        decision
    }

    /// The store is away: commands wait for the log and results for the store, so that nobody is late for what it cannot
    /// hear or deliver. To be called again and again until the store is back.
    pub fn excuse(&mut self, now: Now) {
        for slot in &mut self.slots {
            match slot {
                Slot::Starting { since, .. } | Slot::Down { since, .. } => *since = now.mono,
                Slot::Up { busy: Busy::Chunk(chunk), .. } => chunk.pulse.excuse(now),
                Slot::Up { busy: Busy::Gang(member), .. } => member.pulse.excuse(now),
                Slot::Vacant | Slot::Up { busy: Busy::Idle, .. } => {}
            }
        }
    }

    /// The current phase's progress, if it changed since the last call.
    pub fn progress(&mut self, state: &JobState) -> Option<v1::PhaseProgress> {
        if !std::mem::take(&mut self.progressed) || self.closing.is_some() {
            return None;
        }
        let phase = state.phase()?;
        match &self.stage {
            Stage::Map(_) => self.map_progress(state, phase),
            Stage::Gang(_) => self.gang_progress(phase),
            Stage::Over => None,
        }
    }

    fn enter(&mut self, state: &JobState, now: Now) {
        self.phase = state.committed.len();
        self.phase_id = state.phase().map(|phase| phase.id.clone()).unwrap_or_default();
        self.phase_since = now.mono;
        self.losses = 0;
        self.stage = match state.phase() {
            None => Stage::Over,
            Some(phase) if phase.work.is_gang() => Stage::Gang(Gang::new(phase)),
            Some(_) => Stage::Map(Map::default()),
        };
    }

    fn said(
        &mut self,
        state: &JobState,
        session: &str,
        message: Message,
        flaw: Option<&str>,
        now: Now,
        out: &mut Decision,
    ) -> Result<(), Refusal> {
        let rank = self.rank_of(session).ok_or_else(|| self.stale(session))?;
        if self.is_history(state, &message) {
            return Ok(());
        }
        match message {
            Message::Hello(_) => Err(Refusal::Invalid("a second hello on one stream".to_owned())),
            Message::Progress(progress) => {
                self.task_progress(rank, progress, now);
                Ok(())
            }
            Message::Step(step) => self.step_report(state, rank, step, now),
            Message::Chunk(result) => self.chunk_result(state, rank, result, flaw, now, out),
            Message::Rendezvous(offer) => self.rendezvous(state, rank, offer, now, out),
            Message::Checkpoint(share) => self.checkpoint_share(state, rank, share, flaw, now, out),
            Message::Gang(result) => self.gang_result(state, rank, result, flaw, now),
            Message::Failure(failure) => {
                self.task_failure(state, rank, failure, now, out);
                Ok(())
            }
        }
    }

    fn task_progress(&mut self, rank: usize, progress: v1::TaskProgress, now: Now) {
        let Some(Slot::Up { busy, .. }) = self.slots.get_mut(rank) else { return };
        match busy {
            Busy::Chunk(chunk) if chunk.chunk == progress.chunk => chunk.pulse.hear(progress, now),
            Busy::Gang(member) if self.phase_id == progress.phase => member.pulse.hear(progress, now),
            // Of a task that is over.
            Busy::Idle | Busy::Chunk(_) | Busy::Gang(_) => return,
        }
        self.progressed = true;
    }
}

/// Refuses what the store does not bear out.
fn truthful(flaw: Option<&str>) -> Result<(), Refusal> {
    flaw.map_or(Ok(()), |flaw| Err(Refusal::Untrue(flaw.to_owned())))
}

/// What a rank is at.
#[derive(Debug)]
pub enum Busy {
    Idle,
    Chunk(Chunk),
    Gang(Member),
}

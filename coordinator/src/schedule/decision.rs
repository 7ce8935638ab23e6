use foil_proto::v1;
use foil_proto::v1::rank_command::Command;

use crate::cluster::{AgentFault, Placement};
use crate::job::Change;

/// An effect on the world, to be carried out once the changes are durable.
#[expect(clippy::large_enum_variant, reason = "made once, moved once, dropped")]
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Start {
        agent: String,
        start: v1::StartRank,
    },
    /// Kills a process.
    Stop {
        agent: String,
        session: String,
    },
    /// Asks a process to finish its step, keep a checkpoint of it and exit.
    Terminate {
        agent: String,
        session: String,
    },
    /// Sends a command to a rank.
    Send {
        session: String,
        command: Command,
    },
    /// Frees a device.
    Release {
        placement: Placement,
        session: String,
    },
    /// A rank failed through its agent's fault. It counts against the attempt only if
    /// [`super::Attempt::charge`] is called.
    AgentFault {
        placement: Placement,
        fault: AgentFault,
        why: String,
    },
    /// A rank of the agent has connected.
    RankConnected {
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

/// Occurrences that are counted but have no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    RankLost,
    ChunkReleased,
    DuplicateChunk,
    DeterminismAlarm,
    WorkerFault,
}

/// A decision with its reasons.
#[derive(Debug, Default)]
pub struct Decision {
    pub changes: Vec<Change>,
    pub effects: Vec<Effect>,
    pub reasons: Vec<String>,
}

impl Decision {
    pub(super) fn because(&mut self, reason: impl Into<String>) {
        self.reasons.push(reason.into());
    }

    pub(super) fn notice(&mut self, level: Level, text: String) {
        self.effects.push(Effect::Notice { level, text });
    }

    pub(super) fn count(&mut self, counter: Counter) {
        self.effects.push(Effect::Count(counter));
    }
}

/// A rank's message that violates the protocol; its stream is closed with this error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("session {session} is not one of attempt {attempt}'s; this process is stale and must exit")]
    Stale { session: String, attempt: u32 },
    #[error("{0}")]
    Invalid(String),
    /// The message is well-formed but not true.
    #[error("{0}")]
    FalseReport(String),
    #[error("this peer does not prove that it is the process of session {session}")]
    Unauthenticated { session: String },
}

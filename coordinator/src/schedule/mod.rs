//! Scheduling of one attempt of one job, from the start of its first process to the death of its last: which
//! rank does what next. Pure: facts and the time go in; changes for the log and external effects come out,
//! with the reasons.
//!
//! An [`Attempt`] is made of parts that cannot reach into each other: the [`RankSet`] with its processes, the
//! current phase ([`MapPhase`] or [`GangPhase`]), and, once the attempt is ending, its [`Teardown`]. A phase
//! reports a [`Problem`]; the attempt decides what follows from it.

mod assignment;
mod attempt;
mod checkpoints;
mod chunk_results;
mod commit;
mod context;
mod decision;
mod diagnosis;
mod error;
mod gang;
mod loss;
mod loss_budget;
mod map;
mod ranks;
mod report;
mod resume;
mod slot;
mod task;
mod teardown;
#[cfg(test)]
mod tests;
mod watchdog;

use std::time::Duration;

use foil_proto::v1;

pub use attempt::Attempt;
pub use decision::{Counter, Decision, Effect, Level, ShardSaved, StepTaken, StepUsage};
pub use error::ProtocolError;
pub use report::{
    ChunkReport, GangEvent, GangReport, GangResult, Hello, Report, RunningTask, ShardReport, StepReport,
};
pub use slot::Process;

/// Time limits of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From starting a process to its hello; the job's own hang timeout applies if it is shorter.
    pub start: Duration,
    /// From stopping a process to the agent's report that it is dead.
    pub reaping: Duration,
    /// From the first sign that a gang broke, for the other ranks to report what they observed.
    pub settling: Duration,
    /// For ranks to exit by themselves after the job's last phase.
    pub exit: Duration,
    /// For a rank to finish a chunk that is no longer needed while a gang waits for it.
    pub obsolete: Duration,
    /// For ranks whose devices a higher-priority job takes, to finish their step and save a checkpoint.
    pub checkpoint: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(120),
            reaping: Duration::from_secs(10),
            settling: Duration::from_millis(500),
            exit: Duration::from_secs(10),
            obsolete: Duration::from_secs(5),
            checkpoint: Duration::from_secs(60),
        }
    }
}

/// Input to an attempt.
#[derive(Debug, Clone)]
pub enum Input {
    Hello(Hello),
    Report {
        session: String,
        report: Report,
        /// The flaw that verification against the store found, if any.
        flaw: Option<String>,
    },
    /// The session has made a false report.
    FalseReport {
        session: String,
        why: String,
    },
    StreamEnded {
        session: String,
    },
    Exited(v1::RankExited),
    /// The session's agent has registered, and its process is running.
    AgentBack {
        session: String,
    },
    /// The session's agent is shutting down, and the session's process with it.
    AgentLeaving {
        session: String,
    },
    /// The session's agent is considered lost.
    AgentLost {
        session: String,
    },
    /// The step metrics of a gang phase are durable, or cannot be written.
    StepsWritten {
        phase: String,
        result: Result<v1::Object, String>,
    },
}

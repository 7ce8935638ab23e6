use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::rank_command::Command;

use super::{ShardReport, StepReport};
use crate::cluster::{AgentFault, Placement};
use crate::job::Change;
use crate::plan::{Phase, Work};

/// An external effect, to be carried out once the changes are durable.
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
    /// Asks a process to finish its step, save a checkpoint of it and exit.
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
    /// A rank failed through a fault of its agent. It counts against the attempt only if
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
    Step(StepTaken),
    Usage(StepUsage),
    Shard(ShardSaved),
}

/// Upper bound that no step's token count reaches, so that a false number cannot saturate a counter.
const MAX_STEP_TOKENS: u64 = 1 << 40;

/// An optimizer step, as reported by rank 0 of its gang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepTaken {
    pub work: Work,
    /// Id of the phase.
    pub phase: String,
    pub attempt: u32,
    /// Counted from 1.
    pub step: u64,
    /// Step of the checkpoint from which the attempt continues; 0 if there is none.
    pub resumed_after: u64,
    pub seconds: Option<Duration>,
    /// Tokens that the gang read in this step.
    pub tokens: u64,
    /// False if the step was skipped because its loss or gradient was not finite.
    pub is_finite: bool,
}

impl StepTaken {
    pub(super) fn new(phase: &Phase, attempt: u32, report: &StepReport, resumed_after: u64) -> Self {
        let value =
            |name: &str| report.metrics.iter().find(|metric| metric.name == name).map(|found| found.value);
        Self {
            work: phase.work,
            phase: phase.id.to_string(),
            attempt,
            step: report.step,
            resumed_after,
            seconds: value("seconds").and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            tokens: (value("tokens").unwrap_or_default() as u64).min(MAX_STEP_TOKENS),
            is_finite: value("skipped").unwrap_or_default() == 0.0,
        }
    }
}

/// Work and time of one training step on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepUsage {
    pub work: Work,
    pub rank: usize,
    /// Time that the rank waited for the others.
    pub collective_wait: Option<Duration>,
    /// Peak bytes of tensors on the rank's GPU.
    pub device_memory_peak: Option<u64>,
}

impl StepUsage {
    pub(super) fn reported(work: Work, rank: usize, report: &StepReport) -> Self {
        let seconds = report.collective_wait_seconds;
        let collective_wait = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Self { work, rank, collective_wait, device_memory_peak: report.device_memory_peak_bytes }
    }
}

/// Durations of a rank's share of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardSaved {
    /// Time that training waited: for the copy to the host, and for the previous upload if it was still
    /// running.
    pub stall: Duration,
    /// Time for writing, hashing and uploading in the background.
    pub upload: Duration,
}

impl ShardSaved {
    /// The times that a rank reports; none from a rank of an older version, or if the values are impossible.
    pub(super) fn reported(shard: &ShardReport) -> Option<Self> {
        let stall = Duration::try_from_secs_f64(shard.stall_seconds?).ok()?;
        let upload = Duration::try_from_secs_f64(shard.upload_seconds?).ok()?;
        Some(Self { stall, upload })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// Occurrences that are counted but not recorded as events.
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

//! The log's events about a job. A job's state is its events applied in order, and nothing else.

use foil_common::spec::without_scheduling;
use foil_proto::v1;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::tenant::{DEFAULT_TENANT, QuotaSet};

/// One event of one job, as stored in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Id of the job; empty for an event about a tenant.
    pub job: String,
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    pub change: Change,
    /// The job's revision after this event, if a snapshot has dropped earlier events; otherwise the revision
    /// increases by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

impl Event {
    /// The next event of a job.
    pub fn new(job: &str, at: u64, change: Change) -> Self {
        Self { job: job.to_owned(), at, change, revision: None }
    }
}

/// A change of a job's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Always the first event.
    Submitted(Box<Submitted>),
    /// Devices were found; rank processes are being started.
    AttemptStarted { attempt: u32, phase: String, world: u32 },
    /// A rank process of the attempt is about to be started.
    RankStarted(RankStarted),
    /// A chunk of the current map phase is computed and its object is durable.
    ChunkDone(ChunkDone),
    /// Every rank's shard of a checkpoint of the current gang phase is durable: this record commits the
    /// checkpoint.
    CheckpointCommitted(v1::Checkpoint),
    /// A committed checkpoint cannot be read, so training falls back to the one before it.
    CheckpointLost { step: u64, attempt: u32, why: String },
    /// The phase's artifact is complete: this record commits the phase.
    PhaseCommitted(Box<Committed>),
    /// All ranks of the attempt have exited or are stopping.
    AttemptEnded { attempt: u32, cause: Cause },
    /// A user asked the job to stop.
    CancelRequested,
    /// The end of the job. Only the changes below may follow.
    Ended(Outcome),
    /// A user protected the job or one of its artifacts from deletion.
    Pinned(Pin),
    /// A user removed that protection. `artifact` is empty for the whole job.
    Unpinned { artifact: String },
    /// A user deleted the job after its end. Nothing refers to it any longer, and its objects are being
    /// deleted. A snapshot replaces all earlier events of the job with this one and its revision.
    Deleted(Tombstone),
    /// The objects of the deleted job have been deleted.
    Erased,
    /// A tenant has a new quota. This is the only event that does not concern a job: its job id is empty.
    QuotaSet(Box<QuotaSet>),
}

/// Protection of a job's artifact from deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Full name of the artifact; empty for the whole job.
    pub artifact: String,
    /// The user who pinned it; empty if unknown.
    #[serde(default)]
    pub by: String,
}

/// What remains of a deleted job. Its id and its request's id stay taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tombstone {
    pub request_id: String,
    pub name: String,
    pub tenant: String,
    /// The user who deleted it; empty if unknown.
    pub by: String,
}

impl Tombstone {
    /// Tenant and id of the request that created the job.
    pub fn request(&self) -> (String, String) {
        (self.tenant.clone(), self.request_id.clone())
    }
}

/// A submission: everything that the job needs to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    /// Id of the client's request: the same id with the same `spec_hash` is the same job.
    pub request_id: String,
    /// Hex BLAKE3 of the request's specification, before defaults.
    pub spec_hash: String,
    /// The specification with every default filled in; none in a [`JobState`](super::JobState), which keeps
    /// it in less memory.
    pub spec: Option<Box<v1::JobSpec>>,
    pub plan: v1::Plan,
    pub datasets: Vec<v1::Dataset>,
    /// The policy the job starts from.
    pub policy: v1::Artifact,
    /// The reward model named by the job, if any.
    pub reward: Option<v1::Artifact>,
    /// The tenant that the job belongs to; empty in logs of older versions. Use [`Submitted::tenant`] to
    /// read it.
    #[serde(default)]
    pub tenant: String,
    /// Name of the principal that submitted it; empty in logs of older versions.
    #[serde(default)]
    pub owner: String,
    /// The client's span that the submission is part of, as W3C Trace Context; empty if the client sent
    /// none.
    #[serde(default)]
    pub traceparent: String,
    /// When the request arrived, in milliseconds since the Unix epoch; 0 in logs of older versions.
    #[serde(default)]
    pub received_at: u64,
    /// Warnings about the data and the settings, bounded; missing in logs of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Submitted {
    /// The tenant that the job belongs to.
    pub fn tenant(&self) -> &str {
        if self.tenant.is_empty() { DEFAULT_TENANT } else { &self.tenant }
    }
}

/// A rank process and its device, recorded so that a later coordinator can find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankStarted {
    pub attempt: u32,
    pub rank: u32,
    /// Unique; never reused.
    pub session: String,
    pub agent: String,
    pub device: String,
    /// Fingerprint of its secret; missing in logs of older versions.
    #[serde(default)]
    pub proof: String,
}

/// One chunk's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunkDone {
    pub phase: String,
    pub chunk: u32,
    pub object: v1::Object,
    pub moments: Vec<v1::Moments>,
    pub calibration: Option<v1::Calibration>,
    pub seconds: f64,
    /// When the rank received the chunk, in milliseconds since the Unix epoch; 0 in logs of older versions.
    #[serde(default)]
    pub leased_at: u64,
}

/// A committed phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    pub phase: String,
    pub artifact: v1::Artifact,
    pub metrics: Vec<v1::Metric>,
    pub seconds: f64,
    /// Per-step metrics of a gang phase, one JSON object per line.
    pub steps: Option<v1::Artifact>,
}

/// The reason why an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    pub class: CauseClass,
    pub message: String,
    pub advice: String,
    pub rank: Option<u32>,
    /// The failed rank's last log lines.
    pub log_tail: Vec<String>,
    /// Missing in logs of older versions.
    #[serde(default)]
    pub detail: Detail,
}

impl Cause {
    /// A cause with only a class and a message: no rank, no advice, no log.
    pub fn new(class: CauseClass, message: &str) -> Self {
        Self {
            class,
            message: message.to_owned(),
            advice: String::new(),
            rank: None,
            log_tail: Vec::new(),
            detail: Detail::default(),
        }
    }
}

/// Further facts about a failure, as reported in [`v1::JobFailure`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    pub step: Option<u64>,
    pub chunk: Option<u32>,
    /// Class of the last failure, if the cause's own is [`CauseClass::NoProgress`].
    pub last_class: Option<CauseClass>,
    pub signal: Option<String>,
    pub rows: Vec<String>,
    pub memory: Option<v1::MemoryShortage>,
    /// The higher-priority job that took the attempt's devices.
    pub preempted_by: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseClass {
    /// The job's last phase is committed.
    Completed,
    Cancelled,
    CoordinatorRestart,
    /// The specification asks for something impossible; another attempt would end the same way.
    User,
    /// The data cannot be used; another attempt would end the same way.
    Data,
    /// A loss, gradient or score is not finite; another attempt would end the same way.
    Nonfinite,
    OutOfMemory,
    Crash,
    Hang,
    Store,
    /// A checkpoint could not be read; the next attempt continues from the previous one.
    Checkpoint,
    /// Ranks were asked to stop because a machine is shutting down or a higher-priority job needs the
    /// devices; their progress was saved.
    Preempted,
    /// The agent of a rank stopped responding.
    AgentLost,
    /// A fault of a worker that others can replace: it fails to start ranks, or its ranks make false reports.
    Worker,
    /// A rank cannot listen at its address, or it cannot be reached there from another rank's machine.
    Unreachable,
    /// The job reached its timeout.
    Timeout,
    /// Used for jobs only, never for attempts: attempts kept ending without a commit in between.
    NoProgress,
}

impl CauseClass {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::CoordinatorRestart => "coordinator_restart",
            Self::User => "user",
            Self::Data => "data",
            Self::Nonfinite => "nonfinite",
            Self::OutOfMemory => "out_of_memory",
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Store => "store",
            Self::Checkpoint => "checkpoint",
            Self::Preempted => "preempted",
            Self::AgentLost => "agent_lost",
            Self::Worker => "worker",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::NoProgress => "no_progress",
        }
    }

    /// True if another attempt would end the same way.
    pub fn is_final(self) -> bool {
        matches!(self, Self::User | Self::Data | Self::Nonfinite | Self::Timeout)
    }

    /// True if the attempt's end counts toward giving up on the job.
    pub fn counts(self) -> bool {
        // Each lost checkpoint leaves one fewer to fall back to, so they cannot keep a job alive forever.
        !matches!(
            self,
            Self::Completed
                | Self::Cancelled
                | Self::CoordinatorRestart
                | Self::Checkpoint
                | Self::Preempted
                | Self::Worker
        )
    }
}

/// Class of a failure that a rank reports; unknown classes count as crashes.
impl From<v1::FailureClass> for CauseClass {
    fn from(class: v1::FailureClass) -> Self {
        match class {
            v1::FailureClass::User => Self::User,
            v1::FailureClass::Data => Self::Data,
            v1::FailureClass::Nonfinite => Self::Nonfinite,
            v1::FailureClass::OutOfMemory => Self::OutOfMemory,
            v1::FailureClass::Store => Self::Store,
            v1::FailureClass::Checkpoint => Self::Checkpoint,
            v1::FailureClass::Preempted => Self::Preempted,
            v1::FailureClass::Unreachable => Self::Unreachable,
            v1::FailureClass::Unspecified | v1::FailureClass::Internal => Self::Crash,
        }
    }
}

/// The outcome of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Succeeded,
    Failed(Box<v1::JobFailure>),
    Cancelled,
}

/// Hash of a specification with its defaults filled in, equal for jobs that compute the same thing: priority,
/// labels, retries, timeout, ttl_after_finished and trackers are excluded.
pub fn spec_hash(spec: &v1::JobSpec) -> String {
    blake3::hash(&without_scheduling(spec).encode_to_vec()).to_hex().to_string()
}

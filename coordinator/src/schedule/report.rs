//! Messages of a rank in validated form: wire messages are converted at the edge, so that no required field
//! is optional beyond it.

use foil_proto::v1::{self, rank_message::Message, rank_task};

use super::ProtocolError;

/// First message of a rank's process.
#[derive(Debug, Clone)]
pub struct Hello {
    pub session: String,
    pub job: String,
    pub attempt: u32,
    pub rank: usize,
    pub secret: String,
    /// Task that the process continues with, assigned by an earlier leader.
    pub task: Option<RunningTask>,
}

/// A task assigned by an earlier leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunningTask {
    Chunk {
        phase: String,
        chunk: u32,
        lease: u64,
        key: String,
        /// Milliseconds since the Unix epoch.
        leased_at: u64,
    },
    Gang {
        phase: String,
        attempt: u32,
    },
}

/// A rank's report of its work.
#[derive(Debug, Clone)]
pub enum Report {
    Progress(v1::TaskProgress),
    Chunk(ChunkReport),
    Failure(v1::TaskFailure),
    Gang(GangReport),
}

/// The result of a chunk.
#[derive(Debug, Clone)]
pub struct ChunkReport {
    pub lease: u64,
    pub phase: String,
    pub chunk: u32,
    pub object: v1::Object,
    pub moments: Vec<v1::Moments>,
    pub calibration: Option<v1::Calibration>,
    pub seconds: f64,
}

/// An event of a gang phase.
#[derive(Debug, Clone)]
pub struct GangReport {
    pub phase: String,
    pub attempt: u32,
    pub event: GangEvent,
}

#[derive(Debug, Clone)]
pub enum GangEvent {
    Step(StepReport),
    /// Rank 0 listens for the others at this address.
    Rendezvous {
        host: String,
        port: u32,
    },
    Checkpoint(ShardReport),
    Finished(GangResult),
}

/// An optimizer step, numbered from 1.
#[derive(Debug, Clone)]
pub struct StepReport {
    pub step: u64,
    /// Total number of steps in the phase.
    pub steps: u64,
    pub metrics: Vec<v1::Metric>,
    /// Seconds that the rank waited for the others, and the peak of its GPU's memory; none if the rank does
    /// not measure them.
    pub collective_wait_seconds: Option<f64>,
    pub device_memory_peak_bytes: Option<u64>,
}

/// A rank's shard of the checkpoint after a step.
#[derive(Debug, Clone)]
pub struct ShardReport {
    pub step: u64,
    pub object: v1::Object,
    /// Seconds that training waited, and seconds of writing in the background; none from an older version.
    pub stall_seconds: Option<f64>,
    pub upload_seconds: Option<f64>,
}

/// A rank's result of a gang phase.
#[derive(Debug, Clone)]
pub struct GangResult {
    pub objects: Vec<v1::Object>,
    pub metrics: Vec<v1::Metric>,
    /// Hex BLAKE3 of the final parameters, the same on all ranks.
    pub parameters_blake3: String,
}

impl TryFrom<v1::RankHello> for Hello {
    type Error = ProtocolError;

    fn try_from(hello: v1::RankHello) -> Result<Self, ProtocolError> {
        let v1::RankHello { session_id: session, job_id: job, attempt, rank, secret, task, .. } = hello;
        let task = task.and_then(|task| task.task).map(RunningTask::try_from).transpose()?;
        Ok(Self { session, job, attempt, rank: rank as usize, secret, task })
    }
}

impl TryFrom<rank_task::Task> for RunningTask {
    type Error = ProtocolError;

    fn try_from(task: rank_task::Task) -> Result<Self, ProtocolError> {
        let missing = || ProtocolError::Invalid("the hello of a rank at work names no phase".to_owned());
        match task {
            rank_task::Task::Chunk(v1::RunChunk { lease, task, chunk, key, leased_at, .. }) => {
                Ok(Self::Chunk { phase: task.ok_or_else(missing)?.phase, chunk, lease, key, leased_at })
            }
            rank_task::Task::Gang(v1::RunGang { task, attempt, .. }) => {
                Ok(Self::Gang { phase: task.ok_or_else(missing)?.phase, attempt })
            }
        }
    }
}

impl TryFrom<Message> for Report {
    type Error = ProtocolError;

    fn try_from(message: Message) -> Result<Self, ProtocolError> {
        let gang = |phase, attempt, event| Ok(Self::Gang(GangReport { phase, attempt, event }));
        match message {
            Message::Hello(_) => Err(ProtocolError::Invalid("a second hello on one stream".to_owned())),
            Message::Progress(progress) => Ok(Self::Progress(progress)),
            Message::Failure(failure) => Ok(Self::Failure(failure)),
            Message::Chunk(result) => result.try_into().map(Self::Chunk),
            Message::Step(step) => {
                let v1::StepReport {
                    phase,
                    attempt,
                    step,
                    steps,
                    metrics,
                    collective_wait_seconds,
                    device_memory_peak_bytes,
                } = step;
                let report =
                    StepReport { step, steps, metrics, collective_wait_seconds, device_memory_peak_bytes };
                gang(phase, attempt, GangEvent::Step(report))
            }
            Message::Rendezvous(v1::RendezvousOffer { phase, attempt, host, port }) => {
                gang(phase, attempt, GangEvent::Rendezvous { host, port })
            }
            Message::Checkpoint(shard) => {
                let v1::CheckpointShard { phase, attempt, step, object, stall_seconds, upload_seconds } =
                    shard;
                let object = object.ok_or_else(|| {
                    let text = format!("the shard of {phase} after step {step} came without its object");
                    ProtocolError::FalseReport(text)
                })?;
                let shard = ShardReport { step, object, stall_seconds, upload_seconds };
                gang(phase, attempt, GangEvent::Checkpoint(shard))
            }
            Message::Gang(v1::GangResult { phase, attempt, objects, metrics, parameters_blake3 }) => {
                let result = GangResult { objects, metrics, parameters_blake3 };
                gang(phase, attempt, GangEvent::Finished(result))
            }
        }
    }
}

impl TryFrom<v1::ChunkResult> for ChunkReport {
    type Error = ProtocolError;

    fn try_from(result: v1::ChunkResult) -> Result<Self, ProtocolError> {
        let v1::ChunkResult { lease, phase, chunk, object, moments, calibration, seconds } = result;
        let object = object.ok_or_else(|| {
            ProtocolError::FalseReport(format!("chunk {chunk} of {phase} came without its object"))
        })?;
        Ok(Self { lease, phase, chunk, object, moments, calibration, seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_there_is_there_or_the_message_is_refused() {
        let chunk = v1::ChunkResult { phase: "r00.golden.score".into(), chunk: 7, ..Default::default() };
        let shard = v1::CheckpointShard { phase: "r00.sft".into(), step: 3, ..Default::default() };
        for (message, name) in
            [(Message::Chunk(chunk), "chunk 7 of r00.golden.score"), (Message::Checkpoint(shard), "step 3")]
        {
            match Report::try_from(message) {
                Err(ProtocolError::FalseReport(why)) => assert!(why.contains(name), "{why}"),
                other => panic!("{other:?}"),
            }
        }
        let second = Report::try_from(Message::Hello(v1::RankHello::default()));
        assert!(matches!(second, Err(ProtocolError::Invalid(_))), "{second:?}");
        for task in
            [rank_task::Task::Chunk(v1::RunChunk::default()), rank_task::Task::Gang(v1::RunGang::default())]
        {
            let task = Some(v1::RankTask { task: Some(task) });
            let hello = Hello::try_from(v1::RankHello { task, ..Default::default() });
            assert!(matches!(hello, Err(ProtocolError::Invalid(_))), "{hello:?}");
        }
    }
}

//! Size limits of a plan, which is kept in memory and in the log and sent to every client that asks for the
//! job.

use foil_proto::v1;
use prost::Message;
use thiserror::Error;

use super::Phase;

/// Encoded size; the plan shares a message of 4 MiB with the job's other fields.
const MAX_PLAN_BYTES: usize = 2 << 20;
/// Number of chunks per phase: a task of a later phase lists the objects of all of them in one message.
const MAX_CHUNKS_PER_PHASE: u32 = 10_000;
/// Number of chunks over all phases.
const MAX_TOTAL_CHUNKS: u64 = 1_000_000;

/// A plan that is too large, with the responsible field.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TooLarge {
    #[error(
        "rounds: found {rounds}, which make a plan of {phases} phases in {bytes} bytes, expected one of at most \
         {MAX_PLAN_BYTES} bytes; lower rounds"
    )]
    Phases { rounds: u32, phases: usize, bytes: usize },
    #[error(
        "generation.chunk_prompts: found {found}, which cuts {phase} into {chunks} chunks, expected at most \
         {MAX_CHUNKS_PER_PHASE}; raise it"
    )]
    Chunks { found: usize, phase: String, chunks: u32 },
    #[error(
        "generation.chunk_prompts: found {found}, which cuts the phases of all rounds into {chunks} chunks, expected \
         at most {MAX_TOTAL_CHUNKS}; raise it, or lower rounds"
    )]
    AllChunks { found: usize, chunks: u64 },
}

impl TooLarge {
    /// The field of the specification to change.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Phases { .. } => "rounds",
            Self::Chunks { .. } | Self::AllChunks { .. } => "generation.chunk_prompts",
        }
    }
}

/// Checks that a job's plan is small enough to keep and to send.
pub(super) fn check(phases: &[Phase], rounds: u32, chunk_prompts: usize) -> Result<(), TooLarge> {
    let found = chunk_prompts;
    if let Some(phase) = phases.iter().find(|phase| phase.chunks > MAX_CHUNKS_PER_PHASE) {
        return Err(TooLarge::Chunks { found, phase: phase.id.to_string(), chunks: phase.chunks });
    }
    let chunks = phases.iter().map(|phase| u64::from(phase.chunks)).sum();
    if chunks > MAX_TOTAL_CHUNKS {
        return Err(TooLarge::AllChunks { found, chunks });
    }
    let bytes = phases.iter().map(|phase| v1::PhasePlan::from(phase).encoded_len() + 2).sum();
    if bytes > MAX_PLAN_BYTES {
        return Err(TooLarge::Phases { rounds, phases: phases.len(), bytes });
    }
    Ok(())
}

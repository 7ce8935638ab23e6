//! How large a plan may be: all of it is kept in memory, in the log's records, and sent to whoever asks for the job.

use foil_proto::v1;
use prost::Message;
use thiserror::Error;

use super::Phase;

/// Encoded, beside the job's other fields in a message of 4 MiB.
const LARGEST_PLAN: usize = 2 << 20;
/// Of one phase: the tasks of later phases name each chunk's objects, in one message.
const MOST_CHUNKS: u32 = 10_000;
/// Of all phases together.
const MOST_CHUNKS_OF_ALL: u64 = 1_000_000;

/// A plan that is too large, by the field that makes it so.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TooLarge {
    #[error(
        "rounds: found {rounds}, which make a plan of {phases} phases in {bytes} bytes, expected one of at most \
         {LARGEST_PLAN} bytes; lower rounds"
    )]
    Phases { rounds: u32, phases: usize, bytes: usize },
    #[error(
        "generation.chunk_prompts: found {found}, which cuts {phase} into {chunks} chunks, expected at most \
         {MOST_CHUNKS}; raise it"
    )]
    Chunks { found: usize, phase: String, chunks: u32 },
    #[error(
        "generation.chunk_prompts: found {found}, which cuts the phases of all rounds into {chunks} chunks, expected \
         at most {MOST_CHUNKS_OF_ALL}; raise it, or lower rounds"
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

/// Makes sure that a job's plan is not too large to keep and to send.
pub(super) fn check(phases: &[Phase], rounds: u32, chunk_prompts: usize) -> Result<(), TooLarge> {
    let found = chunk_prompts;
    if let Some(phase) = phases.iter().find(|phase| phase.chunks > MOST_CHUNKS) {
        return Err(TooLarge::Chunks { found, phase: phase.id.clone(), chunks: phase.chunks });
    }
    let chunks = phases.iter().map(|phase| u64::from(phase.chunks)).sum();
    if chunks > MOST_CHUNKS_OF_ALL {
        return Err(TooLarge::AllChunks { found, chunks });
    }
    let bytes = phases.iter().map(|phase| v1::PhasePlan::from(phase).encoded_len() + 2).sum();
    if bytes > LARGEST_PLAN {
        return Err(TooLarge::Phases { rounds, phases: phases.len(), bytes });
    }
    Ok(())
}

//! The data set rows that each chunk of a phase processes.

use super::JobState;
use crate::plan::{Phase, chunks_of, segments};

/// Number of rows in all chunks of a map phase.
pub fn total(job: &JobState, phase: &Phase) -> u64 {
    let sets = segments(&job.spec, phase.round, phase.work);
    sets.iter().map(|set| job.dataset(set).map_or(0, |dataset| dataset.rows)).sum()
}

/// Number of rows in one chunk; 0 if the phase has no such chunk.
pub fn of_chunk(job: &JobState, phase: &Phase, chunk: u32) -> u64 {
    span(job, phase, chunk).map_or(0, |span| span.count)
}

/// The rows of a chunk: `[first, first + count)` of one data set.
pub(crate) struct Span {
    pub(crate) set: &'static str,
    /// Index of the chunk within the data set.
    pub(crate) local: u32,
    pub(crate) first: u64,
    pub(crate) count: u64,
}

pub(crate) fn span(job: &JobState, phase: &Phase, chunk: u32) -> Option<Span> {
    let per_chunk = job.spec.generation.chunk_prompts as u64;
    let mut local = chunk;
    for set in segments(&job.spec, phase.round, phase.work) {
        let rows = job.dataset(set).map_or(0, |dataset| dataset.rows);
        let chunks = chunks_of(rows, job.spec.generation.chunk_prompts);
        if local < chunks {
            let first = u64::from(local) * per_chunk;
            return Some(Span { set, local, first, count: (rows - first).min(per_chunk) });
        }
        local -= chunks;
    }
    None
}

//! Which rows of its data sets a phase of a job works on.

use super::JobState;
use crate::plan::{Phase, chunks_of, segments};

/// Rows of all chunks of a map phase.
pub fn total(job: &JobState, phase: &Phase) -> u64 {
    let sets = segments(&job.spec, phase.round, phase.work);
    sets.iter().map(|set| job.dataset(set).map_or(0, |dataset| dataset.rows)).sum()
}

/// Rows of one chunk; 0 where the phase has no such chunk.
pub fn of_chunk(job: &JobState, phase: &Phase, chunk: u32) -> u64 {
    span(job, phase, chunk).map_or(0, |span| span.count)
}

/// Where a chunk's rows are.
pub(crate) struct Span {
    pub(crate) set: &'static str,
    /// Counts chunks within the set.
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

//! Compaction of a log's events for a snapshot: events that later ones supersede are dropped.

use std::collections::BTreeMap;

use super::event::{Change, Event};

/// The facts about a job that decide which of its events are needed.
#[derive(Default)]
struct Job {
    revision: u64,
    /// Ids of the committed phases.
    committed: Vec<String>,
    /// The running attempt; none between attempts.
    attempt: Option<u32>,
    /// The last session of each rank.
    ranks: BTreeMap<u32, String>,
}

/// Fewer events that replay to the same state and the same history for watchers. Chunks and checkpoints of
/// committed phases are dropped, because the commit holds them all, and so are rank processes that have been
/// replaced.
///
/// Of a tenant's quotas the last is kept.
pub fn compact_events(events: Vec<Event>) -> Vec<Event> {
    let mut jobs: BTreeMap<String, Job> = BTreeMap::new();
    let mut quotas: BTreeMap<String, usize> = BTreeMap::new();
    let mut numbered = events;
    for (index, event) in numbered.iter_mut().enumerate() {
        if let Change::QuotaSet(set) = &event.change {
            quotas.insert(set.tenant.clone(), index);
            continue;
        }
        let job = jobs.entry(event.job.clone()).or_default();
        job.revision = event.revision.unwrap_or(job.revision + 1);
        event.revision = Some(job.revision);
        job.record(&event.change);
    }
    let mut index = 0;
    numbered.retain(|event| {
        index += 1;
        match &event.change {
            Change::QuotaSet(set) => quotas.get(&set.tenant) == Some(&(index - 1)),
            change => jobs.get(&event.job).is_none_or(|job| job.needs(change)),
        }
    });
    numbered
}

impl Job {
    fn record(&mut self, change: &Change) {
        match change {
            Change::AttemptStarted { attempt, .. } => {
                self.attempt = Some(*attempt);
                self.ranks.clear();
            }
            Change::AttemptEnded { .. } => self.attempt = None,
            Change::RankStarted(started) => {
                self.ranks.insert(started.rank, started.session.clone());
            }
            Change::PhaseCommitted(done) => self.committed.push(done.phase.clone()),
            Change::Submitted(_)
            | Change::ChunkDone(_)
            | Change::CheckpointCommitted(_)
            | Change::CheckpointLost { .. }
            | Change::CancelRequested
            | Change::Ended(_)
            | Change::QuotaSet(_) => {}
        }
    }

    fn needs(&self, change: &Change) -> bool {
        match change {
            Change::ChunkDone(done) => !self.committed.contains(&done.phase),
            Change::CheckpointCommitted(made) => !self.committed.contains(&made.phase),
            Change::RankStarted(started) => {
                self.attempt == Some(started.attempt)
                    && self.ranks.get(&started.rank) == Some(&started.session)
            }
            Change::Submitted(_)
            | Change::AttemptStarted { .. }
            | Change::PhaseCommitted(_)
            | Change::AttemptEnded { .. }
            | Change::CheckpointLost { .. }
            | Change::CancelRequested
            | Change::Ended(_)
            | Change::QuotaSet(_) => true,
        }
    }
}

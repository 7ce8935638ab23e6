//! Compaction of a log's events for a snapshot: events that later ones supersede are dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::event::{Change, Event};
use super::log_writers::PER_RANK;

/// Number of deleted jobs, the last ones, whose ids are remembered after their objects are gone. Ids sort by
/// the time of submission.
pub const TOMBSTONES_KEPT: usize = 10_000;

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
    /// Revisions at which the last processes of each rank were started, whose logs are accepted.
    starts: BTreeMap<u32, VecDeque<u64>>,
    /// Revision of the last pin of each artifact that is pinned.
    pins: BTreeMap<String, u64>,
    is_deleted: bool,
    /// Its objects are gone too.
    is_erased: bool,
    /// Too many jobs were deleted after it.
    is_forgotten: bool,
}

/// Fewer events that replay to the same state and the same history for watchers. Chunks and checkpoints of
/// committed phases are dropped, because the commit holds them all, and so are rank processes that have been
/// replaced but for the last ones, whose logs are still accepted. Of a deleted job only its tombstone is
/// left, and of a tenant's quotas the last.
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
    forget(&mut jobs);
    let mut index = 0;
    numbered.retain(|event| {
        index += 1;
        match &event.change {
            Change::QuotaSet(set) => quotas.get(&set.tenant) == Some(&(index - 1)),
            _ => jobs.get(&event.job).is_none_or(|job| job.needs(event)),
        }
    });
    numbered
}

/// Marks the oldest of the deleted jobs if there are more than [`TOMBSTONES_KEPT`].
fn forget(jobs: &mut BTreeMap<String, Job>) {
    let erased: BTreeSet<String> =
        jobs.iter().filter(|(_, job)| job.is_erased).map(|(id, _)| id.clone()).collect();
    let surplus = erased.len().saturating_sub(TOMBSTONES_KEPT);
    for id in erased.iter().take(surplus) {
        if let Some(job) = jobs.get_mut(id) {
            job.is_forgotten = true;
        }
    }
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
                let starts = self.starts.entry(started.rank).or_default();
                starts.push_back(self.revision);
                if starts.len() > PER_RANK {
                    starts.pop_front();
                }
            }
            Change::PhaseCommitted(done) => self.committed.push(done.phase.clone()),
            Change::Pinned(pin) => {
                self.pins.insert(pin.artifact.clone(), self.revision);
            }
            Change::Unpinned { artifact } => {
                self.pins.remove(artifact);
            }
            Change::Deleted(_) => self.is_deleted = true,
            Change::Erased => self.is_erased = true,
            Change::Submitted(_)
            | Change::ChunkDone(_)
            | Change::CheckpointCommitted(_)
            | Change::CheckpointLost { .. }
            | Change::CancelRequested
            | Change::Ended(_)
            | Change::QuotaSet(_) => {}
        }
    }

    fn needs(&self, event: &Event) -> bool {
        if self.is_deleted {
            return !self.is_forgotten && matches!(event.change, Change::Deleted(_) | Change::Erased);
        }
        match &event.change {
            Change::ChunkDone(done) => !self.committed.contains(&done.phase),
            Change::CheckpointCommitted(made) => !self.committed.contains(&made.phase),
            Change::RankStarted(started) => {
                let is_current = self.attempt == Some(started.attempt)
                    && self.ranks.get(&started.rank) == Some(&started.session);
                let starts = self.starts.get(&started.rank).zip(event.revision);
                is_current || starts.is_some_and(|(starts, revision)| starts.contains(&revision))
            }
            Change::Pinned(pin) => self.pins.get(&pin.artifact) == event.revision.as_ref(),
            Change::Unpinned { .. } => false,
            Change::Submitted(_)
            | Change::AttemptStarted { .. }
            | Change::PhaseCommitted(_)
            | Change::AttemptEnded { .. }
            | Change::CheckpointLost { .. }
            | Change::CancelRequested
            | Change::Ended(_)
            | Change::Deleted(_)
            | Change::Erased
            | Change::QuotaSet(_) => true,
        }
    }
}

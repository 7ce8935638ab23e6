//! Compaction of a log's events for a snapshot: events that later ones supersede are dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::event::{Change, Event};
use super::log_writers::PER_RANK;
use crate::journal::{Selected, Selection};

/// Number of deleted jobs, the last ones, whose ids are remembered after their objects are gone. Ids sort by
/// the time of submission.
pub const TOMBSTONES_KEPT: usize = 10_000;

/// The facts about a job that decide which of its events are needed.
#[derive(Debug, Default)]
struct Job {
    revision: u64,
    /// The revision up to which the second pass has come.
    passed: u64,
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

/// A selection of events that replays to the same state and the same history for watchers. Chunks and
/// checkpoints of committed phases are dropped, because the commit holds them all, and so are rank processes
/// that have been replaced but for the last ones, whose logs are still accepted. Of a deleted job only its
/// tombstone is left, and of a tenant's quotas the last.
#[derive(Debug, Default)]
pub struct Compaction {
    jobs: BTreeMap<String, Job>,
    /// Number of events that set a tenant's quota.
    quotas: BTreeMap<String, usize>,
}

impl Compaction {
    pub fn begin() -> Box<dyn Selection<Event>> {
        Box::new(Self::default())
    }
}

impl Selection<Event> for Compaction {
    fn record(&mut self, event: &Event) {
        if let Change::QuotaSet(set) = &event.change {
            *self.quotas.entry(set.tenant.clone()).or_default() += 1;
            return;
        }
        let job = self.jobs.entry(event.job.clone()).or_default();
        job.revision = event.revision.unwrap_or(job.revision + 1);
        job.record(&event.change);
    }

    fn turn(&mut self) {
        forget(&mut self.jobs);
    }

    /// Numbers the event with its revision: those before it may be dropped.
    fn select(&mut self, event: &mut Event) -> Selected {
        if let Change::QuotaSet(set) = &event.change {
            let left = self.quotas.entry(set.tenant.clone()).or_default();
            *left = left.saturating_sub(1);
            return if *left == 0 { Selected::Kept } else { Selected::Dropped };
        }
        let Some(job) = self.jobs.get_mut(&event.job) else { return Selected::Kept };
        let is_numbered = event.revision.is_some();
        job.passed = event.revision.unwrap_or(job.passed + 1);
        event.revision = Some(job.passed);
        match job.needs(event) {
            false => Selected::Dropped,
            true if is_numbered => Selected::Kept,
            true => Selected::Changed,
        }
    }
}

/// The events that [`Compaction`] keeps.
pub fn compact_events(mut events: Vec<Event>) -> Vec<Event> {
    let mut compaction = Compaction::default();
    events.iter().for_each(|event| compaction.record(event));
    compaction.turn();
    events.retain_mut(|event| compaction.select(event) != Selected::Dropped);
    events
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

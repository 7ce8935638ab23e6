//! Compaction of a log's events for a snapshot: events that later ones supersede are dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::event::{Change, Event};
use super::log_writers::PER_RANK;
use crate::journal::{Selected, Selection};

/// Number of deleted jobs whose ids are remembered after their objects are deleted; the oldest are forgotten
/// first. Ids sort by time of submission.
pub const TOMBSTONES_KEPT: usize = 10_000;

/// The facts about a job that decide which of its events are needed.
#[derive(Debug, Default)]
struct Job {
    revision: u64,
    /// The last revision that the second pass has processed.
    passed: u64,
    /// Ids of the committed phases.
    committed: Vec<String>,
    /// The running attempt; none between attempts.
    attempt: Option<u32>,
    /// The most recent session of each rank.
    ranks: BTreeMap<u32, String>,
    /// Revisions at which each rank's most recent processes were started, whose logs are still accepted.
    starts: BTreeMap<u32, VecDeque<u64>>,
    /// Revision at which each pinned artifact was last pinned.
    pins: BTreeMap<String, u64>,
    is_deleted: bool,
    /// The job's objects have been deleted as well.
    is_erased: bool,
    /// More than [`TOMBSTONES_KEPT`] jobs were deleted after this one.
    is_forgotten: bool,
}

/// Selects events that replay to the same state and the same history for watchers. Chunks and checkpoints of
/// committed phases are dropped because the commit contains them all. Replaced rank processes are dropped
/// except for the most recent ones, whose logs are still accepted. A deleted job keeps only its tombstone,
/// and a tenant only its last quota.
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

    /// Assigns the event its revision, since earlier events may be dropped.
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

/// Marks the oldest deleted jobs if there are more than [`TOMBSTONES_KEPT`].
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

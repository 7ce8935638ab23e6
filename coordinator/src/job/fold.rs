//! What a snapshot keeps of the log: the events without those that later ones have made superfluous.

use std::collections::BTreeMap;

use super::event::{Change, Event};

/// What is known of a job after all events.
#[derive(Default)]
struct Job {
    revision: u64,
    /// Of the phases that are committed.
    committed: Vec<String>,
    /// None between attempts.
    attempt: Option<u32>,
    /// The last session of each rank.
    seats: BTreeMap<u32, String>,
}

/// Events that add up to the same state and the same history for watchers. Left out are the chunks and
/// checkpoints of committed phases (their commit has them all) and processes that no longer count.
pub fn fold(events: Vec<Event>) -> Vec<Event> {
    let mut jobs: BTreeMap<String, Job> = BTreeMap::new();
    let mut numbered = events;
    for event in &mut numbered {
        let job = jobs.entry(event.job.clone()).or_default();
        job.revision = event.revision.unwrap_or(job.revision + 1);
        event.revision = Some(job.revision);
        job.see(&event.change);
    }
    numbered.retain(|event| jobs.get(&event.job).is_none_or(|job| job.needs(&event.change)));
    numbered
}

impl Job {
    fn see(&mut self, change: &Change) {
        match change {
            Change::AttemptStarted { attempt, .. } => {
                self.attempt = Some(*attempt);
                self.seats.clear();
            }
            Change::AttemptEnded { .. } => self.attempt = None,
            Change::RankStarted(started) => {
                self.seats.insert(started.rank, started.session.clone());
            }
            Change::PhaseCommitted(done) => self.committed.push(done.phase.clone()),
            Change::Submitted(_)
            | Change::ChunkDone(_)
            | Change::CheckpointCommitted(_)
            | Change::CheckpointLost { .. }
            | Change::CancelRequested
            | Change::Ended(_) => {}
        }
    }

    fn needs(&self, change: &Change) -> bool {
        match change {
            Change::ChunkDone(done) => !self.committed.contains(&done.phase),
            Change::CheckpointCommitted(made) => !self.committed.contains(&made.phase),
            Change::RankStarted(started) => {
                self.attempt == Some(started.attempt)
                    && self.seats.get(&started.rank) == Some(&started.session)
            }
            Change::Submitted(_)
            | Change::AttemptStarted { .. }
            | Change::PhaseCommitted(_)
            | Change::AttemptEnded { .. }
            | Change::CheckpointLost { .. }
            | Change::CancelRequested
            | Change::Ended(_) => true,
        }
    }
}

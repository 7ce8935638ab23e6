//! Garbage collection: finding a job's unreferenced objects, which may be deleted.
//!
//! Garbage stays garbage: a committed phase gains no further objects, nothing falls back to a dropped
//! checkpoint, and an attempt that is over writes nothing more. A collection is therefore safe at any later
//! time, even by a deposed leader, and needs no log record of its own, because it follows from records that
//! already exist.

use std::collections::BTreeSet;

use foil_proto::v1;

use super::event::Change;
use super::state::{CHECKPOINTS_KEPT, JobState};

/// Directory of an attempt's checkpoints, in keys like `a{attempt}/checkpoints/{step}/…` below the phase's
/// prefix.
const CHECKPOINTS: &str = "checkpoints";

/// The objects that may be deleted, as a predicate over keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GarbageSet {
    /// Common prefix of the keys; ends in '/'.
    prefix: String,
    /// Keys that an artifact or a checkpoint refers to.
    referenced: BTreeSet<String>,
    /// The attempt that still writes below the prefix, if any.
    live: Option<LiveAttempt>,
}

/// A running attempt of a gang phase, which may still refer to objects it has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LiveAttempt {
    attempt: u32,
    /// Step of the last checkpoint.
    step: u64,
}

impl GarbageSet {
    /// The objects that a change has turned into garbage, given the state after it.
    pub fn after(state: &JobState, change: &Change) -> Option<Self> {
        match change {
            Change::PhaseCommitted(done) => Some(Self::of(state, &format!("{}/", done.phase), None)),
            Change::CheckpointCommitted(made) if state.checkpoints.len() >= CHECKPOINTS_KEPT => {
                let live = LiveAttempt { attempt: made.attempt, step: made.step };
                Some(Self::of(state, &format!("{}/", made.phase), Some(live)))
            }
            Change::Ended(_) => Some(Self::of_ended_job(state)),
            _ => None,
        }
    }

    /// Everything unreferenced below an ended job.
    pub fn of_ended_job(state: &JobState) -> Self {
        Self::of(state, "", None)
    }

    /// Everything below a deleted job except what other jobs refer to.
    pub fn of_deleted_job(id: &str, referenced: BTreeSet<String>) -> Self {
        Self { prefix: format!("jobs/{id}/"), referenced, live: None }
    }

    fn of(state: &JobState, below: &str, live: Option<LiveAttempt>) -> Self {
        let artifacts = state.committed.iter().flat_map(|done| [Some(&done.artifact), done.steps.as_ref()]);
        let of_artifacts = artifacts.flatten().flat_map(|artifact| &artifact.objects);
        let of_checkpoints = state.checkpoints.iter().flat_map(|made| &made.objects);
        let key = |object: &v1::Object| object.key.clone();
        Self {
            prefix: format!("jobs/{}/phases/{below}", state.id),
            referenced: of_artifacts.chain(of_checkpoints).map(key).collect(),
            live,
        }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// True if nothing refers to the object or ever will.
    pub fn is_garbage(&self, key: &str) -> bool {
        let Some(below) = key.strip_prefix(&self.prefix) else { return false };
        if self.referenced.contains(key) {
            return false;
        }
        self.live.is_none_or(|live| live.supersedes(below))
    }
}

impl LiveAttempt {
    /// True for an unreferenced key below the phase's prefix that this attempt can no longer refer to. A key
    /// of unexpected form is kept.
    fn supersedes(self, below: &str) -> bool {
        let mut parts = below.split('/');
        let attempt = parts.next().and_then(|part| part.strip_prefix('a')?.parse::<u32>().ok());
        let of_checkpoint = parts.next() == Some(CHECKPOINTS);
        let step = parts.next().and_then(|part| part.parse::<u64>().ok());
        match (attempt, step) {
            (Some(attempt), _) if attempt < self.attempt => true,
            (Some(attempt), Some(step)) => attempt == self.attempt && of_checkpoint && step < self.step,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fixture::{JOB, after, event, object};
    use crate::job::{Cause, CauseClass, Detail};

    fn checkpoint(phase: &str, attempt: u32, step: u64) -> Change {
        let key = |rank: u32| {
            format!("jobs/{JOB}/phases/{phase}/a{attempt}/checkpoints/{step:012}/rank-{rank}.safetensors")
        };
        let objects = (0..2).map(|rank| object(&key(rank))).collect();
        Change::CheckpointCommitted(v1::Checkpoint { phase: phase.to_owned(), step, attempt, objects })
    }

    fn applied(state: &mut JobState, change: Change) -> Option<GarbageSet> {
        let event = event(9, change);
        state.apply(&event).unwrap();
        GarbageSet::after(state, &event.change)
    }

    fn break_off(state: &mut JobState) {
        let (attempt, phase) = (state.attempt, state.phase().unwrap().id.to_string());
        let cause = Cause {
            class: CauseClass::Preempted,
            message: String::new(),
            advice: String::new(),
            rank: None,
            log_tail: Vec::new(),
            detail: Detail::default(),
        };
        applied(state, Change::AttemptEnded { attempt, cause });
        applied(state, Change::AttemptStarted { attempt: attempt + 1, phase, world: 2 });
    }

    #[test]
    fn dropped_checkpoints_and_objects_of_dead_attempts_are_garbage() {
        let mut state = after(&[], 0);
        let phase = state.phase().unwrap().id.to_string();
        assert_eq!(applied(&mut state, checkpoint(&phase, 1, 2)), None, "too few checkpoints so far");
        assert_eq!(applied(&mut state, checkpoint(&phase, 1, 4)), None);
        break_off(&mut state);
        applied(&mut state, checkpoint(&phase, 2, 6));
        let garbage = applied(&mut state, checkpoint(&phase, 2, 8)).unwrap();
        let key = |rest: &str| format!("{}{rest}", garbage.prefix());
        let shard =
            |attempt: u32, step: u64| key(&format!("a{attempt}/checkpoints/{step:012}/rank-0.safetensors"));
        for kept in [shard(1, 4), shard(2, 6), shard(2, 8)] {
            assert!(!garbage.is_garbage(&kept), "{kept} is one of the last three");
        }
        for written in [shard(2, 10), key("a2/model.safetensors"), shard(3, 1), key("00001/2-7"), key("a2")] {
            assert!(!garbage.is_garbage(&written), "{written} may still be referenced");
        }
        for gone in [shard(1, 2), shard(1, 9), key("a1/model.safetensors"), shard(2, 7)] {
            assert!(garbage.is_garbage(&gone), "{gone} will not be referenced again");
        }
        assert!(!garbage.is_garbage(&format!("jobs/{JOB}/phases/other/a1/model.safetensors")));
    }

    #[test]
    fn everything_of_a_committed_phase_and_of_an_ended_job_but_its_artifacts_is_garbage() {
        let state = after(&[], 2);
        let done = state.committed[1].clone();
        let referenced = done.artifact.objects[0].key.clone();
        let phase = done.phase.clone();
        let garbage = GarbageSet::after(&state, &Change::PhaseCommitted(Box::new(done))).unwrap();
        assert!(!garbage.is_garbage(&referenced));
        assert!(
            garbage.is_garbage(&format!("jobs/{JOB}/phases/{phase}/00000/1-99")),
            "written under a second lease"
        );
        let next = state.phase().unwrap().id.to_string();
        let running = format!("jobs/{JOB}/phases/{next}/00000/1-1");
        assert!(!garbage.is_garbage(&running));

        let garbage = GarbageSet::of_ended_job(&state);
        assert!(garbage.is_garbage(&running), "nothing refers to an uncommitted phase");
        assert!(!garbage.is_garbage(&referenced));
        assert!(!garbage.is_garbage(&format!("jobs/{JOB}/data/sft.jsonl")));
        assert!(!garbage.is_garbage("jobs/j10/phases/x/00000/1-1"), "another job's");
    }
}

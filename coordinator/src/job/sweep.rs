//! Which of a job's objects nothing will ever name again, so that they may be deleted.
//!
//! What is condemned stays so: a committed phase takes no further objects, a checkpoint that fell out of those kept is
//! not fallen back on, and an attempt that is over writes no more. So a sweep is right whenever it is carried out, also by a
//! leader that leads no more, and needs no record of its own in the log: the record it follows from is there.

use std::collections::BTreeSet;

use foil_proto::v1;

use super::event::Change;
use super::state::{CHECKPOINTS_KEPT, JobState};

/// The parts of a gang phase's keys below its prefix: `a{attempt}/checkpoints/{step}/…`, and others of the attempt.
const CHECKPOINTS: &str = "checkpoints";

/// What may be deleted, as a rule over keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// Where to look; ends in '/'.
    prefix: String,
    /// Named by an artifact or a checkpoint.
    kept: BTreeSet<String>,
    /// Where the phase goes on.
    live: Option<Live>,
}

/// What of a gang phase's objects a running attempt may still name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Live {
    attempt: u32,
    /// The last checkpoint is of this step: the attempt goes on from there.
    step: u64,
}

impl Sweep {
    /// What a change has made superfluous, in the state after it.
    pub fn after(state: &JobState, change: &Change) -> Option<Self> {
        match change {
            Change::PhaseCommitted(done) => Some(Self::of(state, &format!("{}/", done.phase), None)),
            Change::CheckpointCommitted(made) if state.checkpoints.len() >= CHECKPOINTS_KEPT => {
                let live = Live { attempt: made.attempt, step: made.step };
                Some(Self::of(state, &format!("{}/", made.phase), Some(live)))
            }
            Change::Ended(_) => Some(Self::of_ended(state)),
            _ => None,
        }
    }

    /// What is left of a job that is over.
    pub fn of_ended(state: &JobState) -> Self {
        Self::of(state, "", None)
    }

    fn of(state: &JobState, below: &str, live: Option<Live>) -> Self {
        let artifacts = state.committed.iter().flat_map(|done| [Some(&done.artifact), done.steps.as_ref()]);
        let of_artifacts = artifacts.flatten().flat_map(|artifact| &artifact.objects);
        let of_checkpoints = state.checkpoints.iter().flat_map(|made| &made.objects);
        let key = |object: &v1::Object| object.key.clone();
        Self {
            prefix: format!("jobs/{}/phases/{below}", state.id),
            kept: of_artifacts.chain(of_checkpoints).map(key).collect(),
            live,
        }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether nothing will ever name the object.
    pub fn condemns(&self, key: &str) -> bool {
        let Some(below) = key.strip_prefix(&self.prefix) else { return false };
        if self.kept.contains(key) {
            return false;
        }
        self.live.is_none_or(|live| live.condemns(below))
    }
}

impl Live {
    /// Of a key below its phase that nothing names yet. One that does not look as expected stays.
    fn condemns(self, below: &str) -> bool {
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

    fn applied(state: &mut JobState, change: Change) -> Option<Sweep> {
        let event = event(9, change);
        state.apply(&event).unwrap();
        Sweep::after(state, &event.change)
    }

    fn break_off(state: &mut JobState) {
        let (attempt, phase) = (state.attempt, state.phase().unwrap().id.clone());
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
    fn checkpoints_that_fell_out_and_what_dead_attempts_left_go() {
        let mut state = after(&[], 0);
        let phase = state.phase().unwrap().id.clone();
        assert_eq!(applied(&mut state, checkpoint(&phase, 1, 2)), None, "there are few yet");
        assert_eq!(applied(&mut state, checkpoint(&phase, 1, 4)), None);
        break_off(&mut state);
        applied(&mut state, checkpoint(&phase, 2, 6));
        let sweep = applied(&mut state, checkpoint(&phase, 2, 8)).unwrap();
        let key = |rest: &str| format!("{}{rest}", sweep.prefix());
        let share =
            |attempt: u32, step: u64| key(&format!("a{attempt}/checkpoints/{step:012}/rank-0.safetensors"));
        for kept in [share(1, 4), share(2, 6), share(2, 8)] {
            assert!(!sweep.condemns(&kept), "{kept} is one of the last three");
        }
        for written in [share(2, 10), key("a2/model.safetensors"), share(3, 1), key("00001/2-7"), key("a2")] {
            assert!(!sweep.condemns(&written), "{written} may be named yet");
        }
        for gone in [share(1, 2), share(1, 9), key("a1/model.safetensors"), share(2, 7)] {
            assert!(sweep.condemns(&gone), "{gone} will not be named any more");
        }
        assert!(!sweep.condemns(&format!("jobs/{JOB}/phases/other/a1/model.safetensors")));
    }

    #[test]
    fn of_a_committed_phase_and_of_an_ended_job_only_what_artifacts_name_stays() {
        let state = after(&[], 2);
        let done = state.committed[1].clone();
        let named = done.artifact.objects[0].key.clone();
        let phase = done.phase.clone();
        let sweep = Sweep::after(&state, &Change::PhaseCommitted(Box::new(done))).unwrap();
        assert!(!sweep.condemns(&named));
        assert!(sweep.condemns(&format!("jobs/{JOB}/phases/{phase}/00000/1-99")), "a second lease's");
        let next = state.phase().unwrap().id.clone();
        let running = format!("jobs/{JOB}/phases/{next}/00000/1-1");
        assert!(!sweep.condemns(&running));

        let sweep = Sweep::of_ended(&state);
        assert!(sweep.condemns(&running), "nothing of a phase that was not committed counts");
        assert!(!sweep.condemns(&named));
        assert!(!sweep.condemns(&format!("jobs/{JOB}/data/sft.jsonl")));
        assert!(!sweep.condemns("jobs/j10/phases/x/00000/1-1"), "another job's");
    }
}

//! Reads from a job's state what a tracker has not received yet. Pure: a state and a position in it go in,
//! the next batch comes out.
//!
//! Only the two parts of a log that never change are sent: committed phases, and the steps of a training
//! phase up to its last checkpoint. An attempt that continues after a checkpoint reports the earlier steps
//! with the same values, because the checkpoint contains them. Steps after it may be repeated.

use foil_proto::v1;
use serde::{Deserialize, Serialize};

use crate::driver::core::Core;
use crate::driver::whole_lines;
use crate::job::{JobState, JobStatus, Outcome, SpanEnd};
use crate::plan::{Phase, Work};

/// Maximum number of bytes of lines requested from the driver at a time.
const LINES_BYTES: usize = 256 << 10;

/// A position in a job's log: everything before it has been delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// Number of completely delivered phases.
    pub(super) phases: u32,
    /// Last delivered step of the next phase.
    pub(super) steps: u64,
    /// Whether the job's end has been delivered.
    pub(super) ended: bool,
}

/// Number of optimizer steps in completed phases, by model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StepCounts {
    sft: u64,
    reward: u64,
    policy: u64,
}

impl StepCounts {
    /// The steps of a job's first `phases` phases.
    pub(super) fn until(state: &JobState, phases: u32) -> Self {
        let mut counts = Self::default();
        let done = state.phases.iter().zip(&state.committed).take(phases as usize);
        done.for_each(|(phase, done)| counts.add(phase.work, steps_of(phase, &done.metrics)));
        counts
    }

    pub(super) fn of(&self, work: Work) -> u64 {
        match work {
            Work::Sft => self.sft,
            Work::TrainReward => self.reward,
            Work::TrainPolicy => self.policy,
            _ => 0,
        }
    }

    fn add(&mut self, work: Work, steps: u64) {
        match work {
            Work::Sft => self.sft += steps,
            Work::TrainReward => self.reward += steps,
            Work::TrainPolicy => self.policy += steps,
            _ => {}
        }
    }

    /// Counts a delivered phase.
    pub(super) fn passed(&mut self, facts: &PhaseFacts, metrics: &[v1::Metric]) {
        self.add(facts.phase.work, steps_of(&facts.phase, metrics));
    }
}

/// The number of steps that a phase took: the ranks' report takes precedence over the plan.
fn steps_of(phase: &Phase, metrics: &[v1::Metric]) -> u64 {
    let told = metrics.iter().find(|metric| metric.name == "steps").map(|metric| metric.value);
    let told = told.filter(|steps| steps.fract() == 0.0 && (0.0..1e12).contains(steps));
    told.map_or(phase.steps.into(), |steps| steps as u64)
}

/// A phase and when it ran.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PhaseFacts {
    pub(super) phase: Phase,
    /// For each attempt that ran the phase, in order: its start in milliseconds since the Unix epoch, and
    /// the step after which training continued.
    pub(super) starts: Vec<(u64, u64)>,
    /// Milliseconds since the Unix epoch.
    pub(super) committed_at: Option<u64>,
}

impl PhaseFacts {
    fn of(state: &JobState, index: u32) -> Option<Self> {
        let phase = state.phases.get(index as usize)?.clone();
        let spans = &state.timeline.spans;
        let from = spans.partition_point(|span| span.phase < index);
        let own = spans[from..].iter().take_while(|span| span.phase == index);
        let starts = own.clone().map(|span| (span.started, span.resumed_after)).collect();
        let committed_at = own.clone().find_map(|span| match span.end {
            SpanEnd::Committed(at) => Some(at),
            SpanEnd::Running | SpanEnd::Interrupted(_) => None,
        });
        Some(Self { phase, starts, committed_at })
    }
}

/// The next part of a job's log after a position.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    Phase {
        facts: PhaseFacts,
        metrics: Vec<v1::Metric>,
        steps: Option<v1::Object>,
    },
    /// Steps of the running phase in `attempt`, up to a checkpoint.
    Steps {
        facts: PhaseFacts,
        attempt: u32,
        until: u64,
    },
    End {
        at: u64,
        outcome: Ending,
    },
    /// Nothing yet.
    Nothing,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    Succeeded,
    /// With its class and message.
    Failed(String),
    Cancelled,
}

pub(super) fn next(state: &JobState, cursor: Cursor) -> Next {
    if cursor.ended {
        return Next::Nothing;
    }
    if let Some(done) = state.committed.get(cursor.phases as usize)
        && let Some(facts) = PhaseFacts::of(state, cursor.phases)
    {
        let steps = done.steps.as_ref().and_then(|steps| steps.objects.first().cloned());
        return Next::Phase { facts, metrics: done.metrics.clone(), steps };
    }
    if let JobStatus::Ended { at, outcome } = &state.status {
        let outcome = match outcome {
            Outcome::Succeeded => Ending::Succeeded,
            Outcome::Failed(failure) => Ending::Failed(format!("{}: {}", failure.class, failure.message)),
            Outcome::Cancelled => Ending::Cancelled,
        };
        return Next::End { at: *at, outcome };
    }
    let (checkpoint, attempt) = (state.checkpoints.last(), state.current_attempt());
    match (checkpoint.map(|checkpoint| checkpoint.step), attempt) {
        (Some(until), Some(attempt)) if until > cursor.steps => match PhaseFacts::of(state, cursor.phases) {
            Some(facts) if facts.phase.work.is_gang() => Next::Steps { facts, attempt, until },
            _ => Next::Nothing,
        },
        _ => Next::Nothing,
    }
}

/// How far a job's log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    phases: u32,
    /// Step of the running phase's last checkpoint, if an attempt reports steps.
    checkpoint: u64,
    /// Milliseconds since the Unix epoch.
    pub(super) ended_at: Option<u64>,
}

impl Mark {
    pub(super) fn of(state: &JobState) -> Self {
        let ended_at = match state.status {
            JobStatus::Ended { at, .. } => Some(at),
            _ => None,
        };
        let checkpoint = state.checkpoints.last().filter(|_| state.current_attempt().is_some());
        Self {
            phases: u32::try_from(state.committed.len()).unwrap_or(u32::MAX),
            checkpoint: checkpoint.map_or(0, |checkpoint| checkpoint.step),
            ended_at,
        }
    }

    /// Whether there is anything after a position.
    pub(super) fn is_after(&self, cursor: Cursor) -> bool {
        let more = self.phases > cursor.phases || self.ended_at.is_some() || self.checkpoint > cursor.steps;
        more && !cursor.ended
    }
}

/// Lines of the running phase's steps, starting at byte `from`, if `attempt` is running it; limited in size,
/// but at least one line.
pub(super) fn running_lines(
    core: &Core,
    job: &str,
    phase: &str,
    attempt: u32,
    from: usize,
) -> Option<String> {
    core.state(job).filter(|state| state.current_attempt() == Some(attempt))?;
    let lines = core.running_steps(job, phase)?.get(from..)?;
    Some(whole_lines(lines, LINES_BYTES).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fixture::{self, event};
    use crate::job::{Cause, CauseClass, Change};

    fn checkpoint(state: &JobState, step: u64, attempt: u32) -> Change {
        let phase = state.phase().unwrap().id.to_string();
        Change::CheckpointCommitted(v1::Checkpoint { phase, step, attempt, objects: Vec::new() })
    }

    fn start(state: &mut JobState, at: u64, attempt: u32) {
        let phase = state.phase().unwrap().id.to_string();
        state.apply(&event(at, Change::AttemptStarted { attempt, phase, world: 2 })).unwrap();
    }

    fn broken(state: &mut JobState, at: u64, attempt: u32) {
        let cause = Cause::new(CauseClass::Preempted, "");
        state.apply(&event(at, Change::AttemptEnded { attempt, cause })).unwrap();
    }

    fn has_more(state: &JobState, cursor: Cursor) -> bool {
        Mark::of(state).is_after(cursor)
    }

    #[test]
    fn steps_come_up_to_the_last_checkpoint_and_phases_once_they_are_committed() {
        let mut state = fixture::state(&[]);
        let mut cursor = Cursor::default();
        assert_eq!(next(&state, cursor), Next::Nothing);
        start(&mut state, 10, 1);
        assert!(!has_more(&state, cursor) && next(&state, cursor) == Next::Nothing, "steps may be lost");
        state.apply(&event(20, checkpoint(&state, 7, 1))).unwrap();
        broken(&mut state, 30, 1);
        assert!(!has_more(&state, cursor), "no rank reports steps between two attempts");
        start(&mut state, 40, 2);
        let Next::Steps { facts, attempt: 2, until: 7 } = next(&state, cursor) else { panic!() };
        assert_eq!((facts.starts.as_slice(), facts.committed_at), (&[(10, 0), (40, 7)][..], None));
        cursor.steps = 7;
        assert!(!has_more(&state, cursor));
        fixture::commit_next(&mut state);
        assert!(has_more(&state, cursor));
        let Next::Phase { facts, metrics, .. } = next(&state, cursor) else { panic!() };
        assert_eq!((facts.phase.id.as_str(), facts.committed_at, metrics.len()), ("r00.sft", Some(3), 1));
        let after = Cursor { phases: 1, ..Cursor::default() };
        assert_eq!(next(&state, after), Next::Nothing, "the next phase runs");
    }

    #[test]
    fn the_end_comes_after_the_last_phase() {
        let mut state = fixture::after(&[], 2);
        broken(&mut state, 50, 1);
        state.apply(&event(60, Change::CancelRequested)).unwrap();
        state.apply(&event(70, Change::Ended(Outcome::Cancelled))).unwrap();
        let mut cursor = Cursor { phases: 1, ..Cursor::default() };
        assert!(matches!(next(&state, cursor), Next::Phase { .. }));
        cursor.phases = 2;
        assert_eq!(next(&state, cursor), Next::End { at: 70, outcome: Ending::Cancelled });
        cursor.ended = true;
        assert!(!has_more(&state, cursor) && next(&state, cursor) == Next::Nothing);
    }

    #[test]
    fn steps_are_counted_over_rounds_as_ranks_told_them() {
        let mut state = fixture::state(&[]);
        start(&mut state, 10, 1);
        let metric = |name: &str, value| v1::Metric { name: name.into(), value, se: None };
        let all = state.phases.len();
        for _ in 0..all {
            fixture::commit_next_with(&mut state, |phase| {
                if phase.work == Work::TrainPolicy { vec![metric("steps", 5.0)] } else { Vec::new() }
            });
        }
        let counts = StepCounts::until(&state, u32::try_from(all).unwrap());
        assert_eq!(counts.of(Work::TrainPolicy), 10, "two rounds");
        let planned = |work: Work| -> u64 {
            state.phases.iter().filter(|phase| phase.work == work).map(|phase| u64::from(phase.steps)).sum()
        };
        assert_eq!(
            (counts.of(Work::Sft), counts.of(Work::TrainReward)),
            (planned(Work::Sft), planned(Work::TrainReward))
        );
        assert_eq!(counts.of(Work::ScorePolicy), 0);
        // Counting phase by phase gives the same result.
        let mut passed = StepCounts::default();
        for (index, done) in (0..).zip(&state.committed) {
            passed.passed(&PhaseFacts::of(&state, index).unwrap(), &done.metrics);
        }
        assert_eq!(passed, counts);
    }
}

//! When a job's phases ran, in which attempts, and how those attempts ended.

use super::event::{CauseClass, Change, Event};
use super::state::JobState;

/// Maximum number of most recent attempts that are remembered.
const ATTEMPTS_KEPT: usize = 1000;
/// Size limit of the message with which an attempt ended.
const MESSAGE_BYTES: usize = 512;

/// A phase as one attempt ran it. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Index of the phase in the plan.
    pub phase: u32,
    pub attempt: u32,
    pub started: u64,
    pub end: SpanEnd,
    /// Step of the checkpoint from which training continued; 0 if it began at the start.
    pub resumed_after: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanEnd {
    Running,
    Committed(u64),
    /// The attempt ended before the phase.
    Interrupted(u64),
}

/// An attempt from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptSpan {
    pub attempt: u32,
    pub started: u64,
    pub end: Option<AttemptEnd>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptEnd {
    pub at: u64,
    pub class: CauseClass,
    pub message: String,
}

/// The timeline of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// In the order of their start.
    pub spans: Vec<Span>,
    pub attempts: Vec<AttemptSpan>,
}

impl Timeline {
    /// Records an event, after `state` has applied it.
    pub(super) fn record(state: &mut JobState, event: &Event) {
        let current = u32::try_from(state.committed.len()).unwrap_or(u32::MAX);
        let next = state.phase().map(|_| Span {
            phase: current,
            attempt: state.attempt,
            started: event.at,
            end: SpanEnd::Running,
            resumed_after: state.checkpoints.last().map_or(0, |checkpoint| checkpoint.step),
        });
        let timeline = &mut state.timeline;
        match &event.change {
            Change::AttemptStarted { attempt, .. } => {
                if timeline.attempts.len() >= ATTEMPTS_KEPT {
                    timeline.attempts.remove(0);
                }
                timeline.attempts.push(AttemptSpan { attempt: *attempt, started: event.at, end: None });
                timeline.spans.extend(next);
            }
            Change::PhaseCommitted(_) => {
                timeline.close(SpanEnd::Committed(event.at));
                timeline.spans.extend(next);
            }
            Change::AttemptEnded { attempt, cause } => {
                timeline.close(SpanEnd::Interrupted(event.at));
                let open = timeline.attempts.iter_mut().rev().find(|span| span.attempt == *attempt);
                if let Some(open) = open {
                    let mut message = cause.message.clone();
                    message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
                    open.end = Some(AttemptEnd { at: event.at, class: cause.class, message });
                }
            }
            _ => {}
        }
    }

    fn close(&mut self, end: SpanEnd) {
        if let Some(open) = self.spans.last_mut().filter(|span| span.end == SpanEnd::Running) {
            open.end = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Cause;
    use super::super::fixture::{self, event};
    use super::*;

    #[test]
    fn an_interrupted_phase_has_a_span_in_each_attempt() {
        let mut state = fixture::state(&[]);
        let phases: Vec<String> = state.phases.iter().map(|phase| phase.id.to_string()).collect();
        let started =
            |attempt, phase: &str| Change::AttemptStarted { attempt, phase: phase.into(), world: 2 };
        let ended = |attempt, class, message: &str| Change::AttemptEnded {
            attempt,
            cause: Cause::new(class, message),
        };
        state.apply(&event(10, started(1, &phases[0]))).unwrap();
        let checkpoint =
            foil_proto::v1::Checkpoint { phase: phases[0].clone(), step: 7, attempt: 1, objects: Vec::new() };
        state.apply(&event(15, Change::CheckpointCommitted(checkpoint))).unwrap();
        state.apply(&event(20, ended(1, CauseClass::Crash, &"é".repeat(900)))).unwrap();
        state.apply(&event(30, started(2, &phases[0]))).unwrap();
        // The fixture commits at time 3; recording does not require ascending times.
        fixture::commit_next(&mut state);
        let spans = &state.timeline.spans;
        let facts: Vec<_> = spans.iter().map(|span| (span.phase, span.attempt, span.resumed_after)).collect();
        assert_eq!(facts, [(0, 1, 0), (0, 2, 7), (1, 2, 0)]);
        let ends: Vec<_> = spans.iter().map(|span| span.end).collect();
        assert_eq!(ends, [SpanEnd::Interrupted(20), SpanEnd::Committed(3), SpanEnd::Running]);
        let first = state.timeline.attempts[0].end.as_ref().unwrap();
        assert_eq!((first.at, first.class, first.message.len()), (20, CauseClass::Crash, 512));
        assert_eq!(state.timeline.attempts[1].end, None);
        for _ in 1..phases.len() {
            fixture::commit_next(&mut state);
        }
        assert_eq!(state.timeline.spans.len(), phases.len() + 1, "nothing runs after the last phase");
        state.apply(&event(90, ended(2, CauseClass::Completed, ""))).unwrap();
        assert!(state.timeline.spans.iter().skip(1).all(|span| matches!(span.end, SpanEnd::Committed(_))));
    }

    #[test]
    fn the_first_attempts_are_forgotten_when_there_are_very_many() {
        let mut state = fixture::state(&[]);
        let phase = state.phases[0].id.to_string();
        for attempt in 1..=1500 {
            state
                .apply(&event(1, Change::AttemptStarted { attempt, phase: phase.clone(), world: 2 }))
                .unwrap();
            let cause = Cause::new(CauseClass::Preempted, "");
            state.apply(&event(2, Change::AttemptEnded { attempt, cause })).unwrap();
        }
        let kept = &state.timeline.attempts;
        assert_eq!((kept.len(), kept[0].attempt, kept[999].attempt), (1000, 501, 1500));
    }
}

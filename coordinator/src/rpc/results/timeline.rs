//! The timeline of a job's phases and attempts.

use foil_proto::v1;
use tonic::Status;

use crate::clock::timestamp;
use crate::driver::UserHandle;
use crate::job::{AttemptSpan, JobState, Span, SpanEnd, recent_alarms};
use crate::rpc::status::{bad_token, no_job, stopped};

/// Number of spans per page.
const PAGE_SPANS: usize = 2000;

pub(super) async fn get(
    driver: &UserHandle,
    request: v1::GetTimelineRequest,
) -> Result<v1::GetTimelineResponse, Status> {
    let v1::GetTimelineRequest { job_id, page_token } = request;
    let from: usize = match page_token.as_str() {
        "" => 0,
        token => token.parse().map_err(|_| bad_token())?,
    };
    let page = driver.inspect(&job_id, move |state| page(state, from, PAGE_SPANS)).await;
    page.map_err(stopped)?.ok_or_else(|| no_job(&job_id))
}

fn page(state: &JobState, from: usize, size: usize) -> v1::GetTimelineResponse {
    let spans = &state.timeline.spans;
    let rest = spans.get(from..).unwrap_or_default();
    let shown = &rest[..rest.len().min(size)];
    let next = from.saturating_add(shown.len());
    let attempts = state.timeline.attempts.iter().filter(|_| from == 0);
    v1::GetTimelineResponse {
        spans: shown.iter().map(|span| wire_span(state, span)).collect(),
        next_page_token: if next < spans.len() { next.to_string() } else { String::new() },
        attempts: attempts.map(|attempt| wire_attempt(state, attempt)).collect(),
        alarms: if from == 0 { recent_alarms(state) } else { Vec::new() },
    }
}

fn wire_span(state: &JobState, span: &Span) -> v1::TimelineSpan {
    let phase = state.phases.get(span.phase as usize);
    let (outcome, ended) = match span.end {
        SpanEnd::Running => (v1::SpanOutcome::Running, None),
        SpanEnd::Committed(at) => (v1::SpanOutcome::Committed, Some(at)),
        SpanEnd::Interrupted(at) => (v1::SpanOutcome::Interrupted, Some(at)),
    };
    v1::TimelineSpan {
        phase: phase.map(|phase| phase.id.to_string()).unwrap_or_default(),
        round: phase.map_or(0, |phase| phase.round),
        kind: phase.map(|phase| phase.work.kind().to_owned()).unwrap_or_default(),
        attempt: span.attempt,
        started_at: Some(timestamp(span.started)),
        ended_at: ended.map(timestamp),
        outcome: outcome.into(),
        resumed_after_step: span.resumed_after,
    }
}

fn wire_attempt(state: &JobState, attempt: &AttemptSpan) -> v1::TimelineAttempt {
    let runs = state.current_attempt() == Some(attempt.attempt);
    let place = |process: &crate::job::RankStarted| v1::RankPlace {
        rank: process.rank,
        agent: process.agent.clone(),
        device: process.device.clone(),
    };
    v1::TimelineAttempt {
        attempt: attempt.attempt,
        started_at: Some(timestamp(attempt.started)),
        ended_at: attempt.end.as_ref().map(|end| timestamp(end.at)),
        end_class: attempt.end.as_ref().map(|end| end.class.as_str().to_owned()).unwrap_or_default(),
        end_message: attempt.end.as_ref().map(|end| end.message.clone()).unwrap_or_default(),
        ranks: if runs { state.ranks.values().map(place).collect() } else { Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::fixture::{self, event};
    use crate::job::{Cause, CauseClass, Change, RankStarted};

    #[test]
    fn pages_make_the_whole_timeline() {
        let mut state = fixture::after(&[], 2);
        let started = RankStarted {
            attempt: 1,
            rank: 1,
            session: "s".into(),
            agent: "gpu-7".into(),
            device: "cuda:1".into(),
            proof: String::new(),
        };
        state.apply(&event(8, Change::RankStarted(started))).unwrap();
        let running = page(&state, 0, 10);
        assert_eq!(running.attempts[0].ranks[0].agent, "gpu-7");
        assert_eq!(running.spans[2].outcome(), v1::SpanOutcome::Running);
        let cause = Cause::new(CauseClass::OutOfMemory, "no room");
        state.apply(&event(9, Change::AttemptEnded { attempt: 1, cause })).unwrap();
        let whole = page(&state, 0, 10);
        assert_eq!((whole.spans.len(), whole.next_page_token.as_str()), (3, ""));
        let attempt = &whole.attempts[0];
        assert_eq!((attempt.end_class.as_str(), attempt.end_message.as_str()), ("out_of_memory", "no room"));
        assert!(attempt.ranks.is_empty() && attempt.ended_at == Some(timestamp(9)));
        let last = &whole.spans[2];
        assert_eq!((last.outcome(), last.ended_at), (v1::SpanOutcome::Interrupted, Some(timestamp(9))));
        assert_eq!(last.phase, state.phases[2].id);
        let (first, second) = (page(&state, 0, 2), page(&state, 2, 2));
        assert_eq!((first.next_page_token.as_str(), second.next_page_token.as_str()), ("2", ""));
        assert_eq!([first.spans, second.spans].concat(), whole.spans);
        assert!(second.attempts.is_empty() && page(&state, usize::MAX, 2).spans.is_empty());
    }
}
